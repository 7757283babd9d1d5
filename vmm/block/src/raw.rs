//! A disk that is a plain file or a block device: byte N of the disk is byte N of the file.

use std::collections::{BTreeSet, VecDeque};
use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};

use nix::fcntl::{FallocateFlags, FcntlArg, OFlag, fallocate, fcntl};
use vmm_sys_util::eventfd::EventFd;

use crate::uring::UringEngine;
use crate::{Backend, Completion, Engine, FileUse, Operation, SECTOR_SIZE, Segments};

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
    /// It was opened for less than is to be done with it.
    #[error("it was not opened for {}", if *.read_only { "reading" } else { "reading and writing" })]
    Access {
        /// Whether it is to be read only.
        read_only: bool,
    },
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

/// Which file or block device something is, whatever it was opened by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct FileIdentity {
    device: u64,
    inode: u64,
}

impl FileIdentity {
    /// That of `file`.
    pub fn of(file: &File) -> io::Result<Self> {
        Ok(Self::from_metadata(&file.metadata()?))
    }

    fn from_metadata(metadata: &Metadata) -> Self {
        match metadata.file_type().is_block_device() {
            true => Self { device: metadata.rdev(), inode: 0 },
            false => Self { device: metadata.dev(), inode: metadata.ino() },
        }
    }
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
    /// In bytes. Only grows, so that what was inside the disk once always is.
    capacity: AtomicU64,
    /// Held while the capacity changes.
    resizing: Mutex<()>,
    read_only: bool,
    identity: FileIdentity,
    /// Writes go to the page cache, and to the medium later.
    is_cached: bool,
    /// Why no flush can succeed any more.
    impairment: OnceLock<String>,
    syncs: Mutex<Syncs>,
    /// Told when a sync is over.
    sync_over: Condvar,
    /// The next sync fails.
    #[cfg(test)]
    fails: std::sync::atomic::AtomicBool,
}

/// Syncs that are under way.
///
/// The kernel tells of data that it could not write once, and of two who ask at the same time one is told that all is well.
/// So nobody is believed until all are over that were under way then.
#[derive(Debug, Default)]
struct Syncs {
    /// How many there were.
    begun: u64,
    /// By number.
    running: BTreeSet<u64>,
    /// How many have ended.
    ended: u64,
    /// To be rung when the next one has.
    bells: Vec<EventFd>,
}

/// A sync that is over, of which it is to be seen whether it can be believed.
#[derive(Debug)]
pub(crate) struct EndedSync {
    /// How many had begun when it ended.
    others: u64,
    /// How many had ended when it was last asked for.
    asked: Option<u64>,
}

impl Syncs {
    /// Whether any is under way that began before so many had.
    fn is_any_before(&self, begun: u64) -> bool {
        self.running.first().is_some_and(|first| *first < begun)
    }
}

impl From<io::Error> for OpenError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::PermissionDenied => Self::Permission,
            _ => Self::Io(error),
        }
    }
}

/// Opens `path` to be used as a raw disk, here or elsewhere.
pub fn open(path: &Path, read_only: bool) -> Result<File, OpenError> {
    // O_NONBLOCK: opening a pipe that nobody writes to must be an error, not a hang.
    Ok(OpenOptions::new()
        .read(true)
        .write(!read_only)
        .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
        .open(path)?)
}

impl RawFile {
    /// Opens `path` and locks it: shared when `read_only`, else exclusively.
    pub fn open(path: &Path, read_only: bool) -> Result<Self, OpenError> {
        Self::from_file(open(path, read_only)?, read_only)
    }

    /// Takes an opened file as a disk and locks it: shared when `read_only`, else exclusively.
    ///
    /// A last partial sector is not part of the disk.
    pub fn from_file(file: File, read_only: bool) -> Result<Self, OpenError> {
        Self::over(Disk::from_file(file, read_only)?)
    }

    /// Takes an opened file as a disk that can only be read, whoever has locked it: the caller knows that nobody writes to
    /// it meanwhile.
    pub fn from_still_file(file: File) -> Result<Self, OpenError> {
        Self::over(Disk::from_still_file(file)?)
    }

    fn over(disk: Disk) -> Result<Self, OpenError> {
        disk.expect_content()?;
        Ok(Self { disk: Arc::new(disk), engine: EngineKind::default() })
    }

    /// The same disk, served by engines of this kind.
    pub fn with_engine(self, engine: EngineKind) -> Self {
        Self { engine, ..self }
    }
}

impl Backend for RawFile {
    fn capacity(&self) -> u64 {
        self.disk.capacity()
    }

    fn is_read_only(&self) -> bool {
        self.disk.read_only
    }

    fn files(&self) -> Vec<FileUse> {
        vec![FileUse { file: self.disk.identity(), is_written: !self.disk.read_only }]
    }

    fn resize(&self, size: u64) -> io::Result<()> {
        self.disk.resize(size)
    }

    fn engine(&self, depth: u16) -> io::Result<Box<dyn Engine>> {
        let disk = Arc::clone(&self.disk);
        let synchronous = |disk: Arc<Disk>| {
            let run = move |mut operation| disk.check(&operation).and_then(|()| disk.run(&mut operation));
            Ok(Box::new(SynchronousEngine::new(run)) as Box<dyn Engine>)
        };
        if self.engine == EngineKind::Synchronous {
            return synchronous(disk);
        }
        match UringEngine::new(Some(Arc::clone(&disk)), depth) {
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
pub(crate) struct SynchronousEngine<F> {
    run: F,
    done: VecDeque<Completion>,
}

impl<F: FnMut(Operation) -> io::Result<()> + Send> SynchronousEngine<F> {
    /// Has `run` check and carry out each operation.
    pub fn new(run: F) -> Self {
        Self { run, done: VecDeque::new() }
    }
}

impl<F: FnMut(Operation) -> io::Result<()> + Send> Engine for SynchronousEngine<F> {
    fn submit(&mut self, slot: u16, operation: Operation) {
        let result = (self.run)(operation);
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

fn invalid(message: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, message)
}

impl Disk {
    /// Takes an opened file as a disk, and locks it: shared when `read_only`, else exclusively.
    pub fn from_file(file: File, read_only: bool) -> Result<Self, OpenError> {
        Self::new(file, read_only, |file| lock(file, read_only))
    }

    /// Takes an opened file as a disk that is only read, whoever has locked it.
    pub fn from_still_file(file: File) -> Result<Self, OpenError> {
        Self::new(file, true, |_| Ok(()))
    }

    /// Fails if there is not even one sector.
    pub fn expect_content(&self) -> Result<(), OpenError> {
        if self.capacity() == 0 { Err(OpenError::Empty) } else { Ok(()) }
    }

    /// Lets others read the file too, but nobody write to it.
    pub fn share(&self) -> io::Result<()> {
        match lock(&self.file, true) {
            Err(OpenError::Io(error)) => Err(error),
            // It was ours alone.
            _ => Ok(()),
        }
    }

    /// What it is on.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Takes an opened file as a disk, and has it locked by `lock`.
    fn new(
        mut file: File,
        read_only: bool,
        lock: impl FnOnce(&File) -> Result<(), OpenError>,
    ) -> Result<Self, OpenError> {
        let metadata = file.metadata()?;
        let kind = metadata.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            return Err(OpenError::NotADisk);
        }
        // Seeking to the end gives the size of a block device too.
        let size = file.seek(SeekFrom::End(0))?;
        let capacity = size - size % SECTOR_SIZE;
        let flags = OFlag::from_bits_retain(fcntl(&file, FcntlArg::F_GETFL).map_err(io::Error::from)?);
        match (flags & OFlag::O_ACCMODE, read_only) {
            (OFlag::O_RDWR, _) | (OFlag::O_RDONLY, true) => {}
            _ => return Err(OpenError::Access { read_only }),
        }
        lock(&file)?;
        // Otherwise io_uring fails instead of waiting, on file systems that only know how to wait.
        fcntl(&file, FcntlArg::F_SETFL(flags - OFlag::O_NONBLOCK)).map_err(io::Error::from)?;
        let is_cached = !flags.intersects(OFlag::O_DIRECT | OFlag::O_DSYNC | OFlag::O_SYNC);
        let capacity = AtomicU64::new(capacity);
        let identity = FileIdentity::from_metadata(&metadata);
        Ok(Self {
            file,
            capacity,
            resizing: Mutex::default(),
            read_only,
            identity,
            is_cached,
            impairment: OnceLock::new(),
            syncs: Mutex::default(),
            sync_over: Condvar::new(),
            #[cfg(test)]
            fails: Default::default(),
        })
    }

    /// Which file it is on.
    pub fn identity(&self) -> FileIdentity {
        self.identity
    }

    /// In bytes.
    pub fn capacity(&self) -> u64 {
        self.capacity.load(Ordering::Acquire)
    }

    /// Whether a write only goes to the page cache.
    pub fn is_cached(&self) -> bool {
        self.is_cached
    }

    /// Makes the disk larger: see [`Backend::resize`].
    pub fn resize(&self, size: u64) -> io::Result<()> {
        let _one_at_a_time = self.resizing.lock().unwrap_or_else(PoisonError::into_inner);
        let capacity = self.capacity();
        if !size.is_multiple_of(SECTOR_SIZE) {
            return Err(invalid(format!(
                "a disk's size is a multiple of {SECTOR_SIZE} bytes, and {size} is not"
            )));
        }
        if size < capacity {
            return Err(invalid(format!(
                "a disk cannot become smaller: it has {capacity} bytes, not {size}"
            )));
        }
        // Seeking does not disturb anybody: all others say where they read and write.
        let available = (&self.file).seek(SeekFrom::End(0))?;
        if size > available {
            let is_file = self.file.metadata()?.is_file();
            if !is_file {
                return Err(invalid(format!(
                    "the block device has {available} bytes, not {size}; make it larger first"
                )));
            }
            if self.read_only {
                return Err(invalid(format!(
                    "the file has {available} bytes, not {size}, and the disk is read-only; make the file larger first"
                )));
            }
            self.file.set_len(size)?;
        }
        // Whoever sees the new size also sees the file that has it.
        self.capacity.store(size, Ordering::Release);
        Ok(())
    }

    /// Checks that an operation lies inside the disk and is allowed, and of a flush that it could tell the truth.
    pub fn check(&self, operation: &Operation) -> io::Result<()> {
        crate::check(operation, self.capacity(), self.read_only)?;
        match (operation, self.impairment.get()) {
            (Operation::Flush, Some(reason)) => Err(io::Error::other(reason.as_str())),
            _ => Ok(()),
        }
    }

    fn syncs(&self) -> MutexGuard<'_, Syncs> {
        self.syncs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that a sync begins. It has a number, by which [`Disk::end_sync`] is told of its end.
    pub fn begin_sync(&self) -> u64 {
        let mut syncs = self.syncs();
        let number = syncs.begun;
        syncs.begun += 1;
        syncs.running.insert(number);
        number
    }

    /// Notes what the kernel says of a sync.
    ///
    /// The kernel may have dropped what it could not write, and says the next time that all is well. So once a sync has
    /// failed, none succeeds any more.
    pub fn end_sync(&self, number: u64, result: io::Result<()>) -> EndedSync {
        #[cfg(test)]
        let result = match self.fails.swap(false, Ordering::SeqCst) {
            true => Err(io::Error::from_raw_os_error(libc::EIO)),
            false => result,
        };
        let mut syncs = self.syncs();
        if let Err(error) = result {
            let reason = format!(
                "the disk is impaired: making it durable failed once ({error}), and nobody knows what of it is durable; \
                 check the medium and what is on the disk, and attach it anew"
            );
            if self.impairment.set(reason).is_ok() {
                tracing::error!(%error, "a disk is impaired: nobody knows what of it is durable");
            }
        }
        syncs.running.remove(&number);
        syncs.ended += 1;
        self.sync_over.notify_all();
        for bell in syncs.bells.drain(..) {
            if let Err(error) = bell.write(1) {
                tracing::warn!(%error, "an engine is not told that a flush is over");
            }
        }
        EndedSync { others: syncs.begun, asked: None }
    }

    /// How a sync went that has ended. None if others that were under way then still are; `bell` is rung when it is worth
    /// asking again.
    pub fn sync_result(&self, sync: &mut EndedSync, bell: &EventFd) -> Option<io::Result<()>> {
        let mut syncs = self.syncs();
        let result = self.check(&Operation::Flush);
        if result.is_err() || !syncs.is_any_before(sync.others) {
            return Some(result);
        }
        // Whoever asks again before anything has changed has a bell there already.
        if sync.asked != Some(syncs.ended) {
            match bell.try_clone() {
                Ok(bell) => syncs.bells.push(bell),
                Err(error) => return Some(Err(error)),
            }
            sync.asked = Some(syncs.ended);
        }
        None
    }

    /// Makes everything durable that was written.
    fn sync(&self) -> io::Result<()> {
        let number = self.begin_sync();
        let ended = self.end_sync(number, self.sync_file()).others;
        let syncs = self.syncs();
        let others = |syncs: &mut Syncs| self.impairment.get().is_none() && syncs.is_any_before(ended);
        drop(self.sync_over.wait_while(syncs, others).unwrap_or_else(PoisonError::into_inner));
        self.check(&Operation::Flush)
    }

    /// Asks the kernel, which is to be believed as [`Disk::end_sync`] says.
    pub fn sync_file(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    /// Carries out an operation that was checked, and returns when it is done.
    pub fn run(&self, operation: &mut Operation) -> io::Result<()> {
        match operation {
            Operation::Read { offset, segments } => self.transfer(*offset, segments, libc::preadv),
            Operation::Write { offset, segments } => self.transfer(*offset, segments, libc::pwritev),
            Operation::Flush => self.sync(),
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
    match set_lock(file, kind) {
        Ok(()) => Ok(()),
        Err(nix::Error::EAGAIN | nix::Error::EACCES) => Err(OpenError::Locked),
        // A file system without locks: nothing to be held against anybody.
        Err(nix::Error::ENOLCK | nix::Error::EOPNOTSUPP | nix::Error::EINVAL) => Ok(()),
        Err(error) => Err(OpenError::Io(error.into())),
    }
}

fn set_lock(file: &File, kind: libc::c_int) -> nix::Result<()> {
    let lock = libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    fcntl(file, FcntlArg::F_OFD_SETLK(&lock)).map(|_| ())
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Whoever has passed the file to us may keep a copy, which would keep the lock.
        if let Err(error) = set_lock(&self.file, libc::F_UNLCK) {
            tracing::debug!(%error, "the disk had no lock to be given back");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::segments::tests::Memory;
    use crate::uring;
    use std::io::{Read, Write};

    fn disk(content: &[u8]) -> (tempfile::NamedTempFile, RawFile) {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(content).unwrap();
        let raw = RawFile::open(file.path(), false).unwrap();
        (file, raw)
    }

    /// Both engines, and one that has the kernel do all writes; a kernel without `io_uring` leaves the first.
    fn engines(raw: &RawFile) -> Vec<Box<dyn Engine>> {
        let kinds = uring::tests::kinds();
        let mut engines: Vec<_> =
            kinds.iter().map(|kind| raw.clone().with_engine(*kind).engine(8).unwrap()).collect();
        if kinds.contains(&EngineKind::IoUring) {
            let engine = UringEngine::new(Some(Arc::clone(&raw.disk)), 8).unwrap();
            engines.push(Box::new(engine.with_patience()));
        }
        engines
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

    /// The kernel would say that all is well when it is asked again. Whoever wrote through any queue is told.
    #[test]
    fn a_failed_sync_is_not_made_up_for_by_the_next() {
        let count = engines(&disk(&[0; 4096]).1).len();
        for failing in 0..count {
            let (file, raw) = disk(&[0; 4096]);
            let mut all = engines(&raw);
            run(&mut *all[failing], Operation::Flush).unwrap();
            raw.disk.fails.store(true, Ordering::SeqCst);
            for at in (0..count).cycle().skip(failing).take(2 * count) {
                let error = run(&mut *all[at], Operation::Flush).unwrap_err().to_string();
                assert!(
                    error.contains("failed once (Input/output error") && error.contains("anew"),
                    "{error}"
                );
            }
            assert!(!raw.disk.fails.load(Ordering::SeqCst));
            for engine in &mut all {
                write(&mut **engine, 0, vec![vec![1; 512]]).unwrap();
                assert_eq!(read(&mut **engine, 0, 512).unwrap(), [1; 512]);
            }
            drop((all, raw));
            let raw = RawFile::open(file.path(), false).unwrap();
            engines(&raw).iter_mut().for_each(|engine| run(&mut **engine, Operation::Flush).unwrap());
        }
    }

    /// Of two who flush at the same time the kernel tells one of what it could not write, and the other that all is well.
    #[test]
    fn a_flush_waits_to_hear_of_those_at_the_same_time() {
        for fails in [false, true] {
            for failing in 0..engines(&disk(&[0; 512]).1).len() {
                let (_file, raw) = disk(&[0; 4096]);
                // Another queue has one under way.
                let other = raw.disk.begin_sync();
                let result = || if fails { Err(io::Error::from_raw_os_error(libc::EIO)) } else { Ok(()) };
                let raw = &raw;
                std::thread::scope(|scope| {
                    let flush = scope.spawn(move || run(&mut *engines(raw)[failing], Operation::Flush));
                    let is_over = || {
                        let syncs = raw.disk.syncs();
                        syncs.begun == 2 && syncs.running.len() == 1
                    };
                    while !is_over() {
                        std::thread::sleep(std::time::Duration::from_millis(1));
                    }
                    std::thread::sleep(std::time::Duration::from_millis(10));
                    assert!(!flush.is_finished());
                    // One that begins later has nothing to do with it.
                    raw.disk.begin_sync();
                    raw.disk.end_sync(other, result());
                    assert_eq!(flush.join().unwrap().is_err(), fails);
                });
            }
        }
    }

    /// Else a device would not come to ask.
    #[test]
    fn an_engine_rings_when_a_flush_elsewhere_is_over() {
        if !uring::tests::is_there() {
            return;
        }
        let (_file, raw) = disk(&[0; 4096]);
        let mut engine = UringEngine::new(Some(Arc::clone(&raw.disk)), 8).unwrap();
        let other = raw.disk.begin_sync();
        engine.submit(3, Operation::Flush);
        engine.start().unwrap();
        for _ in 0..20 {
            assert!(engine.complete().is_none());
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        let bell = engine.bell().unwrap();
        let _ = bell.read();
        assert!(engine.complete().is_none() && bell.read().is_err());
        assert_eq!(raw.disk.syncs().bells.len(), 1);
        raw.disk.end_sync(other, Ok(()));
        bell.read().unwrap();
        engine.complete().unwrap().result.unwrap();
        // An engine that goes takes nothing with it that others wait for.
        engine.submit(3, Operation::Flush);
        drop(engine);
        assert!(raw.disk.syncs().running.is_empty());
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

    /// Who has found nothing completed is told of the next one, and can sleep until then.
    #[test]
    fn an_engine_rings_for_what_completes_later() {
        use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
        let (_file, raw) = disk(&[0; 64 << 10]);
        if !uring::tests::is_there() {
            return;
        }
        let mut engine = UringEngine::new(Some(raw.disk), 8).unwrap().with_patience();
        let epoll = Epoll::new(EpollCreateFlags::empty()).unwrap();
        let edge = EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLET, 0);
        epoll.add(engine.event().unwrap(), edge).unwrap();
        for round in 0..500u64 {
            let segments = Memory::new(vec![vec![round as u8; 512]]).segments();
            let offset = round % 128 * 512;
            let operation = match round % 3 {
                0 => Operation::Flush,
                1 => Operation::Read { offset, segments },
                _ => Operation::Write { offset, segments },
            };
            engine.submit(1, operation);
            engine.start().unwrap();
            while engine.complete().map(|completion| completion.result.unwrap()).is_none() {
                match epoll.wait(&mut [EpollEvent::empty()], 5000u16) {
                    Ok(count) => assert_eq!(count, 1, "slept for ever in round {round}"),
                    Err(error) => assert_eq!(error, nix::Error::EINTR),
                }
            }
        }
    }

    /// The kernel owns the buffers until it is done: whoever drops an engine may unmap the memory afterwards. A mistake of
    /// Cloud Hypervisor (issue 7020) was to end with requests in flight.
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

    /// The kernel must not keep the file, and with it the lock, for longer.
    #[test]
    fn a_disk_is_free_once_its_engines_are_gone() {
        let (file, mut raw) = disk(&[0; 4096]);
        for _ in 0..20 {
            for mut engine in engines(&raw) {
                write(&mut *engine, 0, vec![vec![1; 4096]]).unwrap();
                run(&mut *engine, Operation::Flush).unwrap();
            }
            drop(raw);
            raw = RawFile::open(file.path(), false).unwrap();
        }
    }

    /// A mistake of Cloud Hypervisor (CVE-2026-45782): two operations had one place, and the first to end freed what the
    /// other was still working on.
    #[test]
    fn a_slot_cannot_be_used_twice_or_beyond_the_depth() {
        let (_file, raw) = disk(&[0; 4096]);
        if !uring::tests::is_there() {
            return;
        }
        let mut engine = raw.with_engine(EngineKind::IoUring).engine(2).unwrap();
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

    /// A mistake of many (QEMU's `-drive` without a format, Nova's CVE-2026-24708, Cloud Hypervisor's
    /// GHSA-jmr4-g2hv-mjj6): a guest writes the header of another format, which names a file of the host, and finds that
    /// file on its disk the next time.
    #[test]
    fn a_disk_that_looks_like_another_format_stays_raw() {
        let secret = tempfile::NamedTempFile::new().unwrap();
        secret.as_file().write_all(&[b's'; 4096]).unwrap();
        let name = secret.path().as_os_str().as_encoded_bytes();
        let mut qcow2 = vec![0; 4096];
        let number =
            |image: &mut [u8], at: usize, value: u32| image[at..at + 4].copy_from_slice(&value.to_be_bytes());
        qcow2[..4].copy_from_slice(b"QFI\xfb");
        number(&mut qcow2, 4, 2); // version
        number(&mut qcow2, 12, 512); // backing file: offset and length
        number(&mut qcow2, 16, name.len() as u32);
        number(&mut qcow2, 20, 16); // clusters of 64 KiB
        number(&mut qcow2, 28, 1 << 30); // the disk's size
        qcow2[512..512 + name.len()].copy_from_slice(name);
        let mut vmdk =
            format!("# Disk DescriptorFile\nversion=1\nRW 8 FLAT \"{}\" 0\n", secret.path().display());
        vmdk.push_str(&" ".repeat(4096 - vmdk.len()));
        let mut vhdx = vec![0; 4096];
        vhdx[..8].copy_from_slice(b"vhdxfile");
        for header in [qcow2, vmdk.into_bytes(), vhdx] {
            let (file, raw) = disk(&[0; 8192]);
            for mut engine in engines(&raw) {
                write(&mut *engine, 0, vec![header.clone()]).unwrap();
                run(&mut *engine, Operation::Flush).unwrap();
            }
            drop(raw);
            // The machine is off, and on again.
            for read_only in [false, true] {
                let raw = RawFile::open(file.path(), read_only).unwrap();
                assert_eq!(raw.capacity(), 8192);
                for mut engine in engines(&raw) {
                    assert_eq!(read(&mut *engine, 0, 8192).unwrap(), [&header[..], &[0; 4096]].concat());
                }
            }
        }
    }

    #[test]
    fn a_disk_grows_with_its_file() {
        let (file, raw) = disk(&[7; 1000]);
        let mut engines = engines(&raw);
        raw.resize(4096).unwrap();
        assert_eq!((raw.capacity(), file.path().metadata().unwrap().len()), (4096, 4096));
        for engine in &mut engines {
            assert_eq!(read(&mut **engine, 512, 1024).unwrap(), [vec![7; 488], vec![0; 536]].concat());
            write(&mut **engine, 3584, vec![vec![1; 512]]).unwrap();
        }
        // A file that is larger already stays as it is.
        file.as_file().set_len(16384).unwrap();
        raw.resize(8192).unwrap();
        assert_eq!((raw.capacity(), file.path().metadata().unwrap().len()), (8192, 16384));
        raw.resize(8192).unwrap();
        for bad in [4096, 8193, 0, u64::MAX - 511, u64::MAX] {
            assert!(raw.resize(bad).is_err(), "{bad}");
        }
        assert_eq!((raw.capacity(), file.path().metadata().unwrap().len()), (8192, 16384));
    }

    #[test]
    fn a_read_only_disk_grows_when_its_file_has() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(1024).unwrap();
        let raw = RawFile::open(file.path(), true).unwrap();
        assert!(raw.resize(2048).unwrap_err().to_string().contains("read-only"));
        file.as_file().set_len(2048).unwrap();
        raw.resize(2048).unwrap();
        assert_eq!(raw.capacity(), 2048);
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

    /// A mistake of Kata Containers (CVE-2026-24834): a read-only disk was so by agreement. Here the driver is not asked,
    /// and neither is the descriptor, which may be one that can write.
    #[test]
    fn a_read_only_disk_refuses_changes() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&[5; 1024]).unwrap();
        for can_write in [false, true] {
            let opened = open(file.path(), !can_write).unwrap();
            let raw = RawFile::from_file(opened, true).unwrap();
            for mut engine in engines(&raw) {
                assert!(write(&mut *engine, 0, vec![vec![0; 512]]).is_err());
                assert!(run(&mut *engine, Operation::Discard { offset: 0, length: 512 }).is_err());
                let zeroes = Operation::WriteZeroes { offset: 0, length: 512, may_free: false };
                assert!(run(&mut *engine, zeroes).is_err());
            }
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

    #[test]
    fn what_is_still_is_read_whoever_has_it() {
        let (file, writer) = disk(&[0; 512]);
        let still = RawFile::from_still_file(open(file.path(), true).unwrap()).unwrap();
        assert!(still.is_read_only());
        // And keeps nobody from it.
        drop(writer);
        assert!(RawFile::open(file.path(), false).is_ok());
    }
}
