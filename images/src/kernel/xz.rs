//! The one block of an xz stream, as the kernel's own build makes it (The .xz File Format 1.2.1, section 3).
//!
//! The decoder's `XzReader` takes as much memory as a block's header asks for, which may be 4 GiB, and as many blocks
//! as there are. Here a block's dictionary is never larger than what it decompresses to, and there is one block.

use std::io::{self, ErrorKind};

use lzma_rust2::Lzma2Reader;
use lzma_rust2::filter::bcj::BcjReader;

use super::{XZ_MAGIC, fill};
use crate::checksum::crc32;

/// Why it does not decompress.
#[derive(Debug)]
pub enum Error {
    /// It takes this many bytes, more than there may be.
    Memory(usize),
    /// It is corrupt.
    Io(io::Error),
}

fn invalid(why: &str) -> Error {
    Error::Io(io::Error::new(ErrorKind::InvalidData, why))
}

/// Filter identifiers (section 5.3).
const LZMA2: u64 = 0x21;
const X86: u64 = 0x04;

/// Decompresses a stream of one block into `output`; see [`fill`] for what it says.
pub fn unpack(stream: &[u8], output: &mut [u8], memory: usize) -> Result<usize, Error> {
    let after = stream.strip_prefix(XZ_MAGIC).and_then(|rest| rest.split_at_checked(6));
    // The flags of the stream and their CRC. Of the flags only the kind of check has a meaning.
    let Some(([0, check @ 0..=15, ..], block)) = after else {
        return Err(invalid("the stream's header is cut off or unknown"));
    };
    let header_length = (usize::from(*block.first().unwrap_or(&0)) + 1) * 4;
    let (header, mut data) =
        block.split_at_checked(header_length).ok_or_else(|| invalid("the block's header is cut off"))?;
    let (header, sum) = header.split_last_chunk::<4>().ok_or_else(|| invalid("there is no block"))?;
    if crc32(header) != u32::from_le_bytes(*sum) {
        return Err(invalid("the block's header does not match its checksum"));
    }
    let (dictionary, start) =
        filters(header).ok_or_else(|| invalid("the block has filters that are not known"))?;
    // Nothing refers to more than what came before.
    let dictionary = dictionary.min(u32::try_from(output.len()).unwrap_or(u32::MAX)).max(4096);
    if dictionary as usize > memory {
        return Err(Error::Memory(dictionary as usize));
    }
    let begin = data.len();
    let length = {
        let lzma = Lzma2Reader::new(&mut data, dictionary, None);
        match start {
            Some(start) => fill(BcjReader::new_x86(lzma, start), output),
            None => fill(lzma, output),
        }
        .map_err(Error::Io)?
    };
    // CRC-32 is what a kernel has. With another kind the size is all there is to go by.
    if *check == 1 && length == output.len() {
        let used = begin - data.len();
        let sum = data.get((4 - used % 4) % 4..).and_then(|rest| rest.first_chunk());
        if sum.copied().map(u32::from_le_bytes) != Some(crc32(output)) {
            return Err(invalid("the checksum does not match"));
        }
    }
    Ok(length)
}

/// The size of the dictionary, and where the x86 filter starts if there is one.
fn filters(header: &[u8]) -> Option<(u32, Option<usize>)> {
    let flags = *header.get(1)?;
    let mut rest = header.get(2..)?;
    // The sizes of the block, if they are there.
    for bit in [0x40, 0x80] {
        if flags & bit != 0 {
            integer(&mut rest)?;
        }
    }
    let mut start = None;
    for _ in 0..=flags & 3 {
        let id = integer(&mut rest)?;
        let length = usize::try_from(integer(&mut rest)?).ok()?;
        let (properties, after) = rest.split_at_checked(length)?;
        rest = after;
        match (id, properties) {
            (X86, []) if start.is_none() => start = Some(0),
            (X86, &[a, b, c, d]) if start.is_none() => {
                start = Some(u32::from_le_bytes([a, b, c, d]) as usize)
            }
            // Always the last one.
            (LZMA2, &[40]) => return Some((u32::MAX, start)),
            (LZMA2, &[bits @ 0..40]) => return Some(((2 | u32::from(bits & 1)) << (bits / 2 + 11), start)),
            _ => return None,
        }
    }
    None
}

/// An integer of up to 63 bits, seven to a byte (section 1.2).
fn integer(rest: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..63).step_by(7) {
        let (&byte, after) = rest.split_first()?;
        *rest = after;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}
