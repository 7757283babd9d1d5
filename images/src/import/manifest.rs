//! The manifest of a disk: what it holds, chunk by chunk, so that a reader can tell whether it still does.
//!
//! It is a text, `disk.manifest` beside `disk.raw`:
//!
//! ```text
//! innkeeper-disk-manifest 1
//! size 2147483648
//! chunk 4194304
//! 0 7ed0c1f5…
//! 17 6aa5be0c…
//! end 2
//! ```
//!
//! The first line has the version. `size` and `chunk` are the sizes of the disk and of a chunk, in bytes; the last chunk
//! may be shorter. Then comes a line for each chunk that is not all zeroes, in their order: its number, from 0, and its
//! SHA-256, 64 hexadecimal digits. All others have to be zeroes. `end` has the number of lines, so that none can be
//! missing. Numbers are decimal, without leading zeroes; digits are lower-case; each line ends in one line feed. So there
//! is one text for one disk, and the text's own hash stands for the disk.
//!
//! SHA-256 is what this crate has already, what current CPUs have instructions for, and what people can check by hand:
//! `dd if=disk.raw bs=4M skip=17 count=1 | sha256sum`. Of a disk's holes nothing is read or hashed.

use std::fmt::Write;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::str::Lines;

use sha2::{Digest, Sha256};

use super::MAX_SIZE;
use super::checksum::{from_hex, hex};
use super::error::{Error, Result, failed};
use super::source::next_data;

/// The size of the chunks of a new manifest, in bytes.
pub(super) const CHUNK: u64 = 4 << 20;

/// The sizes of chunks that a manifest may have, in bytes: 64 KiB to 64 MiB.
const CHUNK_SIZES: std::ops::RangeInclusive<u64> = 64 << 10..=64 << 20;

const FIRST_LINE: &str = "innkeeper-disk-manifest 1";

/// How long a line may be, in bytes, and how long everything else.
const MAX_LINE: u64 = 80;
const MAX_REST: u64 = 256;

/// A chunk of a disk that is not all zeroes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Chunk {
    /// Its number, from 0.
    pub index: u64,
    /// Its SHA-256.
    pub digest: [u8; 32],
}

impl Chunk {
    /// The chunk with this number, and this in it.
    pub fn of(index: u64, contents: &[u8]) -> Self {
        Self { index, digest: Sha256::digest(contents).into() }
    }

    /// The line for it, without its end.
    pub fn line(&self) -> String {
        format!("{} {}", self.index, hex(&self.digest))
    }

    /// What [`Self::line`] makes.
    pub fn parse(line: &str) -> Option<Self> {
        let (index, digest) = line.split_once(' ')?;
        Some(Self { index: number(index)?, digest: from_hex(digest)? })
    }
}

/// A decimal number as it is written in only one way.
pub(super) fn number(text: &str) -> Option<u64> {
    let value: u64 = text.parse().ok()?;
    (value.to_string() == text).then_some(value)
}

/// What a disk holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    /// In bytes.
    size: u64,
    /// The size of a chunk, in bytes. A power of two.
    chunk: u64,
    /// In their order.
    chunks: Vec<Chunk>,
}

impl Manifest {
    /// Of a disk of `size` bytes, with these chunks of [`CHUNK`] bytes, in their order.
    pub(super) fn new(size: u64, chunks: Vec<Chunk>) -> Self {
        Self { size, chunk: CHUNK, chunks }
    }

    /// The disk's size in bytes: a multiple of 512, at most [`MAX_SIZE`].
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The size of a chunk in bytes: a power of two.
    pub fn chunk_size(&self) -> u64 {
        self.chunk
    }

    /// How many bytes the chunks have that are not all zeroes.
    pub fn data(&self) -> u64 {
        self.chunks.iter().map(|chunk| self.length(chunk.index)).sum()
    }

    /// The length of a chunk in bytes.
    fn length(&self, index: u64) -> u64 {
        self.size.saturating_sub(index.saturating_mul(self.chunk)).min(self.chunk)
    }

    /// The manifest's text.
    pub fn text(&self) -> String {
        let mut text = format!("{FIRST_LINE}\nsize {}\nchunk {}\n", self.size, self.chunk);
        for chunk in &self.chunks {
            text.push_str(&chunk.line());
            text.push('\n');
        }
        // Writing to a string cannot fail.
        let _ = writeln!(text, "end {}", self.chunks.len());
        text
    }

    /// The SHA-256 of the text, in hexadecimal digits. Two disks have the same if they hold the same.
    pub fn digest(&self) -> String {
        hex(&Sha256::digest(self.text()))
    }

    /// Reads a manifest's file.
    ///
    /// # Errors
    /// The file cannot be read, or what it has is not a manifest.
    pub fn read(path: &Path) -> Result<Self> {
        let mut file = File::open(path).map_err(failed("open", path))?;
        let mut text = String::new();
        // Longer than any manifest there is no need to read.
        let most = MAX_REST + MAX_LINE * (MAX_SIZE / CHUNK_SIZES.start());
        file.by_ref().take(most).read_to_string(&mut text).map_err(failed("read", path))?;
        Self::parse(&text).map_err(|error| Error::ManifestFile { path: path.into(), source: Box::new(error) })
    }

    /// Reads a manifest's text.
    ///
    /// # Errors
    /// It is not exactly as described above.
    pub fn parse(text: &str) -> Result<Self> {
        let mut lines = Numbered { lines: text.lines(), line: 0 };
        if lines.next()? != FIRST_LINE {
            return lines.wrong("it has to be `innkeeper-disk-manifest 1`");
        }
        let size = lines.field("size ")?;
        if size == 0 || size > MAX_SIZE || !size.is_multiple_of(512) {
            return lines.wrong("a disk's size is a multiple of 512 bytes, and at most 64 TiB");
        }
        let chunk = lines.field("chunk ")?;
        if !CHUNK_SIZES.contains(&chunk) || !chunk.is_power_of_two() {
            return lines.wrong("a chunk's size is a power of two, from 64 KiB to 64 MiB");
        }
        let mut manifest = Self { size, chunk, chunks: Vec::new() };
        loop {
            let line = lines.next()?;
            if let Some(count) = line.strip_prefix("end ") {
                if number(count) != Some(manifest.chunks.len() as u64) {
                    return lines.wrong("there are more lines before it, or fewer");
                }
                break;
            }
            let Some(chunk) = Chunk::parse(line) else {
                return lines
                    .wrong("it has to be the number of a chunk and a SHA-256, or `end` and a number");
            };
            if manifest.chunks.last().is_some_and(|last| last.index >= chunk.index) {
                return lines.wrong("chunks have to be in their order");
            }
            if manifest.length(chunk.index) == 0 {
                return lines.wrong("the chunk is behind the end of the disk");
            }
            manifest.chunks.push(chunk);
        }
        // What ends otherwise, or goes on, has another text.
        if manifest.text() != text {
            return lines.wrong("it has to be the last, and each line has to end in one line feed");
        }
        Ok(manifest)
    }

    /// Whether a disk is what the manifest says. Reads all of it but its holes.
    ///
    /// # Errors
    /// It is not: [`Error::Size`], or [`Error::Differs`] with the first chunk that differs. Or it cannot be read.
    pub fn verify(&self, disk: &File) -> Result<()> {
        let read = failed("read", Path::new("the disk"));
        let found = match disk.metadata() {
            Ok(metadata) => metadata.len(),
            Err(error) => return Err(read(error)),
        };
        if found != self.size {
            return Err(Error::Size { expected: self.size, found });
        }
        match self.first_difference(disk).map_err(read)? {
            None => Ok(()),
            Some(chunk) => {
                let offset = chunk.saturating_mul(self.chunk);
                Err(Error::Differs { chunk, offset, length: self.length(chunk) })
            }
        }
    }

    /// The number of the first chunk that is not as it has to be.
    fn first_difference(&self, disk: &File) -> io::Result<Option<u64>> {
        let mut buffer = Vec::new();
        let mut next = 0;
        for chunk in &self.chunks {
            if let Some(other) = self.first_with_data(disk, next, chunk.index, &mut buffer)? {
                return Ok(Some(other));
            }
            self.read_chunk(disk, chunk.index, &mut buffer)?;
            if Chunk::of(chunk.index, &buffer) != *chunk {
                return Ok(Some(chunk.index));
            }
            next = chunk.index + 1;
        }
        self.first_with_data(disk, next, self.size.div_ceil(self.chunk), &mut buffer)
    }

    /// The number of the first chunk from `next` on, before `end`, that is not all zeroes.
    fn first_with_data(
        &self,
        disk: &File,
        mut next: u64,
        end: u64,
        buffer: &mut Vec<u8>,
    ) -> io::Result<Option<u64>> {
        let limit = end.saturating_mul(self.chunk).min(self.size);
        while let Some(data) = next_data(disk, next.saturating_mul(self.chunk), limit)? {
            let index = data / self.chunk;
            self.read_chunk(disk, index, buffer)?;
            if !is_zero(buffer) {
                return Ok(Some(index));
            }
            next = index + 1;
        }
        Ok(None)
    }

    fn read_chunk(&self, disk: &File, index: u64, buffer: &mut Vec<u8>) -> io::Result<()> {
        buffer.resize(usize::try_from(self.length(index)).map_err(io::Error::other)?, 0);
        disk.read_exact_at(buffer, index.saturating_mul(self.chunk))
    }
}

/// Whether there is nothing but zeroes. Compares blocks, which is as fast as memory is.
pub(super) fn is_zero(bytes: &[u8]) -> bool {
    const ZEROES: [u8; 4096] = [0; 4096];
    let (blocks, rest) = bytes.as_chunks::<4096>();
    blocks.iter().all(|block| *block == ZEROES) && rest.iter().all(|byte| *byte == 0)
}

/// A text's lines, and the number of the last one.
struct Numbered<'a> {
    lines: Lines<'a>,
    line: usize,
}

impl<'a> Numbered<'a> {
    fn next(&mut self) -> Result<&'a str> {
        self.line += 1;
        match self.lines.next() {
            Some(line) => Ok(line),
            None => self.wrong("it is missing"),
        }
    }

    /// The number in the next line, behind its name.
    fn field(&mut self, name: &str) -> Result<u64> {
        match self.next()?.strip_prefix(name).and_then(number) {
            Some(value) => Ok(value),
            None => self.wrong("it has to be `size` and a number, and the next one `chunk` and a number"),
        }
    }

    fn wrong<T>(&self, reason: &'static str) -> Result<T> {
        Err(Error::Manifest { line: self.line, reason })
    }
}
