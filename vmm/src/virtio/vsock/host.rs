//! The host's half of a vsock device: what a controller has attached to it, and what was counted. It outlives the
//! guest's resets, and the devices that are made for them.

use std::collections::BTreeMap;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use innkeeper_protocol::VsockMetrics;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr, accept4, getsockopt, sendmsg,
    socketpair, sockopt,
};

use crate::metrics::Counter;

/// Context ids below are reserved, and this one too (section 5.10.4).
const FIRST_CID: u32 = 3;
const RESERVED_CID: u32 = u32::MAX;

/// No socket can be bound to this port (`VMADDR_PORT_ANY`).
const PORT_ANY: u32 = u32::MAX;

/// Why a controller cannot have the vsock device that it wants.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum Error {
    #[error("a guest's context id is {FIRST_CID} or more, and not {RESERVED_CID}")]
    Cid,
    #[error("the listener for vsock connections must be a listening Unix stream socket")]
    Listener,
    #[error("connections to a vsock port go to a connected Unix SOCK_SEQPACKET socket")]
    Stream,
    #[error("there is no vsock port {PORT_ANY}")]
    Port,
    #[error("preparing the listener for vsock connections failed")]
    Prepare(#[source] io::Error),
}

/// Where a guest's connections go and where those to it come from. Shared by the devices that serve one machine after
/// the other, and by whoever attaches things meanwhile.
#[derive(Debug)]
pub struct VsockHost {
    cid: u32,
    listener: Option<OwnedFd>,
    /// By port: where to send the host's end of a new connection.
    ports: Mutex<BTreeMap<u32, OwnedFd>>,
    pub(super) counts: Counts,
}

/// What is counted.
#[derive(Debug, Default)]
pub(super) struct Counts {
    /// How many there are now, those included that one side has asked for. A number that also falls, and that only
    /// the device's thread writes.
    pub connections: AtomicU64,
    pub accepted: Counter,
    pub refused: Counter,
    /// By the guest, from the host.
    pub received_bytes: Counter,
    /// By the guest, to the host.
    pub sent_bytes: Counter,
}

impl VsockHost {
    /// The half of a guest with context id `cid`, 3 or more and not 4294967295. Programs that want to connect to the
    /// guest connect to `listener`, a listening Unix stream socket, which becomes a non-blocking one.
    pub fn new(cid: u32, listener: Option<OwnedFd>) -> Result<Self, Error> {
        if !(FIRST_CID..RESERVED_CID).contains(&cid) {
            return Err(Error::Cid);
        }
        if let Some(listener) = &listener {
            let is_listening = is_unix(listener, SockType::Stream)
                && getsockopt(listener, sockopt::AcceptConn).is_ok_and(|accepts| accepts);
            if !is_listening {
                return Err(Error::Listener);
            }
            // A program that gives up between the event and `accept4` must not stop the device.
            set_nonblocking(listener).map_err(Error::Prepare)?;
        }
        Ok(Self { cid, listener, ports: Mutex::default(), counts: Counts::default() })
    }

    /// The guest's context id.
    pub fn cid(&self) -> u32 {
        self.cid
    }

    /// From now on the guest can connect to the host's port `port`. Each connection goes to `stream`, a connected
    /// `SOCK_SEQPACKET` socket, as a packet of one byte that holds the descriptor of a stream socket. If its reader
    /// is gone or does not keep up, the guest's connections are refused. Replaces what was there for this port;
    /// connections that were made stay.
    pub fn listen(&self, port: u32, stream: OwnedFd) -> Result<(), Error> {
        if port == PORT_ANY {
            return Err(Error::Port);
        }
        if !is_unix(&stream, SockType::SeqPacket) {
            return Err(Error::Stream);
        }
        self.ports.lock().unwrap_or_else(PoisonError::into_inner).insert(port, stream);
        Ok(())
    }

    /// What was counted; bytes as the guest sees them.
    pub fn metrics(&self) -> VsockMetrics {
        VsockMetrics {
            connections: self.counts.connections.load(Ordering::Relaxed),
            accepted: self.counts.accepted.get(),
            refused: self.counts.refused.get(),
            received_bytes: self.counts.received_bytes.get(),
            sent_bytes: self.counts.sent_bytes.get(),
        }
    }

    pub(super) fn listener(&self) -> Option<BorrowedFd<'_>> {
        self.listener.as_ref().map(AsFd::as_fd)
    }

    /// The next program that wants to talk to the guest. Does not block.
    pub(super) fn accept(&self) -> nix::Result<OwnedFd> {
        let listener = self.listener.as_ref().ok_or(nix::Error::EAGAIN)?;
        let fd = accept4(listener.as_raw_fd(), SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC)?;
        // SAFETY: the kernel has just made this descriptor for us, and nobody else knows it.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    }

    /// Hands a new connection to whoever has `port`, and returns the guest's end of it. None if nobody has the port,
    /// or nobody takes the connection. Does not block.
    pub(super) fn connect(&self, port: u32) -> Option<OwnedFd> {
        let mut ports = self.ports.lock().unwrap_or_else(PoisonError::into_inner);
        let stream = ports.get(&port)?;
        match hand_over(stream) {
            Ok(socket) => Some(socket),
            Err(error) => {
                tracing::debug!(port, %error, "nobody takes the guest's connection");
                if matches!(error, nix::Error::EPIPE | nix::Error::ECONNRESET | nix::Error::ENOTCONN) {
                    // It will not come back.
                    ports.remove(&port);
                }
                None
            }
        }
    }
}

/// Makes a connection and sends one end of it over `stream`; returns the other.
fn hand_over(stream: &OwnedFd) -> nix::Result<OwnedFd> {
    // Whether the other end blocks is for its owner to say, so ours is not made non-blocking with it.
    let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::Stream, None, SockFlag::SOCK_CLOEXEC)?;
    let descriptors = [theirs.as_raw_fd()];
    let rights = [ControlMessage::ScmRights(&descriptors)];
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
    sendmsg::<UnixAddr>(stream.as_raw_fd(), &[IoSlice::new(&[0])], &rights, flags, None)?;
    Ok(ours)
}

fn is_unix(socket: &OwnedFd, kind: SockType) -> bool {
    // An address of any other family is not one of this type.
    nix::sys::socket::getsockname::<UnixAddr>(socket.as_raw_fd()).is_ok()
        && getsockopt(socket, sockopt::SockType).is_ok_and(|found| found == kind)
}

fn set_nonblocking(socket: &OwnedFd) -> io::Result<()> {
    let flags = OFlag::from_bits_retain(fcntl(socket, FcntlArg::F_GETFL)?);
    fcntl(socket, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::{UnixListener, UnixStream};

    fn pair(kind: SockType) -> (OwnedFd, OwnedFd) {
        socketpair(AddressFamily::Unix, kind, None, SockFlag::SOCK_CLOEXEC).unwrap()
    }

    #[test]
    fn reserved_context_ids_are_refused() {
        for cid in [0, 1, 2, u32::MAX] {
            assert!(matches!(VsockHost::new(cid, None), Err(Error::Cid)), "{cid}");
        }
        for cid in [3, u32::MAX - 1] {
            assert_eq!(VsockHost::new(cid, None).unwrap().cid(), cid);
        }
    }

    #[test]
    fn sockets_of_other_kinds_are_refused() {
        let file: OwnedFd = std::fs::File::open("/dev/null").unwrap().into();
        let tcp: OwnedFd = std::net::TcpListener::bind("127.0.0.1:0").unwrap().into();
        let connected: OwnedFd = UnixStream::pair().unwrap().0.into();
        for fd in [file, tcp, connected] {
            assert!(matches!(VsockHost::new(3, Some(fd.try_clone().unwrap())), Err(Error::Listener)));
            assert!(matches!(VsockHost::new(3, None).unwrap().listen(1, fd), Err(Error::Stream)));
        }
        let (stream, _other) = pair(SockType::SeqPacket);
        assert!(matches!(VsockHost::new(3, None).unwrap().listen(u32::MAX, stream), Err(Error::Port)));
    }

    #[test]
    fn the_listener_does_not_block() {
        let folder = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(folder.path().join("vsock")).unwrap();
        let host = VsockHost::new(3, Some(listener.into())).unwrap();
        assert_eq!(host.accept().unwrap_err(), nix::Error::EAGAIN);
        assert_eq!(VsockHost::new(3, None).unwrap().accept().unwrap_err(), nix::Error::EAGAIN);
    }

    #[test]
    fn a_port_is_forgotten_with_its_reader() {
        let host = VsockHost::new(3, None).unwrap();
        assert!(host.connect(1).is_none());
        let (ours, theirs) = pair(SockType::SeqPacket);
        host.listen(1, ours).unwrap();
        assert!(host.connect(1).is_some());
        assert!(host.connect(2).is_none());
        drop(theirs);
        assert!(host.connect(1).is_none());
        assert!(host.ports.lock().unwrap().is_empty());
    }

    #[test]
    fn a_reader_that_does_not_keep_up_is_waited_for_by_nobody() {
        let host = VsockHost::new(3, None).unwrap();
        let (ours, _theirs) = pair(SockType::SeqPacket);
        host.listen(1, ours).unwrap();
        let taken = std::iter::from_fn(|| host.connect(1)).take(10_000).count();
        assert!((1..10_000).contains(&taken), "{taken}");
        assert!(host.ports.lock().unwrap().contains_key(&1), "the reader may catch up");
    }
}
