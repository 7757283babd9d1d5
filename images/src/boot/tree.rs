//! What the boot menu is looked for in: a tree of files and directories, whoever reads it.
//!
//! There are two: [`ext4::FileSystem`](super::ext4::FileSystem), which reads the disk itself, and
//! [`reader::Mounted`](super::reader::Mounted), a directory where the kernel of a reader guest has mounted something.

use std::io;

use super::disk::ReadError;

/// How many names a directory may have that is searched.
pub const MAX_NAMES: usize = 4096;

/// What is done with each piece of a file's contents: its offset in bytes, and the piece.
pub type Take<'t> = &'t mut dyn FnMut(u64, &[u8]) -> io::Result<()>;

/// Why a file cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no such file.
    #[error("it does not exist")]
    NotFound,
    /// There is nothing in it.
    #[error("it is empty")]
    Empty,
    /// It is there and is something else.
    #[error("it is no {0}")]
    NotA(&'static str),
    /// More than is accepted.
    #[error("it is {size} bytes large, more than the {limit} that are accepted")]
    TooLarge {
        /// In bytes.
        size: u64,
        /// In bytes.
        limit: u64,
    },
    /// More symbolic links than are followed.
    #[error("it leads through too many symbolic links, or in a circle")]
    Links,
    /// More names in a directory than are looked at.
    #[error("there are more than {MAX_NAMES} names in a directory")]
    Names,
    /// A structure makes no sense.
    #[error("the file system is corrupt: {0} (run e2fsck in a guest)")]
    Corrupt(String),
    /// Something that this reader does not do.
    #[error("the file system has {0}, which is not supported here")]
    Unsupported(String),
    /// The disk cannot be read, or it leads outside.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// Linux, in a reader guest, does not mount it.
    #[error("Linux does not mount the file system: {0}")]
    Mount(String),
    /// Linux, in a reader guest, cannot read it.
    #[error("Linux cannot read it")]
    Linux(#[source] io::Error),
    /// What is read cannot be stored.
    #[error("its contents cannot be stored")]
    Store(#[source] io::Error),
}

/// Files and directories. Paths begin at the root of the tree, with a slash or not, and symbolic links do not lead out of
/// it.
pub trait Tree {
    /// Hands the contents of a file of at most `limit` bytes to `take`, in order and with the offset of each piece. What
    /// is left out is zero. Says how large the file is, in bytes.
    ///
    /// # Errors
    /// There is no such file, it is larger, or it cannot be read or taken.
    fn copy(&self, path: &str, limit: u64, take: Take<'_>) -> Result<u64, Error>;

    /// The names in a directory; not `.` and `..`, and not those that are no UTF-8.
    ///
    /// # Errors
    /// There is no such directory, it has more than [`MAX_NAMES`], or it cannot be read.
    fn names(&self, path: &str) -> Result<Vec<String>, Error>;

    /// Whether there is something of this name.
    ///
    /// # Errors
    /// It cannot be told.
    fn exists(&self, path: &str) -> Result<bool, Error>;

    /// The contents of a file of at most `limit` bytes.
    ///
    /// # Errors
    /// There is no such file, it is larger, or it cannot be read.
    fn read(&self, path: &str, limit: u64) -> Result<Vec<u8>, Error> {
        let mut contents = Vec::new();
        let size = self.copy(path, limit, &mut |offset, piece| {
            let offset = usize::try_from(offset).map_err(io::Error::other)?;
            contents.resize(offset, 0);
            contents.extend_from_slice(piece);
            Ok(())
        })?;
        // Its end may be a hole.
        contents.resize(usize::try_from(size).unwrap_or(0), 0);
        Ok(contents)
    }
}
