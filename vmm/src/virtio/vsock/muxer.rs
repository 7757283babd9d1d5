//! The device's thread: it takes the guest's packets to the [`Peers`], and theirs to the guest.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Instant;

use super::host::VsockHost;
use super::packet::HEADER_SIZE;
use super::peers::Peers;
use crate::event::as_fd;
use crate::memory::GuestMemory;
use crate::virtio::queue::{Buffers, QueueError};
use crate::virtio::worker::{Handler, SOURCE_DEADLINE};
use crate::virtio::{Activation, ActiveQueue, BATCH};

/// The driver has added buffers for what it is to receive.
pub const SOURCE_RECEIVE: u64 = 0;
/// The driver has packets to send.
pub const SOURCE_TRANSMIT: u64 = 1;
/// Something happened to a socket on the host.
pub const SOURCE_PEERS: u64 = 2;

/// The work of a device whose driver is ready.
#[derive(Debug)]
pub struct Muxer {
    memory: Arc<GuestMemory>,
    receive: ActiveQueue,
    transmit: ActiveQueue,
    pub(super) peers: Peers,
    /// There are no buffers in the receive queue. The driver rings when it has some.
    is_starved: bool,
    /// The transmit queue was left alone because the guest has to receive first.
    is_held_up: bool,
    /// More has happened to sockets than was taken in.
    is_unread: bool,
}

impl Muxer {
    /// Begins to work for the driver of `activation`. An error if it has not set up both queues for packets, or the
    /// host has no resources.
    pub fn new(host: Arc<VsockHost>, activation: Activation) -> io::Result<Self> {
        let Activation { memory, queues, .. } = activation;
        // Nothing is ever said in the event queue: there is no migration, which is all that it is for.
        let mut queues = queues.into_iter();
        let (Some(Some(receive)), Some(Some(transmit))) = (queues.next(), queues.next()) else {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "the driver has not set up both the receive and the transmit queue",
            ));
        };
        let peers = Peers::new(host)?;
        Ok(Self { memory, receive, transmit, peers, is_starved: false, is_held_up: false, is_unread: false })
    }

    /// Takes packets from the guest, unless it does not take the answers.
    fn transmit(&mut self) -> Result<(), QueueError> {
        self.is_held_up = self.peers.is_congested();
        if self.is_held_up {
            return Ok(());
        }
        let Self { memory, transmit, peers, .. } = self;
        transmit.drain(memory, |chain| peers.receive(chain).map(|()| Some(0)))
    }

    /// Gives packets to the guest, as long as there are some and buffers for them.
    fn deliver(&mut self) -> Result<(), QueueError> {
        let Self { memory, receive, peers, .. } = self;
        let mut delivered = 0;
        while delivered < BATCH && !self.is_starved && peers.has_packet() {
            let Some(mut chain) = receive.queue.pop(memory)? else {
                self.is_starved = !receive.queue.enable_doorbell(memory)?;
                continue;
            };
            let written = fill(&mut chain.writable, peers).ok_or(QueueError::TooShort(chain.head))?;
            receive.queue.push(memory, chain.head, written)?;
            delivered += 1;
        }
        if delivered > 0 {
            receive.announce(memory)?;
        }
        if delivered == BATCH {
            receive.wake_again();
        }
        Ok(())
    }
}

/// Writes the next packet to `buffer`; returns its length. None if it does not fit.
fn fill(buffer: &mut Buffers<'_>, peers: &mut Peers) -> Option<u32> {
    let payload = buffer.split_off(HEADER_SIZE)?;
    let (header, data) = peers.packet(payload.len())?;
    buffer.copy_from(&header.to_bytes());
    let copied = payload.copy_from(data);
    u32::try_from(HEADER_SIZE + copied).ok()
}

impl Handler for Muxer {
    fn sources(&self) -> Vec<(BorrowedFd<'_>, u64)> {
        vec![
            (as_fd(&self.receive.doorbell), SOURCE_RECEIVE),
            (as_fd(&self.transmit.doorbell), SOURCE_TRANSMIT),
            (self.peers.event(), SOURCE_PEERS),
        ]
    }

    fn handle(&mut self, source: u64) -> Result<(), QueueError> {
        match source {
            SOURCE_RECEIVE => {
                self.is_starved = false;
                self.receive.queue.disable_doorbell(&self.memory)?;
            }
            SOURCE_TRANSMIT => self.transmit()?,
            SOURCE_DEADLINE => self.peers.expire(Instant::now()),
            _ => self.is_unread = true,
        }
        if self.is_unread {
            self.is_unread = !self.peers.poll();
        }
        self.deliver()?;
        if self.is_unread || self.is_held_up && !self.peers.is_congested() {
            // The edges of these were seen already, and do not come again.
            self.transmit.wake_again();
        }
        self.peers.settle();
        Ok(())
    }

    fn deadline(&self) -> Option<Instant> {
        self.peers.deadline()
    }
}
