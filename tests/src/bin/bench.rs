//! `bench boot` and `bench launch`: how fast a guest is there, timed from outside, beside other VMMs.
//!
//! The VMMs take turns, so that a machine whose speed drifts is fair to all. The peers are QEMU's microvm, and
//! Firecracker and Cloud Hypervisor if $FIRECRACKER and $CLOUD_HYPERVISOR name their programs.

use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use innkeeper_tests::{image, path, program};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// What to boot, and what shows that it has.
struct Guest {
    kernel: PathBuf,
    initrd: Option<PathBuf>,
    command_line: &'static str,
    mib: u32,
    /// The console prints this when the guest is there.
    mark: &'static str,
}

const PATIENCE: Duration = Duration::from_secs(60);
/// The VMM's own memory at 1 CPU and 128 MiB may be this large, in KiB.
const MEMORY_LIMIT: u64 = 5 << 10;
/// The same for every VMM: what ours uses by default, and the reset that all of them have.
const COMMAND_LINE: &str = "console=ttyS0 quiet panic=1 reboot=t 8250.nr_uarts=1 tsc=reliable random.trust_cpu=on \
                            cryptomgr.notests i8042.noaux i8042.nokbd";

fn main() -> Result<ExitCode> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (name, runs) = match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [name] => (name, None),
        [name, runs] => (name, Some(runs.parse().context("RUNS is not a number")?)),
        _ => bail!("usage: bench boot|launch [RUNS]"),
    };
    match name {
        "launch" => {
            let guest = Guest {
                kernel: innkeeper_tests::payload("bench/hello"),
                initrd: None,
                command_line: "console=ttyS0",
                mib: 128,
                mark: "!",
            };
            println!("From the start of the VMM to the first byte of a bare payload, 1 CPU, 128 MiB:\n");
            compare(&guest, runs.unwrap_or(21), 0.10)
        }
        "boot" => {
            let guest = Guest {
                kernel: image("micro", "vmlinux"),
                initrd: Some(image("micro", "initrd.img")),
                command_line: COMMAND_LINE,
                mib: 128,
                mark: "micro: init",
            };
            println!("From the start of the VMM to init, Debian's kernel, 1 CPU, 128 MiB:\n");
            compare(&guest, runs.unwrap_or(5), 0.42)
        }
        _ => bail!("there is no bench {name:?}: boot or launch"),
    }
}

/// Measures all VMMs in turns and prints a table. Fails if ours takes more than `reach` of QEMU's time, or too
/// much memory.
fn compare(guest: &Guest, runs: usize, reach: f64) -> Result<ExitCode> {
    let directory = tempfile::tempdir()?;
    let vmms = vmms(guest, directory.path())?;
    let mut samples: Vec<Vec<Sample>> = vmms.iter().map(|_| Vec::new()).collect();
    for round in 0..=runs {
        for ((name, command), samples) in vmms.iter().zip(&mut samples) {
            let sample = measure(command, guest).with_context(|| format!("{name} did not boot the guest"))?;
            // The first round warms the page cache.
            if round > 0 {
                samples.push(sample);
            }
        }
    }
    let medians: Vec<Sample> = samples.iter().map(|samples| median(samples)).collect();
    let (ours, qemu) = (medians[0], medians[1]);
    println!(
        "| VMM | median ms | min | max | of QEMU | VMM memory KiB |\n| --- | --- | --- | --- | --- | --- |"
    );
    for (((name, _), samples), median) in vmms.iter().zip(&samples).zip(&medians) {
        let times = samples.iter().map(|sample| sample.milliseconds);
        let (min, max) = times.fold((f64::MAX, 0f64), |(min, max), time| (min.min(time), max.max(time)));
        let ratio = median.milliseconds / qemu.milliseconds;
        let time = median.milliseconds;
        println!("| {name} | {time:.1} | {min:.1} | {max:.1} | {ratio:.2} | {} |", median.memory);
    }
    let ratio = ours.milliseconds / qemu.milliseconds;
    println!("\n{runs} runs each, in turns. To reach: {reach:.2} of QEMU, {MEMORY_LIMIT} KiB.");
    if ratio > reach || ours.memory > MEMORY_LIMIT {
        println!("Missed: {ratio:.3} of QEMU, {} KiB.", ours.memory);
        return Ok(ExitCode::FAILURE);
    }
    Ok(ExitCode::SUCCESS)
}

#[derive(Clone, Copy)]
struct Sample {
    milliseconds: f64,
    /// KiB of the VMM's own, in proportion (PSS), once the guest is there.
    memory: u64,
}

fn median(samples: &[Sample]) -> Sample {
    let middle = |values: &mut Vec<f64>| {
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    };
    Sample {
        milliseconds: middle(&mut samples.iter().map(|sample| sample.milliseconds).collect()),
        memory: middle(&mut samples.iter().map(|sample| sample.memory as f64).collect()) as u64,
    }
}

/// Starts a VMM, waits for the mark, and ends it.
fn measure(command: &[String], guest: &Guest) -> Result<Sample> {
    let (program, arguments) = command.split_first().context("a command")?;
    let errors = tempfile::NamedTempFile::new()?;
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(errors.reopen()?);
    let started = Instant::now();
    let mut running = Running(command.spawn()?);
    let mut stdout = running.0.stdout.take().context("a pipe")?;
    let mut seen = Vec::new();
    let mut buffer = [0; 4096];
    while !seen.windows(guest.mark.len()).any(|window| window == guest.mark.as_bytes()) {
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
    Ok(Sample { milliseconds, memory: own_memory(running.0.id(), guest.mib)? })
}

/// A VMM that does not outlive its measurement.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The process's proportional share of memory, less that of the guest: the one mapping of the guest's size.
fn own_memory(pid: u32, guest_mib: u32) -> Result<u64> {
    let maps = std::fs::read_to_string(format!("/proc/{pid}/smaps"))?;
    let guest_kib = u64::from(guest_mib) << 10;
    let field = |line: &str, name: &str| {
        line.strip_prefix(name).and_then(|rest| rest.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok())
    };
    let (mut size, mut total, mut found) = (0, 0, false);
    for line in maps.lines() {
        if let Some(value) = field(line, "Size:") {
            size = value;
        } else if let Some(value) = field(line, "Pss:") {
            // A VMM may have put a few pages of its own beside the guest's memory.
            match (guest_kib..guest_kib + 1024).contains(&size) {
                true => found = true,
                false => total += value,
            }
        }
    }
    ensure!(found, "no mapping of {guest_mib} MiB in process {pid}");
    Ok(total)
}

/// The command lines of the VMMs there are; ours is the first and QEMU the second.
fn vmms(guest: &Guest, directory: &Path) -> Result<Vec<(&'static str, Vec<String>)>> {
    let kernel = path(&guest.kernel);
    let initrd = guest.initrd.as_deref().map(path);
    let (line, mib) = (guest.command_line, guest.mib);
    let words = |text: &str| text.split(' ').map(String::from).collect::<Vec<_>>();

    let mut ours =
        words(&format!("{} run --memory {mib}M --kernel {kernel}", path(&program("innkeeper-vmm"))));
    ours.extend(["--cmdline".into(), line.into()]);
    let mut qemu = words(&format!(
        "qemu-system-x86_64 -M microvm,x-option-roms=off,pit=off,pic=off,rtc=off -accel kvm -cpu host,arch-capabilities=off -smp 1 -m {mib} \
         -nodefaults -no-user-config -display none -serial stdio -kernel {kernel}"
    ));
    qemu.extend(["-append".into(), line.into()]);
    if let Some(initrd) = initrd {
        ours.extend(["--initrd".into(), initrd.into()]);
        qemu.extend(["-initrd".into(), initrd.into()]);
    }
    let mut vmms = vec![("Innkeeper", ours), ("QEMU microvm", qemu)];

    if let Ok(firecracker) = std::env::var("FIRECRACKER") {
        let configuration = directory.join("firecracker.json");
        let initrd = initrd.map(|initrd| format!(r#", "initrd_path": "{initrd}""#)).unwrap_or_default();
        let boot = format!(r#"{{"kernel_image_path": "{kernel}", "boot_args": "{line}"{initrd}}}"#);
        let machine = format!(r#"{{"vcpu_count": 1, "mem_size_mib": {mib}}}"#);
        let json = format!(r#"{{"boot-source": {boot}, "drives": [], "machine-config": {machine}}}"#);
        std::fs::File::create(&configuration)?.write_all(json.as_bytes())?;
        let command = format!("{firecracker} --no-api --no-seccomp --config-file {}", path(&configuration));
        vmms.push(("Firecracker", words(&command)));
    }
    if let Ok(cloud_hypervisor) = std::env::var("CLOUD_HYPERVISOR") {
        let mut command = words(&format!(
            "{cloud_hypervisor} --seccomp false --cpus boot=1 --memory size={mib}M --serial tty --console off \
             --kernel {kernel}"
        ));
        command.extend(["--cmdline".into(), line.into()]);
        if let Some(initrd) = initrd {
            command.extend(["--initramfs".into(), initrd.into()]);
        }
        vmms.push(("Cloud Hypervisor", command));
    }
    Ok(vmms)
}
