//! A virtqueue and the buffers in it (sections 2.6 and 2.7).
//!
//! The ring itself is rust-vmm's `virtio-queue`; this module adds what a device wants to rely on: a chain
//! arrives whole, as slices of guest memory that exist, the driver's part before the device's; a chain that
//! is in flight cannot be submitted a second time; and whatever a driver does wrong is one [`QueueError`].

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use innkeeper_block::Segments;

use virtio_bindings::virtio_ring::VRING_AVAIL_F_NO_INTERRUPT;
use virtio_queue::{QueueOwnedT, QueueT};
use vm_memory::{ByteValued, Bytes, GuestAddress, GuestMemoryBackend, VolatileSlice};

use crate::memory::GuestMemory;

/// What a driver did that it must not do.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum QueueError {
    #[error("the queue's size or its addresses are not valid")]
    Layout,
    #[error("the disk's engine failed: {0}")]
    Engine(std::io::Error),
    #[error("the ring is not valid: {0}")]
    Ring(#[from] virtio_queue::Error),
    #[error("descriptor {0} was submitted again while it was in flight")]
    InFlight(u16),
    #[error("the chain at descriptor {0} is empty, or one of its descriptors is not valid")]
    Chain(u16),
    #[error("the chain at descriptor {0} names memory that does not exist")]
    Address(u16),
    #[error("the chain at descriptor {0} has a readable buffer behind a writable one")]
    Order(u16),
    #[error("the chain at descriptor {0} is too short for what it is to hold")]
    TooShort(u16),
}

/// Where a driver has put a queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Layout {
    /// Entries, a power of two.
    pub size: u16,
    /// The descriptor table.
    pub descriptors: u64,
    /// The available ring ("driver area").
    pub available: u64,
    /// The used ring ("device area").
    pub used: u64,
}

/// A virtqueue in use.
#[derive(Debug)]
pub struct Queue {
    ring: virtio_queue::Queue,
    in_flight: BTreeSet<u16>,
}

impl Queue {
    /// Takes a queue into use that has at most `max_size` entries. With `event_idx`, both sides say which
    /// index they want to be notified at (section 2.7.10).
    pub fn new(
        layout: Layout,
        max_size: u16,
        event_idx: bool,
        memory: &GuestMemory,
    ) -> Result<Self, QueueError> {
        let mut ring = virtio_queue::Queue::new(max_size)?;
        ring.try_set_size(layout.size)?;
        ring.try_set_desc_table_address(GuestAddress(layout.descriptors))?;
        ring.try_set_avail_ring_address(GuestAddress(layout.available))?;
        ring.try_set_used_ring_address(GuestAddress(layout.used))?;
        ring.set_event_idx(event_idx);
        ring.set_ready(true);
        // `avail_ring == 0` would be taken for "not set up".
        if layout.available == 0 || !ring.is_valid(memory) {
            return Err(QueueError::Layout);
        }
        Ok(Self { ring, in_flight: BTreeSet::new() })
    }

    /// The next chain that the driver has made available.
    pub fn pop<'m>(&mut self, memory: &'m GuestMemory) -> Result<Option<Chain<'m>>, QueueError> {
        let Some(descriptors) = self.ring.iter(memory)?.next() else {
            return Ok(None);
        };
        let head = descriptors.head_index();
        if !self.in_flight.insert(head) {
            return Err(QueueError::InFlight(head));
        }
        let mut chain = Chain { head, readable: Buffers::default(), writable: Buffers::default() };
        let mut is_whole = false;
        for descriptor in descriptors {
            is_whole = !descriptor.has_next();
            let buffers = match (descriptor.is_write_only(), chain.writable.0.is_empty()) {
                (true, _) => &mut chain.writable,
                (false, true) => &mut chain.readable,
                (false, false) => return Err(QueueError::Order(head)),
            };
            if descriptor.len() == 0 {
                continue;
            }
            for slice in memory.get_slices(descriptor.addr(), descriptor.len() as usize) {
                buffers.push(slice.map_err(|_| QueueError::Address(head))?);
            }
        }
        // The iterator ends early, and silently, at a loop, a bad index or a bad indirect table.
        if is_whole { Ok(Some(chain)) } else { Err(QueueError::Chain(head)) }
    }

    /// Gives the chain at `head` back, with `written` bytes written to it.
    pub fn push(&mut self, memory: &GuestMemory, head: u16, written: u32) -> Result<(), QueueError> {
        self.in_flight.remove(&head);
        Ok(self.ring.add_used(memory, head, written)?)
    }

    /// Whether the driver wants an interrupt for what was pushed since the last call.
    pub fn needs_interrupt(&mut self, memory: &GuestMemory) -> Result<bool, QueueError> {
        if self.ring.event_idx_enabled() {
            return Ok(self.ring.needs_notification(memory)?);
        }
        let flags: u16 = memory
            .load(GuestAddress(self.ring.avail_ring()), Ordering::SeqCst)
            .map_err(virtio_queue::Error::GuestMemory)?;
        Ok(u32::from(u16::from_le(flags)) & VRING_AVAIL_F_NO_INTERRUPT == 0)
    }

    /// Asks the driver not to ring the doorbell, while we look at the queue anyway.
    pub fn disable_doorbell(&mut self, memory: &GuestMemory) -> Result<(), QueueError> {
        Ok(self.ring.disable_notification(memory)?)
    }

    /// Asks the driver to ring again. True if it has added something in the meantime, which is to be looked
    /// at before going to sleep.
    pub fn enable_doorbell(&mut self, memory: &GuestMemory) -> Result<bool, QueueError> {
        Ok(self.ring.enable_notification(memory)?)
    }
}

/// A chain of buffers that belongs to the device until it is pushed back.
#[derive(Debug)]
pub struct Chain<'m> {
    /// Its first descriptor, which is its name.
    pub head: u16,
    /// What the driver has to say.
    pub readable: Buffers<'m>,
    /// Where the device may answer.
    pub writable: Buffers<'m>,
}

/// A sequence of bytes in guest memory, in pieces. The guest can change them at any time.
#[derive(Debug, Default)]
pub struct Buffers<'m>(Vec<VolatileSlice<'m>>);

impl<'m> Buffers<'m> {
    /// Bytes in all.
    pub fn len(&self) -> usize {
        // A chain is at most 4 GiB long; `virtio-queue` sees to it.
        self.0.iter().map(VolatileSlice::len).sum()
    }

    /// Whether there is not a single byte.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Appends a piece, which may not be empty.
    pub fn push(&mut self, slice: VolatileSlice<'m>) {
        self.0.push(slice);
    }

    /// The pieces, none of them empty.
    pub fn slices(&self) -> &[VolatileSlice<'m>] {
        &self.0
    }

    /// Cuts off everything from byte `at` on and returns it. None if there are fewer bytes.
    pub fn split_off(&mut self, at: usize) -> Option<Self> {
        let mut start = 0;
        for index in 0..self.0.len() {
            let slice = self.0[index];
            let end = start + slice.len();
            if at < end {
                let (front, back) = slice.split_at(at - start).ok()?;
                let mut rest = self.0.split_off(index);
                if let Some(first) = rest.first_mut() {
                    *first = back;
                }
                if !front.is_empty() {
                    self.0.push(front);
                }
                return Some(Self(rest));
            }
            start = end;
        }
        (at == start).then(Self::default)
    }

    /// The same pieces for somebody who keeps them beyond the chain's life. None if they are not in `memory`, which is
    /// where they must be from.
    pub fn to_segments(&self, memory: &Arc<GuestMemory>) -> Option<Segments> {
        let pieces: Vec<libc::iovec> = self
            .0
            .iter()
            .map(|slice| slice.ptr_guard_mut())
            .map(|guard| libc::iovec { iov_base: guard.as_ptr().cast(), iov_len: guard.len() })
            .collect();
        let is_inside = |piece: &libc::iovec| {
            memory.iter().any(|region| {
                let start = region.as_ptr().addr();
                let (from, to) = (piece.iov_base.addr(), piece.iov_base.addr() + piece.iov_len);
                from >= start && to <= start + region.size()
            })
        };
        // SAFETY: the pieces are inside mappings that `memory` owns.
        pieces.iter().all(is_inside).then(|| unsafe { Segments::new(pieces, Arc::clone(memory) as _) })
    }

    /// Copies the first bytes into a value. None if there are too few.
    pub fn read<T: ByteValued + Default>(&self) -> Option<T> {
        let mut value = T::default();
        let copied = self.copy_to(value.as_mut_slice());
        (copied == size_of::<T>()).then_some(value)
    }

    /// Copies as much as fits into `data`; returns how much that was.
    pub fn copy_to(&self, data: &mut [u8]) -> usize {
        let mut done = 0;
        for slice in &self.0 {
            done += slice.copy_to(&mut data[done..]);
        }
        done
    }

    /// Copies as much of `data` as there is room for; returns how much that was.
    pub fn copy_from(&self, data: &[u8]) -> usize {
        let mut done = 0;
        for slice in &self.0 {
            let count = slice.len().min(data.len() - done);
            slice.copy_from(&data[done..done + count]);
            done += count;
        }
        done
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use virtio_bindings::virtio_ring::{VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};
    use virtio_queue::desc::RawDescriptor;
    use virtio_queue::desc::split::Descriptor;

    const NEXT: u16 = VRING_DESC_F_NEXT as u16;
    const WRITE: u16 = VRING_DESC_F_WRITE as u16;
    const INDIRECT: u16 = VRING_DESC_F_INDIRECT as u16;
    const LAYOUT: Layout = Layout { size: 8, descriptors: 0x1000, available: 0x2000, used: 0x3000 };

    /// A driver that writes whatever a test wants.
    struct Driver {
        memory: GuestMemory,
        available: u16,
    }

    impl Driver {
        fn new() -> (Self, Queue) {
            let memory = GuestMemory::from_ranges(&[(GuestAddress(0), 0x10_0000)]).unwrap();
            let queue = Queue::new(LAYOUT, 8, false, &memory).unwrap();
            (Self { memory, available: 0 }, queue)
        }

        fn descriptor(&self, index: u16, address: u64, length: u32, flags: u16, next: u16) {
            let descriptor = RawDescriptor::from(Descriptor::new(address, length, flags, next));
            self.memory
                .write_obj(descriptor, GuestAddress(LAYOUT.descriptors + 16 * u64::from(index)))
                .unwrap();
        }

        fn submit(&mut self, head: u16) {
            let slot = u64::from(self.available % LAYOUT.size);
            self.memory.write_obj(head, GuestAddress(LAYOUT.available + 4 + 2 * slot)).unwrap();
            self.available = self.available.wrapping_add(1);
            self.memory.write_obj(self.available, GuestAddress(LAYOUT.available + 2)).unwrap();
        }
    }

    #[test]
    fn a_chain_arrives_in_two_parts() {
        let (mut driver, mut queue) = Driver::new();
        driver.descriptor(0, 0x8000, 10, NEXT, 1);
        driver.descriptor(1, 0x8100, 20, NEXT, 2);
        driver.descriptor(2, 0x8200, 30, WRITE, 0);
        driver.submit(0);
        let chain = queue.pop(&driver.memory).unwrap().unwrap();
        assert_eq!((chain.head, chain.readable.len(), chain.writable.len()), (0, 30, 30));
        assert_eq!(chain.writable.copy_from(&[9; 40]), 30);
        queue.push(&driver.memory, 0, 30).unwrap();
        assert_eq!(driver.memory.read_obj::<u16>(GuestAddress(LAYOUT.used + 2)).unwrap(), 1);
        assert_eq!(driver.memory.read_obj::<u32>(GuestAddress(LAYOUT.used + 8)).unwrap(), 30);
        assert_eq!(driver.memory.read_obj::<u8>(GuestAddress(0x821d)).unwrap(), 9);
        assert!(queue.pop(&driver.memory).unwrap().is_none());
    }

    #[test]
    fn an_indirect_chain_is_followed() {
        let (mut driver, mut queue) = Driver::new();
        driver.descriptor(3, 0x9000, 32, INDIRECT, 0);
        let table = [Descriptor::new(0x8000, 4, NEXT, 1), Descriptor::new(0x8100, 4, WRITE, 0)];
        for (index, descriptor) in table.into_iter().enumerate() {
            driver
                .memory
                .write_obj(RawDescriptor::from(descriptor), GuestAddress(0x9000 + 16 * index as u64))
                .unwrap();
        }
        driver.submit(3);
        let chain = queue.pop(&driver.memory).unwrap().unwrap();
        assert_eq!((chain.head, chain.readable.len(), chain.writable.len()), (3, 4, 4));
    }

    /// CVE-2026-45782 of another VMM: the same head twice, the first still being worked on.
    #[test]
    fn a_head_in_flight_is_refused() {
        let (mut driver, mut queue) = Driver::new();
        driver.descriptor(0, 0x8000, 10, 0, 0);
        driver.submit(0);
        driver.submit(0);
        assert!(queue.pop(&driver.memory).unwrap().is_some());
        assert!(matches!(queue.pop(&driver.memory), Err(QueueError::InFlight(0))));
    }

    #[test]
    fn malformed_chains_are_errors() {
        type Case = (&'static str, fn(&Driver));
        let cases: [Case; 8] = [
            ("a loop", |driver| {
                driver.descriptor(0, 0x8000, 1, NEXT, 1);
                driver.descriptor(1, 0x8000, 1, NEXT, 0);
            }),
            ("an index outside the table", |driver| driver.descriptor(0, 0x8000, 1, NEXT, 8)),
            ("memory that does not exist", |driver| driver.descriptor(0, 0x20_0000, 1, 0, 0)),
            ("memory that ends early", |driver| driver.descriptor(0, 0xf_ffff, 2, 0, 0)),
            ("an address that wraps", |driver| driver.descriptor(0, u64::MAX, 2, 0, 0)),
            ("readable behind writable", |driver| {
                driver.descriptor(0, 0x8000, 1, NEXT | WRITE, 1);
                driver.descriptor(1, 0x8000, 1, 0, 0);
            }),
            ("an indirect table of odd length", |driver| driver.descriptor(0, 0x9000, 17, INDIRECT, 0)),
            ("an indirect table in an indirect table", |driver| {
                driver.descriptor(0, 0x9000, 16, INDIRECT, 0);
                let nested = RawDescriptor::from(Descriptor::new(0x9000, 16, INDIRECT, 0));
                driver.memory.write_obj(nested, GuestAddress(0x9000)).unwrap();
            }),
        ];
        for (what, make) in cases {
            let (mut driver, mut queue) = Driver::new();
            make(&driver);
            driver.submit(0);
            assert!(queue.pop(&driver.memory).is_err(), "{what}");
        }
    }

    #[test]
    fn a_head_outside_the_table_is_an_error() {
        let (mut driver, mut queue) = Driver::new();
        driver.submit(8);
        assert!(queue.pop(&driver.memory).is_err());
    }

    #[test]
    fn an_available_index_beyond_the_queue_is_an_error() {
        let (driver, mut queue) = Driver::new();
        driver.memory.write_obj(9u16, GuestAddress(LAYOUT.available + 2)).unwrap();
        assert!(matches!(queue.pop(&driver.memory), Err(QueueError::Ring(_))));
    }

    #[test]
    fn bad_layouts_are_refused() {
        let (driver, _) = Driver::new();
        let cases = [
            Layout { size: 0, ..LAYOUT },
            Layout { size: 3, ..LAYOUT },
            Layout { size: 16, ..LAYOUT },
            Layout { descriptors: 0x1001, ..LAYOUT },
            Layout { available: 0, ..LAYOUT },
            Layout { available: 0x2001, ..LAYOUT },
            Layout { used: 0x3002, ..LAYOUT },
            Layout { used: 0xf_fffc, ..LAYOUT },
            Layout { descriptors: u64::MAX - 15, ..LAYOUT },
        ];
        for layout in cases {
            assert!(Queue::new(layout, 8, true, &driver.memory).is_err(), "{layout:x?}");
        }
    }

    #[test]
    fn buffers_are_cut_at_any_byte() {
        let mut bytes = [[0u8; 3], [3; 3], [6; 3]];
        bytes.iter_mut().enumerate().for_each(|(row, part)| {
            part.iter_mut().enumerate().for_each(|(column, byte)| *byte = (3 * row + column) as u8);
        });
        let parts: Vec<VolatileSlice> =
            bytes.iter_mut().map(|part| VolatileSlice::from(&mut part[..])).collect();
        for at in 0..=9 {
            let mut front = Buffers(parts.clone());
            let back = front.split_off(at).unwrap();
            assert_eq!((front.len(), back.len()), (at, 9 - at));
            let mut data = [0xff; 9];
            assert_eq!(back.copy_to(&mut data), 9 - at);
            assert_eq!(data[..9 - at], (at as u8..9).collect::<Vec<_>>());
            assert!(front.slices().iter().chain(back.slices()).all(|slice| !slice.is_empty()));
        }
        assert!(Buffers(parts).split_off(10).is_none());
    }
}
