//! Disk backends: what a virtual disk reads from and writes to.
//!
//! A [`Backend`] knows bytes, offsets and durability; it knows nothing of virtio, queues or guests. The
//! device in front of it has already checked a request's bounds, and a backend checks them again, because
//! a disk that is written past its end is lost data.
//!
//! [`RawFile`] is a plain file or block device. Formats are named by whoever opens the disk and never
//! guessed from its content: a guest could otherwise write a header that turns its disk into another
//! file of the host.

// Nothing that a guest, a user or a disk can influence may end the process.
#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used))]

mod raw;

use std::io;

pub use raw::{OpenError, RawFile};
pub use vm_memory::VolatileSlice;

/// The unit of a disk's size and of every request: 512 bytes, whatever the medium's own block size is
/// (virtio 1.2, section 5.2.4).
pub const SECTOR_SIZE: u64 = 512;

/// What a disk reads from and writes to.
///
/// All offsets and lengths are in bytes. A call either does all it was asked to, or fails; after a failure
/// the content of the affected range is unspecified. Several threads may call at once.
pub trait Backend: Send + Sync {
    /// The disk's size in bytes, a multiple of [`SECTOR_SIZE`].
    fn capacity(&self) -> u64;

    /// Whether writing, discarding and zeroing are refused.
    fn is_read_only(&self) -> bool;

    /// Fills `buffers`, in order, from `offset` on.
    fn read(&self, offset: u64, buffers: &[VolatileSlice<'_>]) -> io::Result<()>;

    /// Writes `buffers`, in order, from `offset` on. Not durable before the next [`Backend::flush`].
    fn write(&self, offset: u64, buffers: &[VolatileSlice<'_>]) -> io::Result<()>;

    /// Makes every write that was completed before this call survive a crash of the host.
    fn flush(&self) -> io::Result<()>;

    /// Says that the content of the range is no longer needed; it may read as anything afterwards.
    fn discard(&self, offset: u64, length: u64) -> io::Result<()>;

    /// Makes the range read as zeroes. With `may_free`, its space may be given back as well.
    fn write_zeroes(&self, offset: u64, length: u64, may_free: bool) -> io::Result<()>;
}

/// The error for a range that does not lie inside the disk.
fn out_of_range(offset: u64, length: u64, capacity: u64) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidInput,
        format!("{length} bytes at {offset} are outside a disk of {capacity} bytes"),
    )
}
