//! A disk that is a plain file or a block device: byte N of the disk is byte N of the file.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;

use nix::fcntl::{FallocateFlags, FcntlArg, fallocate, fcntl};

use crate::uring::UringEngine;
use crate::{Backend, Completion, Engine, Operation, SECTOR_SIZE, Segments, out_of_range};

/// The longest run of pieces that the kernel takes at once (`IOV_MAX`).
const IOV_MAX: usize = 1024;

/// Zeroes are written in pieces of this many bytes where the file system cannot zero a range itself.
const ZERO_CHUNK: usize = 64 << 10;

/// Why a file cannot serve as a raw disk.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The file cannot be opened, or its size cannot be read.
    #[error(transparent)]
    Io(io::Error),
    /// It belongs to somebody else.
    #[error("permission denied (run as root, or give the file to your user or group)")]
    Permission,
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

/// How a disk's requests are carried out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EngineKind {
    /// With `io_uring` where the kernel has it, else synchronously.
    #[default]
    Auto,
    /// With `io_uring`, or not at all.
    IoUring,
    /// One by one, in the thread that serves the queue.
    Synchronous,
}

/// A disk over a plain file or a block device.
#[derive(Clone, Debug)]
pub struct RawFile {
    disk: Arc<Disk>,
    engine: EngineKind,
}

/// The file, as engines share it.
#[derive(Debug)]
pub(crate) struct Disk {
    file: File,
    capacity: u64,
    read_only: bool,
}

impl From<io::Error> for OpenError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::PermissionDenied => Self::Permission,
            _ => Self::Io(error),
        }
    }
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
        Ok(Self { disk: Arc::new(Disk { file, capacity, read_only }), engine: EngineKind::default() })
    }

    #[cfg(test)]
    pub(crate) fn into_disk(self) -> Arc<Disk> {
        self.disk
    }

    /// The same disk, served by engines of this kind.
    pub fn with_engine(self, engine: EngineKind) -> Self {
        Self { engine, ..self }
    }
}

impl Backend for RawFile {
    fn capacity(&self) -> u64 {
        self.disk.capacity
    }

    fn is_read_only(&self) -> bool {
        self.disk.read_only
    }

    fn engine(&self, depth: u16) -> io::Result<Box<dyn Engine>> {
        let disk = Arc::clone(&self.disk);
        let synchronous =
            |disk| Ok(Box::new(SynchronousEngine { disk, done: VecDeque::new() }) as Box<dyn Engine>);
        if self.engine == EngineKind::Synchronous {
            return synchronous(disk);
        }
        match UringEngine::new(Arc::clone(&disk), depth) {
            Ok(engine) => Ok(Box::new(engine)),
            Err(error) if self.engine == EngineKind::Auto => {
                tracing::debug!(%error, "no io_uring; disk requests are served one by one");
                synchronous(disk)
            }
            Err(error) => Err(error),
        }
    }
}

/// The fallback where there is no `io_uring`.
struct SynchronousEngine {
    disk: Arc<Disk>,
    done: VecDeque<Completion>,
}

impl Engine for SynchronousEngine {
    fn submit(&mut self, slot: u16, mut operation: Operation) {
        let result = self.disk.check(&operation).and_then(|()| self.disk.run(&mut operation));
        self.done.push_back(Completion { slot, result });
    }

    fn start(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn complete(&mut self) -> Option<Completion> {
        self.done.pop_front()
    }

    fn event(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

pub(crate) const DISCARD: FallocateFlags =
    FallocateFlags::FALLOC_FL_PUNCH_HOLE.union(FallocateFlags::FALLOC_FL_KEEP_SIZE);

pub(crate) fn zero_flags(may_free: bool) -> FallocateFlags {
    if may_free {
        DISCARD
    } else {
        FallocateFlags::FALLOC_FL_ZERO_RANGE | FallocateFlags::FALLOC_FL_KEEP_SIZE
    }
}

pub(crate) fn is_unsupported(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::ENOSYS | libc::ENOTTY | libc::EINVAL))
}

/// The error for a transfer that met the end of the file.
pub(crate) fn too_short() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "the file has become shorter than the disk")
}

/// As many pieces as the kernel takes at once: where they are and how many.
pub(crate) fn first_pieces(segments: &Segments) -> (*const libc::iovec, u32) {
    let pieces = segments.as_iovecs();
    (pieces.as_ptr(), pieces.len().min(IOV_MAX) as u32)
}

impl Disk {
    /// Checks that an operation lies inside the disk and is allowed.
    pub fn check(&self, operation: &Operation) -> io::Result<()> {
        let (offset, length, changes) = match operation {
            Operation::Read { offset, segments } => (*offset, segments.len() as u64, false),
            Operation::Write { offset, segments } => (*offset, segments.len() as u64, true),
            Operation::Flush => return Ok(()),
            Operation::Discard { offset, length } | Operation::WriteZeroes { offset, length, .. } => {
                (*offset, *length, true)
            }
        };
        if changes && self.read_only {
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, "the disk is read-only"));
        }
        match offset.checked_add(length) {
            Some(end) if end <= self.capacity => Ok(()),
            _ => Err(out_of_range(offset, length, self.capacity)),
        }
    }

    /// Carries out an operation that was checked, and returns when it is done.
    pub fn run(&self, operation: &mut Operation) -> io::Result<()> {
        match operation {
            Operation::Read { offset, segments } => self.transfer(*offset, segments, libc::preadv),
            Operation::Write { offset, segments } => self.transfer(*offset, segments, libc::pwritev),
            Operation::Flush => self.file.sync_data(),
            // The kernel does not take an empty range.
            Operation::Discard { length: 0, .. } | Operation::WriteZeroes { length: 0, .. } => Ok(()),
            Operation::Discard { offset, length } => match self.fallocate(DISCARD, *offset, *length) {
                // Discarding is a hint: where the medium cannot free space, keeping the data is correct.
                Err(error) if is_unsupported(&error) => Ok(()),
                result => result,
            },
            Operation::WriteZeroes { offset, length, may_free } => {
                match self.fallocate(zero_flags(*may_free), *offset, *length) {
                    Err(error) if is_unsupported(&error) => self.write_zeroes_by_hand(*offset, *length),
                    result => result,
                }
            }
        }
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

    /// Runs a vectored call until all of `segments` has gone through.
    fn transfer(
        &self,
        mut offset: u64,
        segments: &mut Segments,
        call: unsafe extern "C" fn(libc::c_int, *const libc::iovec, libc::c_int, libc::off_t) -> isize,
    ) -> io::Result<()> {
        while !segments.is_empty() {
            let (pieces, count) = first_pieces(segments);
            let at = libc::off_t::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput)?;
            // SAFETY: the call is one that reads or writes the pieces it is given, and they are valid for both.
            let done = unsafe { call(self.file.as_raw_fd(), pieces, count as libc::c_int, at) };
            match usize::try_from(done) {
                Ok(0) => return Err(too_short()),
                Ok(done) => {
                    segments.advance(done);
                    offset += done as u64;
                }
                Err(_) => match io::Error::last_os_error() {
                    error if error.kind() == io::ErrorKind::Interrupted => {}
                    error => return Err(error),
                },
            }
        }
        Ok(())
    }
}

impl AsRawFd for Disk {
    fn as_raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::segments::tests::Memory;
    use std::io::{Read, Write};
    use std::os::unix::fs::MetadataExt;

    fn disk(content: &[u8]) -> (tempfile::NamedTempFile, RawFile) {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(content).unwrap();
        let raw = RawFile::open(file.path(), false).unwrap();
        (file, raw)
    }

    /// Both engines; a kernel without `io_uring` leaves one.
    fn engines(raw: &RawFile) -> Vec<Box<dyn Engine>> {
        let kinds = [EngineKind::Synchronous, EngineKind::IoUring];
        kinds.into_iter().filter_map(|kind| raw.clone().with_engine(kind).engine(8).ok()).collect()
    }

    /// Waits for the next completion.
    fn wait(engine: &mut dyn Engine) -> Completion {
        engine.start().unwrap();
        for _ in 0..10_000 {
            if let Some(completion) = engine.complete() {
                return completion;
            }
            std::thread::sleep(std::time::Duration::from_micros(500));
        }
        panic!("nothing completes");
    }

    fn run(engine: &mut dyn Engine, operation: Operation) -> io::Result<()> {
        engine.submit(3, operation);
        let completion = wait(engine);
        assert_eq!(completion.slot, 3);
        assert!(engine.complete().is_none());
        completion.result
    }

    fn read(engine: &mut dyn Engine, offset: u64, length: usize) -> io::Result<Vec<u8>> {
        let memory = Memory::new(vec![vec![0; length]]);
        run(engine, Operation::Read { offset, segments: memory.segments() })?;
        Ok(memory.bytes())
    }

    fn write(engine: &mut dyn Engine, offset: u64, pieces: Vec<Vec<u8>>) -> io::Result<()> {
        run(engine, Operation::Write { offset, segments: Memory::new(pieces).segments() })
    }

    #[test]
    fn reads_what_was_written_across_segments() {
        let (_file, raw) = disk(&[0; 8192]);
        for mut engine in engines(&raw) {
            let pieces = vec![vec![1u8; 100], vec![], vec![2u8; 412], vec![3u8; 512]];
            write(&mut *engine, 1024, pieces.clone()).unwrap();
            assert_eq!(read(&mut *engine, 1024, 1024).unwrap(), pieces.concat());
            run(&mut *engine, Operation::Flush).unwrap();
        }
    }

    #[test]
    fn more_segments_than_one_call_takes() {
        let (_file, raw) = disk(&vec![0; 2 << 20]);
        for mut engine in engines(&raw) {
            let pieces: Vec<Vec<u8>> = (0..2500).map(|i| vec![i as u8; 512]).collect();
            write(&mut *engine, 0, pieces.clone()).unwrap();
            assert_eq!(read(&mut *engine, 0, 2500 * 512).unwrap(), pieces.concat());
        }
    }

    #[test]
    fn many_operations_are_in_flight_at_once() {
        let content: Vec<u8> = (0..8 * 4096).map(|at| (at / 4096) as u8).collect();
        let (_file, raw) = disk(&content);
        for mut engine in engines(&raw) {
            for round in 0..50 {
                let memories: Vec<Memory> = (0..8).map(|_| Memory::new(vec![vec![0xff; 4096]])).collect();
                for (slot, memory) in memories.iter().enumerate() {
                    let offset = (slot as u64 + round) % 8 * 4096;
                    engine.submit(slot as u16, Operation::Read { offset, segments: memory.segments() });
                }
                let mut slots: Vec<u16> = (0..8).map(|_| wait(&mut *engine)).map(|done| done.slot).collect();
                slots.sort_unstable();
                assert_eq!(slots, [0, 1, 2, 3, 4, 5, 6, 7]);
                for (slot, memory) in memories.iter().enumerate() {
                    assert_eq!(memory.bytes(), vec![((slot as u64 + round) % 8) as u8; 4096]);
                }
            }
        }
    }

    /// Whoever drops an engine may unmap the memory afterwards.
    #[test]
    fn an_engine_waits_for_what_is_in_flight() {
        let (file, raw) = disk(&[0; 8 * 4096]);
        for mut engine in engines(&raw) {
            for slot in 0..8u16 {
                let segments = Memory::new(vec![vec![slot as u8 + 1; 4096]]).segments();
                engine.submit(slot, Operation::Write { offset: u64::from(slot) * 4096, segments });
            }
            engine.start().unwrap();
            drop(engine);
            let content = std::fs::read(file.path()).unwrap();
            assert!((0..8).all(|slot| content[slot * 4096..][..4096] == vec![slot as u8 + 1; 4096]));
        }
    }

    #[test]
    fn a_slot_cannot_be_used_twice_or_beyond_the_depth() {
        let (_file, raw) = disk(&[0; 4096]);
        let Ok(mut engine) = raw.with_engine(EngineKind::IoUring).engine(2) else { return };
        for slot in [0, 0, 2, u16::MAX] {
            engine.submit(slot, Operation::Flush);
        }
        let results: Vec<bool> = (0..4).map(|_| wait(&mut *engine)).map(|done| done.result.is_ok()).collect();
        assert_eq!(results.iter().filter(|is_ok| **is_ok).count(), 1);
    }

    #[test]
    fn a_partial_last_sector_is_not_part_of_the_disk() {
        let (_file, raw) = disk(&[0; 1000]);
        assert_eq!(raw.capacity(), 512);
        for mut engine in engines(&raw) {
            assert!(read(&mut *engine, 512, 512).is_err());
        }
    }

    #[test]
    fn refuses_ranges_outside_the_disk() {
        let (file, raw) = disk(&[7; 4096]);
        for mut engine in engines(&raw) {
            for (offset, length) in [(4096, 512), (3584, 1024), (u64::MAX - 100, 512), (u64::MAX, 1)] {
                assert!(read(&mut *engine, offset, length as usize).is_err(), "read {offset}+{length}");
                assert!(
                    write(&mut *engine, offset, vec![vec![0; length as usize]]).is_err(),
                    "write {offset}+{length}"
                );
                assert!(
                    run(&mut *engine, Operation::Discard { offset, length }).is_err(),
                    "discard {offset}+{length}"
                );
                let zero = Operation::WriteZeroes { offset, length, may_free: true };
                assert!(run(&mut *engine, zero).is_err(), "zero {offset}+{length}");
            }
        }
        assert_eq!(file.path().metadata().unwrap().len(), 4096, "the file did not grow");
    }

    #[test]
    fn a_file_that_shrinks_is_an_error() {
        let (file, raw) = disk(&[7; 4096]);
        file.as_file().set_len(1024).unwrap();
        for mut engine in engines(&raw) {
            assert_eq!(read(&mut *engine, 512, 1024).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        }
    }

    #[test]
    fn discard_frees_space_and_write_zeroes_reads_as_zero() {
        let (file, raw) = disk(&vec![0xff; 1 << 20]);
        for mut engine in engines(&raw) {
            write(&mut *engine, 0, vec![vec![0xff; 1 << 20]]).unwrap();
            run(&mut *engine, Operation::Flush).unwrap();
            let before = file.path().metadata().unwrap().blocks();
            run(&mut *engine, Operation::Discard { offset: 0, length: 512 << 10 }).unwrap();
            let after = file.path().metadata().unwrap().blocks();
            assert!(after < before, "{after} blocks of {before} left");
            for may_free in [false, true] {
                run(
                    &mut *engine,
                    Operation::WriteZeroes { offset: (600 << 10) + 512, length: 1024, may_free },
                )
                .unwrap();
                let back = read(&mut *engine, 600 << 10, 2048).unwrap();
                assert_eq!(back[..512], [0xff; 512]);
                assert_eq!(back[512..1536], [0; 1024]);
                assert_eq!(back[1536..], [0xff; 512]);
            }
        }
    }

    #[test]
    fn a_read_only_disk_refuses_changes() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&[5; 1024]).unwrap();
        let raw = RawFile::open(file.path(), true).unwrap();
        for mut engine in engines(&raw) {
            assert!(write(&mut *engine, 0, vec![vec![0; 512]]).is_err());
            assert!(run(&mut *engine, Operation::Discard { offset: 0, length: 512 }).is_err());
            assert!(
                run(&mut *engine, Operation::WriteZeroes { offset: 0, length: 512, may_free: false })
                    .is_err()
            );
        }
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
