//! `bench memory`: what an idle guest with a disk and a network interface costs the host.

use std::process::ExitCode;

use anyhow::{Result, ensure};

use crate::figures::{Better, Figures, Line};
use crate::net::Network;
use crate::vmms::{Contender, Disk, Guest};

const MIB: u32 = 128;
/// Nothing of it is read or written, except by the kernel when it looks for partitions.
const DISK_SIZE: u64 = 64 << 20;

const LINES: [Line; 2] = [
    Line { name: "the VMM's own memory, KiB", better: Better::Lower },
    Line { name: "the guest's memory that it has touched, KiB", better: Better::Lower },
];

pub fn bench(runs: usize) -> Result<ExitCode> {
    println!(
        "Resident memory (PSS) with an idle guest, 1 CPU, {MIB} MiB, a disk, a network interface, Debian's kernel:\n"
    );
    let directory = tempfile::tempdir()?;
    let disk = tempfile::NamedTempFile::new()?;
    disk.as_file().set_len(DISK_SIZE)?;
    let network = Network::new()?;
    let mut guest = Guest::of_image("micro", 1, MIB);
    guest.disk = Some(Disk::Raw(disk.path().into()));
    network.connect(&mut guest);

    let vmms = Contender::all();
    let mut figures = Figures::new(&vmms, LINES);
    // Memory needs no warming up.
    for _ in 0..runs {
        for (vmm, contender) in vmms.iter().enumerate() {
            let mut shell = contender.boot(&guest, directory.path(), Some(&network.0))?;
            // What loads after `ready` has come by then.
            shell.run("sleep 3")?;
            let resident = Resident::of(shell.vmm.pid(), MIB)?;
            figures.add(vmm, 0, resident.vmm as f64);
            figures.add(vmm, 1, resident.guest as f64);
        }
    }
    Ok(figures.report())
}

/// A process's proportional share of memory (PSS), in KiB.
#[derive(Clone, Copy, Debug)]
pub struct Resident {
    /// Of the one mapping that is the guest's memory.
    pub guest: u64,
    /// All else.
    pub vmm: u64,
}

impl Resident {
    /// That of a VMM whose guest has `guest_mib` MiB.
    pub fn of(pid: u32, guest_mib: u32) -> Result<Self> {
        let maps = std::fs::read_to_string(format!("/proc/{pid}/smaps"))?;
        let guest_kib = u64::from(guest_mib) << 10;
        let field = |line: &str, name: &str| {
            line.strip_prefix(name)
                .and_then(|rest| rest.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok())
        };
        let (mut resident, mut size, mut found) = (Self { guest: 0, vmm: 0 }, 0, false);
        for line in maps.lines() {
            if let Some(value) = field(line, "Size:") {
                size = value;
            } else if let Some(value) = field(line, "Pss:") {
                // A VMM may have put a few pages of its own beside the guest's memory.
                if (guest_kib..guest_kib + 1024).contains(&size) {
                    found = true;
                    resident.guest += value;
                } else {
                    resident.vmm += value;
                }
            }
        }
        ensure!(found, "no mapping of {guest_mib} MiB in process {pid}");
        Ok(resident)
    }
}
