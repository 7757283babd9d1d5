//! The entropy device (section 5.4): it fills what it is given with random bytes.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use super::queue::QueueError;
use super::worker::{Handler, Worker};
use super::{Activation, ActiveQueue, DeviceType, VirtioDevice};
use crate::event::as_fd;
use crate::memory::GuestMemory;

const QUEUE_SIZES: [u16; 1] = [64];

/// A request gets at most this many bytes, whatever it asks for: the host's time is shared.
const MAX_REQUEST: usize = 4096;

/// The device.
#[derive(Debug, Default)]
pub struct Rng {
    worker: Option<Worker>,
}

impl VirtioDevice for Rng {
    fn device_type(&self) -> DeviceType {
        DeviceType::Entropy
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn activate(&mut self, activation: Activation) -> io::Result<()> {
        let Activation { memory, queues, notifier, .. } = activation;
        if let Some(queue) = queues.into_iter().flatten().next() {
            self.worker = Some(Worker::spawn("rng", notifier, Requests { memory, queue })?);
        }
        Ok(())
    }

    fn reset(&mut self) {
        self.worker = None;
    }
}

struct Requests {
    memory: Arc<GuestMemory>,
    queue: ActiveQueue,
}

impl Handler for Requests {
    fn sources(&self) -> Vec<(BorrowedFd<'_>, u64)> {
        vec![(as_fd(&self.queue.doorbell), 0)]
    }

    fn handle(&mut self, _source: u64) -> Result<(), QueueError> {
        let mut bytes = [0; MAX_REQUEST];
        self.queue.drain(&self.memory, |chain| {
            let length = chain.writable.len().min(MAX_REQUEST);
            let filled = fill(&mut bytes[..length]);
            Ok(Some(chain.writable.copy_from(&bytes[..filled]) as u32))
        })
    }
}

/// Fills `bytes` from the host's generator; returns how many it gave, which is none if it fails.
fn fill(bytes: &mut [u8]) -> usize {
    // SAFETY: the pointer and the length are those of one slice.
    let count = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
    usize::try_from(count).unwrap_or(0)
}
