//! Route tables.

use serde::{Deserialize, Serialize};

use crate::ids::{
    InternetGatewayId, NatGatewayId, NetworkInterfaceId, RouteTableAssociationId, RouteTableId, SubnetId,
    VpcId,
};
use crate::network::Cidr;

/// A route table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteTable {
    /// `rtb-…`.
    pub id: RouteTableId,
    /// The account.
    pub owner: String,
    /// Its VPC.
    pub vpc: VpcId,
    /// One for each destination. The VPC's own ranges are among them, as local ones.
    pub routes: Vec<Route>,
    /// Who uses it.
    pub associations: Vec<RouteTableAssociation>,
}

impl RouteTable {
    /// Whether the subnets of its VPC use it that have no other.
    pub fn is_main(&self) -> bool {
        self.associations.iter().any(|association| association.subnet.is_none())
    }
}

/// A route. Whether its target is there is for whoever looks: [`crate::network::routes::is_blackhole`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// Where to.
    pub destination: Cidr,
    /// By what.
    pub target: RouteTarget,
    /// What made it.
    pub origin: RouteOrigin,
}

/// Where a route leads.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RouteTarget {
    /// To whoever in the VPC has the address.
    Local,
    /// To an internet gateway.
    InternetGateway(InternetGatewayId),
    /// To a NAT gateway.
    NatGateway(NatGatewayId),
    /// To an interface. A request that names an instance means its only one.
    NetworkInterface(NetworkInterfaceId),
}

/// What made a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RouteOrigin {
    /// It came with the table.
    CreateRouteTable,
    /// Somebody has added it.
    CreateRoute,
}

/// Who uses a route table: a subnet, or those subnets of the VPC that have no other.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteTableAssociation {
    /// `rtbassoc-…`.
    pub id: RouteTableAssociationId,
    /// None makes it the main table.
    pub subnet: Option<SubnetId>,
}
