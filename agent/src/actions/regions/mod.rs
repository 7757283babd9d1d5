//! Regions, availability zones, and what an account may have.

mod describe_account_attributes;
mod describe_availability_zones;
mod describe_regions;

pub(crate) use describe_availability_zones::zone_id;

use crate::query::dispatch::Registry;

pub(super) fn register(registry: &mut Registry) {
    registry.add::<describe_account_attributes::DescribeAccountAttributes>();
    registry.add::<describe_availability_zones::DescribeAvailabilityZones>();
    registry.add::<describe_regions::DescribeRegions>();
}
