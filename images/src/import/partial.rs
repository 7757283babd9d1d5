//! Imports that are not done: where they are kept, who may work on one, and how one is published.
//!
//! Beside the target `NAME` there is, while it is made, a directory `NAME.partial` with a directory `image`, which will be
//! the target, and a file `journal`. Whoever works on it has locked it. Publishing is one renaming; what is at the target
//! is complete, or it is not there.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::libc::{O_DIRECTORY, O_NOFOLLOW};
use nix::unistd::geteuid;

use super::error::{Error, Result, failed, unwritten};
use super::journal::{self, Recorded};
use super::manifest::{CHUNK, Chunk, Manifest, is_zero};
use super::{DISK, MANIFEST};

/// How many bytes are written, and how long that may take, until the journal is told: what may have to be done twice.
const BATCH: u64 = 32 << 20;
const BATCH_TIME: Duration = Duration::from_millis(250);

/// The smallest hole that is left in a disk, in bytes: a block of most file systems.
const BLOCK: usize = 4 << 10;

/// The directory of an import that is not done, locked.
pub(super) struct Partial {
    target: PathBuf,
    directory: PathBuf,
    journal: PathBuf,
    image: PathBuf,
    disk: PathBuf,
    /// Held until this is dropped.
    lock: File,
}

impl Partial {
    /// The directory beside `target`. It is made unless it is there.
    pub fn lock(target: &Path) -> Result<Self> {
        let directory = beside(target)?;
        check_absent(target, &directory)?;
        loop {
            match fs::create_dir(&directory) {
                Err(error) if error.kind() != ErrorKind::AlreadyExists => {
                    return Err(failed("create", &directory)(error));
                }
                _ => {}
            }
            let Some(lock) = lock(&directory, target)? else { continue };
            if lock.metadata().map_err(failed("look at", &directory))?.uid() != geteuid().as_raw() {
                return Err(Error::Foreign(directory));
            }
            let (journal, image) = (directory.join("journal"), directory.join("image"));
            let disk = image.join(DISK);
            let partial = Self { target: target.into(), directory, journal, image, disk, lock };
            // Another may have been done with it just before.
            if let Err(error) = check_absent(target, &partial.directory) {
                partial.remove_if_empty();
                return Err(error);
            }
            return Ok(partial);
        }
    }

    /// Removes it if nothing was begun.
    pub fn remove_if_empty(&self) {
        // It stays if there is anything in it, and that is no error.
        let _ = fs::remove_dir(&self.directory);
    }

    /// What an earlier import has left for a disk of `size` bytes, and the reason if it is of no use. Neither, if there
    /// was none.
    pub fn recorded(&self, head: &str, size: u64) -> Result<(Option<Recorded>, Option<&'static str>)> {
        let journal = match fs::read(&self.journal) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok((None, None)),
            journal => journal.map_err(failed("read", &self.journal))?,
        };
        let Some(recorded) = journal::parse(&journal, head, size.div_ceil(CHUNK)) else {
            return Ok((None, Some("the source is not what it was when this import was begun")));
        };
        match self.is_intact(&recorded, size) {
            Ok(true) => Ok((Some(recorded), None)),
            Ok(false) => Ok((None, Some("the disk that was begun is not as it was left"))),
            Err(error) if error.kind() == ErrorKind::NotFound && recorded.done == 0 => Ok((None, None)),
            Err(error) if error.kind() == ErrorKind::NotFound => {
                Ok((None, Some("the disk that was begun is not there")))
            }
            Err(error) => Err(failed("read", &self.disk)(error)),
        }
    }

    /// Whether the disk has what the journal says. That nobody has meddled with it is taken from the last chunk; the
    /// others are in the manifest.
    fn is_intact(&self, recorded: &Recorded, size: u64) -> io::Result<bool> {
        let disk = File::open(&self.disk)?;
        // It gets its size before anything else; going on with it begins with cutting off what is not recorded.
        let length = disk.metadata()?.len();
        if length != size && length != recorded.kept(size) {
            return Ok(recorded.done == 0);
        }
        let Some(last) = recorded.chunks.last() else { return Ok(true) };
        let offset = last.index.saturating_mul(CHUNK);
        let length = CHUNK.min(size.saturating_sub(offset));
        let mut contents = vec![0; usize::try_from(length).unwrap_or_default()];
        disk.read_exact_at(&mut contents, offset)?;
        Ok(Chunk::of(last.index, &contents) == *last)
    }

    /// Goes on with what is recorded, or begins anew without it.
    pub fn work(&self, head: &str, size: u64, recorded: Option<Recorded>) -> Result<Work<'_>> {
        let new = recorded.is_none();
        let recorded = match recorded {
            Some(recorded) => recorded,
            None => {
                self.begin(head)?;
                Recorded { length: head.len() as u64, ..Recorded::default() }
            }
        };
        let mut options = OpenOptions::new();
        let disk = options.read(true).write(true).create(true).truncate(new).open(&self.disk);
        let disk = disk.map_err(failed("open", &self.disk))?;
        // What is behind that may have been written, and may have got lost.
        let kept = recorded.kept(size);
        disk.set_len(kept).and_then(|()| disk.set_len(size)).map_err(unwritten(&self.disk))?;
        let journal = OpenOptions::new().append(true).open(&self.journal);
        let journal = journal.map_err(failed("open", &self.journal))?;
        journal.set_len(recorded.length).map_err(failed("write", &self.journal))?;
        let Recorded { chunks, done, .. } = recorded;
        let noted = chunks.len();
        Ok(Work { partial: self, disk, journal, chunks, noted, done, waiting: 0, told: Instant::now() })
    }

    /// Makes a journal with nothing in it.
    fn begin(&self, head: &str) -> Result<()> {
        let manifest = self.image.join(MANIFEST);
        match fs::create_dir(&self.image) {
            Err(error) if error.kind() != ErrorKind::AlreadyExists => {
                return Err(failed("create", &self.image)(error));
            }
            _ => {}
        }
        match fs::remove_file(&manifest) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return Err(failed("remove", &manifest)(error));
            }
            _ => {}
        }
        let new = self.journal.with_extension("new");
        let write = || {
            let mut file = File::create(&new)?;
            file.write_all(head.as_bytes())?;
            file.sync_all()?;
            fs::rename(&new, &self.journal)
        };
        write().map_err(unwritten(&new))
    }

    /// Makes the target of it, and removes the rest.
    pub fn publish(&self, manifest: &Manifest) -> Result<()> {
        let path = self.image.join(MANIFEST);
        let write = || {
            let mut file = File::create(&path)?;
            file.write_all(manifest.text().as_bytes())?;
            file.sync_all()
        };
        write().map_err(unwritten(&path))?;
        let sync = |directory: &Path| {
            File::open(directory).and_then(|file| file.sync_all()).map_err(failed("write", directory))
        };
        sync(&self.image)?;
        // This replaces nothing but an empty directory.
        fs::rename(&self.image, &self.target).map_err(|error| match error.kind() {
            ErrorKind::AlreadyExists | ErrorKind::DirectoryNotEmpty | ErrorKind::NotADirectory => {
                Error::Exists(self.target.clone())
            }
            _ => failed("create", &self.target)(error),
        })?;
        // Both before the journal goes: after a crash, there is the image or the import that makes it.
        sync(parent(&self.target))?;
        self.lock.sync_all().map_err(failed("write", &self.directory))?;
        sweep(&self.directory);
        Ok(())
    }
}

/// The disk that is being made.
pub(super) struct Work<'a> {
    partial: &'a Partial,
    disk: File,
    journal: File,
    /// Those that are not all zeroes.
    chunks: Vec<Chunk>,
    /// How many of them the journal has.
    noted: usize,
    /// How many chunks the journal says are done, zeroes and others.
    done: u64,
    /// How many bytes were written that the journal has not.
    waiting: u64,
    /// When the journal was told.
    told: Instant,
}

impl Work<'_> {
    /// How many chunks are done.
    pub fn done(&self) -> u64 {
        self.done
    }

    /// Adds a line to the journal.
    pub fn note(&mut self, line: &str) -> Result<()> {
        self.journal.write_all(line.as_bytes()).map_err(unwritten(&self.partial.journal))
    }

    /// Writes a chunk. All between the last one and this one are zeroes.
    pub fn write(&mut self, index: u64, contents: &[u8]) -> Result<()> {
        if is_zero(contents) {
            return Ok(());
        }
        self.chunks.push(Chunk::of(index, contents));
        let mut offset = index.saturating_mul(CHUNK);
        let mut rest = contents;
        let blocks: Vec<&[u8]> = contents.chunks(BLOCK).collect();
        for run in blocks.chunk_by(|one, next| is_zero(one) == is_zero(next)) {
            let length = run.iter().map(|block| block.len()).sum();
            let Some((run, behind)) = rest.split_at_checked(length) else { break };
            if !is_zero(run) {
                self.disk.write_all_at(run, offset).map_err(unwritten(&self.partial.disk))?;
                self.waiting = self.waiting.saturating_add(run.len() as u64);
            }
            offset = offset.saturating_add(length as u64);
            rest = behind;
        }
        if self.waiting >= BATCH || self.told.elapsed() >= BATCH_TIME {
            self.record(index + 1)?;
        }
        Ok(())
    }

    /// Records that all chunks before number `done` are on the disk, which they are when this returns.
    pub fn record(&mut self, done: u64) -> Result<()> {
        // If this fails the disk may have lost something for good. What the journal has not is written again.
        self.disk.sync_data().map_err(unwritten(&self.partial.disk))?;
        // The journal itself may get lost, and some work with it.
        let batch = journal::batch(self.chunks.get(self.noted..).unwrap_or_default(), done);
        self.note(&batch)?;
        self.noted = self.chunks.len();
        self.done = done;
        self.waiting = 0;
        self.told = Instant::now();
        Ok(())
    }

    /// Makes sure that all is on the disk. Returns the chunks that are not all zeroes, and how many bytes the disk takes.
    pub fn finish(self) -> Result<(Vec<Chunk>, u64)> {
        let sync = || {
            self.disk.sync_all()?;
            io::Result::Ok(self.disk.metadata()?.blocks().saturating_mul(512))
        };
        let allocated = sync().map_err(unwritten(&self.partial.disk))?;
        Ok((self.chunks, allocated))
    }
}

/// Where an import into `target` is kept until it is done.
fn beside(target: &Path) -> Result<PathBuf> {
    let no_name = || Error::NoName(target.into());
    let mut name = target.file_name().ok_or_else(no_name)?.to_owned();
    name.push(OsStr::new(".partial"));
    Ok(target.with_file_name(name))
}

/// The directory that `target` is made in.
fn parent(target: &Path) -> &Path {
    match target.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// Whether the target can be made. If it is there, what a crash may have left of its making is removed.
fn check_absent(target: &Path, directory: &Path) -> Result<()> {
    match target.symlink_metadata() {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) => Err(failed("look at", target)(error)),
        Ok(_) => {
            let published = !directory.join("image").exists();
            if published && matches!(lock(directory, target), Ok(Some(_))) {
                sweep(directory);
            }
            Err(Error::Exists(target.into()))
        }
    }
}

/// Locks a directory. `None` if it is gone meanwhile, or another.
fn lock(directory: &Path, target: &Path) -> Result<Option<File>> {
    let opened = OpenOptions::new().read(true).custom_flags(O_DIRECTORY | O_NOFOLLOW).open(directory);
    let lock = match opened {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        opened => opened.map_err(failed("open", directory))?,
    };
    match lock.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Err(Error::Busy(target.into())),
        Err(TryLockError::Error(error)) => return Err(failed("lock", directory)(error)),
    }
    let held = lock.metadata().map_err(failed("look at", directory))?;
    let same = directory
        .symlink_metadata()
        .is_ok_and(|there| (there.dev(), there.ino()) == (held.dev(), held.ino()));
    Ok(same.then_some(lock))
}

/// Removes what is left when the image has gone to its place. It does no harm if it stays.
fn sweep(directory: &Path) {
    let _ = fs::remove_file(directory.join("journal"));
    let _ = fs::remove_dir(directory);
}
