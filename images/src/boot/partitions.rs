//! Partition tables: GPT (UEFI 2.10, section 5) and MBR with its chain of logical partitions.
//!
//! They are read here rather than by a package because a table is a page of code, and because this must neither
//! believe a table's sizes nor stop at a primary header that is broken while there is a backup.

use super::disk::{ReadError, Region, SECTOR, field, le16, le32, le64};
use crate::checksum::crc32;

/// How many partitions are looked at.
const MAX_PARTITIONS: usize = 128;

/// The largest GPT entry array that is read, in bytes: 128 entries of the usual 128 bytes are 16 KiB.
const MAX_ENTRIES: u64 = 1 << 20;

/// How many links of the chain of logical partitions are followed.
const MAX_LOGICAL: u32 = 60;

/// What a partition says it is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The root file system of x86-64 Linux (the Discoverable Partitions Specification).
    Root,
    /// `/boot` (`XBOOTLDR` in the Boot Loader Specification).
    Boot,
    /// Firmware's own: an EFI system partition, BIOS boot, or swap. Nothing for Linux to boot from.
    Other,
    /// It does not say, as most do not.
    Unknown,
}

/// A partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Partition {
    /// As Linux counts: `/dev/vda1` is 1.
    pub number: u32,
    /// Where it begins, in bytes.
    pub start: u64,
    /// Its size in bytes.
    pub length: u64,
    /// What it is for.
    pub role: Role,
    /// The partition's own identifier, as in `PARTUUID=`. GPT only.
    pub uuid: Option<String>,
}

/// Why there are no partitions.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The table is broken.
    #[error("the partition table is broken: {0}")]
    Broken(String),
    /// It cannot be read.
    #[error("the partition table cannot be read: {0}")]
    Read(#[from] ReadError),
}

fn broken(why: impl Into<String>) -> Error {
    Error::Broken(why.into())
}

/// The partitions of a disk in the order of their numbers, or `None` if it has no table.
///
/// # Errors
/// There is a table, and it makes no sense; or the disk cannot be read.
pub fn read(disk: Region<'_>) -> Result<Option<Vec<Partition>>, Error> {
    if disk.length() < 2 * SECTOR {
        return Ok(None);
    }
    let sector: [u8; SECTOR as usize] = disk.bytes(0)?;
    let has_mbr = le16(&sector, 510) == 0xaa55;
    let is_protective = has_mbr && (0..4).any(|index| sector.get(446 + 16 * index + 4) == Some(&0xee));
    // The header counts even if a careless tool has overwritten the protective MBR, as Linux with `gpt` has it too.
    let has_header = &disk.bytes::<8>(SECTOR)? == GPT_SIGNATURE;
    if is_protective || has_header {
        return gpt(disk).map(Some);
    }
    // A FAT file system begins with a boot sector that looks like one too.
    let is_fat = [0x36, 0x52].iter().any(|offset| &field::<3>(&sector, *offset) == b"FAT");
    if !has_mbr || is_fat {
        return Ok(None);
    }
    mbr(disk, &sector).map(Some)
}

const GPT_SIGNATURE: &[u8; 8] = b"EFI PART";

fn gpt(disk: Region<'_>) -> Result<Vec<Partition>, Error> {
    let primary = gpt_table(disk, 1);
    // The backup is in the last sector. If it is no better, what is wrong with the primary is more helpful.
    primary.or_else(|error| gpt_table(disk, disk.length() / SECTOR - 1).map_err(|_| error))
}

/// The table whose header is in this sector.
fn gpt_table(disk: Region<'_>, sector: u64) -> Result<Vec<Partition>, Error> {
    let mut header: [u8; SECTOR as usize] = disk.bytes(sector * SECTOR)?;
    if &field::<8>(&header, 0) != GPT_SIGNATURE {
        return Err(broken(format!("sector {sector} has no GPT header")));
    }
    let size = le32(&header, 12) as usize;
    let sum = le32(&header, 16);
    if let Some(field) = header.get_mut(16..20) {
        field.fill(0);
    }
    let checked = header.get(..size).filter(|_| size >= 92);
    if checked.map(crc32) != Some(sum) {
        return Err(broken(format!("the GPT header in sector {sector} does not match its checksum")));
    }
    if le64(&header, 24) != sector {
        return Err(broken(format!("the GPT header in sector {sector} belongs elsewhere")));
    }
    let (first, last) = (le64(&header, 40), le64(&header, 48));
    let (array, count, entry) = (le64(&header, 72), le32(&header, 80), le32(&header, 84));
    let length = u64::from(count) * u64::from(entry);
    if entry < 128 || !entry.is_power_of_two() || length > MAX_ENTRIES {
        return Err(broken(format!("it says it has {count} entries of {entry} bytes")));
    }
    let mut entries = vec![0; usize::try_from(length).unwrap_or(0)];
    disk.read(array.saturating_mul(SECTOR), &mut entries)?;
    if crc32(&entries) != le32(&header, 88) {
        return Err(broken("the GPT entries do not match their checksum"));
    }
    let mut partitions = Vec::new();
    for (entry, number) in entries.chunks_exact(entry as usize).zip(1..) {
        let kind: [u8; 16] = field(entry, 0);
        if kind == [0; 16] {
            continue;
        }
        let (start, end) = (le64(entry, 32), le64(entry, 40));
        let is_inside = first <= start && start <= end && end <= last && end < disk.length() / SECTOR;
        if !is_inside {
            return Err(broken(format!(
                "partition {number} is from sector {start} to {end}, and the disk has {} sectors (was it cut off?)",
                disk.length() / SECTOR
            )));
        }
        let role = match &*guid(kind) {
            "4f68bce3-e8cd-4db1-96e7-fbcaf984b709" => Role::Root,
            "bc13c2ff-59e6-4262-a352-b275fd6f7172" => Role::Boot,
            // EFI system, BIOS boot, swap.
            "c12a7328-f81f-11d2-ba4b-00a0c93ec93b"
            | "21686148-6449-6e6f-744e-656564454649"
            | "0657fd6d-a4ab-43c4-84e5-0933c84b4f4f" => Role::Other,
            _ => Role::Unknown,
        };
        partitions.push(Partition {
            number,
            start: start * SECTOR,
            length: (end - start + 1) * SECTOR,
            role,
            uuid: Some(guid(field(entry, 16))),
        });
    }
    check_overlap(&partitions)?;
    partitions.truncate(MAX_PARTITIONS);
    Ok(partitions)
}

/// A GUID in text. Its first three fields are little-endian (UEFI 2.10, appendix A).
fn guid(bytes: [u8; 16]) -> String {
    uuid::Uuid::from_bytes_le(bytes).to_string()
}

fn mbr(disk: Region<'_>, sector: &[u8]) -> Result<Vec<Partition>, Error> {
    let mut partitions = Vec::new();
    let mut extended = None;
    for (number, index) in (1..).zip(0..4) {
        let entry: [u8; 16] = field(sector, 446 + 16 * index);
        if !matches!(entry[0], 0 | 0x80) {
            return Err(broken(format!("entry {number} of the MBR is no partition")));
        }
        let (start, count) = (u64::from(le32(&entry, 8)), u64::from(le32(&entry, 12)));
        if entry[4] == 0 || count == 0 {
            continue;
        }
        if matches!(entry[4], 0x05 | 0x0f | 0x85) {
            extended.get_or_insert((start, count));
        } else {
            partitions.push(mbr_partition(disk, number, entry[4], start, count)?);
        }
    }
    if let Some((start, count)) = extended {
        logical(disk, start, count, &mut partitions)?;
    }
    check_overlap(&partitions)?;
    Ok(partitions)
}

/// Follows the chain of logical partitions in an extended one, which begins at this sector.
fn logical(disk: Region<'_>, begin: u64, count: u64, partitions: &mut Vec<Partition>) -> Result<(), Error> {
    let mut at = begin;
    let mut visited = Vec::new();
    for number in 5..5 + MAX_LOGICAL {
        let sector: [u8; SECTOR as usize] = disk.bytes(at * SECTOR)?;
        if le16(&sector, 510) != 0xaa55 {
            return Err(broken(format!(
                "the chain of logical partitions ends in sector {at}, which has no table"
            )));
        }
        let entry: [u8; 16] = field(&sector, 446);
        let (start, length) = (u64::from(le32(&entry, 8)), u64::from(le32(&entry, 12)));
        if entry[4] != 0 && length != 0 {
            partitions.push(mbr_partition(disk, number, entry[4], at + start, length)?);
        }
        let next: [u8; 16] = field(&sector, 462);
        if next[4] == 0 || le32(&next, 12) == 0 {
            return Ok(());
        }
        let next = begin + u64::from(le32(&next, 8));
        // It need not ascend: fdisk and parted put a new partition at its end, wherever there is room. But there is no
        // end to a loop.
        visited.push(at);
        if visited.contains(&next) || next >= begin + count {
            return Err(broken(format!("the chain of logical partitions leads from sector {at} to {next}")));
        }
        at = next;
    }
    Err(broken(format!("there are more than {MAX_LOGICAL} logical partitions")))
}

fn mbr_partition(
    disk: Region<'_>,
    number: u32,
    kind: u8,
    start: u64,
    count: u64,
) -> Result<Partition, Error> {
    if start == 0 || start + count > disk.length() / SECTOR {
        return Err(broken(format!(
            "partition {number} has {count} sectors from {start} on, and the disk has {} (was it cut off?)",
            disk.length() / SECTOR
        )));
    }
    let role = match kind {
        // Swap, EFI system.
        0x82 | 0xef => Role::Other,
        _ => Role::Unknown,
    };
    Ok(Partition { number, start: start * SECTOR, length: count * SECTOR, role, uuid: None })
}

/// Two partitions in the same place are a table that somebody has broken.
fn check_overlap(partitions: &[Partition]) -> Result<(), Error> {
    let mut ordered: Vec<_> = partitions.iter().collect();
    ordered.sort_by_key(|partition| partition.start);
    match ordered.windows(2).find_map(|pair| match pair {
        [a, b] if a.start + a.length > b.start => Some((a.number, b.number)),
        _ => None,
    }) {
        Some((a, b)) => Err(broken(format!("partitions {a} and {b} overlap"))),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use proptest::prelude::*;

    use super::*;

    fn partitions(disk: &[u8]) -> Result<Option<Vec<Partition>>, String> {
        let budget = Cell::new(super::super::disk::BUDGET);
        read(Region::whole(&disk, &budget).unwrap()).map_err(|error| error.to_string())
    }

    fn entry(disk: &mut [u8], sector: usize, index: usize, kind: u8, start: u32, count: u32) {
        let table = &mut disk[sector * 512..][..512];
        table[510..].copy_from_slice(&[0x55, 0xaa]);
        let entry = &mut table[446 + 16 * index..][..16];
        entry[4] = kind;
        entry[8..12].copy_from_slice(&start.to_le_bytes());
        entry[12..].copy_from_slice(&count.to_le_bytes());
    }

    #[test]
    fn an_mbr_with_logical_partitions() {
        let mut disk = vec![0; 512 * 1024];
        entry(&mut disk, 0, 0, 0x83, 64, 100);
        entry(&mut disk, 0, 2, 0x05, 200, 400);
        entry(&mut disk, 200, 0, 0x83, 8, 92);
        entry(&mut disk, 200, 1, 0x05, 100, 100);
        entry(&mut disk, 300, 0, 0x82, 8, 92);
        let found = partitions(&disk).unwrap().unwrap();
        let places: Vec<_> = found.iter().map(|p| (p.number, p.start / 512, p.length / 512)).collect();
        assert_eq!(places, [(1, 64, 100), (5, 208, 92), (6, 308, 92)]);
        assert_eq!(found[2].role, Role::Other);
        for (sector, start) in [(300, 0), (300, 100), (200, 900)] {
            let mut disk = disk.clone();
            entry(&mut disk, sector, 1, 0x05, start, 100);
            let error = partitions(&disk).unwrap_err();
            assert!(error.contains("chain of logical partitions leads"), "{error}");
        }
    }

    #[test]
    fn a_chain_that_leads_back() {
        let mut disk = vec![0; 512 * 1024];
        entry(&mut disk, 0, 0, 0x05, 200, 400);
        for (sector, next) in [(200, 300), (500, 100), (300, 0)] {
            entry(&mut disk, sector, 0, 0x83, 8, 92);
            if next != 0 {
                entry(&mut disk, sector, 1, 0x05, next, 100);
            }
        }
        let found = partitions(&disk).unwrap().unwrap();
        let places: Vec<_> = found.iter().map(|p| (p.number, p.start / 512)).collect();
        assert_eq!(places, [(5, 208), (6, 508), (7, 308)]);
        // To the one before, and to itself.
        for next in [300, 100] {
            entry(&mut disk, 300, 1, 0x05, next, 100);
            let error = partitions(&disk).unwrap_err();
            assert!(error.contains("chain of logical partitions leads"), "{error}");
        }
    }

    #[test]
    fn a_chain_that_is_too_long_ends() {
        let mut disk = vec![0; 512 * 1024];
        entry(&mut disk, 0, 0, 0x05, 1, 900);
        for link in 0..800 {
            entry(&mut disk, 1 + link, 1, 0x05, link as u32 + 1, 1);
        }
        assert!(partitions(&disk).unwrap_err().contains("more than 60"));
    }

    #[test]
    fn an_mbr_that_makes_no_sense() {
        let mut disk = vec![0; 512 * 1024];
        assert_eq!(partitions(&disk), Ok(None));
        assert_eq!(partitions(&disk[..100]), Ok(None));
        entry(&mut disk, 0, 0, 0x83, 64, 5000);
        assert!(partitions(&disk).unwrap_err().contains("was it cut off"));
        entry(&mut disk, 0, 0, 0x83, 64, 100);
        entry(&mut disk, 0, 1, 0x83, 163, 100);
        assert!(partitions(&disk).unwrap_err().contains("partitions 1 and 2 overlap"));
        disk[446] = 7;
        assert!(partitions(&disk).unwrap_err().contains("entry 1 of the MBR"));
    }

    proptest! {
        #[test]
        fn any_bytes(mut disk in proptest::collection::vec(any::<u8>(), 0..4096), gpt: bool, mbr: bool) {
            if gpt && disk.len() > 520 {
                disk[512..520].copy_from_slice(GPT_SIGNATURE);
            }
            if mbr && disk.len() > 512 {
                disk[510..512].copy_from_slice(&[0x55, 0xaa]);
            }
            if let Err(error) = partitions(&disk) {
                prop_assert!(!error.is_empty() && !error.contains('\n'));
            }
        }
    }
}
