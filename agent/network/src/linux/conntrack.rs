//! Connections that the kernel tracks in the namespace of the calling thread: they are looked through, and some are
//! forgotten (linux/netfilter/nfnetlink_conntrack.h).

use std::io;
use std::net::Ipv4Addr;

use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};

/// The addresses of a connection, as its first packet had them, and as its answers have them. They differ where addresses
/// are translated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connection {
    /// Who has begun it, and with whom.
    pub original: (Ipv4Addr, Ipv4Addr),
    /// Who answers, and to whom.
    pub reply: (Ipv4Addr, Ipv4Addr),
}

impl Connection {
    /// Whether an address is one of its ends, before or after translation.
    pub fn concerns(&self, is_meant: impl Fn(Ipv4Addr) -> bool) -> bool {
        [self.original.0, self.original.1, self.reply.0, self.reply.1].into_iter().any(is_meant)
    }
}

/// `IPCTNL_MSG_CT_GET` and `IPCTNL_MSG_CT_DELETE` of the subsystem `NFNL_SUBSYS_CTNETLINK`.
const GET: u16 = 1 << 8 | 1;
const DELETE: u16 = 1 << 8 | 2;
/// `NLM_F_REQUEST`, with `NLM_F_ACK` or `NLM_F_DUMP`.
const REQUEST_ACKNOWLEDGED: u16 = 1 | 4;
const REQUEST_ALL: u16 = 1 | 0x300;
/// `NLMSG_ERROR` and `NLMSG_DONE`.
const ERROR: u16 = 2;
const DONE: u16 = 3;
/// Attributes: the two tuples of a connection, the addresses in a tuple, and the two of them.
const TUPLE_ORIGINAL: u16 = 1;
const TUPLE_REPLY: u16 = 2;
const TUPLE_IP: u16 = 1;
const IP_SOURCE: u16 = 1;
const IP_DESTINATION: u16 = 2;
/// Bytes of `nlmsghdr`, and of `nfgenmsg` after it.
const HEADER: usize = 16;
const HEADERS: usize = HEADER + 4;

/// Forgets the connections for which this is true; returns how many.
pub fn forget(is_stale: impl Fn(&Connection) -> bool) -> io::Result<usize> {
    if is_idle() {
        return Ok(0);
    }
    let socket = Socket::new(NETLINK_NETFILTER)?;
    socket.connect(&SocketAddr::new(0, 0))?;
    let mut stale = Vec::new();
    send(&socket, GET, REQUEST_ALL, &[])?;
    receive(&socket, |attributes| {
        if let Some((connection, original)) = read(attributes)
            && is_stale(&connection)
        {
            stale.push(original.to_vec());
        }
    })?;
    for original in &stale {
        send(&socket, DELETE, REQUEST_ACKNOWLEDGED, original)?;
        match receive(&socket, |_| {}) {
            // It has ended by itself.
            Err(error) if error.raw_os_error() == Some(nix::libc::ENOENT) => {}
            result => result?,
        }
    }
    Ok(stale.len())
}

/// Whether there is none at all. To look through them takes as long as the host's table is large, some 10 ms, however few of
/// the namespace's are in it.
fn is_idle() -> bool {
    let count = std::fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_count");
    count.is_ok_and(|count| count.trim() == "0")
}

fn send(socket: &Socket, kind: u16, flags: u16, attributes: &[u8]) -> io::Result<()> {
    let length = u32::try_from(HEADERS + attributes.len()).map_err(io::Error::other)?;
    let mut request = length.to_ne_bytes().to_vec();
    request.extend(kind.to_ne_bytes());
    request.extend(flags.to_ne_bytes());
    // Sequence and port; then the family, the version, which is 0, and nothing.
    request.extend([0; 8]);
    request.extend([nix::libc::AF_INET as u8, 0, 0, 0]);
    request.extend(attributes);
    socket.send(&request, 0)?;
    Ok(())
}

/// Receives an answer, and hands on what its messages hold.
fn receive(socket: &Socket, mut each: impl FnMut(&[u8])) -> io::Result<()> {
    loop {
        let (bytes, _) = socket.recv_from_full()?;
        let mut rest = bytes.as_slice();
        while let (Some(length), Some(kind)) = (word32(rest, 0), word(rest, 4)) {
            let length = usize::try_from(length).map_err(io::Error::other)?;
            match kind {
                DONE | ERROR => {
                    let code = word32(rest, HEADER).unwrap_or(0).cast_signed();
                    return if code == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(-code)) };
                }
                _ => each(rest.get(HEADERS..length).unwrap_or_default()),
            }
            rest = rest.get(length.max(HEADER).next_multiple_of(4)..).unwrap_or_default();
        }
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn word32(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

/// The attribute of a kind, with its header, in a list of them.
fn attribute(mut list: &[u8], wanted: u16) -> Option<&[u8]> {
    /// Flags in the kind: that it holds attributes, and that it is big-endian.
    const FLAGS: u16 = 0xc000;
    loop {
        let length = usize::from(word(list, 0)?);
        if word(list, 2)? & !FLAGS == wanted {
            return list.get(..length.max(4).next_multiple_of(4)).or_else(|| list.get(..length));
        }
        list = list.get(length.max(4).next_multiple_of(4)..)?;
    }
}

/// A connection, and the attribute by which it is named.
fn read(attributes: &[u8]) -> Option<(Connection, &[u8])> {
    let addresses = |tuple: &[u8]| {
        let ip = attribute(tuple.get(4..)?, TUPLE_IP)?;
        let address = |kind| {
            let bytes: [u8; 4] = attribute(ip.get(4..)?, kind)?.get(4..8)?.try_into().ok()?;
            Some(Ipv4Addr::from(bytes))
        };
        Some((address(IP_SOURCE)?, address(IP_DESTINATION)?))
    };
    let original = attribute(attributes, TUPLE_ORIGINAL)?;
    let reply = attribute(attributes, TUPLE_REPLY)?;
    Some((Connection { original: addresses(original)?, reply: addresses(reply)? }, original))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_header(kind: u16, value: &[u8]) -> Vec<u8> {
        let mut bytes = ((4 + value.len()) as u16).to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    fn tuple(kind: u16, source: Ipv4Addr, destination: Ipv4Addr) -> Vec<u8> {
        let ip = [with_header(1, &source.octets()), with_header(2, &destination.octets())].concat();
        let protocol = with_header(2 | 0x8000, &with_header(1, &[6]));
        with_header(kind | 0x8000, &[with_header(1 | 0x8000, &ip), protocol].concat())
    }

    #[test]
    fn a_connection_is_read_and_named() {
        let [a, b, c] = [1, 2, 3].map(|last| Ipv4Addr::new(10, 0, 0, last));
        let original = tuple(TUPLE_ORIGINAL, a, b);
        let attributes = [with_header(3, &[0; 4]), original.clone(), tuple(TUPLE_REPLY, b, c)].concat();
        let (connection, name) = read(&attributes).unwrap();
        assert_eq!(connection, Connection { original: (a, b), reply: (b, c) });
        assert_eq!(name, original);
        assert!(connection.concerns(|address| address == c));
        for length in 0..attributes.len() - 1 {
            let _ = read(&attributes[..length]);
        }
    }
}
