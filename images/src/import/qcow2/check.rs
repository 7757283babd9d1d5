//! Looks at the header and all tables of a qcow2 file that a reader of its disk would go by.
//!
//! All that they refer to has to be in the file, and to be referred to once: what is missing would be read as zeroes, and
//! a small file could be a disk that never ends. Follows QEMU's `docs/interop/qcow2.txt`. Snapshots, bitmaps and
//! reference counts do not matter to a reader, and are not looked at.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::super::MAX_SIZE;
use super::super::error::{Error, Result, failed};

/// The length of the shortest header of version 3, in bytes.
const HEADER_3: u64 = 104;

/// log2 of the smallest cluster, by the specification, and of the largest, by QEMU.
const CLUSTER_BITS: std::ops::RangeInclusive<u32> = 9..=21;

/// The most entries of an L1 table: enough for 512 TiB with the usual clusters of 64 KiB.
const MAX_L1_ENTRIES: u64 = 1 << 20;

/// The header extension that names features, and the length of each of its entries.
const FEATURE_NAMES: u32 = 0x6803_f857;
const FEATURE_NAME: u64 = 48;

/// The most that deflate can make of one byte: 258 bytes of each two bits.
const MAX_EXPANSION: u64 = 1032;

/// Where an entry of a table leads, and the bits that have to be zero in those of an L1 table and of an L2 table.
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
const COMPRESSED_OFFSET: u64 = 0x00ff_ffff_ffff_ffff;
const L1_RESERVED: u64 = 0x7f00_0000_0000_01ff;
const L2_RESERVED: u64 = 0x3f00_0000_0000_01fe;

const COPIED: u64 = 1 << 63;
const COMPRESSED: u64 = 1 << 62;
const ZERO: u64 = 1;

const FLATTEN: &str = "flatten it with `qemu-img convert -O qcow2 OLD NEW`, and import that";
const CONVERT: &str = "convert it with `qemu-img convert -O qcow2 OLD NEW`, and import that";
const REPAIR: &str = "repair it with `qemu-img check -r all`, if it cannot be had anew";

/// Whether a file of `length` bytes is a qcow2 file whose disk can be read; returns the disk's size in bytes.
pub(super) fn check(file: &File, length: u64, path: &Path) -> Result<u64> {
    let image = Image { file, length, path };
    let header = image.header()?;
    image.tables(&header)?;
    Ok(header.size)
}

struct Image<'a> {
    file: &'a File,
    /// In bytes.
    length: u64,
    path: &'a Path,
}

/// What the tables are found by.
struct Header {
    /// The disk's size, in bytes.
    size: u64,
    cluster_bits: u32,
    l1_offset: u64,
    /// How many of its entries the disk needs.
    l1_entries: u64,
    /// The bits that have to be zero in the entries of L2 tables.
    l2_reserved: u64,
}

impl Header {
    fn cluster(&self) -> u64 {
        1 << self.cluster_bits
    }

    /// How many clusters an L2 table is for.
    fn l2_entries(&self) -> u64 {
        self.cluster() / 8
    }
}

/// What the tables refer to, all in all.
#[derive(Default)]
struct Total {
    /// Bytes of L2 tables and of clusters.
    plain: u64,
    /// Bytes of the disk that compressed clusters make.
    compressed: u64,
}

impl Image<'_> {
    fn damaged<T>(&self, reason: impl Into<String>) -> Result<T> {
        Err(Error::Damaged { path: self.path.into(), reason: reason.into() })
    }

    fn unsupported<T>(&self, what: &'static str, way_out: &'static str) -> Result<T> {
        Err(Error::Unsupported { path: self.path.into(), what, way_out })
    }

    fn read(&self, buffer: &mut [u8], offset: u64) -> Result<()> {
        match self.file.read_exact_at(buffer, offset) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                self.damaged(format!("it ends before byte {}", offset.saturating_add(buffer.len() as u64)))
            }
            result => result.map_err(failed("read", self.path)),
        }
    }

    fn word(&self, offset: u64) -> Result<u32> {
        let mut bytes = [0; 4];
        self.read(&mut bytes, offset)?;
        Ok(u32::from_be_bytes(bytes))
    }

    fn long(&self, offset: u64) -> Result<u64> {
        let mut bytes = [0; 8];
        self.read(&mut bytes, offset)?;
        Ok(u64::from_be_bytes(bytes))
    }

    /// Whether `length` bytes at `offset` are in the file, at the beginning of a cluster.
    fn has(&self, what: &str, offset: u64, length: u64, cluster: u64) -> Result<()> {
        if !offset.is_multiple_of(cluster) {
            return self
                .damaged(format!("{what} is not at the beginning of a cluster, but at byte {offset}"));
        }
        match offset.checked_add(length) {
            Some(end) if end <= self.length => Ok(()),
            _ => self
                .damaged(format!("{what} is to be at byte {offset}, and the file ends at {}", self.length)),
        }
    }

    fn header(&self) -> Result<Header> {
        let version = self.word(4)?;
        let cluster_bits = self.word(20)?;
        if !CLUSTER_BITS.contains(&cluster_bits) {
            return self
                .damaged(format!("its clusters have 2^{cluster_bits} bytes, and may have 2^9 to 2^21"));
        }
        match version {
            2 => {}
            3 => self.version_3(1 << cluster_bits)?,
            _ => return self.damaged(format!("it is of version {version}, and there are 2 and 3")),
        }
        if self.long(8)? != 0 {
            return self.unsupported("has a backing file, and other files are not read for it", FLATTEN);
        }
        if self.word(32)? != 0 {
            return self.unsupported("is encrypted", "decrypt it with `qemu-img convert`, and import that");
        }
        let mut header = Header {
            size: self.long(24)?,
            cluster_bits,
            l1_offset: self.long(40)?,
            l1_entries: u64::from(self.word(36)?),
            // Version 2 has no clusters that say that they are zeroes.
            l2_reserved: if version == 2 { L2_RESERVED | ZERO } else { L2_RESERVED },
        };
        if header.size == 0 {
            return Err(Error::Empty(self.path.into()));
        }
        if header.size > MAX_SIZE {
            return Err(Error::TooLarge { path: self.path.into(), size: header.size });
        }
        let needed = header.size.div_ceil(header.cluster()).div_ceil(header.l2_entries());
        if needed > MAX_L1_ENTRIES || header.l1_entries > MAX_L1_ENTRIES {
            return self.unsupported("has an L1 table of more than 1048576 entries", CONVERT);
        }
        if header.l1_entries < needed {
            let found = header.l1_entries;
            return self.damaged(format!("its L1 table has {found} entries, and its disk needs {needed}"));
        }
        self.has("its L1 table", header.l1_offset, header.l1_entries * 8, header.cluster())?;
        header.l1_entries = needed;
        Ok(header)
    }

    /// What version 3 has that version 2 has not.
    fn version_3(&self, cluster: u64) -> Result<()> {
        let features = self.long(72)?;
        for (bit, what, way_out) in [
            (0, "was not closed when it was last written to", REPAIR),
            (1, "is marked as damaged", REPAIR),
            (2, "has its data in another file, which is not read for it", FLATTEN),
            (3, "is compressed by zstd, and may be by deflate (QEMU calls that zlib)", CONVERT),
            (4, "has extended L2 entries", CONVERT),
        ] {
            if features & (1 << bit) != 0 {
                return self.unsupported(what, way_out);
            }
        }
        if features != 0 {
            return self.unsupported("has features that are not known", CONVERT);
        }
        let length = u64::from(self.word(100)?);
        if length < HEADER_3 || length > cluster || !length.is_multiple_of(8) {
            return self.damaged(format!("its header has {length} bytes"));
        }
        let mut offset = length;
        loop {
            let (kind, length) = (self.word(offset)?, u64::from(self.word(offset + 4)?));
            // The next one begins at a multiple of 8.
            let next = offset + 8 + length.next_multiple_of(8);
            if next > cluster {
                return self.damaged("the extensions of its header are longer than a cluster");
            }
            if kind == FEATURE_NAMES && !length.is_multiple_of(FEATURE_NAME) {
                return self.damaged("the names of features in its header are cut off");
            }
            if kind == 0 {
                return Ok(());
            }
            offset = next;
        }
    }

    fn tables(&self, header: &Header) -> Result<()> {
        let mut total = Total::default();
        let mut table = vec![0; usize::try_from(header.cluster()).unwrap_or_default()];
        let covered = header.cluster() * header.l2_entries();
        let mut l1 = vec![0; usize::try_from(header.l1_entries * 8).unwrap_or_default()];
        self.read(&mut l1, header.l1_offset)?;
        let l1 = l1.as_chunks::<8>().0;
        let mut tables: Vec<u64> = l1.iter().map(|entry| u64::from_be_bytes(*entry) & OFFSET).collect();
        tables.retain(|offset| *offset != 0);
        tables.sort_unstable();
        if tables.windows(2).any(|pair| pair.first() == pair.last()) {
            return self.damaged("two entries of its L1 table lead to the same L2 table");
        }
        for (index, entry) in (0_u64..).zip(l1) {
            let entry = u64::from_be_bytes(*entry);
            if entry & L1_RESERVED != 0 {
                return self.damaged(format!("entry {index} of its L1 table is {entry:#x}"));
            }
            let offset = entry & OFFSET;
            if offset == 0 {
                continue;
            }
            self.has("an L2 table", offset, header.cluster(), header.cluster())?;
            self.read(&mut table, offset)?;
            total.plain += header.cluster();
            self.l2_table(header, &table, index * covered, &mut total)?;
            self.has_once(header, &total)?;
        }
        Ok(())
    }

    /// Looks at a table. The first cluster that it is for is at `position` on the disk.
    fn l2_table(&self, header: &Header, table: &[u8], position: u64, total: &mut Total) -> Result<()> {
        let cluster = header.cluster();
        let mut position = position;
        for entry in table.as_chunks::<8>().0 {
            let rest = header.size.saturating_sub(position);
            if rest == 0 {
                break;
            }
            let entry = u64::from_be_bytes(*entry);
            if entry & COMPRESSED != 0 {
                self.compressed_cluster(header, entry)?;
                total.compressed += cluster;
            } else if entry & header.l2_reserved != 0 {
                return self.damaged(format!("the entry of an L2 table is {entry:#x}"));
            } else if entry & ZERO == 0 && entry & OFFSET != 0 {
                // The last cluster of a file may end where the disk does.
                self.has("data", entry & OFFSET, cluster.min(rest), cluster)?;
                total.plain += cluster;
            }
            position = position.saturating_add(cluster);
        }
        Ok(())
    }

    fn compressed_cluster(&self, header: &Header, entry: u64) -> Result<()> {
        if entry & COPIED != 0 {
            return self.damaged(format!("the entry of an L2 table is {entry:#x}"));
        }
        let offset_bits = 62 - (header.cluster_bits - 8);
        let descriptor = entry & (COMPRESSED - 1);
        let offset = descriptor & ((1 << offset_bits) - 1) & COMPRESSED_OFFSET;
        // Those after the one in which it begins.
        let sectors = descriptor >> offset_bits;
        let end = (offset / 512 + 1 + sectors) * 512;
        // Not every writer fills the last sector.
        if end <= self.length.next_multiple_of(512) {
            return Ok(());
        }
        self.damaged(format!("data is to be at byte {offset}, and the file ends at {}", self.length))
    }

    /// Whether all that was referred to so far can be in the file without being there twice.
    fn has_once(&self, header: &Header, total: &Total) -> Result<()> {
        if total.plain > self.length.saturating_add(header.cluster())
            || total.compressed / MAX_EXPANSION > self.length
        {
            return self.damaged("its tables refer to more than there is in the file");
        }
        Ok(())
    }
}
