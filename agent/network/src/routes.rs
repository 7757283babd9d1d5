//! The routes of a VPC's namespace.
//!
//! Rules say which table is asked, in this order:
//!
//! 1. `local`: the addresses of the services inside of the namespace.
//! 2. [`INSIDE`]: a route to each interface's addresses; whatever else is in the VPC's ranges is nowhere.
//! 3. The table of the subnet that the packet comes from, by its mark, which is also the table's number.
//!
//! What comes from outside has no subnet, and finds only what is inside.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use crate::plan::{self, Mac, Target, Vpc};
use crate::{Cidr, mark, names};

/// The table of what is inside of the VPC.
pub const INSIDE: u32 = 100;
/// The priority of the rule that asks it.
pub const INSIDE_PRIORITY: u32 = 100;
/// The priority of the rules that ask a subnet's table.
pub const SUBNET_PRIORITY: u32 = 200;
/// Which bits of a mark are the subnet's.
pub const MARK_MASK: u32 = 0xffff_fff0;

/// Where a route leads.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Way {
    /// To whoever is at this device.
    Link(String),
    /// To a next hop at this device, which is taken to be there.
    Hop(String, Ipv4Addr),
    /// Nowhere.
    Blackhole,
}

/// A route in a table.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Route {
    /// The table's number.
    pub table: u32,
    /// Whereto.
    pub destination: Cidr,
    /// How.
    pub way: Way,
}

/// Who is at a device, which nobody has to ask for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Neighbour {
    /// The device.
    pub device: String,
    /// Its IP address.
    pub address: Ipv4Addr,
    /// Its Ethernet address; none is the host's end of the uplink.
    pub mac: Option<Mac>,
}

/// All that there is to be. What leads to a device that is not there is left out by whoever brings it about.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Routes {
    /// Routes.
    pub routes: BTreeSet<Route>,
    /// Permanent neighbours.
    pub neighbours: BTreeSet<Neighbour>,
    /// Marks whose table of the same number is asked.
    pub marks: BTreeSet<u32>,
    /// Addresses of the namespace itself.
    pub addresses: BTreeSet<Ipv4Addr>,
    /// Devices of interfaces, which are up.
    pub taps: BTreeSet<String>,
}

/// Addresses of services that every VPC has (EC2 User Guide, "Link-local addresses"), with one that EC2 does not have.
pub mod services {
    use std::net::Ipv4Addr;

    /// Instance metadata.
    pub const METADATA: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);
    /// The API, for guests that ask for what the operator has given them keys for.
    pub const API: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 252);
    /// Names.
    pub const DNS: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 253);
    /// The time.
    pub const TIME: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 123);
}

/// The addresses of a namespace itself: those that every VPC has, its resolver's and its subnets' routers'.
pub fn addresses(vpc: &Vpc) -> BTreeSet<Ipv4Addr> {
    let resolver = vpc.cidrs.first().and_then(|range| after(*range, RESOLVER));
    let routers = vpc.subnets.values().filter_map(|subnet| after(subnet.cidr, ROUTER));
    let services = [services::METADATA, services::API, services::DNS, services::TIME];
    services.into_iter().chain(resolver).chain(routers).collect()
}

/// The router that the guests of a subnet know: the first address after its first one, as EC2 reserves it.
pub fn router(subnet: Cidr) -> Ipv4Addr {
    after(subnet, ROUTER).unwrap_or(subnet.last())
}

/// Who resolves names in a VPC with this first range: the second address after its first one.
pub fn resolver(vpc: Cidr) -> Ipv4Addr {
    after(vpc, RESOLVER).unwrap_or(vpc.last())
}

/// So many addresses after the first one of a subnet, and of a VPC.
const ROUTER: u32 = 1;
const RESOLVER: u32 = 2;

/// Compiles a plan.
pub fn compile(vpc: &Vpc) -> Routes {
    let mut routes = Routes { addresses: addresses(vpc), ..Routes::default() };
    for range in &vpc.cidrs {
        routes.add(INSIDE, *range, Way::Blackhole);
    }
    let at_uplink = |hop| Neighbour { device: names::UPLINK.to_owned(), address: hop, mac: None };
    if vpc.has_internet_gateway {
        routes.neighbours.insert(at_uplink(names::INTERNET_GATEWAY));
    }
    for (id, interface) in &vpc.interfaces {
        let tap = names::tap(id);
        for address in &interface.addresses {
            if let Some(host) = Cidr::around(address.private, 32) {
                routes.add(INSIDE, host, Way::Link(tap.clone()));
            }
            let (address, mac) = (address.private, Some(interface.mac));
            routes.neighbours.insert(Neighbour { device: tap.clone(), address, mac });
        }
        routes.taps.insert(tap);
    }
    for subnet in vpc.subnets.values() {
        let table = mark(subnet.cidr);
        routes.marks.insert(table);
        for (destination, way) in vpc.ways(&subnet.route_table) {
            if let Way::Hop(device, hop) = &way
                && device == names::UPLINK
            {
                routes.neighbours.insert(at_uplink(*hop));
            }
            routes.add(table, destination, way);
        }
    }
    routes
}

impl Routes {
    fn add(&mut self, table: u32, destination: Cidr, way: Way) {
        self.routes.insert(Route { table, destination, way });
    }
}

impl Vpc {
    /// Whereto a route table leads, and how.
    fn ways(&self, table: &str) -> Vec<(Cidr, Way)> {
        let mut ways = Vec::new();
        let table: &[plan::Route] = self.route_tables.get(table).map_or(&[], Vec::as_slice);
        for route in table {
            match &route.target {
                Target::NatGateway(id) => {
                    let more = table.iter().filter(|other| is_within(other.destination, route.destination));
                    let more: Vec<Cidr> = more.map(|other| other.destination).collect();
                    ways.extend(self.ways_by_nat(id, route.destination, &more));
                }
                target => ways.push((route.destination, self.way(target))),
            }
        }
        ways
    }

    /// How a target other than a NAT gateway is reached.
    fn way(&self, target: &Target) -> Way {
        match target {
            Target::InternetGateway if self.has_internet_gateway => uplink(names::INTERNET_GATEWAY),
            Target::Interface(id) => match self.interfaces.get(id) {
                Some(interface) if !interface.source_dest_check => match interface.addresses.first() {
                    Some(first) => Way::Hop(names::tap(id), first.private),
                    None => Way::Blackhole,
                },
                _ => Way::Blackhole,
            },
            Target::InternetGateway | Target::NatGateway(_) | Target::Blackhole => Way::Blackhole,
        }
    }

    /// What a NAT gateway reaches of a range: it goes where its own subnet's routes lead, and only those to the internet
    /// gateway lead anywhere. Its address stands for it as a next hop. What those `taken` are about is not asked.
    fn ways_by_nat(&self, id: &str, range: Cidr, taken: &[Cidr]) -> Vec<(Cidr, Way)> {
        let gateway = self.nat_gateways.get(id).filter(|_| self.has_internet_gateway);
        let subnet = gateway.and_then(|gateway| self.subnets.get(&gateway.subnet));
        let table = subnet.and_then(|subnet| self.route_tables.get(&subnet.route_table));
        let (Some(gateway), Some(table)) = (gateway, table) else { return vec![(range, Way::Blackhole)] };
        let parts = table.iter().map(|own| own.destination).filter(|part| is_within(*part, range));
        let parts = parts.filter(|part| !taken.iter().any(|other| part == other || is_within(*part, *other)));
        let way = |part: Cidr| {
            let about =
                table.iter().filter(|own| own.destination == part || is_within(part, own.destination));
            match about.max_by_key(|own| own.destination.prefix()) {
                Some(own) if own.target == Target::InternetGateway => uplink(gateway.private),
                _ => Way::Blackhole,
            }
        };
        parts.chain([range]).map(|part| (part, way(part))).collect()
    }
}

fn uplink(hop: Ipv4Addr) -> Way {
    Way::Hop(names::UPLINK.to_owned(), hop)
}

/// Whether a range is a part of another one, and not all of it.
fn is_within(part: Cidr, whole: Cidr) -> bool {
    part != whole && whole.covers(part)
}

/// The address so many after the first one of a range.
fn after(range: Cidr, count: u32) -> Option<Ipv4Addr> {
    let address = Ipv4Addr::from_bits(range.first().to_bits().checked_add(count)?);
    range.contains(address).then_some(address)
}
