//! Mounts a disk's file systems over what is thrown away afterwards, so that their logs can be replayed.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};

use super::answer::{ANSWER_DISK, STORE_AT};
use super::machine;
use super::mapper::Mapper;
use super::mounted::Mounted;
use crate::boot::disk::Region;
use crate::boot::menu::{Mount, Volume};
use crate::boot::tree::Error;

/// How many file systems are mounted of a disk. One, with one for `/boot`, is usual.
const MAX_MOUNTED: u64 = 8;

/// What each of them has of the store, in bytes: 128 MiB. A log that is larger is hardly ever full, and holds the same
/// blocks many times.
const SHARE: u64 = (ANSWER_DISK - STORE_AT) / MAX_MOUNTED;

/// Where distributions have a root file system, or `/boot`, in a btrfs: Fedora and others, Ubuntu and others.
const SUBVOLUMES: [&str; 2] = ["root", "@"];

/// The file systems of a disk, mounted.
pub struct Overlays<'d> {
    disk: &'d Path,
    store: &'d Path,
    mapper: Option<Mapper>,
    count: u64,
}

impl<'d> Overlays<'d> {
    /// Of this disk, with a store on the disk of the answer.
    pub fn new(disk: &'d Path, store: &'d Path) -> Self {
        Self { disk, store, mapper: None, count: 0 }
    }

    /// Puts an overlay over part of the disk.
    fn device(&mut self, region: Region<'_>) -> io::Result<PathBuf> {
        let mapper = match &mut self.mapper {
            Some(mapper) => mapper,
            none => {
                machine::load("overlay")?;
                none.insert(Mapper::open()?)
            }
        };
        let number = self.count;
        let name = |what: &str| format!("{what}-{number}");
        let (start, length) = (region.start(), region.length());
        let origin = mapper.part(&name("disk"), self.disk, start, length, true)?;
        let start = STORE_AT.saturating_add(SHARE.saturating_mul(number));
        let store = mapper.part(&name("store"), self.store, start, SHARE, false)?;
        mapper.overlay(&name("overlay"), &origin, &store, length)
    }

    /// Mounts a device, or a subvolume of it.
    fn mount(&self, device: &Path, kind: &str, name: &str, options: &str) -> io::Result<Mounted> {
        let directory = PathBuf::from(format!("/mnt/{}/{name}", self.count));
        fs::create_dir_all(&directory)?;
        let flags = MsFlags::MS_RDONLY | MsFlags::MS_NODEV | MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
        mount(Some(device), &directory, Some(kind), flags, Some(options))?;
        Mounted::at(&directory)
    }

    /// Mounts what there is to read on a device, as [`Mount`] says.
    fn volumes(&self, device: &Path, kind: &str) -> io::Result<Vec<Volume<'static>>> {
        let volume = |tree, subvolume| Volume { tree: Box::new(tree), subvolume };
        match kind {
            "btrfs" => {
                let mut volumes = vec![volume(self.mount(device, kind, "default", "")?, None)];
                for (index, subvolume) in SUBVOLUMES.into_iter().enumerate() {
                    match self.mount(device, kind, &index.to_string(), &format!("subvol={subvolume}")) {
                        Ok(tree) => volumes.push(volume(tree, Some(subvolume))),
                        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                        // A directory, which the whole has too.
                        Err(error) if error.raw_os_error() == Some(Errno::EINVAL as i32) => {}
                        Err(error) => return Err(error),
                    }
                }
                volumes.push(volume(self.mount(device, kind, "whole", "subvolid=5")?, Some("/")));
                Ok(volumes)
            }
            // Two copies of one file system are no problem here.
            "xfs" => Ok(vec![volume(self.mount(device, kind, "default", "nouuid")?, None)]),
            _ => Ok(vec![volume(self.mount(device, kind, "default", "")?, None)]),
        }
    }
}

impl Mount for Overlays<'_> {
    fn mount(&mut self, file_system: &str, region: Region<'_>) -> Result<Vec<Volume<'static>>, Error> {
        if self.count >= MAX_MOUNTED {
            return Err(Error::Mount(format!("there are more than {MAX_MOUNTED} on the disk")));
        }
        // "XFS", or "ext4 (with something)".
        let kind = file_system.split(' ').next().unwrap_or_default().to_lowercase();
        let refused = |error: io::Error| Error::Mount(error.to_string());
        machine::load(&kind).map_err(refused)?;
        let volumes = self.device(region).map_err(refused).and_then(|device| {
            let volumes = self.volumes(&device, &kind);
            volumes.map_err(|error| Error::Mount(explain(&error, &kind, &device)))
        });
        self.count += 1;
        volumes
    }
}

/// Why a device is not mounted, with what the driver has said about it.
fn explain(error: &io::Error, kind: &str, device: &Path) -> String {
    let errno = error.raw_os_error().map(Errno::from_raw);
    if errno == Some(Errno::ENODEV) {
        return format!("there is no driver for {kind} in the reader's kernel");
    }
    let reason = errno.map_or_else(|| error.to_string(), |errno| errno.desc().to_owned());
    let name = device.file_name().unwrap_or_default().to_string_lossy();
    match machine::complaint(kind, &name) {
        Some(complaint) => format!("{reason}: {complaint}"),
        None => reason,
    }
}
