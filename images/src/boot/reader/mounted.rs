//! A mounted file system as a tree of files. Nothing leads out of it, whatever its symbolic links say.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::path::Path;

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, open, openat2};
use nix::sys::stat::Mode;

use crate::boot::tree::{Error, MAX_NAMES, Take, Tree};

/// What is read at once of a file's contents, in bytes.
const PIECE: usize = 1 << 20;

/// A directory that is the root of a tree.
#[derive(Debug)]
pub struct Mounted(OwnedFd);

impl Mounted {
    /// The tree below a directory. Other file systems that are mounted in it are no part of it.
    ///
    /// # Errors
    /// There is no such directory.
    pub fn at(directory: &Path) -> io::Result<Self> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        Ok(Self(open(directory, flags, Mode::empty())?))
    }

    fn open(&self, path: &str, flags: OFlag) -> Result<OwnedFd, Error> {
        // An empty path is the root too.
        let path = format!("/{path}");
        let resolve =
            ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS | ResolveFlag::RESOLVE_NO_XDEV;
        let how = OpenHow::new().flags(flags | OFlag::O_CLOEXEC).resolve(resolve);
        openat2(&self.0, path.as_str(), how).map_err(|errno| match errno {
            Errno::ENOENT | Errno::ENAMETOOLONG => Error::NotFound,
            // A null character in it.
            Errno::EINVAL if path.contains('\0') => Error::NotFound,
            Errno::ENOTDIR => Error::NotA("directory"),
            Errno::ELOOP => Error::Links,
            // A device, which is mounted so that none can be opened, or a socket.
            Errno::EACCES | Errno::ENXIO => Error::NotA("regular file"),
            errno => Error::Linux(errno.into()),
        })
    }
}

impl Tree for Mounted {
    fn copy(&self, path: &str, limit: u64, take: Take<'_>) -> Result<u64, Error> {
        // Without waiting for the other end of what might be a pipe.
        let mut file = File::from(self.open(path, OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_NOCTTY)?);
        let metadata = file.metadata().map_err(Error::Linux)?;
        if !metadata.is_file() {
            return Err(Error::NotA("regular file"));
        }
        let size = metadata.len();
        if size > limit {
            return Err(Error::TooLarge { size, limit });
        }
        let mut buffer = vec![0; PIECE];
        let mut offset = 0;
        while offset < size {
            let wanted = usize::try_from(size - offset).map_or(PIECE, |rest| rest.min(PIECE));
            let piece = buffer.get_mut(..wanted).unwrap_or_default();
            file.read_exact(piece).map_err(Error::Linux)?;
            take(offset, piece).map_err(Error::Store)?;
            offset += wanted as u64;
        }
        Ok(size)
    }

    fn names(&self, path: &str) -> Result<Vec<String>, Error> {
        let directory = self.open(path, OFlag::O_RDONLY | OFlag::O_DIRECTORY)?;
        let mut directory = Dir::from_fd(directory).map_err(|errno| Error::Linux(errno.into()))?;
        let mut names = Vec::new();
        for (count, entry) in directory.iter().enumerate() {
            if count >= MAX_NAMES {
                return Err(Error::Names);
            }
            let entry = entry.map_err(|errno| Error::Linux(errno.into()))?;
            if let Ok(name) = entry.file_name().to_str()
                && !matches!(name, "." | "..")
            {
                names.push(name.to_owned());
            }
        }
        Ok(names)
    }

    fn exists(&self, path: &str) -> Result<bool, Error> {
        match self.open(path, OFlag::O_PATH) {
            Ok(_) => Ok(true),
            Err(Error::NotFound | Error::NotA(_)) => Ok(false),
            Err(error) => Err(error),
        }
    }
}
