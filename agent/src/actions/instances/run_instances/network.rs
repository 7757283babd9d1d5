//! Where instances are launched: subnets, security groups and addresses of their interfaces.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::Arc;

use super::request::{NetworkInterface as Wanted, RunInstances};
use crate::actions::lookup::find_own;
use crate::actions::network_interfaces::new::{
    AddressPlan, AddressWish, Addresses, check_group_count, default_group, groups_by_id,
};
use crate::actions::network_interfaces::{check_limits, in_use, own, zone as zone_of};
use crate::actions::refused::{NO_IPV6, NO_PREFIXES, refuse};
use crate::actions::regions::zone_id;
use crate::catalogue::InstanceType;
use crate::ids::{SecurityGroupId, SubnetId};
use crate::network::public_addresses::{Pool, taken as taken_public};
use crate::network::subnets;
use crate::query::{ApiError, Context};
use crate::records::{NetworkInterface, SecurityGroup, Subnet, Vpc};
use crate::state::World;

/// A place in the network for some instances.
#[derive(Clone, Debug)]
pub struct Place {
    /// The primary interface's subnet.
    pub subnet: Arc<Subnet>,
    /// The interfaces of each instance, as long as there are addresses for them; the primary one first.
    pub instances: Vec<Vec<Planned>>,
}

/// An interface that an instance is to have.
#[derive(Clone, Debug)]
pub struct Planned {
    /// Its number in the instance.
    pub device_index: u32,
    /// Whether it goes with the instance.
    pub delete_on_termination: bool,
    /// What it is.
    pub what: What,
}

/// An interface that is there, or one that is to be made.
#[derive(Clone, Debug)]
pub enum What {
    /// One that no instance has.
    Existing(Arc<NetworkInterface>),
    /// A new one.
    New {
        /// Where.
        subnet: Arc<Subnet>,
        /// With these addresses.
        addresses: Addresses,
        /// In these groups.
        groups: Vec<SecurityGroupId>,
        /// For people.
        description: String,
        /// Whether it has a public address.
        public: bool,
    },
}

/// An interface as each of the instances is to have it.
struct Template {
    device_index: u32,
    delete_on_termination: bool,
    kind: Kind,
}

enum Kind {
    Existing(Arc<NetworkInterface>),
    New {
        subnet: Arc<Subnet>,
        addresses: AddressPlan,
        groups: Vec<SecurityGroupId>,
        description: String,
        public: bool,
    },
}

/// The addresses that are taken, in each subnet, as far as somebody has looked.
type Taken = BTreeMap<SubnetId, BTreeSet<Ipv4Addr>>;

/// Finds a place for at most `count` instances of a type; there may be fewer addresses.
pub fn place(
    world: &World,
    context: Context<'_>,
    request: &RunInstances,
    kind: &InstanceType,
    count: usize,
) -> Result<Place, ApiError> {
    let templates = templates(world, context, request)?;
    let subnet = check(world, &templates, kind, count)?;
    let mut taken = Taken::new();
    let mut instances = Vec::new();
    while instances.len() < count {
        let planned: Option<Vec<Planned>> =
            templates.iter().map(|template| template.plan(world, &mut taken)).collect();
        match planned {
            Some(planned) => instances.push(planned),
            None => break,
        }
    }
    check_pool(world, context, request, instances.len())?;
    Ok(Place { subnet, instances })
}

impl Template {
    /// The interface of one more instance. None if there is no address left for it.
    fn plan(&self, world: &World, taken: &mut Taken) -> Option<Planned> {
        let what = match &self.kind {
            Kind::Existing(interface) => What::Existing(interface.clone()),
            Kind::New { subnet, addresses, groups, description, public } => {
                let taken =
                    taken.entry(subnet.id.clone()).or_insert_with(|| subnets::taken(world, &subnet.id));
                What::New {
                    subnet: subnet.clone(),
                    addresses: addresses.take(subnet, taken)?,
                    groups: groups.clone(),
                    description: description.clone(),
                    public: *public,
                }
            }
        };
        Some(Planned {
            device_index: self.device_index,
            delete_on_termination: self.delete_on_termination,
            what,
        })
    }

    /// Where it is: the VPC's id, the zone, and how many addresses it has.
    fn place<'t>(&'t self, world: &'t World) -> (&'t str, &'t str, usize) {
        match &self.kind {
            Kind::Existing(found) => (found.vpc.as_str(), zone_of(world, found), found.addresses().count()),
            Kind::New { subnet, addresses, .. } => {
                (subnet.vpc.as_str(), &subnet.availability_zone, addresses.len())
            }
        }
    }

    /// Whether there can be only one such interface.
    fn is_single(&self) -> bool {
        match &self.kind {
            Kind::Existing(_) => true,
            Kind::New { addresses, .. } => addresses.is_fixed(),
        }
    }
}

/// Whether an instance can have all of these; returns the primary one's subnet.
fn check(
    world: &World,
    templates: &[Template],
    kind: &InstanceType,
    count: usize,
) -> Result<Arc<Subnet>, ApiError> {
    let primary = templates
        .first()
        .filter(|template| template.device_index == 0)
        .ok_or_else(|| ApiError::combination("A network interface with device index 0 must be specified"))?;
    let (vpc, zone, _) = primary.place(world);
    for (template, next) in templates.iter().zip(templates.iter().skip(1)) {
        if template.device_index == next.device_index {
            let message = "Each network interface requires a unique device index.";
            return Err(ApiError::combination(message));
        }
    }
    for template in templates {
        let (other_vpc, other_zone, addresses) = template.place(world);
        if (vpc, zone) != (other_vpc, other_zone) {
            let message =
                "All network interfaces of an instance must be in the same availability zone and VPC.";
            return Err(ApiError::combination(message));
        }
        if count > 1 && template.is_single() {
            let message = "A network interface ID or a private IP address cannot be specified when more than one \
                           instance is launched";
            return Err(ApiError::combination(message));
        }
        check_limits(kind, templates.len(), addresses)?;
    }
    let subnet = match &primary.kind {
        Kind::Existing(interface) => world.get::<Subnet>(&interface.subnet).cloned(),
        Kind::New { subnet, .. } => Some(subnet.clone()),
    };
    subnet.ok_or_else(|| ApiError::internal("an interface is in no subnet"))
}

/// Who asks for public addresses gets them or nothing. Where the subnet does, an instance is worth more than its public
/// address.
fn check_pool(
    world: &World,
    context: Context<'_>,
    request: &RunInstances,
    count: usize,
) -> Result<(), ApiError> {
    if !request.network_interfaces.iter().any(|wanted| wanted.associate_public_ip_address == Some(true)) {
        return Ok(());
    }
    let pool = Pool::new(&context.agent.config.public_addresses);
    let taken = taken_public(world).iter().filter(|address| pool.contains(**address)).count();
    if pool.size().saturating_sub(taken as u64) < count as u64 {
        let message =
            "Insufficient addresses available: public-addresses in the agent's configuration has no more.";
        return Err(ApiError::new("InsufficientAddressCapacity", message));
    }
    Ok(())
}

/// The interfaces of a request, in either of the two forms, in the order of their device indexes.
fn templates(world: &World, context: Context<'_>, request: &RunInstances) -> Result<Vec<Template>, ApiError> {
    let zone = zone(context, request)?;
    let zone = zone.as_deref();
    if request.network_interfaces.is_empty() {
        let subnet = subnet(world, context, request.subnet_id.as_deref(), zone)?;
        let groups = groups(world, context, request, &subnet)?;
        let wish = AddressWish { primary: request.private_ip_address.as_deref(), ..AddressWish::default() };
        let addresses = AddressPlan::new(&subnet, &subnets::taken(world, &subnet.id), wish)?;
        let public = subnet.map_public_ip_on_launch;
        let kind = Kind::New { subnet, addresses, groups, description: String::new(), public };
        return Ok(vec![Template { device_index: 0, delete_on_termination: true, kind }]);
    }
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
    let is_only = request.network_interfaces.len() == 1;
    let mut templates = Vec::with_capacity(request.network_interfaces.len());
    for wanted in &request.network_interfaces {
        templates.push(template(world, context, wanted, zone, is_only)?);
    }
    templates.sort_by_key(|template| template.device_index);
    Ok(templates)
}

/// One entry of `NetworkInterface.N`.
fn template(
    world: &World,
    context: Context<'_>,
    wanted: &Wanted,
    zone: Option<&str>,
    is_only: bool,
) -> Result<Template, ApiError> {
    let device_index = wanted.device_index.ok_or_else(|| {
        ApiError::new("MissingParameter", "Each network interface requires a device index.")
    })?;
    let device_index = u32::try_from(device_index)
        .map_err(|_| ApiError::invalid(device_index, "deviceIndex", "It must not be negative."))?;
    refuse_special(wanted)?;
    let kind = match &wanted.network_interface_id {
        Some(id) => existing(world, context, wanted, id, zone)?,
        None => new(world, context, wanted, zone, is_only)?,
    };
    // What was made for an instance goes with it.
    let delete_on_termination = wanted.delete_on_termination.unwrap_or(matches!(kind, Kind::New { .. }));
    Ok(Template { device_index, delete_on_termination, kind })
}

fn existing(
    world: &World,
    context: Context<'_>,
    wanted: &Wanted,
    id: &str,
    zone: Option<&str>,
) -> Result<Kind, ApiError> {
    let is_described = wanted.subnet_id.is_some()
        || !wanted.security_group_ids.is_empty()
        || wanted.private_ip_address.is_some()
        || !wanted.private_ip_addresses.is_empty()
        || wanted.secondary_private_ip_address_count != 0
        || wanted.description.is_some()
        || wanted.associate_public_ip_address == Some(true);
    if is_described {
        let message = format!(
            "A network interface may not specify both a network interface ID and what a new one would have ({id})."
        );
        return Err(ApiError::combination(message));
    }
    if wanted.delete_on_termination == Some(true) {
        let message =
            "A network interface may not specify a network interface ID and delete on termination as true";
        return Err(ApiError::combination(message));
    }
    let interface = own(world, context, id)?;
    if let Some(zone) = zone.filter(|zone| *zone != zone_of(world, interface)) {
        let message =
            format!("The availability zone '{zone}' does not match that of the network interface '{id}'.");
        return Err(ApiError::new("InvalidParameterValue", message));
    }
    if interface.attachment.is_some() {
        return Err(in_use(interface));
    }
    Ok(Kind::Existing(interface.clone()))
}

fn new(
    world: &World,
    context: Context<'_>,
    wanted: &Wanted,
    zone: Option<&str>,
    is_only: bool,
) -> Result<Kind, ApiError> {
    let subnet = subnet(world, context, wanted.subnet_id.as_deref(), zone)?;
    let mut groups = groups_by_id(world, context, &wanted.security_group_ids, &subnet)?;
    if groups.is_empty() {
        groups = default_group(world, &subnet);
    }
    if wanted.private_ip_address.is_some() && wanted.private_ip_addresses.iter().any(|one| one.primary) {
        let message = "The parameters PrivateIpAddress and PrivateIpAddresses cannot be used together";
        return Err(ApiError::combination(message));
    }
    let wish = AddressWish {
        primary: wanted.private_ip_address.as_deref(),
        list: &wanted.private_ip_addresses,
        secondary_count: wanted.secondary_private_ip_address_count,
    };
    let addresses = AddressPlan::new(&subnet, &subnets::taken(world, &subnet.id), wish)?;
    if wanted.associate_public_ip_address == Some(true) {
        if !is_only {
            return Err(ApiError::combination(
                "The associatePublicIPAddress parameter cannot be specified when launching with multiple network \
                 interfaces.",
            ));
        }
        if wanted.device_index != Some(0) {
            return Err(ApiError::combination(
                "The associatePublicIPAddress parameter can only be specified for the network interface with DeviceIndex 0.",
            ));
        }
    }
    let public = is_only && wanted.associate_public_ip_address.unwrap_or(subnet.map_public_ip_on_launch);
    let description = wanted.description.clone().unwrap_or_default();
    Ok(Kind::New { subnet, addresses, groups, description, public })
}

/// Refuses what interfaces of this host cannot have.
fn refuse_special(interface: &Wanted) -> Result<(), ApiError> {
    let ipv6 = interface.ipv6_address_count != 0
        || !interface.ipv6_addresses.is_empty()
        || interface.ipv6_prefix_count != 0
        || !interface.ipv6_prefixes.is_empty()
        || interface.primary_ipv6;
    let prefixes = interface.ipv4_prefix_count != 0 || !interface.ipv4_prefixes.is_empty();
    let special = interface.interface_type.as_deref().is_some_and(|kind| kind != "interface")
        || interface.network_card_index != 0
        || interface.ena_srd_specification.is_some()
        || interface.ena_queue_count.is_some()
        || interface.connection_tracking_specification.is_some()
        || interface.associate_carrier_ip_address;
    refuse(&[
        (ipv6, NO_IPV6),
        (prefixes, NO_PREFIXES),
        (special, "Network interfaces of this host are plain ones, on network card 0."),
    ])
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

/// The subnet of this id, or the default one of the zone, or of the first zone that has one.
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

/// The groups of a request without interfaces, or the default one of the subnet's VPC.
fn groups(
    world: &World,
    context: Context<'_>,
    request: &RunInstances,
    subnet: &Subnet,
) -> Result<Vec<SecurityGroupId>, ApiError> {
    let names = &request.security_groups;
    let vpc = &subnet.vpc;
    if !names.is_empty() && !world.get::<Vpc>(vpc).is_some_and(|vpc| vpc.is_default) {
        let message = "The parameter groupName cannot be used with the parameter subnet: use group ids.";
        return Err(ApiError::combination(message));
    }
    let mut groups = Vec::new();
    for name in names {
        let mut all = world.all::<SecurityGroup>();
        let group = all.find(|group| group.vpc == *vpc && group.name == *name).ok_or_else(|| {
            let message = format!("The security group '{name}' does not exist in default VPC '{vpc}'");
            ApiError::new("InvalidGroup.NotFound", message)
        })?;
        groups.push(group.id.clone());
    }
    groups.extend(groups_by_id(world, context, &request.security_group_ids, subnet)?);
    let mut seen = BTreeSet::new();
    groups.retain(|group| seen.insert(group.clone()));
    if groups.is_empty() {
        groups = default_group(world, subnet);
    }
    check_group_count(&groups)?;
    Ok(groups)
}
