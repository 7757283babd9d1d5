//! Logs (the kernel's Documentation/filesystems/ext4/journal.rst), and their checksums.

use crate::ext4::FileSystem;
use crate::image::Image;
use crate::sums::crc32c;

/// What every block of the log but copies begins with.
pub const MAGIC: u32 = 0xc03b_3998;

/// An incompatible feature: the numbers of blocks have 64 bits.
pub const IS_64BIT: u32 = 0x2;
/// An incompatible feature: checksums, of which tags have half.
pub const CHECKSUM_2: u32 = 0x8;
/// An incompatible feature: checksums, and tags of another shape.
pub const CHECKSUM_3: u32 = 0x10;

/// A tag's flags: its copy began with the magic; it has no UUID behind; it is the last one.
pub const ESCAPED: u32 = 1;
/// See [`ESCAPED`].
pub const SAME_UUID: u32 = 2;
/// See [`ESCAPED`].
pub const LAST: u32 = 8;

/// How many blocks of a log are looked at.
const MOST: usize = 2048;

/// A big-endian field; zero outside.
pub fn be32(data: &[u8], at: usize) -> u32 {
    data.get(at..).and_then(|rest| rest.first_chunk()).copied().map_or(0, u32::from_be_bytes)
}

/// The shape of tags.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    features: u32,
}

impl Shape {
    /// In a log with these incompatible features.
    pub fn new(features: u32) -> Self {
        Self { features }
    }

    /// Their size without a UUID, in bytes.
    pub fn size(self) -> usize {
        if self.features & CHECKSUM_3 != 0 {
            return 16;
        }
        let sum = if self.features & CHECKSUM_2 != 0 { 2 } else { 0 };
        sum + if self.features & IS_64BIT != 0 { 12 } else { 8 }
    }

    /// A tag with these flags and without its checksum.
    pub fn tag(self, block: u64, flags: u32) -> Vec<u8> {
        let (low, high) = ((block as u32).to_be_bytes(), ((block >> 32) as u32).to_be_bytes());
        let mut tag = [low, flags.to_be_bytes(), high, [0; 4]].concat();
        tag.truncate(self.size());
        if flags & SAME_UUID == 0 {
            tag.extend([0x55; 16]);
        }
        tag
    }

    fn has_sums(self) -> bool {
        self.features & (CHECKSUM_2 | CHECKSUM_3) != 0
    }

    /// Where tags end in a block of this size.
    pub fn end(self, block_size: usize) -> usize {
        block_size - if self.has_sums() { 4 } else { 0 }
    }
}

/// Makes the checksums of a log right.
pub fn seal(image: &mut Image, file_system: &FileSystem) {
    let size = file_system.block_size;
    let block = |image: &Image, index: usize| {
        let at = *file_system.log().get(index)?;
        image.bytes().get(at..at.checked_add(size)?).map(|data| (at, data.to_vec()))
    };
    let Some((_, superblock)) = block(image, 0) else { return };
    let shape = Shape::new(be32(&superblock, 40));
    if !shape.has_sums() {
        return;
    }
    let seed = crc32c(!0, &superblock[48..64]);
    let (length, first) = (be32(&superblock, 16) as usize, be32(&superblock, 20) as usize);
    for (index, at) in file_system.log().iter().enumerate().take(MOST).skip(1) {
        if be32(image.bytes(), *at) != MAGIC {
            continue;
        }
        let Some((at, mut data)) = block(image, index) else { continue };
        let place = match be32(&data, 4) {
            1 => {
                let mut offset = 12;
                let mut next = index;
                while offset + shape.size() <= shape.end(size) {
                    next = if next + 1 >= length { first } else { next + 1 };
                    let copy = block(image, next).map(|(_, copy)| copy).unwrap_or_default();
                    let sum = crc32c(crc32c(seed, &data[8..12]), &copy);
                    let flags = if shape.size() == 16 {
                        data[offset + 12..offset + 16].copy_from_slice(&sum.to_be_bytes());
                        be32(&data, offset + 4)
                    } else {
                        data[offset + 4..offset + 6].copy_from_slice(&(sum as u16).to_be_bytes());
                        be32(&data, offset + 4) & 0xffff
                    };
                    offset += shape.size() + if flags & SAME_UUID == 0 { 16 } else { 0 };
                    if flags & LAST != 0 {
                        break;
                    }
                }
                size - 4
            }
            2 => 16,
            5 => size - 4,
            _ => continue,
        };
        data[place..place + 4].fill(0);
        let sum = crc32c(seed, &data);
        data[place..place + 4].copy_from_slice(&sum.to_be_bytes());
        image.write(at, &data);
    }
}
