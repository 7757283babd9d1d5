//! What controllers drive: the life of a guest, its devices, its console, and what has happened.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use innkeeper_block::Layered;
use innkeeper_block::layered::Layer;
use innkeeper_protocol::{
    Answer, AttachDisk, AttachInterface, Command, Configure, ConsoleKind, CpuMetrics, DeviceKind,
    DeviceState, DeviceStatus, DriverState, Ending, Event, Failure, FailureCode, Happening, Metrics,
    ResetCause, SealDisk, State, Status,
};
use innkeeper_tests::stand_in::BANNER;
use uuid::Uuid;

use crate::control::{Descriptors, Shared, failed, invalid};
use crate::disk::{self, Disk, take_layers};
use crate::interface::Interface;

/// The last slot for devices.
const SLOTS: u8 = 31;
/// The longest name of a device, in bytes.
const MAX_ID: usize = 64;
/// How long a reset waits for a boot source.
const BOOT_SOURCE_PATIENCE: Duration = Duration::from_secs(2);

/// A guest, whether it is there yet or not.
#[derive(Default)]
pub struct Machine {
    phase: Phase,
    cpus: u8,
    resets: u64,
    /// By slot.
    devices: Vec<Device>,
    /// All that has happened; the first has number 1.
    events: Vec<Event>,
    /// All that the guest has said.
    serial: Vec<u8>,
    /// The lowest layers of the next disk.
    layers: Vec<Layer>,
    /// How many controllers are connected.
    pub connections: usize,
    /// Whether others can come.
    pub has_listener: bool,
}

#[derive(Default)]
enum Phase {
    #[default]
    Unconfigured,
    Configured,
    Running,
    /// Waits for its boot source, but not longer than this.
    Resetting(Instant),
    Ended(Ending),
}

/// A disk or an interface.
struct Device {
    id: String,
    slot: u8,
    part: Part,
}

enum Part {
    Disk(Disk),
    Interface(Interface),
}

impl Machine {
    /// How the guest ended, if it has.
    pub fn ending(&self) -> Option<&Ending> {
        match &self.phase {
            Phase::Ended(ending) => Some(ending),
            _ => None,
        }
    }

    /// The first event behind number `after`.
    pub fn event_after(&self, after: u64) -> Option<Event> {
        self.events.get(usize::try_from(after).ok()?).cloned()
    }

    /// When to [`Machine::look`].
    pub fn deadline(&self) -> Option<Instant> {
        match self.phase {
            Phase::Resetting(deadline) => Some(deadline),
            _ => None,
        }
    }

    /// Starts a guest anew that has waited long enough for its boot source. Whether it has.
    pub fn look(&mut self, now: Instant) -> bool {
        let is_time = self.deadline().is_some_and(|deadline| now >= deadline);
        if is_time {
            self.run();
        }
        is_time
    }

    /// Takes down what there is to be.
    pub fn configure(&mut self, configure: &Configure) -> Result<(), Failure> {
        match self.phase {
            Phase::Unconfigured => {}
            _ => return Err(conflict("the machine is configured already")),
        }
        if configure.virtio_console || configure.balloon || configure.vsock.is_some() {
            return Err(unsupported("a virtio console, a balloon or a vsock device"));
        }
        self.cpus = configure.cpus;
        self.phase = Phase::Configured;
        Ok(())
    }

    /// Does what `command` asks for.
    pub fn execute(&mut self, command: Command, descriptors: &mut Descriptors) -> Result<Answer, Failure> {
        match command {
            Command::Status => return Ok(Answer::Status(Box::new(self.status()))),
            Command::Quit => return Ok(Answer::Done),
            _ if matches!(self.phase, Phase::Unconfigured) => {
                return Err(conflict("there is no machine yet; configure it first"));
            }
            Command::AttachDisk(disk) => return self.attach_disk(*disk, descriptors),
            Command::AttachInterface(interface) => return self.attach_interface(*interface, descriptors),
            Command::Detach { id, force } => self.detach(&id, force)?,
            Command::ResizeDisk { id, size } => self.disk(&id)?.resize(size).map_err(failed)?,
            Command::Layers { layers } => self.layers.extend(take_layers(layers, descriptors)?),
            Command::SealDisks { disks } => {
                let seal = |seal: SealDisk| {
                    Ok((self.disk(&seal.id)?.layered()?, take_layers(seal.tops, descriptors)?))
                };
                disk::seal(disks.into_iter().map(seal).collect::<Result<_, Failure>>()?)?;
            }
            Command::FinishSeal { id } => {
                let failure = self.disk(&id)?.layered()?.finish_seal().err().map(|error| error.to_string());
                self.happens(Happening::DiskSealed { id, failure });
            }
            Command::DiskLayers { id } => {
                let layers = self.disk(&id)?.layered()?.layer_ids();
                return Ok(Answer::DiskLayers { layers: layers.iter().map(Uuid::to_string).collect() });
            }
            Command::ReplaceLayers { id, first, count, merged } => {
                let merged = take_layers(vec![merged], descriptors)?.pop();
                let merged = merged.ok_or_else(|| invalid("there is no layer"))?;
                let first = first as usize;
                self.disk(&id)?.replace(first..first.saturating_add(count as usize), merged)?;
            }
            // All is as fast as it can be.
            Command::LimitDisk { id, .. } | Command::LimitInterface { id, .. } => drop(self.device(&id)?),
            Command::Start => match self.phase {
                Phase::Configured => self.run(),
                _ => return Err(self.wrong_state("not started")),
            },
            // This guest obeys at once.
            Command::PowerButton => {
                self.check_running()?;
                self.end(Ending::PowerOff);
            }
            Command::Reboot { .. } | Command::Reset => {
                self.check_running()?;
                self.reset();
            }
            Command::PowerOff => {
                if self.ending().is_none() {
                    self.end(Ending::Stopped);
                }
            }
            Command::Boot { .. } => {
                self.check_resetting()?;
                self.run();
            }
            Command::DelayBoot { within_ms } => {
                self.check_resetting()?;
                let later = Instant::now().checked_add(Duration::from_millis(within_ms));
                self.phase = Phase::Resetting(later.ok_or_else(|| invalid("that is too long"))?);
            }
            Command::Metrics => return Ok(Answer::Metrics(Box::new(self.metrics()))),
            Command::Pause | Command::Resume => return Err(unsupported("a guest that stands still")),
            Command::SetBalloon { .. } => return Err(unsupported("a balloon")),
            Command::ListenVsock { .. } => return Err(unsupported("a vsock device")),
            Command::AttachConsole { .. } => return Err(unsupported("a guest that reads its console")),
            // These are the connection's.
            Command::Hello { .. } | Command::Configure(_) | Command::Events { .. } => {}
        }
        Ok(Answer::Done)
    }

    /// Whether there is such a console.
    pub fn check_console(&self, console: ConsoleKind) -> Result<(), Failure> {
        match (&self.phase, console) {
            (Phase::Unconfigured, _) => Err(conflict("there is no machine yet; configure it first")),
            (_, ConsoleKind::Serial) => Ok(()),
            (_, ConsoleKind::Virtio) => Err(unsupported("a virtio console")),
        }
    }

    fn state(&self) -> State {
        match self.phase {
            Phase::Unconfigured => State::Unconfigured,
            Phase::Configured => State::Configured,
            Phase::Running => State::Running,
            Phase::Resetting(_) => State::Resetting,
            Phase::Ended(_) => State::Ended,
        }
    }

    fn wrong_state(&self, wanted: &str) -> Failure {
        conflict(&format!("the machine is {:?}, and has to be {wanted} for this", self.state()))
    }

    fn check_running(&self) -> Result<(), Failure> {
        matches!(self.phase, Phase::Running).then_some(()).ok_or_else(|| self.wrong_state("running"))
    }

    fn check_resetting(&self) -> Result<(), Failure> {
        matches!(self.phase, Phase::Resetting(_)).then_some(()).ok_or_else(|| self.wrong_state("being reset"))
    }

    fn happens(&mut self, what: Happening) {
        let sequence = self.events.len() as u64 + 1;
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let time_ms = u64::try_from(since.as_millis()).unwrap_or(u64::MAX);
        self.events.push(Event { sequence, time_ms, what });
    }

    /// Lets the guest run, at first or anew.
    fn run(&mut self) {
        self.phase = Phase::Running;
        self.happens(Happening::Started);
        for device in &mut self.devices {
            if let Part::Interface(interface) = &mut device.part
                && let Err(error) = interface.plug()
            {
                let reason = format!("{} cannot be plugged in: {error}", device.id);
                return self.end(Ending::Failed { reason });
            }
        }
        self.serial.extend(BANNER.as_bytes());
    }

    fn reset(&mut self) {
        self.resets += 1;
        // What the guest has set there is lost.
        for device in &mut self.devices {
            if let Part::Interface(interface) = &mut device.part {
                interface.unplug();
            }
        }
        self.happens(Happening::Reset { cause: ResetCause::Controller });
        let within_ms = BOOT_SOURCE_PATIENCE.as_millis() as u64;
        self.happens(Happening::BootSourceWanted { within_ms });
        self.phase = Phase::Resetting(Instant::now() + BOOT_SOURCE_PATIENCE);
    }

    fn end(&mut self, ending: Ending) {
        self.devices.clear();
        self.happens(Happening::Ended(ending.clone()));
        self.phase = Phase::Ended(ending);
    }

    fn attach_disk(&mut self, disk: AttachDisk, descriptors: &mut Descriptors) -> Result<Answer, Failure> {
        let below = std::mem::take(&mut self.layers);
        let part = Disk::open(disk.source, below, disk.still, descriptors)?;
        self.attach(disk.id, Part::Disk(part))
    }

    fn attach_interface(
        &mut self,
        interface: AttachInterface,
        descriptors: &mut Descriptors,
    ) -> Result<Answer, Failure> {
        let mac = interface.mac.parse().map_err(|error| invalid(format!("{error:#}")))?;
        let taps: Vec<OwnedFd> = interface
            .taps
            .into_iter()
            .map(|tap| descriptors.take(tap, "the tap"))
            .collect::<Result<_, _>>()?;
        if !(1..=8).contains(&taps.len()) || ![0, taps.len()].contains(&interface.vhost.len()) {
            return Err(invalid("an interface has 1 to 8 taps, and vhost for each or for none"));
        }
        let part = Interface::new(taps, mac)
            .map_err(|error| invalid(format!("it is not a tap that can be used: {error}")))?;
        self.attach(interface.id, Part::Interface(part))
    }

    fn attach(&mut self, id: String, mut part: Part) -> Result<Answer, Failure> {
        if self.ending().is_some() {
            return Err(self.wrong_state("one that has not ended"));
        }
        if !(1..=MAX_ID).contains(&id.len()) || !id.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(invalid(format!("{id:?} is not a device's name")));
        }
        if self.device(&id).is_ok() {
            return Err(conflict(&format!("there is a device {id:?} already")));
        }
        let is_free = |slot: &u8| self.devices.iter().all(|device| device.slot != *slot);
        let slot = (1..=SLOTS).find(is_free).ok_or_else(|| conflict("all slots are in use"))?;
        if let (Phase::Running, Part::Interface(interface)) = (&self.phase, &mut part) {
            interface.plug().map_err(failed)?;
        }
        self.devices.push(Device { id: id.clone(), slot, part });
        self.devices.sort_by_key(|device| device.slot);
        self.happens(Happening::DeviceAttached { id });
        Ok(Answer::Attached { slot })
    }

    fn device(&self, id: &str) -> Result<&Device, Failure> {
        let message = || format!("there is no device {id:?}; it may be freed already");
        self.devices
            .iter()
            .find(|device| device.id == id)
            .ok_or_else(|| Failure { code: FailureCode::NotFound, message: message() })
    }

    fn disk(&self, id: &str) -> Result<&Disk, Failure> {
        match &self.device(id)?.part {
            Part::Disk(disk) => Ok(disk),
            Part::Interface(_) => Err(invalid(format!("{id:?} is not a disk"))),
        }
    }

    /// This guest lets go of a device at once.
    fn detach(&mut self, id: &str, force: bool) -> Result<(), Failure> {
        self.device(id)?;
        let id = || id.to_owned();
        if !force {
            self.happens(Happening::DeviceDetaching { id: id() });
        }
        self.happens(Happening::DeviceEjected { id: id() });
        self.devices.retain(|device| device.id != id());
        self.happens(Happening::DeviceFreed { id: id() });
        Ok(())
    }

    fn status(&self) -> Status {
        let devices = self.devices.iter().map(|device| {
            let is_running = matches!(self.phase, Phase::Running);
            let (kind, size, driver) = match &device.part {
                Part::Disk(disk) if is_running => (DeviceKind::Disk, disk.size(), DriverState::Running),
                Part::Disk(disk) => (DeviceKind::Disk, disk.size(), DriverState::None),
                Part::Interface(interface) => (DeviceKind::Interface, 0, interface.driver()),
            };
            let (id, state) = (device.id.clone(), DeviceState::Attached);
            let slot = device.slot;
            let layered = match &device.part {
                Part::Disk(disk) => disk.layered().ok(),
                Part::Interface(_) => None,
            };
            let top = layered.map(|disk| disk.top().to_string());
            let count = |number: fn(&Layered) -> usize| layered.map_or(0, number) as u32;
            let (layers, unsealed) = (count(Layered::layers), count(Layered::unsealed));
            let impairment = layered.and_then(|disk| disk.impairment()).map(str::to_owned);
            DeviceStatus { id, kind, slot, state, size, driver, top, layers, unsealed, impairment }
        });
        Status {
            state: self.state(),
            ending: self.ending().cloned(),
            resets: self.resets,
            is_rebooting: false,
            last_event: self.events.len() as u64,
            devices: devices.collect(),
            losses: BTreeMap::new(),
            serial_output: self.serial.len() as u64,
            virtio_output: 0,
            balloon: None,
        }
    }

    fn metrics(&self) -> Metrics {
        let cpus = vec![CpuMetrics::default(); usize::from(self.cpus)];
        let mut metrics = Metrics { cpus, ..Default::default() };
        for device in &self.devices {
            let id = device.id.clone();
            match &device.part {
                Part::Disk(_) => _ = metrics.disks.insert(id, Default::default()),
                Part::Interface(interface) => _ = metrics.interfaces.insert(id, interface.metrics()),
            }
        }
        metrics
    }
}

/// Copies what the guest has said, from behind byte `after` on, and what it says until its end, if it is to `follow`.
pub fn copy_console(shared: &Shared, mut output: File, follow: bool, after: u64) {
    let mut at = usize::try_from(after).unwrap_or(usize::MAX);
    let mut machine = shared.lock();
    loop {
        let new = machine.serial.get(at..).unwrap_or_default().to_vec();
        let is_over = !follow || machine.ending().is_some();
        if new.is_empty() && !is_over {
            machine = shared.wait(machine, None);
            continue;
        }
        drop(machine);
        if output.write_all(&new).is_err() || is_over {
            return;
        }
        at += new.len();
        machine = shared.lock();
    }
}

fn conflict(message: &str) -> Failure {
    Failure { code: FailureCode::Conflict, message: message.into() }
}

fn unsupported(what: &str) -> Failure {
    Failure { code: FailureCode::Unsupported, message: format!("the stand-in does not have {what}") }
}
