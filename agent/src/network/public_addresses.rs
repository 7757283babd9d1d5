//! The pool of public addresses, from which instances and elastic addresses take theirs.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::sync::Arc;

use crate::config::Config;
use crate::ids::AllocationId;
use crate::network::Cidr;
use crate::records::{ElasticAddress, ElasticAssociation, NetworkInterface, PrivateAddress, PublicAddress};
use crate::state::{Draft, World};

/// A range of this prefix or a longer one has no network address, no broadcast address, and none for the host.
const SMALL: u8 = 31;

/// The addresses of some ranges.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pool {
    /// The first and the last of each range that can be given out.
    ranges: Vec<(u32, u32)>,
    host: Option<Ipv4Addr>,
}

impl Pool {
    /// The pool of these ranges.
    pub fn new(ranges: &[Cidr]) -> Self {
        let host = ranges.first().filter(|range| range.prefix() < SMALL);
        let host = host.map(|range| Ipv4Addr::from_bits(range.first().to_bits().saturating_add(1)));
        let usable = |range: &Cidr| {
            let (first, last) = (range.first().to_bits(), range.last().to_bits());
            let skipped = match host {
                _ if range.prefix() >= SMALL => return (first, last),
                Some(host) if range.contains(host) => 2,
                _ => 1,
            };
            (first.saturating_add(skipped), last.saturating_sub(1))
        };
        Self { ranges: ranges.iter().map(usable).collect(), host }
    }

    /// The host's own address on the side of the instances, which is never given out: the first one of the first range,
    /// unless that is too small to have one.
    pub fn host_address(&self) -> Option<Ipv4Addr> {
        self.host
    }

    /// Whether an address can be given out.
    pub fn contains(&self, address: Ipv4Addr) -> bool {
        self.ranges.iter().any(|(first, last)| (*first..=*last).contains(&address.to_bits()))
    }

    /// How many addresses can be given out, with those that are.
    pub fn size(&self) -> u64 {
        self.ranges.iter().map(|(first, last)| u64::from(last - first) + 1).sum()
    }

    fn nth(&self, mut number: u64) -> Option<Ipv4Addr> {
        for (first, last) in &self.ranges {
            let size = u64::from(last - first) + 1;
            if let Some(behind) = number.checked_sub(size) {
                number = behind;
            } else {
                return Some(Ipv4Addr::from_bits(first.saturating_add(u32::try_from(number).ok()?)));
            }
        }
        None
    }

    /// The next address that nobody has, from the one of this number on.
    pub fn free(&self, taken: &BTreeSet<Ipv4Addr>, from: u64) -> Option<Ipv4Addr> {
        let size = self.size();
        let mut numbers = (0..size).map(|offset| (from % size + offset) % size);
        numbers.find_map(|number| self.nth(number).filter(|address| !taken.contains(address)))
    }
}

/// The public addresses that somebody has, of whatever kind: none of them is given to anybody else.
pub fn taken(world: &World) -> BTreeSet<Ipv4Addr> {
    let elastic = world.all::<ElasticAddress>().map(|elastic| elastic.public_address);
    let interfaces = world.all::<NetworkInterface>();
    let of_interfaces = interfaces.flat_map(|interface| {
        interface.addresses().filter_map(|one| one.public.as_ref().map(|public| public.address))
    });
    elastic.chain(of_interfaces).collect()
}

/// Where an elastic address is: the interface, and which of its addresses it stands for.
pub fn association<'w>(
    world: &'w World,
    allocation: &AllocationId,
) -> Option<(&'w Arc<NetworkInterface>, &'w PrivateAddress, &'w ElasticAssociation)> {
    world.all::<NetworkInterface>().find_map(|interface| {
        interface.addresses().find_map(|address| {
            let elastic = address.public.as_ref()?.elastic.as_ref()?;
            (elastic.allocation == *allocation).then_some((interface, address, elastic))
        })
    })
}

/// An address that nobody has. As in EC2, it is any of them: what was given back a moment ago may still be in somebody's
/// memory.
pub fn choose(world: &World, config: &Config) -> Option<Ipv4Addr> {
    Pool::new(&config.public_addresses).free(&taken(world), rand::random())
}

/// Gives an interface its automatic address, if it is to have one and has none yet, nor an elastic one. Without effect
/// when the pool is empty: an instance is worth more than its public address.
pub fn give_automatic(draft: &mut Draft, config: &Config, interface: impl AsRef<str>) {
    let is_wanted = draft
        .get::<NetworkInterface>(&interface)
        .is_some_and(|found| found.associate_public_address && found.primary.public.is_none());
    if !is_wanted {
        return;
    }
    let Some(address) = choose(draft, config) else {
        tracing::warn!(interface = interface.as_ref(), "there is no public address left for an interface");
        return;
    };
    draft.update::<NetworkInterface>(interface, |found| {
        found.primary.public = Some(PublicAddress { address, elastic: None });
    });
}

/// Takes an interface's automatic address back. An elastic one stays.
pub fn take_automatic(draft: &mut Draft, interface: impl AsRef<str>) {
    let is_automatic =
        |found: &NetworkInterface| found.primary.public.as_ref().is_some_and(|one| one.elastic.is_none());
    if draft.get::<NetworkInterface>(&interface).is_some_and(|found| is_automatic(found)) {
        draft.update::<NetworkInterface>(interface, |found| found.primary.public = None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(ranges: &[&str]) -> Pool {
        let ranges: Vec<Cidr> = ranges.iter().map(|range| range.parse().unwrap()).collect();
        Pool::new(&ranges)
    }

    fn address(text: &str) -> Ipv4Addr {
        text.parse().unwrap()
    }

    #[test]
    fn a_pool_has_what_is_neither_the_hosts_nor_everybodys() {
        for (ranges, host, first, last, size) in [
            (&["198.19.0.0/16"][..], Some("198.19.0.1"), "198.19.0.2", "198.19.255.254", 65_533),
            (&["203.0.113.0/28"], Some("203.0.113.1"), "203.0.113.2", "203.0.113.14", 13),
            (&["203.0.113.7/32"], None, "203.0.113.7", "203.0.113.7", 1),
            (
                &["203.0.113.0/29", "192.0.2.0/29", "192.0.2.8/31"],
                Some("203.0.113.1"),
                "203.0.113.2",
                "192.0.2.9",
                5 + 6 + 2,
            ),
        ] {
            let pool = pool(ranges);
            assert_eq!(pool.host_address(), host.map(address), "{ranges:?}");
            assert_eq!(pool.size(), size, "{ranges:?}");
            assert_eq!(pool.nth(0), Some(address(first)), "{ranges:?}");
            assert_eq!(pool.nth(size - 1), Some(address(last)), "{ranges:?}");
            assert_eq!(pool.nth(size), None, "{ranges:?}");
            assert!((0..size.min(99)).all(|number| pool.contains(pool.nth(number).unwrap())));
        }
        let pool = pool(&["203.0.113.0/28"]);
        for outside in ["203.0.113.0", "203.0.113.1", "203.0.113.15", "203.0.113.16"] {
            assert!(!pool.contains(address(outside)), "{outside}");
        }
    }

    #[test]
    fn what_is_taken_is_not_given_again() {
        let pool = pool(&["203.0.113.0/29"]);
        let mut taken = BTreeSet::new();
        for expected in [5, 6, 2, 3, 4] {
            let found = pool.free(&taken, 3 + 10 * pool.size()).unwrap();
            assert_eq!(found, Ipv4Addr::new(203, 0, 113, expected));
            taken.insert(found);
        }
        assert_eq!(pool.free(&taken, 3), None);
        assert_eq!(super::Pool::new(&[]).free(&BTreeSet::new(), 7), None);
    }
}
