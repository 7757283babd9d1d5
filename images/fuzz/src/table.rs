//! Partition tables, and their checksums.

use std::ops::Range;

use crate::image::Image;
use crate::sums::{crc32, le32};

/// Bytes of a sector.
pub const SECTOR: usize = 512;

/// Where both tables of a GPT are on a disk of this size in bytes: header and entries each, as most tools have it. Where
/// the headers say that entries are elsewhere, `seal` looks there.
pub fn structures(size: usize) -> Vec<Range<usize>> {
    let last = size / SECTOR * SECTOR - SECTOR;
    let entries = 128 * 128;
    vec![
        SECTOR..SECTOR + 92,
        446..512,
        2 * SECTOR..2 * SECTOR + entries,
        last..last + 92,
        last - entries..last,
    ]
}

/// Makes the checksums of a GPT right in both headers, if there are any.
pub fn seal(image: &mut Image) {
    let last = (image.bytes().len() / SECTOR).saturating_sub(1);
    for sector in [1, last] {
        let at = sector * SECTOR;
        let Some(header) = image.bytes().get(at..at + SECTOR) else { return };
        if !header.starts_with(b"EFI PART") {
            continue;
        }
        let mut header = header.to_vec();
        let from = (le32(&header, 72) as usize).saturating_mul(SECTOR);
        let length = (le32(&header, 80) as usize).saturating_mul(le32(&header, 84) as usize);
        if let Some(entries) = image.bytes().get(from..from.saturating_add(length)) {
            header[88..92].copy_from_slice(&crc32(entries).to_le_bytes());
        }
        header[16..20].fill(0);
        let size = (le32(&header, 12) as usize).min(SECTOR);
        let sum = crc32(&header[..size]);
        header[16..20].copy_from_slice(&sum.to_le_bytes());
        image.write(at, &header);
    }
}
