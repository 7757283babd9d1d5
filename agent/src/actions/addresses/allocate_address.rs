//! AllocateAddress and ReleaseAddress.

use std::net::Ipv4Addr;

use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};

use super::meant;
use crate::actions::refused::{NO_OUTPOSTS, refuse};
use crate::ids::AllocationId;
use crate::network::public_addresses::{Pool, association, choose, taken};
use crate::query::tags::{TagSpecification, specified_for};
use crate::query::{Action, ApiError, Context};
use crate::records::{ElasticAddress, Tags};
use crate::state::World;

/// Takes an address out of the pool, for the account, until it is released.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct AllocateAddress {
    domain: Option<String>,
    address: Option<String>,
    public_ipv4_pool: Option<String>,
    network_border_group: Option<String>,
    customer_owned_ipv4_pool: Option<IgnoredAny>,
    ipam_pool_id: Option<IgnoredAny>,
    #[serde(default, rename = "TagSpecification")]
    tags: Vec<TagSpecification>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Allocated {
    public_ip: String,
    allocation_id: String,
    domain: &'static str,
    public_ipv4_pool: &'static str,
    network_border_group: String,
}

impl AllocateAddress {
    /// The address that is to be the account's.
    fn plan(&self, world: &World, context: Context<'_>) -> Result<Ipv4Addr, ApiError> {
        let config = &context.agent.config;
        let elsewhere = self.network_border_group.as_ref().is_some_and(|group| *group != config.region);
        let pool = self.public_ipv4_pool.as_deref().is_some_and(|pool| pool != "amazon");
        refuse(&[
            (
                self.domain.as_deref().is_some_and(|domain| domain != "vpc"),
                "There is nothing outside of VPCs: Domain can only be vpc.",
            ),
            (elsewhere || self.customer_owned_ipv4_pool.is_some(), NO_OUTPOSTS),
            (
                pool || self.ipam_pool_id.is_some(),
                "This host has one pool of public addresses: leave PublicIpv4Pool and IpamPoolId out.",
            ),
        ])?;
        let (quota, owner) = (config.elastic_address_quota, &context.caller.account);
        if world.all::<ElasticAddress>().filter(|address| address.owner == *owner).count() >= quota {
            let message = format!(
                "The maximum number of addresses has been reached: {quota}, which is elastic-address-quota in the \
                 agent's configuration."
            );
            return Err(ApiError::new("AddressLimitExceeded", message));
        }
        let Some(text) = &self.address else {
            return choose(world, config).ok_or_else(|| {
                let message =
                    "Insufficient addresses available: public-addresses in the agent's configuration has no more.";
                ApiError::new("InsufficientAddressCapacity", message)
            });
        };
        let address: Ipv4Addr =
            text.parse().map_err(|_| ApiError::invalid(text, "address", "It is not an IPv4 address."))?;
        if !Pool::new(&config.public_addresses).contains(address) {
            let message = format!("Address '{address}' not found: it is none that this host gives out.");
            return Err(ApiError::new("InvalidAddress.NotFound", message));
        }
        if taken(world).contains(&address) {
            return Err(ApiError::new("InvalidIPAddress.InUse", format!("Address {address} is in use.")));
        }
        Ok(address)
    }
}

impl Action for AllocateAddress {
    const NAME: &'static str = "AllocateAddress";
    type Response = Allocated;

    fn check(&self, context: Context<'_>) -> Result<(), ApiError> {
        specified_for(&self.tags, "elastic-ip")?;
        self.plan(&context.agent.state.read(), context).map(drop)
    }

    fn run(self, context: Context<'_>) -> Result<Allocated, ApiError> {
        let tags = specified_for(&self.tags, "elastic-ip")?;
        context.agent.state.change(|draft| {
            let public_address = self.plan(draft, context)?;
            let id = AllocationId::random();
            let answer = Allocated {
                public_ip: public_address.to_string(),
                allocation_id: id.to_string(),
                domain: "vpc",
                public_ipv4_pool: "amazon",
                network_border_group: context.agent.config.region.clone(),
            };
            draft.tag(&id, tags);
            draft.put(ElasticAddress { id, owner: context.caller.account.clone(), public_address });
            Ok(answer)
        })
    }
}

/// Gives an address that nothing uses back to the pool.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct ReleaseAddress {
    allocation_id: Option<String>,
    public_ip: Option<String>,
    #[serde(rename = "NetworkBorderGroup")]
    _network_border_group: Option<String>,
}

impl ReleaseAddress {
    fn plan(&self, world: &World, context: Context<'_>) -> Result<AllocationId, ApiError> {
        let address = meant(world, context, self.allocation_id.as_deref(), self.public_ip.as_deref())?;
        if association(world, &address.id).is_some() {
            let message = format!("Address: {} is in use. Disassociate it first.", address.public_address);
            return Err(ApiError::new("InvalidIPAddress.InUse", message));
        }
        Ok(address.id.clone())
    }
}

impl Action for ReleaseAddress {
    const NAME: &'static str = "ReleaseAddress";
    type Response = ();

    fn check(&self, context: Context<'_>) -> Result<(), ApiError> {
        self.plan(&context.agent.state.read(), context).map(drop)
    }

    fn run(self, context: Context<'_>) -> Result<(), ApiError> {
        context.agent.state.change(|draft| {
            let id = self.plan(draft, context)?;
            draft.remove::<ElasticAddress>(&id);
            draft.remove::<Tags>(&id);
            Ok(())
        })
    }
}
