//! EC2's resource ids: a prefix, a dash, and 17 hexadecimal digits (8 in ids of before 2016); and IAM's, in base 32.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Why a text is not an id of the wanted kind.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not an id of the form {prefix}-0123456789abcdef0")]
pub struct Malformed {
    /// What was given.
    pub text: String,
    /// What it should begin with.
    pub prefix: &'static str,
}

/// Seventeen random hexadecimal digits.
fn digits() -> String {
    let number: u128 = rand::random();
    format!("{:017x}", number >> 60)
}

/// The digits of base 32, which the ids of access keys and of what IAM has are made of.
pub const BASE_32: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";

/// An id of IAM's that nobody else has, such as `AROA` and 17 more for a role.
pub fn unique_id(prefix: &str, digits: usize) -> String {
    let random = std::iter::repeat_with(|| BASE_32[usize::from(rand::random::<u8>() % 32)]);
    prefix.chars().chain(random.take(digits).map(char::from)).collect()
}

macro_rules! ids {
    ($($(#[$doc:meta])* $name:ident = $prefix:literal;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// What it begins with.
            pub const PREFIX: &'static str = $prefix;

            /// One that nobody else has.
            pub fn random() -> Self {
                Self(format!("{}-{}", $prefix, digits()))
            }

            /// The text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str(&self.0)
            }
        }

        impl FromStr for $name {
            type Err = Malformed;

            fn from_str(text: &str) -> Result<Self, Malformed> {
                if is_well_formed($prefix, text) {
                    Ok(Self(text.to_owned()))
                } else {
                    Err(Malformed { text: text.to_owned(), prefix: $prefix })
                }
            }
        }

        impl TryFrom<String> for $name {
            type Error = Malformed;

            fn try_from(text: String) -> Result<Self, Malformed> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.0
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }
    )*};
}

/// Whether a text is `prefix`, a dash and 8 or 17 lower-case hexadecimal digits.
pub fn is_well_formed(prefix: &str, text: &str) -> bool {
    let Some(digits) = text.strip_prefix(prefix).and_then(|rest| rest.strip_prefix('-')) else {
        return false;
    };
    matches!(digits.len(), 8 | 17) && digits.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

ids! {
    /// An instance.
    InstanceId = "i";
    /// What one RunInstances has launched.
    ReservationId = "r";
    /// An image.
    ImageId = "ami";
    /// A snapshot.
    SnapshotId = "snap";
    /// A volume.
    VolumeId = "vol";
    /// A key pair.
    KeyPairId = "key";
    /// A VPC.
    VpcId = "vpc";
    /// A subnet.
    SubnetId = "subnet";
    /// A security group.
    SecurityGroupId = "sg";
    /// A rule of a security group.
    SecurityGroupRuleId = "sgr";
    /// A scheduled event of an instance.
    InstanceEventId = "instance-event";
    /// A network interface.
    NetworkInterfaceId = "eni";
    /// Where an interface is attached to an instance.
    AttachmentId = "eni-attach";
    /// A set of DHCP options.
    DhcpOptionsId = "dopt";
    /// Where a VPC has a further range.
    VpcCidrAssociationId = "vpc-cidr-assoc";
    /// A route table.
    RouteTableId = "rtb";
    /// Where a route table is used.
    RouteTableAssociationId = "rtbassoc";
    /// An internet gateway.
    InternetGatewayId = "igw";
    /// A NAT gateway.
    NatGatewayId = "nat";
    /// A network ACL.
    NetworkAclId = "acl";
    /// Where a network ACL is used.
    NetworkAclAssociationId = "aclassoc";
    /// Where an instance profile is used.
    ProfileAssociationId = "iip-assoc";
    /// An elastic address.
    AllocationId = "eipalloc";
    /// Where an elastic address is used.
    AddressAssociationId = "eipassoc";
}

/// A layer of volumes: a UUID, which is also in its files. Clients never see it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct LayerId(String);

impl LayerId {
    /// One that nobody else has.
    pub fn random() -> Self {
        uuid::Builder::from_random_bytes(rand::random()).into_uuid().into()
    }

    /// The same as a number.
    pub fn uuid(&self) -> Uuid {
        // Only well-formed ones are made.
        Uuid::try_parse(&self.0).unwrap_or_default()
    }
}

impl From<Uuid> for LayerId {
    fn from(uuid: Uuid) -> Self {
        Self(uuid.to_string())
    }
}

impl TryFrom<String> for LayerId {
    type Error = uuid::Error;

    fn try_from(text: String) -> Result<Self, uuid::Error> {
        Uuid::try_parse(&text).map(Self::from)
    }
}

impl From<LayerId> for String {
    fn from(id: LayerId) -> String {
        id.0
    }
}

impl AsRef<str> for LayerId {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for LayerId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_read_as_it_is_written() {
        let id = InstanceId::random();
        assert_eq!(id.as_str().len(), 19);
        assert_eq!(id.to_string().parse(), Ok(id));
        for text in ["i-1234abcd", "i-0123456789abcdef0"] {
            assert!(text.parse::<InstanceId>().is_ok(), "{text}");
        }
        for text in
            ["", "i", "i-", "i-1", "i-0123456789ABCDEF0", "vol-0123456789abcdef0", "i-0123456789abcdefg"]
        {
            assert!(text.parse::<InstanceId>().is_err(), "{text}");
        }
    }
}
