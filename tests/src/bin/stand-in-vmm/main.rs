//! A stand-in for `innkeeper-vmm`: it speaks the same protocol, and its guest is a network namespace.
//!
//! For tests of networks, on machines where no stock kernel can be a guest. `stand-in-vmm serve --control FD` is what
//! an agent runs. [`control`] has the controllers' connections, [`machine`] what they drive, [`interface`] the wires
//! from an agent's taps to those of the guest. The guest obeys at once: it switches itself off when the button is
//! pressed, and lets go of what is detached. What it does not have is refused as unsupported.

#![deny(clippy::unwrap_used, clippy::expect_used)]

mod control;
mod disk;
mod interface;
mod machine;

use std::os::fd::{FromRawFd, OwnedFd, RawFd};

use anyhow::{Context, Result, bail, ensure};
use innkeeper_tests::network::tap;
use nix::libc;
use nix::sched::{CloneFlags, unshare};

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let control: RawFd = match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["serve", "--control", number] => number.parse().context("the number of a descriptor")?,
        _ => bail!("usage: stand-in-vmm serve --control FD"),
    };
    // SAFETY: sets a flag; the answer is an error if it is not open.
    let is_open = control > 2 && unsafe { libc::fcntl(control, libc::F_SETFD, libc::FD_CLOEXEC) } >= 0;
    ensure!(is_open, "descriptor {control} is not open");
    // SAFETY: it is open, was inherited for us to use, and nobody else here knows it.
    let socket = unsafe { OwnedFd::from_raw_fd(control) };
    // Before there are threads, which inherit it.
    unshare(CloneFlags::CLONE_NEWNET).context("a network namespace is needed, which takes root")?;
    tap::set_up("lo").context("cannot set up the loopback interface")?;
    control::serve(socket)
}
