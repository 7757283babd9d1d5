//! The driver of one queue: what it has submitted, and what came back.

use std::collections::{HashMap, VecDeque};
use std::ops::Range;

use innkeeper_vmm::virtio::queue::Layout;
use vmm_sys_util::eventfd::EventFd;

use crate::memory::{Memory, PAGE};

/// Bytes of memory for a queue's rings, and for tables of descriptors behind them.
const QUEUE_SPACE: u64 = 0x2000;
/// Where the tables are.
const TABLES: u64 = 0x1a40;
/// Descriptors in a table, and how many tables there are.
const TABLE_SIZE: usize = 8;
const TABLE_COUNT: usize = 11;

pub(crate) const NEXT: u16 = 1;
pub(crate) const WRITE: u16 = 2;
pub(crate) const INDIRECT: u16 = 4;

/// A buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Where.
    pub address: u64,
    /// How long, in bytes.
    pub length: u32,
}

impl Piece {
    /// The addresses of the pages that it is in.
    pub fn pages(&self) -> impl Iterator<Item = u64> {
        let Range { start, end } = self.range();
        (start / PAGE * PAGE..end).step_by(PAGE as usize)
    }

    pub(crate) fn range(&self) -> Range<u64> {
        self.address..self.address.saturating_add(self.length.into())
    }
}

/// What a driver has submitted.
#[derive(Clone, Debug, Default)]
pub struct Chain {
    /// For the device to read.
    pub readable: Vec<Piece>,
    /// For the device to write.
    pub writable: Vec<Piece>,
    descriptors: Vec<u16>,
    table: Option<usize>,
}

impl Chain {
    /// Bytes that the device can write.
    pub fn room(&self) -> u64 {
        self.writable.iter().map(|piece| u64::from(piece.length)).sum()
    }
}

/// What came back.
#[derive(Clone, Debug)]
pub struct Returned {
    /// The head.
    pub head: u16,
    /// How many bytes the device says it has written.
    pub written: u32,
    /// What it is, if the driver knows.
    pub chain: Option<Chain>,
}

/// The driver of one queue.
pub struct Driver {
    /// Where its rings are.
    pub layout: Layout,
    /// Rings when there is something new.
    pub doorbell: EventFd,
    /// What came back and was not looked at.
    pub returned: VecDeque<Returned>,
    free: Vec<u16>,
    free_tables: Vec<usize>,
    tables: u64,
    /// By head. A hostile driver submits one several times.
    in_flight: HashMap<u16, VecDeque<Option<Chain>>>,
    available: u16,
    used: u16,
    /// The rings are as driver and device wrote them.
    is_tracked: bool,
    /// It has done nothing that a driver must not do.
    is_by_the_book: bool,
}

impl Driver {
    /// Where a driver that works by the book has queue `index`.
    pub(crate) fn usual_layout(index: usize, size: u16) -> Layout {
        let base = index as u64 * QUEUE_SPACE;
        Layout { size, descriptors: base + 0x10, available: base + 0x1010, used: base + 0x1220 }
    }

    /// Where the rings of queue `index` are, and all that belongs to them.
    pub(crate) fn usual_space(index: usize) -> Range<u64> {
        index as u64 * QUEUE_SPACE..(index as u64 + 1) * QUEUE_SPACE
    }

    pub(crate) fn new(index: usize, layout: Layout, doorbell: EventFd, memory: &Memory) -> Self {
        let is_usual = layout == Self::usual_layout(index, layout.size);
        Self {
            layout,
            doorbell,
            returned: VecDeque::new(),
            free: (0..layout.size).rev().collect(),
            free_tables: (0..TABLE_COUNT).collect(),
            tables: index as u64 * QUEUE_SPACE + TABLES,
            in_flight: HashMap::new(),
            available: memory.word(layout.available + 2),
            used: memory.word(layout.used + 2),
            is_tracked: is_usual,
            is_by_the_book: is_usual,
        }
    }

    /// Whether it has done nothing that a driver must not do.
    pub fn is_by_the_book(&self) -> bool {
        self.is_by_the_book && self.is_tracked
    }

    /// It has done something that a driver must not do.
    pub(crate) fn leave_the_book(&mut self) {
        self.is_by_the_book = false;
    }

    /// Nobody knows what is in its rings any more.
    pub(crate) fn lose_track(&mut self) {
        self.is_tracked = false;
        self.is_by_the_book = false;
    }

    /// What is in flight under `head`, if the driver knows.
    pub fn chain(&self, head: u16) -> Option<&Chain> {
        self.in_flight.get(&head)?.front()?.as_ref()
    }

    pub(crate) fn in_flight(&self) -> usize {
        self.in_flight.values().map(VecDeque::len).sum()
    }

    /// All buffers that the device has.
    pub fn pieces_in_flight(&self) -> impl Iterator<Item = &Piece> {
        self.in_flight
            .values()
            .flatten()
            .flatten()
            .flat_map(|chain| chain.readable.iter().chain(&chain.writable))
    }

    pub(crate) fn table_range(&self) -> Range<u64> {
        self.layout.descriptors..self.layout.descriptors + 16 * u64::from(self.layout.size)
    }

    pub(crate) fn available_range(&self) -> Range<u64> {
        self.layout.available..self.layout.available + 6 + 2 * u64::from(self.layout.size)
    }

    /// Where the used ring is.
    pub fn used_range(&self) -> Range<u64> {
        self.layout.used..self.layout.used + 6 + 8 * u64::from(self.layout.size)
    }

    pub(crate) fn describe(&self, memory: &mut Memory, index: u16, piece: Piece, flags: u16, next: u16) {
        let at = self.layout.descriptors + 16 * u64::from(index);
        memory.write(at, &descriptor(piece, flags, next));
    }

    /// Puts a head into the available ring, and says so.
    pub(crate) fn submit(&mut self, memory: &mut Memory, head: u16, chain: Option<Chain>) {
        let slot = u64::from(self.available % self.layout.size);
        memory.write(self.layout.available + 4 + 2 * slot, &head.to_le_bytes());
        self.in_flight.entry(head).or_default().push_back(chain);
        self.skip(memory, 1);
    }

    pub(crate) fn skip(&mut self, memory: &mut Memory, count: u16) {
        self.available = self.available.wrapping_add(count);
        memory.write(self.layout.available + 2, &self.available.to_le_bytes());
    }

    /// Submits a chain of these pieces, if there are descriptors for it.
    pub(crate) fn submit_chain(
        &mut self,
        memory: &mut Memory,
        readable: Vec<Piece>,
        writable: Vec<Piece>,
        is_indirect: bool,
    ) -> Option<u16> {
        let all: Vec<(Piece, u16)> = readable
            .iter()
            .map(|piece| (*piece, 0))
            .chain(writable.iter().map(|piece| (*piece, WRITE)))
            .collect();
        if all.is_empty() {
            return None;
        }
        let table = if is_indirect && all.len() <= TABLE_SIZE { self.free_tables.pop() } else { None };
        let count = if table.is_some() { 1 } else { all.len() };
        if self.free.len() < count {
            self.free_tables.extend(table);
            return None;
        }
        let descriptors = self.free.split_off(self.free.len() - count);
        for (position, (piece, flags)) in all.iter().enumerate() {
            let is_last = position + 1 == all.len();
            let flags = flags | if is_last { 0 } else { NEXT };
            match table {
                Some(table) => {
                    let at = self.tables + 16 * (table * TABLE_SIZE + position) as u64;
                    memory.write(at, &descriptor(*piece, flags, position as u16 + 1));
                }
                None => {
                    let next = descriptors.get(position + 1).copied().unwrap_or(0);
                    self.describe(memory, descriptors[position], *piece, flags, next);
                }
            }
        }
        let head = descriptors[0];
        if let Some(table) = table {
            let address = self.tables + 16 * (table * TABLE_SIZE) as u64;
            let length = 16 * all.len() as u32;
            self.describe(memory, head, Piece { address, length }, INDIRECT, 0);
        }
        self.submit(memory, head, Some(Chain { readable, writable, descriptors, table }));
        Some(head)
    }

    /// Takes in what the device has given back, and complains if that cannot be.
    pub(crate) fn collect(&mut self, memory: &Memory) {
        let end = memory.word(self.layout.used + 2);
        if !self.is_tracked {
            self.used = end;
            return;
        }
        let count = usize::from(end.wrapping_sub(self.used));
        let in_flight = self.in_flight();
        assert!(count <= in_flight, "{count} chains came back, and {in_flight} were submitted");
        while self.used != end {
            let at = self.layout.used + 4 + 8 * u64::from(self.used % self.layout.size);
            let [a, b, c, d, rest @ ..] = memory.array::<8>(at).unwrap();
            let (id, written) = (u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes(rest));
            self.used = self.used.wrapping_add(1);
            let head = u16::try_from(id).expect("what comes back is a descriptor");
            let chains = self.in_flight.get_mut(&head);
            let Some(chain) = chains.and_then(VecDeque::pop_front) else {
                panic!("chain {head} came back more often than it was submitted");
            };
            if let Some(chain) = &chain {
                let room = chain.room();
                assert!(
                    !self.is_by_the_book || u64::from(written) <= room,
                    "{written} bytes were written where there was room for {room}"
                );
                self.free.extend(&chain.descriptors);
                self.free_tables.extend(chain.table);
            }
            self.returned.push_back(Returned { head, written, chain });
        }
    }
}

fn descriptor(piece: Piece, flags: u16, next: u16) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&piece.address.to_le_bytes());
    bytes[8..12].copy_from_slice(&piece.length.to_le_bytes());
    bytes[12..14].copy_from_slice(&flags.to_le_bytes());
    bytes[14..].copy_from_slice(&next.to_le_bytes());
    bytes
}
