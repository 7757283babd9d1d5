//! EC2's actions, one small file each, in a folder per kind of resource.

mod instances;
pub(crate) mod lookup;
mod network;
mod regions;
mod sts;
mod tags;

use crate::query::dispatch::Registry;

/// Makes every action known.
pub fn register(registry: &mut Registry) {
    instances::register(registry);
    network::register(registry);
    regions::register(registry);
    tags::register(registry);
    sts::register(registry);
}
