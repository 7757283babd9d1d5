//! Which file system, or what else, a partition holds, by the mark that each has at a place of its own.

use super::disk::{ReadError, Region};

/// What is on a partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// ext2, ext3 or ext4.
    Ext4,
    /// A file system that Linux mounts as root and that is not read here.
    Foreign(String),
    /// Something else with a name.
    Other(&'static str),
    /// No mark that is known here.
    Unknown,
}

const EXT4: (u64, &[u8]) = (0x438, &[0x53, 0xef]);

const FOREIGN: [(u64, &[u8], &str); 3] =
    [(0, b"XFSB", "XFS"), (0x1_0040, b"_BHRfS_M", "btrfs"), (0x400, &[0x10, 0x20, 0xf5, 0xf2], "F2FS")];

const OTHER: [(u64, &[u8], &str); 8] = [
    (0, b"LUKS\xba\xbe", "LUKS, an encrypted volume"),
    (0x218, b"LVM2 001", "LVM, a pool of logical volumes"),
    (0, b"hsqs", "squashfs"),
    (0x400, &[0xe2, 0xe1, 0xf5, 0xe0], "EROFS"),
    (0x36, b"FAT", "FAT"),
    (0x52, b"FAT32", "FAT"),
    (3, b"NTFS    ", "NTFS"),
    (0xff6, b"SWAPSPACE2", "swap space"),
];

/// Says what is on a partition.
///
/// # Errors
/// It cannot be read.
pub fn identify(partition: Region<'_>) -> Result<Content, ReadError> {
    let is = |offset: u64, mark: &[u8]| -> Result<bool, ReadError> {
        // What is too small for a mark does not have it.
        if partition.length() < offset + 16 {
            return Ok(false);
        }
        Ok(partition.bytes::<16>(offset)?.starts_with(mark))
    };
    // What covers the beginning comes first: a disk that was ext4 once keeps that mark below a new LUKS header.
    for (offset, mark, name) in OTHER {
        if is(offset, mark)? {
            return Ok(Content::Other(name));
        }
    }
    for (offset, mark, name) in FOREIGN {
        if is(offset, mark)? {
            return Ok(Content::Foreign(name.to_owned()));
        }
    }
    Ok(if is(EXT4.0, EXT4.1)? { Content::Ext4 } else { Content::Unknown })
}
