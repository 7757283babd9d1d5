//! Disks in qcow2 files. [`check`] looks at all tables before imago reads anything by them.
//!
//! imago takes what is missing at a file's end for zeroes, an L1 table that is too short for one without data, and
//! encrypted data for data; and an odd extension of the header ends its thread. To an import, each of these is an error.

mod check;

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use imago::qcow2::Qcow2 as Image;
use imago::{DenyImplicitOpenGate, FormatAccess, FormatDriverBuilder, Mapping};

use super::error::{Error, Result, failed};
use super::source::Contents;

/// Looks at the tables of a file of `length` bytes; returns the size of its disk, in bytes.
#[cfg(fuzzing)]
pub fn look(file: &File, length: u64) -> Result<u64> {
    check::check(file, length, Path::new("the file"))
}

/// What every qcow2 file begins with.
pub(super) const MAGIC: [u8; 4] = *b"QFI\xfb";

/// A disk in a qcow2 file.
pub(super) struct Qcow2 {
    /// For messages.
    path: PathBuf,
    disk: FormatAccess<imago::file::File>,
    /// In bytes.
    size: u64,
}

impl Qcow2 {
    /// Looks whether a file of `length` bytes is one that can be imported, and opens it. `path` is for messages.
    pub fn open(file: File, length: u64, path: &Path) -> Result<Self> {
        let size = check::check(&file, length, path)?;
        let open = || {
            let file = imago::file::File::try_from(file)?;
            // The check has refused those that would need another file. This is the second lock on that door.
            Image::builder(file).open(DenyImplicitOpenGate::default())
        };
        let image: Image<imago::file::File> = open().map_err(unreadable(path))?;
        Ok(Self { path: path.into(), disk: FormatAccess::new(image), size })
    }

    /// The disk's size, in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }
}

/// What imago's error means: it is the file's fault, unless the system has failed.
fn unreadable(path: &Path) -> impl FnOnce(io::Error) -> Error {
    move |error| match error.raw_os_error() {
        Some(_) => failed("read", path)(error),
        None => Error::Damaged { path: path.into(), reason: error.to_string() },
    }
}

impl Contents for Qcow2 {
    fn next_data(&self, offset: u64, end: u64) -> Result<Option<u64>> {
        let mut offset = offset;
        while offset < end {
            match self.disk.get_mapping(offset, end - offset).map_err(unreadable(&self.path))? {
                (Mapping::Zero { .. }, length) if length > 0 => offset = offset.saturating_add(length),
                (Mapping::Eof { .. }, _) => return Ok(None),
                _ => return Ok(Some(offset)),
            }
        }
        Ok(None)
    }

    fn read(&self, buffer: &mut [u8], offset: u64) -> Result<()> {
        self.disk.read(buffer, offset).map_err(unreadable(&self.path))
    }
}
