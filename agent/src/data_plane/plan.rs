//! From the records to what the network of a VPC is.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use innkeeper_network::plan::{
    AclEntry, Address, GroupRule, Interface, NatGateway, Peer, Route, Subnet, Target, Traffic, Vpc, protocol,
};

use crate::ids::VpcId;
use crate::network::{Cidr, routes};
use crate::records::{
    self, Connectivity, Instance, InternetGateway, NetworkAcl, NetworkInterface, RouteTable, RouteTarget,
    SecurityGroup,
};
use crate::state::World;

/// The plan of a VPC's network. None if nobody in it uses it.
pub fn plan(world: &World, vpc: &VpcId) -> Option<Vpc> {
    let record = world.get::<records::Vpc>(vpc)?;
    let interfaces: BTreeMap<String, Interface> =
        used(world, vpc).filter_map(|one| Some((one.id.to_string(), interface(one)?))).collect();
    if interfaces.is_empty() {
        return None;
    }
    let subnets = world.all::<records::Subnet>().filter(|subnet| subnet.vpc == *vpc).filter_map(|subnet| {
        let plan = Subnet {
            cidr: subnet.cidr,
            route_table: routes::table_of(world, subnet)?.id.to_string(),
            acl: subnet.network_acl.network_acl.to_string(),
        };
        Some((subnet.id.to_string(), plan))
    });
    let tables = world.all::<RouteTable>().filter(|table| table.vpc == *vpc);
    let acls = world.all::<NetworkAcl>().filter(|acl| acl.vpc == *vpc);
    let groups = world.all::<SecurityGroup>().filter(|group| group.vpc == *vpc);
    let gateways = world.all::<records::NatGateway>().filter(|gateway| gateway.vpc == *vpc);
    Some(Vpc {
        id: vpc.to_string(),
        cidrs: record.cidrs().collect(),
        has_internet_gateway: world.all::<InternetGateway>().any(|gateway| gateway.vpc.as_ref() == Some(vpc)),
        subnets: subnets.collect(),
        route_tables: tables.map(|table| (table.id.to_string(), routes_of(world, vpc, table))).collect(),
        acls: acls.map(|acl| (acl.id.to_string(), acl.entries.iter().map(entry).collect())).collect(),
        groups: groups
            .map(|group| (group.id.to_string(), group.rules.iter().filter_map(rule).collect()))
            .collect(),
        nat_gateways: gateways
            .filter_map(|gateway| Some((gateway.id.to_string(), nat_gateway(gateway)?)))
            .collect(),
        interfaces,
        service_packets: None,
    })
}

/// The interfaces of a VPC whose instances have a VMM, or are about to.
pub fn used<'w>(world: &'w World, vpc: &'w VpcId) -> impl Iterator<Item = &'w NetworkInterface> {
    let has_vmm = |interface: &&NetworkInterface| {
        let instance = interface.instance().and_then(|id| world.get::<Instance>(id));
        instance.is_some_and(|instance| instance.lifecycle.state.holds_capacity())
    };
    world.all::<NetworkInterface>().map(AsRef::as_ref).filter(|one| one.vpc == *vpc).filter(has_vmm)
}

fn interface(record: &NetworkInterface) -> Option<Interface> {
    let addresses = record.addresses().map(|own| Address {
        private: own.address,
        public: own.public.as_ref().map(|public| public.address),
    });
    Some(Interface {
        subnet: record.subnet.to_string(),
        mac: record.mac.parse().ok()?,
        addresses: addresses.collect(),
        groups: record.groups.iter().map(ToString::to_string).collect(),
        source_dest_check: record.source_dest_check,
    })
}

fn routes_of(world: &World, vpc: &VpcId, table: &RouteTable) -> Vec<Route> {
    let routes = table.routes.iter().filter_map(|route| {
        let target = match &route.target {
            // Whatever is in the VPC's ranges is found without.
            RouteTarget::Local => return None,
            _ if routes::is_blackhole(world, vpc, route) => Target::Blackhole,
            RouteTarget::InternetGateway(_) => Target::InternetGateway,
            RouteTarget::NatGateway(id) => Target::NatGateway(id.to_string()),
            RouteTarget::NetworkInterface(id) => Target::Interface(id.to_string()),
        };
        Some(Route { destination: route.destination, target })
    });
    routes.collect()
}

fn nat_gateway(record: &records::NatGateway) -> Option<NatGateway> {
    if !record.is_there() || record.connectivity != Connectivity::Public {
        return None;
    }
    Some(NatGateway {
        subnet: record.subnet.to_string(),
        private: record.private_address,
        public: record.public_address?,
    })
}

fn entry(record: &records::AclEntry) -> AclEntry {
    let ports = |ports: Option<(u16, u16)>| ports.map_or(0..=u16::MAX, |(first, last)| first..=last);
    let traffic = match record.protocol {
        None => Traffic::All,
        Some(protocol::TCP) => Traffic::Tcp(ports(record.ports)),
        Some(protocol::UDP) => Traffic::Udp(ports(record.ports)),
        Some(protocol::ICMP) => {
            let (kind, code) = record.icmp.unwrap_or((-1, -1));
            Traffic::Icmp(u8::try_from(kind).ok(), u8::try_from(code).ok())
        }
        Some(other) => Traffic::Protocol(other),
    };
    AclEntry {
        number: record.number,
        is_egress: record.egress,
        allows: record.allow,
        traffic,
        peer: record.cidr,
    }
}

/// A rule of a group. None if it is about IPv6, of which there is none here.
fn rule(record: &records::Rule) -> Option<GroupRule> {
    let peer = match &record.peer {
        records::Peer::Ipv4(range) => Peer::Range(range.parse::<Cidr>().ok()?),
        records::Peer::Group(group) => Peer::Group(group.to_string()),
        records::Peer::Ipv6(_) | records::Peer::PrefixList(_) => return None,
    };
    let ports = || match (record.from_port, record.to_port) {
        (Some(first), Some(last)) if first >= 0 => range(first, last),
        _ => Some(0..=u16::MAX),
    };
    let part = |number: Option<i32>| number.and_then(|number| u8::try_from(number).ok());
    let traffic = match record.protocol.as_str() {
        "-1" => Traffic::All,
        "tcp" => Traffic::Tcp(ports()?),
        "udp" => Traffic::Udp(ports()?),
        "icmp" => Traffic::Icmp(part(record.from_port), part(record.to_port)),
        "icmpv6" => return None,
        number => Traffic::Protocol(number.parse().ok()?),
    };
    Some(GroupRule { id: record.id.to_string(), is_egress: record.is_egress, traffic, peer })
}

fn range(first: i32, last: i32) -> Option<RangeInclusive<u16>> {
    Some(u16::try_from(first).ok()?..=u16::try_from(last).ok()?)
}
