//! Guests where no stock kernel can run: those of the stand-in VMM, a program that a controller, or the daemon, takes
//! for `innkeeper-vmm`.
//!
//! Its guest is a network namespace, which has an interface `eth0`, `eth1` and so on for each that is attached, and
//! nobody in it but the test. It obeys the power button at once, and says [`BANNER`] when it is up. It has no addresses
//! at first, and after a reboot ([`Place::lease`], [`Place::set_address`]).

use std::ops::Deref;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::agent::{Agent, Template};
use crate::controller::{self, Controller};
use crate::network::Place;
use crate::{Vmm, program};

/// What a guest says on its serial port when it is up.
pub const BANNER: &str = "stand-in: ready\n";

/// The program, for [`Agent::start_on`].
pub fn vmm() -> PathBuf {
    program("stand-in-vmm")
}

/// As [`controller::serve`].
pub fn serve() -> Result<(Vmm, Controller, (OwnedFd, OwnedFd))> {
    let mut command = Command::new(vmm());
    command.args(["serve", "--control", "3"]);
    controller::serve_by(command)
}

/// A guest: a [`Place`]. It is that of one VMM, also after its end.
pub struct Guest {
    place: Place,
    pid: u32,
}

impl Guest {
    /// The guest of a VMM that has said hello.
    pub fn of_vmm(pid: u32) -> Result<Self> {
        let place = Place::of_process(pid)?;
        // So that no test does to the host what it means to do to a guest.
        let is_host = place.is_same(&Place::here()?)?;
        ensure!(!is_host, "process {pid} has no network of its own: it is not a stand-in, or has just begun");
        Ok(Self { place, pid })
    }

    /// The guest of an instance that runs. After a stop and a start, that is another one.
    pub fn of(agent: &Agent, instance: &str) -> Result<Self> {
        Self::of_vmm(agent.vmm_of(instance)?).with_context(|| format!("{instance}{}", agent.last_words()))
    }

    /// The VMM's process.
    pub fn pid(&self) -> u32 {
        self.pid
    }
}

impl Deref for Guest {
    type Target = Place;

    fn deref(&self) -> &Place {
        &self.place
    }
}

/// What an image for such guests is made of: anything that the daemon takes for a kernel.
pub fn template(agent: &Agent) -> Result<Template> {
    Ok(Template { banner: BANNER, ..agent.payload("idle")? })
}
