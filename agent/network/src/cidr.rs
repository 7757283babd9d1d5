//! IPv4 address ranges, as in `172.31.0.0/16`.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A range of addresses that share their first bits. It begins at its first address: `10.0.0.1/8` is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Cidr {
    first: Ipv4Addr,
    prefix: u8,
}

/// Why a text is not an address range.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// It has another form.
    #[error("{0:?} is not an address range such as 172.31.0.0/16")]
    Form(String),
    /// It begins in the middle of itself.
    #[error("{given:?} does not begin at its first address: did you mean {meant}?")]
    Begin {
        /// What was given.
        given: String,
        /// The range that it is in.
        meant: Cidr,
    },
}

impl Cidr {
    /// EC2's choice for default VPCs.
    pub const DEFAULT_VPC: Self = Self { first: Ipv4Addr::new(172, 31, 0, 0), prefix: 16 };

    /// Where public addresses come from by default: reserved for measurements, and nobody's on the internet.
    pub const PUBLIC_ADDRESSES: Self = Self { first: Ipv4Addr::new(198, 19, 0, 0), prefix: 16 };

    /// What a default route has for its destination.
    pub const EVERYWHERE: Self = Self { first: Ipv4Addr::UNSPECIFIED, prefix: 0 };

    /// A range that is known when this is written.
    pub(crate) const fn constant(first: Ipv4Addr, prefix: u8) -> Self {
        Self { first, prefix }
    }

    /// The range of `1 << (32 - prefix)` addresses that an address is in. None if the prefix is more than 32.
    pub fn around(address: Ipv4Addr, prefix: u8) -> Option<Self> {
        let mask = match prefix {
            0 => 0,
            1..=32 => u32::MAX << (32 - prefix),
            _ => return None,
        };
        Some(Self { first: Ipv4Addr::from_bits(address.to_bits() & mask), prefix })
    }

    /// The first address.
    pub fn first(self) -> Ipv4Addr {
        self.first
    }

    /// The last address.
    pub fn last(self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.first.to_bits() | u32::MAX.checked_shr(self.prefix.into()).unwrap_or(0))
    }

    /// Whether all of another range is in it.
    pub fn covers(self, other: Self) -> bool {
        self.prefix <= other.prefix && self.contains(other.first)
    }

    /// The range that a text names, whichever of its addresses it begins with: `10.0.0.9/8` is `10.0.0.0/8`.
    pub fn lenient(text: &str) -> Result<Self, Malformed> {
        match text.parse() {
            Err(Malformed::Begin { meant, .. }) => Ok(meant),
            other => other,
        }
    }

    /// How many bits all addresses share: 0 to 32.
    pub fn prefix(self) -> u8 {
        self.prefix
    }

    /// How many addresses there are.
    pub fn size(self) -> u64 {
        1 << (32 - self.prefix)
    }

    /// Whether an address is in it.
    pub fn contains(self, address: Ipv4Addr) -> bool {
        (self.first..=self.last()).contains(&address)
    }

    /// Whether two ranges have an address in common.
    pub fn overlaps(self, other: Self) -> bool {
        self.contains(other.first) || other.contains(self.first)
    }

    /// The parts of a prefix, in the order of their addresses. None if it is shorter than that of the whole.
    pub fn parts(self, prefix: u8) -> impl Iterator<Item = Self> {
        let count = if (self.prefix..=32).contains(&prefix) { 1_u64 << (prefix - self.prefix) } else { 0 };
        (0..count).filter_map(move |number| {
            let offset = u32::try_from(number << (32 - prefix)).ok()?;
            Self::around(Ipv4Addr::from_bits(self.first.to_bits() + offset), prefix)
        })
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}/{}", self.first, self.prefix)
    }
}

impl FromStr for Cidr {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Self, Malformed> {
        let form = || Malformed::Form(text.to_owned());
        let (address, prefix) = text.split_once('/').ok_or_else(form)?;
        // What is not written as we would write it, such as /08, is refused.
        let number =
            prefix.parse().ok().filter(|number: &u8| number.to_string() == prefix).ok_or_else(form)?;
        let address: Ipv4Addr = address.parse().map_err(|_| form())?;
        let range = Self::around(address, number).ok_or_else(form)?;
        if range.first != address {
            return Err(Malformed::Begin { given: text.to_owned(), meant: range });
        }
        Ok(range)
    }
}

impl TryFrom<String> for Cidr {
    type Error = Malformed;

    fn try_from(text: String) -> Result<Self, Malformed> {
        text.parse()
    }
}

impl From<Cidr> for String {
    fn from(range: Cidr) -> String {
        range.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(text: &str) -> Cidr {
        text.parse().unwrap()
    }

    #[test]
    fn a_range_is_read_as_it_is_written() {
        for (text, last, size) in [
            ("0.0.0.0/0", "255.255.255.255", 1 << 32),
            ("10.0.0.0/8", "10.255.255.255", 1 << 24),
            ("172.31.16.0/20", "172.31.31.255", 4096),
            ("203.0.113.7/32", "203.0.113.7", 1),
        ] {
            let range = range(text);
            assert_eq!(range.to_string(), text);
            assert_eq!((range.last().to_string().as_str(), range.size()), (last, size));
            assert!(range.contains(range.first()) && range.contains(range.last()));
        }
    }

    #[test]
    fn what_is_not_a_range_is_refused() {
        for text in
            ["", "10.0.0.0", "10.0.0.0/", "10.0.0.0/33", "10.0.0.0/08", "10.0.0.0/+8", "10.0.0/8", "::/0"]
        {
            assert_eq!(text.parse::<Cidr>(), Err(Malformed::Form(text.into())), "{text}");
        }
        let error = "10.0.0.1/8".parse::<Cidr>().unwrap_err();
        assert_eq!(
            error.to_string(),
            "\"10.0.0.1/8\" does not begin at its first address: did you mean 10.0.0.0/8?"
        );
    }

    #[test]
    fn the_parts_of_a_range_fill_it() {
        let parts: Vec<String> = range("10.0.0.0/30").parts(31).map(String::from).collect();
        assert_eq!(parts, ["10.0.0.0/31", "10.0.0.2/31"]);
        assert_eq!(range("255.255.255.0/24").parts(25).last(), Some(range("255.255.255.128/25")));
        assert_eq!(range("0.0.0.0/0").parts(0).count(), 1);
        assert_eq!(range("10.0.0.0/24").parts(23).count(), 0);
        assert_eq!(range("10.0.0.0/24").parts(33).count(), 0);
    }

    #[test]
    fn ranges_overlap_if_one_is_in_the_other() {
        assert!(range("10.0.0.0/8").overlaps(range("10.1.0.0/16")));
        assert!(range("10.1.0.0/16").overlaps(range("10.0.0.0/8")));
        assert!(!range("10.0.0.0/16").overlaps(range("10.1.0.0/16")));
        assert!(
            range("10.0.0.0/8").covers(range("10.1.0.0/16"))
                && range("10.0.0.0/8").covers(range("10.0.0.0/8"))
        );
        assert!(!range("10.0.0.0/16").covers(range("10.0.0.0/8")));
        assert_eq!(Cidr::lenient("10.1.2.3/8"), Ok(range("10.0.0.0/8")));
    }
}
