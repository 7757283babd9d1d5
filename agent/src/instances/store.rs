//! The disks of an instance store: sparse files on a tmpfs that is the instance's own. A root disk is a layer there, on top
//! of those of its image, so that only what the guest writes takes memory.
//!
//! They are made anew whenever a VMM is started and go when it has ended, so that they are there for one guest, however
//! often that reboots, and for nobody after it.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;

use innkeeper_block::layered::{self, LayerDescription};
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;

use super::vmm::DiskFiles;
use crate::host::{Host, HostError};
use crate::ids::{InstanceId, LayerId};
use crate::records::{Instance, StoreDisk};
use crate::volumes::Opened;
use crate::volumes::copy::copy_sparse;

/// What a tmpfs gives at once, in bytes.
const PAGE: u64 = 4096;

/// Makes the disks of an instance, which has some. What an earlier guest has left is gone.
pub fn make(host: &dyn Host, instance: &Instance) -> Result<(), HostError> {
    let disks = &instance.instance_store;
    let whole_pages = |disk: &StoreDisk| {
        let map = if disk.layer.is_some() { layered::map_size(disk.size) } else { 0 };
        disk.size.checked_next_multiple_of(PAGE).unwrap_or(u64::MAX).saturating_add(map)
    };
    let size = disks.iter().map(whole_pages).fold(0, u64::saturating_add);
    let directory = host.make_store(&instance.id, size)?;
    for disk in disks {
        let source = disk.source.as_deref().map(|path| host.boot_file(path)).transpose()?;
        let made = || {
            let flags = OFlag::O_CREAT | OFlag::O_EXCL;
            let file = File::from(open_in(&directory, &disk.name, flags)?);
            if let Some(base) = &disk.layer {
                let map = File::from(open_in(&directory, &map_name(&disk.name), flags)?);
                let id = LayerId::random().uuid();
                let description = LayerDescription { id, parent: Some(base.uuid()), size: disk.size };
                return layered::create_layer(&layered::Layer { data: file, map }, &description);
            }
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

fn map_name(disk: &str) -> String {
    format!("{disk}.map")
}

/// Opens a disk of a guest that is there: that one file, or the layer that is on top of `below`.
pub fn open(
    host: &dyn Host,
    instance: &InstanceId,
    disk: &str,
    below: Option<Opened>,
) -> Result<DiskFiles, HostError> {
    let directory = host.store(instance)?;
    let open = || {
        let directory = directory.ok_or(io::ErrorKind::NotFound)?;
        let file = open_in(&directory, disk, OFlag::empty())?;
        let Some(below) = below else { return Ok(DiskFiles::Raw(file)) };
        let map = open_in(&directory, &map_name(disk), OFlag::empty())?;
        let mut layers = below.files;
        layers.push(layered::Layer { data: file.into(), map: map.into() });
        Ok(DiskFiles::Layers(layers))
    };
    open().map_err(|cause: io::Error| HostError { what: format!("open {disk} in the instance store"), cause })
}

fn open_in(directory: &OwnedFd, name: &str, flags: OFlag) -> io::Result<OwnedFd> {
    let flags = flags | OFlag::O_RDWR | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
    Ok(openat(directory, name, flags, Mode::S_IRUSR | Mode::S_IWUSR)?)
}
