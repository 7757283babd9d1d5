//! A host that is made to lose its power: in the lab, it says what is on a layered volume on the lab's disk, and then has a
//! guest write to it and seals it, until the lab is no more. `tests/tests/power.rs` cuts the power, and knows what has to be
//! there. What this says on standard output, a line each:
//!
//! - `canary N`: the last life whose canary is on the disk. It is written at the beginning of a life and never synced.
//! - `damage` or `note`, and what the checker has found.
//! - `layer ID sealed|open N…`, from the bottom: a layer, and what the sequence has in the volume of all layers up to it.
//! - `begun`: until here nothing was changed.
//! - `writing`: from here on the guest writes, and each `F` with a number is a flush that it was told to be over.
//! - `seal OLD NEW`: the layer NEW is written down as one of the volume's, and will now be put on top of OLD.
//! - `sealed ID`: that layer and all below it are marked as sealed.
//! - `merged ID`: that layer is written down in the place of some, among them one with its id.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command as Process;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use innkeeper_protocol::{Command, ConsoleKind, Happening};
use innkeeper_tests::Vmm;
use innkeeper_tests::controller::{Boot, Controller, Machine, serve};
use innkeeper_tests::layers::{Layers, Parcel};
use innkeeper_tests::sequence::{LIFE, Random, read, to_text};

/// Of everything in the lab: its disk is a file on a machine that may be busy.
const PATIENCE: Duration = Duration::from_secs(60);
/// As the payload `disk` has it.
const SIZE: u64 = 80 << 20;
/// More layers are merged.
const MOST_LAYERS: usize = 6;
const ID: &str = "vol-0";
/// In a file of a whole block that is there from the first life on, so that writing it needs nothing of the file system but to
/// write back the page.
const CANARY_SIZE: usize = 4096;

fn main() -> Result<()> {
    let arguments: Vec<u64> = std::env::args().skip(1).map(|text| text.parse()).collect::<Result<_, _>>()?;
    let [start, life, seed] = arguments[..] else {
        bail!("usage: doomed-host START LIFE SEED, in the lab; life 0 only says what is there")
    };
    ensure!(std::env::var_os("INNKEEPER_LAB").is_some(), "this is to be run in the lab only, with a disk");
    let directory = tempfile::tempdir()?;
    let mount = Process::new("mount").args(["-t", "ext4", "/dev/vda"]).arg(directory.path()).status()?;
    ensure!(mount.success(), "the disk cannot be mounted");

    let made = u128::from(start) << 16;
    let is_new = !volume(directory.path()).exists();
    let mut layers =
        if is_new { begin(directory.path())? } else { Layers::load(&volume(directory.path()), made)? };
    say(&layers, directory.path())?;
    println!("begun");
    if life > 0 { live(&mut layers, directory.path(), life, Random::new(seed)) } else { Ok(()) }
}

fn volume(directory: &Path) -> PathBuf {
    directory.join("volume")
}

/// A new volume and a new canary, which are there as a whole or not at all.
fn begin(directory: &Path) -> Result<Layers> {
    let new = directory.join("new");
    if new.exists() {
        std::fs::remove_dir_all(&new)?;
    }
    std::fs::create_dir(&new)?;
    let canary = File::create(directory.join("canary"))?;
    canary.write_all_at(&canary_of(0), 0)?;
    canary.sync_all()?;
    Layers::new(&new, 1, SIZE)?.save()?;
    std::fs::rename(&new, volume(directory))?;
    File::open(directory)?.sync_all()?;
    Layers::load(&volume(directory), 1)
}

fn canary_of(life: u64) -> [u8; CANARY_SIZE] {
    let mut bytes = [0; CANARY_SIZE];
    for word in bytes.as_chunks_mut().0 {
        *word = life.to_le_bytes();
    }
    bytes
}

/// Says what a crash has left.
fn say(layers: &Layers, directory: &Path) -> Result<()> {
    let mut canary = [0; CANARY_SIZE];
    File::open(directory.join("canary"))?.read_exact_at(&mut canary, 0)?;
    let [first, ..] = canary.as_chunks().0 else { bail!("the canary is empty") };
    println!("canary {}", u64::from_le_bytes(*first));
    let report = layers.check()?;
    for finding in &report.findings {
        let kind = if finding.problem.is_damage() { "damage" } else { "note" };
        println!("{kind} layer {}: {}", finding.layer, finding.problem);
    }
    for (index, (_, id)) in layers.names.iter().enumerate() {
        let what = || format!("the volume of {} layers, of {}", index + 1, layers.names.len());
        let is_sealed =
            report.layers.get(index).and_then(Option::as_ref).is_some_and(|layer| layer.is_sealed);
        let content = layers.snapshot(index + 1).and_then(|volume| read(&volume)).with_context(what)?;
        println!("layer {id} {} {}", if is_sealed { "sealed" } else { "open" }, to_text(&content));
    }
    Ok(())
}

/// Lets a guest write until the power is cut.
fn live(layers: &mut Layers, directory: &Path, life: u64, mut random: Random) -> Result<()> {
    // Without orders the kernel writes nothing back in even lives, and in odd ones everything all the time: the state after a
    // cut is what was synced, or has any part of what was not. A disk that has written nothing for some seconds has no share
    // of the memory that may be dirty, unless it is given one, and then the kernel would write back at once.
    let set = |path: &str, value: &str| std::fs::write(path, value).with_context(|| path.to_owned());
    let centiseconds = if life.is_multiple_of(2) { "360000" } else { "1" };
    set("/proc/sys/vm/dirty_expire_centisecs", centiseconds)?;
    set("/proc/sys/vm/dirty_writeback_centisecs", centiseconds)?;
    set("/sys/block/vda/bdi/min_ratio", "50")?;
    let canary = OpenOptions::new().write(true).open(directory.join("canary"))?;
    canary.write_all_at(&canary_of(life), 0)?;

    let (mut vmm, mut controller, streams) = serve()?;
    controller.configure(&Machine::new(Boot::payload("disk")), None)?;
    let slot = layers.attach(&mut controller, ID)?;
    controller.say(Command::Start)?;
    controller.attach_console(ConsoleKind::Serial, &streams, 0)?;
    controller.subscribe()?;
    drop(streams);
    vmm.expect("ready\n", PATIENCE)?;
    vmm.send(format!("d0{}", char::from(b'A' + slot)))?;
    let answer = vmm.expect("\n", PATIENCE)?;
    ensure!(answer == "00", "the guest does not get its disk: {answer}");
    if random.below(2) == 0 {
        finish_seal(layers, &mut controller)?;
    }
    vmm.send(format!("n{:016x}", life * LIFE))?;
    println!("writing");
    std::thread::spawn(move || {
        let error = hand_on(&mut vmm);
        eprintln!("the guest's console: {error:#}");
        std::process::exit(1);
    });
    // In every third life it is sealed all the time.
    let pause = if life.is_multiple_of(3) { 1 } else { 500 };
    loop {
        std::thread::sleep(Duration::from_millis(random.below(pause)));
        seal(layers, &mut controller, &mut random)?;
    }
}

/// Hands on what the guest says, line by line, until there is an error.
fn hand_on(vmm: &mut Vmm) -> anyhow::Error {
    loop {
        match vmm.expect("\n", PATIENCE) {
            Ok(line) if line.starts_with('F') => println!("{line}"),
            Ok(line) => return anyhow::anyhow!("the guest says {line:?}; {}", vmm.errors()),
            Err(error) => return error.context(vmm.errors()),
        }
    }
}

/// Puts a new layer on top, and may finish that, and merge layers.
fn seal(layers: &mut Layers, controller: &mut Controller, random: &mut Random) -> Result<()> {
    let old = layers.names.last().context("there are no layers")?.1;
    let name = layers.push()?;
    layers.save()?;
    let new = layers.names.last().context("there are no layers")?.1;
    println!("seal {old} {new}");
    let mut parcel = Parcel::default();
    let disks = vec![layers.seal(ID, &[&name], &mut parcel)?];
    controller.call(Command::SealDisks { disks }, &parcel.descriptors())?;
    // With very many layers it is time to merge.
    let is_finished = layers.names.len() > 2 * MOST_LAYERS;
    match random.below(4) {
        _ if is_finished => {}
        0 => return Ok(()),
        1 => return controller.say(Command::FinishSeal { id: ID.into() }),
        _ => {}
    }
    if !finish_seal(layers, controller)? || layers.names.len() <= MOST_LAYERS {
        return Ok(());
    }
    let count = layers.names.len() - 2;
    let merged = layers.merge(0..count)?;
    layers.save()?;
    let id = layers.names.first().context("there are no layers")?.1;
    println!("merged {id}");
    let mut parcel = Parcel::default();
    let merged = parcel.add(layers.open(&merged, false)?);
    let replace = Command::ReplaceLayers { id: ID.into(), first: 0, count: u32::try_from(count)?, merged };
    controller.call(replace, &parcel.descriptors())?;
    layers.delete_others()
}

/// Has all layers below the top marked as sealed; returns whether they are.
fn finish_seal(layers: &Layers, controller: &mut Controller) -> Result<bool> {
    controller.say(Command::FinishSeal { id: ID.into() })?;
    controller.expect(&Happening::DiskSealed { id: ID.into(), failure: None }, PATIENCE)?;
    // The event may be that of an order that was given before.
    let status = controller.status()?;
    let device = status.devices.iter().find(|device| device.id == ID).context("the disk is gone")?;
    if device.unsealed > 0 {
        return Ok(false);
    }
    if let [.., (_, sealed), _] = &layers.names[..] {
        println!("sealed {sealed}");
    }
    Ok(true)
}
