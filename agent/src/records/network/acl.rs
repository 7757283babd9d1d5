//! Network ACLs.

use serde::{Deserialize, Serialize};

use crate::ids::{NetworkAclId, VpcId};
use crate::network::Cidr;

/// A network ACL: stateless rules on the border of the subnets that have it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkAcl {
    /// `acl-…`.
    pub id: NetworkAclId,
    /// The account.
    pub owner: String,
    /// Its VPC.
    pub vpc: VpcId,
    /// Whether new subnets have it.
    pub is_default: bool,
    /// What is allowed and denied, in the order of directions and numbers. What none says anything of is denied.
    pub entries: Vec<AclEntry>,
}

/// An entry of a network ACL. The first one that fits a packet decides.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AclEntry {
    /// 1 to 32766.
    pub number: u16,
    /// Whether it is about what leaves the subnet.
    pub egress: bool,
    /// IANA's number; none is all.
    pub protocol: Option<u8>,
    /// Whether it allows; else it denies.
    pub allow: bool,
    /// The other side.
    pub cidr: Cidr,
    /// The first and the last port of the destination, for TCP and UDP.
    pub ports: Option<(u16, u16)>,
    /// For ICMP: the type and the code, -1 for all.
    pub icmp: Option<(i16, i16)>,
}
