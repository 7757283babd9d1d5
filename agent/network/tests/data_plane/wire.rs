//! Frames, as guests send and receive them.

use std::net::Ipv4Addr;

use innkeeper_network::plan::{Mac, protocol};
use innkeeper_network::verdict::Packet;

/// Bytes of a virtio-net header as a tap has it when nobody says otherwise.
pub const HEADER: usize = 10;

fn checksum(bytes: &[u8], start: u32) -> u16 {
    let mut sum = start;
    for pair in bytes.chunks(2) {
        sum += u32::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)]));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

fn ethernet(to: Mac, from: Mac, kind: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![0; HEADER];
    frame.extend(to.0);
    frame.extend(from.0);
    frame.extend(kind.to_be_bytes());
    frame.extend(payload);
    frame
}

/// The question who has an address.
pub fn arp_request(sender: (Mac, Ipv4Addr), target: Ipv4Addr) -> Vec<u8> {
    let mut packet = vec![0, 1, 8, 0, 6, 4, 0, 1];
    packet.extend(sender.0.0);
    packet.extend(sender.1.octets());
    packet.extend([0; 6]);
    packet.extend(target.octets());
    ethernet(Mac([0xff; 6]), sender.0, 0x0806, &packet)
}

/// The answer to that.
pub fn arp_reply(sender: (Mac, Ipv4Addr), asker: (Mac, Ipv4Addr)) -> Vec<u8> {
    let mut packet = vec![0, 1, 8, 0, 6, 4, 0, 2];
    packet.extend(sender.0.0);
    packet.extend(sender.1.octets());
    packet.extend(asker.0.0);
    packet.extend(asker.1.octets());
    ethernet(asker.0, sender.0, 0x0806, &packet)
}

/// Who asks for an address.
pub fn read_arp_request(frame: &[u8], target: Ipv4Addr) -> Option<(Mac, Ipv4Addr)> {
    let packet = frame.get(HEADER + 14..)?;
    let is_request = frame.get(HEADER + 12..HEADER + 14)? == [8, 6] && packet.get(6..8)? == [0, 1];
    let mac: [u8; 6] = packet.get(8..14)?.try_into().ok()?;
    let address: [u8; 4] = packet.get(14..18)?.try_into().ok()?;
    (is_request && packet.get(24..28)? == target.octets()).then_some((Mac(mac), address.into()))
}

/// Whose Ethernet address an answer tells, and which.
pub fn read_arp_reply(frame: &[u8]) -> Option<(Ipv4Addr, Mac)> {
    let packet = frame.get(HEADER + 14..)?;
    let is_reply = frame.get(HEADER + 12..HEADER + 14)? == [8, 6] && packet.get(6..8)? == [0, 2];
    let mac: [u8; 6] = packet.get(8..14)?.try_into().ok()?;
    let address: [u8; 4] = packet.get(14..18)?.try_into().ok()?;
    is_reply.then_some((address.into(), Mac(mac)))
}

/// TCP flags.
pub const SYN: u8 = 2;
/// As the answer to a SYN has them.
pub const SYN_ACK: u8 = 0x12;
/// As the rest of a connection has them.
pub const ACK: u8 = 0x10;

/// A frame with an IPv4 packet, or a part of one.
pub fn frame(to: Mac, from: Mac, packet: &[u8]) -> Vec<u8> {
    ethernet(to, from, 0x0800, packet)
}

/// An IPv4 packet. `flags` are TCP's.
pub fn ipv4(packet: Packet, flags: u8) -> Vec<u8> {
    with_header(packet, [0, 1, 0x40, 0], &payload(packet, flags))
}

/// An IPv4 packet of a protocol whose payload is longer than 8 bytes, in two fragments with a number of their own: its
/// ports are in the first one.
pub fn fragments(packet: Packet, number: u8) -> [Vec<u8>; 2] {
    let payload = payload(packet, 0);
    let (first, last) = payload.split_at(8);
    [with_header(packet, [7, number, 0x20, 0], first), with_header(packet, [7, number, 0, 1], last)]
}

/// What a router says of a packet that is too large, and how that looks where it arrives.
pub fn too_large(router: Ipv4Addr, packet: Packet) -> (Vec<u8>, Packet) {
    let told = Packet {
        source: router,
        destination: packet.source,
        protocol: protocol::ICMP,
        source_port: 0,
        destination_port: 0x0304,
    };
    // The next network's MTU is 1400.
    let mut message = vec![3, 4, 0, 0, 0, 0, 0x05, 0x78];
    message.extend(&ipv4(packet, SYN)[..28]);
    let sum = checksum(&message, 0);
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    (with_header(told, [0, 1, 0x40, 0], &message), told)
}

fn payload(packet: Packet, flags: u8) -> Vec<u8> {
    let ports = [packet.source_port.to_be_bytes(), packet.destination_port.to_be_bytes()].concat();
    let mut payload = match packet.protocol {
        protocol::ICMP => {
            let mut message = packet.destination_port.to_be_bytes().to_vec();
            message.extend([0, 0]);
            message.extend(packet.source_port.to_be_bytes());
            message.extend([0, 1]);
            message
        }
        protocol::TCP => {
            // A sequence number that fits the other side's acknowledgement: both count from 1.
            let sequence: u32 = if flags == ACK { 2 } else { 1 };
            let acknowledged: u32 = if flags == SYN { 0 } else { 2 };
            let mut segment = ports;
            segment.extend(sequence.to_be_bytes());
            segment.extend(acknowledged.to_be_bytes());
            segment.extend([0x50, flags, 0x20, 0, 0, 0, 0, 0]);
            segment
        }
        protocol::UDP => [ports, vec![0, 12, 0, 0], b"data".to_vec()].concat(),
        _ => b"payload.".to_vec(),
    };
    let at = match packet.protocol {
        protocol::ICMP => Some(2),
        protocol::TCP => Some(16),
        protocol::UDP => Some(6),
        _ => None,
    };
    if let Some(at) = at {
        let mut pseudo = Vec::new();
        if packet.protocol != protocol::ICMP {
            pseudo.extend(packet.source.octets());
            pseudo.extend(packet.destination.octets());
            pseudo.extend([0, packet.protocol]);
            pseudo.extend((payload.len() as u16).to_be_bytes());
        }
        pseudo.extend(&payload);
        let sum = checksum(&pseudo, 0);
        payload[at..at + 2].copy_from_slice(&sum.to_be_bytes());
    }
    payload
}

/// `fragment` is the number that the sender has given it, flags, and which part of it this is.
fn with_header(packet: Packet, fragment: [u8; 4], payload: &[u8]) -> Vec<u8> {
    let mut header = vec![0x45, 0];
    header.extend(((20 + payload.len()) as u16).to_be_bytes());
    header.extend(fragment);
    header.extend([64, packet.protocol, 0, 0]);
    header.extend(packet.source.octets());
    header.extend(packet.destination.octets());
    let sum = checksum(&header, 0);
    header[10..12].copy_from_slice(&sum.to_be_bytes());
    header.extend(payload);
    header
}

/// What an IPv4 packet is. None if it is something else.
pub fn read_ipv4(bytes: &[u8]) -> Option<Packet> {
    if bytes.first()? >> 4 != 4 {
        return None;
    }
    let length = usize::from(bytes.first()? & 0xf) * 4;
    let word = |at: usize| Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?));
    let address = |at: usize| Some(Ipv4Addr::from(<[u8; 4]>::try_from(bytes.get(at..at + 4)?).ok()?));
    let number = *bytes.get(9)?;
    let (source_port, destination_port) = match number {
        protocol::TCP | protocol::UDP => (word(length)?, word(length + 2)?),
        protocol::ICMP => (word(length + 4)?, word(length)?),
        _ => (0, 0),
    };
    Some(Packet {
        source: address(12)?,
        destination: address(16)?,
        protocol: number,
        source_port,
        destination_port,
    })
}
