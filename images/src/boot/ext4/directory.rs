//! Directories and paths (the kernel's Documentation/filesystems/ext4/directory.rst).
//!
//! A directory is read from its beginning to its end. Its index, if it has one, looks like deleted entries that way.

use super::inode::{Inode, Kind};
use super::{Error, FileSystem, MAX_NAMES, corrupt};
use crate::boot::disk::{field, le16, le32};
use crate::checksum::crc32c;

/// How many symbolic links a path may lead through.
const MAX_LINKS: usize = 16;

/// How many components a path may have, those of symbolic links included.
const MAX_COMPONENTS: usize = 128;

/// The length of a symbolic link's target, in bytes.
const MAX_TARGET: u64 = 4095;

const ROOT: u32 = 2;
const INDEXED: u32 = 0x1000;

/// A name in a directory.
pub struct Entry<'b> {
    pub name: &'b [u8],
    inode: u32,
    /// What it says the inode is.
    kind: Option<Kind>,
}

impl FileSystem<'_> {
    /// The inode that a path leads to. It begins at the root, with a slash or not.
    pub fn resolve(&self, path: &str) -> Result<Inode, Error> {
        let mut links = 0;
        let mut components = 0;
        let mut inode = self.inode(ROOT)?;
        if inode.kind != Kind::Directory {
            return Err(corrupt("its root is no directory"));
        }
        // What is left, last component first.
        let mut rest: Vec<Vec<u8>> = split(path.as_bytes());
        while let Some(name) = rest.pop() {
            components += 1;
            if components > MAX_COMPONENTS {
                return Err(Error::Links);
            }
            let target = self.child(&inode, &name)?;
            if target.kind != Kind::Link {
                inode = target;
                continue;
            }
            links += 1;
            if links > MAX_LINKS {
                return Err(Error::Links);
            }
            let target = self.target(&target)?;
            if target.starts_with(b"/") {
                inode = self.inode(ROOT)?;
            }
            rest.extend(split(&target));
        }
        Ok(inode)
    }

    fn target(&self, link: &Inode) -> Result<Vec<u8>, Error> {
        if link.is_short_link() {
            return Ok(link.map.iter().copied().take(usize::try_from(link.size).unwrap_or(0)).collect());
        }
        if link.size > MAX_TARGET {
            return Err(corrupt(format!("the symbolic link of inode {} is too long", link.number)));
        }
        let mut target = Vec::new();
        self.copy_inode(link, &mut |_, piece| {
            target.extend_from_slice(piece);
            Ok(())
        })?;
        Ok(target)
    }

    /// The inode of this name in a directory.
    fn child(&self, directory: &Inode, wanted: &[u8]) -> Result<Inode, Error> {
        let mut found = None;
        self.each_name(directory, &mut |entry| {
            if entry.name == wanted {
                found = Some((entry.inode, entry.kind));
            }
            found.is_some()
        })?;
        let (inode, kind) = found.ok_or(Error::NotFound)?;
        let inode = self.inode(inode)?;
        if kind.is_some_and(|kind| kind != inode.kind) {
            return Err(corrupt(format!("inode {} is something else than its name says", inode.number)));
        }
        Ok(inode)
    }

    /// Calls `take` with each name and its inode, until it says that it has enough.
    pub fn each_name(&self, directory: &Inode, take: &mut dyn FnMut(Entry<'_>) -> bool) -> Result<(), Error> {
        if directory.kind != Kind::Directory {
            return Err(Error::NotA("directory"));
        }
        let mut count = 0;
        let end = directory.size.div_ceil(self.block_size);
        self.runs(directory, &mut |run| {
            let Some(place) = run.place else {
                return Err(corrupt(format!("the directory of inode {} has a hole", directory.number)));
            };
            for index in 0..run.count {
                if run.first + index >= end {
                    return Ok(false);
                }
                let block = place.checked_add(index).ok_or_else(|| corrupt("a directory is nowhere"))?;
                let block = self.block(block)?;
                self.check_block(directory, &block, run.first + index)?;
                if each_in_block(directory.number, &block, &mut count, take)? {
                    return Ok(false);
                }
            }
            Ok(true)
        })
    }

    fn check_block(&self, directory: &Inode, block: &[u8], index: u64) -> Result<(), Error> {
        let Some(seed) = directory.seed else { return Ok(()) };
        // The blocks of the index have no names to be wrong about.
        let is_index = directory.has_flag(INDEXED)
            && (index == 0 || le32(block, 0) == 0 && usize::from(le16(block, 4)) == block.len() % 65536);
        let tail = block.len().saturating_sub(12);
        let is_right = field::<8>(block, tail) == [0, 0, 0, 0, 12, 0, 0, 0xde]
            && crc32c(seed, block.get(..tail).unwrap_or_default()) == le32(block, tail + 8);
        if is_index || is_right {
            return Ok(());
        }
        Err(corrupt(format!("the directory of inode {} does not match a checksum", directory.number)))
    }
}

/// Calls `take` with each entry of a block. Says whether it has enough.
fn each_in_block(
    number: u32,
    block: &[u8],
    count: &mut usize,
    take: &mut dyn FnMut(Entry<'_>) -> bool,
) -> Result<bool, Error> {
    let wrong = || corrupt(format!("the directory of inode {number} has an entry that is none"));
    let mut rest = block;
    while !rest.is_empty() {
        let (inode, length, name) =
            (le32(rest, 0), usize::from(le16(rest, 4)), rest.get(6).copied().unwrap_or(0));
        // Blocks of 64 KiB do not fit into the field.
        let length = if matches!(length, 0 | 65535) && block.len() == 65536 { rest.len() } else { length };
        let name = usize::from(name);
        if length % 4 != 0 || length < 8 + name {
            return Err(wrong());
        }
        let (entry, after) = rest.split_at_checked(length).ok_or_else(wrong)?;
        rest = after;
        if inode == 0 {
            continue;
        }
        // Neither can be said by anyone who looks for it, and a zero would end it for some.
        let is_name = |name: &&[u8]| !name.is_empty() && !name.iter().any(|byte| matches!(byte, 0 | b'/'));
        let name = entry.get(8..8 + name).filter(is_name);
        let name = name.ok_or_else(wrong)?;
        *count += 1;
        if *count > MAX_NAMES {
            return Err(Error::Names);
        }
        // Without the feature for it this is zero.
        let kind = match entry.get(7) {
            Some(1) => Some(Kind::File),
            Some(2) => Some(Kind::Directory),
            Some(7) => Some(Kind::Link),
            _ => None,
        };
        if take(Entry { name, inode, kind }) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The components of a path, last one first.
fn split(path: &[u8]) -> Vec<Vec<u8>> {
    path.split(|byte| *byte == b'/')
        .rev()
        .filter(|name| !matches!(*name, b"" | b"."))
        .map(<[u8]>::to_vec)
        .collect()
}
