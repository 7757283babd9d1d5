//! Imports a disk: makes an image directory of a raw or qcow2 file.
//!
//! The directory has two files: `disk.raw`, a sparse file that is the disk, and `disk.manifest`, by which a later reader can
//! tell whether the disk is still what was imported ([`Manifest`]). The agent registers images from such directories.
//!
//! - **The format is named**, never guessed: what a guest may have written to a disk must not decide how it is read. If
//!   the file's beginning shows that the name is certainly wrong, the import is refused; it is not read as anything else.
//!   So a raw disk cannot begin with the magic number of qcow2, nor with those of common compressed files and of VMDK and
//!   VHDX. None of them is the beginning of a boot sector that boots.
//! - **No other file is opened** than the one that is named: a qcow2 file that has a backing file or keeps its data in
//!   another file is refused, and `qemu-img convert` flattens it. Encrypted files, extended L2 entries and clusters that
//!   zstd compressed are refused too, with the same way out. Snapshots inside are ignored: the disk is the current one.
//! - **A damaged or hostile file** costs little time and memory, and ends in an error that says what is wrong. All that a
//!   qcow2 file's tables refer to is looked at before anything is read.
//! - **Only what is not zero is written**, in blocks of 4 KiB. Holes in a raw file and what a qcow2 file does not have are
//!   not even read. A disk whose size is not a multiple of 512 bytes, a sector, is made longer with zeroes.
//! - **The source can be checked** against the checksum that its distribution published, before anything is made.
//! - **An import that was interrupted goes on** where it stopped, when it is started again the same way, whatever ended
//!   it; at most 32 MiB, or a quarter of a second of work, are done twice. What was done is in `NAME.partial` beside the target. If
//!   the source is not the same any more, the import starts anew and says so; and so it does if the last chunk of what was
//!   done is not as it was left.
//! - **Publishing is atomic.** The target is complete and on the disk, or not there. Two imports with one target do not
//!   meet: the second is refused. A target that is there stays as it is.

mod checksum;
mod copy;
mod error;
mod journal;
mod manifest;
mod partial;
mod qcow2;
mod source;

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

pub use checksum::Checksum;
pub use error::Error;
use error::Result;
use manifest::CHUNK;
pub use manifest::Manifest;
use partial::Partial;
#[cfg(fuzzing)]
pub use qcow2::look as look_at_qcow2;
use source::Source;

/// The disk's name in an image directory.
pub const DISK: &str = "disk.raw";

/// The manifest's name in an image directory.
pub const MANIFEST: &str = "disk.manifest";

/// The size of the largest disk, in bytes: that of EC2's largest volume, 64 TiB.
pub const MAX_SIZE: u64 = 64 << 40;

/// What the size of a disk is a multiple of, in bytes.
const SECTOR: u64 = 512;

/// A format of disks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// The disk's bytes, and nothing else
    Raw,
    /// QEMU's format, of version 2 or 3
    Qcow2,
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
        })
    }
}

impl FromStr for Format {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        match name {
            "raw" => Ok(Self::Raw),
            "qcow2" => Ok(Self::Qcow2),
            _ => Err(Error::FormatName(name.to_owned())),
        }
    }
}

/// What an import is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// It reads the source, to compare its checksum. The bytes are the file's.
    Check,
    /// It copies the disk. The bytes are the disk's, holes and zeroes too.
    Copy,
}

/// Where someone wants to see how far an import is.
pub trait Progress {
    /// A stage begins, which has so many bytes.
    fn begin(&mut self, stage: Stage, total: u64) {
        let _ = (stage, total);
    }
    /// So many bytes of the stage are done.
    fn done(&mut self, bytes: u64) {
        let _ = bytes;
    }
    /// Something has come up that one would want to know: a sentence without its full stop.
    fn note(&mut self, note: &str) {
        let _ = note;
    }
}

/// What is to be imported.
#[derive(Clone, Debug)]
pub struct Import {
    /// The file that has the disk.
    pub source: PathBuf,
    /// Its format.
    pub format: Format,
    /// The image directory to be made. What it is in has to be there.
    pub target: PathBuf,
    /// The checksum that the source has to have.
    pub checksum: Option<Checksum>,
}

/// What was imported.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Imported {
    /// The disk's size in bytes: a multiple of 512.
    pub size: u64,
    /// How many bytes the disk takes up in the host's file system.
    pub allocated: u64,
    /// [`Manifest::digest`] of its manifest.
    pub digest: String,
    /// Where this went on that an earlier import had begun, in bytes. 0 if there was none.
    pub resumed_from: u64,
}

impl Import {
    /// Imports the disk. Blocks until that is done, for minutes if it is large.
    ///
    /// # Errors
    /// The source is not as it has to be, the target cannot be made, or something fails on the way; then there is no
    /// target, and the same import can be tried again.
    pub fn run(&self, progress: &mut dyn Progress) -> Result<Imported> {
        let source = Source::open(&self.source, self.format)?;
        let partial = Partial::lock(&self.target)?;
        let imported = self.run_locked(&source, &partial, progress);
        if imported.is_err() {
            partial.remove_if_empty();
        }
        imported
    }

    fn run_locked(
        &self,
        source: &Source,
        partial: &Partial,
        progress: &mut dyn Progress,
    ) -> Result<Imported> {
        let size = source.size.next_multiple_of(SECTOR);
        let head = journal::head(&source.identity(), size);
        let (recorded, useless) = partial.recorded(&head, size)?;
        if let Some(reason) = useless {
            progress.note(&format!("this starts anew: {reason}"));
        }
        let unchecked = self.checksum.as_ref().filter(|checksum| {
            let checked = recorded.as_ref().and_then(|recorded| recorded.checked.as_deref());
            checked != Some(&checksum.to_string())
        });
        if let Some(checksum) = unchecked {
            progress.begin(Stage::Check, source.length());
            checksum.check(source.file(), source.path(), |bytes| progress.done(bytes))?;
            source.check_unchanged()?;
        }
        if size != source.size {
            let padding = size - source.size;
            progress.note(&format!("the disk ends within a sector, and gets {padding} more bytes, all zero"));
        }
        let mut work = partial.work(&head, size, recorded)?;
        if let Some(checksum) = unchecked {
            work.note(&journal::checked(checksum))?;
        }
        let resumed_from = work.done().saturating_mul(CHUNK).min(size);
        if resumed_from > 0 {
            progress.note(&format!("this goes on where an earlier import stopped, at byte {resumed_from}"));
        }
        progress.begin(Stage::Copy, size);
        progress.done(resumed_from);
        copy::copy(source, size, &mut work, progress)?;
        progress.done(size);
        source.check_unchanged()?;
        let (chunks, allocated) = work.finish()?;
        let manifest = Manifest::new(size, chunks);
        partial.publish(&manifest)?;
        Ok(Imported { size, allocated, digest: manifest.digest(), resumed_from })
    }
}
