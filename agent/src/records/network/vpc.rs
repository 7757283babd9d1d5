//! VPCs, their subnets, and DHCP options.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::ids::{
    DhcpOptionsId, NetworkAclAssociationId, NetworkAclId, SubnetId, VpcCidrAssociationId, VpcId,
};
use crate::network::Cidr;
use crate::records::{Record, fields, text};

/// A VPC.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vpc {
    /// `vpc-…`.
    pub id: VpcId,
    /// The account.
    pub owner: String,
    /// Such as `172.31.0.0/16`.
    pub cidr: Cidr,
    /// The ranges that it was given later.
    pub secondary_cidrs: Vec<CidrAssociation>,
    /// Whether it is the one that is used when none is named.
    pub is_default: bool,
    /// Its DHCP options; none is EC2's `default`, which says nothing to guests.
    pub dhcp_options: Option<DhcpOptionsId>,
    /// Whether names are resolved for its instances.
    pub enable_dns_support: bool,
    /// Whether public addresses have names.
    pub enable_dns_hostnames: bool,
}

/// A further range of a VPC.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CidrAssociation {
    /// `vpc-cidr-assoc-…`.
    pub id: VpcCidrAssociationId,
    /// The range.
    pub cidr: Cidr,
}

impl Vpc {
    /// All its ranges, the first one first.
    pub fn cidrs(&self) -> impl Iterator<Item = Cidr> {
        std::iter::once(self.cidr).chain(self.secondary_cidrs.iter().map(|association| association.cidr))
    }

    /// The id by which its first range is known, which is never anybody else's.
    pub fn primary_association(&self) -> String {
        format!("{}-{}", VpcCidrAssociationId::PREFIX, digits(self.id.as_str()))
    }
}

impl Record for Vpc {
    const KIND: &'static str = "vpc";
    /// 2: DNS attributes and secondary ranges; the DHCP options can be missing.
    const VERSION: u32 = 2;

    fn key(&self) -> &str {
        self.id.as_str()
    }

    fn migrate(_: u32, mut document: Value) -> Result<Value, String> {
        let fields = fields(&mut document)?;
        // What EC2 gives to a default VPC. There were no others.
        fields.insert("enable_dns_support".into(), json!(true));
        fields.insert("enable_dns_hostnames".into(), json!(true));
        fields.insert("secondary_cidrs".into(), json!([]));
        Ok(document)
    }
}

/// A set of DHCP options.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DhcpOptions {
    /// `dopt-…`.
    pub id: DhcpOptionsId,
    /// The account.
    pub owner: String,
    /// Names and values, such as `domain-name-servers`.
    pub options: Vec<(String, Vec<String>)>,
}

/// A subnet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subnet {
    /// `subnet-…`.
    pub id: SubnetId,
    /// The account.
    pub owner: String,
    /// Its VPC.
    pub vpc: VpcId,
    /// Such as `172.31.0.0/20`.
    pub cidr: Cidr,
    /// Such as `us-east-1a`.
    pub availability_zone: String,
    /// Whether it is the one of its zone that is used when none is named.
    pub default_for_az: bool,
    /// Whether instances get a public address.
    pub map_public_ip_on_launch: bool,
    /// Its network ACL.
    pub network_acl: AclAssociation,
}

/// Which network ACL a subnet has. It always has one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AclAssociation {
    /// `aclassoc-…`.
    pub id: NetworkAclAssociationId,
    /// The ACL.
    pub network_acl: NetworkAclId,
}

impl Record for Subnet {
    const KIND: &'static str = "subnet";
    /// 2: has a network ACL.
    const VERSION: u32 = 2;

    fn key(&self) -> &str {
        self.id.as_str()
    }

    fn migrate(_: u32, mut document: Value) -> Result<Value, String> {
        let fields = fields(&mut document)?;
        let id = format!("{}-{}", NetworkAclAssociationId::PREFIX, digits(&text(fields, "id")?));
        let acl = format!("{}-{}", NetworkAclId::PREFIX, digits(&text(fields, "vpc")?));
        fields.insert("network_acl".into(), json!({ "id": id, "network_acl": acl }));
        Ok(document)
    }
}

/// What follows the dash.
fn digits(id: &str) -> &str {
    id.rsplit_once('-').map_or(id, |(_, digits)| digits)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::decode;

    #[test]
    fn a_vpc_of_before_there_were_gateways_is_read() {
        let text = r#"{"version":1,"document":{"id":"vpc-0123456789abcdef0","owner":"000000000000",
            "cidr":"172.31.0.0/16","is_default":true,"dhcp_options":"dopt-0123456789abcdef0"}}"#;
        let vpc: Vpc = decode(text.as_bytes()).unwrap();
        assert!(vpc.enable_dns_support && vpc.enable_dns_hostnames && vpc.secondary_cidrs.is_empty());
        assert_eq!(vpc.dhcp_options.unwrap().as_str(), "dopt-0123456789abcdef0");
    }

    #[test]
    fn a_subnet_of_before_there_were_network_acls_is_read() {
        let text = r#"{"version":1,"document":{"id":"subnet-0123456789abcdef1","owner":"000000000000",
            "vpc":"vpc-0123456789abcdef0","cidr":"172.31.0.0/20","availability_zone":"us-east-1a",
            "default_for_az":true,"map_public_ip_on_launch":true}}"#;
        let subnet: Subnet = decode(text.as_bytes()).unwrap();
        assert_eq!(subnet.network_acl.id.as_str(), "aclassoc-0123456789abcdef1");
        assert_eq!(subnet.network_acl.network_acl.as_str(), "acl-0123456789abcdef0");
    }
}
