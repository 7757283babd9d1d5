//! The socket device (section 5.10): stream connections between programs in the guest and programs on the host.
//!
//! On the host, a connection is a Unix stream socket. A program that wants to reach a port of the guest connects to
//! the device's listener and says which one ([`greeting`]); a program that waits for the guest gets a connected
//! socket for each connection of the guest, from the controller's hands ([`VsockHost::listen`]).
//!
//! From the guest to the host: a [`packet`] comes out of a queue in the [`muxer`], the device's thread, which finds
//! its [`connection`] among the [`peers`]; the connection says what it means, and the program gets it. The other way
//! round a socket is read when the guest has a buffer, and credit. The [`host`] half outlives all of these.

mod connection;
mod greeting;
mod host;
mod muxer;
mod packet;
mod peers;

use std::io;
use std::sync::Arc;

pub use host::{Error, VsockHost};
pub use muxer::{Muxer, SOURCE_PEERS, SOURCE_RECEIVE, SOURCE_TRANSMIT};

use super::worker::Workers;
use super::{Activation, DeviceType, VirtioDevice, read_bytes};

/// Receive, transmit, event.
const QUEUE_SIZES: [u16; 3] = [256, 256, 16];

/// `VIRTIO_VSOCK_F_STREAM`: there are stream sockets, as there are without it.
const F_STREAM: u64 = 1 << 0;

/// The device.
#[derive(Debug)]
pub struct Vsock {
    host: Arc<VsockHost>,
    workers: Workers,
}

impl Vsock {
    /// A device that connects a guest with what is attached to `host`. One at a time.
    pub fn new(host: Arc<VsockHost>) -> Self {
        Self { host, workers: Workers::default() }
    }
}

impl VirtioDevice for Vsock {
    fn device_type(&self) -> DeviceType {
        DeviceType::Vsock
    }

    fn features(&self) -> u64 {
        F_STREAM
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn read_config(&self, offset: usize, data: &mut [u8]) {
        // All of it is `guest_cid`.
        read_bytes(&u64::from(self.host.cid()).to_le_bytes(), offset, data);
    }

    fn activate(&mut self, activation: Activation) -> io::Result<()> {
        let notifier = Arc::clone(&activation.notifier);
        let muxer = Muxer::new(Arc::clone(&self.host), activation)?;
        self.workers.spawn("vsock", notifier, muxer)
    }

    fn reset(&mut self) {
        // With the thread ends all that it has: programs on the host see the end of their connections.
        self.workers.stop();
    }
}

#[cfg(test)]
mod tests;
