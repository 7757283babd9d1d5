//! Reading a disk whose contents nobody vouches for: never outside it, and never without end.

use std::cell::Cell;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// A sector of a disk, in bytes. Disks whose sectors are of 4096 bytes are not known here.
pub const SECTOR: u64 = 512;

/// How many bytes of tables, file system structures and configuration are read from a disk before it is given up: 48
/// MiB. Fedora's and Ubuntu's images take less than 1 MiB.
pub const BUDGET: u64 = 48 << 20;

/// What can be read at any place. A disk is a file, a block device, or a stack of layers.
pub trait Disk {
    /// Its size in bytes.
    fn size(&self) -> io::Result<u64>;

    /// Fills `buffer` with what is at `offset`, in bytes.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()>;
}

impl Disk for File {
    fn size(&self) -> io::Result<u64> {
        // A block device has no length in its metadata.
        io::Seek::seek(&mut &*self, io::SeekFrom::End(0))
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.read_exact_at(buffer, offset)
    }
}

impl Disk for &[u8] {
    fn size(&self) -> io::Result<u64> {
        Ok(self.len() as u64)
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let from = usize::try_from(offset).ok().and_then(|offset| self.get(offset..));
        let from = from.and_then(|from| from.get(..buffer.len())).ok_or(io::ErrorKind::UnexpectedEof)?;
        buffer.copy_from_slice(from);
        Ok(())
    }
}

/// Why something cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// Something leads outside the disk or the partition.
    #[error("something leads to byte {0}, which is behind the end: it is cut off, or corrupt")]
    Outside(u64),
    /// It goes on and on.
    #[error("there is no end to it: more than {} MiB of structures were read; it is corrupt", BUDGET >> 20)]
    Budget,
    /// The host fails.
    #[error("byte {offset} cannot be read")]
    Io {
        /// Where on the disk.
        offset: u64,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Part of a disk, and what may still be read of the disk as a whole.
#[derive(Clone, Copy)]
pub struct Region<'a> {
    disk: &'a dyn Disk,
    budget: &'a Cell<u64>,
    start: u64,
    length: u64,
}

impl<'a> Region<'a> {
    /// The whole disk. `budget` is what may be read of its structures, in bytes.
    pub fn whole(disk: &'a dyn Disk, budget: &'a Cell<u64>) -> Result<Self, ReadError> {
        let length = disk.size().map_err(|source| ReadError::Io { offset: 0, source })?;
        Ok(Self { disk, budget, start: 0, length })
    }

    /// Its size in bytes.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// Where it begins on the disk, in bytes.
    pub fn start(&self) -> u64 {
        self.start
    }

    /// Part of it, if it is inside. Both are in bytes.
    pub fn part(&self, start: u64, length: u64) -> Option<Self> {
        let end = start.checked_add(length)?;
        let start = self.start.checked_add(start)?;
        (end <= self.length).then_some(Self { start, length, ..*self })
    }

    /// Takes something from the budget that is not read but takes time as well.
    pub fn charge(&self, bytes: u64) -> Result<(), ReadError> {
        let rest = self.budget.get().checked_sub(bytes).ok_or(ReadError::Budget)?;
        self.budget.set(rest);
        Ok(())
    }

    /// Reads structures, which count.
    pub fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<(), ReadError> {
        // Many small reads take time too.
        self.charge((buffer.len() as u64).max(SECTOR))?;
        self.read_contents(offset, buffer)
    }

    /// Reads the contents of files, whose size the caller limits.
    pub fn read_contents(&self, offset: u64, buffer: &mut [u8]) -> Result<(), ReadError> {
        let end = offset.checked_add(buffer.len() as u64).ok_or(ReadError::Outside(offset))?;
        if end > self.length {
            return Err(ReadError::Outside(end));
        }
        let offset = self.start.saturating_add(offset);
        self.disk.read_at(offset, buffer).map_err(|source| ReadError::Io { offset, source })
    }

    /// Like [`Self::read`], for what has a fixed size.
    pub fn bytes<const N: usize>(&self, offset: u64) -> Result<[u8; N], ReadError> {
        let mut bytes = [0; N];
        self.read(offset, &mut bytes)?;
        Ok(bytes)
    }
}

/// A field of what was read. Outside of it everything is zero, as it is on a disk that was never written.
pub fn field<const N: usize>(data: &[u8], offset: usize) -> [u8; N] {
    data.get(offset..).and_then(|rest| rest.first_chunk()).copied().unwrap_or([0; N])
}

/// A little-endian field.
pub fn le16(data: &[u8], offset: usize) -> u16 {
    u16::from_le_bytes(field(data, offset))
}

/// A little-endian field.
pub fn le32(data: &[u8], offset: usize) -> u32 {
    u32::from_le_bytes(field(data, offset))
}

/// A little-endian field.
pub fn le64(data: &[u8], offset: usize) -> u64 {
    u64::from_le_bytes(field(data, offset))
}

/// A big-endian field.
pub fn be32(data: &[u8], offset: usize) -> u32 {
    u32::from_be_bytes(field(data, offset))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_does_not_reach_outside() {
        let disk: Vec<u8> = (0..=255).collect();
        let budget = Cell::new(BUDGET);
        let disk = disk.as_slice();
        let whole = Region::whole(&disk, &budget).unwrap();
        let part = whole.part(16, 32).unwrap();
        assert_eq!(part.bytes::<4>(4).unwrap(), [20, 21, 22, 23]);
        for (start, length) in [(0, 33), (32, 1), (u64::MAX, 1), (1, u64::MAX)] {
            assert!(part.part(start, length).is_none(), "{start} {length}");
        }
        assert!(matches!(part.bytes::<4>(30), Err(ReadError::Outside(34))));
        assert!(matches!(part.bytes::<4>(u64::MAX), Err(ReadError::Outside(_))));
    }

    #[test]
    fn reading_without_end_ends() {
        let disk = [0; 512];
        let budget = Cell::new(2 * SECTOR);
        let disk = disk.as_slice();
        let whole = Region::whole(&disk, &budget).unwrap();
        assert!(whole.bytes::<4>(0).is_ok() && whole.bytes::<512>(0).is_ok());
        assert!(matches!(whole.bytes::<1>(0), Err(ReadError::Budget)));
    }
}
