//! What disks are imported from: a file in one of the formats, opened and looked at.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::libc::O_NONBLOCK;
use nix::unistd::{Whence, lseek};
use sha2::{Digest, Sha256};

use super::checksum::hex;
use super::error::{Error, Result, failed};
use super::qcow2::{MAGIC, Qcow2};
use super::{Format, MAX_SIZE};

/// How much of a file's beginning tells it from others, in bytes.
const BEGINNING: u64 = 1 << 20;

/// What a disk is read from. It is read on a thread of its own.
pub(super) trait Contents: Send + Sync {
    /// The first place from `offset` on, below `end`, that may hold something else than zeroes. Both in bytes.
    fn next_data(&self, offset: u64, end: u64) -> Result<Option<u64>>;

    /// Reads from `offset` on. All of it has to be within the disk.
    fn read(&self, buffer: &mut [u8], offset: u64) -> Result<()>;
}

/// What files that are given for raw disks by mistake begin with, what they are, and what to do.
const NOT_RAW: [(&[u8], &str, &str); 6] = [
    (&MAGIC, "qcow2", "name that format (--format qcow2)"),
    (b"\xfd7zXZ\0", "compressed by xz", "decompress it with `xz --decompress --keep`"),
    (b"\x1f\x8b\x08", "compressed by gzip", "decompress it with `gunzip --keep`"),
    (b"\x28\xb5\x2f\xfd", "compressed by zstd", "decompress it with `unzstd`"),
    (b"KDMV", "VMDK", "convert it with `qemu-img convert -f vmdk -O raw OLD NEW`"),
    (b"vhdxfile", "VHDX", "convert it with `qemu-img convert -f vhdx -O raw OLD NEW`"),
];

/// The file that a disk is imported from.
pub(super) struct Source {
    path: PathBuf,
    file: File,
    format: Format,
    /// The disk's size in bytes, as the format has it.
    pub size: u64,
    /// What is on the disk.
    pub contents: Box<dyn Contents>,
    /// The file's length in bytes, and when it was changed: seconds and nanoseconds.
    state: (u64, i64, i64),
    beginning: String,
}

impl Source {
    /// Opens a file as one of a format.
    pub fn open(path: &Path, format: Format) -> Result<Self> {
        // Without waiting for the other end of what might be a pipe.
        let opened = OpenOptions::new().read(true).custom_flags(O_NONBLOCK).open(path);
        let file = opened.map_err(failed("open", path))?;
        let metadata = file.metadata().map_err(failed("look at", path))?;
        if !metadata.is_file() {
            return Err(Error::NotAFile(path.into()));
        }
        let state = (metadata.len(), metadata.mtime(), metadata.mtime_nsec());
        let mut beginning = vec![0; usize::try_from(metadata.len().min(BEGINNING)).unwrap_or_default()];
        file.read_exact_at(&mut beginning, 0).map_err(failed("read", path))?;
        let clone = || file.try_clone().map_err(failed("open", path));
        let (size, contents): (u64, Box<dyn Contents>) = match format {
            Format::Raw => {
                let mistake = NOT_RAW.iter().find(|(magic, ..)| beginning.starts_with(magic));
                if let Some((_, found, way_out)) = mistake {
                    return Err(Error::OtherFormat { path: path.into(), named: format, found, way_out });
                }
                (metadata.len(), Box::new(Raw { path: path.into(), file: clone()? }))
            }
            Format::Qcow2 => {
                if !beginning.starts_with(&MAGIC) {
                    let (found, way_out) =
                        ("something else", "if it is a raw disk, name that (--format raw)");
                    return Err(Error::OtherFormat { path: path.into(), named: format, found, way_out });
                }
                let qcow2 = Qcow2::open(clone()?, metadata.len(), path)?;
                (qcow2.size(), Box::new(qcow2))
            }
        };
        if size == 0 {
            return Err(Error::Empty(path.into()));
        }
        if size > MAX_SIZE {
            return Err(Error::TooLarge { path: path.into(), size });
        }
        let beginning = hex(&Sha256::digest(&beginning));
        Ok(Self { path: path.into(), file, format, size, contents, state, beginning })
    }

    /// The file's path, for messages.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The file itself, for its checksum.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// The file's length, in bytes.
    pub fn length(&self) -> u64 {
        self.state.0
    }

    /// A line that tells this file from others, and from what it was before it was changed.
    pub fn identity(&self) -> String {
        let (length, seconds, nanoseconds) = self.state;
        format!("{} {length} {seconds}.{nanoseconds:09} {}", self.format, self.beginning)
    }

    /// Whether it is still what was opened.
    pub fn check_unchanged(&self) -> Result<()> {
        let metadata = self.file.metadata().map_err(failed("look at", &self.path))?;
        if (metadata.len(), metadata.mtime(), metadata.mtime_nsec()) == self.state {
            Ok(())
        } else {
            Err(Error::Changed(self.path.clone()))
        }
    }
}

/// A raw disk.
struct Raw {
    /// For messages.
    path: PathBuf,
    file: File,
}

impl Contents for Raw {
    fn next_data(&self, offset: u64, end: u64) -> Result<Option<u64>> {
        next_data(&self.file, offset, end).map_err(failed("read", &self.path))
    }

    fn read(&self, buffer: &mut [u8], offset: u64) -> Result<()> {
        self.file.read_exact_at(buffer, offset).map_err(|error| match error.kind() {
            // It was longer when it was opened.
            io::ErrorKind::UnexpectedEof => Error::Changed(self.path.clone()),
            _ => failed("read", &self.path)(error),
        })
    }
}

/// The first place in a file from `offset` on, below `end`, that is not in a hole. All in bytes.
pub(super) fn next_data(file: &File, offset: u64, end: u64) -> io::Result<Option<u64>> {
    if offset >= end {
        return Ok(None);
    }
    let position = i64::try_from(offset).map_err(io::Error::other)?;
    match lseek(file.as_fd(), position, Whence::SeekData) {
        Ok(found) => {
            let found = u64::try_from(found).map_err(io::Error::other)?;
            Ok((found < end).then_some(found))
        }
        // There is only a hole left.
        Err(Errno::ENXIO) => Ok(None),
        // The file system does not know its holes.
        Err(Errno::EINVAL) => Ok(Some(offset)),
        Err(error) => Err(error.into()),
    }
}
