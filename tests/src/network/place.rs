//! A network namespace, and what is done in it.

use std::ffi::OsStr;
use std::fs::File;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use nix::libc;
use nix::sched::{CloneFlags, setns};

use super::frame::Mac;
use super::tap;

/// A network namespace. It stays as long as this does, whoever else leaves it.
#[derive(Clone, Debug)]
pub struct Place {
    namespace: Arc<File>,
}

impl Place {
    /// Where this thread is.
    pub fn here() -> Result<Self> {
        Self::at("/proc/thread-self/ns/net")
    }

    /// Where a process is.
    pub fn of_process(pid: u32) -> Result<Self> {
        Self::at(format!("/proc/{pid}/ns/net"))
    }

    pub(super) fn at(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let namespace = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
        Ok(Self { namespace: Arc::new(namespace) })
    }

    /// Whether the two are one.
    pub fn is_same(&self, other: &Self) -> Result<bool> {
        use std::os::unix::fs::MetadataExt;
        let identity = |place: &Self| place.namespace.metadata().map(|data| (data.dev(), data.ino()));
        Ok(identity(self)? == identity(other)?)
    }

    /// Does something there, in a thread of its own: what it opens or makes stays there, also in the hands of other
    /// threads.
    pub fn inside<T: Send>(&self, action: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        let enter = || {
            setns(self.namespace.as_ref(), CloneFlags::CLONE_NEWNET).context("cannot enter the namespace")?;
            action()
        };
        std::thread::scope(|scope| {
            scope
                .spawn(enter)
                .join()
                .unwrap_or_else(|_| Err(anyhow!("a thread in the namespace has panicked")))
        })
    }

    /// A command that is to run there.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        self.take_in(&mut command);
        command
    }

    /// Lets a command run there.
    pub fn take_in(&self, command: &mut Command) {
        let namespace = Arc::clone(&self.namespace);
        // SAFETY: setns is allowed between fork and exec, and the descriptor is open as long as the command is there.
        unsafe {
            command.pre_exec(move || match libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) {
                0 => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            });
        }
    }

    /// Runs a program with its arguments there, whatever comes of it.
    pub fn output(&self, words: &[&str]) -> Result<Output> {
        let (program, arguments) = words.split_first().context("no program")?;
        let mut command = self.command(program);
        command.args(arguments).stdin(Stdio::null());
        command.output().with_context(|| format!("cannot run {program}"))
    }

    /// Runs a command line there, which must succeed; returns its output.
    pub fn run(&self, line: &str) -> Result<String> {
        let output = self.output(&["sh", "-c", line])?;
        ensure!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Whether somebody answers one ping within a second.
    pub fn ping(&self, address: impl Into<IpAddr>) -> Result<bool> {
        let address = address.into().to_string();
        let output = self.output(&["busybox", "ping", "-q", "-c", "1", "-W", "1", &address])?;
        Ok(output.status.success())
    }

    /// Gives an interface its only IPv4 address, such as `10.0.0.5/24`, and lets it be up. What goes elsewhere goes by
    /// `router`, if there is one; it may lie outside the prefix.
    pub fn set_address(&self, interface: &str, address: &str, router: Option<&str>) -> Result<()> {
        self.run(&format!(
            "ip -4 address flush dev {interface} && ip link set {interface} up && \
             ip address add {address} dev {interface}"
        ))?;
        if let Some(router) = router {
            self.run(&format!("ip route replace default via {router} dev {interface} onlink"))?;
        }
        Ok(())
    }

    /// The interfaces with their hardware addresses, but for the loopback interface.
    pub fn interfaces(&self) -> Result<Vec<(String, Mac)>> {
        let listed = self.run("ip -oneline link")?;
        let parse = |line: &str| {
            let name = line.split_whitespace().nth(1)?.trim_end_matches(':').split('@').next()?;
            let mac = line.split("link/ether ").nth(1)?.split_whitespace().next()?.parse().ok()?;
            Some((name.to_owned(), mac))
        };
        Ok(listed.lines().filter_map(parse).collect())
    }

    /// Waits until there is an interface with this hardware address; returns its name.
    pub fn wait_for_interface(&self, mac: Mac, patience: Duration) -> Result<String> {
        let deadline = Instant::now() + patience;
        loop {
            let there = self.interfaces()?;
            if let Some((name, _)) = there.iter().find(|(_, found)| *found == mac) {
                return Ok(name.clone());
            }
            if Instant::now() > deadline {
                bail!("no interface {mac} within {patience:?}, but {there:?}");
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Opens the tap called `name`, which is there already, as whoever controls a VMM does; with several queues, once
    /// for each.
    pub fn open_tap(&self, name: &str, queues: usize) -> Result<Vec<OwnedFd>> {
        let flags = if queues > 1 { libc::IFF_MULTI_QUEUE } else { 0 };
        self.inside(|| {
            (0..queues)
                .map(|_| tap::open(name, flags).with_context(|| format!("cannot open tap {name}")))
                .collect()
        })
    }
}
