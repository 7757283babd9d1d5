//! Frames made by hand, as an honest host would never send them, and a look into those that come.
//!
//! Each function adds one header to what it is given, with lengths and checksums as they should be; who wants them
//! wrong changes the bytes afterwards.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddrV4};
use std::str::FromStr;

use anyhow::{Context, Result, ensure};

/// EtherType of IPv4.
pub const IPV4: u16 = 0x0800;
/// EtherType of ARP.
pub const ARP: u16 = 0x0806;
/// EtherType of IPv6.
pub const IPV6: u16 = 0x86dd;
/// IP protocol number of ICMP.
pub const ICMP: u8 = 1;
/// IP protocol number of TCP.
pub const TCP: u8 = 6;
/// IP protocol number of UDP.
pub const UDP: u8 = 17;
/// IP protocol number of ICMPv6.
pub const ICMPV6: u8 = 58;

/// A hardware address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// That of everybody.
    pub const BROADCAST: Self = Self([0xff; 6]);
}

impl FromStr for Mac {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let what = || format!("{text:?} is not a hardware address");
        let bytes = text.split(':').map(|pair| u8::from_str_radix(pair, 16)).collect::<Result<Vec<_>, _>>();
        Ok(Self(bytes.with_context(what)?.try_into().ok().with_context(what)?))
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, f] = self.0;
        write!(formatter, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}")
    }
}

/// An Ethernet frame with this EtherType.
pub fn ethernet(destination: Mac, source: Mac, kind: u16, payload: &[u8]) -> Vec<u8> {
    [&destination.0[..], &source.0, &kind.to_be_bytes(), payload].concat()
}

/// What ARP says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ArpOperation {
    /// Who has the target's address?
    Request = 1,
    /// The sender has.
    Reply = 2,
}

/// One of the two that an ARP packet is about.
pub type ArpParty = (Mac, Ipv4Addr);

/// An ARP packet (RFC 826).
pub fn arp(operation: ArpOperation, sender: ArpParty, target: ArpParty) -> Vec<u8> {
    let head = [0, 1, 8, 0, 6, 4, 0, operation as u8];
    [&head[..], &sender.0.0, &sender.1.octets(), &target.0.0, &target.1.octets()].concat()
}

/// An IPv4 packet without options (RFC 791).
pub fn ipv4(source: Ipv4Addr, destination: Ipv4Addr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let [length_high, length_low] = (20 + payload.len() as u16).to_be_bytes();
    let mut header = vec![0x45, 0, length_high, length_low, 0, 0, 0x40, 0, 64, protocol, 0, 0];
    header.extend([source.octets(), destination.octets()].concat());
    let sum = checksum(&[&header]);
    header[10..12].copy_from_slice(&sum.to_be_bytes());
    [&header, payload].concat()
}

/// A UDP datagram over IPv4, without the IPv4 header (RFC 768).
pub fn udp(source: SocketAddrV4, destination: SocketAddrV4, payload: &[u8]) -> Vec<u8> {
    let length = 8 + payload.len() as u16;
    let numbers = [source.port(), destination.port(), length, 0].map(u16::to_be_bytes).concat();
    let mut datagram = [&numbers, payload].concat();
    let sum = match checksum(&[&pseudo_header(*source.ip(), *destination.ip(), UDP, length), &datagram]) {
        // 0 would be that there is none.
        0 => 0xffff,
        sum => sum,
    };
    datagram[6..8].copy_from_slice(&sum.to_be_bytes());
    datagram
}

/// A whole frame with a UDP datagram over IPv4.
pub fn udp_frame(destination: (Mac, SocketAddrV4), source: (Mac, SocketAddrV4), payload: &[u8]) -> Vec<u8> {
    let datagram = udp(source.1, destination.1, payload);
    let packet = ipv4(*source.1.ip(), *destination.1.ip(), UDP, &datagram);
    ethernet(destination.0, source.0, IPV4, &packet)
}

/// An ICMP message of any type and code (RFC 792); `rest` is what follows the checksum.
pub fn icmp(kind: u8, code: u8, rest: &[u8]) -> Vec<u8> {
    let mut message = [&[kind, code, 0, 0], rest].concat();
    let sum = checksum(&[&message]);
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    message
}

/// An ICMP echo request.
pub fn echo_request(id: u16, sequence: u16, payload: &[u8]) -> Vec<u8> {
    icmp(8, 0, &[&id.to_be_bytes(), &sequence.to_be_bytes(), payload].concat())
}

/// A TCP segment over IPv4 that has nothing but its header, such as a SYN (`flags` 2) (RFC 9293).
pub fn tcp(source: SocketAddrV4, destination: SocketAddrV4, sequence: u32, flags: u8) -> Vec<u8> {
    let mut segment = [source.port(), destination.port()].map(u16::to_be_bytes).concat();
    segment.extend(sequence.to_be_bytes());
    segment.extend([0, 0, 0, 0, 0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
    let sum = checksum(&[&pseudo_header(*source.ip(), *destination.ip(), TCP, 20), &segment]);
    segment[16..18].copy_from_slice(&sum.to_be_bytes());
    segment
}

/// An IPv6 packet without extension headers (RFC 8200). Its hop limit is 255, which neighbour discovery wants.
pub fn ipv6(source: Ipv6Addr, destination: Ipv6Addr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let [length_high, length_low] = (payload.len() as u16).to_be_bytes();
    let header = [0x60, 0, 0, 0, length_high, length_low, protocol, 255];
    [&header[..], &source.octets(), &destination.octets(), payload].concat()
}

/// A whole frame by which `source` says to all that it is a router, and that they are to make themselves addresses with
/// this prefix of 64 bits (RFC 4861 §4.2).
pub fn router_advertisement(source: (Mac, Ipv6Addr), prefix: Ipv6Addr) -> Vec<u8> {
    let all = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
    let minutes = |count: u32| (count * 60).to_be_bytes();
    let router = [&[134, 0, 0, 0, 64, 0][..], &[0x07, 0x08], &[0; 8]].concat();
    let link = [&[1, 1], &source.0.0[..]].concat();
    let information = [&[3, 4, 64, 0xc0][..], &minutes(30), &minutes(15), &[0; 4], &prefix.octets()].concat();
    let mut message = [router, link, information].concat();
    let length = (message.len() as u32).to_be_bytes();
    let pseudo = [&source.1.octets()[..], &all.octets(), &length, &[0, 0, 0, ICMPV6]].concat();
    let sum = checksum(&[&pseudo, &message]);
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    let packet = ipv6(source.1, all, ICMPV6, &message);
    ethernet(Mac([0x33, 0x33, 0, 0, 0, 1]), source.0, IPV6, &packet)
}

/// The answer to a DHCP message of a client (RFC 2131): its type (2 an offer, 5 an acknowledgement, 6 a refusal), the
/// address that it gets, who says so, and further options by number.
pub fn dhcp_answer(
    request: &[u8],
    kind: u8,
    address: Ipv4Addr,
    server: Ipv4Addr,
    options: &[(u8, &[u8])],
) -> Result<Vec<u8>> {
    // The message type and what it consists of up to the magic number of the options.
    ensure!(request.len() >= 240 && request[0] == 1, "not a client's DHCP message");
    let mut answer = request[..240].to_vec();
    answer[0] = 2;
    answer[16..20].copy_from_slice(&address.octets());
    answer[20..24].copy_from_slice(&server.octets());
    let own = [(53, &[kind][..]), (54, &server.octets())];
    for (number, value) in own.iter().chain(options) {
        answer.extend([*number, u8::try_from(value.len())?]);
        answer.extend(*value);
    }
    answer.push(255);
    // Shorter ones are not taken by everybody (RFC 1542 §2.1).
    answer.resize(answer.len().max(300), 0);
    Ok(answer)
}

/// The value of an option in a DHCP message.
pub fn dhcp_option(message: &[u8], wanted: u8) -> Option<&[u8]> {
    let mut options = message.get(240..)?;
    loop {
        match *options {
            [0, ref rest @ ..] => options = rest,
            [number, length, ref rest @ ..] if number != 255 => {
                let (value, rest) = rest.split_at_checked(usize::from(length))?;
                if number == wanted {
                    return Some(value);
                }
                options = rest;
            }
            _ => return None,
        }
    }
}

/// Destination, source, EtherType and payload of a frame.
pub fn parse_ethernet(frame: &[u8]) -> Option<(Mac, Mac, u16, &[u8])> {
    let (destination, rest) = frame.split_first_chunk()?;
    let (source, rest) = rest.split_first_chunk()?;
    let (kind, payload) = rest.split_first_chunk()?;
    Some((Mac(*destination), Mac(*source), u16::from_be_bytes(*kind), payload))
}

/// Source, destination, protocol and payload of an IPv4 packet.
pub fn parse_ipv4(packet: &[u8]) -> Option<(Ipv4Addr, Ipv4Addr, u8, &[u8])> {
    let header = packet.first_chunk::<20>()?;
    let address = |at: usize| Ipv4Addr::new(header[at], header[at + 1], header[at + 2], header[at + 3]);
    let length = usize::from(u16::from_be_bytes([header[2], header[3]]));
    let payload = packet.get(usize::from(header[0] & 15) * 4..length.min(packet.len()))?;
    (header[0] >> 4 == 4).then_some((address(12), address(16), header[9], payload))
}

/// Source port, destination port and payload of a UDP datagram.
pub fn parse_udp(datagram: &[u8]) -> Option<(u16, u16, &[u8])> {
    let (header, payload) = datagram.split_first_chunk::<8>()?;
    let number = |at: usize| u16::from_be_bytes([header[at], header[at + 1]]);
    Some((number(0), number(2), payload))
}

/// Source, destination and payload of a whole frame with UDP over IPv4.
pub fn parse_udp_frame(frame: &[u8]) -> Option<(SocketAddrV4, SocketAddrV4, &[u8])> {
    let (_, _, _, packet) = parse_ethernet(frame).filter(|(_, _, kind, _)| *kind == IPV4)?;
    let (source, destination, _, datagram) =
        parse_ipv4(packet).filter(|(_, _, protocol, _)| *protocol == UDP)?;
    let (from, to, payload) = parse_udp(datagram)?;
    Some((SocketAddrV4::new(source, from), SocketAddrV4::new(destination, to), payload))
}

/// Operation, sender and target of an ARP packet.
pub fn parse_arp(packet: &[u8]) -> Option<(u16, ArpParty, ArpParty)> {
    let (head, rest) = packet.split_first_chunk::<8>()?;
    let (sender, rest) = parse_arp_party(rest)?;
    let (target, _) = parse_arp_party(rest)?;
    (head[..6] == [0, 1, 8, 0, 6, 4]).then_some((u16::from_be_bytes([head[6], head[7]]), sender, target))
}

fn parse_arp_party(bytes: &[u8]) -> Option<(ArpParty, &[u8])> {
    let (mac, rest) = bytes.split_first_chunk()?;
    let (address, rest) = rest.split_first_chunk::<4>()?;
    Some(((Mac(*mac), Ipv4Addr::from(*address)), rest))
}

fn pseudo_header(source: Ipv4Addr, destination: Ipv4Addr, protocol: u8, length: u16) -> Vec<u8> {
    [&source.octets()[..], &destination.octets(), &[0, protocol], &length.to_be_bytes()].concat()
}

/// The internet checksum (RFC 1071) over these parts, of which all but the last have an even length.
pub fn checksum(parts: &[&[u8]]) -> u16 {
    let pairs = parts.iter().flat_map(|part| part.chunks(2));
    let words = pairs.map(|pair| u32::from(pair[0]) << 8 | pair.get(1).map_or(0, |low| u32::from(*low)));
    let mut sum = words.fold(0u64, |sum, word| sum + u64::from(word));
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: Ipv4Addr = Ipv4Addr::new(192, 168, 0, 1);
    const OTHER: Ipv4Addr = Ipv4Addr::new(192, 168, 0, 199);
    const MAC: Mac = Mac([2, 0, 0, 0, 0, 0xab]);

    #[test]
    fn hardware_addresses_are_read_and_written() {
        assert_eq!("02:00:00:00:00:ab".parse::<Mac>().unwrap(), MAC);
        assert_eq!(MAC.to_string(), "02:00:00:00:00:ab");
        for text in ["", "02:00:00:00:00", "02:00:00:00:00:100", "02:00:00:00:00:ab:cd", "x2:00:00:00:00:ab"]
        {
            assert!(text.parse::<Mac>().is_err(), "{text}");
        }
    }

    /// The example of many textbooks.
    #[test]
    fn a_header_has_the_known_checksum() {
        let header =
            [0x45, 0, 0, 0x73, 0, 0, 0x40, 0, 0x40, 0x11, 0, 0, 0xc0, 0xa8, 0, 1, 0xc0, 0xa8, 0, 0xc7];
        assert_eq!(checksum(&[&header]), 0xb861);
        let packet = ipv4(ONE, OTHER, UDP, &[7; 95]);
        assert_eq!(packet[10..12], [0xb8, 0x61]);
        assert_eq!(checksum(&[&packet[..20]]), 0, "over itself");
        assert_eq!(parse_ipv4(&packet).unwrap(), (ONE, OTHER, UDP, &[7; 95][..]));
    }

    #[test]
    fn datagrams_are_right_and_are_found_again() {
        let (from, to) = (SocketAddrV4::new(ONE, 68), SocketAddrV4::new(OTHER, 67));
        for payload in [&b""[..], b"x", b"even"] {
            let datagram = udp(from, to, payload);
            let pseudo = pseudo_header(ONE, OTHER, UDP, datagram.len() as u16);
            assert_eq!(checksum(&[&pseudo, &datagram]), 0);
            let frame = udp_frame((Mac::BROADCAST, to), (MAC, from), payload);
            assert_eq!(parse_udp_frame(&frame), Some((from, to, payload)));
            for length in 0..frame.len() {
                // Whatever comes of it.
                let _ = parse_udp_frame(&frame[..length]);
            }
        }
        let syn = tcp(from, to, 1, 2);
        assert_eq!(checksum(&[&pseudo_header(ONE, OTHER, TCP, 20), &syn]), 0);
        assert_eq!(checksum(&[&echo_request(1, 2, b"odd")]), 0);
    }

    #[test]
    fn arp_is_found_again() {
        let packet = arp(ArpOperation::Reply, (MAC, ONE), (Mac::BROADCAST, OTHER));
        assert_eq!(packet.len(), 28);
        assert_eq!(parse_arp(&packet), Some((2, (MAC, ONE), (Mac::BROADCAST, OTHER))));
        assert_eq!(parse_arp(&packet[..27]), None);
    }

    #[test]
    fn an_answer_is_to_its_request() {
        let mut request = vec![0; 240];
        request[0] = 1;
        request[4..8].copy_from_slice(b"xid!");
        request.extend([0, 53, 1, 1, 255]);
        assert_eq!(dhcp_option(&request, 53), Some(&[1][..]));
        let answer = dhcp_answer(&request, 2, ONE, OTHER, &[(1, &[255, 255, 255, 0])]).unwrap();
        assert_eq!((&answer[4..8], answer[0]), (&b"xid!"[..], 2));
        assert_eq!(dhcp_option(&answer, 53), Some(&[2][..]));
        assert_eq!(dhcp_option(&answer, 54), Some(&OTHER.octets()[..]));
        assert_eq!(dhcp_option(&answer, 1), Some(&[255, 255, 255, 0][..]));
        assert_eq!(dhcp_option(&answer, 3), None);
        assert!(dhcp_answer(&answer, 2, ONE, OTHER, &[]).is_err(), "a server's");
    }

    #[test]
    fn an_advertisement_has_its_parts() {
        let router = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
        let frame = router_advertisement((MAC, router), Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0));
        // Ethernet, IPv6, the advertisement, the router's hardware address, the prefix.
        assert_eq!(frame.len(), 14 + 40 + 16 + 8 + 32);
        let (pseudo, message) = (&frame[22..54], &frame[54..]);
        let length = [0, 0, 0, message.len() as u8, 0, 0, 0, ICMPV6];
        assert_eq!(checksum(&[pseudo, &length, message]), 0);
    }
}
