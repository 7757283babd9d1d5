//! Regions and availability zones.

mod describe_regions;

use crate::query::dispatch::Registry;

pub(super) fn register(registry: &mut Registry) {
    registry.add::<describe_regions::DescribeRegions>();
}
