//! This machine.
//!
//! Each VMM has a directory below the run directory, with its control socket, its log and a note of who it is: process
//! number and start time. The note is written before the VMM is told anything, and a VMM that was told nothing ends
//! with the agent; so there is no moment at which a VMM can be lost. Instance stores are mounted in directories of
//! their own, below `stores`.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::str::FromStr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use innkeeper_network::linux::{Error as NetworkError, Networks};
use innkeeper_network::plan::{Interface, Vpc as Plan};
use innkeeper_network::probe::Probe;
use innkeeper_network::services::Sockets;
use innkeeper_network::trace::Tracer;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::libc;
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, connect, listen, socket, socketpair,
};

use super::mounts::Mounts;
use super::store::Stores;
use super::{AgentUsage, Host, HostError, Settings, VmmProcess, VmmUsage, process};
use crate::ids::{InstanceId, NetworkInterfaceId, VpcId};
use crate::instances::capacity::Capacity;

/// The descriptor that a VMM inherits.
const CONTROL: i32 = 3;
/// How much of a VMM's log goes into ours at its end.
const LAST_LINES: usize = 10;
/// The most CPUs of a VMM's guest.
const LARGEST: u32 = 32;

/// How many controllers can wait until a VMM accepts them.
const BACKLOG: i32 = 16;
/// How long a VMM may let as many of them wait. It accepts at once, unless it hangs.
const ACCEPTANCE: Duration = Duration::from_secs(2);

/// This machine.
pub struct Linux {
    settings: Settings,
    stores: Stores,
    mounts: Mounts,
    /// Opened when they are first asked for: an agent whose instances need no network asks the kernel for none.
    networks: Mutex<Option<Networks>>,
}

impl From<NetworkError> for HostError {
    fn from(error: NetworkError) -> Self {
        Self { what: error.what, cause: error.cause }
    }
}

impl From<io::Error> for HostError {
    fn from(cause: io::Error) -> Self {
        Self { what: "enter the host's mount namespace".into(), cause }
    }
}

/// Names what was to be done.
trait What<T> {
    fn what(self, what: impl FnOnce() -> String) -> Result<T, HostError>;
}

impl<T, E: Into<io::Error>> What<T> for Result<T, E> {
    fn what(self, what: impl FnOnce() -> String) -> Result<T, HostError> {
        self.map_err(|cause| HostError { what: what(), cause: cause.into() })
    }
}

impl Linux {
    /// With these settings.
    pub fn new(settings: Settings) -> Self {
        let stores = Stores::new(settings.run_directory.join("stores"));
        Self { settings, stores, mounts: Mounts::of_host(), networks: Mutex::default() }
    }

    fn networks_directory(&self) -> PathBuf {
        self.settings.run_directory.join("vpcs")
    }

    /// Does something with the networks, which are mounted like the instance stores.
    fn with_networks<T: Send>(
        &self,
        function: impl FnOnce(&mut Networks) -> Result<T, NetworkError> + Send,
    ) -> Result<T, HostError> {
        let mut networks = self.networks.lock().unwrap_or_else(PoisonError::into_inner);
        let networks = match &mut *networks {
            Some(networks) => networks,
            none => none.insert(Networks::open(self.networks_directory(), self.settings.network.clone())?),
        };
        self.mounts.inside(|| Ok(function(networks)?))
    }

    fn root(&self) -> PathBuf {
        self.settings.run_directory.join("instances")
    }

    fn directory(&self, instance: &InstanceId) -> PathBuf {
        self.root().join(instance.as_str())
    }

    /// Starts a VMM that was told nothing yet. If its process cannot be noted it is ended.
    fn spawn(&self, log: Stdio, note: impl FnOnce(u32) -> io::Result<()>) -> Result<VmmProcess, HostError> {
        let pair = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC);
        let (ours, theirs) = pair.what(|| "make a socket".into())?;
        let unblock = fcntl(&ours, FcntlArg::F_SETFL(OFlag::O_NONBLOCK));
        unblock.what(|| "change a socket".into())?;
        let mut command = Command::new(&self.settings.vmm);
        command
            .args(["serve", "--control", &CONTROL.to_string()])
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        let control = theirs.as_raw_fd();
        // SAFETY: setsid, dup2 and fcntl are allowed between fork and exec, and the descriptor is open.
        unsafe {
            command.pre_exec(move || {
                // Signals of the agent's terminal are not the guests' concern.
                libc::setsid();
                let result = if control == CONTROL {
                    libc::fcntl(control, libc::F_SETFD, 0)
                } else {
                    libc::dup2(control, CONTROL)
                };
                if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
            });
        }
        let mut child = command.spawn().what(|| format!("run {}", self.settings.vmm.display()))?;
        let pid = child.id();
        // The child is ours and not waited for, so that its number is its own.
        match process::open(pid).and_then(|pidfd| note(pid).map(|()| pidfd)) {
            Ok(pidfd) => Ok(VmmProcess { pidfd, control: ours }),
            Err(error) => {
                let _ = child.kill().and_then(|()| child.wait());
                Err(error).what(|| format!("hold on to the VMM {pid}"))
            }
        }
    }

    /// Connects to a VMM's control socket. `WouldBlock` is that it has let others wait for [`ACCEPTANCE`].
    fn connect(&self, instance: &InstanceId) -> io::Result<OwnedFd> {
        let address = UnixAddr::new(&self.directory(instance).join("control"))?;
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let socket = socket(AddressFamily::Unix, SockType::SeqPacket, flags, None)?;
        let end = Instant::now() + ACCEPTANCE;
        loop {
            match connect(socket.as_raw_fd(), &address) {
                Err(Errno::EAGAIN) if Instant::now() < end => std::thread::sleep(ACCEPTANCE / 20),
                result => {
                    result?;
                    return Ok(socket);
                }
            }
        }
    }

    /// The process that the note is about, and its number, if it is still there.
    fn noted(&self, instance: &InstanceId) -> io::Result<Option<(OwnedFd, u32)>> {
        let note = match fs::read_to_string(self.directory(instance).join("process")) {
            Ok(note) => note,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let mut numbers = note.split_whitespace();
        let (Some(pid), Some(started)) = (
            numbers.next().and_then(|number| number.parse::<u32>().ok()),
            numbers.next().and_then(|number| number.parse::<u64>().ok()),
        ) else {
            return Ok(None);
        };
        // First held, then looked at: from here on the number cannot become another's unnoticed.
        let held = process::open(pid).and_then(|pidfd| Ok((pidfd, process::start_time(pid)?)));
        match held {
            Ok((pidfd, time)) => Ok((time == started).then_some((pidfd, pid))),
            // A VMM that is taken for dead is started anew, on the same volumes.
            Err(error) if !process::is_gone(&error) => Err(error),
            Err(_) => Ok(None),
        }
    }
}

impl Host for Linux {
    fn capacity(&self) -> Result<Capacity, HostError> {
        let meminfo =
            fs::read_to_string("/proc/meminfo").what(|| "learn how much memory the host has".into())?;
        let total = meminfo
            .lines()
            .find_map(|line| {
                line.strip_prefix("MemTotal:")?.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()
            })
            .ok_or_else(|| io::Error::other("/proc/meminfo has no MemTotal"))
            .what(|| "learn how much memory the host has".into())?;
        let cpus = std::thread::available_parallelism().what(|| "count the host's CPUs".into())?.get();
        Ok(Capacity {
            vcpus: (cpus as f64 * self.settings.cpu_overcommit) as u64,
            memory: (total / 1024).saturating_sub(self.settings.reserved_memory),
            largest: LARGEST,
        })
    }

    fn boot_id(&self) -> Result<String, HostError> {
        let path = &self.settings.boot_id_file;
        let text = fs::read_to_string(path).what(|| format!("read {}", path.display()))?;
        Ok(text.trim().to_owned())
    }

    fn kvm(&self) -> Result<OwnedFd, HostError> {
        let file = OpenOptions::new().read(true).write(true).open("/dev/kvm");
        Ok(file.what(|| "open /dev/kvm (innkeeper-vmm check says more)".into())?.into())
    }

    fn boot_file(&self, path: &Path) -> Result<OwnedFd, HostError> {
        Ok(File::open(path).what(|| format!("open {}", path.display()))?.into())
    }

    fn start_vmm(&self, instance: &InstanceId) -> Result<VmmProcess, HostError> {
        let directory = self.directory(instance);
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&directory)
            .what(|| format!("make {}", directory.display()))?;
        let log = directory.join("log");
        let log_file = OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o600)
            .open(&log)
            .what(|| format!("open {}", log.display()))?;
        let note = directory.join("process");
        let new = directory.join("process.new");
        self.spawn(log_file.into(), |pid| {
            fs::write(&new, format!("{pid} {}\n", process::start_time(pid)?))?;
            fs::rename(&new, &note)
        })
    }

    fn start_helper(&self) -> Result<VmmProcess, HostError> {
        self.spawn(Stdio::null(), |_| Ok(()))
    }

    fn scratch_file(&self, size: u64) -> Result<OwnedFd, HostError> {
        let directory = &self.settings.scratch_directory;
        let made = || -> io::Result<OwnedFd> {
            let mut options = OpenOptions::new();
            options.read(true).write(true).mode(0o600).custom_flags(libc::O_TMPFILE);
            let file = options.open(directory)?;
            file.set_len(size)?;
            Ok(file.into())
        };
        made().what(|| format!("make a file in {}", directory.display()))
    }

    fn listener(&self, instance: &InstanceId) -> Result<OwnedFd, HostError> {
        let path = self.directory(instance).join("control");
        let what = || format!("listen at {}", path.display());
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error).what(what),
            _ => {}
        }
        let listener = || -> nix::Result<OwnedFd> {
            let socket = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None)?;
            bind(socket.as_raw_fd(), &UnixAddr::new(&path)?)?;
            listen(&socket, Backlog::new(BACKLOG)?)?;
            Ok(socket)
        };
        listener().what(what)
    }

    fn find_vmm(&self, instance: &InstanceId) -> Result<Option<VmmProcess>, HostError> {
        let what = || format!("look for the VMM of {instance}");
        let Some((pidfd, _)) = self.noted(instance).what(what)? else { return Ok(None) };
        match self.connect(instance) {
            Ok(control) => Ok(Some(VmmProcess { pidfd, control })),
            // It has ended just now, or was told nothing yet, or can never be talked to again.
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused | io::ErrorKind::WouldBlock
                ) =>
            {
                tracing::debug!(%instance, %error, "ending a VMM that nobody can talk to");
                process::kill(&pidfd).what(|| format!("end the VMM of {instance}"))?;
                Ok(None)
            }
            // The agent's own trouble, such as having no descriptors left, is not the guest's.
            Err(error) => Err(error).what(what),
        }
    }

    fn vmms(&self) -> Result<Vec<InstanceId>, HostError> {
        named_in(&self.root())
    }

    fn vmm_usage(&self, instance: &InstanceId) -> Result<Option<VmmUsage>, HostError> {
        let what = || format!("see what the VMM of {instance} takes");
        // As long as it is held, its number is its own.
        let Some((_held, pid)) = self.noted(instance).what(what)? else { return Ok(None) };
        match process::usage(pid) {
            Ok(usage) => Ok(Some(usage)),
            Err(error) if process::is_gone(&error) => Ok(None),
            Err(error) => Err(error).what(what),
        }
    }

    fn agent_usage(&self) -> Result<AgentUsage, HostError> {
        process::own_usage().what(|| "see what the agent takes".into())
    }

    fn forget_vmm(&self, instance: &InstanceId) -> Result<(), HostError> {
        let directory = self.directory(instance);
        // A VMM is quiet unless something is wrong, and its log goes with it.
        if let Ok(said) = fs::read_to_string(directory.join("log"))
            && !said.trim().is_empty()
        {
            let last: Vec<&str> = said.lines().rev().take(LAST_LINES).collect();
            let last = last.into_iter().rev().collect::<Vec<_>>().join("\n");
            tracing::warn!(%instance, "the VMM has said:\n{last}");
        }
        match fs::remove_dir_all(&directory) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(error).what(|| format!("remove {}", directory.display()))
            }
            _ => Ok(()),
        }
    }

    fn make_store(&self, instance: &InstanceId, size: u64) -> Result<OwnedFd, HostError> {
        let what = || format!("mount the instance store of {instance} (an agent that is root can)");
        self.stores.make(instance, size).what(what)
    }

    fn store(&self, instance: &InstanceId) -> Result<Option<OwnedFd>, HostError> {
        self.stores.open(instance).what(|| format!("open the instance store of {instance}"))
    }

    fn remove_store(&self, instance: &InstanceId) -> Result<(), HostError> {
        let what = || format!("take away the instance store of {instance}");
        self.stores.remove(instance).what(what)
    }

    fn stores(&self) -> Result<Vec<InstanceId>, HostError> {
        named_in(self.stores.directory())
    }

    fn apply_vpc(&self, plan: &Plan, mend: bool) -> Result<(), HostError> {
        self.with_networks(|networks| if mend { networks.mend(plan) } else { networks.apply(plan) })
    }

    fn vpc_sockets(&self, vpc: &VpcId) -> Result<Sockets, HostError> {
        self.with_networks(|networks| Ok(Sockets::open(networks, vpc.as_str())))?
            .what(|| format!("listen inside of {vpc}"))
    }

    fn remove_vpc(&self, vpc: &VpcId) -> Result<(), HostError> {
        self.with_networks(|networks| networks.remove(vpc.as_str()))
    }

    fn vpcs(&self) -> Result<Vec<VpcId>, HostError> {
        named_in(&self.networks_directory())
    }

    fn probe(
        &self,
        vpc: &VpcId,
        id: &NetworkInterfaceId,
        interface: &Interface,
        router: Ipv4Addr,
    ) -> Result<Probe, HostError> {
        self.with_networks(|networks| {
            Ok(Probe::open(networks, vpc.as_str(), id.as_str(), interface, router))
        })?
        .what(|| format!("ask whoever has {id}"))
    }

    fn trace_vpc(&self, plan: &Plan) -> Result<Tracer, HostError> {
        self.with_networks(|networks| Ok(Tracer::open(networks, plan)))?
            .what(|| format!("see the packets of {}", plan.id))
    }

    fn open_tap(
        &self,
        vpc: &VpcId,
        interface: &NetworkInterfaceId,
        queues: u16,
    ) -> Result<Vec<OwnedFd>, HostError> {
        self.with_networks(|networks| networks.open_tap(vpc.as_str(), interface.as_str(), queues))
    }
}

/// Those whose ids are names in a directory, if that is there.
fn named_in<Id: FromStr>(directory: &Path) -> Result<Vec<Id>, HostError> {
    let what = || format!("read {}", directory.display());
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).what(what),
    };
    let mut found = Vec::new();
    for entry in entries {
        let name = entry.what(what)?.file_name();
        // What has another name is not ours.
        found.extend(name.to_str().and_then(|name| name.parse().ok()));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    /// A host with an instance whose VMM is a process that says nothing.
    fn lab() -> (tempfile::TempDir, Linux, InstanceId, std::process::Child) {
        let run = tempfile::tempdir().unwrap();
        let host = Linux::new(Settings {
            vmm: "/nonexistent".into(),
            run_directory: run.path().to_owned(),
            scratch_directory: run.path().to_owned(),
            boot_id_file: "/nonexistent".into(),
            ..Config::default().host_settings()
        });
        let id = InstanceId::random();
        fs::create_dir_all(host.directory(&id)).unwrap();
        // Whoever waits for the output of a test does not wait for it.
        let child =
            Command::new("sleep").arg("60").stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let note = format!("{} {}\n", child.id(), process::start_time(child.id()).unwrap());
        fs::write(host.directory(&id).join("process"), note).unwrap();
        (run, host, id, child)
    }

    #[test]
    fn a_vmm_that_accepts_nobody_is_ended() {
        let (_run, host, id, mut child) = lab();
        let _listener = host.listener(&id).unwrap();
        let mut waiting = Vec::new();
        while waiting.len() <= BACKLOG as usize {
            let found = host.find_vmm(&id).unwrap();
            waiting.push(found.expect("there is room for more"));
        }
        assert!(host.find_vmm(&id).unwrap().is_none());
        // It was waited for already.
        assert!(child.wait().is_err());
    }

    /// Runs itself again, alone, in a process that it can take all descriptors from.
    #[test]
    fn without_descriptors_no_vmm_is_taken_for_dead() {
        const ALONE: &str = "INNKEEPER_TEST_ALONE";
        if std::env::var_os(ALONE).is_none() {
            let name = std::thread::current().name().unwrap().to_owned();
            let mut again = Command::new(std::env::current_exe().unwrap());
            let output = again.args(["--exact", &name]).env(ALONE, "yes").output().unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
            return;
        }
        let (_run, host, id, mut child) = lab();
        let _listener = host.listener(&id).unwrap();
        let few = libc::rlimit { rlim_cur: 64, rlim_max: 64 };
        // SAFETY: reads a structure that is there.
        assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &few) }, 0);
        let mut taken = Vec::new();
        while let Ok(file) = File::open("/dev/null") {
            taken.push(file);
        }
        // It needs two at once: the process and its note, or its socket.
        for free in 0..2 {
            assert!(host.find_vmm(&id).is_err(), "with {free} descriptors");
            taken.pop();
        }
        assert!(host.find_vmm(&id).unwrap().is_some());
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
