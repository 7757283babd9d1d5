//! The sequence of writes that the payload `disk` makes when it is told to, what is to be found of it on a volume after the
//! program that served it, or the host, was stopped at any moment, and numbers of chance.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail, ensure};
use innkeeper_block::Layered;

const SECTOR: u64 = 512;
/// Sectors that the payload writes to: so many from each of these on. It has the same numbers.
const WINDOW: u64 = 256;
const WINDOWS: [u64; 4] = [0, 65536 - 128, 131072 - 128, 163840 - WINDOW];
/// Each life begins with another multiple of this.
pub const LIFE: u64 = 1 << 24;

/// What number `n` of the sequence does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Step {
    first: u64,
    count: u64,
    is_zero: bool,
    is_flushed: bool,
}

/// As the payload does it.
fn step(n: u64) -> Step {
    const FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;
    let mut x = n.wrapping_mul(FACTOR);
    x ^= x >> 32;
    x = x.wrapping_mul(FACTOR);
    x ^= x >> 29;
    let (mut first, mut count) = (x >> 2 & 255, 8);
    if x >> 10 & 1 == 1 {
        first &= !7;
    } else {
        count = 1 + (x >> 11 & 7);
    }
    if first + count > WINDOW {
        first = WINDOW - 8;
    }
    let first = first + WINDOWS[(x & 3) as usize];
    Step { first, count, is_zero: x >> 14 & 15 == 0, is_flushed: x >> 18 & 3 == 0 }
}

/// What a sector is after number `n`, if that is about it: the number, or 0 if it is zeroed.
fn value(n: u64, sector: u64) -> Option<u64> {
    let Step { first, count, is_zero, .. } = step(n);
    (first..first + count).contains(&sector).then_some(if is_zero { 0 } else { n })
}

/// What is in every sector: the number of the sequence that has written it, or 0.
pub type Content = BTreeMap<u64, u64>;

/// Reads what the sequence has written to. It is an error if a sector is neither zeroes nor as a whole what one number has
/// written there.
pub fn read(volume: &Layered) -> Result<Content> {
    let mut content = Content::new();
    for window in WINDOWS {
        let mut bytes = vec![0; (WINDOW * SECTOR) as usize];
        volume.read_at(&mut bytes, window * SECTOR)?;
        for (sector, bytes) in (window..).zip(bytes.chunks(SECTOR as usize)) {
            let words: Vec<u64> = bytes
                .chunks(8)
                .map(|word| Ok(u64::from_le_bytes(word.try_into()?)))
                .collect::<Result<_>>()?;
            let number = (words[0] & ((1 << 40) - 1)) >> 6;
            let is_whole = words == vec![0; 64]
                || words.iter().zip(0..).all(|(word, i)| *word == (sector << 40) + (number << 6) + i);
            ensure!(is_whole, "sector {sector} is garbage: {:x?}", &words[..4]);
            content.insert(sector, number);
        }
    }
    Ok(content)
}

/// The numbers in the order of the sectors, as text.
pub fn to_text(content: &Content) -> String {
    let numbers: Vec<String> = content.values().map(|number| format!("{number:x}")).collect();
    numbers.join(" ")
}

/// What [`to_text`] has made text of.
pub fn from_text(text: &str) -> Result<Content> {
    let sectors = WINDOWS.into_iter().flat_map(|window| window..window + WINDOW);
    let numbers =
        text.split(' ').map(|number| u64::from_str_radix(number, 16)).collect::<Result<Vec<_>, _>>()?;
    ensure!(numbers.len() as u64 == WINDOWS.len() as u64 * WINDOW, "there are {} sectors", numbers.len());
    Ok(sectors.zip(numbers).collect())
}

/// Checks what a VMM or a host that was stopped has left: of what was written from number `begin` on, all is there up to `flushed`, on top of
/// what was there before; and of what came later, some.
pub fn check(before: &Content, found: &Content, begin: u64, flushed: Option<u64>) -> Result<()> {
    let flushed_end = flushed.map_or(begin, |flushed| flushed + 1);
    // The guest has not gone on for long after its last word, of which some may be lost.
    let last = flushed_end + 10_000;
    let mut durable = before.clone();
    for n in begin..flushed_end {
        let Step { first, count, .. } = step(n);
        (first..first + count).for_each(|sector| _ = durable.insert(sector, value(n, sector).unwrap_or(0)));
    }
    let mut later: BTreeMap<u64, Vec<u64>> = BTreeMap::new();
    for n in flushed_end..last {
        let Step { first, count, .. } = step(n);
        for sector in first..first + count {
            later.entry(sector).or_default().extend(value(n, sector));
        }
    }
    for (sector, value) in found {
        let is_there = durable.get(sector) == Some(value);
        ensure!(
            is_there || later.get(sector).is_some_and(|later| later.contains(value)),
            "sector {sector} is of number {value:x}, and {:x?} was flushed by {flushed:x?} of a life from {begin:x} on",
            durable.get(sector)
        );
    }
    Ok(())
}

/// Random numbers that are the same the next time.
pub struct Random(u64);

impl Random {
    /// Others for each seed.
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// A number that is smaller than `end`.
    pub fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 11) % end
    }
}

/// The last number that the guest has said to be flushed.
pub fn last_flushed(transcript: &str) -> Result<Option<u64>> {
    let mut last = None;
    for line in transcript.split_inclusive('\n') {
        let Some(line) = line.strip_suffix('\n') else { break };
        match line.strip_prefix('F') {
            Some(number) => last = Some(u64::from_str_radix(number, 16).context("a number")?),
            None => bail!("the guest says {line:?}"),
        }
    }
    Ok(last)
}
