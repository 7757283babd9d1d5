//! AssignPrivateIpAddresses and UnassignPrivateIpAddresses.

use std::net::Ipv4Addr;

use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};

use super::new::{MAX_ADDRESSES, chosen, no_address, too_many_addresses};
use super::own;
use crate::actions::lookup::find_own;
use crate::actions::refused::{NO_PREFIXES, refuse};
use crate::network::subnets::{free, taken};
use crate::query::{Action, ApiError, Context};
use crate::records::{Instance, NetworkInterface, PrivateAddress, Subnet};
use crate::state::{Draft, World};

/// Gives further addresses to an interface: those that are named, or so many.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct AssignPrivateIpAddresses {
    network_interface_id: String,
    #[serde(default, rename = "PrivateIpAddress")]
    addresses: Vec<String>,
    secondary_private_ip_address_count: Option<i64>,
    /// Whether another interface may lose them.
    #[serde(default)]
    allow_reassignment: bool,
    #[serde(default, rename = "Ipv4Prefix")]
    prefixes: Vec<IgnoredAny>,
    #[serde(default)]
    ipv4_prefix_count: i64,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Assigned {
    network_interface_id: String,
    assigned_private_ip_addresses_set: Vec<AssignedAddress>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct AssignedAddress {
    private_ip_address: String,
}

/// What is to be done.
struct Plan {
    interface: NetworkInterface,
    new: Vec<PrivateAddress>,
}

impl AssignPrivateIpAddresses {
    fn plan(&self, world: &World, context: Context<'_>) -> Result<Plan, ApiError> {
        refuse(&[(self.ipv4_prefix_count != 0 || !self.prefixes.is_empty(), NO_PREFIXES)])?;
        let interface = own(world, context, &self.network_interface_id)?;
        let subnet = find_own::<Subnet>(world, context, interface.subnet.as_str())?;
        let new = match (self.secondary_private_ip_address_count, self.addresses.as_slice()) {
            (Some(_), [_, ..]) => {
                let message = "The parameters PrivateIpAddress and SecondaryPrivateIpAddressCount cannot be used together";
                return Err(ApiError::combination(message));
            }
            (None, []) => return Err(ApiError::missing("privateIpAddress")),
            (Some(count), []) => some(world, subnet, count)?,
            (None, addresses) => self.named(world, interface, subnet, addresses)?,
        };
        let count = interface.addresses().count() + new.len();
        let instance = interface.instance().and_then(|id| world.get::<Instance>(id));
        let kind = instance.and_then(|instance| context.agent.catalogue.get(&instance.instance_type));
        let most = kind.map_or(MAX_ADDRESSES, |kind| kind.network.addresses as usize);
        if count > most {
            return Err(too_many_addresses(most));
        }
        Ok(Plan { interface: NetworkInterface::clone(interface), new })
    }

    /// The addresses that are named, each with its public one if another interface has it.
    fn named(
        &self,
        world: &World,
        interface: &NetworkInterface,
        subnet: &Subnet,
        addresses: &[String],
    ) -> Result<Vec<PrivateAddress>, ApiError> {
        let mut taken = taken(world, &subnet.id);
        let mut moved = Vec::new();
        if self.allow_reassignment {
            let others = world.all::<NetworkInterface>().filter(|other| other.subnet == subnet.id);
            let others = others.filter(|other| other.id != interface.id);
            moved.extend(others.flat_map(|other| other.secondary.clone()));
            for address in &moved {
                taken.remove(&address.address);
            }
        }
        let mut new = Vec::with_capacity(addresses.len());
        for text in addresses {
            let address = chosen(subnet, &taken, text)?;
            taken.insert(address);
            let known = moved.iter().find(|known| known.address == address).cloned();
            new.push(known.unwrap_or_else(|| address.into()));
        }
        Ok(new)
    }
}

/// So many addresses that nobody has.
fn some(world: &World, subnet: &Subnet, count: i64) -> Result<Vec<PrivateAddress>, ApiError> {
    let checked = usize::try_from(count).ok().filter(|count| (1..=MAX_ADDRESSES).contains(count));
    let count = checked.ok_or_else(|| {
        let reason = format!("Expecting a number from 1 to {MAX_ADDRESSES}.");
        ApiError::invalid(count, "secondaryPrivateIpAddressCount", reason)
    })?;
    let found: Vec<PrivateAddress> =
        free(subnet.cidr, &taken(world, &subnet.id)).take(count).map(PrivateAddress::from).collect();
    if found.len() < count { Err(no_address(subnet)) } else { Ok(found) }
}

/// Takes addresses away from the other interfaces of a subnet.
fn take_from_others(draft: &mut Draft, interface: &NetworkInterface, addresses: &[PrivateAddress]) {
    let has = |other: &NetworkInterface| {
        other.secondary.iter().any(|one| addresses.iter().any(|taken| taken.address == one.address))
    };
    let others = draft.all::<NetworkInterface>().filter(|other| other.subnet == interface.subnet);
    let losing: Vec<_> = others.filter(|other| has(other)).map(|other| other.id.clone()).collect();
    for id in losing {
        draft.update::<NetworkInterface>(&id, |other| {
            other.secondary.retain(|one| !addresses.iter().any(|taken| taken.address == one.address));
        });
    }
}

impl Action for AssignPrivateIpAddresses {
    const NAME: &'static str = "AssignPrivateIpAddresses";
    type Response = Assigned;

    fn check(&self, context: Context<'_>) -> Result<(), ApiError> {
        self.plan(&context.agent.state.read(), context).map(drop)
    }

    fn run(self, context: Context<'_>) -> Result<Assigned, ApiError> {
        context.agent.state.change(|draft| {
            let Plan { mut interface, new } = self.plan(draft, context)?;
            take_from_others(draft, &interface, &new);
            let item = |one: &PrivateAddress| AssignedAddress { private_ip_address: one.address.to_string() };
            let answer = Assigned {
                network_interface_id: interface.id.to_string(),
                assigned_private_ip_addresses_set: new.iter().map(item).collect(),
            };
            interface.secondary.extend(new);
            draft.put(interface);
            Ok(answer)
        })
    }
}

/// Takes further addresses away from an interface. Elastic addresses that stand for them are free again.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct UnassignPrivateIpAddresses {
    network_interface_id: String,
    #[serde(default, rename = "PrivateIpAddress")]
    addresses: Vec<String>,
    #[serde(default, rename = "Ipv4Prefix")]
    prefixes: Vec<IgnoredAny>,
}

impl UnassignPrivateIpAddresses {
    fn plan(&self, world: &World, context: Context<'_>) -> Result<NetworkInterface, ApiError> {
        refuse(&[(!self.prefixes.is_empty(), NO_PREFIXES)])?;
        let interface = own(world, context, &self.network_interface_id)?;
        if self.addresses.is_empty() {
            return Err(ApiError::missing("privateIpAddress"));
        }
        let mut interface = NetworkInterface::clone(interface);
        for text in &self.addresses {
            let address: Ipv4Addr = text
                .parse()
                .map_err(|_| ApiError::invalid(text, "privateIpAddress", "It is not an IPv4 address."))?;
            if interface.primary.address == address {
                let message =
                    format!("The primary IP address {address} of the interface cannot be unassigned.");
                return Err(ApiError::new("InvalidParameterValue", message));
            }
            let count = interface.secondary.len();
            interface.secondary.retain(|one| one.address != address);
            if interface.secondary.len() == count {
                let message = format!("Some of [{text}] are not assigned to interface {}", interface.id);
                return Err(ApiError::new("InvalidParameterValue", message));
            }
        }
        Ok(interface)
    }
}

impl Action for UnassignPrivateIpAddresses {
    const NAME: &'static str = "UnassignPrivateIpAddresses";
    type Response = ();

    fn check(&self, context: Context<'_>) -> Result<(), ApiError> {
        self.plan(&context.agent.state.read(), context).map(drop)
    }

    fn run(self, context: Context<'_>) -> Result<(), ApiError> {
        context.agent.state.change(|draft| {
            let interface = self.plan(draft, context)?;
            draft.put(interface);
            Ok(())
        })
    }
}
