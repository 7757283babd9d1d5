//! EC2's actions, one small file each, in a folder per kind of resource.

mod regions;
mod sts;

use crate::query::dispatch::Registry;

/// Makes every action known.
pub fn register(registry: &mut Registry) {
    regions::register(registry);
    sts::register(registry);
}
