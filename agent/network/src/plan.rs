//! What a VPC is, as far as its network is concerned: plain data, in EC2's words, that everything else here is made of.
//!
//! A plan is whole. Whoever has one can say what becomes of each packet ([`crate::verdict`]), and what Linux has to be
//! told ([`crate::ruleset`], [`crate::routes`]).

use std::collections::BTreeMap;
use std::fmt;
use std::net::Ipv4Addr;
use std::ops::RangeInclusive;

use crate::Cidr;

/// A VPC.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Vpc {
    /// `vpc-…`.
    pub id: String,
    /// Its ranges; the first one is the one that it was made with.
    pub cidrs: Vec<Cidr>,
    /// Whether an internet gateway is attached.
    pub has_internet_gateway: bool,
    /// By id.
    pub subnets: BTreeMap<String, Subnet>,
    /// By id.
    pub route_tables: BTreeMap<String, Vec<Route>>,
    /// By id.
    pub acls: BTreeMap<String, Vec<AclEntry>>,
    /// By id.
    pub groups: BTreeMap<String, Vec<GroupRule>>,
    /// Those that somebody uses, by id.
    pub interfaces: BTreeMap<String, Interface>,
    /// By id.
    pub nat_gateways: BTreeMap<String, NatGateway>,
    /// How many packets each interface may send to the VPC's services, in a second: 2 or more. None is as many as it likes.
    pub service_packets: Option<u32>,
}

/// A subnet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subnet {
    /// Its range: at most 28 bits of prefix.
    pub cidr: Cidr,
    /// The id of its route table.
    pub route_table: String,
    /// The id of its network ACL.
    pub acl: String,
}

/// A route. That within the VPC is not among them: nothing takes its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// Whereto.
    pub destination: Cidr,
    /// By which way.
    pub target: Target,
}

/// The way of a route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// The VPC's internet gateway.
    InternetGateway,
    /// A NAT gateway, by its id.
    NatGateway(String),
    /// An interface, by its id.
    Interface(String),
    /// One that is gone.
    Blackhole,
}

/// A NAT gateway for the internet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NatGateway {
    /// Its subnet's id.
    pub subnet: String,
    /// Its address in there.
    pub private: Ipv4Addr,
    /// Its elastic address.
    pub public: Ipv4Addr,
}

/// A network interface of an instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Its subnet's id.
    pub subnet: String,
    /// Its Ethernet address.
    pub mac: Mac,
    /// Its addresses; the first one is its primary one.
    pub addresses: Vec<Address>,
    /// Its security groups' ids.
    pub groups: Vec<String>,
    /// Whether it sends and receives only what is its own (`sourceDestCheck`).
    pub source_dest_check: bool,
}

/// An address of an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    /// What the guest knows.
    pub private: Ipv4Addr,
    /// What others outside know.
    pub public: Option<Ipv4Addr>,
}

/// An entry of a network ACL. Those with lower numbers come first; what none is about is denied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AclEntry {
    /// 1 to 32766.
    pub number: u16,
    /// Whether it is about what leaves the subnet.
    pub is_egress: bool,
    /// Whether it lets through.
    pub allows: bool,
    /// What it is about.
    pub traffic: Traffic,
    /// With whom.
    pub peer: Cidr,
}

/// A rule of a security group, which lets through.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupRule {
    /// `sgr-…`.
    pub id: String,
    /// Whether it is about what leaves the interface.
    pub is_egress: bool,
    /// What it is about.
    pub traffic: Traffic,
    /// With whom.
    pub peer: Peer,
}

/// The other side of a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Peer {
    /// Addresses.
    Range(Cidr),
    /// The private addresses of a group's interfaces, by its id.
    Group(String),
}

impl Peer {
    /// Whether it is everybody.
    pub fn is_anywhere(&self) -> bool {
        matches!(self, Self::Range(range) if range.prefix() == 0)
    }
}

/// A kind of packets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Traffic {
    /// All.
    All,
    /// TCP to these ports.
    Tcp(RangeInclusive<u16>),
    /// UDP to these ports.
    Udp(RangeInclusive<u16>),
    /// ICMP of this type and code; none is all.
    Icmp(Option<u8>, Option<u8>),
    /// An IP protocol, by its number, whatever it has for ports.
    Protocol(u8),
}

/// IP protocol numbers.
pub mod protocol {
    /// ICMP.
    pub const ICMP: u8 = 1;
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
}

impl Traffic {
    /// Whether it is all of a protocol.
    pub fn is_all_of(&self, number: u8) -> bool {
        match self {
            Self::All => true,
            Self::Tcp(ports) => number == protocol::TCP && is_full(ports),
            Self::Udp(ports) => number == protocol::UDP && is_full(ports),
            Self::Icmp(kind, code) => number == protocol::ICMP && kind.is_none() && code.is_none(),
            Self::Protocol(own) => *own == number,
        }
    }
}

fn is_full(ports: &RangeInclusive<u16>) -> bool {
    *ports == (0..=u16::MAX)
}

/// Ranges of addresses that are nobody's in a VPC and nobody's outside: this network, loopback, link-local and multicast
/// addresses, and all above (RFC 6890).
pub const NOBODYS: [Cidr; 4] = [
    Cidr::constant(Ipv4Addr::new(0, 0, 0, 0), 8),
    Cidr::constant(Ipv4Addr::new(127, 0, 0, 0), 8),
    Cidr::constant(Ipv4Addr::new(169, 254, 0, 0), 16),
    Cidr::constant(Ipv4Addr::new(224, 0, 0, 0), 3),
];

/// An Ethernet address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mac(pub [u8; 6]);

impl fmt::Display for Mac {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, f] = self.0;
        write!(formatter, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}")
    }
}

/// What is not an Ethernet address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not an Ethernet address such as 02:00:00:00:00:01")]
pub struct NotAMac(pub String);

impl std::str::FromStr for Mac {
    type Err = NotAMac;

    fn from_str(text: &str) -> Result<Self, NotAMac> {
        let parsed = || {
            let mut bytes = [0; 6];
            let mut parts = text.split(':');
            for byte in &mut bytes {
                let part = parts.next().filter(|part| part.len() == 2 && !part.starts_with('+'))?;
                *byte = u8::from_str_radix(part, 16).ok()?;
            }
            parts.next().is_none().then_some(Self(bytes))
        };
        parsed().ok_or_else(|| NotAMac(text.to_owned()))
    }
}

impl Vpc {
    /// The interface that has a private address.
    pub fn owner(&self, address: Ipv4Addr) -> Option<(&str, &Interface)> {
        let has = |interface: &Interface| interface.addresses.iter().any(|own| own.private == address);
        self.interfaces
            .iter()
            .find(|(_, interface)| has(interface))
            .map(|(id, interface)| (id.as_str(), interface))
    }

    /// Whether an address is in one of its ranges.
    pub fn contains(&self, address: Ipv4Addr) -> bool {
        self.cidrs.iter().any(|range| range.contains(address))
    }

    /// The private addresses of a group's interfaces.
    pub fn members(&self, group: &str) -> impl Iterator<Item = Ipv4Addr> {
        let members = self.interfaces.values().filter(move |one| one.groups.iter().any(|own| own == group));
        members.flat_map(|interface| interface.addresses.iter().map(|address| address.private))
    }

    /// The route that a subnet has for an address outside of the VPC: the one with the longest prefix.
    pub fn route(&self, subnet: &str, destination: Ipv4Addr) -> Option<&Route> {
        let table = self.route_tables.get(&self.subnets.get(subnet)?.route_table)?;
        let fits = table.iter().filter(|route| route.destination.contains(destination));
        fits.max_by_key(|route| route.destination.prefix())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ethernet_address_is_read_as_it_is_written() {
        let mac: Mac = "02:aB:00:ff:10:09".parse().unwrap();
        assert_eq!(mac.to_string(), "02:ab:00:ff:10:09");
        for wrong in ["", "02:00:00:00:00", "02:00:00:00:00:01:02", "2:00:00:00:00:01", "02:00:00:00:00:+1"] {
            assert!(wrong.parse::<Mac>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_longest_prefix_wins() {
        let route = |destination: &str, target| Route { destination: destination.parse().unwrap(), target };
        let vpc = Vpc {
            subnets: [(
                "subnet-1".to_owned(),
                Subnet {
                    cidr: "10.0.0.0/24".parse().unwrap(),
                    route_table: "rtb-1".into(),
                    acl: "acl-1".into(),
                },
            )]
            .into(),
            route_tables: [(
                "rtb-1".to_owned(),
                vec![
                    route("0.0.0.0/0", Target::InternetGateway),
                    route("192.168.0.0/16", Target::Blackhole),
                    route("192.168.7.0/24", Target::Interface("eni-1".into())),
                ],
            )]
            .into(),
            ..Vpc::default()
        };
        for (address, target) in [
            ("192.168.7.1", Target::Interface("eni-1".into())),
            ("192.168.8.1", Target::Blackhole),
            ("8.8.8.8", Target::InternetGateway),
        ] {
            assert_eq!(vpc.route("subnet-1", address.parse().unwrap()).unwrap().target, target, "{address}");
        }
        assert_eq!(vpc.route("subnet-2", "8.8.8.8".parse().unwrap()), None);
    }
}
