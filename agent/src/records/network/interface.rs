//! Network interfaces, and elastic addresses.

use std::net::Ipv4Addr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::ids::{
    AddressAssociationId, AllocationId, AttachmentId, InstanceId, NetworkInterfaceId, SecurityGroupId,
    SubnetId, VpcId,
};
use crate::records::{AttachmentStatus, Record, fields};

/// A network interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkInterface {
    /// `eni-…`.
    pub id: NetworkInterfaceId,
    /// The account.
    pub owner: String,
    /// Its VPC.
    pub vpc: VpcId,
    /// Its subnet.
    pub subnet: SubnetId,
    /// Whose it is.
    pub interface_type: InterfaceType,
    /// For people.
    pub description: String,
    /// Six pairs of hexadecimal digits with colons.
    pub mac: String,
    /// Its first address, for life.
    pub primary: PrivateAddress,
    /// Its further addresses.
    pub secondary: Vec<PrivateAddress>,
    /// Its groups.
    pub groups: Vec<SecurityGroupId>,
    /// Who has it, if it is an instance.
    pub attachment: Option<InterfaceAttachment>,
    /// Whether it only takes what is for its addresses, and only sends what is from them.
    pub source_dest_check: bool,
    /// Whether its first address has a public one from the pool whenever its instance runs and it has no elastic one.
    pub associate_public_address: bool,
}

impl NetworkInterface {
    /// All its addresses, the first one first.
    pub fn addresses(&self) -> impl Iterator<Item = &PrivateAddress> {
        std::iter::once(&self.primary).chain(&self.secondary)
    }

    /// All its addresses, the first one first.
    pub fn addresses_mut(&mut self) -> impl Iterator<Item = &mut PrivateAddress> {
        std::iter::once(&mut self.primary).chain(&mut self.secondary)
    }

    /// The instance that has it.
    pub fn instance(&self) -> Option<&InstanceId> {
        self.attachment.as_ref().map(|attachment| &attachment.instance)
    }

    /// EC2's word for whether somebody has it, until nobody has it any more. A NAT gateway always has its own.
    pub fn status(&self) -> &'static str {
        match (&self.attachment, self.interface_type) {
            (None, InterfaceType::Interface) => "available",
            _ => "in-use",
        }
    }
}

/// Whose an interface is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum InterfaceType {
    /// The account's, for an instance.
    Interface,
    /// A NAT gateway's, and nobody else's to change.
    NatGateway,
}

impl InterfaceType {
    /// EC2's word.
    pub fn name(self) -> &'static str {
        match self {
            Self::Interface => "interface",
            Self::NatGateway => "nat_gateway",
        }
    }
}

/// A private address of an interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PrivateAddress {
    /// In the interface's subnet.
    pub address: Ipv4Addr,
    /// What it is on the outside.
    pub public: Option<PublicAddress>,
}

impl From<Ipv4Addr> for PrivateAddress {
    fn from(address: Ipv4Addr) -> Self {
        Self { address, public: None }
    }
}

/// The public address that stands for a private one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PublicAddress {
    /// In one of the configured ranges.
    pub address: Ipv4Addr,
    /// The elastic address that it is. None is an automatic one, which goes back to the pool when the instance stops.
    pub elastic: Option<ElasticAssociation>,
}

/// Which elastic address it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ElasticAssociation {
    /// The address.
    pub allocation: AllocationId,
    /// `eipassoc-…`.
    pub id: AddressAssociationId,
}

/// Where an interface is attached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InterfaceAttachment {
    /// `eni-attach-…`.
    pub id: AttachmentId,
    /// To whom.
    pub instance: InstanceId,
    /// Its number there; 0 is the primary one, which stays.
    pub device_index: u32,
    /// Since when.
    pub attached: Timestamp,
    /// How far it is.
    pub status: AttachmentStatus,
    /// Whether it goes with the instance.
    pub delete_on_termination: bool,
}

impl Record for NetworkInterface {
    const KIND: &'static str = "network-interface";
    /// 2: has public addresses and secondary ones, and can be without an instance.
    const VERSION: u32 = 2;

    fn key(&self) -> &str {
        self.id.as_str()
    }

    fn migrate(_: u32, mut document: Value) -> Result<Value, String> {
        let fields = fields(&mut document)?;
        let mut take = |name: &str| fields.remove(name).ok_or_else(|| format!("it has no {name}"));
        let primary = json!({ "address": take("private_address")?, "public": null });
        let attachment = json!({
            "id": take("attachment")?,
            "instance": take("instance")?,
            "device_index": 0,
            "attached": take("attached")?,
            "status": AttachmentStatus::Attached,
            "delete_on_termination": take("delete_on_termination")?,
        });
        fields.insert("primary".into(), primary);
        fields.insert("secondary".into(), json!([]));
        fields.insert("attachment".into(), attachment);
        fields.insert("interface_type".into(), json!(InterfaceType::Interface));
        // All were launched in subnets that give public addresses, of which there were none.
        fields.insert("associate_public_address".into(), json!(true));
        Ok(document)
    }
}

/// An elastic address. Where it is associated is in the interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ElasticAddress {
    /// `eipalloc-…`.
    pub id: AllocationId,
    /// The account.
    pub owner: String,
    /// The address.
    pub public_address: Ipv4Addr,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::decode;

    #[test]
    fn an_interface_of_before_there_were_public_addresses_is_read() {
        let text = r#"{"version":1,"document":{"id":"eni-0123456789abcdef0","owner":"000000000000",
            "vpc":"vpc-0123456789abcdef0","subnet":"subnet-0123456789abcdef0","description":"","groups":[],
            "mac":"02:00:00:00:00:01","private_address":"172.31.0.4","instance":"i-0123456789abcdef0",
            "attachment":"eni-attach-0123456789abcdef0","attached":"2026-11-21T10:00:00Z",
            "delete_on_termination":true,"source_dest_check":false}}"#;
        let interface: NetworkInterface = decode(text.as_bytes()).unwrap();
        assert_eq!(interface.primary, PrivateAddress::from(Ipv4Addr::new(172, 31, 0, 4)));
        assert_eq!((interface.status(), interface.source_dest_check), ("in-use", false));
        let attachment = interface.attachment.unwrap();
        assert_eq!(attachment.instance.as_str(), "i-0123456789abcdef0");
        assert_eq!((attachment.device_index, attachment.delete_on_termination), (0, true));
    }
}
