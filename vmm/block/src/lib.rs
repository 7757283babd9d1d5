//! Disk backends: what a virtual disk reads from and writes to.
//!
//! A [`Backend`] knows bytes, offsets and durability; it knows nothing of virtio, queues or guests. Each queue
//! of a device gets an [`Engine`] of its own from it, hands [`Operation`]s over, and asks for what has become of
//! them. An operation owns what it needs, so that it may outlive whoever submitted it.
//!
//! [`RawFile`] is a plain file or block device. [`Layered`] is a stack of layers that volumes share, with one of its own
//! on top that takes what is written.
//!
//! Formats are named by whoever opens the disk and never guessed from its content: a guest could otherwise write a
//! header that turns its disk into another file of the host.

// Nothing that a guest, a user or a disk can influence may end the process.
#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used))]

pub mod layered;
mod raw;
mod segments;
mod uring;

use std::io;
use std::os::fd::BorrowedFd;

pub use layered::Layered;
pub use raw::{EngineKind, FileIdentity, OpenError, RawFile, open};
pub use segments::Segments;

/// The unit of a disk's size and of every request: 512 bytes, whatever the medium's own block size is
/// (virtio 1.2, section 5.2.4).
pub const SECTOR_SIZE: u64 = 512;

/// What a disk reads from and writes to.
pub trait Backend: Send + Sync {
    /// The disk's size in bytes, a multiple of [`SECTOR_SIZE`].
    fn capacity(&self) -> u64;

    /// Whether writing, discarding and zeroing are refused.
    fn is_read_only(&self) -> bool;

    /// Makes the disk `size` bytes large. What is in flight is not disturbed, and engines know the new size at once.
    ///
    /// Fails, and changes nothing, if `size` is not a multiple of [`SECTOR_SIZE`], is less than the capacity, or is
    /// more than what the disk is on has or can be given.
    fn resize(&self, size: u64) -> io::Result<()>;

    /// The files that the disk is on, as far as it is on any.
    fn files(&self) -> Vec<FileUse> {
        Vec::new()
    }

    /// A way to the disk for one queue, with up to `depth` operations at a time.
    fn engine(&self, depth: u16) -> io::Result<Box<dyn Engine>>;
}

/// A file that a disk is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileUse {
    /// Which.
    pub file: FileIdentity,
    /// Whether the disk writes to it.
    pub is_written: bool,
}

impl FileUse {
    /// Whether two disks cannot have the file, or what each has, at the same time. Locks do not tell: they belong to the
    /// opened file, of which somebody may have two copies.
    pub fn collides_with(&self, other: &Self) -> bool {
        self.file == other.file && (self.is_written || other.is_written)
    }
}

/// Something to do with a disk. All offsets and lengths are in bytes.
#[derive(Debug)]
pub enum Operation {
    /// Fill the segments, in order, from `offset` on.
    Read {
        /// Where to begin.
        offset: u64,
        /// What to fill.
        segments: Segments,
    },
    /// Write the segments, in order, from `offset` on. Not durable before the next flush.
    Write {
        /// Where to begin.
        offset: u64,
        /// What to write.
        segments: Segments,
    },
    /// Make every write that was completed before this was submitted survive a crash of the host. Once one has failed because
    /// the medium did, all later ones fail: nobody knows what is durable.
    Flush,
    /// The content of the range is no longer needed; it may read as anything afterwards.
    Discard {
        /// Where to begin.
        offset: u64,
        /// How far.
        length: u64,
    },
    /// Make the range read as zeroes.
    WriteZeroes {
        /// Where to begin.
        offset: u64,
        /// How far.
        length: u64,
        /// Whether its space may be given back as well.
        may_free: bool,
    },
}

/// What has become of an operation: all of it was done, or it failed, and then the content of its range is
/// unspecified.
#[derive(Debug)]
pub struct Completion {
    /// The slot that it was submitted with.
    pub slot: u16,
    /// How it went.
    pub result: io::Result<()>,
}

/// A queue's way to a disk. Operations complete in any order. Dropping an engine waits for those in flight.
///
/// An engine may be made in one thread and used in another, but from the first operation to the drop that is one
/// thread.
pub trait Engine: Send {
    /// Takes an operation over. `slot` is below the engine's depth, and no other operation in flight has it.
    fn submit(&mut self, slot: u16, operation: Operation);

    /// Sets everything that was submitted going.
    fn start(&mut self) -> io::Result<()>;

    /// The next operation that is completed, if there is one. If not, [`Engine::event`] tells when to ask again; it
    /// may be silent for as long as nobody has been told that there is none.
    fn complete(&mut self) -> Option<Completion>;

    /// Becomes readable, edge by edge, when an operation has completed. None for an engine whose operations are
    /// completed when [`Engine::start`] returns.
    fn event(&self) -> Option<BorrowedFd<'_>>;
}

/// Checks that an operation lies inside a disk of `capacity` bytes, and is allowed there.
fn check(operation: &Operation, capacity: u64, is_read_only: bool) -> io::Result<()> {
    let (offset, length, changes) = match operation {
        Operation::Read { offset, segments } => (*offset, segments.len() as u64, false),
        Operation::Write { offset, segments } => (*offset, segments.len() as u64, true),
        Operation::Flush => return Ok(()),
        Operation::Discard { offset, length } | Operation::WriteZeroes { offset, length, .. } => {
            (*offset, *length, true)
        }
    };
    if changes && is_read_only {
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, "the disk is read-only"));
    }
    match offset.checked_add(length) {
        Some(end) if end <= capacity => Ok(()),
        _ => Err(out_of_range(offset, length, capacity)),
    }
}

/// The error for a range that does not lie inside the disk.
fn out_of_range(offset: u64, length: u64, capacity: u64) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidInput,
        format!("{length} bytes at {offset} are outside a disk of {capacity} bytes"),
    )
}
