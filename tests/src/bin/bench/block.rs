//! `bench block`, `bench file` and `bench layers`: a disk's operations and bytes per second, as fio in the guest sees them.
//!
//! The disk is a file on a memory file system, all of it allocated, so that what is measured is the way to the host
//! and not a medium. It goes through the host's page cache with every VMM, and without one: the same fio uses the file
//! on the host. Then come disks in layers, beside raw files and QEMU's qcow2, both on top of a raw file that is full.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use innkeeper_block::layered::{Layer, LayerDescription, create_layer, import};
use innkeeper_tests::{Shell, image, path};
use tempfile::TempDir;
use uuid::Uuid;

use crate::figures::{Better, Figures, Line, Reach, as_good_as_qemu};
use crate::vmms::{Contender, Disk, Guest};

const CPUS: u32 = 2;
const MIB: u32 = 256;
const DISK_SIZE: usize = 256 << 20;
const BLOCK: u64 = 4096;

/// Seconds that each job takes, after half a second that does not count.
const SECONDS: u32 = 2;
const PATIENCE: Duration = Duration::from_secs(40);

/// The guest's clock may differ from ours by this much; it is the guest that says how long a job took.
const CLOCK_TOLERANCE: f64 = 0.02;

struct Job {
    name: &'static str,
    /// As fio calls it.
    pattern: &'static str,
    block: &'static str,
    depth: u32,
    unit: Unit,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Unit {
    Operations,
    MebiBytes,
}

const JOBS: [Job; 6] = [
    small("4 KiB random reads, depth 1, IOPS", "randread", 1),
    small("4 KiB random reads, depth 32, IOPS", "randread", 32),
    small("4 KiB random writes, depth 1, IOPS", "randwrite", 1),
    small("4 KiB random writes, depth 32, IOPS", "randwrite", 32),
    large("1 MiB reads in sequence, depth 4, MiB/s", "read"),
    large("1 MiB writes in sequence, depth 4, MiB/s", "write"),
];

const fn small(name: &'static str, pattern: &'static str, depth: u32) -> Job {
    Job { name, pattern, block: "4k", depth, unit: Unit::Operations }
}

const fn large(name: &'static str, pattern: &'static str) -> Job {
    Job { name, pattern, block: "1m", depth: 4, unit: Unit::MebiBytes }
}

/// What is written for the first time: blocks of a part of the disk that nothing was written to.
const FIRST: [Job; 2] = [
    small("4 KiB first random writes, depth 1, IOPS", "randwrite", 1),
    small("4 KiB first random writes, depth 32, IOPS", "randwrite", 32),
];

/// What was written to a disk before its guest is measured.
#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    /// All of it.
    Written,
    /// Nothing but what is below, if there is something.
    Fresh,
}

/// Where fio runs.
enum Place {
    Guest {
        shell: Shell,
        started: Instant,
        /// What the guest's clock said then.
        uptime: f64,
    },
    /// On the host, with this file.
    Host(PathBuf),
}

/// A place that is measured, and the disk there.
struct Running {
    place: Place,
    _files: TempDir,
    /// How much of a fresh disk is used, in bytes.
    used: u64,
    slice: u64,
}

/// What is measured, for the tables' titles.
fn guest() -> String {
    format!(
        "{CPUS} CPUs, {MIB} MiB, Debian's kernel, fio with io_uring and direct I/O; on the host io_uring through the \
         page cache"
    )
}

/// Raw files, beside other VMMs.
pub fn bench(runs: usize) -> Result<ExitCode> {
    println!("A disk, {}:\n", guest());
    let mut vmms = Contender::all();
    vmms.insert(2, Contender::QemuIothread);
    compare(&vmms, as_good_as_qemu, &JOBS, State::Written, runs)
}

/// Raw files, beside what the host itself gets out of them.
pub fn beside_host(runs: usize) -> Result<ExitCode> {
    println!(
        "A disk, {}; beside it the same file, used by fio on the host through the page cache:\n",
        guest()
    );
    let nothing = |_| None;
    compare(&[Contender::Innkeeper, Contender::HostFile], nothing, &JOBS, State::Written, runs)
}

/// Layers.
pub fn layers(runs: usize) -> Result<ExitCode> {
    println!("Layers beside raw files, all of it written, over a base that is full; {}:\n", guest());
    let vmms = [Contender::InnkeeperLayered, Contender::Innkeeper, Contender::QemuQcow2];
    let written = |vmm| match vmm {
        Contender::Innkeeper => Some(0.9),
        Contender::QemuQcow2 => Some(1.3),
        _ => None,
    };
    let layered = compare(&vmms, written, &JOBS, State::Written, runs)?;
    println!("\nThe same, written for the first time, over a base that is full; raw files are empty:\n");
    let first = |vmm| match vmm {
        Contender::Innkeeper => Some(0.5),
        Contender::QemuQcow2 => Some(1.3),
        _ => None,
    };
    let first = compare(&vmms, first, &FIRST, State::Fresh, runs)?;
    let is_reached = [layered, first].iter().all(|code| *code == ExitCode::SUCCESS);
    Ok(if is_reached { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Measures VMMs, of which the first is ours, and prints a table.
fn compare(vmms: &[Contender], reach: Reach, jobs: &[Job], state: State, runs: usize) -> Result<ExitCode> {
    let directory = tempfile::tempdir()?;
    let lines = jobs.iter().map(|job| Line { name: job.name, better: Better::Higher });
    let mut figures = Figures::new(vmms, lines).reaching(reach);
    // Of a fresh disk, each job has a part of its own.
    let slice = DISK_SIZE as u64 / ((runs + 1) * jobs.len()) as u64 / BLOCK * BLOCK;
    let mut guests = figures.take_turns(
        runs,
        |vmm| Running::new(vmm, directory.path(), state, slice),
        |guest, line| guest.run(&jobs[line], state),
    )?;
    for (vmm, guest) in vmms.iter().zip(&mut guests) {
        guest.place.check_clock().with_context(|| format!("the figures of {} mean nothing", vmm.name()))?;
    }
    Ok(figures.report())
}

/// Makes the disk of a VMM.
fn make_disk(vmm: Contender, directory: &Path, state: State) -> Result<Disk> {
    let raw = directory.join("disk.raw");
    let mut file = File::create(&raw)?;
    let is_base = matches!(vmm, Contender::InnkeeperLayered | Contender::QemuQcow2);
    if !is_base && state == State::Fresh {
        file.set_len(DISK_SIZE as u64)?;
        return Ok(Disk::Raw(raw));
    }
    let chunk = vec![0x5a; 1 << 20];
    for _ in 0..DISK_SIZE / chunk.len() {
        file.write_all(&chunk)?;
    }
    match vmm {
        Contender::QemuQcow2 => {
            let overlay = directory.join("disk.qcow2");
            let mut command = Command::new("qemu-img");
            command.args(["create", "-q", "-f", "qcow2", "-F", "raw", "-b", path(&raw), path(&overlay)]);
            ensure!(command.status().context("cannot run qemu-img")?.success(), "qemu-img failed");
            Ok(Disk::Qcow2(overlay))
        }
        Contender::InnkeeperLayered => {
            let open = |name: &str| -> Result<File> {
                let path = directory.join(name);
                Ok(OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?)
            };
            let (base, top) = (Uuid::from_u128(1), Uuid::from_u128(2));
            let size = DISK_SIZE as u64;
            let layer = Layer { data: open("disk.raw")?, map: open("base.map")? };
            import(layer, &LayerDescription { id: base, parent: None, size })?;
            let layer = Layer { data: open("top.data")?, map: open("top.map")? };
            create_layer(&layer, &LayerDescription { id: top, parent: Some(base), size })?;
            let names = ["disk.raw", "base.map", "top.data", "top.map"];
            let paths = names.map(|name| path(&directory.join(name)).to_owned());
            Ok(Disk::Layered(paths.join(":")))
        }
        _ => Ok(Disk::Raw(raw)),
    }
}

impl Running {
    fn new(vmm: Contender, directory: &Path, state: State, slice: u64) -> Result<Self> {
        let files = tempfile::tempdir()?;
        let disk = make_disk(vmm, files.path(), state)?;
        let place = match disk {
            Disk::Raw(file) if vmm == Contender::HostFile => Place::Host(file),
            disk => Place::boot(vmm, directory, disk, state)?,
        };
        Ok(Self { place, _files: files, used: 0, slice })
    }

    /// Runs a job; returns its figure.
    fn run(&mut self, job: &Job, state: State) -> Result<f64> {
        let Job { pattern, block, depth, .. } = job;
        let mut arguments = format!("{pattern} {block} {depth} {SECONDS}");
        if state == State::Fresh {
            arguments += &format!(" {} {}", self.used, self.slice);
            self.used += self.slice;
        }
        let line = self.place.measure(&arguments)?;
        figure(&line, job).with_context(|| format!("fio printed {line:?}"))
    }
}

impl Place {
    /// Boots a guest with `disk`.
    fn boot(vmm: Contender, directory: &Path, disk: Disk, state: State) -> Result<Self> {
        let is_raw = matches!(disk, Disk::Raw(_));
        let mut guest = Guest::of_image("bench", CPUS, MIB);
        guest.disk = Some(disk);
        let mut shell = vmm.boot(&guest, directory, None)?;
        let (uptime, started) = (uptime(&mut shell)?, Instant::now());
        if state == State::Written && !is_raw {
            let mebibytes = DISK_SIZE >> 20;
            let line = format!("dd if=/dev/zero of=/dev/vda bs=1M count={mebibytes} conv=fsync 2>/dev/null");
            shell.run_for(&line, PATIENCE)?;
        }
        Ok(Self::Guest { shell, started, uptime })
    }

    /// Runs `measure-disk`; returns what fio prints.
    fn measure(&mut self, arguments: &str) -> Result<String> {
        match self {
            Self::Guest { shell, .. } => shell.run_for(&format!("measure-disk {arguments}"), PATIENCE),
            Self::Host(file) => {
                let mut command = Command::new(image("bench", "measure-disk"));
                command.args(arguments.split(' ')).env("FILE", file).env("FIO", image("bench", "fio"));
                let output = command.output().context("cannot run measure-disk")?;
                let errors = String::from_utf8_lossy(&output.stderr);
                ensure!(output.status.success(), "fio on the host failed: {errors}");
                Ok(String::from_utf8_lossy(&output.stdout).into_owned())
            }
        }
    }

    fn check_clock(&mut self) -> Result<()> {
        let Self::Guest { shell, started, uptime: uptime_then } = self else { return Ok(()) };
        let inside = uptime(shell)? - *uptime_then;
        let speed = inside / started.elapsed().as_secs_f64();
        ensure!((speed - 1.0).abs() < CLOCK_TOLERANCE, "the guest's clock ran at {speed:.3} of the host's");
        Ok(())
    }
}

/// Seconds on the guest's clock.
fn uptime(shell: &mut Shell) -> Result<f64> {
    let text = shell.run("cat /proc/uptime")?;
    text.split(' ').next().and_then(|seconds| seconds.parse().ok()).context("no time in /proc/uptime")
}

/// The figure in fio's terse output, version 3: fields 7 and 8 are KiB/s and operations per second of reads, 48 and 49
/// those of writes, counted from 1; and field 5 is the error.
fn figure(output: &str, job: &Job) -> Option<f64> {
    let fields: Vec<&str> = output.lines().find(|line| line.starts_with("3;"))?.split(';').collect();
    if fields.get(4) != Some(&"0") {
        return None;
    }
    let first = if job.pattern.ends_with("read") { 6 } else { 47 };
    let value = |field: usize| fields.get(field)?.parse::<f64>().ok().filter(|value| *value > 0.0);
    match job.unit {
        Unit::Operations => value(first + 1),
        Unit::MebiBytes => Some(value(first)? / 1024.0),
    }
}
