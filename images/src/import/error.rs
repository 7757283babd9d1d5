//! Why a disk cannot be imported, or is not what its manifest says.

use std::io;
use std::path::{Path, PathBuf};

use super::{Format, MAX_SIZE};

/// Why a disk cannot be imported, or is not what its manifest says.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file could not be used.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was to be done.
        action: &'static str,
        /// To which file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// There is no room for the disk.
    #[error("cannot write {} (make room, and give the same command again: it goes on where it stopped)", path.display())]
    Full {
        /// What was being written.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// No format has this name.
    #[error("'{0}' is not a format of disks that can be imported: there are raw and qcow2")]
    FormatName(String),
    /// This is not how a checksum is written.
    #[error("'{0}' is not a checksum: write sha256: and 64 hexadecimal digits, or sha512: and 128")]
    ChecksumSyntax(String),
    /// The source is a directory, a device or the like.
    #[error("{} is not a regular file: copy the disk into one, and import that", .0.display())]
    NotAFile(PathBuf),
    /// The source has no bytes.
    #[error("the disk in {} has no bytes: is the file complete?", .0.display())]
    Empty(PathBuf),
    /// The disk is larger than any volume.
    #[error("the disk in {} has {size} bytes, and a volume has at most {MAX_SIZE} (64 TiB)", path.display())]
    TooLarge {
        /// The source.
        path: PathBuf,
        /// The disk's size, in bytes.
        size: u64,
    },
    /// The source is certainly not in the format that was named.
    #[error("{} is not {named}, but {found}: {way_out}", path.display())]
    OtherFormat {
        /// The source.
        path: PathBuf,
        /// The format that was named.
        named: Format,
        /// What it is.
        found: &'static str,
        /// What to do.
        way_out: &'static str,
    },
    /// The source is a good qcow2 file, of a kind that is not imported.
    #[error("{} {what}: {way_out}", path.display())]
    Unsupported {
        /// The source.
        path: PathBuf,
        /// What is special about it.
        what: &'static str,
        /// What to do.
        way_out: &'static str,
    },
    /// The source contradicts itself, or a part of it is not there.
    #[error("{} is damaged: {reason}: get it anew", path.display())]
    Damaged {
        /// The source.
        path: PathBuf,
        /// In what way.
        reason: String,
    },
    /// The source is not the file that was published.
    #[error("{} is not what was published: its checksum is {found}, not {expected}: get it anew", path.display())]
    Checksum {
        /// The source.
        path: PathBuf,
        /// What was published.
        expected: String,
        /// What it is.
        found: String,
    },
    /// Someone has written to the source meanwhile.
    #[error("{} has changed while it was imported: import it again when it is complete", .0.display())]
    Changed(PathBuf),
    /// The target's path does not end in a name.
    #[error("{} does not name a directory that could be made: end it in the image's name", .0.display())]
    NoName(PathBuf),
    /// The target exists.
    #[error("{} is there already, and stays as it is: remove it first, or choose another name", .0.display())]
    Exists(PathBuf),
    /// Another import has the same target.
    #[error("{} is being imported already: wait until that is done, or choose another name", .0.display())]
    Busy(PathBuf),
    /// What could be an interrupted import is another user's.
    #[error("{} belongs to another user: remove it, or choose another name", .0.display())]
    Foreign(PathBuf),
    /// A text is not a manifest.
    #[error("line {line} is not as a manifest has it: {reason}")]
    Manifest {
        /// Which line, from 1.
        line: usize,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A file is not a manifest.
    #[error("{} is not the manifest of a disk", path.display())]
    ManifestFile {
        /// Which file.
        path: PathBuf,
        /// Why not.
        source: Box<Error>,
    },
    /// The disk has not the size that its manifest says.
    #[error("the disk has {found} bytes, and by its manifest {expected}: import it anew")]
    Size {
        /// By the manifest, in bytes.
        expected: u64,
        /// The file's, in bytes.
        found: u64,
    },
    /// The disk's contents are not those that its manifest says.
    #[error(
        "the disk is not as its manifest says, in chunk {chunk} (the {length} bytes at {offset}): import it anew"
    )]
    Differs {
        /// Which chunk, from 0. It is the first that differs.
        chunk: u64,
        /// Where that is, in bytes.
        offset: u64,
        /// How long it is, in bytes.
        length: u64,
    },
}

pub(super) type Result<T, E = Error> = std::result::Result<T, E>;

/// Adds to an I/O error what was to be done, and to which file.
pub(super) fn failed<'a>(action: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> Error + 'a {
    move |source| Error::Io { action, path: path.into(), source }
}

/// What to make of an error in writing: a full disk is nothing to give up for.
pub(super) fn unwritten<'a>(path: &'a Path) -> impl FnOnce(io::Error) -> Error + 'a {
    use io::ErrorKind::{QuotaExceeded, StorageFull};
    move |source| match source.kind() {
        QuotaExceeded | StorageFull => Error::Full { path: path.into(), source },
        _ => Error::Io { action: "write", path: path.into(), source },
    }
}
