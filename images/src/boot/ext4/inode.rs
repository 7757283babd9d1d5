//! Inodes, and where their blocks are (the kernel's Documentation/filesystems/ext4/inodes.rst and ifork.rst).

use super::{Error, FileSystem, corrupt};
use crate::boot::disk::{SECTOR, field, le16, le32};
use crate::boot::tree::Take as Contents;
use crate::checksum::crc32c;

/// What is read at once of a file's contents, in bytes.
const PIECE: u64 = 256 << 10;

const EXTENTS: u32 = 0x8_0000;
const ENCRYPTED: u32 = 0x800;
const INLINE: u32 = 0x1000_0000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    File,
    Directory,
    Link,
    Other,
}

#[derive(Debug)]
pub struct Inode {
    pub number: u32,
    pub kind: Kind,
    /// In bytes.
    pub size: u64,
    flags: u32,
    /// Where the blocks are, or a short symbolic link itself.
    pub map: [u8; 60],
    /// What the checksums of its blocks begin with.
    pub seed: Option<u32>,
}

/// Blocks of a file that are next to one another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// Counted in the file.
    pub first: u64,
    pub count: u64,
    /// Counted in the file system; `None` for a hole.
    pub place: Option<u64>,
}

/// What is done with each run, in the order of the file. It says whether to go on.
type Take<'t> = &'t mut dyn FnMut(Run) -> Result<bool, Error>;

impl Inode {
    pub fn has_flag(&self, flag: u32) -> bool {
        self.flags & flag != 0
    }

    /// Whether the map is the target of a short symbolic link.
    pub fn is_short_link(&self) -> bool {
        self.kind == Kind::Link && self.size < 60 && self.flags & EXTENTS == 0
    }
}

impl FileSystem<'_> {
    /// Reads an inode.
    pub fn inode(&self, number: u32) -> Result<Inode, Error> {
        let index = number.checked_sub(1).filter(|_| number <= self.inodes);
        let index =
            index.ok_or_else(|| corrupt(format!("something leads to inode {number}, of {}", self.inodes)))?;
        let (group, index) = (index / self.inodes_per_group, index % self.inodes_per_group);
        let table = self.inode_table(group)?;
        let offset = u64::from(index) * u64::from(self.inode_size);
        let block =
            table.checked_add(offset / self.block_size).ok_or_else(|| corrupt("an inode is nowhere"))?;
        let data = self.block(block)?;
        let within = usize::try_from(offset % self.block_size).unwrap_or(0);
        let data =
            data.get(within..).and_then(|rest| rest.get(..usize::from(self.inode_size))).unwrap_or_default();

        let mode = le16(data, 0);
        let kind = match mode >> 12 {
            0x4 => Kind::Directory,
            0x8 => Kind::File,
            0xa => Kind::Link,
            _ => Kind::Other,
        };
        if mode == 0 || le16(data, 26) == 0 {
            return Err(corrupt(format!("something leads to inode {number}, which is not in use")));
        }
        let seed = self.seed.map(|seed| {
            let seed = crc32c(seed, &number.to_le_bytes());
            crc32c(seed, &field::<4>(data, 100))
        });
        if let Some(seed) = seed {
            check(data, seed).map_err(|()| corrupt(format!("inode {number} does not match its checksum")))?;
        }
        let flags = le32(data, 32);
        if flags & ENCRYPTED != 0 {
            return Err(Error::Unsupported(format!("encrypted contents (inode {number})")));
        }
        if flags & INLINE != 0 {
            return Err(Error::Unsupported(format!("contents inside of inodes (inode {number})")));
        }
        let size = u64::from(le32(data, 108)) << 32 | u64::from(le32(data, 4));
        Ok(Inode { number, kind, size, flags, map: field(data, 40), seed })
    }

    /// The block where a group's inodes begin.
    fn inode_table(&self, group: u32) -> Result<u64, Error> {
        let size = u64::from(self.descriptor_size);
        let offset = self.descriptors.saturating_add(u64::from(group) * size);
        let data = self.block(offset / self.block_size)?;
        let within = usize::try_from(offset % self.block_size).unwrap_or(0);
        let data = data.get(within..).and_then(|rest| rest.get(..usize::from(self.descriptor_size)));
        let data = data.unwrap_or_default();
        if let Some(seed) = self.seed {
            let sum = crc32c(seed, &group.to_le_bytes());
            let sum = crc32c(sum, data.get(..30).unwrap_or_default());
            let sum = crc32c(crc32c(sum, &[0; 2]), data.get(32..).unwrap_or_default());
            if sum as u16 != le16(data, 30) {
                return Err(corrupt(format!("the descriptor of group {group} does not match its checksum")));
            }
        }
        let high = if self.is_64bit && data.len() >= 64 { u64::from(le32(data, 40)) << 32 } else { 0 };
        Ok(high | u64::from(le32(data, 8)))
    }

    /// Hands the contents of an inode to `take`, piece by piece. Holes are left out.
    pub fn copy_inode(&self, inode: &Inode, take: Contents<'_>) -> Result<(), Error> {
        let mut piece = Vec::new();
        self.runs(inode, &mut |run| {
            let mut offset = run.first.saturating_mul(self.block_size);
            let end = run.first.saturating_add(run.count).saturating_mul(self.block_size).min(inode.size);
            let Some(mut place) = run.place else { return Ok(offset < inode.size) };
            while offset < end {
                let length = (end - offset).min(PIECE);
                piece.resize(usize::try_from(length).unwrap_or(0), 0);
                // A file of many small pieces takes time too.
                self.region.charge(SECTOR)?;
                self.read_blocks(place, &mut piece)?;
                take(offset, &piece).map_err(Error::Store)?;
                offset += length;
                place += PIECE / self.block_size;
            }
            Ok(offset < inode.size)
        })
    }

    /// Calls `take` with the runs of a file in order.
    pub fn runs(&self, inode: &Inode, take: Take<'_>) -> Result<(), Error> {
        let end = inode.size.div_ceil(self.block_size);
        if inode.flags & EXTENTS != 0 {
            let mut walk = Extents { file_system: self, inode, next: 0, end, take };
            walk.node(&inode.map, None).map(|_| ())
        } else {
            let mut walk = Indirect { file_system: self, next: 0, end, pending: None, take };
            walk.all(&inode.map)
        }
    }
}

/// Checks an inode's checksum. It is in two halves, of which an inode of 128 bytes has the lower.
fn check(data: &[u8], seed: u32) -> Result<(), ()> {
    let has_high = data.len() > 128 && le16(data, 128) >= 4;
    let mut copy = data.to_vec();
    if let Some(low) = copy.get_mut(124..126) {
        low.fill(0);
    }
    if has_high && let Some(high) = copy.get_mut(130..132) {
        high.fill(0);
    }
    let sum = crc32c(seed, &copy);
    let (low, high) = (sum as u16, (sum >> 16) as u16);
    if low == le16(data, 124) && (!has_high || high == le16(data, 130)) { Ok(()) } else { Err(()) }
}

/// A walk through an extent tree.
struct Extents<'w, 'd> {
    file_system: &'w FileSystem<'d>,
    inode: &'w Inode,
    /// The first block that may come: there is no way back.
    next: u64,
    /// Where the file ends, in blocks.
    end: u64,
    take: Take<'w>,
}

impl Extents<'_, '_> {
    /// A node, which has to have this depth. Says whether to go on.
    fn node(&mut self, data: &[u8], depth: Option<u16>) -> Result<bool, Error> {
        let number = self.inode.number;
        let wrong = |what: &str| corrupt(format!("the extent tree of inode {number} {what}"));
        let (entries, own_depth) = (usize::from(le16(data, 2)), le16(data, 6));
        let room = data.len() / 12 - 1;
        if le16(data, 0) != 0xf30a
            || usize::from(le16(data, 4)) > room
            || entries > usize::from(le16(data, 4))
        {
            return Err(wrong("has a node that is none"));
        }
        if own_depth > 5 || depth.is_some_and(|depth| depth != own_depth) {
            return Err(wrong("has a node of another depth"));
        }
        // Nodes without anything could follow one another for ever.
        if depth.is_some() && entries == 0 {
            return Err(wrong("has an empty node"));
        }
        for index in 1..=entries {
            let entry = data.get(index * 12..).unwrap_or_default();
            let first = u64::from(le32(entry, 0));
            if first < self.next {
                return Err(wrong("goes back"));
            }
            if own_depth > 0 {
                let child = u64::from(le16(entry, 8)) << 32 | u64::from(le32(entry, 4));
                let child = self.file_system.block(child)?;
                self.check(&child)?;
                if !self.node(&child, Some(own_depth - 1))? {
                    return Ok(false);
                }
                continue;
            }
            // Above 32768 it is room that nothing was written to, which reads as zeros.
            let length = le16(entry, 4);
            let is_written = length <= 0x8000;
            let count = u64::from(if is_written { length } else { length - 0x8000 });
            if count == 0 {
                return Err(wrong("has an extent of no blocks"));
            }
            let place = u64::from(le16(entry, 6)) << 32 | u64::from(le32(entry, 8));
            self.next = first + count;
            let run = Run { first, count, place: is_written.then_some(place) };
            if first >= self.end || !(self.take)(run)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn check(&self, node: &[u8]) -> Result<(), Error> {
        let Some(seed) = self.inode.seed else { return Ok(()) };
        let end = (usize::from(le16(node, 4)) + 1) * 12;
        match node.get(..end) {
            Some(checked) if crc32c(seed, checked) == le32(node, end) => Ok(()),
            _ => Err(corrupt(format!(
                "the extent tree of inode {} does not match a checksum",
                self.inode.number
            ))),
        }
    }
}

/// A walk through the older block map: twelve blocks, then trees of one, two and three levels.
struct Indirect<'w, 'd> {
    file_system: &'w FileSystem<'d>,
    next: u64,
    end: u64,
    /// What may go on with the next block.
    pending: Option<Run>,
    take: Take<'w>,
}

impl Indirect<'_, '_> {
    fn all(&mut self, map: &[u8; 60]) -> Result<(), Error> {
        let (entries, _) = map.as_chunks::<4>();
        for (entry, index) in entries.iter().zip(0_u32..) {
            if !self.tree(u32::from_le_bytes(*entry), index.saturating_sub(11))? {
                break;
            }
        }
        match self.pending.take() {
            Some(run) => (self.take)(run).map(|_| ()),
            None => Ok(()),
        }
    }

    /// Takes a run, together with the one before if it follows it on the disk.
    fn run(&mut self, run: Run) -> Result<bool, Error> {
        match (&mut self.pending, run.place) {
            (Some(Run { count, place: Some(before), .. }), Some(place)) if *before + *count == place => {
                *count += run.count;
                Ok(true)
            }
            (pending, _) => match pending.replace(run) {
                Some(before) => (self.take)(before),
                None => Ok(true),
            },
        }
    }

    /// A block, or a tree of so many levels. Says whether to go on.
    fn tree(&mut self, block: u32, levels: u32) -> Result<bool, Error> {
        if self.next >= self.end {
            return Ok(false);
        }
        let width = self.file_system.block_size / 4;
        if block == 0 || levels == 0 {
            let count = width.pow(levels);
            let run = Run { first: self.next, count, place: (block != 0).then_some(block.into()) };
            self.next += count;
            return self.run(run);
        }
        let data = self.file_system.block(block.into())?;
        let (entries, _) = data.as_chunks::<4>();
        for entry in entries {
            if !self.tree(u32::from_le_bytes(*entry), levels - 1)? {
                return Ok(false);
            }
        }
        Ok(true)
    }
}
