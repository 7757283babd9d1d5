//! What a disk boots, read from the disk itself at every start: after `apt upgrade && reboot` it is the new kernel.
//!
//! [`find`] goes from the outside in:
//!
//! | | |
//! | --- | --- |
//! | `partitions` | GPT, MBR, or none |
//! | `signature` | which file system is on each |
//! | `ext4` | ext2, ext3 and ext4, which are read here; what others there are is for a guest ([`Error::NeedsGuest`]) |
//! | `reader` | that guest, and what it answers |
//! | `tree` | files and directories, whoever reads them |
//! | `menu` | the file system that has `grub.cfg`, entries of the Boot Loader Specification, or just kernels |
//! | `grub`, `bls`, `newest` | the entry that is booted: kernel, initial RAM file systems, arguments |
//! | `load`, `memory` | copies of them in memory, sealed |
//! | `command_line` | the entry's arguments and what a micro-VM needs |
//!
//! **The disk is a guest's and may be hostile.** Nothing of it is mounted, run or believed. Its structures cost at most
//! [`BUDGET`] bytes of reading, what is kept of them has a limit each, and kernels and initial RAM file systems go to
//! memory files of at most [`MAX_KERNEL`], [`MAX_VMLINUX`](crate::kernel::MAX_VMLINUX) and [`MAX_INITRD`]. What is wrong
//! ends in an [`Error`] of one line.
//!
//! The disk has to be still while it is read: the instance is stopped, or its VMM is waiting in a reset.

pub mod bls;
pub mod command_line;
mod disk;
pub mod entry;
mod error;
pub mod ext4;
pub mod grub;
mod load;
mod memory;
mod menu;
mod newest;
pub mod partitions;
pub mod reader;
mod signature;
pub mod tree;
pub mod version;

use std::cell::Cell;
use std::fs::File;

pub use disk::{BUDGET, Disk, ReadError, Region, SECTOR};
pub use error::{Error, Place};
pub use load::{MAX_INITRD, MAX_KERNEL};

/// What a disk boots.
#[derive(Debug)]
pub struct BootSource {
    /// The kernel, in a sealed memory file: an ELF file if there is one to be had, else a bzImage.
    pub kernel: File,
    /// The initial RAM file system in a sealed memory file, if the entry has one.
    pub initrd: Option<File>,
    /// The kernel's command line, at most [`command_line::MAX_LENGTH`] bytes.
    pub command_line: String,
    /// Where it is from.
    pub origin: Origin,
}

impl BootSource {
    /// One with these files, sealed and checked. The command line has the entry's arguments and what a micro-VM needs.
    fn new(kernel: File, initrd: Option<File>, arguments: &str, origin: Origin) -> Result<Self, Error> {
        let command_line = command_line::complete(arguments).map_err(|cause| Error::CommandLine {
            place: origin.place,
            title: origin.title.clone(),
            cause,
        })?;
        Ok(Self { kernel, initrd, command_line, origin })
    }
}

/// Where on the disk a boot source is from, for messages and logs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    /// The disk or partition whose file system has all of it.
    pub place: Place,
    /// The path of the `grub.cfg` or of the directory of entries; `None` if the kernel was just there.
    pub configuration: Option<String>,
    /// The title of the entry.
    pub title: String,
    /// The kernel's path.
    pub kernel: String,
    /// The paths of the initial RAM file systems.
    pub initrds: Vec<String>,
}

/// Finds what a disk boots, and reads it.
///
/// # Errors
/// The disk has nothing to boot, is broken, or has what it boots in a file system that only a guest can read.
pub fn find(disk: &dyn Disk) -> Result<BootSource, Error> {
    let budget = Cell::new(BUDGET);
    let whole = Region::whole(disk, &budget).map_err(Error::Disk)?;
    let (parts, problem) = menu::Parts::of(whole, None)?;
    let found = parts.choose(problem)?;
    let kernel = found.from.kernel(&found.entry.kernel)?;
    let initrd = found.from.initrds(&found.entry.initrds)?;
    let (origin, arguments) = found.origin();
    BootSource::new(kernel, initrd, &arguments, origin)
}
