//! A VMM that is killed again and again while its guest writes, and is sealed in between: every flush that the guest has
//! seen is there, nothing is garbage, and the next VMM goes on with the same volume.
//!
//! `INNKEEPER_VOLUME_KILLS` says how often, and `INNKEEPER_VOLUME_SEED` which numbers chance yields.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use innkeeper_block::Layered;
use innkeeper_block::layered::Problem;
use innkeeper_protocol::{Command, Happening};
use innkeeper_tests::layers::{Layers, Parcel};
use nix::sys::signal::Signal;

use super::{Guest, PATIENCE, SIZE, id};

const SECTOR: u64 = 512;
/// Sectors that the payload writes to: so many from each of these on. It has the same numbers.
const WINDOW: u64 = 256;
const WINDOWS: [u64; 4] = [0, 65536 - 128, 131072 - 128, 163840 - WINDOW];
/// Each life begins with another multiple of this.
const LIFE: u64 = 1 << 24;
/// More layers are merged.
const MOST_LAYERS: usize = 8;

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
type Content = BTreeMap<u64, u64>;

fn read(volume: &Layered) -> Result<Content> {
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

/// Checks what a killed VMM has left: of what was written from number `begin` on, all is there up to `flushed`, on top of
/// what was there before; and of what came later, some.
fn check(before: &Content, found: &Content, begin: u64, flushed: Option<u64>) -> Result<()> {
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
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 11) % end
    }
}

/// The last number that the guest has said to be flushed.
fn last_flushed(transcript: &str) -> Result<Option<u64>> {
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

#[test]
fn a_killed_vmm_leaves_what_was_flushed() -> Result<()> {
    let number =
        |variable: &str, usual| std::env::var(variable).map_or(Ok(usual), |text| text.parse::<u64>());
    let kills = number("INNKEEPER_VOLUME_KILLS", 80)?;
    let mut random = Random(number("INNKEEPER_VOLUME_SEED", 1)?.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let directory = tempfile::tempdir()?;
    let mut layers = Layers::new(directory.path(), 1, SIZE)?;
    let mut content: Content = read(&layers.snapshot(1)?)?;
    let (mut flushes, mut seals, mut unsealed, mut merges) = (0, 0, 0, 0);
    let mut snapshots: BTreeMap<usize, Content> = BTreeMap::new();
    for life in 1..=kills {
        let begin = life * LIFE;
        let mut guest = Guest::start(&[&layers])?;
        let is_finished_first = random.below(2) == 0;
        if is_finished_first {
            guest.finish_seal(0)?;
        }
        guest.vmm.send(format!("n{begin:016x}"))?;
        let end = Instant::now() + Duration::from_millis(random.below(60));
        while random.below(3) == 0 {
            std::thread::sleep(Duration::from_millis(random.below(30)));
            let name = layers.push()?;
            let mut parcel = Parcel::default();
            let disks = vec![layers.seal(&id(0), &[&name], &mut parcel)?];
            guest.controller.call(Command::SealDisks { disks }, &parcel.descriptors())?;
            seals += 1;
            match random.below(3) {
                // It is killed before, in the middle, or later.
                0 => {}
                1 => guest.controller.say(Command::FinishSeal { id: id(0) })?,
                _ => {
                    guest.controller.say(Command::FinishSeal { id: id(0) })?;
                    let sealed = Happening::DiskSealed { id: id(0), failure: None };
                    guest.controller.expect(&sealed, PATIENCE)?;
                }
            }
        }
        // Disks are slow at times.
        let mut transcript = String::new();
        for _ in 0..random.below(6) {
            transcript += &guest.vmm.expect("\n", PATIENCE)?;
            transcript.push('\n');
        }
        std::thread::sleep(end.saturating_duration_since(Instant::now()));
        guest.vmm.signal(Signal::SIGKILL)?;
        guest.vmm.wait(PATIENCE)?;
        transcript += &guest.vmm.rest(PATIENCE)?;
        drop(guest);

        let what = || format!("life {life}, {} layers", layers.names.len());
        let flushed = last_flushed(&transcript).with_context(what)?;
        let said = transcript.matches('F').count();
        flushes += said;
        let report = layers.check()?;
        let is_expected = |problem: &Problem| matches!(problem, Problem::NotSealed | Problem::SpareHeader(_));
        for finding in &report.findings {
            // Nothing is torn when a process is killed: what it wrote is in the page cache.
            ensure!(is_expected(&finding.problem), "{report}");
            unsealed += 1;
        }
        let count = layers.names.len();
        let found = read(&layers.snapshot(count).with_context(what)?).with_context(what)?;
        check(&content, &found, begin, flushed).with_context(what)?;
        content = found;

        // What is sealed never changes any more.
        for (count, content) in &snapshots {
            ensure!(read(&layers.snapshot(*count)?)? == *content, "a snapshot of {count} layers has changed");
        }
        let is_sealed =
            |index: usize| report.layers.get(index).and_then(Option::as_ref).is_some_and(|l| l.is_sealed);
        let sealed = (0..count).take_while(|index| is_sealed(*index)).count();
        if sealed > 0 && !snapshots.contains_key(&sealed) {
            snapshots.insert(sealed, read(&layers.snapshot(sealed)?)?);
        }
        if count > MOST_LAYERS && sealed >= 3 {
            layers.merge(0..sealed - 1)?;
            merges += 1;
            snapshots.clear();
            ensure!(read(&layers.snapshot(layers.names.len())?)? == content, "merging has changed something");
        }
    }
    println!(
        "{kills} kills: {flushes} flushes were told, {seals} layers were put on top, {unsealed} findings of layers \
         without the mark of a sealed one, {merges} merges"
    );
    ensure!(flushes as u64 > kills, "the guest hardly came to anything: {flushes} flushes");
    Ok(())
}
