//! The private addresses of a subnet, and the ranges of a VPC: which are taken and which are left.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use crate::ids::SubnetId;
use crate::network::Cidr;
use crate::records::NetworkInterface;
use crate::state::World;

/// How many of a subnet's first addresses are nobody's: the network's own, the router's, the name server's, and one for
/// the future. The last one, the broadcast address, is not either.
const RESERVED: u32 = 4;

/// The addresses of a range that interfaces can have: the first and the last.
pub fn usable(range: Cidr) -> (u32, u32) {
    (range.first().to_bits().saturating_add(RESERVED), range.last().to_bits().saturating_sub(1))
}

/// Whether interfaces can have this address of a range.
pub fn is_usable(range: Cidr, address: Ipv4Addr) -> bool {
    let (first, last) = usable(range);
    (first..=last).contains(&address.to_bits())
}

/// The addresses that a subnet's interfaces have.
pub fn taken(world: &World, subnet: &SubnetId) -> BTreeSet<Ipv4Addr> {
    let interfaces = world.all::<NetworkInterface>().filter(|interface| interface.subnet == *subnet);
    interfaces.flat_map(|interface| interface.addresses().map(|one| one.address)).collect()
}

/// The addresses that are left, the lowest first.
pub fn free(range: Cidr, taken: &BTreeSet<Ipv4Addr>) -> impl Iterator<Item = Ipv4Addr> {
    let (first, last) = usable(range);
    (first..=last).map(Ipv4Addr::from_bits).filter(|address| !taken.contains(address))
}

/// How many addresses are left.
pub fn count_free(range: Cidr, taken: &BTreeSet<Ipv4Addr>) -> u64 {
    let (first, last) = usable(range);
    u64::from(last.saturating_sub(first) + 1).saturating_sub(taken.len() as u64)
}

/// The first part of a prefix, of the largest that fits in `range` from `prefix` to `longest`, that overlaps none of
/// these.
pub fn free_part(range: Cidr, prefix: u8, longest: u8, taken: &[Cidr]) -> Option<Cidr> {
    (prefix.max(range.prefix())..=longest)
        .find_map(|prefix| range.parts(prefix).find(|part| !taken.iter().any(|other| part.overlaps(*other))))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(text: &str) -> Cidr {
        text.parse().unwrap()
    }

    #[test]
    fn five_addresses_are_nobody_s() {
        for (cidr, first, last, count) in [
            ("10.0.0.0/24", "10.0.0.4", "10.0.0.254", 251),
            ("172.31.0.0/20", "172.31.0.4", "172.31.15.254", 4091),
            ("10.0.0.16/28", "10.0.0.20", "10.0.0.30", 11),
        ] {
            let none = BTreeSet::new();
            let all: Vec<String> = free(range(cidr), &none).map(|address| address.to_string()).collect();
            assert_eq!((all[0].as_str(), all.last().unwrap().as_str()), (first, last));
            assert_eq!((all.len() as u64, count_free(range(cidr), &none)), (count, count));
        }
        assert!(is_usable(range("10.0.0.0/28"), Ipv4Addr::new(10, 0, 0, 4)));
        assert!(!is_usable(range("10.0.0.0/28"), Ipv4Addr::new(10, 0, 0, 3)));
        assert!(!is_usable(range("10.0.0.0/28"), Ipv4Addr::new(10, 0, 0, 15)));
    }

    #[test]
    fn what_is_taken_is_not_free() {
        let taken = BTreeSet::from([4, 6, 7].map(|last| Ipv4Addr::new(10, 0, 0, last)));
        let left: Vec<Ipv4Addr> = free(range("10.0.0.0/28"), &taken).take(2).collect();
        assert_eq!(left, [5, 8].map(|last| Ipv4Addr::new(10, 0, 0, last)));
        assert_eq!(count_free(range("10.0.0.0/28"), &taken), 8);
    }

    #[test]
    fn a_free_part_is_the_first_of_the_largest_that_fit() {
        let taken = [range("10.0.0.0/20"), range("10.0.32.0/24")];
        for (whole, expected) in [
            ("10.0.0.0/16", Some("10.0.16.0/20")),
            ("10.0.0.0/19", Some("10.0.16.0/20")),
            ("10.0.32.0/20", Some("10.0.40.0/21")),
            ("10.0.0.0/24", None),
        ] {
            assert_eq!(free_part(range(whole), 20, 28, &taken), expected.map(range), "{whole}");
        }
    }
}
