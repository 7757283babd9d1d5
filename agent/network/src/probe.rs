//! Whether a guest answers: an ARP request (RFC 826) to its interface, as its router would send one. Every guest with an
//! address answers that, whatever its own firewall says.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::linux::Networks;
use crate::names;
use crate::plan::{Interface, Mac};

/// A question to a guest.
#[derive(Debug)]
pub struct Probe {
    socket: OwnedFd,
    tap: libc::sockaddr_ll,
    own: Mac,
    guest: Mac,
    address: Ipv4Addr,
    router: Ipv4Addr,
}

/// Ethernet, IPv4, and how long their addresses are.
const KINDS: [u8; 6] = [0, 1, 8, 0, 6, 4];
const REQUEST: [u8; 2] = [0, 1];
const REPLY: [u8; 2] = [0, 2];

impl Probe {
    /// A question to an interface of a VPC that was brought about, in the name of its subnet's router.
    pub fn open(
        networks: &Networks,
        vpc: &str,
        id: &str,
        interface: &Interface,
        router: Ipv4Addr,
    ) -> io::Result<Self> {
        let address = interface.addresses.first().map(|first| first.private);
        let address = address.ok_or_else(|| io::Error::other(format!("{id} has no address")))?;
        let name = names::tap(id);
        networks.enter(vpc, || {
            let index = nix::net::if_::if_nametoindex(name.as_str())?.cast_signed();
            let protocol = (libc::ETH_P_ARP as u16).to_be();
            let kind = libc::SOCK_DGRAM | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
            // SAFETY: no memory is involved; the descriptor is checked.
            let socket = unsafe { libc::socket(libc::AF_PACKET, kind, protocol.into()) };
            if socket < 0 {
                return Err(io::Error::last_os_error());
            }
            // SAFETY: it is open, and nobody else's.
            let socket = unsafe { OwnedFd::from_raw_fd(socket) };
            // SAFETY: all zeroes are a valid address.
            let mut tap: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
            tap.sll_family = libc::AF_PACKET as u16;
            tap.sll_protocol = protocol;
            tap.sll_ifindex = index;
            let mut length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
            // SAFETY: the address is whole, and lives as long as the call.
            if unsafe { libc::bind(socket.as_raw_fd(), (&raw const tap).cast(), length) } < 0 {
                return Err(io::Error::last_os_error());
            }
            // SAFETY: the address has room for what its length says, and lives as long as the call.
            if unsafe { libc::getsockname(socket.as_raw_fd(), (&raw mut tap).cast(), &raw mut length) } < 0 {
                return Err(io::Error::last_os_error());
            }
            let [a, b, c, d, e, f, ..] = tap.sll_addr;
            Ok(Self { socket, tap, own: Mac([a, b, c, d, e, f]), guest: interface.mac, address, router })
        })
    }

    /// Whether the guest answers within a time. Blocks for as long.
    pub fn is_answered(&self, patience: Duration) -> io::Result<bool> {
        let mut request = Vec::from(KINDS);
        request.extend(REQUEST);
        request.extend(self.own.0);
        request.extend(self.router.octets());
        request.extend([0; 6]);
        request.extend(self.address.octets());
        let mut to = self.tap;
        to.sll_halen = 6;
        for (place, byte) in to.sll_addr.iter_mut().zip(self.guest.0) {
            *place = byte;
        }
        let length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
        // SAFETY: the bytes and the address are as long as they say, and live as long as the call.
        let sent = unsafe {
            let (bytes, to) = (request.as_ptr().cast(), (&raw const to).cast());
            libc::sendto(self.socket.as_raw_fd(), bytes, request.len(), 0, to, length)
        };
        if sent < 0 {
            return Err(io::Error::last_os_error());
        }
        let deadline = Instant::now() + patience;
        loop {
            // A guest that says other things without pause does not stop the clock.
            let rest = deadline.saturating_duration_since(Instant::now());
            if rest.is_zero() {
                return Ok(false);
            }
            let timeout = PollTimeout::try_from(rest).unwrap_or(PollTimeout::ZERO);
            let mut waited = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
            if poll(&mut waited, timeout)? == 0 {
                return Ok(false);
            }
            let mut buffer = [0; 64];
            let received = nix::unistd::read(&self.socket, &mut buffer)?;
            if is_answer(buffer.get(..received).unwrap_or_default(), self.guest, self.address) {
                return Ok(true);
            }
        }
    }
}

fn is_answer(packet: &[u8], guest: Mac, address: Ipv4Addr) -> bool {
    let part = |from: usize, to: usize| packet.get(from..to);
    part(0, 6) == Some(&KINDS)
        && part(6, 8) == Some(&REPLY)
        && part(8, 14) == Some(&guest.0)
        && part(14, 18) == Some(&address.octets())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_guest_itself_answers() {
        let (guest, address) = (Mac([2, 0, 0, 0, 0, 1]), Ipv4Addr::new(10, 0, 0, 5));
        let mut reply = [&KINDS[..], &REPLY, &guest.0, &address.octets(), &[0; 10]].concat();
        assert!(is_answer(&reply, guest, address));
        assert!(!is_answer(&reply, guest, Ipv4Addr::new(10, 0, 0, 6)));
        assert!(!is_answer(&reply, Mac([2, 0, 0, 0, 0, 2]), address));
        assert!(!is_answer(&reply[..17], guest, address));
        reply[7] = 1;
        assert!(!is_answer(&reply, guest, address));
    }
}
