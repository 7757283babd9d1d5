//! Partition tables: GPT, MBR, and chains of logical partitions.

#![no_main]

use std::cell::Cell;
use std::collections::BTreeSet;

use arbitrary::Arbitrary;
use innkeeper_images::boot::partitions::{self, Error, Partition};
use innkeeper_images::boot::{BUDGET, Region, SECTOR};
use innkeeper_images_fuzz::{Change, Ground, Image, List, Meter, Steps, check_message, memory, sums, table};
use libfuzzer_sys::fuzz_target;

/// As many partitions as documented: those of a GPT, and those of an MBR with a chain.
const MOST_GPT: usize = 128;
const MOST_MBR: usize = 64;

/// The size of a GPT's entries that is read, in bytes.
const MOST_ENTRIES: usize = 1 << 20;

/// What tables cost at most, in bytes: two of a megabyte, or a chain.
const MOST_READ: u64 = 3 << 20;

#[derive(Arbitrary, Clone, Copy, Debug)]
struct Entry {
    kind: u8,
    start: u16,
    count: u16,
}

#[derive(Arbitrary, Debug)]
enum Kind {
    Gpt {
        entries: List<Entry, 20>,
        count: u16,
        /// 128 bytes, or some powers of two more.
        exponent: u8,
        has_primary: bool,
    },
    Mbr {
        entries: [Entry; 4],
        /// Where the chain is: the first link, and how far each is from that.
        extended: u8,
        links: List<(u16, Entry), 70>,
    },
    None,
}

#[derive(Arbitrary, Debug)]
struct Input {
    sectors: u16,
    rest: u8,
    kind: Kind,
    is_bare: Option<bool>,
    changes: Steps<Change>,
}

const KINDS: [[u8; 4]; 4] =
    [[0xaf, 0x3d, 0xc6, 0x0f], [0xe3, 0xbc, 0x68, 0x4f], [0xff, 0xc2, 0x13, 0xbc], [0x28, 0x73, 0x2a, 0xc1]];

fn gpt(disk: &mut [u8], entries: &[Entry], count: u16, exponent: u8, has_primary: bool) {
    let sectors = disk.len() as u64 / SECTOR;
    let size = 128_usize << (exponent % 4);
    // Up to where entries are more than is read.
    let count = if count == 0 { 128 } else { usize::from(count) % (MOST_ENTRIES / size + 2) };
    let mut array = vec![0; size * count];
    for (bytes, (entry, number)) in array.chunks_exact_mut(size).zip(entries.iter().zip(1..)) {
        if entry.kind == 0 {
            continue;
        }
        // The whole of the first of these is one of the types that have a role.
        bytes[..4].copy_from_slice(&KINDS[usize::from(entry.kind % 4)]);
        bytes[4..16].fill(entry.kind);
        bytes[16] = number;
        let start = u64::from(entry.start);
        bytes[32..40].copy_from_slice(&start.to_le_bytes());
        bytes[40..48].copy_from_slice(&(start + u64::from(entry.count)).to_le_bytes());
    }
    let length = array.len().div_ceil(SECTOR as usize) as u64;
    let backup = sectors.saturating_sub(1 + length);
    for (header_at, array_at) in [(1, 2), (sectors - 1, backup)].into_iter().skip(usize::from(!has_primary)) {
        let mut header = b"EFI PART\0\0\x01\0\x5c\0\0\0".to_vec();
        header.resize(92, 0);
        for (field, value) in
            [(24, header_at), (32, sectors - header_at), (40, 2), (48, sectors - 1), (72, array_at)]
        {
            header[field..field + 8].copy_from_slice(&value.to_le_bytes());
        }
        for (field, value) in [(80, count as u32), (84, size as u32), (88, sums::crc32(&array))] {
            header[field..field + 4].copy_from_slice(&value.to_le_bytes());
        }
        let sum = sums::crc32(&header);
        header[16..20].copy_from_slice(&sum.to_le_bytes());
        for (sector, bytes) in [(array_at, &array), (header_at, &header)] {
            if let Some(rest) = disk.get_mut((sector * SECTOR) as usize..) {
                let length = bytes.len().min(rest.len());
                rest[..length].copy_from_slice(&bytes[..length]);
            }
        }
    }
}

fn put_mbr(disk: &mut [u8], sector: usize, index: usize, kind: u8, start: u32, count: u32) {
    let Some(table) = disk.get_mut(sector * 512..).and_then(|rest| rest.get_mut(..512)) else { return };
    table[510..].copy_from_slice(&[0x55, 0xaa]);
    let entry = &mut table[446 + 16 * index..][..16];
    entry[4] = kind;
    entry[8..12].copy_from_slice(&start.to_le_bytes());
    entry[12..].copy_from_slice(&count.to_le_bytes());
}

fn mbr(disk: &mut [u8], entries: &[Entry; 4], extended: u8, links: &[(u16, Entry)]) {
    for (index, entry) in entries.iter().enumerate() {
        put_mbr(disk, 0, index, entry.kind, entry.start.into(), entry.count.into());
    }
    let begin = u32::from(extended);
    if begin == 0 {
        return;
    }
    put_mbr(disk, 0, 3, 5, begin, 0xffff);
    let mut at = begin;
    for (index, (next, entry)) in links.iter().enumerate() {
        put_mbr(disk, at as usize, 0, entry.kind, entry.start.into(), entry.count.into());
        if index + 1 < links.len() {
            put_mbr(disk, at as usize, 1, 5, (*next).into(), 1);
            at = begin + u32::from(*next);
        }
    }
}

fn read(disk: &[u8]) -> Result<Option<Vec<Partition>>, Error> {
    let meter = Meter::new(disk);
    let budget = Cell::new(BUDGET);
    let result = memory::at_most(memory::MOST, || partitions::read(Region::whole(&meter, &budget).unwrap()));
    assert!(BUDGET - budget.get() <= MOST_READ, "{}", BUDGET - budget.get());
    meter.check(BUDGET - budget.get(), 0);
    result
}

fn check(disk: &[u8], partitions: &[Partition]) {
    let has_uuids = partitions.iter().any(|partition| partition.uuid.is_some());
    assert!(partitions.len() <= if has_uuids { MOST_GPT } else { MOST_MBR });
    let numbers: BTreeSet<_> = partitions.iter().map(|partition| partition.number).collect();
    assert_eq!(numbers.len(), partitions.len(), "a number occurs twice");
    let mut ends: Vec<_> = partitions
        .iter()
        .map(|Partition { number, start, length, uuid, .. }| {
            assert!(*number > 0 && *length > 0 && start % SECTOR == 0 && length % SECTOR == 0);
            assert!(start.checked_add(*length).is_some_and(|end| end <= disk.len() as u64), "it is outside");
            assert!(uuid.is_some() == has_uuids && uuid.as_ref().is_none_or(|uuid| uuid.len() == 36));
            (*start, start + length)
        })
        .collect();
    ends.sort_unstable();
    assert!(ends.windows(2).all(|pair| pair[0].1 <= pair[1].0), "they overlap");
}

fuzz_target!(|input: Input| {
    let mut disk = vec![0; 512 * usize::from(input.sectors % 300) + usize::from(input.rest % 2) * 77];
    if disk.len() >= 1024 {
        match &input.kind {
            Kind::Gpt { entries, count, exponent, has_primary } => {
                gpt(&mut disk, entries, *count, *exponent, *has_primary);
            }
            Kind::Mbr { entries, extended, links } => mbr(&mut disk, entries, *extended, links),
            Kind::None => {}
        }
        let mut structures = table::structures(disk.len().max(64 << 10));
        structures.truncate(3);
        structures.push(disk.len() / 512 * 512 - 512..disk.len() / 512 * 512);
        let mut image = Image::new(disk);
        let ground = Ground { structures, start: 0, unit: 512 };
        input.changes.iter().for_each(|change| change.apply(&mut image, &ground));
        if input.is_bare != Some(true) {
            table::seal(&mut image);
        }
        disk = image.bytes().to_vec();
    }
    let first = read(&disk);
    match &first {
        Ok(found) => check(&disk, found.as_deref().unwrap_or_default()),
        Err(error) => check_message(error),
    }
    let text = |result: Result<_, Error>| result.map_err(|error| error.to_string());
    assert_eq!(text(first), text(read(&disk)), "it is not the same a second time");
});
