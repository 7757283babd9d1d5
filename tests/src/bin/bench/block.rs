//! `bench block`: a disk's operations and bytes per second, as fio in the guest sees them.
//!
//! The disk is a file on a memory file system, all of it allocated, so that what is measured is the way to the host
//! and not a medium. It goes through the host's page cache with every VMM.

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use innkeeper_tests::Shell;
use tempfile::NamedTempFile;

use crate::figures::{Better, Figures, Line};
use crate::vmms::{Contender, Guest};

const CPUS: u32 = 2;
const MIB: u32 = 256;
const DISK_SIZE: usize = 256 << 20;

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

/// A guest that runs, and what it runs on.
struct Running {
    shell: Shell,
    _disk: NamedTempFile,
    started: Instant,
    /// What the guest's clock said then.
    uptime: f64,
}

pub fn bench(runs: usize) -> Result<ExitCode> {
    println!(
        "A disk, {CPUS} CPUs, {MIB} MiB, Debian's kernel, fio with io_uring and direct I/O; on the host io_uring \
         through the page cache:\n"
    );
    let directory = tempfile::tempdir()?;
    let mut vmms = Contender::all();
    vmms.insert(2, Contender::QemuIothread);
    let lines = JOBS.iter().map(|job| Line { name: job.name, better: Better::Higher });
    let mut figures = Figures::new(&vmms, lines);
    let mut guests = figures.take_turns(
        runs,
        |vmm| Running::new(vmm, directory.path()),
        |guest, line| guest.run(&JOBS[line]),
    )?;
    for (vmm, guest) in vmms.iter().zip(&mut guests) {
        guest.check_clock().with_context(|| format!("the figures of {} mean nothing", vmm.name()))?;
    }
    Ok(figures.report())
}

impl Running {
    fn new(vmm: Contender, directory: &Path) -> Result<Self> {
        let mut disk = NamedTempFile::new()?;
        let chunk = vec![0x5a; 1 << 20];
        for _ in 0..DISK_SIZE / chunk.len() {
            disk.write_all(&chunk)?;
        }
        let mut guest = Guest::of_image("bench", CPUS, MIB);
        guest.disk = Some(disk.path().into());
        let mut shell = vmm.boot(&guest, directory, None)?;
        let uptime = uptime(&mut shell)?;
        Ok(Self { shell, _disk: disk, started: Instant::now(), uptime })
    }

    /// Runs a job; returns its figure.
    fn run(&mut self, job: &Job) -> Result<f64> {
        let Job { pattern, block, depth, .. } = job;
        let line =
            self.shell.run_for(&format!("measure-disk {pattern} {block} {depth} {SECONDS}"), PATIENCE)?;
        figure(&line, job).with_context(|| format!("fio printed {line:?}"))
    }

    fn check_clock(&mut self) -> Result<()> {
        let inside = uptime(&mut self.shell)? - self.uptime;
        let outside = self.started.elapsed().as_secs_f64();
        let speed = inside / outside;
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
