//! The control queue (section 5.1.6.5), of which we have one command: how many pairs of queues the driver
//! uses.
//!
//! Its thread also hears of what the kernel has to say about the queues that it serves itself.

use std::os::fd::BorrowedFd;
use std::sync::Arc;

use virtio_bindings::virtio_net::{
    VIRTIO_NET_CTRL_MQ, VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET, VIRTIO_NET_ERR, VIRTIO_NET_OK,
};
use vmm_sys_util::eventfd::EventFd;

use super::interface::Interface;
use crate::event::as_fd;
use crate::memory::GuestMemory;
use crate::virtio::ActiveQueue;
use crate::virtio::queue::{Chain, QueueError};
use crate::virtio::worker::Handler;

const SOURCE_QUEUE: u64 = 0;
/// The kernel has given up on one of its queues.
const SOURCE_FAILURE: u64 = 1;

/// The handler of the control queue.
pub struct Control {
    memory: Arc<GuestMemory>,
    interface: Arc<Interface>,
    /// None if the driver did without.
    queue: Option<ActiveQueue>,
    /// How many pairs of queues, from the first on, the driver has set up.
    pairs: usize,
    failures: Vec<EventFd>,
}

impl Control {
    /// For a driver that has set up the first `pairs` pairs of queues, 1 or more.
    pub(super) fn new(
        memory: Arc<GuestMemory>,
        interface: Arc<Interface>,
        queue: Option<ActiveQueue>,
        pairs: usize,
    ) -> Self {
        Self { memory, interface, queue, pairs, failures: Vec::new() }
    }

    /// Gives up on the driver as soon as one of `failures` can be read.
    pub(super) fn watch(&mut self, failures: impl IntoIterator<Item = EventFd>) {
        self.failures.extend(failures);
    }

    /// Whether there is nothing to do, ever.
    pub(super) fn is_idle(&self) -> bool {
        self.queue.is_none() && self.failures.is_empty()
    }
}

impl Handler for Control {
    fn sources(&self) -> Vec<(BorrowedFd<'_>, u64)> {
        let queue = self.queue.iter().map(|queue| (as_fd(&queue.doorbell), SOURCE_QUEUE));
        let failures = self.failures.iter().map(|failure| (as_fd(failure), SOURCE_FAILURE));
        queue.chain(failures).collect()
    }

    fn handle(&mut self, source: u64) -> Result<(), QueueError> {
        let Self { memory, interface, queue, pairs, .. } = self;
        match queue {
            _ if source == SOURCE_FAILURE => Err(QueueError::Kernel),
            Some(queue) => queue.drain(memory, |chain| serve(interface, *pairs, chain).map(Some)),
            None => Ok(()),
        }
    }
}

/// Carries out one command; returns how many bytes the answer has.
fn serve(interface: &Interface, pairs: usize, chain: &Chain<'_>) -> Result<u32, QueueError> {
    const PAIRS_SET: [u8; 2] = [VIRTIO_NET_CTRL_MQ as u8, VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET as u8];
    let mut command = [0; 4];
    let length = chain.readable.copy_to(&mut command);
    let [class, number, low, high] = command;
    let wanted = usize::from(u16::from_le_bytes([low, high]));
    let is_valid = [class, number] == PAIRS_SET && length == command.len() && (1..=pairs).contains(&wanted);
    let is_done = is_valid
        && interface.set_enabled_pairs(wanted).map_or_else(
            |error| {
                tracing::warn!(%error, wanted, "the tap's queues cannot be enabled and disabled");
                false
            },
            |()| true,
        );
    let answer = if is_done { VIRTIO_NET_OK } else { VIRTIO_NET_ERR };
    match chain.writable.copy_from(&[answer as u8]) {
        0 => Err(QueueError::TooShort(chain.head)),
        written => Ok(written as u32),
    }
}
