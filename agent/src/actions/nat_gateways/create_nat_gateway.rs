//! CreateNatGateway and DeleteNatGateway.

use jiff::Timestamp;
use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};

use super::item::GatewayItem;
use crate::actions::lookup::{Named, find, find_own};
use crate::actions::network_interfaces::new::{
    AddressPlan, AddressWish, Addresses, interface, no_address, used_macs,
};
use crate::actions::refused::refuse;
use crate::ids::{AddressAssociationId, NatGatewayId};
use crate::network::public_addresses::association;
use crate::network::subnets::taken;
use crate::query::idempotency::{recall, remember};
use crate::query::tags::{TagSpecification, specified_for};
use crate::query::{Action, ApiError, Context};
use crate::records::{
    Connectivity, ElasticAddress, ElasticAssociation, InterfaceType, InternetGateway, NatGateway,
    NatGatewayState, NetworkInterface, PrivateAddress, PublicAddress, Subnet, Tags,
};
use crate::state::{Draft, World};

/// The most NAT gateways of an availability zone.
const MAX_PER_ZONE: usize = 5;

/// Makes a NAT gateway in a subnet.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct CreateNatGateway {
    subnet_id: Option<String>,
    allocation_id: Option<String>,
    connectivity_type: Option<String>,
    private_ip_address: Option<String>,
    client_token: Option<String>,
    #[serde(default, rename = "TagSpecification")]
    tags: Vec<TagSpecification>,
    availability_mode: Option<String>,
    vpc_id: Option<IgnoredAny>,
    #[serde(default, rename = "AvailabilityZoneAddress")]
    zone_addresses: Vec<IgnoredAny>,
    #[serde(default, rename = "SecondaryAllocationId")]
    secondary_allocations: Vec<IgnoredAny>,
    #[serde(default, rename = "SecondaryPrivateIpAddress")]
    secondary_addresses: Vec<IgnoredAny>,
    #[serde(default)]
    secondary_private_ip_address_count: i64,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Response {
    nat_gateway: GatewayItem,
    client_token: Option<String>,
}

/// What is to be made.
struct Plan {
    subnet: Subnet,
    elastic: Option<ElasticAddress>,
    addresses: Addresses,
}

impl CreateNatGateway {
    fn plan(&self, world: &World, context: Context<'_>) -> Result<Plan, ApiError> {
        let regional = self.availability_mode.as_deref().is_some_and(|mode| mode != "zonal")
            || self.vpc_id.is_some()
            || !self.zone_addresses.is_empty();
        let secondary = !self.secondary_allocations.is_empty()
            || !self.secondary_addresses.is_empty()
            || self.secondary_private_ip_address_count != 0;
        refuse(&[
            (regional, "NAT gateways of this host are in a subnet: AvailabilityMode can only be zonal."),
            (secondary, "NAT gateways of this host have one address: leave the secondary ones out."),
        ])?;
        let id = self.subnet_id.as_deref().ok_or_else(|| ApiError::missing("subnetId"))?;
        let subnet = find_own::<Subnet>(world, context, id)?;
        let elastic = match self.connectivity_type.as_deref() {
            None | Some("public") => Some(self.elastic(world, context, subnet)?),
            Some("private") if self.allocation_id.is_some() => {
                return Err(ApiError::combination(
                    "A private NAT gateway has no AllocationId: leave it out.",
                ));
            }
            Some("private") => None,
            Some(other) => {
                return Err(ApiError::invalid(
                    other,
                    "connectivityType",
                    "Expecting one of: public, private.",
                ));
            }
        };
        let zone = |subnet: &Subnet| subnet.availability_zone.clone();
        let here = world.all::<NatGateway>().filter(|gateway| {
            let other = world.get::<Subnet>(&gateway.subnet).map(|other| zone(other));
            gateway.is_there() && gateway.owner == subnet.owner && other == Some(zone(subnet))
        });
        if here.count() >= MAX_PER_ZONE {
            let message = format!(
                "Performing this operation would exceed the limit of {MAX_PER_ZONE} NAT gateways per availability zone."
            );
            return Err(ApiError::new("NatGatewayLimitExceeded", message));
        }
        let mut taken = taken(world, &subnet.id);
        let wish = AddressWish { primary: self.private_ip_address.as_deref(), ..AddressWish::default() };
        let addresses = AddressPlan::new(subnet, &taken, wish)?.take(subnet, &mut taken);
        let addresses = addresses.ok_or_else(|| no_address(subnet))?;
        Ok(Plan { subnet: Subnet::clone(subnet), elastic, addresses })
    }

    /// The elastic address of a public gateway.
    fn elastic(
        &self,
        world: &World,
        context: Context<'_>,
        subnet: &Subnet,
    ) -> Result<ElasticAddress, ApiError> {
        let id = self.allocation_id.as_deref().ok_or_else(|| ApiError::missing("allocationId"))?;
        let elastic = find_own::<ElasticAddress>(world, context, id)?;
        if let Some((_, _, association)) = association(world, &elastic.id) {
            let message =
                format!("resource {} is already associated with associate-id {}", elastic.id, association.id);
            return Err(ApiError::new("Resource.AlreadyAssociated", message));
        }
        if !world.all::<InternetGateway>().any(|gateway| gateway.vpc.as_ref() == Some(&subnet.vpc)) {
            let message = format!("Network {} has no Internet gateway attached", subnet.vpc);
            return Err(ApiError::new("Gateway.NotAttached", message));
        }
        Ok(ElasticAddress::clone(elastic))
    }

    fn answer(&self, world: &World, gateway: &NatGateway) -> Response {
        Response { nat_gateway: GatewayItem::new(world, gateway), client_token: self.client_token.clone() }
    }
}

/// Records a gateway and its interface.
fn put(draft: &mut Draft, plan: Plan) -> NatGateway {
    let Plan { subnet, elastic, addresses } = plan;
    let id = NatGatewayId::random();
    let new = interface(&subnet, addresses, &mut used_macs(draft));
    let association = elastic.as_ref().map(|_| AddressAssociationId::random());
    let public = elastic.as_ref().zip(association.as_ref()).map(|(elastic, id)| PublicAddress {
        address: elastic.public_address,
        elastic: Some(ElasticAssociation { allocation: elastic.id.clone(), id: id.clone() }),
    });
    let gateway = NatGateway {
        id: id.clone(),
        owner: subnet.owner,
        vpc: subnet.vpc,
        subnet: subnet.id,
        connectivity: if elastic.is_some() { Connectivity::Public } else { Connectivity::Private },
        public_address: elastic.as_ref().map(|elastic| elastic.public_address),
        allocation: elastic.map(|elastic| elastic.id),
        association,
        private_address: new.primary.address,
        network_interface: new.id.clone(),
        state: NatGatewayState::Available,
        created: Timestamp::now(),
    };
    draft.put(NetworkInterface {
        interface_type: InterfaceType::NatGateway,
        description: format!("Interface for NAT Gateway {id}"),
        // What it passes on is not for itself.
        source_dest_check: false,
        primary: PrivateAddress { public, ..new.primary },
        ..new
    });
    draft.put(gateway.clone());
    gateway
}

impl Action for CreateNatGateway {
    const NAME: &'static str = "CreateNatGateway";
    type Response = Response;

    fn check(&self, context: Context<'_>) -> Result<(), ApiError> {
        specified_for(&self.tags, "natgateway")?;
        let world = context.agent.state.read();
        match recall(&world, context, Self::NAME, self.client_token.as_deref())? {
            Some(_) => Ok(()),
            None => self.plan(&world, context).map(drop),
        }
    }

    fn run(self, context: Context<'_>) -> Result<Response, ApiError> {
        let tags = specified_for(&self.tags, "natgateway")?;
        let token = self.client_token.as_deref();
        context.agent.state.change(|draft| {
            if let Some(earlier) = recall(draft, context, Self::NAME, token)? {
                return Ok(self.answer(draft, find::<NatGateway>(draft, context, &earlier)?));
            }
            let plan = self.plan(draft, context)?;
            let gateway = put(draft, plan);
            remember(draft, context, Self::NAME, token, &gateway.id);
            draft.tag(&gateway.id, tags);
            let mut answer = self.answer(draft, &gateway);
            // Nothing has to be waited for, and clients expect that something has.
            answer.nat_gateway.state = "pending";
            Ok(answer)
        })
    }
}

/// Deletes a NAT gateway. Its elastic address is free again; routes to it lead nowhere.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct DeleteNatGateway {
    nat_gateway_id: String,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Deleted {
    nat_gateway_id: String,
}

impl DeleteNatGateway {
    fn plan(&self, world: &World, context: Context<'_>) -> Result<NatGateway, ApiError> {
        let gateway = find_own::<NatGateway>(world, context, &self.nat_gateway_id)?;
        if !gateway.is_there() {
            let message = NatGateway::MESSAGE.replace("{}", &self.nat_gateway_id);
            return Err(ApiError::new(NatGateway::NOT_FOUND, message));
        }
        Ok(NatGateway::clone(gateway))
    }
}

impl Action for DeleteNatGateway {
    const NAME: &'static str = "DeleteNatGateway";
    type Response = Deleted;

    fn check(&self, context: Context<'_>) -> Result<(), ApiError> {
        self.plan(&context.agent.state.read(), context).map(drop)
    }

    fn run(self, context: Context<'_>) -> Result<Deleted, ApiError> {
        context.agent.state.change(|draft| {
            let gateway = self.plan(draft, context)?;
            draft.remove::<NetworkInterface>(&gateway.network_interface);
            draft.remove::<Tags>(&gateway.network_interface);
            draft.put(NatGateway { state: NatGatewayState::Deleted { at: Timestamp::now() }, ..gateway });
            Ok(Deleted { nat_gateway_id: self.nat_gateway_id })
        })
    }
}
