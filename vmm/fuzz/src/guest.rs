//! A guest: its memory, and a driver for each queue of one device.

use std::ops::Range;

use arbitrary::Arbitrary;

use innkeeper_vmm::virtio::queue::{Layout, QueueError};
use innkeeper_vmm::virtio::{Activation, harness};

use crate::act::{Act, Address, pieces};
use crate::driver::{Driver, INDIRECT, Piece, WRITE};
use crate::input::List;
use crate::memory::{BUFFERS, Memory, RINGS};

/// How a driver sets up a queue.
#[derive(Arbitrary, Clone, Debug)]
pub enum QueueSetup {
    /// By the book, with 2^n entries, as far as the device allows.
    Usual(u8),
    /// With as many entries as the device allows.
    Largest,
    /// Not at all.
    Missing,
    /// Anywhere, with any size.
    Odd {
        /// `queue_size`.
        size: u16,
        /// `queue_desc`.
        descriptors: Address,
        /// `queue_driver`.
        available: Address,
        /// `queue_device`.
        used: Address,
    },
}

/// How a driver sets up a device.
#[derive(Arbitrary, Clone, Debug)]
pub struct Setup {
    /// What it accepts of the features on offer.
    pub features: u64,
    /// Whether it accepts `VIRTIO_F_EVENT_IDX`.
    pub event_idx: bool,
    /// The queues, from the first on. Those that are not said are as large as they can be.
    pub queues: List<QueueSetup>,
}

/// A guest and its drivers.
#[derive(Default)]
pub struct Guest {
    /// Its memory.
    pub memory: Memory,
    /// By queue; none where the driver has set up none.
    pub drivers: Vec<Option<Driver>>,
    next_buffer: u64,
    /// Buffers lie over each other, or somebody wrote where they are.
    is_content_unknown: bool,
    /// It has said something, in a ring that is as it should be, that a device may give up on.
    may_be_given_up: bool,
}

impl Guest {
    /// The driver sets up a device that offers `features` and queues of these sizes. None if the device does not get as
    /// far as to be activated.
    pub fn activate(&mut self, setup: &Setup, features: u64, sizes: &[u16]) -> Option<Activation> {
        self.reset();
        let mut queues = Vec::new();
        for (index, largest) in sizes.iter().enumerate() {
            let setting = setup.queues.get(index).unwrap_or(&QueueSetup::Largest);
            let layout = match setting {
                QueueSetup::Usual(exponent) => {
                    Driver::usual_layout(index, 1 << (exponent % 9).min(largest.ilog2() as u8))
                }
                QueueSetup::Largest => Driver::usual_layout(index, *largest),
                QueueSetup::Missing => {
                    queues.push(None);
                    self.drivers.push(None);
                    continue;
                }
                QueueSetup::Odd { size, descriptors, available, used } => Layout {
                    size: *size,
                    descriptors: descriptors.resolve(),
                    available: available.resolve(),
                    used: used.resolve(),
                },
            };
            let queue = harness::queue(layout, *largest, setup.event_idx, self.memory.shared()).ok()?;
            assert_eq!(queue.queue.layout(), layout, "a queue is where the driver has put it");
            let doorbell = queue.doorbell.try_clone().unwrap();
            self.drivers.push(Some(Driver::new(index, layout, doorbell, &self.memory)));
            queues.push(Some(queue));
        }
        self.see_whose_rings_overlap();
        Some(harness::activation(self.memory.shared(), setup.features & features, queues))
    }

    /// A driver may put the rings of one queue over those of another.
    fn see_whose_rings_overlap(&mut self) {
        let rings = |driver: &Driver| [driver.table_range(), driver.available_range(), driver.used_range()];
        let all: Vec<_> = self.drivers.iter().map(|driver| driver.as_ref().map(rings)).collect();
        for (index, driver) in self.drivers.iter_mut().enumerate() {
            let space = Driver::usual_space(index);
            let mut others = all.iter().enumerate().filter(|(other, _)| *other != index);
            let is_shared =
                others.any(|(_, rings)| rings.iter().flatten().any(|range| overlap(range, &space)));
            if let Some(driver) = driver
                && is_shared
            {
                driver.lose_track();
            }
        }
    }

    /// There is no device any more.
    pub fn reset(&mut self) {
        self.drivers.clear();
        self.memory.forbid();
        self.memory.write(RINGS.start, &vec![0; (RINGS.end - RINGS.start) as usize]);
        self.next_buffer = 0;
        self.is_content_unknown = false;
        self.may_be_given_up = false;
    }

    /// The driver of queue `index`.
    pub fn driver(&mut self, index: usize) -> Option<&mut Driver> {
        self.drivers.get_mut(index)?.as_mut()
    }

    /// Whether no driver has done what a driver must not do.
    pub fn is_by_the_book(&self) -> bool {
        self.drivers.iter().flatten().all(Driver::is_by_the_book)
    }

    /// Whether nobody but the device has written to buffers since they were submitted, and every byte of them has one
    /// meaning.
    pub fn is_content_known(&self) -> bool {
        self.is_by_the_book() && !self.is_content_unknown && !self.memory.is_blind()
    }

    /// From now on a device may give up on the driver, although its rings are as they should be.
    pub fn may_be_given_up(&mut self) {
        self.may_be_given_up = true;
    }

    /// Rings a doorbell.
    pub fn ring(&mut self, queue: usize) {
        if let Some(driver) = self.driver(queue) {
            let _ = driver.doorbell.write(1);
        }
    }

    /// Rings all of them.
    pub fn ring_all(&mut self) {
        (0..self.drivers.len()).for_each(|queue| self.ring(queue));
    }

    /// Room for a buffer, which is somebody else's too if there is no other.
    fn buffer(&mut self, length: usize) -> Piece {
        let length = (length as u64).min(BUFFERS.end - BUFFERS.start);
        if BUFFERS.start + self.next_buffer + length > BUFFERS.end {
            self.next_buffer = 0;
        }
        let piece = Piece { address: BUFFERS.start + self.next_buffer, length: length as u32 };
        self.next_buffer += length;
        let range = piece.range();
        let is_shared = self
            .drivers
            .iter()
            .flatten()
            .flat_map(Driver::pieces_in_flight)
            .any(|other| overlap(&other.range(), &range));
        self.is_content_unknown |= is_shared;
        piece
    }

    /// Submits a chain of buffers with the given content, and of buffers of the given lengths for the device. Returns
    /// its head, if there was room for it.
    pub fn submit(
        &mut self,
        queue: usize,
        readable: &[&[u8]],
        writable: &[usize],
        is_indirect: bool,
    ) -> Option<u16> {
        self.driver(queue)?;
        let mut sent = Vec::new();
        for content in readable {
            let piece = self.buffer(content.len());
            self.memory.write(piece.address, &content[..piece.length as usize]);
            sent.push(piece);
        }
        let received: Vec<_> = writable.iter().map(|length| self.buffer(*length)).collect();
        // Where there was no more room, it went on from the start, perhaps over a part of its own.
        let mut all: Vec<_> = sent.iter().chain(&received).map(Piece::range).collect();
        all.sort_by_key(|range| range.start);
        self.is_content_unknown |= all.windows(2).any(|pair| pair[0].end > pair[1].start);
        self.submit_pieces(queue, sent, received, is_indirect)
    }

    fn submit_pieces(
        &mut self,
        queue: usize,
        readable: Vec<Piece>,
        writable: Vec<Piece>,
        is_indirect: bool,
    ) -> Option<u16> {
        let Self { memory, drivers, .. } = self;
        let driver = drivers.get_mut(queue)?.as_mut()?;
        if !driver.is_by_the_book() && driver.in_flight() >= usize::from(driver.layout.size) {
            driver.lose_track();
        }
        driver.submit_chain(memory, readable, writable, is_indirect)
    }

    /// Does what a driver does by hand.
    pub fn act(&mut self, act: Act) {
        let count = self.drivers.len().max(1);
        let Self { memory, drivers, .. } = self;
        match act {
            Act::Poke { at, bytes } => {
                let address = at.resolve();
                memory.write(address, &bytes);
                let written = address..address.saturating_add(bytes.len() as u64);
                for (index, driver) in drivers.iter_mut().enumerate() {
                    if let Some(driver) = driver
                        && overlap(&written, &Driver::usual_space(index))
                    {
                        driver.lose_track();
                    }
                }
                self.is_content_unknown = true;
            }
            Act::Describe { queue, index, address, length, flags, next } => {
                let Some(driver) = pick(drivers, queue) else { return };
                let piece = Piece { address: address.resolve(), length: length.resolve() };
                driver.describe(
                    memory,
                    u16::from(index) % driver.layout.size,
                    piece,
                    u16::from(flags % 8),
                    next.into(),
                );
                driver.leave_the_book();
            }
            Act::Submit { queue, head } => {
                let Some(driver) = pick(drivers, queue) else { return };
                // Most heads should be ones that exist.
                let head = if head & 0xf000 == 0xf000 { head } else { head % driver.layout.size };
                driver.leave_the_book();
                if driver.in_flight() >= usize::from(driver.layout.size) {
                    driver.lose_track();
                }
                driver.submit(memory, head, None);
            }
            Act::Skip { queue, count } => {
                let Some(driver) = pick(drivers, queue) else { return };
                driver.lose_track();
                driver.skip(memory, count);
            }
            Act::Suppress { queue, flags, event } => {
                let Some(driver) = pick(drivers, queue) else { return };
                let Layout { size, available, .. } = driver.layout;
                memory.write(available, &flags.to_le_bytes());
                memory.write(available + 4 + 2 * u64::from(size), &event.to_le_bytes());
            }
            Act::Offer { queue, readable, writable, is_indirect } => {
                let (readable, writable) = (pieces(&readable), pieces(&writable));
                let queue = usize::from(queue) % count;
                if let Some(driver) = self.driver(queue) {
                    driver.leave_the_book();
                }
                self.is_content_unknown = true;
                self.submit_pieces(queue, readable, writable, is_indirect);
            }
        }
    }

    /// Takes down what a device may change when it is called next: all that a descriptor offers for writing, whether it
    /// was submitted or not.
    pub fn may_change(&mut self) {
        let Self { memory, drivers, .. } = self;
        let mut says_what_may_change = Vec::new();
        for driver in drivers.iter().flatten() {
            says_what_may_change.extend([driver.table_range(), driver.available_range()]);
            memory.allow(driver.used_range());
            for (piece, flags) in descriptors(memory, driver.table_range()) {
                if flags & INDIRECT == 0 {
                    if flags & WRITE != 0 {
                        memory.allow(piece.range());
                    }
                    continue;
                }
                says_what_may_change.push(piece.range());
                for (piece, flags) in descriptors(memory, piece.range()) {
                    if flags & WRITE != 0 {
                        memory.allow(piece.range());
                    }
                }
            }
        }
        if says_what_may_change.iter().any(|range| memory.may_change(range)) {
            memory.go_blind();
        }
        for (index, driver) in drivers.iter_mut().enumerate() {
            let Some(driver) = driver else { continue };
            // All that a device has to say there is in the used ring.
            let (space, used) = (Driver::usual_space(index), driver.used_range());
            let is_offered = memory.allowed().any(|range| range != used && overlap(&range, &space));
            if memory.is_blind() || is_offered {
                driver.lose_track();
            }
        }
    }

    /// Takes in what a device has done, and complains if that cannot be.
    pub fn has_changed(&mut self) {
        self.memory.compare();
        for driver in self.drivers.iter_mut().flatten() {
            driver.collect(&self.memory);
        }
    }

    /// Complains if a device gave up on a driver that did nothing wrong.
    pub(crate) fn judge(&self, result: &Result<(), QueueError>) {
        if let Err(error) = result {
            let is_excused = !self.is_by_the_book() || self.may_be_given_up || self.memory.is_blind();
            assert!(is_excused, "a driver by the book was told: {error}");
        }
    }
}

/// The driver of queue `queue`, or of another if there are not so many.
fn pick(drivers: &mut [Option<Driver>], queue: u8) -> Option<&mut Driver> {
    let count = drivers.len().max(1);
    drivers.get_mut(usize::from(queue) % count)?.as_mut()
}

fn overlap(a: &Range<u64>, b: &Range<u64>) -> bool {
    a.start < b.end && b.start < a.end
}

/// The descriptors in a table, as far as it exists, without those that are all zero.
fn descriptors(memory: &Memory, table: Range<u64>) -> Vec<(Piece, u16)> {
    let decode = |bytes: &[u8; 16]| {
        let [address, rest] =
            [0, 8].map(|at| u64::from_le_bytes(std::array::from_fn(|index| bytes[at + index])));
        (Piece { address, length: rest as u32 }, (rest >> 32) as u16)
    };
    let across;
    let bytes = match memory.slice(&table) {
        Some(bytes) => bytes,
        None => {
            across = memory.read(table.start, table.end - table.start);
            &across
        }
    };
    // Most tables are empty for the most part.
    const EMPTY: [u8; 0x100] = [0; 0x100];
    let parts = bytes.chunks(EMPTY.len()).filter(|part| *part != &EMPTY[..part.len()]);
    parts.flat_map(|part| part.as_chunks().0).map(decode).collect()
}
