//! The entropy device (section 5.4): it fills what it is given with random bytes.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use super::queue::QueueError;
use super::worker::{Handler, Workers};
use super::{Activation, ActiveQueue, DeviceType, VirtioDevice};
use crate::event::as_fd;
use crate::memory::GuestMemory;

const QUEUE_SIZES: [u16; 1] = [64];

/// A request gets at most this many bytes, whatever it asks for: the host's time is shared.
const MAX_REQUEST: usize = 4096;

/// The device.
#[derive(Debug, Default)]
pub struct Rng {
    workers: Workers,
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
            self.workers.spawn("rng", notifier, Requests { memory, queue })?;
        }
        Ok(())
    }

    fn reset(&mut self) {
        self.workers.stop();
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::virtio::harness::{self, Driver};

    fn bench() -> (Driver, Requests) {
        let memory = harness::memory(1);
        let (driver, queue) = Driver::new(&memory, 0, 64);
        (driver, Requests { memory, queue })
    }

    #[test]
    fn buffers_are_filled_with_random_bytes() {
        let (mut driver, mut requests) = bench();
        let mut seen = Vec::new();
        for _ in 0..3 {
            let (head, buffers) = driver.request(&[], &[16, 16]);
            requests.handle(0).unwrap();
            assert_eq!(driver.used(), Some((head, 32)));
            seen.extend(buffers.iter().map(|at| driver.read(*at, 16)));
        }
        seen.sort();
        seen.dedup();
        assert_eq!(seen.len(), 6, "the same 16 bytes twice");
    }

    /// A mistake of Firecracker (issue 5762): a guest asked for gigabytes at a time, and got them.
    #[test]
    fn a_request_gets_a_page_and_no_more() {
        const WRITE: u16 = virtio_bindings::virtio_ring::VRING_DESC_F_WRITE as u16;
        let (mut driver, mut requests) = bench();
        driver.descriptor(0, 0, harness::QUEUE_SPACE as u32, WRITE, 0);
        // The rings are a part of it; what they are afterwards is the driver's problem.
        driver.descriptor(1, 0x8000, 0x3_0000, WRITE, 0);
        driver.submit(1);
        requests.handle(0).unwrap();
        assert_eq!(driver.used(), Some((1, MAX_REQUEST as u32)));
        assert_eq!(driver.read(0x8000 + MAX_REQUEST as u64, 4096), [0; 4096]);
        driver.submit(0);
        let _ = requests.handle(0);
    }

    #[test]
    fn requests_without_room_get_nothing() {
        let (mut driver, mut requests) = bench();
        let (head, _) = driver.request(&[b"nothing to write to"], &[]);
        requests.handle(0).unwrap();
        assert_eq!(driver.used(), Some((head, 0)));
    }
}
