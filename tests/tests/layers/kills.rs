//! A VMM that is killed again and again while its guest writes, and is sealed in between: every flush that the guest has
//! seen is there, nothing is garbage, and the next VMM goes on with the same volume.
//!
//! `INNKEEPER_VOLUME_KILLS` says how often, and `INNKEEPER_VOLUME_SEED` which numbers chance yields.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use innkeeper_block::layered::Problem;
use innkeeper_protocol::{Command, Happening};
use innkeeper_tests::layers::{Layers, Parcel};
use innkeeper_tests::sequence::{Content, LIFE, Random, check, last_flushed, read};
use nix::sys::signal::Signal;

use super::{Guest, PATIENCE, SIZE, id};

/// More layers are merged.
const MOST_LAYERS: usize = 8;

#[test]
fn a_killed_vmm_leaves_what_was_flushed() -> Result<()> {
    let number =
        |variable: &str, usual| std::env::var(variable).map_or(Ok(usual), |text| text.parse::<u64>());
    let kills = number("INNKEEPER_VOLUME_KILLS", 80)?;
    let mut random = Random::new(number("INNKEEPER_VOLUME_SEED", 1)?);
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
