//! What an unclean end leaves in the journal (the kernel's Documentation/filesystems/ext4/journal.rst).
//!
//! Linux would write it to its places at the next mount. Here it is only noted which blocks have a newer copy.

use std::collections::BTreeMap;

use super::inode::Inode;
use super::{Error, FileSystem, corrupt};
use crate::boot::disk::{be32, field};
use crate::checksum::crc32c;

/// How many blocks the journal may have, and how many copies it may hold: 1 GiB of blocks of 4 KiB, the most that
/// `mke2fs` makes.
pub const MAX_JOURNAL_BLOCKS: u32 = 1 << 18;

/// What a block of the log costs of the disk's budget: this part of its size, and at least so many bytes. A whole log of
/// [`MAX_JOURNAL_BLOCKS`] blocks of 4 KiB costs 32 MiB then, which an instance that wrote with `fsync` until it was cut
/// off may well leave.
const LOG_SHARE: u64 = 32;
const MIN_LOG_COST: u64 = 128;

/// What a copy that is noted costs of it, in bytes, which is what it takes of memory: a log says of many in one block,
/// and a disk may have many logs.
const COPY_COST: u64 = 64;

/// How many pieces a journal may be in.
const MAX_RUNS: usize = 4096;

const MAGIC: u32 = 0xc03b_3998;

/// Incompatible features of the journal.
const IS_64BIT: u32 = 0x2;
const CHECKSUM_2: u32 = 0x8;
const CHECKSUM_3: u32 = 0x10;
/// And what does not matter here: revocations, asynchronous commits.
const HARMLESS: u32 = 0x1 | 0x4;

/// Which blocks have a newer copy in the journal.
#[derive(Debug, Default)]
pub struct Copies {
    copies: BTreeMap<u64, Copy>,
    sums: Sums,
}

#[derive(Clone, Copy, Debug)]
struct Copy {
    /// Its block in the file system.
    place: u64,
    transaction: u32,
    sum: u32,
    /// It began like a block of the journal itself, and was changed for that.
    is_escaped: bool,
}

/// Which checksums there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Sums {
    #[default]
    None,
    /// Blocks have the lower 16 bits only.
    Version2(u32),
    Version3(u32),
}

impl Copies {
    pub fn load(file_system: &FileSystem<'_>, inode: u32) -> Result<Self, Error> {
        let inode = file_system.inode(inode)?;
        let log = Log::open(file_system, &inode)?;
        let copies = log.replay()?;
        Ok(Self { copies, sums: log.sums })
    }

    /// Replaces what has a newer copy in blocks that were read.
    pub fn put_over(&self, file_system: &FileSystem<'_>, first: u64, data: &mut [u8]) -> Result<(), Error> {
        let size = file_system.block_size;
        let end = first.saturating_add((data.len() as u64).div_ceil(size));
        for (block, copy) in self.copies.range(first..end) {
            let mut newer = vec![0; usize::try_from(size).unwrap_or(0)];
            file_system.region.charge(size)?;
            file_system.region.read_contents(copy.place.saturating_mul(size), &mut newer)?;
            let sum = |seed| crc32c(crc32c(seed, &copy.transaction.to_be_bytes()), &newer);
            let is_right = match self.sums {
                Sums::None => true,
                Sums::Version2(seed) => sum(seed) & 0xffff == copy.sum,
                Sums::Version3(seed) => sum(seed) == copy.sum,
            };
            if !is_right {
                return Err(corrupt(format!(
                    "the journal's copy of block {block} does not match its checksum"
                )));
            }
            if copy.is_escaped
                && let Some(magic) = newer.first_chunk_mut()
            {
                *magic = MAGIC.to_be_bytes();
            }
            let offset = usize::try_from((block - first) * size).unwrap_or(usize::MAX);
            if let Some(old) = data.get_mut(offset..) {
                let length = old.len().min(newer.len());
                if let (Some(old), Some(newer)) = (old.get_mut(..length), newer.get(..length)) {
                    old.copy_from_slice(newer);
                }
            }
        }
        Ok(())
    }
}

struct Log<'l, 'd> {
    file_system: &'l FileSystem<'d>,
    /// Its pieces: block in the journal, how many, block in the file system.
    runs: Vec<(u64, u64, u64)>,
    /// Where it wraps around.
    first: u32,
    length: u32,
    /// Where the replay begins; zero if there is nothing to do.
    start: u32,
    sequence: u32,
    features: u32,
    sums: Sums,
}

impl<'l, 'd> Log<'l, 'd> {
    fn open(file_system: &'l FileSystem<'d>, inode: &Inode) -> Result<Self, Error> {
        let mut runs = Vec::new();
        file_system.runs(inode, &mut |run| {
            if let Some(place) = run.place {
                runs.push((run.first, run.count, place));
            }
            if runs.len() > MAX_RUNS {
                return Err(corrupt("the journal is in too many pieces"));
            }
            Ok(true)
        })?;
        let mut log = Self {
            file_system,
            runs,
            first: 0,
            length: 1,
            start: 0,
            sequence: 0,
            features: 0,
            sums: Sums::None,
        };
        let superblock = log.block(0)?;
        let word = |offset| be32(&superblock, offset);
        if word(0) != MAGIC || !matches!(word(4), 3 | 4) || u64::from(word(12)) != file_system.block_size {
            return Err(corrupt("the journal has no superblock"));
        }
        (log.length, log.first, log.sequence, log.start) = (word(16), word(20), word(24), word(28));
        // The first version has no features.
        log.features = if word(4) == 4 { word(40) } else { 0 };
        if log.features & !(IS_64BIT | CHECKSUM_2 | CHECKSUM_3 | HARMLESS) != 0 {
            return Err(Error::Unsupported(format!("a journal with unknown features ({:#x})", log.features)));
        }
        if log.length > MAX_JOURNAL_BLOCKS
            || log.first == 0
            || log.first >= log.length
            || log.start >= log.length
        {
            return Err(corrupt("the journal's superblock leads outside the journal"));
        }
        let seed = crc32c(!0, &field::<16>(&superblock, 48));
        log.sums = match (log.features & CHECKSUM_2 != 0, log.features & CHECKSUM_3 != 0) {
            (_, true) => Sums::Version3(seed),
            (true, false) => Sums::Version2(seed),
            _ => Sums::None,
        };
        Ok(log)
    }

    fn place(&self, block: u32) -> Result<u64, Error> {
        let block = u64::from(block);
        // They are in order, and there may be a tag for each block of the journal.
        let behind = self.runs.partition_point(|(first, ..)| *first <= block);
        let run = behind.checked_sub(1).and_then(|index| self.runs.get(index));
        let run = run.filter(|(first, count, _)| block - first < *count);
        let place = run.and_then(|(first, _, place)| place.checked_add(block - first));
        place.ok_or_else(|| corrupt(format!("the journal has no block {block}")))
    }

    fn block(&self, block: u32) -> Result<Vec<u8>, Error> {
        let size = self.file_system.block_size;
        let mut data = vec![0; usize::try_from(size).unwrap_or(0)];
        self.file_system.region.charge((size / LOG_SHARE).max(MIN_LOG_COST))?;
        self.file_system.read_blocks(self.place(block)?, &mut data)?;
        Ok(data)
    }

    /// The block behind, so many further on.
    fn after(&self, block: u32, count: u32) -> u32 {
        let behind = block.saturating_add(count);
        if behind >= self.length { behind - self.length + self.first } else { behind }
    }

    /// Notes what all complete transactions say, the later over the earlier.
    fn replay(&self) -> Result<BTreeMap<u64, Copy>, Error> {
        let mut copies = BTreeMap::new();
        // Which blocks are not to be taken from transactions up to this one.
        let mut revoked: BTreeMap<u64, u32> = BTreeMap::new();
        let mut pending_copies: Vec<(u64, Copy)> = Vec::new();
        let mut pending_revoked: Vec<u64> = Vec::new();
        let (mut at, mut sequence) = (self.start, self.sequence);
        let mut seen = 0;
        while self.start != 0 && seen < self.length {
            let block = self.block(at)?;
            if be32(&block, 0) != MAGIC || be32(&block, 8) != sequence {
                break;
            }
            let mut used = 1;
            match be32(&block, 4) {
                // What is not complete was never acknowledged. The log ends there.
                1 if self.matches(&block, block.len().saturating_sub(4)) => {
                    used += self.tags(&block, at, sequence, &mut pending_copies)?;
                }
                2 if self.matches(&block, 16) => {
                    copies.extend(pending_copies.drain(..));
                    revoked.extend(pending_revoked.drain(..).map(|block| (block, sequence)));
                    sequence = sequence.wrapping_add(1);
                }
                5 if self.matches(&block, block.len().saturating_sub(4)) => {
                    self.revocations(&block, &mut pending_revoked);
                }
                _ => break,
            }
            let noted = copies.len().max(pending_copies.len()).max(revoked.len()).max(pending_revoked.len());
            if noted > MAX_JOURNAL_BLOCKS as usize {
                return Err(corrupt("the journal says more than it can hold"));
            }
            seen = seen.saturating_add(used);
            at = self.after(at, used);
            // A descriptor that leads round the whole log.
            if at >= self.length {
                break;
            }
        }
        copies.retain(|block, copy: &mut Copy| {
            revoked.get(block).is_none_or(|by| (by.wrapping_sub(copy.transaction) as i32) < 0)
        });
        Ok(copies)
    }

    /// Whether a block of the log matches its checksum, which is at this place in it.
    fn matches(&self, block: &[u8], offset: usize) -> bool {
        let (Sums::Version2(seed) | Sums::Version3(seed)) = self.sums else { return true };
        let sum = crc32c(seed, block.get(..offset).unwrap_or_default());
        let sum = crc32c(crc32c(sum, &[0; 4]), block.get(offset + 4..).unwrap_or_default());
        sum == be32(block, offset)
    }

    /// Notes the blocks that follow a descriptor, and says how many they are.
    fn tags(
        &self,
        block: &[u8],
        at: u32,
        transaction: u32,
        copies: &mut Vec<(u64, Copy)>,
    ) -> Result<u32, Error> {
        let is_64bit = self.features & IS_64BIT != 0;
        let (has_tail, size) = match self.sums {
            Sums::Version3(_) => (true, 16),
            Sums::Version2(_) => (true, if is_64bit { 14 } else { 10 }),
            Sums::None => (false, if is_64bit { 12 } else { 8 }),
        };
        let end = block.len().saturating_sub(if has_tail { 4 } else { 0 });
        let mut offset = 12;
        let mut count: u32 = 0;
        while offset + size <= end {
            let tag = block.get(offset..).unwrap_or_default();
            let (flags, sum) = match self.sums {
                Sums::Version3(_) => (be32(tag, 4), be32(tag, 12)),
                _ => (be32(tag, 4) & 0xffff, be32(tag, 4) >> 16),
            };
            let high = if is_64bit { u64::from(be32(tag, 8)) << 32 } else { 0 };
            count = count.saturating_add(1);
            self.file_system.region.charge(COPY_COST)?;
            let place = self.place(self.after(at, count))?;
            copies.push((
                high | u64::from(be32(tag, 0)),
                Copy { place, transaction, sum, is_escaped: flags & 1 != 0 },
            ));
            // Without "same UUID" there is one behind; with "last" nothing is.
            offset += size + if flags & 2 == 0 { 16 } else { 0 };
            if flags & 8 != 0 {
                break;
            }
        }
        Ok(count)
    }

    fn revocations(&self, block: &[u8], revoked: &mut Vec<u64>) {
        let size = if self.features & IS_64BIT != 0 { 8 } else { 4 };
        let end = (be32(block, 12) as usize).min(block.len());
        for entry in block.get(16..end).unwrap_or_default().chunks_exact(size) {
            let high = if size == 8 { u64::from(be32(entry, 0)) << 32 } else { 0 };
            revoked.push(high | u64::from(be32(entry, size - 4)));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::io;

    use super::*;
    use crate::boot::disk::{BUDGET, Disk, Region};

    const SIZE: u64 = 4096;
    const LENGTH: u32 = MAX_JOURNAL_BLOCKS;
    const TAGS: u32 = (SIZE as u32 - 12) / 8;

    /// A disk that is a log from its second block on, all of transactions with one block each (a descriptor, the block,
    /// and the commit), or of descriptors with as many tags as there is room for.
    enum Transactions {
        Small,
        Wide,
    }

    impl Disk for Transactions {
        fn size(&self) -> io::Result<u64> {
            Ok((u64::from(LENGTH) + 1) * SIZE)
        }

        fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
            // The first block of the log is its superblock.
            let block = (offset / SIZE - 2) as u32;
            let mut words = vec![MAGIC, 1, 1 + block / 3];
            match block % 3 {
                _ if matches!(self, Self::Wide) => {
                    words[2] = 1;
                    words.extend((0..TAGS).flat_map(|tag| [block + tag, 2]));
                }
                // Its tag: which block, and that it is the last, with the same UUID.
                0 => words.extend([block / 3, 2 | 8]),
                1 => words.clear(),
                _ => words[1] = 2,
            }
            for (to, word) in buffer.chunks_exact_mut(4).zip(words) {
                to.copy_from_slice(&word.to_be_bytes());
            }
            Ok(())
        }
    }

    fn file_system<'a>(disk: &'a dyn Disk, budget: &'a Cell<u64>) -> FileSystem<'a> {
        FileSystem {
            region: Region::whole(disk, budget).unwrap(),
            block_size: SIZE,
            blocks: u64::from(LENGTH) + 1,
            inodes: 0,
            inodes_per_group: 1,
            inode_size: 256,
            descriptors: SIZE,
            descriptor_size: 32,
            is_64bit: false,
            seed: None,
            journal: Copies::default(),
        }
    }

    fn log<'l, 'd>(file_system: &'l FileSystem<'d>, runs: Vec<(u64, u64, u64)>) -> Log<'l, 'd> {
        let (features, sums) = (0, Sums::None);
        Log { file_system, runs, first: 1, length: LENGTH, start: 1, sequence: 1, features, sums }
    }

    #[test]
    fn a_full_log_of_small_transactions_is_within_the_budget() {
        let budget = Cell::new(BUDGET);
        let file_system = file_system(&Transactions::Small, &budget);
        let copies = log(&file_system, vec![(0, LENGTH.into(), 1)]).replay().unwrap();
        assert_eq!(copies.len() as u32, (LENGTH - 1) / 3);
        let last = copies.last_key_value().unwrap();
        assert_eq!((*last.0, last.1.place), (copies.len() as u64 - 1, u64::from(LENGTH) - 1));
        let cost = BUDGET - budget.get();
        assert!((16 << 20..32 << 20).contains(&cost), "{cost}");
    }

    #[test]
    fn what_is_noted_costs_what_it_takes() {
        let budget = Cell::new(BUDGET);
        let file_system = file_system(&Transactions::Wide, &budget);
        let log = log(&file_system, vec![(0, LENGTH.into(), 1)]);
        log.replay().unwrap();
        let cost = BUDGET - budget.get();
        let noted = u64::from((LENGTH - 1) / (TAGS + 1) * TAGS);
        assert!((noted * COPY_COST..noted * COPY_COST * 11 / 10).contains(&cost), "{cost}");
        // A disk with many such logs is given up.
        let times = (0..).take_while(|_| log.replay().is_ok()).count();
        assert_eq!(times, 1);
    }

    #[test]
    fn blocks_are_found_in_pieces() {
        let budget = Cell::new(BUDGET);
        let file_system = file_system(&Transactions::Small, &budget);
        let log = log(&file_system, vec![(0, 2, 50), (2, 1, 9), (5, 3, 20)]);
        let places: Vec<_> = (0..9).map(|block| log.place(block).ok()).collect();
        let expected = [Some(50), Some(51), Some(9), None, None, Some(20), Some(21), Some(22), None];
        assert_eq!(places, expected);
    }
}
