//! A pair of queues, one for each direction, and the queue of the tap that belongs to them.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Instant;

use super::Pause;
use super::interface::Interface;
use super::receive::Receiver;
use super::transmit::Transmitter;
use crate::event::as_fd;
use crate::memory::GuestMemory;
use crate::virtio::ActiveQueue;
use crate::virtio::queue::QueueError;
use crate::virtio::worker::Handler;

const SOURCE_TAP: u64 = 0;
const SOURCE_RECEIVE: u64 = 1;
const SOURCE_TRANSMIT: u64 = 2;

/// What a pair is made of.
pub(super) struct Parts {
    pub index: usize,
    pub interface: Arc<Interface>,
    pub memory: Arc<GuestMemory>,
    /// To receive and to transmit.
    pub queues: [ActiveQueue; 2],
    /// Whether a frame may fill several of the guest's buffers.
    pub is_mergeable: bool,
    /// The largest frame that the guest can receive, with its header.
    pub largest: usize,
}

/// The handler of a pair of queues.
pub struct Pair {
    index: usize,
    interface: Arc<Interface>,
    memory: Arc<GuestMemory>,
    receiver: Receiver,
    transmitter: Transmitter,
}

impl Pair {
    pub(super) fn new(parts: Parts) -> Self {
        let Parts { index, interface, memory, queues: [receive, transmit], is_mergeable, largest } = parts;
        let receiver = Receiver::new(receive, is_mergeable, largest);
        Self { index, interface, memory, receiver, transmitter: Transmitter::new(transmit) }
    }

    fn receive(&mut self) -> Result<(), QueueError> {
        let Some(tap) = self.interface.tap(self.index) else {
            return Ok(());
        };
        self.receiver.receive(&self.memory, &self.interface, tap)
    }

    fn transmit(&mut self) -> Result<(), QueueError> {
        let Some(tap) = self.interface.tap(self.index) else {
            return Ok(());
        };
        self.transmitter.transmit(&self.memory, &self.interface, tap)
    }

    /// Counts a ring of the doorbell of this pair's receive (0) or transmit (1) queue.
    fn count_kick(&self, direction: usize) {
        if let Some(kicks) = self.interface.counters.kicks.get(2 * self.index + direction) {
            kicks.add(1);
        }
    }
}

impl Handler for Pair {
    fn sources(&self) -> Vec<(BorrowedFd<'_>, u64)> {
        let doorbells = [
            (as_fd(&self.receiver.queue().doorbell), SOURCE_RECEIVE),
            (as_fd(&self.transmitter.queue().doorbell), SOURCE_TRANSMIT),
        ];
        let tap = self.interface.tap(self.index).map(|tap| (tap.as_fd(), SOURCE_TAP));
        doorbells.into_iter().chain(tap).collect()
    }

    fn handle(&mut self, source: u64) -> Result<(), QueueError> {
        match source {
            SOURCE_TAP => self.receive(),
            SOURCE_RECEIVE => {
                self.count_kick(0);
                self.receive()
            }
            SOURCE_TRANSMIT => {
                self.count_kick(1);
                self.transmit()
            }
            _ => {
                if self.receiver.pause().is_over() {
                    self.receive()?;
                }
                if self.transmitter.pause().is_over() {
                    self.transmit()?;
                }
                Ok(())
            }
        }
    }

    fn deadline(&self) -> Option<Instant> {
        [self.receiver.pause(), self.transmitter.pause()].into_iter().filter_map(Pause::end).min()
    }
}
