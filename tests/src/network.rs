//! Network namespaces for tests, so that no test touches the host's network.

use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, Result, ensure};
use nix::libc;
use nix::sched::{CloneFlags, setns};

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

impl Namespace {
    /// Opens the tap called `name`, which is there already, as whoever controls a VMM does; with several queues, once
    /// for each.
    pub fn open_tap(&self, name: &str, queues: usize) -> Result<Vec<OwnedFd>> {
        (0..queues).map(|_| self.open_queue(name, queues > 1)).collect()
    }

    fn open_queue(&self, name: &str, is_one_of_many: bool) -> Result<OwnedFd> {
        let (path, name) = (format!("/run/netns/{}", self.name), name.to_owned());
        // A thread of its own, because it does not come back from the namespace.
        let opened = std::thread::spawn(move || -> Result<OwnedFd> {
            setns(File::open(path)?, CloneFlags::CLONE_NEWNET)?;
            let tun = File::options().read(true).write(true).open("/dev/net/tun")?;
            // SAFETY: all-zero is a value of this plain C structure.
            let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
            for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
                *to = from as libc::c_char;
            }
            let many = if is_one_of_many { libc::IFF_MULTI_QUEUE } else { 0 };
            let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | many;
            request.ifr_ifru.ifru_flags = flags as libc::c_short;
            // SAFETY: the call reads one whole `ifreq`.
            let result = unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETIFF, &request) };
            ensure!(result == 0, "cannot open tap {name}: {}", std::io::Error::last_os_error());
            Ok(tun.into())
        });
        opened.join().expect("the thread does not panic")
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "delete", &self.name]).status();
    }
}
