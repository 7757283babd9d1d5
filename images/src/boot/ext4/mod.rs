//! A reader for ext2, ext3 and ext4 that expects the worst (the kernel's Documentation/filesystems/ext4).
//!
//! It reads files and directories and nothing else, checks every checksum that there is, and replays the journal in
//! memory, because an instance that was cut off leaves one behind. Nothing is ever written.
//!
//! It is our own, not a package, since `ext4-view` 1.0 cannot be held to a time or an amount of memory from outside: an
//! extent tree whose nodes lead to one another again is walked for hours out of its cache, a symbolic link is read
//! into as much memory as it says it needs, and a count in a directory's index ends the program. Here
//! - every block of structures that is read counts against the disk's [budget](super::disk::BUDGET), those of
//!   the journal with a part of their size,
//! - extents must follow one another, so that a tree is walked at most once,
//! - a journal, a directory and a file each have a limit ([`MAX_JOURNAL_BLOCKS`], [`MAX_NAMES`], the caller's).
//!
//! | file | |
//! | --- | --- |
//! | `inode` | inodes, and where the blocks of one are |
//! | `directory` | names and paths |
//! | `journal` | which blocks have a newer copy in the journal |

mod directory;
mod inode;
mod journal;

pub use journal::MAX_JOURNAL_BLOCKS;

use inode::Kind;

use super::disk::{Region, le16, le32};
pub use super::tree::Error;
use super::tree::{MAX_NAMES, Take, Tree};
use crate::checksum::crc32c;

fn corrupt(what: impl Into<String>) -> Error {
    Error::Corrupt(what.into())
}

/// Incompatible features: those that change how things are read.
mod incompatible {
    pub const RECOVER: u32 = 0x4;
    pub const IS_64BIT: u32 = 0x80;
    pub const CHECKSUM_SEED: u32 = 0x2000;
    pub const NAMES: [(u32, &str); 15] = [
        (0x1, "compression"),
        (0x8, "an external journal"),
        (0x10, "meta block groups"),
        (0x1000, "data in directories"),
        (0x2, ""),
        (RECOVER, ""),
        (0x40, ""),
        (IS_64BIT, ""),
        // Multiple mount protection, flexible groups, large attributes, large directories, inline data, encryption and
        // folding of letters: nothing changes, or what is concerned has a flag of its own.
        (0x100, ""),
        (0x200, ""),
        (0x400, ""),
        (CHECKSUM_SEED, ""),
        (0x4000, ""),
        (0x8000 | 0x1_0000, ""),
        (0x2_0000, ""),
    ];
}

const COMPATIBLE_JOURNAL: u32 = 0x4;
const READ_ONLY_CHECKSUMS: u32 = 0x400;

/// A file system, ready to be read.
pub struct FileSystem<'a> {
    region: Region<'a>,
    block_size: u64,
    blocks: u64,
    inodes: u32,
    inodes_per_group: u32,
    inode_size: u16,
    /// Where the group descriptors begin, in bytes.
    descriptors: u64,
    descriptor_size: u16,
    is_64bit: bool,
    /// What checksums begin with, if there are any.
    seed: Option<u32>,
    journal: journal::Copies,
}

impl<'a> FileSystem<'a> {
    /// Looks at the superblock and the journal.
    ///
    /// # Errors
    /// It is corrupt, or has features that are not supported.
    pub fn open(region: Region<'a>) -> Result<Self, Error> {
        let superblock: [u8; 1024] = region.bytes(1024)?;
        let word = |offset| le32(&superblock, offset);
        if le16(&superblock, 0x38) != 0xef53 {
            return Err(corrupt("there is no superblock"));
        }
        let (compatible, incompatible, read_only) = (word(0x5c), word(0x60), word(0x64));
        let mut unknown = incompatible;
        for (bit, name) in incompatible::NAMES {
            if incompatible & bit != 0 && !name.is_empty() {
                return Err(Error::Unsupported(name.into()));
            }
            unknown &= !bit;
        }
        if unknown != 0 {
            return Err(Error::Unsupported(format!("unknown features ({unknown:#x})")));
        }
        let has_checksums = read_only & READ_ONLY_CHECKSUMS != 0;
        if has_checksums && crc32c(!0, superblock.get(..0x3fc).unwrap_or_default()) != word(0x3fc) {
            return Err(corrupt("the superblock does not match its checksum"));
        }
        let is_64bit = incompatible & incompatible::IS_64BIT != 0;
        let block_size = match word(0x18) {
            shift @ 0..=6 => 1024_u64 << shift,
            _ => return Err(corrupt("the superblock has an impossible block size")),
        };
        let high = if is_64bit { u64::from(word(0x150)) << 32 } else { 0 };
        let blocks = high | u64::from(word(4));
        let length =
            blocks.checked_mul(block_size).ok_or_else(|| corrupt("it has more blocks than there can be"))?;
        if length > region.length() {
            return Err(corrupt(format!(
                "it says it is {length} bytes large, and there are {} (was the disk cut off?)",
                region.length()
            )));
        }
        let is_old = word(0x4c) == 0;
        let inode_size = if is_old { 128 } else { le16(&superblock, 0x58) };
        if inode_size < 128 || !inode_size.is_power_of_two() || u64::from(inode_size) > block_size {
            return Err(corrupt(format!("the superblock says that inodes have {inode_size} bytes")));
        }
        let descriptor_size = if is_64bit { le16(&superblock, 0xfe) } else { 32 };
        if descriptor_size < 32 || !descriptor_size.is_power_of_two() || descriptor_size > 1024 {
            return Err(corrupt(format!(
                "the superblock says that group descriptors have {descriptor_size} bytes"
            )));
        }
        let (inodes, inodes_per_group) = (word(0), word(0x28));
        if inodes_per_group == 0 || u64::from(inodes_per_group) > 8 * block_size {
            return Err(corrupt(format!("the superblock says that a group has {inodes_per_group} inodes")));
        }
        let seed = match incompatible & incompatible::CHECKSUM_SEED {
            _ if !has_checksums => None,
            0 => Some(crc32c(!0, superblock.get(0x68..0x78).unwrap_or_default())),
            _ => Some(word(0x270)),
        };
        let mut this = Self {
            region,
            block_size,
            blocks,
            inodes,
            inodes_per_group,
            inode_size,
            // Behind the block that the superblock is in.
            descriptors: (1024 / block_size + 1) * block_size,
            descriptor_size,
            is_64bit,
            seed,
            journal: journal::Copies::default(),
        };
        if compatible & COMPATIBLE_JOURNAL != 0 && incompatible & incompatible::RECOVER != 0 {
            this.journal = journal::Copies::load(&this, word(0xe0))?;
        }
        Ok(this)
    }

    /// A block of structures, from the journal if there is a newer copy.
    fn block(&self, block: u64) -> Result<Vec<u8>, Error> {
        let mut data = vec![0; usize::try_from(self.block_size).unwrap_or(0)];
        self.region.charge(self.block_size)?;
        self.read_blocks(block, &mut data)?;
        Ok(data)
    }

    /// Reads from the beginning of a block on; over its end if the blocks behind are wanted too.
    fn read_blocks(&self, block: u64, data: &mut [u8]) -> Result<(), Error> {
        let count = (data.len() as u64).div_ceil(self.block_size);
        // Block 0 has the boot sector. Nothing leads there.
        if block == 0 || block.checked_add(count).is_none_or(|end| end > self.blocks) {
            return Err(corrupt(format!("something is said to be in block {block}, of {}", self.blocks)));
        }
        self.region.read_contents(block * self.block_size, data)?;
        self.journal.put_over(self, block, data)
    }
}

impl Tree for FileSystem<'_> {
    fn copy(&self, path: &str, limit: u64, take: Take<'_>) -> Result<u64, Error> {
        let inode = self.resolve(path)?;
        if inode.kind != Kind::File {
            return Err(Error::NotA("regular file"));
        }
        if inode.size > limit {
            return Err(Error::TooLarge { size: inode.size, limit });
        }
        self.copy_inode(&inode, take)?;
        Ok(inode.size)
    }

    fn names(&self, path: &str) -> Result<Vec<String>, Error> {
        let inode = self.resolve(path)?;
        let mut names = Vec::new();
        self.each_name(&inode, &mut |entry| {
            if let Ok(name) = std::str::from_utf8(entry.name)
                && !matches!(name, "." | "..")
            {
                names.push(name.to_owned());
            }
            false
        })?;
        Ok(names)
    }

    fn exists(&self, path: &str) -> Result<bool, Error> {
        match self.resolve(path) {
            Ok(_) => Ok(true),
            Err(Error::NotFound | Error::NotA(_)) => Ok(false),
            Err(error) => Err(error),
        }
    }
}
