//! Where instances are launched: subnet, security groups and private addresses.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::sync::Arc;

use super::request::{NetworkInterface as Wanted, RunInstances};
use crate::actions::instances::refused::unsupported;
use crate::actions::lookup::{find, find_own};
use crate::actions::regions::zone_id;
use crate::ids::{SecurityGroupId, SubnetId};
use crate::network::Cidr;
use crate::query::{ApiError, Context};
use crate::records::{NetworkInterface, SecurityGroup, Subnet, Vpc};
use crate::state::World;

/// The most groups of an interface.
const MAX_GROUPS: usize = 16;

/// How many of a subnet's first addresses are not for instances; nor is the last one.
const RESERVED: u32 = 4;

/// A place in the network for some instances.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The subnet.
    pub subnet: Arc<Subnet>,
    /// The groups of each instance's interface.
    pub groups: Vec<SecurityGroupId>,
    /// One for each instance, as long as there are any.
    pub addresses: Vec<Ipv4Addr>,
    /// The interface's description.
    pub description: String,
}

/// What a request says about the network, in either of the two forms.
struct Wish<'r> {
    subnet: Option<&'r str>,
    group_ids: &'r [String],
    group_names: &'r [String],
    address: Option<&'r str>,
    description: &'r str,
}

/// Finds a place for at most `count` instances; there may be fewer addresses.
pub fn place(
    world: &World,
    context: Context<'_>,
    request: &RunInstances,
    count: usize,
) -> Result<Place, ApiError> {
    let wish = wish(request)?;
    let zone = zone(context, request)?;
    let subnet = subnet(world, context, wish.subnet, zone.as_deref())?;
    let groups = groups(world, context, &wish, &subnet)?;
    let addresses = match wish.address {
        Some(_) if count > 1 => {
            let message =
                "The parameter privateIpAddress cannot be used when more than one instance is launched";
            return Err(ApiError::combination(message));
        }
        Some(address) => vec![chosen(world, &subnet, address)?],
        None => free(world, &subnet, count)?,
    };
    Ok(Place { subnet, groups, addresses, description: wish.description.to_owned() })
}

fn wish(request: &RunInstances) -> Result<Wish<'_>, ApiError> {
    let [interface, others @ ..] = request.network_interfaces.as_slice() else {
        return Ok(Wish {
            subnet: request.subnet_id.as_deref(),
            group_ids: &request.security_group_ids,
            group_names: &request.security_groups,
            address: request.private_ip_address.as_deref(),
            description: "",
        });
    };
    let groups = !request.security_group_ids.is_empty() || !request.security_groups.is_empty();
    for (there, what) in [
        (request.subnet_id.is_some(), "subnet ID"),
        (groups, "security groups"),
        (request.private_ip_address.is_some(), "private address"),
    ] {
        if there {
            let message = format!(
                "Network interfaces and an instance-level {what} may not be specified on the same request"
            );
            return Err(ApiError::combination(message));
        }
    }
    if request.network_interfaces.iter().any(|interface| interface.device_index.is_none()) {
        let message = "Each network interface requires a device index.";
        return Err(ApiError::new("MissingParameter", message));
    }
    if !others.is_empty() {
        return Err(unsupported(
            "An instance of this host has one network interface: the one with DeviceIndex 0.",
        ));
    }
    if interface.device_index != Some(0) {
        return Err(ApiError::combination("A network interface with device index 0 must be specified"));
    }
    let address = single_address(interface)?;
    Ok(Wish {
        subnet: interface.subnet_id.as_deref(),
        group_ids: &interface.security_group_ids,
        group_names: &[],
        address,
        description: interface.description.as_deref().unwrap_or_default(),
    })
}

/// An interface's only address, if it is chosen; refuses what interfaces of this host cannot have.
fn single_address(interface: &Wanted) -> Result<Option<&str>, ApiError> {
    let ipv6 = interface.ipv6_address_count != 0
        || !interface.ipv6_addresses.is_empty()
        || interface.ipv6_prefix_count != 0
        || !interface.ipv6_prefixes.is_empty()
        || interface.primary_ipv6;
    let prefixes = interface.ipv4_prefix_count != 0 || !interface.ipv4_prefixes.is_empty();
    let secondary = interface.secondary_private_ip_address_count != 0
        || interface.private_ip_addresses.len() > 1
        || interface.private_ip_addresses.iter().any(|address| !address.primary);
    let special = interface.interface_type.as_deref().is_some_and(|kind| kind != "interface")
        || interface.network_card_index != 0
        || interface.ena_srd_specification.is_some()
        || interface.ena_queue_count.is_some()
        || interface.connection_tracking_specification.is_some()
        || interface.associate_carrier_ip_address;
    for (asked, what) in [
        (
            interface.network_interface_id.is_some(),
            "A network interface of this host is made with its instance: \
            leave NetworkInterfaceId out.",
        ),
        (
            interface.associate_public_ip_address,
            "This host has no public addresses: leave \
            AssociatePublicIpAddress out.",
        ),
        (
            interface.delete_on_termination == Some(false),
            "A network interface of this host goes with its instance: leave DeleteOnTermination out.",
        ),
        (ipv6, "The subnets of this host have no IPv6 addresses."),
        (prefixes, "Network interfaces of this host have no prefixes."),
        (secondary, "A network interface of this host has one private address."),
        (special, "Network interfaces of this host are plain ones, on network card 0."),
    ] {
        if asked {
            return Err(unsupported(what));
        }
    }
    match (&interface.private_ip_address, interface.private_ip_addresses.first()) {
        (Some(_), Some(_)) => {
            let message = "The parameters PrivateIpAddress and PrivateIpAddresses cannot be used together";
            Err(ApiError::combination(message))
        }
        (Some(address), None) => Ok(Some(address)),
        (None, first) => Ok(first.map(|address| address.private_ip_address.as_str())),
    }
}

/// The availability zone that a request names.
fn zone(context: Context<'_>, request: &RunInstances) -> Result<Option<String>, ApiError> {
    let config = &context.agent.config;
    let placement = &request.placement;
    if placement.availability_zone.is_some() && placement.availability_zone_id.is_some() {
        let message = "The parameters AvailabilityZone and AvailabilityZoneId cannot be used together";
        return Err(ApiError::combination(message));
    }
    let found = if let Some(name) = placement.availability_zone.as_ref().filter(|name| !name.is_empty()) {
        (name, config.zones.iter().find(|zone| *zone == name))
    } else if let Some(id) = &placement.availability_zone_id {
        (id, config.zones.iter().find(|zone| zone_id(&config.region, zone) == *id))
    } else {
        return Ok(None);
    };
    match found {
        (_, Some(zone)) => Ok(Some(zone.clone())),
        (name, None) => {
            let zones = config.zones.join(", ");
            let message = format!("Invalid availability zone: [{name}]. This host has {zones}.");
            Err(ApiError::new("InvalidParameterValue", message))
        }
    }
}

fn subnet(
    world: &World,
    context: Context<'_>,
    id: Option<&str>,
    zone: Option<&str>,
) -> Result<Arc<Subnet>, ApiError> {
    if let Some(id) = id {
        let subnet = find_own::<Subnet>(world, context, id)?;
        if let Some(zone) = zone.filter(|zone| *zone != subnet.availability_zone) {
            let message = format!(
                "The availability zone '{zone}' does not match that of the subnet '{id}', '{}'.",
                subnet.availability_zone
            );
            return Err(ApiError::new("InvalidParameterValue", message));
        }
        return Ok(subnet.clone());
    }
    let account = &context.caller.account;
    let Some(vpc) = world.all::<Vpc>().find(|vpc| vpc.is_default && vpc.owner == *account) else {
        let message = "No default VPC for this user. Name a subnet.";
        return Err(ApiError::new("VPCIdNotSpecified", message));
    };
    let default = |zone: &str| {
        let here = |subnet: &&Arc<Subnet>| {
            subnet.vpc == vpc.id && subnet.default_for_az && subnet.availability_zone == zone
        };
        world.all::<Subnet>().find(here).cloned()
    };
    let found = match zone {
        Some(zone) => default(zone),
        None => context.agent.config.zones.iter().find_map(|zone| default(zone)),
    };
    found.ok_or_else(|| match zone {
        Some(zone) => {
            let message = format!("No default subnet for availability zone: '{zone}'. Name a subnet.");
            ApiError::new("MissingInput", message)
        }
        None => {
            let message =
                format!("No subnets found for the default VPC '{}'. Please specify a subnet.", vpc.id);
            ApiError::new("MissingInput", message)
        }
    })
}

/// The groups of a request, or the default one of the subnet's VPC.
fn groups(
    world: &World,
    context: Context<'_>,
    wish: &Wish<'_>,
    subnet: &Subnet,
) -> Result<Vec<SecurityGroupId>, ApiError> {
    let named = |name: &str| {
        let name_and_vpc = |group: &&Arc<SecurityGroup>| group.vpc == subnet.vpc && group.name == name;
        world.all::<SecurityGroup>().find(name_and_vpc)
    };
    let vpc = &subnet.vpc;
    if !wish.group_names.is_empty() && !world.get::<Vpc>(vpc).is_some_and(|vpc| vpc.is_default) {
        let message = "The parameter groupName cannot be used with the parameter subnet: use group ids.";
        return Err(ApiError::combination(message));
    }
    let mut groups = Vec::new();
    for name in wish.group_names {
        let group = named(name).ok_or_else(|| {
            let message = format!("The security group '{name}' does not exist in default VPC '{vpc}'");
            ApiError::new("InvalidGroup.NotFound", message)
        })?;
        groups.push(group.id.clone());
    }
    groups.extend(groups_by_id(world, context, wish.group_ids, subnet)?);
    let mut seen = BTreeSet::new();
    groups.retain(|group| seen.insert(group.clone()));
    if groups.is_empty() {
        groups.extend(named("default").map(|group| group.id.clone()));
    }
    fits(groups)
}

/// Groups that a request names by their ids, for an interface in a subnet.
pub fn groups_by_id(
    world: &World,
    context: Context<'_>,
    ids: &[String],
    subnet: &Subnet,
) -> Result<Vec<SecurityGroupId>, ApiError> {
    let mut groups = Vec::with_capacity(ids.len());
    for id in ids {
        let group = find::<SecurityGroup>(world, context, id)?;
        if group.vpc != subnet.vpc {
            let message =
                format!("Security group {id} and subnet {} belong to different networks.", subnet.id);
            return Err(ApiError::new("InvalidParameter", message));
        }
        if !groups.contains(&group.id) {
            groups.push(group.id.clone());
        }
    }
    fits(groups)
}

fn fits(groups: Vec<SecurityGroupId>) -> Result<Vec<SecurityGroupId>, ApiError> {
    if groups.len() > MAX_GROUPS {
        let message = format!("A network interface can have at most {MAX_GROUPS} security groups.");
        return Err(ApiError::new("SecurityGroupsPerInterfaceLimitExceeded", message));
    }
    Ok(groups)
}

/// The addresses of a subnet that instances can have: the first and the last.
fn usable(subnet: &Subnet) -> Result<(Cidr, u32, u32), ApiError> {
    let range: Cidr = subnet.cidr.parse().map_err(ApiError::internal)?;
    let (first, last) = (range.first().to_bits(), range.last().to_bits());
    Ok((range, first.saturating_add(RESERVED), last.saturating_sub(1)))
}

fn used(world: &World, subnet: &SubnetId) -> BTreeSet<Ipv4Addr> {
    let interfaces = world.all::<NetworkInterface>().filter(|interface| interface.subnet == *subnet);
    interfaces.map(|interface| interface.private_address).collect()
}

/// The lowest free addresses: `count`, or as many as there are.
fn free(world: &World, subnet: &Subnet, count: usize) -> Result<Vec<Ipv4Addr>, ApiError> {
    let (_, first, last) = usable(subnet)?;
    let used = used(world, &subnet.id);
    let all = (first..=last).map(Ipv4Addr::from_bits);
    Ok(all.filter(|address| !used.contains(address)).take(count).collect())
}

/// An address that a request has chosen.
fn chosen(world: &World, subnet: &Subnet, text: &str) -> Result<Ipv4Addr, ApiError> {
    let address: Ipv4Addr = text
        .parse()
        .map_err(|_| ApiError::invalid(text, "privateIpAddress", "It is not an IPv4 address."))?;
    let (range, first, last) = usable(subnet)?;
    if !range.contains(address) {
        let message = format!("Address {address} does not fall within the subnet's address range");
        return Err(ApiError::new("InvalidParameterValue", message));
    }
    if !(first..=last).contains(&address.to_bits()) {
        let message = format!("Address {address} is in subnet's reserved address range");
        return Err(ApiError::new("InvalidParameterValue", message));
    }
    if used(world, &subnet.id).contains(&address) {
        return Err(ApiError::new("InvalidIPAddress.InUse", format!("Address {address} is in use.")));
    }
    Ok(address)
}
