//! Where ext4 has its structures, and their checksums (the kernel's Documentation/filesystems/ext4).
//!
//! Nothing here is believed either: it is made for file systems that an input has changed already.

use std::collections::HashSet;
use std::ops::Range;

use crate::image::Image;
use crate::sums::{crc32c, le16, le32};

/// As many structures of a kind, or of a file, are looked for. Those behind are as the input leaves them.
const MOST_INODES: u32 = 96;
const MOST_BLOCKS: usize = 64;
const MOST: usize = 1024;

const ROOT: u32 = 2;
const FIRST: u32 = 11;
const EXTENTS: u32 = 0x8_0000;
const CHECKSUMS: u32 = 0x400;
const CHECKSUM_SEED: u32 = 0x2000;
const IS_64BIT: u32 = 0x80;
/// An incompatible feature: the journal has to be replayed.
pub const NEEDS_RECOVERY: u32 = 0x4;

/// What a structure is, and whose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Superblock,
    Descriptor(u32),
    Inode(u32),
    /// A node of an extent tree, of an inode with these first words of its checksums.
    Node(u32),
    /// A node of the older block map.
    Map,
    /// A block of a directory.
    Names(u32),
    /// A block of something else, such as a long symbolic link.
    Contents,
}

/// A file system in an image.
pub struct FileSystem {
    /// Where it begins, in bytes.
    pub start: usize,
    /// The size of its blocks, in bytes.
    pub block_size: usize,
    incompatible: u32,
    seed: Option<u32>,
    structures: Vec<(Kind, Range<usize>)>,
    /// Where they begin.
    seen: HashSet<usize>,
    /// The blocks of the log, in its order.
    log: Vec<usize>,
}

impl FileSystem {
    /// Looks at a file system as it is now.
    pub fn look(image: &[u8], start: usize) -> Self {
        let superblock = image.get(start + 1024..).and_then(|rest| rest.get(..1024)).unwrap_or(&[0; 1024]);
        let incompatible = le32(superblock, 0x60);
        let has_checksums = le32(superblock, 0x64) & CHECKSUMS != 0;
        let seed = match incompatible & CHECKSUM_SEED {
            _ if !has_checksums => None,
            0 => Some(crc32c(!0, &superblock[0x68..0x78])),
            _ => Some(le32(superblock, 0x270)),
        };
        let mut this = Self {
            start,
            block_size: 1024 << (le32(superblock, 0x18) % 7),
            incompatible,
            seed,
            structures: vec![(Kind::Superblock, start + 1024..start + 2048)],
            seen: HashSet::new(),
            log: Vec::new(),
        };
        this.groups(image, superblock);
        this
    }

    /// Where its structures are, in bytes: the superblock first, then groups and inodes, then blocks.
    pub fn structures(&self) -> Vec<Range<usize>> {
        let log = self.log.iter().take(MOST_BLOCKS).map(|at| *at..at + self.block_size);
        self.structures.iter().map(|(_, range)| range.clone()).chain(log).collect()
    }

    /// The blocks of its log, in bytes and in order.
    pub fn log(&self) -> &[usize] {
        &self.log
    }

    fn push(&mut self, kind: Kind, range: Range<usize>) {
        if self.structures.len() < MOST && self.seen.insert(range.start) {
            self.structures.push((kind, range));
        }
    }

    fn groups(&mut self, image: &[u8], superblock: &[u8]) {
        let inode_size = match le32(superblock, 0x4c) {
            0 => 128,
            _ => usize::from(le16(superblock, 0x58)).clamp(128, self.block_size),
        };
        let is_64bit = self.incompatible & IS_64BIT != 0;
        let size = if is_64bit { usize::from(le16(superblock, 0xfe)).clamp(32, 1024) } else { 32 };
        let per_group = le32(superblock, 0x28).max(1);
        let descriptors = self.start + (1024 / self.block_size + 1) * self.block_size;
        let journal = le32(superblock, 0xe0);
        let mut inodes = Vec::new();
        for group in 0..le32(superblock, 0).div_ceil(per_group).min(4) {
            let at = descriptors + size * group as usize;
            self.push(Kind::Descriptor(group), at..at + size);
            let Some(descriptor) = image.get(at..at + size) else { return };
            let table = self.block(le32(descriptor, 8).into());
            for index in 0..per_group.min(MOST_INODES) {
                let at = table + index as usize * inode_size;
                let Some(inode) = image.get(at..at + inode_size).filter(|inode| le16(inode, 0) != 0) else {
                    continue;
                };
                let number = group * per_group + index + 1;
                self.push(Kind::Inode(number), at..at + inode_size);
                // Of those that have no name only the journal is read.
                if number == ROOT || number == journal || number >= FIRST {
                    inodes.push((number, inode));
                }
            }
        }
        for (number, inode) in inodes {
            let kind = match le16(inode, 0) >> 12 {
                4 => Kind::Names(self.inode_seed(number, inode)),
                _ => Kind::Contents,
            };
            let mut blocks = Vec::new();
            if le32(inode, 32) & EXTENTS != 0 {
                self.extents(image, self.inode_seed(number, inode), &inode[40..100], 5, &mut blocks);
            } else if le16(inode, 0) >> 12 != 0xa || le32(inode, 4) >= 60 {
                for (index, levels) in (0..15).zip([0; 12].into_iter().chain(1..=3)) {
                    self.map(image, le32(inode, 40 + 4 * index), levels, &mut blocks);
                }
            }
            if number == journal {
                self.log = blocks;
                continue;
            }
            // Of files the contents matter little, and links are short.
            let most = if matches!(kind, Kind::Names(_)) { MOST_BLOCKS } else { 1 };
            for at in blocks.into_iter().take(most) {
                self.push(kind, at..at + self.block_size);
            }
        }
    }

    fn block(&self, number: u64) -> usize {
        // Behind any disk there may be, and before what can be counted ends.
        self.start + self.block_size.saturating_mul(number as usize).min(1 << 60)
    }

    fn inode_seed(&self, number: u32, inode: &[u8]) -> u32 {
        let seed = crc32c(self.seed.unwrap_or(0), &number.to_le_bytes());
        crc32c(seed, inode.get(100..104).unwrap_or_default())
    }

    /// The blocks that a node of an extent tree leads to.
    fn extents(&mut self, image: &[u8], seed: u32, node: &[u8], levels: u16, blocks: &mut Vec<usize>) {
        let depth = le16(node, 6);
        if le16(node, 0) != 0xf30a || depth > levels {
            return;
        }
        for entry in node.chunks_exact(12).skip(1).take(le16(node, 2).into()) {
            if depth == 0 {
                let first = u64::from(le16(entry, 6)) << 32 | u64::from(le32(entry, 8));
                let room = (MOST * 4).saturating_sub(blocks.len());
                let count = usize::from(le16(entry, 4) % 0x8000).min(room);
                blocks.extend((first..).take(count).map(|block| self.block(block)));
                continue;
            }
            let at = self.block(u64::from(le16(entry, 8)) << 32 | u64::from(le32(entry, 4)));
            let count = self.structures.len();
            let Some(child) = image.get(at..at.saturating_add(self.block_size)) else { continue };
            self.push(Kind::Node(seed), at..at + self.block_size);
            // Where one leads back, it is there already.
            if self.structures.len() > count {
                self.extents(image, seed, child, depth - 1, blocks);
            }
        }
    }

    fn map(&mut self, image: &[u8], block: u32, levels: u32, blocks: &mut Vec<usize>) {
        let at = self.block(block.into());
        if block == 0 || blocks.len() > MOST * 4 {
            return;
        }
        if levels == 0 {
            blocks.push(at);
            return;
        }
        let count = self.structures.len();
        self.push(Kind::Map, at..at.saturating_add(self.block_size));
        let Some(node) = image.get(at..at.saturating_add(self.block_size)) else { return };
        if self.structures.len() > count {
            node.chunks_exact(4).for_each(|entry| self.map(image, le32(entry, 0), levels - 1, blocks));
        }
    }
}

/// Makes all checksums right, as far as there are any, of a file system that begins at `start`.
pub fn seal(image: &mut Image, start: usize) {
    let file_system = FileSystem::look(image.bytes(), start);
    if file_system.incompatible & NEEDS_RECOVERY != 0 {
        crate::journal::seal(image, &file_system);
    }
    let Some(seed) = file_system.seed else { return };
    for (kind, range) in file_system.structures.iter().rev() {
        let Some(data) = image.bytes().get(range.clone()) else { continue };
        let at = range.start;
        match *kind {
            Kind::Superblock => {
                let sum = crc32c(!0, &data[..0x3fc]);
                image.write(at + 0x3fc, &sum.to_le_bytes());
            }
            Kind::Descriptor(group) => {
                let sum = crc32c(crc32c(seed, &group.to_le_bytes()), &data[..30]);
                let sum = crc32c(crc32c(sum, &[0; 2]), &data[32..]);
                image.write(at + 30, &(sum as u16).to_le_bytes());
            }
            Kind::Inode(number) => {
                let mut copy = data.to_vec();
                copy[124..126].fill(0);
                let has_high = copy.len() > 128 && le16(&copy, 128) >= 4;
                if has_high {
                    copy[130..132].fill(0);
                }
                let sum = crc32c(file_system.inode_seed(number, data), &copy);
                image.write(at + 124, &(sum as u16).to_le_bytes());
                if has_high {
                    image.write(at + 130, &((sum >> 16) as u16).to_le_bytes());
                }
            }
            Kind::Node(seed) => {
                let end = (usize::from(le16(data, 4)) + 1) * 12;
                if let Some(checked) = data.get(..end).filter(|_| end + 4 <= data.len()) {
                    image.write(at + end, &crc32c(seed, checked).to_le_bytes());
                }
            }
            Kind::Names(seed) => {
                let tail = data.len() - 12;
                if data[tail..tail + 8] == [0, 0, 0, 0, 12, 0, 0, 0xde] {
                    image.write(at + tail + 8, &crc32c(seed, &data[..tail]).to_le_bytes());
                }
            }
            Kind::Map | Kind::Contents => {}
        }
    }
}
