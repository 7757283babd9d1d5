//! `innkeeper-vmm run`: opens everything by name, and is then the controller of a guest in this same thread.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow};
use clap::Args;
use innkeeper_protocol::{
    AttachDisk, AttachInterface, BootSource, Command, Configure, ConsoleKind, Descriptor, DiskSource, Error,
    FailureCode, Identity, LayerFiles, Limits, MAX_DESCRIPTORS, Vsock,
};
use nix::fcntl::OFlag;
use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, listen, socket};
use nix::unistd::pipe2;
use uuid::Uuid;

use super::controller::{Controller, Signals};
use super::ending_status;
use super::local::LocalVmm;
use super::options::{ConsoleOption, DiskFiles, DiskOption, Size, SmbiosOption, TapOption, VsockOption};
use super::terminal::RawTerminal;
use crate::memory;
use crate::virtio::net::{MacAddress, tap};

/// The kernel command line unless there is another: a serial console, little chatter, and no time spent on
/// hardware that this machine does not have.
const DEFAULT_COMMAND_LINE: &str = "console=ttyS0 quiet panic=1 8250.nr_uarts=1 tsc=reliable random.trust_cpu=on \
                                    cryptomgr.notests i8042.noaux i8042.nokbd";

#[derive(Args, Debug)]
pub struct Run {
    #[command(flatten)]
    boot: BootOptions,
    /// Number of CPUs, 1 to 32
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=i64::from(crate::cpu::MAX_CPUS)))]
    cpus: u8,
    /// Memory, 4M to 256G
    #[arg(long, value_name = "SIZE", default_value = "256M")]
    memory: Size,
    /// A disk: path=FILE,format=raw[,readonly=on][,serial=TEXT][,engine=auto|io_uring|sync][,queues=N]. Or with
    /// path=DATA:MAP[:DATA:MAP…],format=layered, from the bottom layer. May be repeated
    #[arg(long = "disk", value_name = "DISK")]
    disks: Vec<DiskOption>,
    /// A network interface: NAME[,mac=ADDRESS][,queues=N][,vhost=on] of an existing tap. May be repeated
    #[arg(long = "tap", value_name = "TAP")]
    taps: Vec<TapOption>,
    /// Where the serial console goes: stdio, file=FILE or none. In a terminal, Ctrl-A x ends the guest
    #[arg(long, value_name = "WHERE", default_value = "stdio")]
    serial: ConsoleOption,
    /// Adds a virtio console (hvc0 in Linux), and says where it goes: stdio, file=FILE or none
    #[arg(long, value_name = "WHERE")]
    virtio_console: Option<ConsoleOption>,
    /// Adds a balloon, by which a guest also gives back memory that it does not use
    #[arg(long)]
    balloon: bool,
    /// Adds a vsock device: cid=N[,path=SOCKET], a socket to make for connections to the guest
    #[arg(long, value_name = "VSOCK")]
    vsock: Option<VsockOption>,
    /// What SMBIOS says: uuid=UUID[,serial=TEXT][,asset-tag=TEXT]. By default a random UUID
    #[arg(long, value_name = "IDENTITY")]
    smbios: Option<SmbiosOption>,
    /// Seconds from SIGTERM until the guest is switched off hard
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    stop_timeout: u32,
    /// A socket to make, by which other controllers can drive the guest too
    #[arg(long, value_name = "SOCKET")]
    control: Option<PathBuf>,
}

/// What is booted, at first and after each reset: the files are opened anew each time.
#[derive(Args, Clone, Debug)]
pub struct BootOptions {
    /// Kernel: an uncompressed ELF file (vmlinux) or a bzImage (vmlinuz)
    #[arg(long, value_name = "FILE")]
    kernel: PathBuf,
    /// Initial RAM file system
    #[arg(long, value_name = "FILE")]
    initrd: Option<PathBuf>,
    /// Kernel command line, in place of the default one
    #[arg(long, value_name = "TEXT", default_value = DEFAULT_COMMAND_LINE)]
    cmdline: String,
    /// What to add to the end of the kernel command line
    #[arg(long, value_name = "TEXT")]
    append: Option<String>,
}

/// Descriptors on their way to the VMM, in the order in which a message names them.
#[derive(Debug, Default)]
pub struct Parcel(Vec<OwnedFd>);

impl Parcel {
    fn add(&mut self, descriptor: impl Into<OwnedFd>) -> Descriptor {
        self.0.push(descriptor.into());
        Descriptor(self.0.len() as u32 - 1)
    }

    pub fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        self.0.iter().map(AsFd::as_fd).collect()
    }
}

impl BootOptions {
    /// Opens the files.
    pub fn open(&self, parcel: &mut Parcel) -> anyhow::Result<BootSource> {
        let kernel = parcel.add(open_file("kernel", &self.kernel)?);
        let initrd = match &self.initrd {
            Some(path) => Some(parcel.add(open_file("initrd", path)?)),
            None => None,
        };
        let command_line = match &self.append {
            Some(more) => format!("{} {more}", self.cmdline),
            None => self.cmdline.clone(),
        };
        Ok(BootSource { kernel, initrd, command_line })
    }

    /// Names the file that is wrong.
    fn explain(&self, error: Error) -> anyhow::Error {
        let file = match &error {
            Error::Refused(failure) if failure.code == FailureCode::Kernel => Some(&self.kernel),
            Error::Refused(failure) if failure.code == FailureCode::Initrd => self.initrd.as_ref(),
            _ => None,
        };
        match file {
            Some(file) => anyhow!(error).context(format!("cannot boot {}", file.display())),
            None => error.into(),
        }
    }
}

/// All that a guest is made of, opened.
struct Parts {
    machine: (Configure, Parcel),
    disks: Vec<(AttachDisk, Parcel, String)>,
    interfaces: Vec<(AttachInterface, Parcel, String)>,
    consoles: Vec<(ConsoleKind, Streams)>,
}

/// Where a console goes.
struct Streams {
    output: File,
    input: Option<OwnedFd>,
    /// What the file holds goes, once there is a new guest.
    is_emptied: bool,
}

impl Run {
    pub fn execute(self) -> anyhow::Result<u8> {
        let (mut terminal, mut sockets) = (None, Vec::new());
        let (parts, keyboard) = self.open(&mut terminal, &mut sockets)?;
        // Before the first thread is started, so that all have these signals blocked.
        let signals = Signals::take().context("cannot take over signals")?;
        let stop_timeout = std::time::Duration::from_secs(self.stop_timeout.into());
        let mut vmm = LocalVmm::new()?;
        let outcome = parts
            .bring_up(&mut vmm, &self.boot)
            .and_then(|()| Controller::new(&mut vmm, self.boot, signals, keyboard, stop_timeout).drive());
        // However it went, it is over.
        let ending = vmm.quit().context("the control thread cannot go on");
        drop(terminal);
        let ending = ending?;
        match outcome {
            Ok(outcome) => Ok(outcome.exit_status()),
            // Another controller has said that this is the end.
            Err(error) if matches!(error.downcast_ref(), Some(Error::Closed)) => Ok(ending_status(&ending)),
            Err(error) => Err(error),
        }
    }

    /// Opens everything. Also returns where keys of a terminal come from and where they go; what is to be undone at the
    /// end goes to `terminal` and `sockets`.
    fn open(
        &self,
        terminal: &mut Option<RawTerminal>,
        sockets: &mut Vec<SocketFile>,
    ) -> anyhow::Result<(Parts, Option<Keyboard>)> {
        let Size(memory) = self.memory;
        memory::check_size(memory)?;
        let mut parcel = Parcel::default();
        let kvm = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_CLOEXEC)
            .open("/dev/kvm")
            .context("cannot open /dev/kvm; innkeeper-vmm check says what to do")?;
        let kvm = parcel.add(kvm);
        let boot = self.boot.open(&mut parcel)?;
        crate::boot::check_command_line(&boot.command_line)?;
        let identity = match &self.smbios {
            Some(SmbiosOption(identity)) => identity.clone(),
            None => Identity { uuid: random_uuid()?.to_string(), serial: None, asset_tag: None },
        };
        let mac_base = identity.uuid.parse::<Uuid>()?.as_u64_pair().1;
        let disks = self.disks.iter().zip(0..).map(open_disk).collect::<anyhow::Result<_>>()?;
        let interfaces = self
            .taps
            .iter()
            .zip(0..)
            .map(|(tap, index)| open_tap(tap, index, mac_base.wrapping_add(index)))
            .collect::<anyhow::Result<_>>()?;
        let vsock = match &self.vsock {
            Some(VsockOption { cid, path }) => {
                let mut make = |path| make_listener(path, SockType::Stream, sockets);
                let listener = path.as_deref().map(&mut make).transpose()?;
                Some(Vsock { cid: *cid, listener: listener.map(|listener| parcel.add(listener)) })
            }
            None => None,
        };
        let listener = match &self.control {
            Some(path) => Some(parcel.add(make_listener(path, SockType::SeqPacket, sockets)?)),
            None => None,
        };
        let mut consoles = Vec::new();
        let mut keyboard = None;
        let wanted =
            [(ConsoleKind::Serial, Some(&self.serial)), (ConsoleKind::Virtio, self.virtio_console.as_ref())];
        let mut is_stdio_taken = false;
        for (kind, option) in wanted {
            let streams = match option {
                None | Some(ConsoleOption::None) => continue,
                Some(ConsoleOption::File(path)) => {
                    // A pipe that nobody reads is an error, not a wait.
                    let output = OpenOptions::new()
                        .write(true)
                        .create(true)
                        .truncate(false)
                        .custom_flags(libc::O_NONBLOCK)
                        .open(path)
                        .with_context(|| format!("cannot create {}", path.display()))?;
                    Streams { output, input: None, is_emptied: true }
                }
                Some(ConsoleOption::Stdio) => {
                    anyhow::ensure!(
                        !std::mem::replace(&mut is_stdio_taken, true),
                        "only one console can have standard input and output; add --serial none or a file"
                    );
                    *terminal = RawTerminal::enter().context("cannot switch the terminal to raw mode")?;
                    let (streams, keys) = standard_streams(terminal.is_some())
                        .context("cannot use standard input and output")?;
                    keyboard = keys;
                    streams
                }
            };
            consoles.push((kind, streams));
        }
        let configure = Configure {
            kvm,
            cpus: self.cpus,
            memory,
            identity,
            boot,
            listener,
            virtio_console: self.virtio_console.is_some(),
            balloon: self.balloon,
            vsock,
        };
        Ok((Parts { machine: (configure, parcel), disks, interfaces, consoles }, keyboard))
    }
}

impl Parts {
    /// Has the VMM make a machine of the parts, and starts it.
    fn bring_up(self, vmm: &mut LocalVmm, boot: &BootOptions) -> anyhow::Result<()> {
        let (configure, parcel) = self.machine;
        vmm.call(Command::Configure(Box::new(configure)), &parcel.descriptors())
            .map_err(|error| boot.explain(error))?;
        // From here on they are the VMM's.
        drop(parcel);
        for (disk, parcel, path) in self.disks {
            vmm.call(Command::AttachDisk(Box::new(disk)), &parcel.descriptors())
                .with_context(|| format!("cannot open disk {path}"))?;
        }
        for (interface, parcel, name) in self.interfaces {
            vmm.call(Command::AttachInterface(Box::new(interface)), &parcel.descriptors())
                .with_context(|| format!("cannot use tap {name}"))?;
        }
        // What the guest prints need not wait for its reader then. But a file is only emptied once there is a guest.
        let (files, streams): (Vec<_>, Vec<_>) =
            self.consoles.into_iter().partition(|(_, streams)| streams.is_emptied);
        for (console, streams) in streams {
            streams.attach(vmm, console)?;
        }
        vmm.call(Command::Start, &[]).map_err(|error| boot.explain(error))?;
        for (console, streams) in files {
            if streams.output.metadata().is_ok_and(|metadata| metadata.is_file()) {
                streams.output.set_len(0).context("cannot empty the console's file")?;
            }
            streams.attach(vmm, console)?;
        }
        Ok(())
    }
}

impl Streams {
    /// Connects a console with them.
    fn attach(self, vmm: &mut LocalVmm, console: ConsoleKind) -> anyhow::Result<()> {
        let mut parcel = Parcel::default();
        let output = Some(parcel.add(self.output));
        let input = self.input.map(|input| parcel.add(input));
        let command = Command::AttachConsole { console, output, input, follow: true, after: 0 };
        vmm.call(command, &parcel.descriptors())?;
        Ok(())
    }
}

/// The keys of a terminal, on their way through the escape's filter to the guest.
pub struct Keyboard {
    pub keys: File,
    pub guest: File,
}

/// Standard input and output as a console; with a terminal, what is typed takes a detour.
fn standard_streams(is_terminal: bool) -> io::Result<(Streams, Option<Keyboard>)> {
    let input = io::stdin().as_fd().try_clone_to_owned()?;
    let output = File::from(io::stdout().as_fd().try_clone_to_owned()?);
    if !is_terminal {
        return Ok((Streams { output, input: Some(input), is_emptied: false }, None));
    }
    let (read, write) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
    let keyboard = Keyboard { keys: input.into(), guest: write.into() };
    Ok((Streams { output, input: Some(read), is_emptied: false }, Some(keyboard)))
}

/// Opens a file to read; a pipe with no writer is an error, not a wait.
fn open_file(what: &str, path: &Path) -> anyhow::Result<File> {
    OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)
        .with_context(|| format!("cannot open {what} {}", path.display()))
}

fn open_disk((option, index): (&DiskOption, usize)) -> anyhow::Result<(AttachDisk, Parcel, String)> {
    let DiskOption { files, is_read_only, serial, engine, queues } = option.clone();
    let mut parcel = Parcel::default();
    let mut open = |path: &Path, is_read_only| {
        innkeeper_block::open(path, is_read_only)
            .map(|file| parcel.add(file))
            .with_context(|| format!("cannot open disk {}", path.display()))
    };
    let (source, name) = match files {
        DiskFiles::Raw(path) => {
            (DiskSource::Raw { file: open(&path, is_read_only)? }, path.display().to_string())
        }
        DiskFiles::Layered(layers) => {
            let name = layers.last().map(|[data, _]| data.display().to_string()).unwrap_or_default();
            anyhow::ensure!(
                layers.len() <= MAX_DESCRIPTORS / 2,
                "disk {name} has too many layers for a command line"
            );
            let count = layers.len();
            let layers = (1..).zip(&layers).map(|(number, [data, map])| {
                let is_read_only = is_read_only || number < count;
                Ok(LayerFiles { data: open(data, is_read_only)?, map: open(map, is_read_only)? })
            });
            (DiskSource::Layered { layers: layers.collect::<anyhow::Result<_>>()? }, name)
        }
    };
    let disk = AttachDisk {
        id: format!("disk{index}"),
        source,
        read_only: is_read_only,
        still: false,
        serial,
        engine,
        queues,
        limits: Limits::default(),
    };
    Ok((disk, parcel, name))
}

fn open_tap(
    option: &TapOption,
    index: u64,
    number: u64,
) -> anyhow::Result<(AttachInterface, Parcel, String)> {
    let TapOption { name, mac, queues, vhost } = option;
    let mut parcel = Parcel::default();
    let taps = tap::open(name, *queues).with_context(|| format!("cannot open tap {name}"))?;
    let count = taps.len();
    let taps = taps.into_iter().map(|tap| parcel.add(tap)).collect();
    let open_vhost = |_| {
        let file = OpenOptions::new().read(true).write(true).open("/dev/vhost-net");
        Ok(parcel.add(file.context("cannot open /dev/vhost-net (modprobe vhost_net)")?))
    };
    let vhost = if *vhost { (0..count).map(open_vhost).collect::<anyhow::Result<_>>()? } else { Vec::new() };
    let interface = AttachInterface {
        id: format!("net{index}"),
        taps,
        vhost,
        mac: mac.unwrap_or_else(|| MacAddress::from_number(number)).to_string(),
        receive: Limits::default(),
        transmit: Limits::default(),
    };
    Ok((interface, parcel, name.clone()))
}

/// A socket in the file system, which goes with this process.
struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        // Somebody may have tidied up already.
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Makes a listening socket, and notes that its file is to go at the end.
fn make_listener(path: &Path, kind: SockType, sockets: &mut Vec<SocketFile>) -> anyhow::Result<OwnedFd> {
    let mut make = || {
        let socket = socket(AddressFamily::Unix, kind, SockFlag::SOCK_CLOEXEC, None)?;
        bind(socket.as_raw_fd(), &UnixAddr::new(path)?)?;
        sockets.push(SocketFile(path.into()));
        listen(&socket, Backlog::new(16)?)?;
        Ok::<_, nix::Error>(socket)
    };
    make().with_context(|| format!("cannot make the socket {} (is there one already?)", path.display()))
}

fn random_uuid() -> anyhow::Result<Uuid> {
    let mut bytes = [0u8; 16];
    // SAFETY: pointer and length are those of the array.
    let count = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
    anyhow::ensure!(count == bytes.len() as isize, "cannot get random bytes for a UUID");
    Ok(uuid::Builder::from_random_bytes(bytes).into_uuid())
}
