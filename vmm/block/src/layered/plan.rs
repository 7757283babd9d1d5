//! What a request comes down to: which blocks are read from where, and what a change does to the top layer.
//!
//! Everything here is a function of a request and of where the content of its blocks is; nothing is read or written.

use std::ops::Range;

use super::format::BLOCK_SIZE;

/// Where the content of a block is, seen through all layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// Nowhere: it is zeroes, and the top has nothing to say about it.
    Nothing,
    /// The top says that it is zeroes.
    Zero,
    /// The top's data file.
    Top,
    /// The data file of a layer below, counted from the bottom.
    Lower(u16),
}

/// A part of a request whose content is in one place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// In bytes, in the volume and in the data file.
    pub offset: u64,
    pub length: u64,
    pub source: Source,
}

/// What a write does.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WritePlan {
    /// A first block of which the request has a part, and the top nothing.
    pub head: Option<CopyUp>,
    /// Bytes that go to the top's data file as they are.
    pub direct: Range<u64>,
    /// The same as `head`, at the end.
    pub tail: Option<CopyUp>,
    /// Blocks that the direct part covers, and the top has not had.
    pub gained: Vec<Range<u64>>,
}

/// A block that the top gets as a whole, because a part of it changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CopyUp {
    /// The number of the block.
    pub block: u64,
    /// Where it is so far; not the top.
    pub source: Source,
    /// The part that changes, in bytes of the volume.
    pub start: u64,
    pub end: u64,
}

/// A part of what zeroing a range does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ZeroStep {
    /// The blocks become [`Source::Zero`], and the top gives up what it has of them.
    Drop { first: u64, end: u64 },
    /// The blocks become [`Source::Zero`]. The top has nothing of them.
    Hide { first: u64, end: u64 },
    /// The bytes are zeroed in the top's data file; their blocks stay there.
    Zero { offset: u64, length: u64 },
    /// The top gets the block, with a part of it zeroed.
    CopyUp(CopyUp),
}

/// What zeroing is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// The content is no longer needed: parts of blocks may keep it.
    Discard,
    /// The content becomes zeroes, and space is given back where that can be.
    Free,
    /// The content becomes zeroes, and space that the top has is kept.
    Keep,
}

/// The blocks that bytes are in.
pub fn blocks(bytes: &Range<u64>) -> Range<u64> {
    if bytes.is_empty() {
        return bytes.start / BLOCK_SIZE..bytes.start / BLOCK_SIZE;
    }
    bytes.start / BLOCK_SIZE..bytes.end.div_ceil(BLOCK_SIZE)
}

/// Appends the extents of a request for `bytes` to `extents`, joined with what is there. Blocks are asked for in order.
pub fn read(bytes: &Range<u64>, mut source: impl FnMut(u64) -> Source, extents: &mut Vec<Extent>) {
    for block in blocks(bytes) {
        let source = match source(block) {
            Source::Zero => Source::Nothing,
            source => source,
        };
        let part = part_of(block, bytes);
        let length = part.end - part.start;
        match extents.last_mut() {
            Some(last) if last.source == source && last.offset + last.length == part.start => {
                last.length += length;
            }
            _ => extents.push(Extent { offset: part.start, length, source }),
        }
    }
}

/// Plans a write to `bytes`, which are not empty. Blocks are asked for in order.
pub fn write(bytes: &Range<u64>, mut source: impl FnMut(u64) -> Source) -> WritePlan {
    let mut plan = WritePlan { direct: bytes.clone(), ..WritePlan::default() };
    for block in blocks(bytes) {
        let part = part_of(block, bytes);
        match source(block) {
            Source::Top => {}
            _ if is_whole(&part) => join(&mut plan.gained, block),
            source => {
                let copy_up = CopyUp { block, source, start: part.start, end: part.end };
                // Only the first and the last can be parts.
                if part.start == bytes.start {
                    plan.direct.start = part.end;
                    plan.head = Some(copy_up);
                } else {
                    plan.direct.end = part.start;
                    plan.tail = Some(copy_up);
                }
            }
        }
    }
    plan
}

/// Plans to zero `bytes`. Blocks are asked for in order.
pub fn zero(bytes: &Range<u64>, purpose: Purpose, mut source: impl FnMut(u64) -> Source) -> Vec<ZeroStep> {
    let mut steps: Vec<ZeroStep> = Vec::new();
    for block in blocks(bytes) {
        let part = part_of(block, bytes);
        let is_whole = is_whole(&part);
        if !is_whole && purpose == Purpose::Discard {
            continue;
        }
        let step = match source(block) {
            Source::Nothing | Source::Zero => continue,
            Source::Top if is_whole && purpose != Purpose::Keep => {
                ZeroStep::Drop { first: block, end: block + 1 }
            }
            Source::Top => ZeroStep::Zero { offset: part.start, length: part.end - part.start },
            Source::Lower(_) if is_whole => ZeroStep::Hide { first: block, end: block + 1 },
            source => ZeroStep::CopyUp(CopyUp { block, source, start: part.start, end: part.end }),
        };
        match (steps.last_mut(), step) {
            (Some(ZeroStep::Drop { end, .. }), ZeroStep::Drop { first, end: new })
            | (Some(ZeroStep::Hide { end, .. }), ZeroStep::Hide { first, end: new })
                if *end == first =>
            {
                *end = new;
            }
            (Some(ZeroStep::Zero { offset, length }), ZeroStep::Zero { offset: next, length: more })
                if *offset + *length == next =>
            {
                *length += more;
            }
            _ => steps.push(step),
        }
    }
    steps
}

/// The part of a block that is in `bytes`.
fn part_of(block: u64, bytes: &Range<u64>) -> Range<u64> {
    let start = block * BLOCK_SIZE;
    start.max(bytes.start)..(start + BLOCK_SIZE).min(bytes.end)
}

fn is_whole(part: &Range<u64>) -> bool {
    part.end - part.start == BLOCK_SIZE
}

fn join(ranges: &mut Vec<Range<u64>>, block: u64) {
    match ranges.last_mut() {
        Some(last) if last.end == block => last.end += 1,
        _ => ranges.push(block..block + 1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const K: u64 = 1024;
    /// Blocks 0 to 9, as a letter each: nothing, zero, top, and layers below.
    const MAP: &[u8; 10] = b"..ttz0011t";

    fn source(block: u64) -> Source {
        match MAP[block as usize] {
            b'.' => Source::Nothing,
            b'z' => Source::Zero,
            b't' => Source::Top,
            digit => Source::Lower((digit - b'0').into()),
        }
    }

    /// Offsets, lengths, and where that is.
    type Parts = &'static [(u64, u64, Source)];

    #[test]
    fn reads_are_split_by_layer() {
        let cases: &[(Range<u64>, Parts)] = &[
            (0..0, &[]),
            (0..8 * K, &[(0, 8 * K, Source::Nothing)]),
            (512..1024, &[(512, 512, Source::Nothing)]),
            (
                4 * K + 512..13 * K,
                &[(4 * K + 512, 3 * K + 512, Source::Nothing), (8 * K, 5 * K, Source::Top)],
            ),
            (
                15 * K..37 * K,
                &[
                    (15 * K, K, Source::Top),
                    (16 * K, 4 * K, Source::Nothing),
                    (20 * K, 8 * K, Source::Lower(0)),
                    (28 * K, 8 * K, Source::Lower(1)),
                    (36 * K, K, Source::Top),
                ],
            ),
        ];
        for (bytes, expected) in cases {
            let mut extents = Vec::new();
            read(bytes, source, &mut extents);
            let found: Vec<_> = extents.iter().map(|e| (e.offset, e.length, e.source)).collect();
            assert_eq!(found, *expected, "{bytes:?}");
        }
    }

    #[test]
    fn writes_copy_parts_of_blocks_up() {
        let copy = |block, start, end| Some(CopyUp { block, source: source(block), start, end });
        let gained = |ranges: &[(u64, u64)]| ranges.iter().map(|(first, end)| *first..*end).collect();
        let cases = [
            // Whole blocks, wherever they were.
            (
                0..40 * K,
                WritePlan { direct: 0..40 * K, gained: gained(&[(0, 2), (4, 9)]), ..Default::default() },
            ),
            // A part of what the top has.
            (9 * K..10 * K, WritePlan { direct: 9 * K..10 * K, ..Default::default() }),
            // A part of what it has not: at the start, at the end, both, and one block only.
            (
                21 * K..28 * K,
                WritePlan {
                    head: copy(5, 21 * K, 24 * K),
                    direct: 24 * K..28 * K,
                    gained: gained(&[(6, 7)]),
                    tail: None,
                },
            ),
            (
                12 * K..17 * K,
                WritePlan { direct: 12 * K..16 * K, tail: copy(4, 16 * K, 17 * K), ..Default::default() },
            ),
            (
                17 * K..21 * K,
                WritePlan {
                    head: copy(4, 17 * K, 20 * K),
                    direct: 20 * K..20 * K,
                    tail: copy(5, 20 * K, 21 * K),
                    gained: vec![],
                },
            ),
            (
                28 * K + 512..29 * K,
                WritePlan {
                    head: copy(7, 28 * K + 512, 29 * K),
                    direct: 29 * K..29 * K,
                    ..Default::default()
                },
            ),
        ];
        for (bytes, expected) in cases {
            assert_eq!(write(&bytes, source), expected, "{bytes:?}");
        }
    }

    #[test]
    fn zeroing_does_what_it_is_for() {
        use Purpose::{Discard, Free, Keep};
        use ZeroStep::{Drop, Hide, Zero};
        let copy = |block, start, end| ZeroStep::CopyUp(CopyUp { block, source: source(block), start, end });
        let cases: &[(Range<u64>, Purpose, &[ZeroStep])] = &[
            (0..0, Free, &[]),
            (0..8 * K, Free, &[]),
            (
                0..40 * K,
                Discard,
                &[Drop { first: 2, end: 4 }, Hide { first: 5, end: 9 }, Drop { first: 9, end: 10 }],
            ),
            (
                0..40 * K,
                Keep,
                &[
                    Zero { offset: 8 * K, length: 8 * K },
                    Hide { first: 5, end: 9 },
                    Zero { offset: 36 * K, length: 4 * K },
                ],
            ),
            (9 * K..15 * K, Discard, &[]),
            (9 * K..15 * K, Free, &[Zero { offset: 9 * K, length: 6 * K }]),
            (21 * K..27 * K, Discard, &[]),
            (21 * K..27 * K, Free, &[copy(5, 21 * K, 24 * K), copy(6, 24 * K, 27 * K)]),
            (18 * K..29 * K, Discard, &[Hide { first: 5, end: 7 }]),
            (18 * K..29 * K, Keep, &[Hide { first: 5, end: 7 }, copy(7, 28 * K, 29 * K)]),
        ];
        for (bytes, purpose, expected) in cases {
            assert_eq!(zero(bytes, *purpose, source), *expected, "{bytes:?} {purpose:?}");
        }
    }
}
