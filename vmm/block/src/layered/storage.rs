//! What a layer's files are to a volume, so that a test can put something else in their place.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use nix::errno::Errno;
use nix::unistd::{Whence, lseek};

use crate::Operation;
use crate::raw::Disk;

/// Fills `buffer` from `offset` of a file on, with zeroes behind the end. Returns how many bytes there were.
pub fn read_file(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut done = 0;
    while let Some(rest) = buffer.get_mut(done..).filter(|rest| !rest.is_empty()) {
        match file.read_at(rest, offset + done as u64) {
            Ok(0) => {
                rest.fill(0);
                break;
            }
            Ok(more) => done += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}

/// A file that grows and has holes.
pub trait Storage: Send + Sync {
    /// Makes it at least `size` bytes large.
    fn grow(&self, size: u64) -> io::Result<()>;

    /// How many bytes it has.
    fn size(&self) -> io::Result<u64>;

    /// Carries out an operation, and returns when it is done.
    fn run(&self, operation: &mut Operation) -> io::Result<()>;

    /// Fills `buffer` from `offset` on, with zeroes behind the end. Returns how many bytes there were.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;

    /// Where something else than a hole begins, at `offset` or later. Where that cannot be told it is `offset`.
    fn next_data(&self, offset: u64) -> io::Result<Option<u64>>;

    /// The first run of bytes, at `offset` or later, that may be something else than a hole. Where that cannot be told it is
    /// all that there is.
    fn next_extent(&self, offset: u64) -> io::Result<Option<Range<u64>>> {
        let Some(start) = self.next_data(offset)? else { return Ok(None) };
        let end = self.size()?;
        Ok((start < end).then_some(start..end))
    }

    /// Writes all of `data`, and makes the file longer if need be.
    fn write_at(&self, data: &[u8], offset: u64) -> io::Result<()>;

    /// Makes everything that was written survive a crash of the host.
    fn sync(&self) -> io::Result<()>;

    /// Lets others read the file as a layer too, but nobody write to it.
    fn share(&self) -> io::Result<()> {
        Ok(())
    }

    /// The file itself, for engines that work on it on their own.
    fn disk(&self) -> Option<&Arc<Disk>> {
        None
    }
}

impl Storage for Arc<Disk> {
    fn grow(&self, size: u64) -> io::Result<()> {
        if size > self.capacity() { self.resize(size) } else { Ok(()) }
    }

    fn size(&self) -> io::Result<u64> {
        Ok(self.file().metadata()?.len())
    }

    fn run(&self, operation: &mut Operation) -> io::Result<()> {
        self.check(operation)?;
        Disk::run(self, operation)
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        read_file(self.file(), buffer, offset)
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<u64>> {
        let start = libc::off_t::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput)?;
        match lseek(self.file(), start, Whence::SeekData) {
            Ok(found) => Ok(Some(u64::try_from(found).unwrap_or(offset))),
            Err(Errno::ENXIO) => Ok(None),
            Err(Errno::EINVAL | Errno::EOPNOTSUPP) => Ok(Some(offset)),
            Err(error) => Err(error.into()),
        }
    }

    fn next_extent(&self, offset: u64) -> io::Result<Option<Range<u64>>> {
        let Some(start) = self.next_data(offset)? else { return Ok(None) };
        let from = libc::off_t::try_from(start).map_err(|_| io::ErrorKind::InvalidInput)?;
        let end = match lseek(self.file(), from, Whence::SeekHole) {
            Ok(found) => u64::try_from(found).unwrap_or(start),
            Err(Errno::ENXIO | Errno::EINVAL | Errno::EOPNOTSUPP) => self.size()?,
            Err(error) => return Err(error.into()),
        };
        Ok((start < end).then_some(start..end))
    }

    fn write_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        self.file().write_all_at(data, offset)
    }

    fn sync(&self) -> io::Result<()> {
        self.file().sync_data()
    }

    fn share(&self) -> io::Result<()> {
        Disk::share(self)
    }

    fn disk(&self) -> Option<&Arc<Disk>> {
        Some(self)
    }
}
