//! The journal of an import: a text that says what is safely on the disk so far.
//!
//! It begins with a head that says what is imported from what, so that an import can go on where an earlier one was
//! interrupted if the heads are the same:
//!
//! ```text
//! innkeeper-import 1
//! source qcow2 303841280 1764362565.123456789 (SHA-256 of the first MiB)
//! disk 2147483648 4194304
//! ```
//!
//! The source is its format, length, time of change and beginning. The disk is its size and that of a chunk. Then come
//! batches: a line for each chunk that is not all zeroes, as in a manifest, and a line `done` with the number of chunks
//! that are done, zeroes and others. A batch is written when its chunks are on the disk; one that is cut off does not
//! count. A line `checked` with a checksum says that the source has it.

use super::checksum::Checksum;
use super::manifest::{CHUNK, Chunk, number};

/// What a journal says.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Recorded {
    /// The chunks that are done and not all zeroes.
    pub chunks: Vec<Chunk>,
    /// How many chunks are done.
    pub done: u64,
    /// The checksum that the source was found to have.
    pub checked: Option<String>,
    /// How much of the journal this is, in bytes. What comes behind has to go.
    pub length: u64,
}

impl Recorded {
    /// How much of a disk of `size` bytes is done, in bytes.
    pub(super) fn kept(&self, size: u64) -> u64 {
        self.done.saturating_mul(CHUNK).min(size)
    }
}

/// The head of the journal for a disk of `size` bytes from this source.
pub(super) fn head(source: &str, size: u64) -> String {
    format!("innkeeper-import 1\nsource {source}\ndisk {size} {CHUNK}\n")
}

/// The line that says that the source has a checksum.
pub(super) fn checked(checksum: &Checksum) -> String {
    format!("checked {checksum}\n")
}

/// The lines that say that these chunks and all others before number `done` are on the disk.
pub(super) fn batch(chunks: &[Chunk], done: u64) -> String {
    let lines: String = chunks.iter().map(|chunk| chunk.line() + "\n").collect();
    format!("{lines}done {done}\n")
}

/// Reads a journal for a disk of so many chunks. `None` if it has another head.
pub(super) fn parse(journal: &[u8], head: &str, chunks: u64) -> Option<Recorded> {
    let body = journal.strip_prefix(head.as_bytes())?;
    let mut recorded = Recorded { length: head.len() as u64, ..Recorded::default() };
    let mut batch = Vec::new();
    let mut length = recorded.length;
    // A crash of the host may leave anything at the end, though nothing that passes for a line.
    for line in body.split_inclusive(|byte| *byte == b'\n') {
        length += line.len() as u64;
        let line = line.strip_suffix(b"\n").and_then(|line| str::from_utf8(line).ok());
        let Some(line) = line else { break };
        if let Some(checksum) = line.strip_prefix("checked ") {
            if !batch.is_empty() {
                break;
            }
            recorded.checked = Some(checksum.to_owned());
            recorded.length = length;
        } else if let Some(done) = line.strip_prefix("done ") {
            let Some(done) = number(done).filter(|done| (recorded.done..=chunks).contains(done)) else {
                break;
            };
            if batch.last().is_some_and(|last: &Chunk| last.index >= done) {
                break;
            }
            recorded.chunks.append(&mut batch);
            recorded.done = done;
            recorded.length = length;
        } else {
            let next = batch.last().map_or(recorded.done, |last| last.index + 1);
            match Chunk::parse(line) {
                Some(chunk) if (next..chunks).contains(&chunk.index) => batch.push(chunk),
                _ => break,
            }
        }
    }
    Some(recorded)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_batches_count() {
        let chunk = |index| Chunk::of(index, &[1]);
        let head = head("qcow2 5 7.000000000 00", 100 * CHUNK);
        let checksum: Checksum = format!("sha256:{}", "0".repeat(64)).parse().unwrap();
        let first = head.clone() + &checked(&checksum) + &batch(&[chunk(0), chunk(3)], 8);
        let both = first.clone() + &batch(&[chunk(8), chunk(99)], 100);
        let read = |text: &str| parse(text.as_bytes(), &head, 100);

        let half = read(&first).unwrap();
        assert_eq!((half.done, half.length), (8, first.len() as u64));
        assert_eq!(half.chunks, [chunk(0), chunk(3)]);
        assert_eq!(half.checked, Some(checksum.to_string()));
        let whole = read(&both).unwrap();
        assert_eq!((whole.done, whole.chunks.len(), whole.length), (100, 4, both.len() as u64));
        for end in first.len()..both.len() {
            assert_eq!(read(&both[..end]).unwrap(), half, "cut at {end}");
        }
        for end in 0..head.len() {
            assert_eq!(read(&both[..end]), None);
        }
        assert_eq!(parse(both.as_bytes(), &head.replace(" 5 ", " 6 "), 100), None);
    }

    #[test]
    fn what_no_import_writes_ends_the_journal() {
        let chunk = |index| Chunk::of(index, &[1]);
        let head = head("raw 1 1.000000000 00", 10 * CHUNK);
        let good = head.clone() + &batch(&[chunk(2)], 4);
        for bad in [
            batch(&[chunk(3)], 6),
            batch(&[chunk(5), chunk(4)], 6),
            batch(&[chunk(5)], 5),
            batch(&[chunk(5)], 11),
            batch(&[chunk(10)], 10),
            batch(&[], 3),
            "done 05\n".to_owned(),
            "\0\0\0\0\n".to_owned(),
            "\n".to_owned(),
        ] {
            let journal = good.clone() + &bad + &batch(&[chunk(8)], 9);
            let recorded = parse(journal.as_bytes(), &head, 10).unwrap();
            assert_eq!((recorded.done, recorded.length), (4, good.len() as u64), "{bad:?}");
            assert_eq!(recorded.chunks, [chunk(2)], "{bad:?}");
        }
        let binary = [good.as_bytes(), b"\xff\xfe\ndone 9\n"].concat();
        assert_eq!(parse(&binary, &head, 10).unwrap().done, 4);
    }
}
