//! Datagram sockets that tell by which interface and to which of our addresses something has come, and send it back the
//! same way.

use std::io::{self, IoSlice, IoSliceMut};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use nix::libc;
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, SockaddrIn, bind,
    recvmsg, sendmsg, setsockopt, socket, sockopt,
};
use tokio::io::unix::AsyncFd;

mod ioctl {
    nix::ioctl_readwrite_bad!(interface_name, nix::libc::SIOCGIFNAME, nix::libc::ifreq);
}

/// The largest datagram that anybody sends us.
const LARGEST: usize = 4096;

/// How long a service rests after an error.
const REST: Duration = Duration::from_millis(5);

/// A datagram that has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Datagram {
    /// What it says.
    pub bytes: Vec<u8>,
    /// Who has sent it.
    pub peer: SocketAddrV4,
    /// By which interface.
    pub interface: i32,
    /// To which address of ours, or a broadcast address.
    pub to: Ipv4Addr,
}

/// A datagram socket.
#[derive(Debug)]
pub struct Socket {
    inner: AsyncFd<OwnedFd>,
}

/// Opens a socket for all addresses of the calling thread's namespace.
pub fn open(port: u16) -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(AddressFamily::Inet, SockType::Datagram, flags, None)?;
    setsockopt(&socket, sockopt::Ipv4PacketInfo, &true)?;
    setsockopt(&socket, sockopt::Broadcast, &true)?;
    bind(socket.as_raw_fd(), &SockaddrIn::from(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port)))?;
    Ok(socket)
}

impl Socket {
    /// Lets the runtime watch a socket.
    pub fn new(socket: OwnedFd) -> io::Result<Self> {
        // SAFETY: an OwnedFd is open, stays the same one, and is not given away before the AsyncFd is.
        let inner = unsafe { AsyncFd::register(socket) }.map_err(io::Error::from)?;
        Ok(Self { inner })
    }

    /// The next datagram.
    pub async fn receive(&self) -> io::Result<Datagram> {
        // Whoever sends without pause keeps nobody else waiting.
        tokio::task::coop::consume_budget().await;
        loop {
            let mut ready = self.inner.readable().await?;
            match ready.try_io(|socket| receive(socket.get_ref())) {
                Ok(Ok(Some(datagram))) => return Ok(datagram),
                Ok(Ok(None)) => {}
                // What ICMP has said of a datagram of ours, or no memory for the moment: the service goes on.
                Ok(Err(error)) => {
                    tracing::debug!(%error, "a datagram was not received");
                    tokio::time::sleep(REST).await;
                }
                Err(_) => {}
            }
        }
    }

    /// Sends something, by the interface with this number and from this address of ours. What cannot be sent is lost, as
    /// datagrams are.
    pub fn send(&self, bytes: &[u8], to: SocketAddrV4, interface: i32, from: Ipv4Addr) {
        let information = libc::in_pktinfo {
            ipi_ifindex: interface,
            ipi_spec_dst: libc::in_addr { s_addr: u32::from_ne_bytes(from.octets()) },
            ipi_addr: libc::in_addr { s_addr: 0 },
        };
        let (slices, control) = ([IoSlice::new(bytes)], [ControlMessage::Ipv4PacketInfo(&information)]);
        let socket = self.inner.get_ref().as_raw_fd();
        if let Err(error) = sendmsg(socket, &slices, &control, MsgFlags::empty(), Some(&SockaddrIn::from(to)))
        {
            tracing::debug!(%to, %error, "an answer was not sent");
        }
    }

    /// The name of an interface of the socket's namespace.
    pub fn interface_name(&self, interface: i32) -> io::Result<String> {
        // SAFETY: all zeroes are a valid ifreq.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        request.ifr_ifru.ifru_ifindex = interface;
        // SAFETY: the request is a whole ifreq that lives as long as the call.
        unsafe { ioctl::interface_name(self.inner.get_ref().as_raw_fd(), &raw mut request) }?;
        let bytes = request.ifr_name.iter().map(|byte| byte.cast_unsigned()).take_while(|byte| *byte != 0);
        String::from_utf8(bytes.collect()).map_err(io::Error::other)
    }
}

/// Receives a datagram. None is one that cannot be answered.
fn receive(socket: &OwnedFd) -> io::Result<Option<Datagram>> {
    let mut bytes = vec![0; LARGEST];
    let mut control = nix::cmsg_space!(libc::in_pktinfo);
    let (length, peer, information) = {
        let mut slices = [IoSliceMut::new(&mut bytes)];
        let flags = MsgFlags::empty();
        let message = recvmsg::<SockaddrIn>(socket.as_raw_fd(), &mut slices, Some(&mut control), flags)?;
        let information = message.cmsgs()?.find_map(|one| match one {
            ControlMessageOwned::Ipv4PacketInfo(information) => Some(information),
            _ => None,
        });
        (message.bytes, message.address, information)
    };
    bytes.truncate(length);
    let (Some(peer), Some(information)) = (peer, information) else { return Ok(None) };
    let to = Ipv4Addr::from(information.ipi_addr.s_addr.to_ne_bytes());
    Ok(Some(Datagram { bytes, peer: peer.into(), interface: information.ipi_ifindex, to }))
}
