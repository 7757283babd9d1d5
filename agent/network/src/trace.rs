//! Why a packet was dropped.
//!
//! A [`Tracer`] sees every packet that comes into a VPC's namespace and every one that leaves it. One that comes and does
//! not leave was dropped, and the plan says why: [`crate::verdict`]. What the plan would let pass was stopped by something
//! that only the kernel knows, such as a connection that it has never heard of.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::libc;

use crate::linux::Networks;
use crate::names;
use crate::plan::{Vpc, protocol};
use crate::verdict::{End, Packet, Passage, Refusal};

/// How long a packet may take through the namespace.
const PASSAGE: Duration = Duration::from_millis(200);
/// How often the socket is looked at.
const PAUSE: Duration = Duration::from_millis(5);
/// The most packets that are remembered of one look.
const MAX_PACKETS: usize = 10_000;
/// As much of a packet as is looked at.
const SNAPSHOT: usize = 128;

/// What became of a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Traced {
    /// When it was seen, since the look began.
    pub at: Duration,
    /// The interface that it came from; none is the outside.
    pub from: Option<String>,
    /// The packet, as it came.
    pub packet: Packet,
    /// Where it went, or why nowhere.
    pub fate: Fate,
}

/// What became of a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It left, or was for the VPC's own services.
    Passed,
    /// The plan does not let it pass.
    Refused(Refusal),
    /// The plan does, but the kernel did not: it belongs to no connection that is known, or nobody took it.
    Lost,
}

/// Sees the packets of a VPC.
#[derive(Debug)]
pub struct Tracer {
    socket: OwnedFd,
    /// Interfaces by their number in the namespace; none is the uplink.
    interfaces: BTreeMap<i32, Option<String>>,
}

/// A packet as the socket has it.
struct Seen {
    at: Instant,
    interface: i32,
    is_outgoing: bool,
    identification: u16,
    packet: Packet,
}

impl Tracer {
    /// Begins to look. The plan's VPC was brought about.
    pub fn open(networks: &Networks, vpc: &Vpc) -> io::Result<Self> {
        let taps: Vec<(String, String)> =
            vpc.interfaces.keys().map(|id| (names::tap(id), id.clone())).collect();
        networks.enter(&vpc.id, || {
            let mut interfaces = BTreeMap::new();
            let index = |name: &str| nix::net::if_::if_nametoindex(name).ok().map(u32::cast_signed);
            interfaces.extend(index(names::UPLINK).map(|index| (index, None)));
            for (tap, id) in taps {
                interfaces.extend(index(&tap).map(|index| (index, Some(id))));
            }
            // Who asks for one protocol only does not see what leaves.
            let protocol = (libc::ETH_P_ALL as u16).to_be();
            let kind = libc::SOCK_DGRAM | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
            // SAFETY: no memory is involved; the descriptor is checked.
            let socket = unsafe { libc::socket(libc::AF_PACKET, kind, protocol.into()) };
            if socket < 0 {
                return Err(io::Error::last_os_error());
            }
            // SAFETY: it is open, and nobody else's.
            Ok(Self { socket: unsafe { OwnedFd::from_raw_fd(socket) }, interfaces })
        })
    }

    /// Looks for some time, and says what became of the packets from and to these addresses, private or public.
    pub fn look(&self, vpc: &Vpc, addresses: &[Ipv4Addr], time: Duration) -> io::Result<Vec<Traced>> {
        let begin = Instant::now();
        let mut seen = Vec::new();
        // What has come at last gets its time too.
        while begin.elapsed() < time + PASSAGE && seen.len() < MAX_PACKETS {
            match self.receive()? {
                Received::Packet(packet) => seen.push(packet),
                Received::Other => {}
                Received::Nothing => std::thread::sleep(PAUSE),
            }
        }
        let services = crate::routes::addresses(vpc);
        let concerned =
            |packet: &Packet| addresses.contains(&packet.source) || addresses.contains(&packet.destination);
        let came = seen.iter().filter(|one| !one.is_outgoing && concerned(&one.packet));
        let came = came.filter(|one| one.at.duration_since(begin) < time);
        let traced = came.filter_map(|one| {
            let from = self.interfaces.get(&one.interface)?;
            let fate =
                if is_for_services(&services, one.packet) || seen.iter().any(|other| has_left(one, other)) {
                    Fate::Passed
                } else {
                    explain(vpc, from.as_deref(), one.packet).map_or_else(Fate::Refused, |_| Fate::Lost)
                };
            let at = one.at.duration_since(begin);
            Some(Traced { at, from: from.clone(), packet: one.packet, fate })
        });
        Ok(traced.collect())
    }

    fn receive(&self) -> io::Result<Received> {
        let mut buffer = [0_u8; SNAPSHOT];
        // SAFETY: all zeroes are a valid address.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        let mut length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
        // SAFETY: buffer and address are as long as they say, and live as long as the call.
        let received = unsafe {
            libc::recvfrom(
                self.socket.as_raw_fd(),
                buffer.as_mut_ptr().cast(),
                buffer.len(),
                libc::MSG_TRUNC,
                (&raw mut address).cast(),
                &raw mut length,
            )
        };
        let Ok(received) = usize::try_from(received) else {
            let error = io::Error::last_os_error();
            return if error.kind() == io::ErrorKind::WouldBlock {
                Ok(Received::Nothing)
            } else {
                Err(error)
            };
        };
        let bytes = buffer.get(..received.min(SNAPSHOT)).unwrap_or_default();
        // What is no IPv4 packet is looked at no further.
        let packet = match address.sll_protocol == (libc::ETH_P_IP as u16).to_be() {
            true => read(bytes),
            false => None,
        };
        Ok(packet.map_or(Received::Other, |(packet, identification)| {
            Received::Packet(Seen {
                at: Instant::now(),
                interface: address.sll_ifindex,
                is_outgoing: address.sll_pkttype == libc::PACKET_OUTGOING,
                identification,
                packet,
            })
        }))
    }
}

/// What the socket has.
enum Received {
    /// A packet.
    Packet(Seen),
    /// Something else.
    Other,
    /// Nothing now.
    Nothing,
}

/// What becomes of a packet as it comes in, by the plan.
fn explain(vpc: &Vpc, from: Option<&str>, packet: Packet) -> Result<Passage, Refusal> {
    match from {
        Some(interface) => vpc.sends(interface, packet),
        // What answers a NAT gateway belongs to a connection, or to none.
        None if vpc.nat_gateways.values().any(|gateway| gateway.public == packet.destination) => {
            Ok(Passage { to: End::Outside, packet })
        }
        None => vpc.receives(packet),
    }
}

/// Whether a packet is one that has come, on its way out: one of its ends may have been translated.
fn has_left(came: &Seen, other: &Seen) -> bool {
    let (one, two) = (came.packet, other.packet);
    let has_same_source = (one.source, one.source_port) == (two.source, two.source_port);
    let has_same_destination =
        (one.destination, one.destination_port) == (two.destination, two.destination_port);
    other.is_outgoing
        && other.identification == came.identification
        && one.protocol == two.protocol
        && (has_same_source || has_same_destination)
        && other.at + PAUSE >= came.at
        && other.at.duration_since(came.at) <= PASSAGE
}

/// Whether a packet is for the services in the namespace, which pass whatever the plan says.
fn is_for_services(services: &BTreeSet<Ipv4Addr>, packet: Packet) -> bool {
    services.contains(&packet.destination) || packet.destination.is_broadcast()
}

/// What an IPv4 packet is, and the number that its sender has given it.
fn read(bytes: &[u8]) -> Option<(Packet, u16)> {
    let first = *bytes.first()?;
    let word = |at: usize| Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?));
    let address = |at: usize| Some(Ipv4Addr::from(<[u8; 4]>::try_from(bytes.get(at..at + 4)?).ok()?));
    if first >> 4 != 4 {
        return None;
    }
    let payload = usize::from(first & 0xf) * 4;
    let number = *bytes.get(9)?;
    let (source_port, destination_port) = match number {
        protocol::TCP | protocol::UDP => (word(payload)?, word(payload + 2)?),
        protocol::ICMP => (word(payload + 4).unwrap_or(0), word(payload)?),
        _ => (0, 0),
    };
    let packet = Packet {
        source: address(12)?,
        destination: address(16)?,
        protocol: number,
        source_port,
        destination_port,
    };
    Some((packet, word(4)?))
}

impl std::fmt::Display for Traced {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Packet { source, destination, protocol: number, source_port, destination_port } = self.packet;
        match number {
            protocol::TCP => {
                write!(formatter, "tcp {source}:{source_port} to {destination}:{destination_port}")?
            }
            protocol::UDP => {
                write!(formatter, "udp {source}:{source_port} to {destination}:{destination_port}")?
            }
            protocol::ICMP => {
                let [kind, code] = destination_port.to_be_bytes();
                write!(formatter, "icmp type {kind} code {code} {source} to {destination}")?;
            }
            other => write!(formatter, "protocol {other} {source} to {destination}")?,
        }
        match &self.fate {
            Fate::Passed => write!(formatter, ": passed"),
            Fate::Refused(refusal) => write!(formatter, ": dropped, {refusal}"),
            Fate::Lost => write!(formatter, ": dropped, it belongs to no connection that was let through"),
        }
    }
}
