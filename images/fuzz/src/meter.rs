//! How much is read.

use std::cell::Cell;
use std::io;

use innkeeper_images::boot::{Disk, SECTOR};

/// The least that a read costs of a budget, in bytes: one of the journal's blocks.
const CHEAPEST: u64 = 128;

/// How many times more than its cost a block of the journal may be.
const LOG_SHARE: u64 = 32;

/// A disk that counts what is read of it.
pub struct Meter<'a> {
    disk: &'a [u8],
    reads: Cell<u64>,
    read: Cell<u64>,
}

impl<'a> Meter<'a> {
    /// Nothing is read yet.
    pub fn new(disk: &'a [u8]) -> Self {
        Self { disk, reads: Cell::new(0), read: Cell::new(0) }
    }

    /// How many bytes were read.
    pub fn bytes(&self) -> u64 {
        self.read.get()
    }

    /// Holds what was read to what a reader may, who had this budget and took files of so many bytes in all. Each read
    /// costs something, and what is read of structures costs at least its share.
    pub fn check(&self, budget: u64, files: u64) {
        let (reads, read) = (self.reads.get(), self.read.get());
        assert!(reads <= budget / CHEAPEST, "{reads} reads for {budget} bytes");
        let most = budget.saturating_mul(LOG_SHARE).saturating_add(files);
        assert!(read <= most, "{read} bytes were read, and there may be {most}");
    }
}

impl Disk for Meter<'_> {
    fn size(&self) -> io::Result<u64> {
        Ok(self.disk.len() as u64)
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        assert!(
            offset.checked_add(buffer.len() as u64).is_some_and(|end| end <= self.disk.len() as u64),
            "{} bytes at {offset} are not on a disk of {} sectors",
            buffer.len(),
            self.disk.len() as u64 / SECTOR
        );
        self.reads.set(self.reads.get() + 1);
        self.read.set(self.read.get() + buffer.len() as u64);
        self.disk.read_at(offset, buffer)
    }
}
