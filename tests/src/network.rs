//! Network namespaces for tests, so that no test touches the host's network.

use std::ffi::OsStr;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, Result, ensure};

/// A network namespace of a test's own. Dropping it removes it.
pub struct Namespace {
    name: String,
}

impl Namespace {
    /// Makes a namespace whose loopback interface is up.
    pub fn new() -> Result<Self> {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("inktest-{}-{number}", std::process::id());
        let made = Command::new("ip").args(["netns", "add", &name]).status().context("cannot run ip")?;
        ensure!(made.success(), "cannot make a network namespace (root is needed)");
        let namespace = Self { name };
        namespace.run("ip link set lo up")?;
        Ok(namespace)
    }

    /// A command that is to run in the namespace.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name]).arg(program);
        command
    }

    /// Runs a command line in the namespace; returns its output.
    pub fn run(&self, line: &str) -> Result<String> {
        let output = self.command("sh").args(["-c", line]).output()?;
        ensure!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "delete", &self.name]).status();
    }
}
