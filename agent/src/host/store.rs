//! Instance stores: a tmpfs for each instance that has one.
//!
//! It is mounted in the host's mount namespace, so that it outlives the agent.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use nix::fcntl::{OFlag, open};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::Mode;

use super::mounts::Mounts;
use crate::ids::InstanceId;

/// More files than a store ever has.
const MAX_FILES: u32 = 64;

/// The instance stores below a directory.
pub struct Stores {
    directory: PathBuf,
    mounts: Mounts,
}

impl Stores {
    /// Below this directory, which is made with the first one.
    pub fn new(directory: PathBuf) -> Self {
        Self { directory, mounts: Mounts::of_host() }
    }

    /// Where they are.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    fn path(&self, instance: &InstanceId) -> PathBuf {
        self.directory.join(instance.as_str())
    }

    /// Mounts an empty tmpfs that holds `size` bytes. What was there is gone.
    pub fn make(&self, instance: &InstanceId, size: u64) -> io::Result<OwnedFd> {
        let path = self.path(instance);
        self.mounts.inside(|| {
            take_away(&path)?;
            DirBuilder::new().recursive(true).mode(0o700).create(&path)?;
            let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
            // A size of 0 would be no limit.
            let options = format!("mode=0700,size={},nr_inodes={MAX_FILES}", size.max(1));
            mount(Some("innkeeper"), &path, Some("tmpfs"), flags, Some(options.as_str()))?;
            open_directory(&path)
        })
    }

    /// Opens what was mounted, if it is there.
    pub fn open(&self, instance: &InstanceId) -> io::Result<Option<OwnedFd>> {
        let path = self.path(instance);
        self.mounts.inside(|| match is_mounted(&path) {
            Ok(true) => open_directory(&path).map(Some),
            Ok(false) => Ok(None),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        })
    }

    /// Takes it away. Its memory is free when the last who has something of it open is gone.
    pub fn remove(&self, instance: &InstanceId) -> io::Result<()> {
        self.mounts.inside(|| take_away(&self.path(instance)))
    }
}

fn open_directory(path: &Path) -> io::Result<OwnedFd> {
    Ok(open(path, OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?)
}

/// Whether a directory is on another file system than the one that it is in.
fn is_mounted(path: &Path) -> io::Result<bool> {
    let parent = path.parent().unwrap_or(path);
    Ok(fs::symlink_metadata(path)?.dev() != fs::metadata(parent)?.dev())
}

fn take_away(path: &Path) -> io::Result<()> {
    loop {
        match is_mounted(path) {
            Ok(true) => umount2(path, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW)?,
            Ok(false) => return fs::remove_dir(path),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Write;
    use std::os::fd::AsRawFd;

    use nix::sched::{CloneFlags, unshare};

    use super::*;

    /// A directory of a test, in which nothing is left mounted.
    struct Lab {
        stores: Stores,
        id: InstanceId,
        _directory: tempfile::TempDir,
    }

    impl Lab {
        fn new() -> Self {
            let directory = tempfile::tempdir().unwrap();
            let mut stores = Stores::new(directory.path().join("stores"));
            // Whoever runs the tests may be in a container.
            stores.mounts = Mounts::of_process(std::process::id());
            Self { stores, id: InstanceId::random(), _directory: directory }
        }

        fn make(&self) -> OwnedFd {
            self.stores.make(&self.id, 1 << 20).unwrap()
        }

        fn found(&self) -> Option<OwnedFd> {
            self.stores.open(&self.id).unwrap()
        }

        fn files(&self) -> usize {
            fs::read_dir(self.stores.path(&self.id)).unwrap().count()
        }
    }

    impl Drop for Lab {
        fn drop(&mut self) {
            let _ = self.stores.remove(&self.id);
        }
    }

    fn create(directory: &OwnedFd, name: &str) -> File {
        File::create(format!("/proc/self/fd/{}/{name}", directory.as_raw_fd())).unwrap()
    }

    #[test]
    fn a_store_is_sized_found_again_and_empty_when_it_is_made_anew() {
        let lab = Lab::new();
        assert!(lab.found().is_none());
        lab.stores.remove(&lab.id).unwrap();
        let mut file = create(&lab.make(), "a");
        file.write_all(&[1; 1 << 20]).unwrap();
        assert_eq!(file.write_all(&[1]).unwrap_err().kind(), io::ErrorKind::StorageFull);
        let found = lab.found().unwrap();
        assert!(File::open(format!("/proc/self/fd/{}/a", found.as_raw_fd())).is_ok());
        assert_eq!(lab.files(), 1);
        // Whoever has it open keeps nobody from taking it away.
        lab.make();
        assert_eq!(lab.files(), 0);
        lab.stores.remove(&lab.id).unwrap();
        assert!(!lab.stores.path(&lab.id).exists() && lab.found().is_none());
    }

    /// As for a service with a mount namespace of its own, from which nothing gets to the host.
    #[test]
    fn a_store_is_the_hosts_and_not_the_namespaces() {
        let lab = Lab::new();
        fs::create_dir_all(lab.stores.directory()).unwrap();
        std::thread::scope(|scope| {
            let in_another = scope.spawn(|| {
                unshare(CloneFlags::CLONE_FS | CloneFlags::CLONE_NEWNS).unwrap();
                let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
                mount(None::<&str>, "/", None::<&str>, private, None::<&str>).unwrap();
                create(&lab.make(), "a");
                assert!(lab.found().is_some());
            });
            in_another.join().unwrap();
        });
        assert_eq!(lab.files(), 1);
    }
}
