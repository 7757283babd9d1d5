//! Why a disk cannot be booted.

use std::error::Error as StdError;
use std::fmt;

use super::disk::ReadError;
use super::{command_line, partitions, reader, tree};
use crate::kernel;

/// Where on a disk something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// A disk without partitions.
    Disk,
    /// A partition, as Linux counts: `/dev/vda1` is 1.
    Partition(u32),
}

impl fmt::Display for Place {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Disk => write!(to, "the disk"),
            Self::Partition(number) => write!(to, "partition {number}"),
        }
    }
}

/// Why a disk cannot be booted. A message is one line and has its causes in it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The disk cannot be read.
    #[error("the disk cannot be read: {}", chain(.0))]
    Disk(ReadError),
    /// The partition table is broken.
    #[error("{}", chain(.0))]
    Partitions(partitions::Error),
    /// What it boots is, as far as can be told, in a file system that is not read on the host.
    #[error("the file system of {place} is {file_system}, which only a guest can read")]
    NeedsGuest {
        /// Which partition.
        place: Place,
        /// Such as `XFS`.
        file_system: String,
    },
    /// There is no file system that could have a kernel.
    #[error(
        "there is no kernel on the disk ({0}): an image needs one in /boot, in ext4, XFS or btrfs, with or without a \
         partition table"
    )]
    NoKernel(String),
    /// There is a kernel that no configuration says arguments for, and nothing that could be the root file system.
    #[error(
        "no partition looks like a root file system: boot it with a grub.cfg that has root= in its entry"
    )]
    NoRoot,
    /// A file system is broken.
    #[error("{place}: {}", chain(cause))]
    FileSystem {
        /// Which partition.
        place: Place,
        /// Why.
        cause: tree::Error,
    },
    /// A file that is needed cannot be read.
    #[error("cannot read {} on {place}: {}", shown(path), chain(cause))]
    File {
        /// Which partition.
        place: Place,
        /// The path in its file system.
        path: String,
        /// Why.
        cause: tree::Error,
    },
    /// A boot loader's configuration makes no sense.
    #[error("{} on {place}: {}", shown(path), shown(reason))]
    Configuration {
        /// Which partition.
        place: Place,
        /// The path in its file system.
        path: String,
        /// Why.
        reason: String,
    },
    /// The kernel is none.
    #[error("the kernel {} on {place} cannot be booted: {}", shown(path), chain(cause))]
    Kernel {
        /// Which partition.
        place: Place,
        /// The path in its file system.
        path: String,
        /// Why.
        cause: kernel::Error,
    },
    /// The arguments cannot be used.
    #[error("the boot entry {:?} on {place}: {cause}", shown(title))]
    CommandLine {
        /// Which partition.
        place: Place,
        /// The entry's title.
        title: String,
        /// Why.
        cause: command_line::Error,
    },
    /// The host has no memory for the kernel or the initial RAM file system.
    #[error("there is no memory for what the disk boots: {0}")]
    Memory(std::io::Error),
    /// A guest was to read it, and has not given what the disk boots.
    #[error("{}", chain(.0))]
    Reader(reader::Error),
}

/// An error and its causes on one line.
fn chain(error: &(dyn StdError + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

/// What a disk says, as part of a message: on one line, and no longer than one can read.
pub(super) fn shown(text: &str) -> String {
    cut(text, MAX_SHOWN)
}

/// The same for a text of another length, in characters.
pub(super) fn cut(text: &str, length: usize) -> String {
    let mut shown: String = text.chars().take(length).map(|c| if c.is_control() { '?' } else { c }).collect();
    if shown.len() < text.len() {
        shown.push('…');
    }
    shown
}

/// How many characters of it.
const MAX_SHOWN: usize = 200;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_disk_says_does_not_break_a_message() {
        let path = format!("/boot/\n{}", "x".repeat(5000));
        let message =
            Error::File { place: Place::Partition(1), path, cause: tree::Error::NotFound }.to_string();
        assert!(message.starts_with("cannot read /boot/?xxx") && message.len() < 300, "{message}");
        assert!(message.ends_with("x… on partition 1: it does not exist"), "{message}");
    }
}
