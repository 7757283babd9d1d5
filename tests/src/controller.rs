//! A controller as an agent would be one: it opens what a guest is made of, and drives `innkeeper-vmm serve`.

use std::fs::{File, OpenOptions};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command as Process;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use innkeeper_protocol::{
    Answer, AttachDisk, AttachInterface, BootSource, Command, Configure, Connection, ConsoleKind, Descriptor,
    DiskEngine, DiskSource, Error, Event, Failure, Happening, Identity, Limits, Metrics, Status,
};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, connect, listen, socket, socketpair,
};

use crate::{Vmm, new_log, program};

/// The descriptor that a VMM inherits.
const CONTROL: i32 = 3;
const UUID: &str = "ec2e1916-9099-7caf-fd21-012345abcdef";

/// What to boot.
#[derive(Clone, Debug)]
pub struct Boot {
    /// The kernel.
    pub kernel: PathBuf,
    /// The initial RAM file system.
    pub initrd: Option<PathBuf>,
    /// The command line.
    pub command_line: String,
}

impl Boot {
    /// A bare payload.
    pub fn payload(name: &str) -> Self {
        Self { kernel: crate::payload(name), initrd: None, command_line: String::new() }
    }

    /// The `micro` image, with `more` on its command line.
    pub fn micro(more: &str) -> Self {
        let command_line = "console=ttyS0 quiet panic=1 8250.nr_uarts=1 tsc=reliable random.trust_cpu=on \
                            cryptomgr.notests i8042.noaux i8042.nokbd";
        Self {
            kernel: crate::image("micro", "vmlinux"),
            initrd: Some(crate::image("micro", "initrd.img")),
            command_line: format!("{command_line} {more}"),
        }
    }

    /// Opens it, to be sent with the descriptors in `parcel`.
    fn open(&self, parcel: &mut Vec<OwnedFd>) -> Result<BootSource> {
        let mut add = |path: &Path| -> Result<Descriptor> {
            parcel.push(File::open(path).with_context(|| path.display().to_string())?.into());
            Ok(Descriptor(parcel.len() as u32 - 1))
        };
        let kernel = add(&self.kernel)?;
        let initrd = self.initrd.as_deref().map(&mut add).transpose()?;
        Ok(BootSource { kernel, initrd, command_line: self.command_line.clone() })
    }
}

/// A controller's connection to a VMM.
pub struct Controller {
    connection: Connection,
    /// The last event that it knows of.
    pub last_event: u64,
}

fn borrow(parcel: &[OwnedFd]) -> Vec<BorrowedFd<'_>> {
    parcel.iter().map(AsFd::as_fd).collect()
}

/// Two connected sockets that keep packets apart.
pub fn socket_pair() -> Result<(OwnedFd, OwnedFd)> {
    Ok(socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?)
}

/// A VMM process that was told nothing yet, its controller, and the ends of the console that the VMM is to get: what
/// it writes to and what it reads from.
pub fn serve() -> Result<(Vmm, Controller, (OwnedFd, OwnedFd))> {
    let mut command = Process::new(program("innkeeper-vmm"));
    command.args(["serve", "--control", &CONTROL.to_string()]);
    serve_by(command)
}

/// As [`serve`], with any command that ends up as a VMM.
pub fn serve_by(mut command: Process) -> Result<(Vmm, Controller, (OwnedFd, OwnedFd))> {
    let (ours, theirs) = socket_pair()?;
    let control = theirs.as_raw_fd();
    // SAFETY: dup2 and fcntl are allowed between fork and exec, and both descriptors are open.
    unsafe {
        command.pre_exec(move || {
            let result = if control == CONTROL {
                libc_fcntl_clear(control)
            } else {
                nix::libc::dup2(control, CONTROL)
            };
            if result < 0 { Err(std::io::Error::last_os_error()) } else { Ok(()) }
        });
    }
    let log = new_log()?;
    let child = command
        .stdin(std::process::Stdio::null())
        .stdout(std::process::Stdio::null())
        .stderr(File::create(log.with_extension("stderr"))?)
        .spawn()
        .context("cannot run innkeeper-vmm")?;
    let (output, their_output) = std::io::pipe()?;
    let (their_input, input) = std::io::pipe()?;
    let (output, input) = (File::from(OwnedFd::from(output)), File::from(OwnedFd::from(input)));
    let vmm = Vmm::watch(child, Some(input), output, log)?;
    let controller = Controller { connection: Connection::open(ours)?, last_event: 0 };
    Ok((vmm, controller, (their_output.into(), their_input.into())))
}

/// Lets a descriptor be inherited.
fn libc_fcntl_clear(descriptor: i32) -> i32 {
    // SAFETY: sets a flag of an open descriptor.
    unsafe { nix::libc::fcntl(descriptor, nix::libc::F_SETFD, 0) }
}

/// A listening socket for controllers.
pub fn listener(path: &Path) -> Result<OwnedFd> {
    let socket = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None)?;
    bind(socket.as_raw_fd(), &UnixAddr::new(path)?)?;
    listen(&socket, Backlog::new(16)?)?;
    Ok(socket)
}

/// What a machine is to have besides its disks and interfaces.
#[derive(Clone, Debug)]
pub struct Machine {
    /// How many CPUs.
    pub cpus: u8,
    /// MiB of memory.
    pub memory: u64,
    /// What it boots.
    pub boot: Boot,
    /// Whether it has a virtio console.
    pub virtio_console: bool,
    /// Whether it has a balloon.
    pub balloon: bool,
    /// The context id and the listener of its vsock device.
    pub vsock: Option<(u32, PathBuf)>,
}

impl Machine {
    /// A small machine.
    pub fn new(boot: Boot) -> Self {
        let memory = if boot.initrd.is_some() { 256 } else { 16 };
        Self { cpus: 1, memory, boot, virtio_console: false, balloon: false, vsock: None }
    }
}

impl Controller {
    /// Connects to a VMM that listens at `path`.
    pub fn connect(path: &Path) -> Result<Self> {
        let socket = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None)?;
        connect(socket.as_raw_fd(), &UnixAddr::new(path)?)
            .with_context(|| format!("nobody listens at {}", path.display()))?;
        Ok(Self { connection: Connection::open(socket)?, last_event: 0 })
    }

    /// Has a command carried out.
    pub fn call(&mut self, command: Command, descriptors: &[BorrowedFd<'_>]) -> Result<Answer> {
        let what = format!("{command:?}");
        let what = what.split([' ', '(', '{']).next().unwrap_or_default().to_owned();
        self.connection.call(command, descriptors).with_context(|| what)
    }

    /// Has a command carried out that needs no descriptors.
    pub fn say(&mut self, command: Command) -> Result<()> {
        self.call(command, &[]).map(|_| ())
    }

    /// Has a command carried out, or learns why not.
    pub fn try_call(
        &mut self,
        command: Command,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<Result<Answer, Failure>> {
        match self.connection.call(command, descriptors) {
            Ok(answer) => Ok(Ok(answer)),
            Err(Error::Refused(failure)) => Ok(Err(failure)),
            Err(other) => Err(other.into()),
        }
    }

    /// Expects that a command is refused.
    pub fn refused(&mut self, command: Command, descriptors: &[BorrowedFd<'_>]) -> Result<Failure> {
        match self.try_call(command, descriptors)? {
            Err(failure) => Ok(failure),
            Ok(answer) => bail!("this was to be refused: {answer:?}"),
        }
    }

    /// Says what the machine is to be.
    pub fn configure(&mut self, machine: &Machine, listener: Option<&OwnedFd>) -> Result<()> {
        let kvm = OpenOptions::new().read(true).write(true).open("/dev/kvm")?;
        let mut parcel = vec![kvm.into()];
        let boot = machine.boot.open(&mut parcel)?;
        let mut add = |descriptor: OwnedFd| {
            parcel.push(descriptor);
            Descriptor(parcel.len() as u32 - 1)
        };
        let listener = match listener {
            Some(listener) => Some(add(listener.try_clone()?)),
            None => None,
        };
        let vsock = match &machine.vsock {
            Some((cid, path)) => {
                let listener = std::os::unix::net::UnixListener::bind(path)?;
                Some(innkeeper_protocol::Vsock { cid: *cid, listener: Some(add(listener.into())) })
            }
            None => None,
        };
        let configure = Configure {
            kvm: Descriptor(0),
            cpus: machine.cpus,
            memory: machine.memory << 20,
            identity: Identity { uuid: UUID.into(), serial: None, asset_tag: None },
            boot,
            listener,
            virtio_console: machine.virtio_console,
            balloon: machine.balloon,
            vsock,
        };
        self.call(Command::Configure(Box::new(configure)), &borrow(&parcel))?;
        Ok(())
    }

    /// Answers the question for a boot source.
    pub fn boot(&mut self, boot: &Boot) -> Result<()> {
        let mut parcel = Vec::new();
        let source = Some(boot.open(&mut parcel)?);
        self.call(Command::Boot { source }, &borrow(&parcel))?;
        Ok(())
    }

    /// Connects a console with the streams that [`serve`] has returned.
    pub fn attach_console(
        &mut self,
        kind: ConsoleKind,
        streams: &(OwnedFd, OwnedFd),
        after: u64,
    ) -> Result<()> {
        let (output, input) = (Some(Descriptor(0)), Some(Descriptor(1)));
        let command = Command::AttachConsole { console: kind, output, input, follow: true, after };
        self.call(command, &[streams.0.as_fd(), streams.1.as_fd()])?;
        Ok(())
    }

    /// What a console has kept.
    pub fn history(&mut self, console: ConsoleKind) -> Result<String> {
        let (mut ours, theirs) = std::io::pipe()?;
        let command = Command::AttachConsole {
            console,
            output: Some(Descriptor(0)),
            input: None,
            follow: false,
            after: 0,
        };
        self.call(command, &[theirs.as_fd()])?;
        drop(theirs);
        let mut text = Vec::new();
        std::io::Read::read_to_end(&mut ours, &mut text)?;
        Ok(String::from_utf8_lossy(&text).into_owned())
    }

    /// Adds a disk; returns its slot.
    pub fn attach_disk(&mut self, id: &str, file: &Path, limits: Limits) -> Result<u8> {
        let opened = OpenOptions::new().read(true).write(true).open(file)?;
        let disk = AttachDisk {
            id: id.into(),
            source: DiskSource::Raw { file: Descriptor(0) },
            read_only: false,
            still: false,
            serial: id.into(),
            engine: DiskEngine::Auto,
            queues: None,
            limits,
        };
        self.attach(disk, &[opened.as_fd()])
    }

    /// Adds a disk that these files are for; returns its slot.
    pub fn attach(&mut self, disk: AttachDisk, descriptors: &[BorrowedFd<'_>]) -> Result<u8> {
        match self.call(Command::AttachDisk(Box::new(disk)), descriptors)? {
            Answer::Attached { slot } => Ok(slot),
            other => bail!("attach-disk was answered by {other:?}"),
        }
    }

    /// Adds an interface over opened taps; returns its slot.
    pub fn attach_interface(&mut self, id: &str, taps: &[OwnedFd], mac: &str) -> Result<u8> {
        self.attach_interface_with(id, taps, &[], mac)
    }

    /// As [`Controller::attach_interface`], with opened vhost devices, as many as taps or none.
    pub fn attach_interface_with(
        &mut self,
        id: &str,
        taps: &[OwnedFd],
        vhost: &[OwnedFd],
        mac: &str,
    ) -> Result<u8> {
        let interface = AttachInterface {
            id: id.into(),
            taps: (0..taps.len() as u32).map(Descriptor).collect(),
            vhost: (taps.len()..taps.len() + vhost.len()).map(|index| Descriptor(index as u32)).collect(),
            mac: mac.into(),
            receive: Limits::default(),
            transmit: Limits::default(),
        };
        let descriptors = [borrow(taps), borrow(vhost)].concat();
        match self.call(Command::AttachInterface(Box::new(interface)), &descriptors)? {
            Answer::Attached { slot } => Ok(slot),
            other => bail!("attach-interface was answered by {other:?}"),
        }
    }

    /// Asks for, or forces, the removal of a device.
    pub fn detach(&mut self, id: &str, force: bool) -> Result<()> {
        self.say(Command::Detach { id: id.into(), force })
    }

    /// How things stand.
    pub fn status(&mut self) -> Result<Status> {
        match self.call(Command::Status, &[])? {
            Answer::Status(status) => Ok(*status),
            other => bail!("status was answered by {other:?}"),
        }
    }

    /// What was counted.
    pub fn metrics(&mut self) -> Result<Metrics> {
        match self.call(Command::Metrics, &[])? {
            Answer::Metrics(metrics) => Ok(*metrics),
            other => bail!("metrics was answered by {other:?}"),
        }
    }

    /// Asks for events, from the first one it does not know.
    pub fn subscribe(&mut self) -> Result<()> {
        self.say(Command::Events { after: self.last_event })
    }

    /// Waits for an event that `is_wanted`; those before it are skipped.
    pub fn wait_for(&mut self, is_wanted: impl Fn(&Happening) -> bool, patience: Duration) -> Result<Event> {
        let deadline = Instant::now() + patience;
        let mut skipped = Vec::new();
        loop {
            if !self.connection.has_event() {
                let rest = deadline.saturating_duration_since(Instant::now());
                let mut source = [PollFd::new(self.connection.as_fd(), PollFlags::POLLIN)];
                if poll(&mut source, PollTimeout::try_from(rest).unwrap_or(PollTimeout::MAX))? == 0 {
                    bail!("the event did not come within {patience:?}, but {skipped:?}");
                }
            }
            let event = self.connection.event()?;
            self.last_event = event.sequence;
            if is_wanted(&event.what) {
                return Ok(event);
            }
            skipped.push(event.what);
        }
    }

    /// Waits for exactly this event.
    pub fn expect(&mut self, what: &Happening, patience: Duration) -> Result<Event> {
        self.wait_for(|happening| happening == what, patience).with_context(|| format!("{what:?}"))
    }
}
