//! Power cuts of a whole host, again and again, while a guest writes to a layered volume of it and the volume is sealed and
//! merged. Every flush that the guest was told of is there, what is sealed never changes, nothing is garbage, and the checker
//! agrees.
//!
//! The host is the lab. The volume's files are on an ext4 file system on the lab's disk, which is a file on this machine, and
//! `doomed-host` in the lab runs the VMM and says what the guest says. The power cut is a SIGKILL for QEMU. What it takes is
//! all that was in the lab's memory: what was written to files and not synced, as far as the lab's kernel has not written it
//! back on its own account, the file system's journal that was not committed, and requests to the disk that QEMU had not
//! carried out. In every second life the lab's kernel writes back nothing on its own account, and in the others all the time;
//! a page that nobody syncs, the canary, shows that the former are lost. What a cut does not take is what QEMU has carried
//! out of what the lab's kernel has written to its disk, be it flushed or not: it is in this machine's page cache. So this
//! shows that the VMM syncs what it has to, in the right order, and not that the lab's kernel does so with its disk.
//!
//! `INNKEEPER_POWER_CUTS` says how often, and `INNKEEPER_POWER_SEED` which numbers chance yields. When something is wrong, the
//! disk is kept.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use innkeeper_tests::sequence::{Content, LIFE, Random, check, from_text};
use innkeeper_tests::{Vmm, path, program};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// A lab on a busy machine, with a program that reads all layers.
const START_PATIENCE: Duration = Duration::from_secs(240);
/// Until a guest runs in it.
const GUEST_PATIENCE: Duration = Duration::from_secs(120);
/// Until all is gone.
const END_PATIENCE: Duration = Duration::from_secs(60);
/// Of scripts/lab when the lab itself fails, or dies.
const LAB_FAILED: i32 = 125;
/// In bytes.
const DISK_SIZE: u64 = 256 << 20;
/// A life has this long at most from the guest's first flush on, in ms.
const LONGEST_LIFE: u64 = 3000;

/// What a life has said until the power was cut.
#[derive(Debug, Default)]
struct Told {
    life: u64,
    /// The last number that was flushed, and how many flushes were told.
    flushed: Option<u64>,
    flushes: usize,
    /// The layers that were tops, and what was flushed before they were not any more.
    seals: BTreeMap<String, Option<u64>>,
    /// The last new top that was written down.
    top: Option<String>,
    /// The layers up to this one are marked as sealed.
    sealed: Option<String>,
    merges: usize,
    /// Whether the cut came between putting a layer on top and the word that all others are marked.
    is_amid_seal: bool,
}

impl Told {
    fn new(life: u64, transcript: &str) -> Result<Self> {
        let mut told = Self { life, ..Self::default() };
        for line in transcript.split_inclusive('\n') {
            // The last one may be cut off.
            let Some(line) = line.strip_suffix('\n') else { break };
            let words: Vec<&str> = line.split(' ').collect();
            match words[..] {
                ["writing"] => {}
                ["seal", old, new] => {
                    told.seals.insert(old.to_owned(), told.flushed);
                    told.top = Some(new.to_owned());
                    told.is_amid_seal = true;
                }
                ["sealed", id] => {
                    told.sealed = Some(id.to_owned());
                    told.is_amid_seal = false;
                }
                ["merged", _] => told.merges += 1,
                [word] if word.starts_with('F') => {
                    told.flushed = Some(u64::from_str_radix(&word[1..], 16).context("a number")?);
                    told.flushes += 1;
                }
                _ => bail!("the lab says {line:?}"),
            }
        }
        Ok(told)
    }
}

/// What is known of the volume.
#[derive(Debug, Default)]
struct Known {
    content: Content,
    /// What all layers below the top have held since they were that.
    snapshots: BTreeMap<String, Content>,
    canaries_lost: usize,
    notes: usize,
}

impl Known {
    /// Compares what the lab has found on its disk with what was there before the last life, and with what that has told.
    fn compare(&mut self, found: &str, told: Option<&Told>) -> Result<()> {
        let mut layers = Vec::new();
        for line in found.lines() {
            let (word, rest) = line.split_once(' ').with_context(|| format!("the lab says {line:?}"))?;
            match (word, told) {
                ("canary", Some(Told { life, .. })) => {
                    let is_lost = rest.parse::<u64>()? != *life;
                    ensure!(is_lost || life % 2 == 1, "the power cut has not taken what nobody had synced");
                    self.canaries_lost += usize::from(is_lost && told.is_some_and(|told| told.flushes > 0));
                }
                ("canary", None) => {}
                ("note", _) => self.notes += 1,
                ("layer", _) => {
                    let mut words = rest.splitn(3, ' ');
                    let mut next = || words.next().with_context(|| format!("the lab says {line:?}"));
                    layers.push((next()?.to_owned(), next()? == "sealed", from_text(next()?)?));
                }
                _ => bail!("{line}"),
            }
        }
        let position = |id: &String| layers.iter().position(|(other, ..)| other == id);
        let (content, lower) = match layers.split_last() {
            Some(((_, _, content), lower)) => (content.clone(), lower),
            None => bail!("the lab finds no layers"),
        };
        let Some(told) = told else {
            ensure!(content.values().all(|number| *number == 0), "a new volume is not zeroes");
            self.content = content;
            return Ok(());
        };
        if let Some(top) = &told.top {
            // It may be below a newer one that there was no time to tell of.
            let is_there = position(top).is_some_and(|index| index + 2 >= layers.len());
            ensure!(is_there, "layer {top} was written down, and is not one of the two topmost");
        }
        if let Some(last) = told.sealed.as_ref().and_then(position) {
            let open = layers[..=last].iter().find(|(_, is_sealed, _)| !is_sealed);
            ensure!(
                open.is_none(),
                "a layer was said to be sealed, and is not: {:?}",
                open.map(|(id, ..)| id)
            );
        }
        let begin = told.life * LIFE;
        let mut snapshots = BTreeMap::new();
        for (id, _, found) in lower {
            if let Some(before) = self.snapshots.get(id) {
                ensure!(
                    found == before,
                    "layer {id} was below others, and yet the volume up to it has changed"
                );
            } else {
                // If there was no time to tell of the seal, there was none either to tell of a flush after it.
                let flushed = told.seals.get(id).copied().unwrap_or(told.flushed);
                check(&self.content, found, begin, flushed).with_context(|| format!("up to layer {id}"))?;
            }
            snapshots.insert(id.clone(), found.clone());
        }
        check(&self.content, &content, begin, told.flushed)?;
        (self.content, self.snapshots) = (content, snapshots);
        Ok(())
    }
}

/// A lab with this disk. Life 0 ends by itself when it has said what is there.
fn start(disk: &Path, directory: &Path, number: u64, life: u64, seed: u64) -> Result<Vmm> {
    let mut lab = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/lab"));
    lab.args(["--memory", "1G", "--timeout", "480", "--patience", "60"])
        .args(["--disk", path(disk), "--", path(&program("doomed-host"))])
        .args([number, life, seed].map(|number| number.to_string()))
        .env("TMPDIR", directory);
    Vmm::spawn(&mut lab)
}

/// Kills QEMU, which is a child of scripts/lab. False: there is none any more.
fn cut(lab: &Vmm) -> Result<bool> {
    let pid = lab.pid();
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    for child in children.split_whitespace() {
        let name = std::fs::read_to_string(format!("/proc/{child}/comm")).unwrap_or_default();
        if name.starts_with("qemu-system") {
            kill(Pid::from_raw(child.parse()?), Signal::SIGKILL)?;
            return Ok(true);
        }
    }
    Ok(false)
}

/// Waits for scripts/lab when the lab is dead, and removes the log that it keeps of such.
fn bury(lab: &mut Vmm) -> Result<()> {
    let code = lab.wait(END_PATIENCE)?.code();
    let errors = lab.errors();
    ensure!(code == Some(LAB_FAILED), "the lab ended by itself, with status {code:?}: {errors}");
    let log = errors.trim_end().rsplit(' ').next().unwrap_or_default();
    if errors.contains("the lab died before the command ended") && log.ends_with(".log") {
        std::fs::remove_file(log)?;
    }
    Ok(())
}

#[test]
fn a_host_without_power_keeps_what_was_flushed() -> Result<()> {
    let number =
        |variable: &str, usual| std::env::var(variable).map_or(Ok(usual), |text| text.parse::<u64>());
    let cuts = number("INNKEEPER_POWER_CUTS", 2)?;
    let seed = number("INNKEEPER_POWER_SEED", 1)?;
    let disk = tempfile::NamedTempFile::new()?;
    let result = cut_again_and_again(disk.path(), cuts, seed);
    if result.is_err() {
        let (_, kept) = disk.keep()?;
        eprintln!("the lab's disk is kept: {}", kept.display());
    }
    result
}

fn cut_again_and_again(disk: &Path, cuts: u64, seed: u64) -> Result<()> {
    let mut random = Random::new(seed);
    std::fs::OpenOptions::new().write(true).open(disk)?.set_len(DISK_SIZE)?;
    let made = Command::new("/usr/sbin/mkfs.ext4").args(["-q", "-F"]).arg(disk).status()?;
    ensure!(made.success(), "mkfs.ext4 failed");

    // Whatever a lab that is killed leaves on this machine.
    let directory = tempfile::tempdir()?;
    let mut known = Known::default();
    let mut told = None;
    let (mut starts, mut failures) = (0, 0);
    let (mut flushes, mut seals, mut merges, mut amid_seals) = (0, 0, 0, 0);
    // The last life only looks.
    for life in (1..=cuts).chain([0]) {
        let what = || match life {
            0 => format!("after {cuts} cuts"),
            life => format!("life {life} of {cuts}, after {} cuts", life - 1),
        };
        let mut is_second = false;
        let (mut lab, found) = loop {
            starts += 1;
            let mut lab = start(disk, directory.path(), starts, life, random.below(1 << 32))?;
            match lab.expect("begun\n", START_PATIENCE) {
                Ok(found) => break (lab, found),
                // The emulation's doing. Nothing has changed yet, except that the file system was mounted.
                Err(error) if !is_second && lab.wait(END_PATIENCE)?.code() == Some(LAB_FAILED) => {
                    println!("{}: the lab died; once more, in another: {error:#}", what());
                    failures += 1;
                    is_second = true;
                }
                Err(error) => return Err(error.context(lab.errors()).context(what())),
            }
        };
        known.compare(&found, told.as_ref()).with_context(what)?;
        if life == 0 {
            lab.wait_for_code(0, END_PATIENCE)?;
            break;
        }

        // Some may never come to write, and the others have been told of a flush.
        let mut transcript = String::new();
        if life % 8 != 7 {
            if let Ok(before) = lab.expect("F", GUEST_PATIENCE) {
                transcript = before + "F";
            }
            std::thread::sleep(Duration::from_millis(random.below(LONGEST_LIFE)));
        } else {
            std::thread::sleep(Duration::from_millis(random.below(LONGEST_LIFE / 2)));
        }
        // A lab that has died already has had its power cut.
        cut(&lab).with_context(what)?;
        bury(&mut lab).with_context(what)?;
        transcript += &lab.rest(END_PATIENCE)?;
        let now = Told::new(life, &transcript).with_context(what)?;
        println!(
            "life {life}: {} flushes, {} seals, {} merges{}",
            now.flushes,
            now.seals.len(),
            now.merges,
            if now.is_amid_seal { ", cut amid a seal" } else { "" }
        );
        flushes += now.flushes;
        seals += now.seals.len();
        merges += now.merges;
        amid_seals += usize::from(now.is_amid_seal);
        told = Some(now);
    }
    println!(
        "{cuts} power cuts: {flushes} flushes were told, {seals} layers were put on top and {amid_seals} cuts came before \
         such were all marked, {merges} merges, {} notes of the checker, {} canaries were lost, {failures} labs did not start",
        known.notes, known.canaries_lost
    );
    ensure!(flushes as u64 > cuts, "the guest hardly came to anything: {flushes} flushes");
    Ok(())
}
