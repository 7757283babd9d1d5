//! Which route table a subnet has, which of its routes an address takes, and whether that leads anywhere.

use std::net::Ipv4Addr;
use std::sync::Arc;

use crate::ids::VpcId;
use crate::records::{
    Instance, InternetGateway, NatGateway, NetworkInterface, Route, RouteTable, RouteTarget, Subnet,
};
use crate::state::World;

/// The main route table of a VPC.
pub fn main_table<'w>(world: &'w World, vpc: &VpcId) -> Option<&'w Arc<RouteTable>> {
    world.all::<RouteTable>().find(|table| table.vpc == *vpc && table.is_main())
}

/// The route table that a subnet uses: its own, or else its VPC's main one.
pub fn table_of<'w>(world: &'w World, subnet: &Subnet) -> Option<&'w Arc<RouteTable>> {
    let has = |table: &&Arc<RouteTable>| {
        table.associations.iter().any(|association| association.subnet.as_ref() == Some(&subnet.id))
    };
    world.all::<RouteTable>().find(has).or_else(|| main_table(world, &subnet.vpc))
}

/// The route to an address: of those that have it, the one that says most about it.
pub fn lookup(routes: &[Route], address: Ipv4Addr) -> Option<&Route> {
    let fitting = routes.iter().filter(|route| route.destination.contains(address));
    fitting.max_by_key(|route| route.destination.prefix())
}

/// Whether a route of this VPC leads nowhere, as its target is gone or is not in use.
pub fn is_blackhole(world: &World, vpc: &VpcId, route: &Route) -> bool {
    let leads_somewhere = match &route.target {
        RouteTarget::Local => true,
        RouteTarget::InternetGateway(id) => {
            world.get::<InternetGateway>(id).is_some_and(|gateway| gateway.vpc.as_ref() == Some(vpc))
        }
        RouteTarget::NatGateway(id) => world.get::<NatGateway>(id).is_some_and(|gateway| gateway.is_there()),
        RouteTarget::NetworkInterface(id) => {
            let instance = world.get::<NetworkInterface>(id).and_then(|interface| interface.instance());
            let instance = instance.and_then(|id| world.get::<Instance>(id));
            instance.is_some_and(|instance| instance.lifecycle.state.holds_capacity())
        }
    };
    !leads_somewhere
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::InternetGatewayId;
    use crate::records::RouteOrigin;

    #[test]
    fn the_longest_prefix_wins() {
        let route = |destination: &str| Route {
            destination: destination.parse().unwrap(),
            target: RouteTarget::InternetGateway(InternetGatewayId::random()),
            origin: RouteOrigin::CreateRoute,
        };
        let routes = ["0.0.0.0/0", "10.0.0.0/16", "10.0.7.0/24", "192.0.2.1/32"].map(route);
        for (address, expected) in [
            ("10.0.7.9", Some("10.0.7.0/24")),
            ("10.0.8.9", Some("10.0.0.0/16")),
            ("10.1.0.0", Some("0.0.0.0/0")),
            ("192.0.2.1", Some("192.0.2.1/32")),
        ] {
            let found = lookup(&routes, address.parse().unwrap());
            assert_eq!(found.map(|route| route.destination.to_string()).as_deref(), expected, "{address}");
        }
        assert_eq!(lookup(&routes[1..], Ipv4Addr::LOCALHOST), None);
    }
}
