//! What a request asks for, done.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::ErrorKind;
use std::mem::take;
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use innkeeper_block::layered::{self, Layer, SealError};
use innkeeper_block::{EngineKind, FileIdentity, FileUse, Layered, OpenError, RawFile};
use innkeeper_protocol::{
    self as protocol, Answer, AttachDisk, AttachInterface, Command, Configure, DiskEngine, DiskSource,
    Failure, FailureCode, LayerFiles, NAMED_LAYERS_MAX, SealDisk, State, Status,
};
use kvm_ioctls::Kvm;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::socket::{SockType, UnixAddr, getsockname, getsockopt, sockopt};
use uuid::Uuid;

use super::Server;
use super::controller::{Descriptors, set_nonblocking};
use crate::boot::{self, BootSource};
use crate::console::Console;
use crate::cpu::MAX_CPUS;
use crate::firmware::smbios::Identity;
use crate::machine::devices::{Device, Part};
use crate::machine::guest::{Guest, GuestError};
use crate::machine::{self, Configuration};
use crate::memory;
use crate::virtio::block::Disk;
use crate::virtio::console::ConsolePort;
use crate::virtio::net::Interface;
use crate::virtio::vsock::VsockHost;

/// The longest that a guest waits for its boot source.
const MAX_BOOT_DELAY: Duration = Duration::from_mins(10);
/// The longest name of a device, in bytes.
const MAX_ID: usize = 64;
/// A disk gets a queue for each CPU, but not more than this, unless the controller says so.
const USUAL_QUEUES: u16 = 4;
/// How long sealing waits for requests that are under way. Each is a write, and most go to the page cache.
const SEAL_PATIENCE: Duration = Duration::from_secs(1);
/// The most queues of a disk.
const MAX_QUEUES: u16 = 16;

fn failure(code: FailureCode, error: impl Into<anyhow::Error>) -> Failure {
    // One line: the causes behind one another.
    Failure { code, message: format!("{:#}", error.into()) }
}

fn invalid(message: impl Into<String>) -> Failure {
    Failure { code: FailureCode::Invalid, message: message.into() }
}

fn unsupported(message: &str) -> Failure {
    Failure { code: FailureCode::Unsupported, message: message.into() }
}

fn cannot(code: FailureCode) -> impl Fn(std::io::Error) -> Failure {
    move |error| failure(code, error)
}

impl From<GuestError> for Failure {
    fn from(error: GuestError) -> Self {
        let code = match &error {
            GuestError::State { .. }
            | GuestError::Exists(_)
            | GuestError::InUse(_)
            | GuestError::Full
            | GuestError::NotLayered(_)
            | GuestError::Busy => FailureCode::Conflict,
            GuestError::Thread(_) => FailureCode::Failed,
            GuestError::NoDevice(_) => FailureCode::NotFound,
            GuestError::Machine(machine::Error::Boot(boot::Error::Kernel(_))) => FailureCode::Kernel,
            GuestError::Machine(machine::Error::Boot(boot::Error::Initrd(_))) => FailureCode::Initrd,
            GuestError::Machine(machine::Error::Capability(_)) => FailureCode::Unsupported,
            GuestError::Machine(_) => FailureCode::Failed,
        };
        failure(code, error)
    }
}

impl Server {
    fn guest(&mut self) -> Result<&mut Guest, Failure> {
        let message = "there is no machine yet; configure it first";
        self.guest.as_mut().ok_or_else(|| Failure { code: FailureCode::Conflict, message: message.into() })
    }

    /// Does what `command` asks for.
    pub(super) fn execute(
        &mut self,
        command: Command,
        descriptors: &mut Descriptors,
    ) -> Result<Answer, Failure> {
        match command {
            // These are the connection's.
            Command::Hello { .. }
            | Command::Events { .. }
            | Command::Layers { .. }
            | Command::AttachDisk(_) => {}
            Command::Configure(configure) => self.configure(*configure, descriptors)?,
            Command::SealDisks { disks } => self.seal_disks(disks, descriptors)?,
            Command::FinishSeal { id } => self.guest()?.finish_seal(&id)?,
            Command::DiskLayers { id } => {
                let layers = self.guest()?.layered(&id)?.layer_ids();
                if layers.len() > NAMED_LAYERS_MAX {
                    return Err(unsupported(&format!(
                        "disk {id:?} has {} layers, too many to name",
                        layers.len()
                    )));
                }
                return Ok(Answer::DiskLayers { layers: layers.iter().map(Uuid::to_string).collect() });
            }
            Command::ReplaceLayers { id, first, count, merged } => {
                self.replace_layers(&id, (first, count), merged, descriptors)?;
            }
            Command::AttachInterface(interface) => return self.attach_interface(*interface, descriptors),
            Command::Detach { id, force } => self.guest()?.detach(&id, force)?,
            Command::ResizeDisk { id, size } => self.resize_disk(&id, size)?,
            Command::LimitDisk { id, limits } => {
                let guest = self.guest()?;
                let (disk, slot) = disk(guest.device(&id)?)?;
                disk.set_limits(limits).map_err(|error| failure(FailureCode::Invalid, error))?;
                guest.wake(slot);
            }
            Command::LimitInterface { id, receive, transmit } => {
                let guest = self.guest()?;
                let (interface, slot) = interface(guest.device(&id)?)?;
                interface
                    .set_limits(receive, transmit)
                    .map_err(|error| failure(FailureCode::Invalid, error))?;
                guest.wake(slot);
            }
            Command::SetBalloon { size } => {
                if !self.guest()?.set_balloon(size) {
                    return Err(unsupported("there is no balloon; it has to be in the configuration"));
                }
            }
            Command::ListenVsock { port, stream } => {
                let stream = descriptors.take(stream, "the connections")?;
                let Some(vsock) = self.guest()?.vsock() else {
                    return Err(unsupported("there is no vsock device; it has to be in the configuration"));
                };
                vsock.listen(port, stream).map_err(|error| failure(FailureCode::Invalid, error))?;
            }
            Command::Start => self.guest()?.start()?,
            Command::Pause => self.guest()?.pause()?,
            Command::Resume => self.guest()?.resume()?,
            Command::PowerButton => self.guest()?.press_power_button()?,
            Command::Reboot { timeout_ms } => {
                self.guest()?.reboot(Duration::from_millis(timeout_ms), Instant::now())?;
            }
            Command::Reset => self.guest()?.reset()?,
            Command::PowerOff => self.guest()?.power_off(),
            Command::Boot { source } => {
                let source = source.map(|source| boot_source(source, descriptors)).transpose()?;
                self.guest()?.set_boot_source(source)?;
            }
            Command::DelayBoot { within_ms } => {
                let within = Duration::from_millis(within_ms);
                if within > MAX_BOOT_DELAY {
                    return Err(invalid(format!("a reset waits at most {} s", MAX_BOOT_DELAY.as_secs())));
                }
                self.guest()?.delay_boot(Instant::now() + within)?;
            }
            Command::Status => return Ok(Answer::Status(Box::new(self.status()))),
            Command::Metrics => return Ok(Answer::Metrics(Box::new(self.guest()?.metrics()))),
            Command::AttachConsole { console, output, input, follow, after } => {
                let mut take = |descriptor: Option<_>, what| {
                    descriptor.map(|descriptor| descriptors.take(descriptor, what)).transpose()
                };
                let (output, input) = (take(output, "console output")?, take(input, "console input")?);
                self.guest()?;
                self.consoles
                    .attach(console, output, input, follow, after)
                    .map_err(|error| invalid(error.to_string()))?;
            }
            Command::Quit => self.is_quitting = true,
        }
        Ok(Answer::Done)
    }

    fn configure(&mut self, configure: Configure, descriptors: &mut Descriptors) -> Result<(), Failure> {
        if self.guest.is_some() {
            let message = "the machine is configured already".into();
            return Err(Failure { code: FailureCode::Conflict, message });
        }
        let kvm = kvm(descriptors.take(configure.kvm, "KVM")?)?;
        if !(1..=MAX_CPUS).contains(&configure.cpus) {
            let error = machine::Error::CpuCount(configure.cpus);
            return Err(failure(FailureCode::Invalid, error));
        }
        memory::check_size(configure.memory).map_err(|error| failure(FailureCode::Invalid, error))?;
        let protocol::Identity { uuid, serial, asset_tag } = configure.identity;
        let uuid = uuid.parse().map_err(|error| invalid(format!("{uuid:?} is not a UUID: {error}")))?;
        let identity =
            Identity::new(uuid, serial, asset_tag).map_err(|error| failure(FailureCode::Invalid, error))?;
        let boot = boot_source(configure.boot, descriptors)?;
        let listener = match configure.listener {
            Some(listener) => Some(check_listener(descriptors.take(listener, "the listener")?)?),
            None => None,
        };
        let serial = Arc::new(Console::default());
        let virtio_console = configure
            .virtio_console
            .then(|| ConsolePort::new(Arc::default()).map(Arc::new))
            .transpose()
            .map_err(cannot(FailureCode::Failed))?;
        let configuration = Configuration {
            cpus: configure.cpus,
            memory: configure.memory,
            identity,
            serial: Arc::clone(&serial),
            virtio_console: virtio_console.clone(),
            balloon: configure.balloon.then(Arc::default),
            vsock: configure.vsock.map(|vsock| vsock_host(vsock, descriptors)).transpose()?,
        };
        let guest = Guest::new(kvm, configuration, boot).map_err(cannot(FailureCode::Failed))?;
        self.consoles.set(serial, virtio_console);
        self.listener = listener;
        self.guest = Some(guest);
        Ok(())
    }

    /// Adds a disk. If it is a layered one, `layers` are below those that it names.
    pub(super) fn attach_disk(
        &mut self,
        disk: AttachDisk,
        mut layers: Vec<Layer>,
        descriptors: &mut Descriptors,
    ) -> Result<Answer, Failure> {
        let cpus = self.guest()?.cpus();
        check_id(&disk.id)?;
        let engine = match disk.engine {
            DiskEngine::Auto => EngineKind::Auto,
            DiskEngine::IoUring => EngineKind::IoUring,
            DiskEngine::Sync => EngineKind::Synchronous,
        };
        let serial = disk.serial.parse().map_err(|error| failure(FailureCode::Invalid, error))?;
        let queues = disk.queues.unwrap_or_else(|| u16::from(cpus).min(USUAL_QUEUES));
        if !(1..=MAX_QUEUES).contains(&queues) {
            return Err(invalid(format!("a disk has 1 to {MAX_QUEUES} queues, not {queues}")));
        }
        let is_still = match (disk.still, disk.read_only) {
            (true, false) => return Err(invalid("a disk that is still is read only")),
            (is_still, _) => is_still,
        };
        let part = match disk.source {
            DiskSource::Raw { file } => {
                let file = File::from(descriptors.take(file, "the disk")?);
                check_access(&file, disk.read_only)?;
                let raw = if is_still {
                    RawFile::from_still_file(file)
                } else {
                    RawFile::from_file(file, disk.read_only)
                };
                let raw = raw
                    .map_err(|error| failure(code_of(matches!(error, OpenError::Locked)), error))?
                    .with_engine(engine);
                Disk::new(Arc::new(raw), serial, queues, disk.limits)
            }
            DiskSource::Layered { layers: upper } => {
                layers.extend(descriptors.take_layers(upper)?);
                let layered = if is_still {
                    Layered::open_still(layers)
                } else {
                    Layered::open(layers, disk.read_only)
                };
                let layered = layered.map_err(|error| failure(code_of(error.is_locked()), error))?;
                Disk::of_layers(layered.with_engine(engine), serial, queues, disk.limits)
            }
        };
        let part = part.map_err(|error| failure(FailureCode::Invalid, error))?;
        let slot = self.guest()?.attach(disk.id, Part::Disk(Arc::new(part)))?;
        Ok(Answer::Attached { slot })
    }

    fn seal_disks(&mut self, disks: Vec<SealDisk>, descriptors: &mut Descriptors) -> Result<(), Failure> {
        let guest = self.guest()?;
        let (mut volumes, mut ids, mut files) = (Vec::new(), Vec::new(), BTreeSet::new());
        for SealDisk { id, tops } in disks {
            if ids.contains(&id) {
                return Err(invalid(format!("disk {id:?} is there twice")));
            }
            let layered = guest.layered(&id)?;
            let tops = descriptors.take_layers(tops)?;
            for file in tops.iter().flat_map(|top| [&top.data, &top.map]) {
                let file = FileIdentity::of(file).map_err(cannot(FailureCode::Failed))?;
                if !files.insert(file) {
                    return Err(invalid(format!("a file of the new layers of disk {id:?} is there twice")));
                }
                guest.check_files(&[FileUse { file, is_written: true }], &id)?;
            }
            ids.push(id);
            volumes.push((layered, tops));
        }
        let volumes: Vec<_> = volumes.iter_mut().map(|(layered, tops)| (&*layered, take(tops))).collect();
        layered::seal_together(volumes, SEAL_PATIENCE).map_err(|SealError { volume, error }| {
            let code = match error.kind() {
                ErrorKind::TimedOut => FailureCode::Conflict,
                _ => FailureCode::Invalid,
            };
            let id = ids.get(volume).map_or("", String::as_str);
            failure(code, anyhow::Error::from(error).context(format!("cannot seal disk {id:?}")))
        })
    }

    fn replace_layers(
        &mut self,
        id: &str,
        (first, count): (u32, u32),
        merged: LayerFiles,
        descriptors: &mut Descriptors,
    ) -> Result<(), Failure> {
        let guest = self.guest()?;
        let layered = guest.layered(id)?;
        for layer in descriptors.take_layers(vec![merged])? {
            for file in [&layer.data, &layer.map] {
                let file = FileIdentity::of(file).map_err(cannot(FailureCode::Failed))?;
                guest.check_files(&[FileUse { file, is_written: false }], id)?;
            }
            let end = first.checked_add(count).and_then(|end| usize::try_from(end).ok());
            let (Ok(first), Some(end)) = (usize::try_from(first), end) else {
                return Err(invalid("a disk does not have so many layers"));
            };
            layered.replace_layers(first..end, layer).map_err(|error| {
                let what = format!("cannot replace layers of disk {id:?}");
                failure(FailureCode::Invalid, anyhow::Error::from(error).context(what))
            })?;
        }
        Ok(())
    }

    fn attach_interface(
        &mut self,
        interface: AttachInterface,
        descriptors: &mut Descriptors,
    ) -> Result<Answer, Failure> {
        check_id(&interface.id)?;
        let mut take = |list: Vec<_>, what| {
            list.into_iter()
                .map(|descriptor| descriptors.take(descriptor, what))
                .collect::<Result<Vec<_>, _>>()
        };
        let (taps, vhost) = (take(interface.taps, "the tap")?, take(interface.vhost, "vhost")?);
        let mac = interface.mac.parse().map_err(|error| failure(FailureCode::Invalid, error))?;
        let part = Interface::new(taps, vhost, mac, interface.receive, interface.transmit)
            .map_err(|error| failure(FailureCode::Invalid, error))?;
        let slot = self.guest()?.attach(interface.id, Part::Interface(Arc::new(part)))?;
        Ok(Answer::Attached { slot })
    }

    fn resize_disk(&mut self, id: &str, size: u64) -> Result<(), Failure> {
        let guest = self.guest()?;
        let (disk, slot) = disk(guest.device(id)?)?;
        guest.change_config(slot, || disk.resize(size)).map_err(|error| {
            let is_busy = error.kind() == ErrorKind::WouldBlock;
            failure(if is_busy { FailureCode::Conflict } else { FailureCode::Invalid }, error)
        })
    }

    fn status(&self) -> Status {
        let mut status = Status {
            state: State::Unconfigured,
            ending: None,
            resets: 0,
            is_rebooting: false,
            last_event: self.events.last(),
            devices: Vec::new(),
            losses: BTreeMap::new(),
            serial_output: 0,
            virtio_output: 0,
            balloon: None,
        };
        if let Some(guest) = &self.guest {
            guest.describe(&mut status);
        }
        self.consoles.describe(&mut status);
        status
    }
}

fn disk(device: &Device) -> Result<(Arc<Disk>, u8), Failure> {
    match &device.part {
        Part::Disk(disk) => Ok((Arc::clone(disk), device.slot)),
        Part::Interface(_) => Err(invalid(format!("{:?} is not a disk", device.id))),
    }
}

fn interface(device: &Device) -> Result<(Arc<Interface>, u8), Failure> {
    match &device.part {
        Part::Interface(interface) => Ok((Arc::clone(interface), device.slot)),
        Part::Disk(_) => Err(invalid(format!("{:?} is not an interface", device.id))),
    }
}

fn check_id(id: &str) -> Result<(), Failure> {
    if (1..=MAX_ID).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Ok(());
    }
    Err(invalid(format!("{id:?} is not a device's name, which is 1 to {MAX_ID} printable ASCII characters")))
}

/// What it means that a disk cannot be opened: somebody else has it, or it is none.
fn code_of(is_locked: bool) -> FailureCode {
    if is_locked { FailureCode::Conflict } else { FailureCode::Invalid }
}

/// Checks that a file was opened for what is to be done with it.
fn check_access(file: &File, read_only: bool) -> Result<(), Failure> {
    let flags = fcntl(file, FcntlArg::F_GETFL).map_err(|error| failure(FailureCode::Failed, error))?;
    match (OFlag::from_bits_retain(flags) & OFlag::O_ACCMODE, read_only) {
        (OFlag::O_RDWR, _) | (OFlag::O_RDONLY, true) => Ok(()),
        (_, true) => Err(invalid("the disk's file was not opened for reading")),
        (_, false) => Err(invalid("the disk's file was not opened for reading and writing")),
    }
}

fn boot_source(source: protocol::BootSource, descriptors: &mut Descriptors) -> Result<BootSource, Failure> {
    let kernel = File::from(descriptors.take(source.kernel, "the kernel")?);
    let initrd =
        source.initrd.map(|initrd| descriptors.take(initrd, "the initrd")).transpose()?.map(File::from);
    boot::check_command_line(&source.command_line).map_err(|error| failure(FailureCode::Invalid, error))?;
    Ok(BootSource { kernel, initrd, command_line: source.command_line })
}

fn vsock_host(vsock: protocol::Vsock, descriptors: &mut Descriptors) -> Result<Arc<VsockHost>, Failure> {
    let take = |listener| descriptors.take(listener, "the vsock device");
    let listener = vsock.listener.map(take).transpose()?;
    let host = VsockHost::new(vsock.cid, listener).map_err(|error| failure(FailureCode::Invalid, error))?;
    Ok(Arc::new(host))
}

/// `/dev/kvm`, if that is what the descriptor is.
fn kvm(descriptor: OwnedFd) -> Result<Kvm, Failure> {
    const API_VERSION: i32 = 12;
    // SAFETY: the descriptor is open and ours, and is given away.
    let kvm = unsafe { Kvm::from_raw_fd(descriptor.into_raw_fd()) };
    match kvm.get_api_version() {
        API_VERSION => Ok(kvm),
        _ => Err(invalid("the descriptor for KVM is not /dev/kvm, opened for reading and writing")),
    }
}

fn check_listener(listener: OwnedFd) -> Result<OwnedFd, Failure> {
    let listens = getsockopt(&listener, sockopt::AcceptConn);
    let kind = getsockopt(&listener, sockopt::SockType);
    let is_unix = getsockname::<UnixAddr>(listener.as_raw_fd()).is_ok();
    if !is_unix || !matches!((listens, kind), (Ok(true), Ok(SockType::SeqPacket))) {
        return Err(invalid("the listener is not a listening Unix socket of type SOCK_SEQPACKET"));
    }
    set_nonblocking(&listener).map_err(cannot(FailureCode::Failed))?;
    Ok(listener)
}
