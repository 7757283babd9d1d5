//! A driver's side of virtqueues, for tests and fuzzers: it drives a device's [`Handler`](super::worker::Handler)
//! without a guest, a thread or KVM.

#![expect(missing_docs, reason = "for tests; the names say it")]
#![allow(clippy::unwrap_used, clippy::missing_panics_doc)]

use std::sync::Arc;

use virtio_bindings::virtio_ring::{VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};
use virtio_queue::desc::RawDescriptor;
use virtio_queue::desc::split::Descriptor;
use vm_memory::{Bytes, GuestAddress};

use super::queue::{Layout, Queue, QueueError};
use super::{Activation, ActiveQueue, Notifier, QueueInterrupt};
use crate::event;
use crate::memory::GuestMemory;

/// Where a driver's rings are from its base on; each queue takes this much memory, buffers included.
pub const QUEUE_SPACE: u64 = 0x4_0000;
const BUFFERS: u64 = 0x8000;

/// Guest memory for `queues` drivers.
pub fn memory(queues: u64) -> Arc<GuestMemory> {
    let size = (queues * QUEUE_SPACE) as usize;
    Arc::new(GuestMemory::from_ranges(&[(GuestAddress(0), size)]).unwrap())
}

/// A device's side channel that leads nowhere.
pub fn notifier() -> Arc<Notifier> {
    Arc::new(Notifier::new("test".into(), Vec::new()))
}

/// Whether the device has given up on its driver.
pub fn needs_reset(notifier: &Notifier) -> bool {
    notifier.status.load(std::sync::atomic::Ordering::SeqCst) & super::status::NEEDS_RESET != 0
}

/// What a device gets when a driver with `features` has set up `queues`.
pub fn activation(memory: &Arc<GuestMemory>, features: u64, queues: Vec<Option<ActiveQueue>>) -> Activation {
    Activation { memory: Arc::clone(memory), features, queues, notifier: notifier() }
}

/// The device's side of a queue that a driver has put anywhere, if it can be there.
pub fn queue(
    layout: Layout,
    max_size: u16,
    event_idx: bool,
    memory: &GuestMemory,
) -> Result<ActiveQueue, QueueError> {
    let queue = Queue::new(layout, max_size, event_idx, memory)?;
    Ok(ActiveQueue { queue, doorbell: event::new().unwrap(), interrupt: QueueInterrupt(None) })
}

/// A driver of one queue. Its buffers are handed out one after the other, and used again from the start when there
/// is no more room.
#[derive(Debug)]
pub struct Driver {
    pub memory: Arc<GuestMemory>,
    pub layout: Layout,
    base: u64,
    next_descriptor: u16,
    available: u16,
    used: u16,
    next_buffer: u64,
}

impl Driver {
    /// The driver and the device's side of queue `index`, with `size` entries.
    pub fn new(memory: &Arc<GuestMemory>, index: u64, size: u16) -> (Self, ActiveQueue) {
        let base = index * QUEUE_SPACE;
        let layout = Layout { size, descriptors: base + 0x10, available: base + 0x5000, used: base + 0x6000 };
        let device = queue(layout, size, false, memory).unwrap();
        let driver = Self {
            memory: Arc::clone(memory),
            layout,
            base,
            next_descriptor: 0,
            available: 0,
            used: 0,
            next_buffer: 0,
        };
        (driver, device)
    }

    /// Puts a descriptor into the table.
    pub fn descriptor(&self, index: u16, address: u64, length: u32, flags: u16, next: u16) {
        let descriptor = RawDescriptor::from(Descriptor::new(address, length, flags, next));
        let at = GuestAddress(self.layout.descriptors + 16 * u64::from(index));
        self.memory.write_obj(descriptor, at).unwrap();
    }

    /// Makes the chain at `head` available.
    pub fn submit(&mut self, head: u16) {
        let slot = u64::from(self.available % self.layout.size);
        self.memory.write_obj(head, GuestAddress(self.layout.available + 4 + 2 * slot)).unwrap();
        self.available = self.available.wrapping_add(1);
        self.memory.write_obj(self.available, GuestAddress(self.layout.available + 2)).unwrap();
    }

    /// Room for `length` bytes of data.
    pub fn buffer(&mut self, length: usize) -> u64 {
        let length = length as u64;
        if BUFFERS + self.next_buffer + length > QUEUE_SPACE {
            self.next_buffer = 0;
        }
        let address = self.base + BUFFERS + self.next_buffer;
        self.next_buffer += length.next_multiple_of(16);
        address
    }

    /// Submits a chain of buffers with the given content, and behind them buffers of the given lengths for the
    /// device. Returns the head, and where the device's buffers are.
    pub fn request(&mut self, readable: &[&[u8]], writable: &[usize]) -> (u16, Vec<u64>) {
        let count = (readable.len() + writable.len()) as u16;
        assert!(count > 0 && count <= self.layout.size);
        if self.next_descriptor + count > self.layout.size {
            self.next_descriptor = 0;
        }
        let head = self.next_descriptor;
        let mut addresses = Vec::new();
        for position in 0..count {
            let index = head + position;
            let is_last = position + 1 == count;
            let next = if is_last { 0 } else { VRING_DESC_F_NEXT as u16 };
            let position = usize::from(position);
            let (address, length, flags) = match readable.get(position) {
                Some(content) => {
                    let address = self.buffer(content.len());
                    self.memory.write_slice(content, GuestAddress(address)).unwrap();
                    (address, content.len(), next)
                }
                None => {
                    let length = writable[position - readable.len()];
                    let address = self.buffer(length);
                    addresses.push(address);
                    (address, length, next | VRING_DESC_F_WRITE as u16)
                }
            };
            self.descriptor(index, address, length as u32, flags, index + 1);
        }
        self.next_descriptor += count;
        self.submit(head);
        (head, addresses)
    }

    /// The next chain that came back: its head, and how many bytes the device says it wrote.
    pub fn used(&mut self) -> Option<(u16, u32)> {
        let end: u16 = self.memory.read_obj(GuestAddress(self.layout.used + 2)).unwrap();
        if end == self.used {
            return None;
        }
        let at = self.layout.used + 4 + 8 * u64::from(self.used % self.layout.size);
        self.used = self.used.wrapping_add(1);
        let head: u32 = self.memory.read_obj(GuestAddress(at)).unwrap();
        Some((head as u16, self.memory.read_obj(GuestAddress(at + 4)).unwrap()))
    }

    /// What is in memory.
    pub fn read(&self, address: u64, length: usize) -> Vec<u8> {
        let mut data = vec![0; length];
        self.memory.read_slice(&mut data, GuestAddress(address)).unwrap();
        data
    }
}
