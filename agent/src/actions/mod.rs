//! EC2's actions, one small file each, in a folder per kind of resource.

mod innkeeper;
mod regions;
mod sts;

use crate::query::dispatch::Registry;

/// Makes every action known.
pub fn register(registry: &mut Registry) {
    innkeeper::register(registry);
    regions::register(registry);
    sts::register(registry);
}
