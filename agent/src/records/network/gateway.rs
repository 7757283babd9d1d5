//! Internet gateways and NAT gateways.

use std::net::Ipv4Addr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::ids::{
    AddressAssociationId, AllocationId, InternetGatewayId, NatGatewayId, NetworkInterfaceId, SubnetId, VpcId,
};

/// An internet gateway.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InternetGateway {
    /// `igw-…`.
    pub id: InternetGatewayId,
    /// The account.
    pub owner: String,
    /// The VPC that it is attached to. A VPC has one at most.
    pub vpc: Option<VpcId>,
}

/// A NAT gateway. Its addresses are its interface's; they never change, and are here for when the interface is gone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NatGateway {
    /// `nat-…`.
    pub id: NatGatewayId,
    /// The account.
    pub owner: String,
    /// Its VPC.
    pub vpc: VpcId,
    /// The subnet that it is in, whose routes it uses.
    pub subnet: SubnetId,
    /// Whether it leads to the internet.
    pub connectivity: Connectivity,
    /// The elastic address of a public one.
    pub allocation: Option<AllocationId>,
    /// The association of that.
    pub association: Option<AddressAssociationId>,
    /// The elastic address itself.
    pub public_address: Option<Ipv4Addr>,
    /// In the subnet.
    pub private_address: Ipv4Addr,
    /// Its interface, which is gone when it is deleted.
    pub network_interface: NetworkInterfaceId,
    /// Whether it is there.
    pub state: NatGatewayState,
    /// When it was made.
    pub created: Timestamp,
}

impl NatGateway {
    /// Whether it is not deleted.
    pub fn is_there(&self) -> bool {
        self.state == NatGatewayState::Available
    }
}

/// Where a NAT gateway leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Connectivity {
    /// To the internet, from its elastic address.
    Public,
    /// To other private networks, from its private address.
    Private,
}

impl Connectivity {
    /// EC2's word.
    pub fn name(self) -> &'static str {
        match self {
            Self::Public => "public",
            Self::Private => "private",
        }
    }
}

/// Whether a NAT gateway is there. Nothing has to be waited for in between.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NatGatewayState {
    /// It works.
    Available,
    /// It is gone, and listed for a while.
    Deleted {
        /// Since when.
        at: Timestamp,
    },
}
