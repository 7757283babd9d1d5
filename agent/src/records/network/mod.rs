//! VPCs and all that is in them: subnets, route tables, gateways, network ACLs, security groups, interfaces and their
//! addresses.
//!
//! Each fact is in one place. Which subnets a route table has is in the table, and which network ACL a subnet has in the
//! subnet; who has an interface, and which public addresses go to it, is in the interface. The functions of
//! [`crate::network`] answer the questions that go the other way.

mod acl;
mod gateway;
mod interface;
mod route_table;
mod security_group;
mod vpc;

pub use acl::{AclEntry, NetworkAcl};
pub use gateway::{Connectivity, InternetGateway, NatGateway, NatGatewayState};
pub use interface::{
    ElasticAddress, ElasticAssociation, InterfaceAttachment, InterfaceType, NetworkInterface, PrivateAddress,
    PublicAddress,
};
pub use route_table::{Route, RouteOrigin, RouteTable, RouteTableAssociation, RouteTarget};
pub use security_group::{Peer, Rule, SecurityGroup};
pub use vpc::{AclAssociation, CidrAssociation, DhcpOptions, Subnet, Vpc};
