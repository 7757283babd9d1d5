//! A guest: its life over all the machines it runs in.
//!
//! It is driven from outside, by the control thread, which waits for [`Guest::sources`] and [`Guest::deadline`] and
//! then calls [`Guest::look`]. Nothing here waits for the guest or for a disk. What others may want to know is left
//! in [`Guest::take_happenings`].

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use innkeeper_block::{FileUse, Layered};
use innkeeper_protocol::{DeviceState, Ending, Happening, Metrics, ResetCause, State, Status};
use kvm_ioctls::Kvm;

use super::devices::{Action, Device, Devices, Input, Part, is_in_machine};
use super::lifecycle::{Faults, Next, after};
use super::reaper::Reaper;
use super::{Configuration, Error, Function, Machine};
use crate::boot::BootSource;
use crate::cpu::ExitCounters;
use crate::event::as_fd;
use crate::exit::Exit;
use crate::platform::serial::SerialPort;
use crate::virtio::block::{Disk, Revoked};
use crate::virtio::transport::{Remote, VirtioPci};
use crate::virtio::vsock::VsockHost;

/// A guest may not listen to the power button yet; pressing it again does no harm.
const BUTTON_PERIOD: Duration = Duration::from_secs(10);
/// How long CPUs may take to stand still. One may be waiting for a disk.
const PAUSE_PATIENCE: Duration = Duration::from_secs(1);
/// How long disks may take to write what they know, when the process ends.
const LEAVE_PATIENCE: Duration = Duration::from_secs(10);
/// How long a reset waits for a boot source.
pub const BOOT_SOURCE_PATIENCE: Duration = Duration::from_secs(2);

/// Why something cannot be done with a guest.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum GuestError {
    #[error("the machine is {is}, and has to be {wanted} for this", is = name(.is))]
    State { is: State, wanted: &'static str },
    #[error("there is a device {0:?} already; a name is free again when its device is freed")]
    Exists(String),
    #[error("the file is in use: it is that of device {0:?} (two writers would destroy it)")]
    InUse(String),
    #[error("there is no device {0:?}; it may be freed already")]
    NoDevice(String),
    #[error("all slots for devices are in use")]
    Full,
    #[error("a CPU does not stand still, because it waits for a device; try again")]
    Busy,
    #[error("{0:?} is not a layered disk, or its layers were taken away")]
    NotLayered(String),
    #[error("there is no thread to do it: {0}")]
    Thread(io::Error),
    #[error(transparent)]
    Machine(#[from] Error),
}

/// The name of a device that nobody uses any more, and why something of it is lost, if that is so.
fn loss(device: &Device) -> Option<(String, String)> {
    Some((device.id.clone(), device.part.loss()?))
}

fn name(state: &State) -> &'static str {
    match state {
        State::Unconfigured => "not configured",
        State::Configured => "not started",
        State::Running => "running",
        State::Paused => "paused",
        State::Resetting => "being reset",
        State::Ended => "ended",
    }
}

/// What a guest is doing.
#[derive(Debug)]
enum Phase {
    Configured,
    Running,
    Paused,
    Resetting(Resetting),
    /// Its last machine is being taken down, and so may be devices that have left it.
    Ending {
        ending: Ending,
        is_machine_gone: bool,
    },
    Ended(Ending),
}

/// A reset under way: it is over when the old machine is gone and the boot source is known.
#[derive(Debug)]
struct Resetting {
    is_machine_gone: bool,
    /// Whether anybody was asked for the boot source.
    is_asked: bool,
    /// When not to wait for a boot source any longer.
    deadline: Instant,
    /// What the controller wants, if it has said so.
    answer: Option<Option<BootSource>>,
}

/// A reboot under way.
#[derive(Clone, Copy, Debug)]
struct Reboot {
    deadline: Instant,
    next_press: Instant,
}

/// What a reaper was given.
#[derive(Clone, Debug)]
enum Remains {
    Machine,
    Device(String),
    /// Not what is left of something: the layers of a disk are marked as sealed, or why they are not.
    Sealed(String, Option<String>),
    /// Something that nobody waits for.
    Nothing,
}

/// A guest.
#[derive(Debug)]
pub struct Guest {
    kvm: Kvm,
    configuration: Configuration,
    boot: BootSource,
    devices: Devices,
    phase: Phase,
    machine: Option<Machine>,
    reboot: Option<Reboot>,
    faults: Faults,
    resets: u64,
    counters: Vec<Arc<ExitCounters>>,
    reaper: Reaper<Remains>,
    /// Disks whose layers are being marked as sealed, and whether that was asked for again meanwhile.
    sealing: BTreeMap<String, bool>,
    /// Those of them that are to be freed then.
    freeing: BTreeSet<String>,
    /// Disks that are gone, of which something is lost, and why.
    losses: BTreeMap<String, String>,
    happenings: Vec<Happening>,
}

impl Guest {
    /// A guest that was not started yet.
    pub fn new(kvm: Kvm, configuration: Configuration, boot: BootSource) -> io::Result<Self> {
        let counters = (0..configuration.cpus).map(|_| Arc::default()).collect();
        Ok(Self {
            kvm,
            configuration,
            boot,
            devices: Devices::default(),
            phase: Phase::Configured,
            machine: None,
            reboot: None,
            faults: Faults::default(),
            resets: 0,
            counters,
            reaper: Reaper::new()?,
            sealing: BTreeMap::new(),
            freeing: BTreeSet::new(),
            losses: BTreeMap::new(),
            happenings: Vec::new(),
        })
    }

    /// What the machine is doing.
    pub fn state(&self) -> State {
        match self.phase {
            Phase::Configured => State::Configured,
            Phase::Running => State::Running,
            Phase::Paused => State::Paused,
            Phase::Resetting(_) => State::Resetting,
            Phase::Ending { .. } | Phase::Ended(_) => State::Ended,
        }
    }

    /// How many CPUs it has.
    pub fn cpus(&self) -> u8 {
        self.configuration.cpus
    }

    /// How it ended, once nothing is left of its machine.
    pub fn ending(&self) -> Option<&Ending> {
        match &self.phase {
            Phase::Ended(ending) => Some(ending),
            _ => None,
        }
    }

    /// What has happened since the last call.
    pub fn take_happenings(&mut self) -> Vec<Happening> {
        std::mem::take(&mut self.happenings)
    }

    fn wrong_state<T>(&self, wanted: &'static str) -> Result<T, GuestError> {
        Err(GuestError::State { is: self.state(), wanted })
    }

    /// The machine, if its CPUs can run.
    fn live_machine(&mut self) -> Result<&mut Machine, GuestError> {
        let is = self.state();
        self.machine.as_mut().ok_or(GuestError::State { is, wanted: "running or paused" })
    }

    /// Lets the guest run for the first time.
    pub fn start(&mut self) -> Result<(), GuestError> {
        match self.phase {
            Phase::Configured => Ok(self.run()?),
            _ => self.wrong_state("configured and not started"),
        }
    }

    /// Builds a machine and lets it run.
    fn run(&mut self) -> Result<(), Error> {
        let mut machine = Machine::build(&self.kvm, &self.configuration, &self.boot)?;
        for device in self.devices.iter().filter(|device| is_in_machine(device.state)) {
            machine.insert(device.slot, device.part.device())?;
        }
        machine.start(&self.counters)?;
        self.machine = Some(machine);
        self.phase = Phase::Running;
        self.happenings.push(Happening::Started);
        Ok(())
    }

    /// Has the CPUs stand still. Again does no harm.
    pub fn pause(&mut self) -> Result<(), GuestError> {
        match self.phase {
            Phase::Paused => return Ok(()),
            Phase::Running => {}
            _ => return self.wrong_state("running"),
        }
        if !self.live_machine()?.pause(PAUSE_PATIENCE) {
            return Err(GuestError::Busy);
        }
        self.phase = Phase::Paused;
        self.happenings.push(Happening::Paused);
        Ok(())
    }

    /// Lets the CPUs run on. Again does no harm.
    pub fn resume(&mut self) -> Result<(), GuestError> {
        match self.phase {
            Phase::Running => return Ok(()),
            Phase::Paused => {}
            _ => return self.wrong_state("paused"),
        }
        self.live_machine()?.resume();
        self.phase = Phase::Running;
        self.happenings.push(Happening::Resumed);
        Ok(())
    }

    /// Presses the power button.
    pub fn press_power_button(&mut self) -> Result<(), GuestError> {
        self.live_machine()?.press_power_button();
        Ok(())
    }

    /// Presses the power button until the guest has switched itself off or `timeout` is over, and starts it anew.
    pub fn reboot(&mut self, timeout: Duration, now: Instant) -> Result<(), GuestError> {
        self.press_power_button()?;
        let deadline = now.checked_add(timeout).unwrap_or(now);
        self.reboot = Some(Reboot { deadline, next_press: now + BUTTON_PERIOD });
        Ok(())
    }

    /// Starts the guest anew, whatever it is doing.
    pub fn reset(&mut self) -> Result<(), GuestError> {
        // First come, first served: if the guest was about to end, it ends.
        self.live_machine()?.exit().set(Exit::Reset(ResetCause::Controller));
        Ok(())
    }

    /// Ends the guest, whatever it is doing. Again does no harm.
    pub fn power_off(&mut self) {
        match &self.phase {
            Phase::Ending { .. } | Phase::Ended(_) => {}
            Phase::Configured => self.end(Ending::Stopped),
            // The old machine is on its way out already.
            Phase::Resetting(Resetting { is_machine_gone, .. }) => {
                self.phase = Phase::Ending { ending: Ending::Stopped, is_machine_gone: *is_machine_gone };
                self.finish_ending();
            }
            Phase::Running | Phase::Paused => self.end(Ending::Stopped),
        }
    }

    /// Answers the question for a boot source.
    pub fn set_boot_source(&mut self, source: Option<BootSource>) -> Result<(), GuestError> {
        match &mut self.phase {
            // Who answers before has read disks that were not flushed.
            Phase::Resetting(resetting) if resetting.is_asked => {
                resetting.answer = Some(source);
                Ok(())
            }
            _ => self.wrong_state("being reset, and waiting for a boot source"),
        }
    }

    /// Waits for the boot source until `deadline`.
    pub fn delay_boot(&mut self, deadline: Instant) -> Result<(), GuestError> {
        match &mut self.phase {
            Phase::Resetting(resetting) => {
                resetting.deadline = deadline;
                Ok(())
            }
            _ => self.wrong_state("being reset, and waiting for a boot source"),
        }
    }

    /// Adds a device; returns its slot.
    pub fn attach(&mut self, id: String, part: Part) -> Result<u8, GuestError> {
        if matches!(self.phase, Phase::Ending { .. } | Phase::Ended(_)) {
            return self.wrong_state("one that has not ended");
        }
        if self.devices.get(&id).is_some() {
            return Err(GuestError::Exists(id));
        }
        self.check_files(&part.files(), &id)?;
        let is_occupied = |slot| self.machine.as_ref().is_some_and(|machine| machine.has(slot));
        let slot = self.devices.free_slot(self.configuration.slots(), is_occupied).ok_or(GuestError::Full)?;
        if let Some(machine) = &mut self.machine {
            machine.insert(slot, part.device())?;
            machine.hotplug().check(slot);
        }
        self.losses.remove(&id);
        self.happenings.push(Happening::DeviceAttached { id: id.clone() });
        self.devices.add(id, slot, part);
        Ok(slot)
    }

    /// Checks that no device but `id` is on files in a way that does not go with these uses of them.
    pub fn check_files(&self, uses: &[FileUse], id: &str) -> Result<(), GuestError> {
        let collides = |device: &&Device| {
            let files = device.part.files();
            device.id != id && files.iter().any(|file| uses.iter().any(|other| file.collides_with(other)))
        };
        match self.devices.iter().find(collides) {
            Some(other) => Err(GuestError::InUse(other.id.clone())),
            None => Ok(()),
        }
    }

    /// The layers of a disk.
    pub fn layered(&self, id: &str) -> Result<Layered, GuestError> {
        self.device(id)?.part.layered().ok_or_else(|| GuestError::NotLayered(id.into()))
    }

    /// Has what was sealed of a disk made durable and marked, elsewhere.
    pub fn finish_seal(&mut self, id: &str) -> Result<(), GuestError> {
        let layered = self.layered(id)?;
        if let Some(is_asked_again) = self.sealing.get_mut(id) {
            // What is under way may not see what was sealed since it began.
            *is_asked_again = true;
            return Ok(());
        }
        let name = id.to_owned();
        let seal = move || {
            let failure = layered.finish_seal().err().map(|error| error.to_string());
            // Files are closed before anybody is told.
            drop(layered);
            Remains::Sealed(name, failure)
        };
        self.reaper.run(seal).map_err(GuestError::Thread)?;
        self.sealing.insert(id.into(), false);
        Ok(())
    }

    fn is_sealed(&mut self, id: String, failure: Option<String>) {
        let is_asked_again = self.sealing.remove(&id).unwrap_or_default();
        if is_asked_again && !self.freeing.contains(&id) && self.finish_seal(&id).is_ok() {
            return;
        }
        self.happenings.push(Happening::DiskSealed { id: id.clone(), failure });
        if self.freeing.remove(&id) {
            self.free(&id);
        }
        self.finish_ending();
    }

    /// Takes a device away, with or without asking the guest.
    pub fn detach(&mut self, id: &str, force: bool) -> Result<(), GuestError> {
        let slot = self.device(id)?.slot;
        let is_nobodys = match &self.phase {
            Phase::Configured => true,
            Phase::Resetting(resetting) => resetting.is_machine_gone,
            // A guest may have given it up unasked.
            _ => self.machine.as_ref().is_some_and(|machine| !machine.has(slot)),
        };
        self.step(id, if force { Input::Force } else { Input::Detach });
        if is_nobodys {
            self.step(id, Input::MachineGone);
        }
        Ok(())
    }

    /// The device of this name.
    pub fn device(&self, id: &str) -> Result<&Device, GuestError> {
        self.devices.get(id).ok_or_else(|| GuestError::NoDevice(id.into()))
    }

    /// Has the driver of a device told of a change that `change` makes, if it succeeds.
    pub fn change_config<E>(&self, slot: u8, change: impl FnOnce() -> Result<(), E>) -> Result<(), E> {
        match self.machine.as_ref().and_then(|machine| machine.remote(slot)) {
            Some(remote) => remote.change_config(change),
            None => change(),
        }
    }

    /// Has the threads of a device look at what has changed for them.
    pub fn wake(&self, slot: u8) {
        if let Some(remote) = self.machine.as_ref().and_then(|machine| machine.remote(slot)) {
            remote.wake();
        }
    }

    /// The serial port, while there is one.
    pub fn serial(&self) -> Option<&Arc<Mutex<SerialPort>>> {
        self.machine.as_ref().map(Machine::serial)
    }

    /// Lets something happen to a device, and does what follows from it.
    fn step(&mut self, id: &str, input: Input) {
        let (action, has_changed) = self.devices.step(id, input);
        let Some(slot) = self.devices.get(id).map(|device| device.slot) else { return };
        match action {
            Action::None => {}
            Action::Ask => {
                if has_changed {
                    self.happenings.push(Happening::DeviceDetaching { id: id.into() });
                }
                if let Some(machine) = &self.machine {
                    machine.hotplug().request_ejection(slot);
                }
            }
            Action::TakeOff => self.take_off(id, slot, input),
            Action::Free if self.sealing.contains_key(id) => _ = self.freeing.insert(id.into()),
            Action::Free => self.free(id),
        }
    }

    fn free(&mut self, id: &str) {
        self.losses.extend(self.devices.get(id).and_then(loss));
        self.devices.remove(id);
        self.happenings.push(Happening::DeviceFreed { id: id.into() });
        self.finish_ending();
    }

    /// Has a device that is on its way out end, elsewhere.
    fn take_off(&mut self, id: &str, slot: u8, why: Input) {
        self.happenings.push(Happening::DeviceEjected { id: id.into() });
        let part = self.devices.get(id).map(|device| device.part.clone());
        let remains: Remainder = match (part, why) {
            (Some(Part::Disk(disk)), Input::Force) => {
                // The guest's requests fail from now on, and it is asked to let go of what is left.
                let revoked = disk.revoke();
                self.wake(slot);
                if let Some(machine) = &self.machine {
                    machine.hotplug().request_ejection(slot);
                }
                Remainder::Disk(disk, Some(revoked))
            }
            (part, why) => {
                let function = self.machine.as_mut().and_then(|machine| machine.remove(slot));
                if let Some(machine) = self.machine.as_ref().filter(|_| why == Input::Force) {
                    // It finds nothing there, and forgets what it had.
                    machine.hotplug().check(slot);
                }
                Remainder::Function(function, part)
            }
        };
        self.reap(Remains::Device(id.into()), remains);
    }

    fn reap(&mut self, name: Remains, remains: impl Send + 'static) {
        if let Err(error) = self.reaper.drop(name.clone(), remains) {
            // Dropped here then. It may have taken longer, but nothing is lost.
            tracing::warn!(%error, "no thread to let go of something");
            self.is_reaped(name);
        }
    }

    fn is_reaped(&mut self, name: Remains) {
        match name {
            Remains::Machine => self.machine_is_gone(),
            Remains::Device(id) => self.step(&id, Input::Finished),
            Remains::Sealed(id, failure) => self.is_sealed(id, failure),
            Remains::Nothing => {}
        }
    }

    /// The guest has given up what is in `slot`.
    fn slot_is_empty(&mut self, slot: u8) {
        let part = self.devices.in_slot(slot).map(|device| device.part.clone());
        if let Some(id) = self.devices.in_slot(slot).map(|device| device.id.clone()) {
            self.step(&id, Input::Ejected);
        }
        // What is left of a disk that was taken by force, or what nobody has asked the guest for.
        if let Some(function) = self.machine.as_mut().and_then(|machine| machine.remove(slot)) {
            self.reap(Remains::Nothing, Remainder::Function(Some(function), part));
        }
    }

    /// Deals with whatever has happened.
    pub fn look(&mut self, now: Instant) {
        for remains in self.reaper.done() {
            self.is_reaped(remains);
        }
        let ejected = self.machine.as_ref().map(|machine| machine.hotplug().take_ejected());
        for slot in ejected.unwrap_or_default() {
            self.slot_is_empty(slot);
        }
        if let Some(exit) = self.machine.as_ref().and_then(|machine| machine.exit().get()) {
            match after(exit, self.reboot.is_some(), &mut self.faults, now) {
                Next::Reset(cause) => self.begin_reset(cause, now),
                Next::End(ending) => self.end(ending),
            }
        }
        self.continue_reboot(now);
        self.continue_reset(now);
    }

    fn continue_reboot(&mut self, now: Instant) {
        let (Some(reboot), Some(machine)) = (&mut self.reboot, &self.machine) else { return };
        if now >= reboot.deadline {
            tracing::warn!("the guest did not switch itself off in time, and is reset");
            machine.exit().set(Exit::Reset(ResetCause::Controller));
            self.look(now);
        } else if now >= reboot.next_press {
            machine.press_power_button();
            reboot.next_press = now + BUTTON_PERIOD;
        }
    }

    fn begin_reset(&mut self, cause: ResetCause, now: Instant) {
        tracing::info!(?cause, "the guest starts anew");
        self.resets += 1;
        self.reboot = None;
        self.happenings.push(Happening::Reset { cause });
        self.phase = Phase::Resetting(Resetting {
            is_machine_gone: false,
            is_asked: false,
            deadline: now,
            answer: None,
        });
        // Whoever looks for the boot source may read the disks' files. Of layered ones, they tell what is on the disk only
        // when nobody writes any more and all is flushed.
        if self.devices.iter().all(|device| device.part.layered().is_none()) {
            self.ask_for_boot_source(now);
        }
        self.take_machine_down();
    }

    fn ask_for_boot_source(&mut self, now: Instant) {
        if let Phase::Resetting(resetting) = &mut self.phase
            && !std::mem::replace(&mut resetting.is_asked, true)
        {
            // Somebody may have said already that it takes longer.
            resetting.deadline = resetting.deadline.max(now + BOOT_SOURCE_PATIENCE);
            let within_ms = BOOT_SOURCE_PATIENCE.as_millis() as u64;
            self.happenings.push(Happening::BootSourceWanted { within_ms });
        }
    }

    fn end(&mut self, ending: Ending) {
        self.reboot = None;
        self.phase = Phase::Ending { ending, is_machine_gone: false };
        self.take_machine_down();
    }

    fn take_machine_down(&mut self) {
        let disks = self.devices.iter().filter_map(|device| match &device.part {
            Part::Disk(disk) => Some(Arc::clone(disk)),
            Part::Interface(_) => None,
        });
        let disks = disks.collect();
        let machine = self.machine.take();
        self.reap(Remains::Machine, Remainder::Machine(machine, disks));
    }

    fn machine_is_gone(&mut self) {
        let ids: Vec<String> = self.devices.iter().map(|device| device.id.clone()).collect();
        ids.iter().for_each(|id| self.step(id, Input::MachineGone));
        match &mut self.phase {
            Phase::Resetting(resetting) => {
                resetting.is_machine_gone = true;
                self.ask_for_boot_source(Instant::now());
            }
            Phase::Ending { is_machine_gone, .. } => *is_machine_gone = true,
            _ => {}
        }
        self.finish_ending();
    }

    /// Says that the guest has ended, once nothing of it is left.
    fn finish_ending(&mut self) {
        let is_leaving = |device: &Device| device.state == DeviceState::Ejected;
        if let Phase::Ending { ending, is_machine_gone: true } = &self.phase
            && !self.devices.iter().any(is_leaving)
            && self.sealing.is_empty()
        {
            let ending = ending.clone();
            self.losses.extend(self.devices.iter().filter_map(loss));
            // Files are closed, and locks given back, whether the process stays or not.
            self.devices = Devices::default();
            self.happenings.push(Happening::Ended(ending.clone()));
            self.phase = Phase::Ended(ending);
        }
    }

    /// Runs the next machine, if the time has come.
    fn continue_reset(&mut self, now: Instant) {
        let Phase::Resetting(resetting) = &mut self.phase else { return };
        if !resetting.is_machine_gone || resetting.answer.is_none() && now < resetting.deadline {
            return;
        }
        let fresh = resetting.answer.take().flatten();
        let result = match fresh {
            None => self.run(),
            Some(fresh) => {
                let old = std::mem::replace(&mut self.boot, fresh);
                match self.run() {
                    Err(Error::Boot(error)) => {
                        let reason = error.to_string();
                        tracing::warn!(%reason, "the new boot source is refused");
                        self.happenings.push(Happening::BootSourceRefused { reason });
                        self.boot = old;
                        self.run()
                    }
                    result => result,
                }
            }
        };
        if let Err(error) = result {
            let reason = format!("{:#}", anyhow::Error::from(error));
            self.end(Ending::Failed { reason });
        }
    }

    /// What to wait for.
    pub fn sources(&self) -> Vec<BorrowedFd<'_>> {
        let mut sources = vec![self.reaper.event()];
        if let Some(machine) = &self.machine {
            sources.extend([as_fd(machine.exit().event()), as_fd(machine.hotplug().event())]);
        }
        sources
    }

    /// When to look, whatever happens or not.
    pub fn deadline(&self) -> Option<Instant> {
        let reboot = self.reboot.map(|reboot| reboot.deadline.min(reboot.next_press));
        let reset = match &self.phase {
            Phase::Resetting(Resetting { is_machine_gone: true, deadline, .. }) => Some(*deadline),
            _ => None,
        };
        reboot.into_iter().chain(reset).min()
    }

    /// Fills in what is known here of how things stand.
    pub fn describe(&self, status: &mut Status) {
        status.state = self.state();
        status.ending = self.ending().cloned();
        status.resets = self.resets;
        status.is_rebooting = self.reboot.is_some();
        status.balloon = self.configuration.balloon.as_ref().map(|balloon| balloon.status());
        let remote = |slot| self.machine.as_ref().and_then(|machine| machine.remote(slot));
        let driver = |slot| remote(slot).map(Remote::driver_state).unwrap_or_default();
        status.devices = self.devices.iter().map(|device| device.status(driver(device.slot))).collect();
        status.losses.clone_from(&self.losses);
    }

    /// What was counted.
    pub fn metrics(&self) -> Metrics {
        let cpus = self.counters.iter().map(|counters| counters.snapshot()).collect();
        let mut metrics = Metrics { cpus, ..Default::default() };
        for device in self.devices.iter() {
            match &device.part {
                Part::Disk(disk) => _ = metrics.disks.insert(device.id.clone(), disk.metrics()),
                Part::Interface(interface) => {
                    _ = metrics.interfaces.insert(device.id.clone(), interface.metrics());
                }
            }
        }
        let configuration = &self.configuration;
        metrics.balloon = configuration.balloon.as_ref().map(|balloon| balloon.metrics());
        metrics.vsock = configuration.vsock.as_ref().map(|vsock| vsock.metrics());
        metrics
    }

    /// Leaves the guest as it is: the process ends. What its disks know only in memory is written first, if that does not take
    /// too long.
    pub fn leave(self) {
        let disks: Vec<Arc<Disk>> = self
            .devices
            .iter()
            .filter_map(|device| match &device.part {
                Part::Disk(disk) if disk.layered().is_some() => Some(Arc::clone(disk)),
                _ => None,
            })
            .collect();
        if !disks.is_empty() {
            if let Some(machine) = &self.machine {
                machine.pause(PAUSE_PATIENCE);
            }
            let (sender, receiver) = std::sync::mpsc::channel();
            let settle = move || {
                disks.iter().for_each(|disk| disk.settle());
                let _ = sender.send(());
            };
            // Without a thread nobody sends, and the receiver knows at once.
            let _ = std::thread::Builder::new().name("settle".into()).spawn(settle);
            if receiver.recv_timeout(LEAVE_PATIENCE).is_err() {
                tracing::error!("the disks take too long, and may lose what was not flushed");
            }
        }
        // Taking it down could take as long as its disks like.
        std::mem::forget(self);
    }

    /// What the vsock device connects to, if there is one.
    pub fn vsock(&self) -> Option<&Arc<VsockHost>> {
        self.configuration.vsock.as_ref()
    }

    /// Sets how much memory the guest is to do without; false if there is no balloon.
    pub fn set_balloon(&self, size: u64) -> bool {
        let Some(balloon) = &self.configuration.balloon else { return false };
        let change = || {
            balloon.set_target(size);
            Ok::<_, Infallible>(())
        };
        let Ok(()) = match self.machine.as_ref().and_then(Machine::balloon) {
            Some(remote) => remote.change_config(change),
            None => change(),
        };
        true
    }
}

/// What is left of a device. Dropping it waits for what it has under way.
enum Remainder {
    /// It is off the bus. What was attached stays what it is.
    Function(Option<Function>, Option<Part>),
    /// It was taken from under its driver.
    Disk(Arc<Disk>, Option<Revoked>),
    /// The whole machine, which some disks were in.
    Machine(Option<Machine>, Vec<Arc<Disk>>),
}

impl Drop for Remainder {
    fn drop(&mut self) {
        match self {
            Self::Function(function, part) => {
                if let Some(function) = function {
                    function.lock().unwrap_or_else(PoisonError::into_inner).stop();
                }
                if let Some(Part::Disk(disk)) = part {
                    disk.settle();
                }
            }
            Self::Disk(disk, revoked) => {
                if let Some(revoked) = revoked.take() {
                    disk.close(revoked);
                }
            }
            Self::Machine(machine, disks) => {
                drop(machine.take());
                disks.iter().for_each(|disk| disk.settle());
            }
        }
    }
}

const _: fn() = || {
    fn is_send<T: Send>() {}
    is_send::<Machine>();
    is_send::<VirtioPci>();
};
