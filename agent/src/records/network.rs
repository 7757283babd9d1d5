//! VPCs, subnets, interfaces and security groups.

use std::net::Ipv4Addr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::ids::{
    AttachmentId, DhcpOptionsId, InstanceId, NetworkInterfaceId, SecurityGroupId, SecurityGroupRuleId,
    SubnetId, VpcId,
};

/// A VPC.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vpc {
    /// `vpc-…`.
    pub id: VpcId,
    /// The account.
    pub owner: String,
    /// Such as `172.31.0.0/16`.
    pub cidr: String,
    /// Whether it is the one that is used when none is named.
    pub is_default: bool,
    /// Its DHCP options.
    pub dhcp_options: DhcpOptionsId,
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
    pub cidr: String,
    /// Such as `us-east-1a`.
    pub availability_zone: String,
    /// Whether it is the one of its zone that is used when none is named.
    pub default_for_az: bool,
    /// Whether instances get a public address.
    pub map_public_ip_on_launch: bool,
}

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
    /// For people.
    pub description: String,
    /// Six pairs of hexadecimal digits with colons.
    pub mac: String,
    /// Its first address, for life.
    pub private_address: Ipv4Addr,
    /// Its groups.
    pub groups: Vec<SecurityGroupId>,
    /// Who has it.
    pub instance: InstanceId,
    /// By what.
    pub attachment: AttachmentId,
    /// Since when.
    pub attached: Timestamp,
    /// Whether it goes with the instance.
    pub delete_on_termination: bool,
    /// `sourceDestCheck`.
    pub source_dest_check: bool,
}

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
