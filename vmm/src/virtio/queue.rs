//! A virtqueue and the buffers in it (sections 2.6 and 2.7).
//!
//! The ring itself is rust-vmm's `virtio-queue`; this module adds what a device wants to rely on: a chain
//! arrives whole, as slices of guest memory that exist, the driver's part before the device's; a chain that
//! is in flight cannot be submitted a second time; and whatever a driver does wrong is one [`QueueError`].

#[cfg(test)]
mod model;

use std::ops::Range;
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
    #[error("the kernel, which serves a queue, found a fault in it")]
    Kernel,
    #[error("the ring is not valid: {0}")]
    Ring(#[from] virtio_queue::Error),
    #[error("descriptor {0} was submitted again while it was in flight")]
    InFlight(u16),
    #[error("the chain at descriptor {0} is empty or too long, or one of its descriptors is not valid")]
    Chain(u16),
    #[error("the chain at descriptor {0} names memory that does not exist")]
    Address(u16),
    #[error("the chain at descriptor {0} has a readable buffer behind a writable one")]
    Order(u16),
    #[error("the chain at descriptor {0} is too short for what it is to hold")]
    TooShort(u16),
}

/// The most descriptors of a chain. It should be no longer than the queue (section 2.7.5.3.1), but drivers go beyond
/// that in tables of their own, which have room for 64 Ki.
const MAX_CHAIN: usize = 2048;

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
    in_flight: Heads,
}

/// A set of heads: a bit for each descriptor of the table.
#[derive(Debug)]
struct Heads(Vec<u64>);

impl Heads {
    fn new(size: u16) -> Self {
        Self(vec![0; usize::from(size).div_ceil(64)])
    }

    /// The word that `head` has its bit in, and the bit.
    fn place(&mut self, head: u16) -> Option<(&mut u64, u64)> {
        self.0.get_mut(usize::from(head / 64)).map(|word| (word, 1 << (head % 64)))
    }

    /// Puts `head` in. False if it is there already, or cannot be.
    fn insert(&mut self, head: u16) -> bool {
        let Some((word, bit)) = self.place(head) else { return false };
        let is_new = *word & bit == 0;
        *word |= bit;
        is_new
    }

    fn remove(&mut self, head: u16) {
        if let Some((word, bit)) = self.place(head) {
            *word &= !bit;
        }
    }
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
        let in_flight = Heads::new(ring.size());
        Ok(Self { ring, in_flight })
    }

    /// Where it is.
    pub fn layout(&self) -> Layout {
        Layout {
            size: self.ring.size(),
            descriptors: self.ring.desc_table(),
            available: self.ring.avail_ring(),
            used: self.ring.used_ring(),
        }
    }

    /// The next chain that the driver has made available.
    pub fn pop<'m>(&mut self, memory: &'m GuestMemory) -> Result<Option<Chain<'m>>, QueueError> {
        let Some(descriptors) = self.ring.iter(memory)?.next() else {
            return Ok(None);
        };
        let head = descriptors.head_index();
        if head >= self.ring.size() {
            return Err(QueueError::Chain(head));
        }
        if !self.in_flight.insert(head) {
            return Err(QueueError::InFlight(head));
        }
        let mut chain = Chain { head, readable: Buffers::default(), writable: Buffers::default() };
        let mut is_whole = false;
        for (count, descriptor) in (0..).zip(descriptors) {
            if count == MAX_CHAIN {
                return Err(QueueError::Chain(head));
            }
            is_whole = !descriptor.has_next();
            let buffers = match (descriptor.is_write_only(), chain.writable.is_empty()) {
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

    /// Whether the driver has made nothing available that was not taken yet.
    pub fn is_empty(&self, memory: &GuestMemory) -> Result<bool, QueueError> {
        Ok(self.ring.avail_idx(memory, Ordering::Acquire)?.0 == self.ring.next_avail())
    }

    /// Gives the chain at `head` back, with `written` bytes written to it.
    pub fn push(&mut self, memory: &GuestMemory, head: u16, written: u32) -> Result<(), QueueError> {
        self.in_flight.remove(head);
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
#[derive(Debug)]
pub struct Buffers<'m> {
    /// The pieces while they are few, as they mostly are: then they take no allocation.
    few: [VolatileSlice<'m>; FEW],
    /// How many of `few` there are; 0 once there are `many`.
    count: usize,
    many: Vec<VolatileSlice<'m>>,
}

/// A header and its data, or data and a status.
const FEW: usize = 2;

impl Default for Buffers<'_> {
    fn default() -> Self {
        Self { few: [VolatileSlice::from(&mut [][..]); FEW], count: 0, many: Vec::new() }
    }
}

impl<'m> Buffers<'m> {
    /// Bytes in all.
    pub fn len(&self) -> usize {
        // A chain is at most 4 GiB long; `virtio-queue` sees to it.
        self.slices().iter().map(VolatileSlice::len).sum()
    }

    /// Whether there is not a single byte.
    pub fn is_empty(&self) -> bool {
        self.slices().is_empty()
    }

    /// Appends a piece. One that is empty is left out.
    pub fn push(&mut self, slice: VolatileSlice<'m>) {
        if slice.is_empty() {
            return;
        }
        if self.many.is_empty()
            && let Some(free) = self.few.get_mut(self.count)
        {
            *free = slice;
            self.count += 1;
            return;
        }
        self.many.extend_from_slice(&self.few[..self.count]);
        self.count = 0;
        self.many.push(slice);
    }

    /// The pieces, none of them empty.
    pub fn slices(&self) -> &[VolatileSlice<'m>] {
        if self.many.is_empty() { &self.few[..self.count] } else { &self.many }
    }

    /// Cuts off everything from byte `at` on and returns it. None if there are fewer bytes.
    pub fn split_off(&mut self, at: usize) -> Option<Self> {
        let (mut front, mut back) = (Self::default(), Self::default());
        let mut missing = at;
        for slice in self.slices() {
            let cut = missing.min(slice.len());
            let (before, behind) = slice.split_at(cut).ok()?;
            front.push(before);
            back.push(behind);
            missing -= cut;
        }
        if missing > 0 {
            return None;
        }
        *self = front;
        Some(back)
    }

    /// The bytes in `range`, as far as they exist, for somebody who keeps them beyond the chain's life. None if they are
    /// not in `memory`, which is where they must be from.
    pub fn to_segments(&self, range: Range<usize>, memory: &MemoryHold) -> Option<Segments> {
        if !self.slices().iter().all(|slice| memory.contains(slice)) {
            return None;
        }
        let mut start = 0;
        let pieces = self.slices().iter().map(|slice| {
            let end = start + slice.len();
            let (from, to) = (range.start.clamp(start, end), range.end.clamp(start, end));
            let address = slice.ptr_guard_mut().as_ptr().wrapping_add(from - start);
            start = end;
            libc::iovec { iov_base: address.cast(), iov_len: to.saturating_sub(from) }
        });
        // SAFETY: the pieces are parts of slices that are inside mappings that `memory` owns.
        Some(unsafe { Segments::new(pieces, Arc::clone(&memory.0) as _) })
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
        for slice in self.slices() {
            done += slice.copy_to(&mut data[done..]);
        }
        done
    }

    /// Copies as much of `data` as there is room for; returns how much that was.
    pub fn copy_from(&self, data: &[u8]) -> usize {
        let mut done = 0;
        for slice in self.slices() {
            let count = slice.len().min(data.len() - done);
            slice.copy_from(&data[done..done + count]);
            done += count;
        }
        done
    }
}

/// Keeps guest memory mapped for [`Segments`]. Each queue has one of its own: its count goes up and down with every
/// request, and threads that share a count slow each other down.
#[derive(Clone, Debug)]
pub struct MemoryHold(Arc<Share>);

#[derive(Debug)]
struct Share(Arc<GuestMemory>);

impl MemoryHold {
    /// A hold on `memory`.
    pub fn new(memory: Arc<GuestMemory>) -> Self {
        Self(Arc::new(Share(memory)))
    }

    fn contains(&self, slice: &VolatileSlice<'_>) -> bool {
        let from = slice.ptr_guard().as_ptr().addr();
        self.0.0.iter().any(|region| {
            let start = region.as_ptr().addr();
            from >= start && from + slice.len() <= start + region.size()
        })
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

    /// A mistake of Cloud Hypervisor (CVE-2026-45782): the same head twice, the first still being worked on.
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

    /// A table of its own may have more descriptors than the queue, but not the 65535 that it has room for.
    #[test]
    fn a_chain_of_unreasonable_length_is_an_error() {
        const MAX: u32 = MAX_CHAIN as u32;
        for (length, is_allowed) in [(8, true), (9, true), (MAX, true), (MAX + 1, false)] {
            let (mut driver, mut queue) = Driver::new();
            driver.descriptor(0, 0x9000, 16 * length, INDIRECT, 0);
            for index in 0..length {
                let next = if index + 1 < length { NEXT } else { 0 };
                let descriptor = Descriptor::new(0x8000, 0, next, index as u16 + 1);
                let at = GuestAddress(0x9000 + 16 * u64::from(index));
                driver.memory.write_obj(RawDescriptor::from(descriptor), at).unwrap();
            }
            driver.submit(0);
            assert_eq!(queue.pop(&driver.memory).is_ok(), is_allowed, "{length}");
        }
    }

    #[test]
    fn segments_are_parts_of_guest_memory() {
        let memory = Arc::new(GuestMemory::from_ranges(&[(GuestAddress(0), 0x1000)]).unwrap());
        let hold = MemoryHold::new(Arc::clone(&memory));
        let mut buffers = Buffers::default();
        for (address, length) in [(0, 10), (100, 20), (200, 30)] {
            buffers.push(memory.get_slice(GuestAddress(address), length).unwrap());
        }
        for (range, expected) in [
            (0..60, vec![(0, 10), (100, 20), (200, 30)]),
            (5..usize::MAX, vec![(5, 5), (100, 20), (200, 30)]),
            (10..35, vec![(100, 20), (200, 5)]),
            (59..60, vec![(229, 1)]),
            (60..70, vec![]),
            (70..80, vec![]),
        ] {
            let segments = buffers.to_segments(range.clone(), &hold).unwrap();
            let start = memory.get_host_address(GuestAddress(0)).unwrap().addr();
            let pieces: Vec<_> = segments
                .as_iovecs()
                .iter()
                .map(|piece| (piece.iov_base.addr() - start, piece.iov_len))
                .collect();
            assert_eq!(pieces, expected, "{range:?}");
        }
        let mut foreign = [0; 16];
        buffers.push(VolatileSlice::from(&mut foreign[..]));
        assert!(buffers.to_segments(0..1, &hold).is_none());
    }

    #[test]
    fn a_head_outside_the_table_is_an_error() {
        let (mut driver, mut queue) = Driver::new();
        driver.submit(8);
        assert!(queue.pop(&driver.memory).is_err());
    }

    /// A mistake of rust-vmm's queue (vm-virtio, issue 196): an index ahead by more than the ring has was believed.
    #[test]
    fn an_available_index_beyond_the_queue_is_an_error() {
        for (taken, index, is_good) in
            [(0, 8, true), (0, 9, false), (0, 0xffff, false), (3, 11, true), (3, 12, false)]
        {
            let (mut driver, mut queue) = Driver::new();
            for head in 0..8 {
                driver.descriptor(head, 0x8000, 1, 0, 0);
            }
            for head in 0..taken {
                driver.submit(head);
                queue.pop(&driver.memory).unwrap().unwrap();
                queue.push(&driver.memory, head, 0).unwrap();
            }
            driver.memory.write_obj::<u16>(index, GuestAddress(LAYOUT.available + 2)).unwrap();
            let result = queue.pop(&driver.memory);
            assert_eq!(result.is_ok(), is_good, "{index} after {taken}");
            assert!(is_good || matches!(result, Err(QueueError::Ring(_))));
        }
    }

    /// A mistake of Firecracker (CVE-2026-5747): rings were accessed by pointers whose lengths nobody knew any more. Here
    /// every access is checked against memory, and before that the whole ring is.
    #[test]
    fn a_ring_may_end_where_memory_does_and_not_behind_it() {
        const END: u64 = 0x10_0000;
        type Place = fn(&mut Layout, u64);
        let rings: [(u64, u64, Place); 3] = [
            (16 * 8, 16, |layout, at| layout.descriptors = at),
            (6 + 2 * 8, 2, |layout, at| layout.available = at),
            (6 + 8 * 8, 4, |layout, at| layout.used = at),
        ];
        for (length, alignment, place) in rings {
            let (mut driver, _) = Driver::new();
            let mut layout = LAYOUT;
            let last = (END - length) / alignment * alignment;
            place(&mut layout, last + alignment);
            assert!(Queue::new(layout, 8, true, &driver.memory).is_err(), "{layout:x?}");
            place(&mut layout, last);
            let mut queue = Queue::new(layout, 8, true, &driver.memory).unwrap();
            // Twice around, so that every byte of it is used.
            for turn in 0..16u16 {
                let head = turn % 8;
                let descriptor = RawDescriptor::from(Descriptor::new(0x8000, 1, 0, 0));
                let at = layout.descriptors + 16 * u64::from(head);
                driver.memory.write_obj(descriptor, GuestAddress(at)).unwrap();
                let slot = layout.available + 4 + 2 * u64::from(head);
                driver.memory.write_obj(head, GuestAddress(slot)).unwrap();
                driver.available += 1;
                driver.memory.write_obj(driver.available, GuestAddress(layout.available + 2)).unwrap();
                assert_eq!(queue.pop(&driver.memory).unwrap().unwrap().head, head);
                queue.push(&driver.memory, head, 0).unwrap();
                queue.needs_interrupt(&driver.memory).unwrap();
                queue.enable_doorbell(&driver.memory).unwrap();
            }
        }
    }

    /// A mistake of rust-vmm's memory (vm-memory, issue 251): what lay in two regions came back as the part in the first.
    #[test]
    fn a_buffer_in_two_regions_arrives_whole_or_not_at_all() {
        let region = |start, size| (GuestAddress(start), size);
        let memory = GuestMemory::from_ranges(&[
            region(0, 0x1_0000),
            region(0x1_0000, 0x1_0000),
            // Behind a hole.
            region(0x3_0000, 0x1_0000),
        ]);
        let mut driver = Driver { memory: memory.unwrap(), available: 0 };
        let mut queue = Queue::new(LAYOUT, 8, false, &driver.memory).unwrap();
        driver.descriptor(0, 0xfff0, 0x20, NEXT, 1);
        driver.descriptor(1, 0xff00, 0x200, WRITE, 0);
        driver.memory.write_slice(b"before and behind the border....", GuestAddress(0xfff0)).unwrap();
        driver.submit(0);
        let chain = queue.pop(&driver.memory).unwrap().unwrap();
        let mut text = [0; 0x20];
        assert_eq!(chain.readable.copy_to(&mut text), 0x20);
        assert_eq!(&text, b"before and behind the border....");
        assert_eq!(chain.writable.copy_from(&[7; 0x300]), 0x200);
        assert_eq!(driver.memory.read_obj::<u8>(GuestAddress(0x1_00ff)).unwrap(), 7);
        assert_eq!(driver.memory.read_obj::<u8>(GuestAddress(0x1_0100)).unwrap(), 0);
        for (address, length) in
            [(0x1_fff0, 0x20), (0x1_fff0, 0x1_0020), (0xfff0, 0x1_0011), (0x3_fff0, 0x11)]
        {
            let mut queue = Queue::new(LAYOUT, 8, false, &driver.memory).unwrap();
            driver.available = 0;
            driver.descriptor(0, address, length, WRITE, 0);
            driver.submit(0);
            let result = queue.pop(&driver.memory);
            assert!(matches!(result, Err(QueueError::Address(0))), "{address:#x}+{length:#x}");
        }
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
        let buffers = || {
            let mut buffers = Buffers::default();
            parts.iter().for_each(|part| buffers.push(*part));
            buffers
        };
        for at in 0..=9 {
            let mut front = buffers();
            let back = front.split_off(at).unwrap();
            assert_eq!((front.len(), back.len()), (at, 9 - at));
            let mut data = [0xff; 9];
            assert_eq!(back.copy_to(&mut data), 9 - at);
            assert_eq!(data[..9 - at], (at as u8..9).collect::<Vec<_>>());
            assert!(front.slices().iter().chain(back.slices()).all(|slice| !slice.is_empty()));
        }
        assert!(buffers().split_off(10).is_none());
    }
}
