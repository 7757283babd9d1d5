//! VPCs, subnets, network interfaces and DHCP options, as far as they can be looked at.

mod describe_dhcp_options;
mod describe_network_interfaces;
mod describe_subnets;
mod describe_vpc_attribute;
mod describe_vpcs;

use crate::query::dispatch::Registry;

pub(super) fn register(registry: &mut Registry) {
    registry.add::<describe_dhcp_options::DescribeDhcpOptions>();
    registry.add::<describe_network_interfaces::DescribeNetworkInterfaces>();
    registry.add::<describe_subnets::DescribeSubnets>();
    registry.add::<describe_vpc_attribute::DescribeVpcAttribute>();
    registry.add::<describe_vpcs::DescribeVpcs>();
}
