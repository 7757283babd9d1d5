//! The disks of an instance store: sparse files on a tmpfs that is the instance's own.
//!
//! They are made anew whenever a VMM is started and go when it has ended, so that they are there for one guest, however
//! often that reboots, and for nobody after it.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;

use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;

use crate::host::{Host, HostError};
use crate::ids::InstanceId;
use crate::records::{Instance, StoreDisk};
use crate::volumes::copy_sparse;

/// What a tmpfs gives at once, in bytes.
const PAGE: u64 = 4096;

/// Makes the disks of an instance, which has some. What an earlier guest has left is gone.
pub fn make(host: &dyn Host, instance: &Instance) -> Result<(), HostError> {
    let disks = &instance.instance_store;
    let whole_pages = |disk: &StoreDisk| disk.size.checked_next_multiple_of(PAGE).unwrap_or(u64::MAX);
    let size = disks.iter().map(whole_pages).fold(0, u64::saturating_add);
    let directory = host.make_store(&instance.id, size)?;
    for disk in disks {
        let source = disk.source.as_deref().map(|path| host.boot_file(path)).transpose()?;
        let made = || {
            let flags = OFlag::O_CREAT | OFlag::O_EXCL;
            let file = File::from(open_in(&directory, &disk.name, flags)?);
            if let Some(source) = source {
                copy_sparse(&File::from(source), &file)?;
            }
            file.set_len(disk.size)
        };
        let what = || format!("make {} in the instance store", disk.name);
        made().map_err(|cause| HostError { what: what(), cause })?;
    }
    Ok(())
}

/// Opens a disk of a guest that is there.
pub fn open(host: &dyn Host, instance: &InstanceId, disk: &str) -> Result<OwnedFd, HostError> {
    let directory = host.store(instance)?;
    let opened = directory
        .ok_or(io::ErrorKind::NotFound.into())
        .and_then(|directory| open_in(&directory, disk, OFlag::empty()));
    opened.map_err(|cause| HostError { what: format!("open {disk} in the instance store"), cause })
}

fn open_in(directory: &OwnedFd, name: &str, flags: OFlag) -> io::Result<OwnedFd> {
    let flags = flags | OFlag::O_RDWR | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
    Ok(openat(directory, name, flags, Mode::S_IRUSR | Mode::S_IWUSR)?)
}
