//! What a new interface is made of, whoever asks for one: groups, private addresses and a MAC.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use serde::Deserialize;

use crate::actions::lookup::find;
use crate::ids::{NetworkInterfaceId, SecurityGroupId};
use crate::network::furnishing::group_of;
use crate::network::subnets;
use crate::query::{ApiError, Context};
use crate::records::{InterfaceType, NetworkInterface, PrivateAddress, SecurityGroup, Subnet};
use crate::state::World;

/// The most groups of an interface.
pub const MAX_GROUPS: usize = 16;

/// The most addresses of an interface that no instance has, whose type would say less.
pub const MAX_ADDRESSES: usize = 256;

/// `PrivateIpAddresses.N`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct PrivateIpAddress {
    /// Whether it is the first one.
    #[serde(default)]
    pub primary: bool,
    /// The address.
    pub private_ip_address: String,
}

/// What a request says of the addresses of a new interface.
#[derive(Clone, Copy, Debug, Default)]
pub struct AddressWish<'r> {
    /// `PrivateIpAddress`.
    pub primary: Option<&'r str>,
    /// `PrivateIpAddresses`.
    pub list: &'r [PrivateIpAddress],
    /// `SecondaryPrivateIpAddressCount`.
    pub secondary_count: i64,
}

/// Which addresses of its subnet a new interface is to have.
#[derive(Clone, Debug, Default)]
pub struct AddressPlan {
    primary: Option<Ipv4Addr>,
    secondary: Vec<Ipv4Addr>,
    /// How many secondary ones are to be found.
    count: usize,
}

/// The addresses of a new interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Addresses {
    /// The first one.
    pub primary: Ipv4Addr,
    /// The others.
    pub secondary: Vec<Ipv4Addr>,
}

impl AddressPlan {
    /// Understands a request, and refuses addresses that nobody can have in this subnet, or that somebody has.
    pub fn new(subnet: &Subnet, taken: &BTreeSet<Ipv4Addr>, wish: AddressWish<'_>) -> Result<Self, ApiError> {
        let mut primary = wish.primary;
        let mut secondary = Vec::new();
        for listed in wish.list {
            let address = listed.private_ip_address.as_str();
            if !listed.primary {
                secondary.push(chosen(subnet, taken, address)?);
            } else if primary.replace(address).is_some() {
                let message = "Only one primary private IP address can be specified.";
                return Err(ApiError::combination(message));
            }
        }
        let primary = primary.map(|address| chosen(subnet, taken, address)).transpose()?;
        let mut all: Vec<Ipv4Addr> = primary.into_iter().chain(secondary.iter().copied()).collect();
        let count = all.len();
        all.sort();
        all.dedup();
        if all.len() < count {
            let message = "A private IP address is specified more than once.";
            return Err(ApiError::new("InvalidParameterValue", message));
        }
        let count = usize::try_from(wish.secondary_count).map_err(|_| {
            let reason = "It must not be negative.";
            ApiError::invalid(wish.secondary_count, "secondaryPrivateIpAddressCount", reason)
        })?;
        if count > 0 && !secondary.is_empty() {
            return Err(ApiError::combination(
                "SecondaryPrivateIpAddressCount cannot be used with secondary addresses in PrivateIpAddresses.",
            ));
        }
        let plan = Self { primary, secondary, count };
        if plan.len() > MAX_ADDRESSES {
            return Err(too_many_addresses(MAX_ADDRESSES));
        }
        Ok(plan)
    }

    /// How many addresses it comes to.
    pub fn len(&self) -> usize {
        1 + self.secondary.len() + self.count
    }

    /// Whether an address is named, so that there can be one such interface only.
    pub fn is_fixed(&self) -> bool {
        self.primary.is_some() || !self.secondary.is_empty()
    }

    /// Takes the addresses out of those that are left, the lowest first. None if there are too few.
    pub fn take(&self, subnet: &Subnet, taken: &mut BTreeSet<Ipv4Addr>) -> Option<Addresses> {
        let is_named =
            |address: &Ipv4Addr| self.primary.iter().chain(&self.secondary).any(|one| one == address);
        let needed = usize::from(self.primary.is_none()) + self.count;
        let free = subnets::free(subnet.cidr, taken).filter(|address| !is_named(address));
        let found: Vec<Ipv4Addr> = free.take(needed).collect();
        if found.len() < needed {
            return None;
        }
        let mut found = found.into_iter();
        let primary = self.primary.or_else(|| found.next())?;
        let secondary: Vec<Ipv4Addr> = self.secondary.iter().copied().chain(found).collect();
        taken.insert(primary);
        taken.extend(&secondary);
        Some(Addresses { primary, secondary })
    }
}

/// An address that a request has chosen.
pub fn chosen(subnet: &Subnet, taken: &BTreeSet<Ipv4Addr>, text: &str) -> Result<Ipv4Addr, ApiError> {
    let address: Ipv4Addr = text
        .parse()
        .map_err(|_| ApiError::invalid(text, "privateIpAddress", "It is not an IPv4 address."))?;
    if !subnet.cidr.contains(address) {
        let message = format!("Address {address} does not fall within the subnet's address range");
        return Err(ApiError::new("InvalidParameterValue", message));
    }
    if !subnets::is_usable(subnet.cidr, address) {
        let message = format!("Address {address} is in subnet's reserved address range");
        return Err(ApiError::new("InvalidParameterValue", message));
    }
    if taken.contains(&address) {
        return Err(ApiError::new("InvalidIPAddress.InUse", format!("Address {address} is in use.")));
    }
    Ok(address)
}

/// The error for an interface with more addresses than it can have.
pub fn too_many_addresses(most: usize) -> ApiError {
    let message =
        format!("Number of private addresses will exceed limit. An interface has at most {most} here.");
    ApiError::new("PrivateIpAddressLimitExceeded", message)
}

/// The error for a subnet without enough addresses.
pub fn no_address(subnet: &Subnet) -> ApiError {
    let message = format!("There are not enough free addresses in subnet '{}'.", subnet.id);
    ApiError::new("InsufficientFreeAddressesInSubnet", message)
}

/// Groups that a request names by their ids, for an interface in a subnet; the VPC's default one if it names none.
pub fn groups_or_default(
    world: &World,
    context: Context<'_>,
    ids: &[String],
    subnet: &Subnet,
) -> Result<Vec<SecurityGroupId>, ApiError> {
    let groups = groups_by_id(world, context, ids, subnet)?;
    if groups.is_empty() { Ok(default_group(world, subnet)) } else { Ok(groups) }
}

/// The group of interfaces for which none is named.
pub fn default_group(world: &World, subnet: &Subnet) -> Vec<SecurityGroupId> {
    group_of(world, &subnet.vpc).map(|group| group.id.clone()).into_iter().collect()
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
    check_group_count(&groups)?;
    Ok(groups)
}

/// Whether an interface can have so many groups.
pub fn check_group_count(groups: &[SecurityGroupId]) -> Result<(), ApiError> {
    if groups.len() > MAX_GROUPS {
        let message = format!("A network interface can have at most {MAX_GROUPS} security groups.");
        return Err(ApiError::new("SecurityGroupsPerInterfaceLimitExceeded", message));
    }
    Ok(())
}

/// The MACs of all interfaces.
pub fn used_macs(world: &World) -> BTreeSet<String> {
    world.all::<NetworkInterface>().map(|interface| interface.mac.clone()).collect()
}

/// A locally administered address that no other interface has.
fn unused_mac(used: &mut BTreeSet<String>) -> String {
    loop {
        let [a, b, c, d, e]: [u8; 5] = rand::random();
        let mac = format!("02:{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}");
        if used.insert(mac.clone()) {
            return mac;
        }
    }
}

/// An interface that nobody has yet.
pub fn interface(subnet: &Subnet, addresses: Addresses, macs: &mut BTreeSet<String>) -> NetworkInterface {
    NetworkInterface {
        id: NetworkInterfaceId::random(),
        owner: subnet.owner.clone(),
        vpc: subnet.vpc.clone(),
        subnet: subnet.id.clone(),
        interface_type: InterfaceType::Interface,
        description: String::new(),
        mac: unused_mac(macs),
        primary: addresses.primary.into(),
        secondary: addresses.secondary.into_iter().map(PrivateAddress::from).collect(),
        groups: Vec::new(),
        attachment: None,
        source_dest_check: true,
        associate_public_address: false,
    }
}
