//! A disk that is a plain file or a block device: byte N of the disk is byte N of the file.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

use nix::fcntl::{FallocateFlags, FcntlArg, fallocate, fcntl};

use crate::{Backend, SECTOR_SIZE, VolatileSlice, out_of_range};

/// The longest run of segments that one `preadv(2)` or `pwritev(2)` takes (`IOV_MAX`).
const IOV_MAX: usize = 1024;

/// Zeroes are written in pieces of this many bytes where the file system cannot zero a range itself.
const ZERO_CHUNK: usize = 64 << 10;

/// Why a file cannot serve as a raw disk.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The file cannot be opened, or its size cannot be read.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// A directory, pipe, socket or character device.
    #[error("it is neither a regular file nor a block device")]
    NotADisk,
    /// Smaller than one sector.
    #[error(
        "it holds less than one sector of {SECTOR_SIZE} bytes; give it a size first (truncate -s 1G FILE)"
    )]
    Empty,
    /// Somebody else holds the lock.
    #[error("it is in use: another process has it open as a disk (two writers would destroy it)")]
    Locked,
}

/// A disk over a plain file or a block device.
#[derive(Debug)]
pub struct RawFile {
    file: File,
    capacity: u64,
    read_only: bool,
}

impl RawFile {
    /// Opens `path` and locks it: shared when `read_only`, else exclusively.
    pub fn open(path: &Path, read_only: bool) -> Result<Self, OpenError> {
        // O_NONBLOCK: opening a pipe that nobody writes to must be an error, not a hang.
        let file = OpenOptions::new()
            .read(true)
            .write(!read_only)
            .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
            .open(path)?;
        Self::from_file(file, read_only)
    }

    /// Takes an opened file as a disk and locks it: shared when `read_only`, else exclusively.
    ///
    /// A last partial sector is not part of the disk.
    pub fn from_file(mut file: File, read_only: bool) -> Result<Self, OpenError> {
        let kind = file.metadata()?.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            return Err(OpenError::NotADisk);
        }
        // Seeking to the end gives the size of a block device too.
        let size = file.seek(SeekFrom::End(0))?;
        let capacity = size - size % SECTOR_SIZE;
        if capacity == 0 {
            return Err(OpenError::Empty);
        }
        lock(&file, read_only)?;
        Ok(Self { file, capacity, read_only })
    }

    fn check(&self, offset: u64, length: u64) -> io::Result<()> {
        match offset.checked_add(length) {
            Some(end) if end <= self.capacity => Ok(()),
            _ => Err(out_of_range(offset, length, self.capacity)),
        }
    }

    fn check_writable(&self, offset: u64, length: u64) -> io::Result<()> {
        if self.read_only {
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, "the disk is read-only"));
        }
        self.check(offset, length)
    }

    fn fallocate(&self, flags: FallocateFlags, offset: u64, length: u64) -> io::Result<()> {
        let as_offset = |value| libc::off_t::try_from(value).map_err(|_| io::ErrorKind::InvalidInput);
        fallocate(&self.file, flags, as_offset(offset)?, as_offset(length)?)?;
        Ok(())
    }

    fn write_zeroes_by_hand(&self, mut offset: u64, mut length: u64) -> io::Result<()> {
        use std::os::unix::fs::FileExt;
        let zeroes = [0u8; ZERO_CHUNK];
        while length > 0 {
            let chunk = length.min(ZERO_CHUNK as u64);
            self.file.write_all_at(&zeroes[..chunk as usize], offset)?;
            offset += chunk;
            length -= chunk;
        }
        Ok(())
    }
}

impl Backend for RawFile {
    fn capacity(&self) -> u64 {
        self.capacity
    }

    fn is_read_only(&self) -> bool {
        self.read_only
    }

    fn read(&self, offset: u64, buffers: &[VolatileSlice<'_>]) -> io::Result<()> {
        self.check(offset, total_length(buffers)?)?;
        // SAFETY: `transfer` passes segments that are valid for reads and writes of their length for the
        // whole call, and a count that fits in an int.
        transfer(
            offset,
            buffers,
            |fd, iov, count, at| unsafe { libc::preadv(fd, iov, count, at) },
            &self.file,
        )
    }

    fn write(&self, offset: u64, buffers: &[VolatileSlice<'_>]) -> io::Result<()> {
        self.check_writable(offset, total_length(buffers)?)?;
        // SAFETY: as in `read`.
        transfer(
            offset,
            buffers,
            |fd, iov, count, at| unsafe { libc::pwritev(fd, iov, count, at) },
            &self.file,
        )
    }

    fn flush(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn discard(&self, offset: u64, length: u64) -> io::Result<()> {
        self.check_writable(offset, length)?;
        if length == 0 {
            return Ok(());
        }
        let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        match self.fallocate(flags, offset, length) {
            // Discarding is a hint: where the medium cannot free space, keeping the data is correct.
            Err(error) if is_unsupported(&error) => Ok(()),
            result => result,
        }
    }

    fn write_zeroes(&self, offset: u64, length: u64, may_free: bool) -> io::Result<()> {
        self.check_writable(offset, length)?;
        if length == 0 {
            return Ok(());
        }
        let flags = if may_free {
            FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE
        } else {
            FallocateFlags::FALLOC_FL_ZERO_RANGE | FallocateFlags::FALLOC_FL_KEEP_SIZE
        };
        match self.fallocate(flags, offset, length) {
            Err(error) if is_unsupported(&error) => self.write_zeroes_by_hand(offset, length),
            result => result,
        }
    }
}

fn is_unsupported(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::ENOSYS | libc::ENOTTY | libc::EINVAL))
}

/// An open-file-description lock: it belongs to the opened file, not to the process, so it also holds when
/// the descriptor is passed on, and goes when the last copy is closed.
fn lock(file: &File, read_only: bool) -> Result<(), OpenError> {
    let kind = if read_only { libc::F_RDLCK } else { libc::F_WRLCK };
    let lock = libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    match fcntl(file, FcntlArg::F_OFD_SETLK(&lock)) {
        Ok(_) => Ok(()),
        Err(nix::Error::EAGAIN | nix::Error::EACCES) => Err(OpenError::Locked),
        // A file system without locks: nothing to be held against anybody.
        Err(nix::Error::ENOLCK | nix::Error::EOPNOTSUPP | nix::Error::EINVAL) => Ok(()),
        Err(error) => Err(OpenError::Io(error.into())),
    }
}

fn total_length(buffers: &[VolatileSlice<'_>]) -> io::Result<u64> {
    buffers
        .iter()
        .try_fold(0u64, |sum, buffer| sum.checked_add(buffer.len() as u64))
        .ok_or_else(|| io::ErrorKind::InvalidInput.into())
}

/// Runs a vectored call until all of `buffers` has gone through, continuing after short transfers.
fn transfer(
    mut offset: u64,
    buffers: &[VolatileSlice<'_>],
    call: impl Fn(RawFd, *const libc::iovec, libc::c_int, libc::off_t) -> isize,
    file: &File,
) -> io::Result<()> {
    // The guards keep the memory mapped (and, for guest memory, tracked) while the kernel uses it.
    let guards: Vec<_> = buffers.iter().map(|buffer| buffer.ptr_guard_mut()).collect();
    let mut segments: Vec<libc::iovec> = guards
        .iter()
        .filter(|guard| guard.len() > 0)
        .map(|guard| libc::iovec { iov_base: guard.as_ptr().cast(), iov_len: guard.len() })
        .collect();
    let mut rest = segments.as_mut_slice();
    while !rest.is_empty() {
        let count = rest.len().min(IOV_MAX);
        let at = libc::off_t::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput)?;
        let done = call(file.as_raw_fd(), rest.as_ptr(), count as libc::c_int, at);
        let done = match usize::try_from(done) {
            Ok(0) => {
                return Err(io::Error::new(
                    io::ErrorKind::UnexpectedEof,
                    "the file has become shorter than the disk",
                ));
            }
            Ok(done) => done,
            Err(_) => match io::Error::last_os_error() {
                error if error.kind() == io::ErrorKind::Interrupted => continue,
                error => return Err(error),
            },
        };
        offset += done as u64;
        rest = advance(rest, done);
    }
    Ok(())
}

/// Drops the first `done` bytes from a list of segments.
fn advance(mut segments: &mut [libc::iovec], mut done: usize) -> &mut [libc::iovec] {
    while let Some(first) = segments.first_mut() {
        if done < first.iov_len {
            first.iov_base = first.iov_base.wrapping_byte_add(done);
            first.iov_len -= done;
            break;
        }
        done -= first.iov_len;
        segments = &mut segments[1..];
    }
    segments
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::os::unix::fs::MetadataExt;

    fn disk(content: &[u8]) -> (tempfile::NamedTempFile, RawFile) {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(content).unwrap();
        let raw = RawFile::open(file.path(), false).unwrap();
        (file, raw)
    }

    fn slices(buffers: &mut [Vec<u8>]) -> Vec<VolatileSlice<'_>> {
        buffers.iter_mut().map(|buffer| VolatileSlice::from(buffer.as_mut_slice())).collect()
    }

    #[test]
    fn reads_what_was_written_across_segments() {
        let (_file, raw) = disk(&[0; 8192]);
        let mut out = vec![vec![1u8; 100], vec![], vec![2u8; 412], vec![3u8; 512]];
        raw.write(1024, &slices(&mut out)).unwrap();
        let mut back = vec![vec![0u8; 512], vec![0u8; 512]];
        raw.read(1024, &slices(&mut back)).unwrap();
        assert_eq!(back.concat(), out.concat());
        raw.flush().unwrap();
    }

    #[test]
    fn more_segments_than_one_call_takes() {
        let (_file, raw) = disk(&vec![0; 2 << 20]);
        let mut out: Vec<Vec<u8>> = (0..2500).map(|i| vec![i as u8; 512]).collect();
        raw.write(0, &slices(&mut out)).unwrap();
        let mut back = vec![vec![0u8; 2500 * 512]];
        raw.read(0, &slices(&mut back)).unwrap();
        assert_eq!(back[0], out.concat());
    }

    #[test]
    fn a_partial_last_sector_is_not_part_of_the_disk() {
        let (_file, raw) = disk(&[0; 1000]);
        assert_eq!(raw.capacity(), 512);
        let mut buffer = vec![vec![0u8; 512]];
        assert!(raw.read(512, &slices(&mut buffer)).is_err());
    }

    #[test]
    fn refuses_ranges_outside_the_disk() {
        let (file, raw) = disk(&[7; 4096]);
        for (offset, length) in [(4096, 512), (3584, 1024), (u64::MAX - 100, 512), (u64::MAX, 1)] {
            let mut buffer = vec![vec![0u8; length as usize]];
            assert!(raw.read(offset, &slices(&mut buffer)).is_err(), "read {offset}+{length}");
            assert!(raw.write(offset, &slices(&mut buffer)).is_err(), "write {offset}+{length}");
            assert!(raw.discard(offset, length).is_err(), "discard {offset}+{length}");
            assert!(raw.write_zeroes(offset, length, true).is_err(), "zero {offset}+{length}");
        }
        assert_eq!(file.path().metadata().unwrap().len(), 4096, "the file did not grow");
    }

    #[test]
    fn discard_frees_space_and_write_zeroes_reads_as_zero() {
        let (file, raw) = disk(&vec![0xff; 1 << 20]);
        raw.flush().unwrap();
        let before = file.path().metadata().unwrap().blocks();
        raw.discard(0, 512 << 10).unwrap();
        let after = file.path().metadata().unwrap().blocks();
        assert!(after < before, "{after} blocks of {before} left");
        for may_free in [false, true] {
            raw.write_zeroes((600 << 10) + 512, 1024, may_free).unwrap();
            let mut back = vec![vec![0u8; 2048]];
            raw.read(600 << 10, &slices(&mut back)).unwrap();
            assert_eq!(back[0][..512], [0xff; 512]);
            assert_eq!(back[0][512..1536], [0; 1024]);
            assert_eq!(back[0][1536..], [0xff; 512]);
        }
    }

    #[test]
    fn a_read_only_disk_refuses_changes() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&[5; 1024]).unwrap();
        let raw = RawFile::open(file.path(), true).unwrap();
        let mut buffer = vec![vec![0u8; 512]];
        assert!(raw.write(0, &slices(&mut buffer)).is_err());
        assert!(raw.discard(0, 512).is_err());
        assert!(raw.write_zeroes(0, 512, false).is_err());
        let mut content = Vec::new();
        file.reopen().unwrap().read_to_end(&mut content).unwrap();
        assert_eq!(content, [5; 1024]);
    }

    #[test]
    fn what_is_not_a_disk_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        assert!(matches!(RawFile::open(directory.path(), true), Err(OpenError::NotADisk)));
        assert!(matches!(RawFile::open(Path::new("/dev/null"), true), Err(OpenError::NotADisk)));
        assert!(matches!(RawFile::open(&directory.path().join("missing"), true), Err(OpenError::Io(_))));
        let empty = tempfile::NamedTempFile::new().unwrap();
        assert!(matches!(RawFile::open(empty.path(), true), Err(OpenError::Empty)));
        let pipe = directory.path().join("pipe");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(matches!(RawFile::open(&pipe, true), Err(OpenError::NotADisk)));
    }

    #[test]
    fn one_writer_or_many_readers() {
        let (file, writer) = disk(&[0; 512]);
        assert!(matches!(RawFile::open(file.path(), false), Err(OpenError::Locked)));
        assert!(matches!(RawFile::open(file.path(), true), Err(OpenError::Locked)));
        drop(writer);
        let _first = RawFile::open(file.path(), true).unwrap();
        let _second = RawFile::open(file.path(), true).unwrap();
        assert!(matches!(RawFile::open(file.path(), false), Err(OpenError::Locked)));
    }
}
