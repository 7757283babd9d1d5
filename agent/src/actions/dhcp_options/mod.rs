//! DHCP options.

mod create_dhcp_options;
mod describe_dhcp_options;
mod item;

use crate::query::dispatch::Registry;

pub(super) fn register(registry: &mut Registry) {
    registry.add::<create_dhcp_options::AssociateDhcpOptions>();
    registry.add::<create_dhcp_options::CreateDhcpOptions>();
    registry.add::<create_dhcp_options::DeleteDhcpOptions>();
    registry.add::<describe_dhcp_options::DescribeDhcpOptions>();
}
