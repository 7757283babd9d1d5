//! What things are called in Linux. Interface names have 15 bytes at most, so ids are cut: what is left has 48 bits of
//! chance.

use std::net::Ipv4Addr;

use sha2::{Digest, Sha256};

use crate::plan::Mac;

/// The interface in a VPC's namespace that leads to the host.
pub const UPLINK: &str = "uplink";

/// The next hop that stands for the internet gateway.
pub const INTERNET_GATEWAY: Ipv4Addr = Ipv4Addr::new(169, 254, 0, 1);

/// The host's next hop towards a VPC.
pub const VPC_SIDE: Ipv4Addr = Ipv4Addr::new(169, 254, 0, 2);

/// The tap of a network interface.
pub fn tap(interface: &str) -> String {
    cut("eni", interface)
}

/// The host's end of the link to a VPC.
pub fn host_link(vpc: &str) -> String {
    cut("vpc", vpc)
}

/// The Ethernet addresses of a link between a VPC and the host: the VPC's end, and the host's. They are made from the id,
/// so that each end can be told who is at the other without asking.
pub fn uplink_macs(vpc: &str) -> (Mac, Mac) {
    let digest = Sha256::digest(vpc);
    let mut bytes = [0; 6];
    for (to, from) in bytes.iter_mut().zip(digest) {
        *to = from;
    }
    let [first, b, c, d, e, f] = bytes;
    // Locally administered, and no group's.
    let first = first & 0xfc | 2;
    (Mac([first, b, c, d, e, f & 0xfe]), Mac([first, b, c, d, e, f | 1]))
}

/// A prefix of three letters, and the first 12 digits of an id.
fn cut(prefix: &str, id: &str) -> String {
    let digits = id.split_once('-').map_or(id, |(_, digits)| digits);
    prefix.chars().chain(digits.chars().filter(char::is_ascii_alphanumeric).take(12)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_fit() {
        assert_eq!(tap("eni-0123456789abcdef0"), "eni0123456789ab");
        assert_eq!(host_link("vpc-12345678"), "vpc12345678");
        assert!(tap("eni-0123456789abcdef0").len() <= 15);
    }
}
