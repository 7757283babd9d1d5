//! Network interfaces. The actions change records; whatever makes interfaces real follows them.

mod attach_network_interface;
mod attributes;
mod create_network_interface;
mod delete_network_interface;
mod describe_network_interfaces;
pub(crate) mod item;
pub(crate) mod new;
mod private_addresses;

use std::sync::Arc;

pub(crate) use attach_network_interface::{check_limits, in_use};
pub(crate) use new::MAX_GROUPS;

use crate::actions::lookup::find_own;
use crate::ids::NetworkInterfaceId;
use crate::instances::{detach_interface, interface_attached};
use crate::query::dispatch::Registry;
use crate::query::{ApiError, Context};
use crate::records::{InterfaceType, NetworkInterface, Subnet};
use crate::state::{Draft, World};

pub(super) fn register(registry: &mut Registry) {
    registry.add::<attach_network_interface::AttachNetworkInterface>();
    registry.add::<attach_network_interface::DetachNetworkInterface>();
    registry.add::<attributes::DescribeNetworkInterfaceAttribute>();
    registry.add::<attributes::ModifyNetworkInterfaceAttribute>();
    registry.add::<attributes::ResetNetworkInterfaceAttribute>();
    registry.add::<create_network_interface::CreateNetworkInterface>();
    registry.add::<delete_network_interface::DeleteNetworkInterface>();
    registry.add::<describe_network_interfaces::DescribeNetworkInterfaces>();
    registry.add::<private_addresses::AssignPrivateIpAddresses>();
    registry.add::<private_addresses::UnassignPrivateIpAddresses>();
}

/// An interface that the caller can change: one of a NAT gateway is not.
pub(crate) fn own<'w>(
    world: &'w World,
    context: Context<'_>,
    id: &str,
) -> Result<&'w Arc<NetworkInterface>, ApiError> {
    let interface = find_own::<NetworkInterface>(world, context, id)?;
    if interface.interface_type != InterfaceType::Interface {
        let message = format!("You do not have permission to change {id}: it belongs to a NAT gateway.");
        return Err(ApiError::new("OperationNotPermitted", message));
    }
    Ok(interface)
}

/// The availability zone of an interface.
pub(crate) fn zone<'w>(world: &'w World, interface: &NetworkInterface) -> &'w str {
    world.get::<Subnet>(&interface.subnet).map_or("", |subnet| &subnet.availability_zone)
}

/// Says of an interface that a guest that runs has it, or has let go of it, at once: until the instances' actors bring
/// that about, nothing else would.
fn settle_without_actors(draft: &mut Draft, id: &NetworkInterfaceId) {
    interface_attached(draft, id);
    detach_interface(draft, id);
}
