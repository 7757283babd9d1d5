//! EC2's actions, one small file each, in a folder per kind of resource.

pub(crate) mod lookup;
mod network;
mod regions;
mod tags;
mod sts;

use crate::query::dispatch::Registry;

/// Makes every action known.
pub fn register(registry: &mut Registry) {
    network::register(registry);
    regions::register(registry);
    tags::register(registry);
    sts::register(registry);
}
