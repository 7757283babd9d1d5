//! A controller that is made to be killed: it does this and that with a VMM, until it is.

use std::path::PathBuf;

use anyhow::{Context, Result};
use innkeeper_protocol::{Command, ConsoleKind, Limits};
use innkeeper_tests::controller::Controller;

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let socket = PathBuf::from(arguments.next().context("usage: controller-in-distress SOCKET DISK NUMBER")?);
    let disk = PathBuf::from(arguments.next().context("a disk")?);
    let number = arguments.next().context("a number")?;
    let mut vmm = Controller::connect(&socket)?;
    vmm.subscribe()?;
    // From here on, any moment may be the last.
    println!("!");
    for round in 0.. {
        let id = format!("vol-{number}-{round}");
        vmm.say(Command::Pause)?;
        vmm.say(Command::Resume)?;
        // The disk may still be that of whoever was killed before.
        if vmm.attach_disk(&id, &disk, Limits::default()).is_err() {
            continue;
        }
        vmm.metrics()?;
        vmm.history(ConsoleKind::Serial)?;
        vmm.detach(&id, false)?;
        vmm.detach(&id, true)?;
        while vmm.status()?.devices.iter().any(|device| device.id == id) {}
    }
    Ok(())
}
