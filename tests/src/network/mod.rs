//! Networks for tests, so that no test touches the host's.
//!
//! A [`Place`] is a network namespace: one that a test made ([`Namespace`]), that of a guest of the stand-in VMM
//! ([`crate::stand_in::Guest`]), or the host's own. In each of them, programs run, addresses are got and set, servers
//! answer, connections are made, and frames are sent and collected.

pub mod echo;
pub mod frame;
pub mod lease;
pub mod packets;
mod place;
pub mod tap;

use std::ops::Deref;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, Result, ensure};

pub use place::Place;

/// A network namespace of a test's own. Dropping it removes it.
pub struct Namespace {
    name: String,
    place: Place,
}

impl Namespace {
    /// Makes a namespace whose loopback interface is up.
    pub fn new() -> Result<Self> {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("inktest-{}-{number}", std::process::id());
        let made = Command::new("ip").args(["netns", "add", &name]).status().context("cannot run ip")?;
        ensure!(made.success(), "cannot make a network namespace (root is needed)");
        let place = Place::at(format!("/run/netns/{name}"))?;
        let namespace = Self { name, place };
        namespace.run("ip link set lo up")?;
        Ok(namespace)
    }
}

impl Deref for Namespace {
    type Target = Place;

    fn deref(&self) -> &Place {
        &self.place
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "delete", &self.name]).status();
    }
}
