//! Broken partition tables, and disks that are cut off.

use crate::base::{Base, Random};
use crate::measure::Tally;

pub fn crc32(data: &[u8]) -> u32 {
    let mut crc = flate2::Crc::new();
    crc.update(data);
    crc.sum()
}

pub fn le32(data: &[u8], offset: usize) -> usize {
    u32::from_le_bytes(data[offset..][..4].try_into().unwrap()) as usize
}

/// Changes both tables of a GPT, and makes their checksums right.
fn change_gpt(disk: &mut [u8], change: impl Fn(&mut [u8], &mut [u8])) {
    let last = disk.len() / 512 - 1;
    for (header_at, entries_at) in [(1, 2), (last, last - 32)] {
        let mut header = disk[header_at * 512..][..512].to_vec();
        let mut entries = disk[entries_at * 512..][..128 * 128].to_vec();
        change(&mut header, &mut entries);
        let count = le32(&header, 80).saturating_mul(le32(&header, 84));
        if let Some(entries) = entries.get(..count) {
            header[88..92].copy_from_slice(&crc32(entries).to_le_bytes());
        }
        let size = le32(&header, 12).min(512);
        header[16..20].fill(0);
        let sum = crc32(&header[..size]);
        header[16..20].copy_from_slice(&sum.to_le_bytes());
        disk[header_at * 512..][..512].copy_from_slice(&header);
        disk[entries_at * 512..][..128 * 128].copy_from_slice(&entries);
    }
}

pub fn break_gpt(tally: &mut Tally, base: &Base, random: &mut Random) {
    // Fields whose value makes no sense, in tables that match their checksums.
    let values = [0_u64, 1, 3, 0xff, 0xffff, 0xffff_ffff, u64::MAX / 512, u64::MAX];
    for (field, size) in [(12, 4), (24, 8), (40, 8), (48, 8), (72, 8), (80, 4), (84, 4)] {
        for value in values {
            let mut disk = base.disk.clone();
            change_gpt(&mut disk, |header, _| {
                header[field..field + size].copy_from_slice(&value.to_le_bytes()[..size])
            });
            tally.check(&format!("GPT header field {field} is {value:#x}"), &disk, Some(&base.answer));
        }
    }
    for field in [32, 40] {
        for value in values {
            let mut disk = base.disk.clone();
            change_gpt(&mut disk, |_, entries| {
                entries[field..field + 8].copy_from_slice(&value.to_le_bytes())
            });
            tally.check(&format!("GPT entry field {field} is {value:#x}"), &disk, None);
        }
    }
    let mut disk = base.disk.clone();
    change_gpt(&mut disk, |_, entries| entries.copy_within(0..128, 128));
    tally.check("GPT partitions overlap", &disk, None);
    // Changes that nobody has made the checksums right for, in the same place of both.
    for _ in 0..12 {
        let (offset, bit) = (random.below(92), random.below(8));
        let mut disk = base.disk.clone();
        let last = disk.len() - 512;
        for header in [512, last] {
            disk[header + offset] ^= 1 << bit;
        }
        tally.check(&format!("bit {bit} of byte {offset} of both GPT headers"), &disk, None);
    }
    for length in [
        600,
        1024,
        4096,
        1 << 20,
        (1 << 20) + 1024,
        (1 << 20) + 4096,
        2 << 20,
        5 << 20,
        base.disk.len() - (1 << 20) - 512,
    ] {
        tally.check(&format!("GPT disk cut off at {length}"), &base.disk[..length], None);
    }
}

pub fn break_mbr(tally: &mut Tally, base: &Base) {
    let entry = 446;
    for (field, bytes) in [
        (0, &[7_u8][..]),
        (8, &[0; 4]),
        (8, &[1, 0, 0, 0]),
        (8, &[0xff; 4]),
        (8, &[0x01, 0x08, 0, 0]),
        (12, &[0xff; 4]),
        (12, &[1, 0, 0, 0]),
        (12, &[64, 0, 0, 0]),
        (12, &[0, 0, 1, 0]),
        (4, &[0x05]),
        (4, &[0x82]),
        (4, &[0xee]),
    ] {
        tally.check(&format!("MBR field {field} is {bytes:?}"), &base.with(&[(entry + field, bytes)]), None);
    }
    // Chains of logical partitions that lead back, to themselves, and outside.
    for next in [0_u32, 1, 8, 0x7fff_ffff, 0xffff_ffff] {
        let mut link = [0; 66];
        link[4] = 0x83;
        link[8..12].copy_from_slice(&1_u32.to_le_bytes());
        link[12..16].copy_from_slice(&1_u32.to_le_bytes());
        link[16 + 4] = 5;
        link[16 + 8..][..4].copy_from_slice(&next.to_le_bytes());
        link[16 + 12..][..4].copy_from_slice(&1_u32.to_le_bytes());
        link[64..].copy_from_slice(&[0x55, 0xaa]);
        let mut extended = [0; 16];
        extended[4] = 5;
        extended[8..12].copy_from_slice(&16_u32.to_le_bytes());
        extended[12..].copy_from_slice(&1000_u32.to_le_bytes());
        let changes = [
            (entry, &[0; 16][..]),
            (entry + 16, &extended),
            (16 * 512 + 446, &link),
            (24 * 512 + 446, &link),
        ];
        tally.check(&format!("logical partitions lead to {next}"), &base.with(&changes), None);
    }
    for length in [511, 1024, 1 << 20, 3 << 20, base.disk.len() - 4096] {
        tally.check(&format!("MBR disk cut off at {length}"), &base.disk[..length], None);
    }
}
