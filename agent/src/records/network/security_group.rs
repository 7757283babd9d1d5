//! Security groups and their rules.

use serde::{Deserialize, Serialize};

use crate::ids::{SecurityGroupId, SecurityGroupRuleId, VpcId};

/// A security group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecurityGroup {
    /// `sg-…`.
    pub id: SecurityGroupId,
    /// Unique in the VPC.
    pub name: String,
    /// For people.
    pub description: String,
    /// The account.
    pub owner: String,
    /// Its VPC.
    pub vpc: VpcId,
    /// What is allowed.
    pub rules: Vec<Rule>,
}

/// A rule of a security group: one protocol, one range of ports, one peer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rule {
    /// `sgr-…`.
    pub id: SecurityGroupRuleId,
    /// Whether it is about what leaves the instance.
    pub is_egress: bool,
    /// `tcp`, `udp`, `icmp`, `icmpv6`, a number, or `-1` for all.
    pub protocol: String,
    /// The first port, or the ICMP type; -1 for all.
    pub from_port: Option<i32>,
    /// The last port, or the ICMP code; -1 for all.
    pub to_port: Option<i32>,
    /// The other side.
    pub peer: Peer,
    /// For people.
    pub description: Option<String>,
}

impl Rule {
    /// A new one that lets everything pass.
    pub fn of_everything(is_egress: bool, peer: Peer) -> Self {
        Self {
            id: SecurityGroupRuleId::random(),
            is_egress,
            protocol: "-1".into(),
            from_port: None,
            to_port: None,
            peer,
            description: None,
        }
    }

    /// The ports, as far as the protocol has any: an agent of before has recorded -1 for all protocols.
    pub fn ports(&self) -> (Option<i32>, Option<i32>) {
        match self.protocol.as_str() {
            "-1" => (None, None),
            _ => (self.from_port, self.to_port),
        }
    }
}

/// The other side of a rule.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Peer {
    /// Such as `10.0.0.0/8`.
    Ipv4(String),
    /// Such as `fd00::/8`.
    Ipv6(String),
    /// Instances of a group.
    Group(SecurityGroupId),
    /// A prefix list.
    PrefixList(String),
}
