//! Network namespaces, which live as long as they are mounted somewhere.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::statfs::{NSFS_MAGIC, fstatfs};

/// The namespace of the calling thread.
const OWN: &str = "/proc/thread-self/ns/net";

/// A network namespace.
#[derive(Debug)]
pub struct Namespace {
    file: File,
}

impl Namespace {
    /// The one of this thread.
    pub fn own() -> io::Result<Self> {
        Ok(Self { file: File::open(OWN)? })
    }

    /// The one that is mounted at `path`, or a new one, and whether it is new.
    pub fn open_or_make(path: &Path) -> io::Result<(Self, bool)> {
        match Self::open(path) {
            Ok(Some(namespace)) => return Ok((namespace, false)),
            Ok(None) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                if let Some(parent) = path.parent() {
                    DirBuilder::new().recursive(true).mode(0o700).create(parent)?;
                }
                File::create(path)?;
            }
            Err(error) => return Err(error),
        }
        let make = || {
            unshare(CloneFlags::CLONE_NEWNET)?;
            mount(Some(OWN), path, None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
            Self::own()
        };
        Ok((on_thread(make)?, true))
    }

    /// The one that is mounted at `path`. None if there is only the file.
    fn open(path: &Path) -> io::Result<Option<Self>> {
        let file = File::open(path)?;
        let is_namespace = fstatfs(&file)?.filesystem_type() == NSFS_MAGIC;
        Ok(is_namespace.then_some(Self { file }))
    }

    /// Removes the one at `path`. It ends when nothing in it is open any more. Nothing, if there is none.
    pub fn remove(path: &Path) -> io::Result<()> {
        loop {
            match umount2(path, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
                Ok(()) => {}
                Err(Errno::EINVAL) => return fs::remove_file(path),
                Err(Errno::ENOENT) => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// The open namespace.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Runs a function in it, on a thread of its own.
    pub fn enter<T: Send>(&self, function: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
        on_thread(|| {
            setns(&self.file, CloneFlags::CLONE_NEWNET)?;
            function()
        })
    }
}

/// Runs a function on a thread that nobody else uses, and that may change what it is in.
fn on_thread<T: Send>(function: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    std::thread::scope(|scope| match scope.spawn(function).join() {
        Ok(result) => result,
        Err(panic) => std::panic::resume_unwind(panic),
    })
}
