//! EC2's actions, one small file each, in a folder per kind of resource; and those of IAM and STS that instances need.

mod addresses;
mod device_name;
mod dhcp_options;
mod iam;
pub(crate) mod images;
mod innkeeper;
mod instance_profiles;
mod instances;
mod internet_gateways;
mod key_pairs;
pub(crate) mod lookup;
mod nat_gateways;
mod network_acls;
mod network_interfaces;
mod refused;
mod regions;
mod route_tables;
mod security_groups;
mod sharing;
mod snapshots;
mod sts;
mod subnets;
mod tags;
#[cfg(test)]
pub(crate) mod testing;
mod volumes;
mod vpcs;

pub(crate) use instances::{architecture, enabled, tag_key_fits};
pub(crate) use regions::zone_id;

use crate::query::dispatch::Registry;

/// Makes every action known.
pub fn register(registry: &mut Registry) {
    addresses::register(registry);
    dhcp_options::register(registry);
    iam::register(registry);
    images::register(registry);
    innkeeper::register(registry);
    instance_profiles::register(registry);
    instances::register(registry);
    internet_gateways::register(registry);
    key_pairs::register(registry);
    nat_gateways::register(registry);
    network_acls::register(registry);
    network_interfaces::register(registry);
    regions::register(registry);
    route_tables::register(registry);
    security_groups::register(registry);
    snapshots::register(registry);
    sts::register(registry);
    subnets::register(registry);
    tags::register(registry);
    volumes::register(registry);
    vpcs::register(registry);
}
