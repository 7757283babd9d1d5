//! Ethernet addresses.

use std::fmt;
use std::str::FromStr;

/// The 6 bytes of an EUI-48.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MacAddress([u8; 6]);

/// Why a text is not an address of an interface.
#[derive(Debug, thiserror::Error)]
#[error("a MAC address is six pairs of hexadecimal digits with colons, and not a multicast address")]
pub struct InvalidMac;

impl MacAddress {
    /// An address made up from a number: locally administered, unicast. The same number gives the same one.
    pub fn from_number(number: u64) -> Self {
        const LOCAL_UNICAST: u8 = 0x02;
        let [a, b, c, d, e, ..] = number.to_le_bytes();
        Self([LOCAL_UNICAST, a, b, c, d, e])
    }

    /// The bytes in the order they are sent in.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl FromStr for MacAddress {
    type Err = InvalidMac;

    fn from_str(text: &str) -> Result<Self, InvalidMac> {
        const MULTICAST: u8 = 1;
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts.next().ok_or(InvalidMac)?;
            if part.len() != 2 || !part.bytes().all(|digit| digit.is_ascii_hexdigit()) {
                return Err(InvalidMac);
            }
            *byte = u8::from_str_radix(part, 16).map_err(|_| InvalidMac)?;
        }
        if parts.next().is_some() || bytes[0] & MULTICAST != 0 || bytes == [0; 6] {
            return Err(InvalidMac);
        }
        Ok(Self(bytes))
    }
}

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts() {
        let mac: MacAddress = "02:ab:CD:00:11:ff".parse().unwrap();
        assert_eq!(mac.to_string(), "02:ab:cd:00:11:ff");
        for bad in [
            "",
            "02:ab:cd:00:11",
            "02:ab:cd:00:11:ff:00",
            "2:ab:cd:00:11:ff",
            "03:00:00:00:00:01",
            "00:00:00:00:00:00",
            "+2:ab:cd:00:11:ff",
        ] {
            assert!(bad.parse::<MacAddress>().is_err(), "{bad}");
        }
        assert_eq!(MacAddress::from_number(0x05_0403_0201).to_string(), "02:01:02:03:04:05");
    }
}
