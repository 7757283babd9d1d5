//! The host's mount namespace. What is mounted there outlives the agent, also one that systemd has given a namespace of its
//! own, and the next agent finds it where the last one has left it.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use nix::errno::Errno;
use nix::sched::{CloneFlags, setns, unshare};

/// That of the host, which is that of its first process.
const HOST: &str = "/proc/1/ns/mnt";

/// That of this thread.
const OWN: &str = "/proc/thread-self/ns/mnt";

/// A mount namespace.
#[derive(Clone, Debug)]
pub struct Mounts {
    path: PathBuf,
}

impl Mounts {
    /// That of the host.
    pub fn of_host() -> Self {
        Self { path: HOST.into() }
    }

    /// That of a process.
    #[cfg(test)]
    pub fn of_process(pid: u32) -> Self {
        Self { path: format!("/proc/{pid}/ns/mnt").into() }
    }

    /// Runs `function` in it, in a thread of its own if this one is in another. Who may not enter it, as in a container,
    /// has to make do with the own one.
    pub fn inside<T: Send, E: From<io::Error> + Send>(
        &self,
        function: impl FnOnce() -> Result<T, E> + Send,
    ) -> Result<T, E> {
        let other = match File::open(&self.path) {
            Ok(other) if other.metadata()?.ino() != fs::metadata(OWN)?.ino() => other,
            _ => return function(),
        };
        let inside = || {
            // A thread that shares its root directory with others cannot change it.
            unshare(CloneFlags::CLONE_FS).map_err(io::Error::from)?;
            match setns(other, CloneFlags::CLONE_NEWNS) {
                Ok(()) | Err(Errno::EPERM) => function(),
                Err(error) => Err(io::Error::from(error).into()),
            }
        };
        std::thread::scope(|scope| match scope.spawn(inside).join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        })
    }
}
