//! `bench launch` and `bench boot`: how fast a guest is there, from the start of the VMM's process.

use std::io::Read;
use std::os::fd::AsFd;
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use innkeeper_tests::payload;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::figures::median;
use crate::memory::Resident;
use crate::vmms::{Contender, Guest};

const PATIENCE: Duration = Duration::from_secs(60);
/// The VMM's own memory at 1 CPU and 128 MiB may be this large, in KiB.
const MEMORY_LIMIT: f64 = 5120.0;

/// To the first byte of a payload that does nothing else.
pub fn bare_payload(runs: usize) -> Result<ExitCode> {
    let guest = Guest {
        kernel: payload("bench/hello"),
        initrd: None,
        command_line: "console=ttyS0".into(),
        cpus: 1,
        mib: 128,
        disk: None,
        tap: None,
        mac: String::new(),
    };
    println!("From the start of the VMM to the first byte of a bare payload, 1 CPU, 128 MiB:\n");
    compare(&guest, "!", runs, 0.10)
}

/// To the init of a stock kernel.
pub fn stock_kernel(runs: usize) -> Result<ExitCode> {
    println!("From the start of the VMM to init, Debian's kernel, 1 CPU, 128 MiB:\n");
    compare(&Guest::of_image("micro", 1, 128), "micro: init", runs, 0.42)
}

/// Measures all VMMs in turns, until their consoles print `mark`, and prints a table. Fails if ours takes more than
/// `reach` of QEMU's time, or too much memory.
fn compare(guest: &Guest, mark: &str, runs: usize, reach: f64) -> Result<ExitCode> {
    let directory = tempfile::tempdir()?;
    let vmms = Contender::all();
    let commands = vmms.iter().map(|vmm| vmm.command(guest, directory.path())).collect::<Result<Vec<_>>>()?;
    let mut samples: Vec<Vec<Sample>> = vmms.iter().map(|_| Vec::new()).collect();
    for round in 0..=runs {
        for ((vmm, command), samples) in vmms.iter().zip(&commands).zip(&mut samples) {
            let sample = measure(command, mark, guest.mib)
                .with_context(|| format!("{} did not boot the guest", vmm.name()))?;
            // The first round warms the page cache.
            if round > 0 {
                samples.push(sample);
            }
        }
    }
    let middle = |samples: &[Sample], value: fn(&Sample) -> f64| {
        median(&samples.iter().map(value).collect::<Vec<_>>())
    };
    let times: Vec<f64> =
        samples.iter().map(|samples| middle(samples, |sample| sample.milliseconds)).collect();
    let memory: Vec<f64> =
        samples.iter().map(|samples| middle(samples, |sample| sample.memory as f64)).collect();
    println!(
        "| VMM | median ms | min | max | of QEMU | VMM memory KiB |\n| --- | --- | --- | --- | --- | --- |"
    );
    for (at, vmm) in vmms.iter().enumerate() {
        let all = samples[at].iter().map(|sample| sample.milliseconds);
        let (min, max) = all.fold((f64::MAX, 0f64), |(min, max), time| (min.min(time), max.max(time)));
        let (name, time, ratio) = (vmm.name(), times[at], times[at] / times[1]);
        println!("| {name} | {time:.1} | {min:.1} | {max:.1} | {ratio:.2} | {:.0} |", memory[at]);
    }
    println!("\n{runs} runs each, in turns. To reach: {reach:.2} of QEMU, {MEMORY_LIMIT} KiB.");
    let ratio = times[0] / times[1];
    if ratio > reach || memory[0] > MEMORY_LIMIT {
        println!("Missed: {ratio:.3} of QEMU, {:.0} KiB.", memory[0]);
        return Ok(ExitCode::FAILURE);
    }
    Ok(ExitCode::SUCCESS)
}

#[derive(Clone, Copy)]
struct Sample {
    milliseconds: f64,
    /// KiB of the VMM's own, once the guest is there.
    memory: u64,
}

/// Starts a VMM, waits for the mark, and ends it.
fn measure(command: &[String], mark: &str, mib: u32) -> Result<Sample> {
    let (program, arguments) = command.split_first().context("a command")?;
    let errors = tempfile::NamedTempFile::new()?;
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(errors.reopen()?);
    let started = Instant::now();
    let mut running = Running(command.spawn()?);
    let mut stdout = running.0.stdout.take().context("a pipe")?;
    let mut seen = Vec::new();
    let mut buffer = [0; 4096];
    while !seen.windows(mark.len()).any(|window| window == mark.as_bytes()) {
        let rest = PATIENCE.saturating_sub(started.elapsed());
        let mut output = [PollFd::new(stdout.as_fd(), PollFlags::POLLIN)];
        let is_readable = poll(&mut output, PollTimeout::try_from(rest).unwrap_or(PollTimeout::MAX))? > 0;
        let count = if is_readable { stdout.read(&mut buffer)? } else { 0 };
        if count == 0 {
            let errors = std::fs::read_to_string(errors.path())?;
            bail!("its console: {}\nits errors: {errors}", String::from_utf8_lossy(&seen));
        }
        seen.extend(&buffer[..count]);
    }
    let milliseconds = started.elapsed().as_secs_f64() * 1e3;
    Ok(Sample { milliseconds, memory: Resident::of(running.0.id(), mib)?.vmm })
}

/// A VMM that does not outlive its measurement.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
