//! The volumes' files, and in [`types`] what there is of EC2's volume types.
//!
//! A volume is a raw sparse file for now; what keeps volumes is behind a trait, so that layers can take its place.

pub mod stack;
pub mod types;

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::unistd::Whence;

use crate::ids::VolumeId;

/// How much is copied at once.
const CHUNK: usize = 1 << 20;

/// Keeps what is on volumes. All functions block, some for long.
pub trait Volumes: Send + Sync {
    /// Makes a volume of `size` bytes, with the bytes of `source` at its beginning and zeroes behind. Without effect on
    /// one that is there. What an interrupted call has left is thrown away.
    fn make(&self, volume: &VolumeId, size: u64, source: Option<&Path>) -> io::Result<()>;

    /// Opens a volume for reading and writing.
    fn open(&self, volume: &VolumeId) -> io::Result<OwnedFd>;

    /// Removes a volume for ever. Without effect on one that is not there.
    fn remove(&self, volume: &VolumeId) -> io::Result<()>;

    /// All that are there.
    fn list(&self) -> io::Result<Vec<VolumeId>>;
}

/// Volumes as raw sparse files in one directory.
pub struct RawVolumes {
    directory: PathBuf,
}

impl RawVolumes {
    /// In this directory, which is made with the first volume.
    pub fn new(directory: PathBuf) -> Self {
        Self { directory }
    }

    fn path(&self, volume: &VolumeId) -> PathBuf {
        self.directory.join(format!("{volume}.raw"))
    }
}

impl Volumes for RawVolumes {
    fn make(&self, volume: &VolumeId, size: u64, source: Option<&Path>) -> io::Result<()> {
        let path = self.path(volume);
        if path.try_exists()? {
            return Ok(());
        }
        DirBuilder::new().recursive(true).mode(0o700).create(&self.directory)?;
        let new = path.with_extension("new");
        let file = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(&new)?;
        // Held until it is there: two who make it at once would write over what is in use already.
        file.try_lock().map_err(|_| {
            io::Error::new(
                io::ErrorKind::ResourceBusy,
                "it is being made already; try again when that is done",
            )
        })?;
        if path.try_exists()? {
            // Another was faster.
            return fs::remove_file(&new).or_else(absent);
        }
        let made = fill(&file, size, source).and_then(|()| fs::rename(&new, &path));
        if made.is_err() {
            // Mostly the disk is full, and this is a part of what it is full of.
            let _ = fs::remove_file(&new);
        }
        made?;
        File::open(&self.directory)?.sync_all()
    }

    fn open(&self, volume: &VolumeId) -> io::Result<OwnedFd> {
        Ok(OpenOptions::new().read(true).write(true).open(self.path(volume))?.into())
    }

    fn remove(&self, volume: &VolumeId) -> io::Result<()> {
        let path = self.path(volume);
        [path.with_extension("new"), path].iter().try_for_each(|path| fs::remove_file(path).or_else(absent))
    }

    fn list(&self) -> io::Result<Vec<VolumeId>> {
        let mut found = Vec::new();
        let entries = match fs::read_dir(&self.directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(found),
            entries => entries?,
        };
        for entry in entries {
            let name = PathBuf::from(entry?.file_name());
            if matches!(name.extension().and_then(|extension| extension.to_str()), Some("raw" | "new")) {
                found.extend(name.file_stem().and_then(|stem| stem.to_str()?.parse().ok()));
            }
        }
        found.sort();
        found.dedup();
        Ok(found)
    }
}

/// What is not there need not be removed.
fn absent(error: io::Error) -> io::Result<()> {
    if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) }
}

/// Makes a file one of `size` bytes that begins with those of `source`. It is on the disk when this returns.
fn fill(file: &File, size: u64, source: Option<&Path>) -> io::Result<()> {
    // Of an earlier try.
    file.set_len(0)?;
    if let Some(source) = source {
        let source = File::open(source)?;
        if source.metadata()?.len() > size {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("what it is made from is larger than its {size} bytes"),
            ));
        }
        copy_sparse(&source, file)?;
    }
    file.set_len(size)?;
    file.sync_all()
}

/// Copies a file: shares its blocks where the file system can, and leaves its holes out where it cannot.
pub fn copy_sparse(source: &File, target: &File) -> io::Result<()> {
    if share_blocks(source, target)? {
        return Ok(());
    }
    let length = source.metadata()?.len();
    target.set_len(length)?;
    let mut position: i64 = 0;
    let (mut source, mut target) = (source, target);
    let mut buffer = vec![0; CHUNK];
    loop {
        let start = match nix::unistd::lseek(source.as_fd(), position, Whence::SeekData) {
            Ok(start) => start,
            // There is only a hole left.
            Err(Errno::ENXIO) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        let end = nix::unistd::lseek(source.as_fd(), start, Whence::SeekHole)?;
        let offset = u64::try_from(start).map_err(io::Error::other)?;
        let mut rest = u64::try_from(end - start).map_err(io::Error::other)?;
        source.seek(SeekFrom::Start(offset))?;
        target.seek(SeekFrom::Start(offset))?;
        while rest > 0 {
            let piece = usize::try_from(rest).unwrap_or(CHUNK).min(CHUNK);
            let count = source.read(&mut buffer[..piece])?;
            if count == 0 {
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it became shorter meanwhile"));
            }
            target.write_all(&buffer[..count])?;
            rest -= count as u64;
        }
        position = end;
    }
}

/// Lets two files share their blocks until one is written to. False if the file system cannot.
fn share_blocks(source: &File, target: &File) -> io::Result<bool> {
    // SAFETY: both descriptors are open, and the request takes the second as its number.
    let result = unsafe { nix::libc::ioctl(target.as_raw_fd(), nix::libc::FICLONE, source.as_raw_fd()) };
    if result == 0 {
        return Ok(true);
    }
    match Errno::last() {
        Errno::EOPNOTSUPP | Errno::EXDEV | Errno::EINVAL | Errno::ENOTTY | Errno::EPERM | Errno::ETXTBSY => {
            Ok(false)
        }
        error => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{FileExt, MetadataExt};

    use super::*;

    #[test]
    fn a_volume_begins_with_its_source_and_is_made_once() {
        let directory = tempfile::tempdir().unwrap();
        let source = directory.path().join("source");
        let file = File::create(&source).unwrap();
        file.write_all_at(b"beginning", 0).unwrap();
        file.write_all_at(b"end", 3 << 20).unwrap();
        file.set_len(8 << 20).unwrap();
        let volumes = RawVolumes::new(directory.path().join("volumes"));
        let id = VolumeId::random();
        assert!(volumes.list().unwrap().is_empty());
        // As after a crash.
        fs::create_dir(directory.path().join("volumes")).unwrap();
        fs::write(volumes.path(&id).with_extension("new"), "garbage").unwrap();
        assert_eq!(volumes.list().unwrap(), std::slice::from_ref(&id));
        volumes.make(&id, 16 << 20, Some(&source)).unwrap();
        let made = File::from(volumes.open(&id).unwrap());
        let mut expected = fs::read(&source).unwrap();
        expected.resize(16 << 20, 0);
        let mut found = vec![0; 16 << 20];
        made.read_exact_at(&mut found, 0).unwrap();
        assert!(found == expected);
        assert!(made.metadata().unwrap().blocks() * 512 < 1 << 20, "the holes were filled");
        made.write_all_at(b"changed", 0).unwrap();
        volumes.make(&id, 16 << 20, Some(&source)).unwrap();
        made.read_exact_at(&mut found[..7], 0).unwrap();
        assert_eq!(&found[..7], b"changed");
        assert_eq!(volumes.list().unwrap(), std::slice::from_ref(&id));
        volumes.remove(&id).unwrap();
        volumes.remove(&id).unwrap();
        assert!(volumes.list().unwrap().is_empty());
    }

    #[test]
    fn a_volume_is_made_by_one_at_a_time() {
        let directory = tempfile::tempdir().unwrap();
        let volumes = RawVolumes::new(directory.path().to_owned());
        let id = VolumeId::random();
        let other = File::create(volumes.path(&id).with_extension("new")).unwrap();
        other.lock().unwrap();
        assert_eq!(volumes.make(&id, 1 << 20, None).unwrap_err().kind(), io::ErrorKind::ResourceBusy);
        assert_eq!(volumes.list().unwrap(), std::slice::from_ref(&id), "what another is making is gone");
        drop(other);
        volumes.make(&id, 1 << 20, None).unwrap();
        assert!(volumes.open(&id).is_ok());
    }

    #[test]
    fn a_volume_is_not_smaller_than_its_source() {
        let directory = tempfile::tempdir().unwrap();
        let source = directory.path().join("source");
        File::create(&source).unwrap().set_len(2 << 20).unwrap();
        let volumes = RawVolumes::new(directory.path().join("volumes"));
        assert!(volumes.make(&VolumeId::random(), 1 << 20, Some(&source)).is_err());
        assert!(volumes.list().unwrap().is_empty(), "what could not be made takes room");
    }
}
