//! The checksums of disks, which are the reader's own, and their fields.

pub use crate::checksum::{crc32, crc32c};

/// A little-endian field; zero outside.
pub fn le16(data: &[u8], at: usize) -> u16 {
    data.get(at..).and_then(|rest| rest.first_chunk()).copied().map_or(0, u16::from_le_bytes)
}

/// A little-endian field; zero outside.
pub fn le32(data: &[u8], at: usize) -> u32 {
    data.get(at..).and_then(|rest| rest.first_chunk()).copied().map_or(0, u32::from_le_bytes)
}
