//! What any driver can do, rightly or wrongly.

use arbitrary::Arbitrary;

use crate::driver::Piece;
use crate::input::{Bytes, List};
use crate::memory::{BUFFERS, CANARY, RINGS};

/// A place in the guest's address space. Most are where something is.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub enum Address {
    /// In a queue's rings, or behind them.
    Ring(u16),
    /// Where buffers are.
    Buffer(u16),
    /// Where nobody should write.
    Canary(u16),
    /// About where one region of memory ends and another begins.
    Border(i8),
    /// About where memory ends.
    End(i8),
    /// Behind the hole, and behind the end of what is there.
    High(u16),
    /// Anywhere.
    Any(u64),
}

impl Address {
    /// The address.
    pub fn resolve(self) -> u64 {
        match self {
            Self::Ring(offset) => RINGS.start + u64::from(offset) % (RINGS.end - RINGS.start),
            Self::Buffer(offset) => BUFFERS.start + u64::from(offset),
            Self::Canary(offset) => CANARY.start + u64::from(offset % 0x2000),
            Self::Border(offset) => 0x1_8000u64.wrapping_add_signed(offset.into()),
            Self::End(offset) => CANARY.end.wrapping_add_signed(offset.into()),
            Self::High(offset) => 0x1_0000_0000 + u64::from(offset % 0x5000),
            Self::Any(address) => address,
        }
    }
}

/// How long a buffer is. Most are short.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub enum Length {
    /// Up to 255 bytes.
    Short(u8),
    /// Up to 64 KiB.
    Long(u16),
    /// This many sectors of 512 bytes.
    Sectors(u8),
    /// Anything.
    Any(u32),
}

impl Length {
    /// In bytes.
    pub fn resolve(self) -> u32 {
        match self {
            Self::Short(length) => length.into(),
            Self::Long(length) => length.into(),
            Self::Sectors(count) => u32::from(count % 32) * 512,
            Self::Any(length) => length,
        }
    }

    /// In bytes, for a buffer of a driver that works by the book.
    pub fn fitting(self) -> usize {
        self.resolve() as usize % 0x8000
    }
}

/// What a driver does by hand.
#[derive(Arbitrary, Clone, Debug)]
pub enum Act {
    /// Writes anything anywhere.
    Poke {
        /// Where.
        at: Address,
        /// What.
        bytes: Bytes,
    },
    /// Puts any descriptor in a queue's table.
    Describe {
        /// Which queue.
        queue: u8,
        /// Where in the table.
        index: u8,
        /// `addr`.
        address: Address,
        /// `len`.
        length: Length,
        /// `flags`, of which there are three that mean something.
        flags: u8,
        /// `next`.
        next: u8,
    },
    /// Submits any head.
    Submit {
        /// Which queue.
        queue: u8,
        /// What it says is the head.
        head: u16,
    },
    /// Moves a queue's available index on, as if there were so many more.
    Skip {
        /// Which queue.
        queue: u8,
        /// How far.
        count: u16,
    },
    /// Says when it wants interrupts, by flags and by an index.
    Suppress {
        /// Which queue.
        queue: u8,
        /// `flags` of the available ring.
        flags: u16,
        /// `used_event`.
        event: u16,
    },
    /// Gives the device buffers of its own choice, from somewhere in memory: a whole chain, but not a careful one.
    Offer {
        /// Which queue.
        queue: u8,
        /// For the device to read.
        readable: List<(Address, Length)>,
        /// For the device to write.
        writable: List<(Address, Length)>,
        /// Whether the descriptors are in a table of their own.
        is_indirect: bool,
    },
}

/// Pieces of memory, as they are named.
pub(crate) fn pieces(named: &[(Address, Length)]) -> Vec<Piece> {
    let piece = |(address, length): &(Address, Length)| Piece {
        address: address.resolve(),
        length: length.resolve(),
    };
    named.iter().map(piece).collect()
}
