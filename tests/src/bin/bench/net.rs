//! `bench net`: TCP between a guest and the host over a tap, timed on the host.
//!
//! Each guest has a network namespace of its own. `netprobe` in it measures, and the one in the guest only answers.

use std::fs::File;
use std::io::{Seek, Write};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result, ensure};
use innkeeper_tests::network::Namespace;
use innkeeper_tests::{build_directory, image, program};
use tempfile::NamedTempFile;

use crate::figures::{Better, Figures, Line};
use crate::vmms::{Contender, Guest};

const CPUS: u32 = 2;
const MIB: u32 = 256;
/// Seconds that each measurement takes.
pub const SECONDS: u32 = 2;
const ADDRESS: &str = "10.9.0.2";
pub const PORT: u16 = 7000;

struct Job {
    name: &'static str,
    /// As netprobe calls it.
    what: &'static str,
    /// What the figure is divided by.
    unit: f64,
}

pub const MIB_PER_SECOND: f64 = 1048576.0;

const JOBS: [Job; 3] = [
    Job { name: "TCP to the guest, MiB/s", what: "to", unit: MIB_PER_SECOND },
    Job { name: "TCP from the guest, MiB/s", what: "from", unit: MIB_PER_SECOND },
    Job { name: "round trips of 1 byte over TCP, per second", what: "turns", unit: 1.0 },
];

pub fn bench(runs: usize) -> Result<ExitCode> {
    println!(
        "A tap without vhost, {CPUS} CPUs, {MIB} MiB, Debian's kernel, one connection, timed on the host:\n"
    );
    let directory = tempfile::tempdir()?;
    let initrd = initrd_with_netprobe()?;
    let lines = JOBS.iter().map(|job| Line { name: job.name, better: Better::Higher });
    let mut figures = Figures::new(&Contender::all(), lines);
    figures.take_turns(
        runs,
        |vmm| {
            let network = Network::new()?;
            let mut guest = Guest::of_image("micro", CPUS, MIB);
            guest.initrd = Some(initrd.path().into());
            network.connect(&mut guest);
            let mut shell = vmm.boot(&guest, directory.path(), Some(&network.0))?;
            shell.run(&format!("/netprobe serve {PORT} >/dev/null 2>&1 & sleep 1"))?;
            Ok((shell, network))
        },
        |(_, network), line| network.measure(&JOBS[line]),
    )?;
    Ok(figures.report())
}

/// A network namespace with a tap for one guest.
pub struct Network(pub Namespace);

impl Network {
    pub fn new() -> Result<Self> {
        let namespace = Namespace::new()?;
        namespace.run(
            "ip tuntap add tap0 mode tap vnet_hdr && ip address add 10.9.0.1/24 dev tap0 && ip link set tap0 up",
        )?;
        Ok(Self(namespace))
    }

    /// Gives `guest` an interface in this network, and its address.
    pub fn connect(&self, guest: &mut Guest) {
        guest.tap = Some("tap0".into());
        guest.command_line += &format!(" micro.ip={ADDRESS}/24");
    }

    fn measure(&self, job: &Job) -> Result<f64> {
        let output = self
            .0
            .command(program("netprobe"))
            .args(["measure", job.what, &format!("{ADDRESS}:{PORT}"), &SECONDS.to_string()])
            .output()?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let text = String::from_utf8_lossy(&output.stdout);
        let value: f64 = text.trim().parse().with_context(|| format!("netprobe printed {text:?}"))?;
        Ok(value / job.unit)
    }
}

/// The initial RAM disk of `micro`, and behind it a second archive with `/netprobe`.
pub fn initrd_with_netprobe() -> Result<NamedTempFile> {
    let mut initrd = NamedTempFile::new()?;
    let size = std::io::copy(&mut File::open(image("micro", "initrd.img"))?, initrd.as_file_mut())?;
    // An archive begins at a multiple of four bytes.
    initrd.as_file().set_len(size.next_multiple_of(4))?;
    initrd.seek(std::io::SeekFrom::End(0))?;
    let mut cpio = Command::new("cpio")
        .args(["--quiet", "--create", "--format=newc", "--owner=0:0"])
        .current_dir(build_directory())
        .stdin(Stdio::piped())
        .stdout(initrd.as_file().try_clone()?)
        .spawn()
        .context("cpio is needed; scripts/setup installs it")?;
    cpio.stdin.take().context("a pipe")?.write_all(b"netprobe\n")?;
    ensure!(cpio.wait()?.success(), "cpio failed");
    Ok(initrd)
}
