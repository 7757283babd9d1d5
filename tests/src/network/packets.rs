//! Whole frames, past the host's network stack (packet(7)).

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::libc;
use nix::net::if_::if_nametoindex;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

use super::Place;
use crate::background::Background;

/// The largest frame: TCP segments may be larger than the MTU.
const LARGEST: usize = 68 << 10;

/// A frame that passed an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// From the Ethernet header on. Checksums may be those that an offload would have filled in.
    pub bytes: Vec<u8>,
    /// Whether it was sent here, not received.
    pub is_outgoing: bool,
}

/// Collects the frames that pass an interface, until it is dropped.
pub struct Capture {
    caught: Arc<(Mutex<Vec<Frame>>, Condvar)>,
    _thread: Background,
}

impl Place {
    /// Sends a frame out of an interface, which must be up.
    pub fn send_frame(&self, interface: &str, frame: &[u8]) -> Result<()> {
        let (socket, address) = self.open(interface)?;
        // SAFETY: the pointers are those of whole values with these lengths.
        let sent = unsafe {
            libc::sendto(
                socket.as_raw_fd(),
                frame.as_ptr().cast(),
                frame.len(),
                0,
                (&raw const address).cast(),
                size_of_val(&address) as u32,
            )
        };
        let error = || format!("cannot send by {interface}: {}", io::Error::last_os_error());
        ensure!(usize::try_from(sent).is_ok_and(|sent| sent == frame.len()), error());
        Ok(())
    }

    /// Collects all frames that pass an interface from now on.
    pub fn capture(&self, interface: &str) -> Result<Capture> {
        let (socket, address) = self.open(interface)?;
        // SAFETY: the pointer is that of a whole value with this length.
        let bound = unsafe {
            libc::bind(socket.as_raw_fd(), (&raw const address).cast(), size_of_val(&address) as u32)
        };
        ensure!(bound == 0, "cannot listen to {interface}: {}", io::Error::last_os_error());
        let caught = Arc::new((Mutex::new(Vec::new()), Condvar::new()));
        let sink = Arc::clone(&caught);
        let thread = Background::spawn(move |end| {
            let mut buffer = vec![0; LARGEST];
            while end.or_readable(&[socket.as_fd()]) {
                if let Ok(frame) = receive(&socket, &mut buffer) {
                    sink.0.lock().unwrap_or_else(PoisonError::into_inner).push(frame);
                    sink.1.notify_all();
                }
            }
        })?;
        Ok(Capture { caught, _thread: thread })
    }

    /// A packet socket, and the address of an interface.
    fn open(&self, interface: &str) -> Result<(OwnedFd, libc::sockaddr_ll)> {
        self.inside(|| {
            let index = if_nametoindex(interface).with_context(|| format!("there is no {interface}"))?;
            // It gets nothing before it is bound.
            let socket = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, None)?;
            let mut address = no_address();
            address.sll_family = libc::AF_PACKET as u16;
            address.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
            address.sll_ifindex = index as i32;
            Ok((socket, address))
        })
    }
}

fn no_address() -> libc::sockaddr_ll {
    // SAFETY: all-zero is a value of this plain C structure.
    unsafe { std::mem::zeroed() }
}

fn receive(socket: &OwnedFd, buffer: &mut [u8]) -> io::Result<Frame> {
    let mut address = no_address();
    let mut length = size_of_val(&address) as u32;
    // SAFETY: the pointers are those of whole values with these lengths.
    let count = unsafe {
        libc::recvfrom(
            socket.as_raw_fd(),
            buffer.as_mut_ptr().cast(),
            buffer.len(),
            libc::MSG_DONTWAIT,
            (&raw mut address).cast(),
            &mut length,
        )
    };
    let count = usize::try_from(count).map_err(|_| io::Error::last_os_error())?;
    Ok(Frame { bytes: buffer[..count].to_vec(), is_outgoing: address.sll_pkttype == libc::PACKET_OUTGOING })
}

impl Capture {
    /// What has passed until now.
    pub fn frames(&self) -> Vec<Frame> {
        self.caught.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits for a frame that `is_wanted`, also among those that have passed already.
    pub fn wait_for(&self, is_wanted: impl Fn(&Frame) -> bool, patience: Duration) -> Result<Frame> {
        let deadline = Instant::now() + patience;
        let mut frames = self.caught.0.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(frame) = frames.iter().find(|frame| is_wanted(frame)) {
                return Ok(frame.clone());
            }
            let rest = deadline.saturating_duration_since(Instant::now());
            if rest.is_zero() {
                bail!("the frame did not come within {patience:?}, but {} others", frames.len());
            }
            frames = self.caught.1.wait_timeout(frames, rest).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}
