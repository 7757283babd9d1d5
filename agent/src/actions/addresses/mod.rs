//! Elastic addresses.

mod allocate_address;
mod associate_address;
mod describe_addresses;

use std::sync::Arc;

use crate::actions::lookup::find_own;
use crate::query::dispatch::Registry;
use crate::query::{ApiError, Context};
use crate::records::ElasticAddress;
use crate::state::World;

pub(super) fn register(registry: &mut Registry) {
    registry.add::<allocate_address::AllocateAddress>();
    registry.add::<allocate_address::ReleaseAddress>();
    registry.add::<associate_address::AssociateAddress>();
    registry.add::<associate_address::DisassociateAddress>();
    registry.add::<describe_addresses::DescribeAddresses>();
    registry.add::<describe_addresses::DescribeAddressesAttribute>();
}

/// The address that a request is about, by its id or by itself.
fn meant<'w>(
    world: &'w World,
    context: Context<'_>,
    allocation: Option<&str>,
    public_ip: Option<&str>,
) -> Result<&'w Arc<ElasticAddress>, ApiError> {
    match (allocation, public_ip) {
        (Some(_), Some(_)) => Err(ApiError::combination(
            "You may specify public IP or allocation id, but not both in the same call",
        )),
        (None, None) => {
            let message = "Either public IP or allocation id must be specified";
            Err(ApiError::new("MissingParameter", message))
        }
        (Some(id), None) => find_own::<ElasticAddress>(world, context, id),
        (None, Some(ip)) => {
            let owner = &context.caller.account;
            let mut own = world.all::<ElasticAddress>().filter(|address| address.owner == *owner);
            own.find(|address| address.public_address.to_string() == ip)
                .ok_or_else(|| ApiError::new("InvalidAddress.NotFound", format!("Address '{ip}' not found.")))
        }
    }
}
