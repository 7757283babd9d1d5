//! An instance's actor: it does the step that the record names, records what came of it, and begins again. Between
//! steps it watches the guest. Everything that it knows is in the record or in the VMM, so that it can be replaced at
//! any moment.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use innkeeper_protocol::{Command, Ending, Happening, State as GuestState};
use jiff::Timestamp;
use tokio::sync::{Notify, mpsc};
use tokio::time::{Instant, timeout, timeout_at};

use super::disks::Attached;
use super::health::Guest;
use super::lifecycle::Observation;
use super::settle::settle;
use super::vmm::{Vmm, VmmError};
use super::{Ask, Sample, Shared, chain, failpoint};
use crate::host::VmmProcess;
use crate::ids::{InstanceId, NetworkInterfaceId, VolumeId};
use crate::records::{Instance, InstanceState, Step};
use crate::state::{Draft, Kept};
use crate::store::StoreError;
use crate::volumes::snapshots;

/// How long to wait before a step on the way down is tried again: doubled each time, up to the second.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// How long a VMM is asked to wait for a fresh boot source after a reset: a disk has to be read, by a guest perhaps, and
/// on a busy host. An actor that looks for one does nothing else meanwhile.
const BOOT_PATIENCE: Duration = Duration::from_secs(60);

/// How often a running instance is checked: when all is well, and as long as it is not.
const CHECKS: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(1));

/// How long a VMM may take to say how it is.
const CHECK_PATIENCE: Duration = Duration::from_secs(5);

/// After how many tries a VMM that does not answer is given up.
const MAX_SILENCES: u32 = 3;

/// See the module.
pub struct Actor {
    pub(super) id: InstanceId,
    pub(super) shared: Arc<Shared>,
    changed: Arc<Notify>,
    mailbox: mpsc::UnboundedReceiver<Ask>,
    pub(super) vmm: Option<Vmm>,
    /// The disks that the VMM has, as far as the actor has brought that about.
    pub(super) disks: BTreeMap<VolumeId, Attached>,
    /// The same of network interfaces.
    pub(super) interfaces: BTreeSet<NetworkInterfaceId>,
    /// When to look how the instance is.
    pub(super) check: Instant,
    retry: Duration,
}

/// Why an actor looks up.
pub(super) enum Woken {
    /// The record may have changed.
    Changed,
    /// It is time.
    Time,
    /// The guest or the VMM is not what it was.
    Seen(Observation),
}

impl Actor {
    pub(super) fn new(
        id: InstanceId,
        shared: Arc<Shared>,
        changed: Arc<Notify>,
        mailbox: mpsc::UnboundedReceiver<Ask>,
    ) -> Self {
        let (disks, interfaces, check) = (BTreeMap::new(), BTreeSet::new(), Instant::now());
        Self { id, shared, changed, mailbox, vmm: None, disks, interfaces, check, retry: RETRY.0 }
    }

    /// Until the instance is terminated and nothing is left to do.
    pub async fn run(mut self) {
        while let Some(instance) = self.record::<Instance>(&self.id.clone()) {
            let lifecycle = &instance.lifecycle;
            if lifecycle.state != InstanceState::Running {
                self.shared.healths.forget(&self.id);
                // As soon as it runs.
                self.check = Instant::now();
            }
            let seen = match (&lifecycle.step, lifecycle.state) {
                (Some(step), _) => self.perform(&instance, step).await,
                (None, InstanceState::Terminated) => return,
                (None, InstanceState::Running) => self.watch(&instance).await,
                (None, _) => {
                    self.settle_volumes(&instance).await;
                    self.wait(None).await;
                    None
                }
            };
            if let Some(seen) = seen {
                self.observe(seen).await;
            }
        }
    }

    /// A record as it is now.
    pub(super) fn record<R: Kept>(&self, key: impl AsRef<str>) -> Option<Arc<R>> {
        self.shared.state.read().get::<R>(key).cloned()
    }

    /// Does the recorded step.
    async fn perform(&mut self, instance: &Instance, step: &Step) -> Option<Observation> {
        let result = match step {
            Step::PrepareVolumes => self.prepare_volumes(instance).await.map(|()| None),
            Step::StartVmm => self.start_vmm(instance).await.map(|()| None),
            Step::Reboot => self.reboot(instance).await,
            Step::PressButton { deadline } => return self.press_button(instance, *deadline).await,
            Step::EndVmm => self.end_vmm(instance).await.map(|()| None),
            Step::ReleaseVolumes => {
                failpoint::pass("release-volumes.before");
                // Snapshots of them may have been recorded with the guest's end.
                self.settle_volumes(instance).await;
                Ok(None)
            }
        };
        match result {
            Ok(seen) => {
                self.retry = RETRY.0;
                Some(seen.unwrap_or_else(|| Observation::Done(step.clone())))
            }
            Err(error) => {
                let why = chain(error.as_ref());
                tracing::warn!(instance = %self.id, ?step, error = why, "a step has failed");
                if *step == Step::Reboot {
                    self.fail_images(&format!("The instance cannot be rebooted: {why}")).await;
                }
                if matches!(step, Step::EndVmm | Step::ReleaseVolumes) {
                    tokio::time::sleep(self.retry).await;
                    self.retry = (self.retry * 2).min(RETRY.1);
                }
                Some(Observation::Failed(step.clone(), why))
            }
        }
    }

    /// Records what was seen, and what follows from it.
    async fn observe(&mut self, seen: Observation) {
        let id = self.id.clone();
        let transaction = {
            let seen = seen.clone();
            move |draft: &mut Draft| -> Result<(), StoreError> {
                let Some(instance) = draft.get::<Instance>(&id) else { return Ok(()) };
                let before = instance.lifecycle.clone();
                let mut instance = Instance::clone(instance);
                let endings = instance.endings();
                instance.lifecycle.observe(seen.clone(), endings, Timestamp::now());
                if instance.lifecycle != before {
                    let (from, to) = (before.state, instance.lifecycle.state);
                    if from != to {
                        let reason = instance.lifecycle.state_reason.as_ref().map(|reason| &*reason.message);
                        tracing::info!(instance = %id, from = from.name(), to = to.name(), reason);
                    }
                    draft.put(instance.clone());
                    settle(draft, &instance, &seen);
                }
                Ok(())
            }
        };
        let shared = self.shared.clone();
        let result = blocking(move || shared.state.change(transaction)).await;
        if let Err(error) = result {
            // Nothing has changed, so that the step is done again, which is harmless.
            tracing::error!(instance = %self.id, error = chain(&error), "what was done cannot be recorded");
            tokio::time::sleep(self.retry).await;
            self.retry = (self.retry * 2).min(RETRY.1);
        }
        if let Observation::Done(step) = seen {
            failpoint::pass(match step {
                Step::PrepareVolumes => "prepare-volumes.after",
                Step::StartVmm => "start-vmm.after",
                Step::Reboot => "reboot.after",
                Step::PressButton { .. } => "press-button.after",
                Step::EndVmm => "end-vmm.after",
                Step::ReleaseVolumes => "release-volumes.after",
            });
        }
    }

    /// Watches a running guest, and gives it the disks that it is to have.
    async fn watch(&mut self, instance: &Instance) -> Option<Observation> {
        if let Err(seen) = self.adopt(instance).await {
            return Some(seen);
        }
        self.reconcile_volumes(instance).await;
        self.reconcile_interfaces(instance).await;
        match self.wait(Some(self.check)).await {
            Woken::Seen(seen) => return Some(seen),
            Woken::Time => self.check_health(instance).await,
            Woken::Changed => {}
        }
        None
    }

    /// Looks how a running instance is, and when to look again.
    async fn check_health(&mut self, instance: &Instance) {
        let Some(vmm) = self.vmm.as_mut() else { return };
        let answer = match timeout(CHECK_PATIENCE, vmm.status()).await {
            Ok(Ok(status)) => Some(status),
            Ok(Err(error)) => {
                tracing::debug!(instance = %self.id, error = chain(&error), "a status check has failed");
                None
            }
            Err(_) => None,
        };
        let guest = match &answer {
            Some(status) => tokio::select! {
                asked = timeout(CHECK_PATIENCE, self.ask_guest(instance, status)) => {
                    asked.unwrap_or(Guest::Unasked)
                }
                // A guest that says nothing keeps nobody waiting who wants something else.
                () = self.changed.notified() => {
                    self.changed.notify_one();
                    self.check = Instant::now() + CHECKS.1;
                    return;
                }
            },
            None => Guest::Unasked,
        };
        if let Some(status) = &answer {
            self.try_to_note_impairments(status).await;
        }
        let before = self.shared.healths.get(&self.id);
        let health = before.then(answer.as_ref(), guest, instance.lifecycle.since, Timestamp::now());
        if health != before {
            tracing::info!(instance = %self.id, ?health, "the status checks have changed");
        }
        self.shared.healths.set(&self.id, health);
        self.check = Instant::now() + if health.is_well() { CHECKS.0 } else { CHECKS.1 };
    }

    /// Makes sure that there is a connection to the VMM of an instance that has one. The host's trouble, such as having
    /// no descriptors left, is not the guest's: that is waited out. A VMM that never answers is as good as dead.
    pub(super) async fn adopt(&mut self, instance: &Instance) -> Result<(), Observation> {
        let mut silences = 0;
        while self.vmm.is_none() {
            let (shared, id) = (self.shared.clone(), self.id.clone());
            let failure = match blocking(move || shared.host.find_vmm(&id)).await {
                Ok(None) => return Err(Observation::Died("The VMM has ended without a word".into())),
                Ok(Some(process)) => match self.take_over(instance, process).await {
                    Ok(None) => break,
                    Ok(Some(seen)) => return Err(seen),
                    Err(error) => {
                        silences += 1;
                        chain(&error)
                    }
                },
                Err(error) => chain(&error),
            };
            tracing::warn!(instance = %self.id, error = failure, "cannot talk to a VMM");
            if silences == MAX_SILENCES {
                return Err(Observation::Died(format!("The VMM does not answer: {failure}")));
            }
            tokio::time::sleep(RETRY.0).await;
        }
        Ok(())
    }

    /// Takes over a VMM that an earlier agent, or this one, has started. Returns what has become of the guest, if it has
    /// ended meanwhile.
    async fn take_over(
        &mut self,
        instance: &Instance,
        process: VmmProcess,
    ) -> Result<Option<Observation>, VmmError> {
        let mut vmm = Vmm::open(process).await?;
        let status = vmm.status().await?;
        vmm.say(Command::Events { after: status.last_event }).await?;
        self.interfaces = status.devices.iter().filter_map(|device| device.id.parse().ok()).collect();
        self.find_disks(&mut vmm, &status.devices).await?;
        self.vmm = Some(vmm);
        self.try_to_note_impairments(&status).await;
        if status.state == GuestState::Resetting {
            self.answer_boot(instance).await;
        } else if status.state == GuestState::Running && !status.is_rebooting {
            self.reboot_for_images().await;
        }
        tracing::debug!(instance = %self.id, state = ?status.state, resets = status.resets, "took over a VMM");
        Ok(status.ending.map(ended))
    }

    /// Waits for something to do, until `time` if there is one. Answers whoever asks meanwhile.
    pub(super) async fn wait(&mut self, time: Option<Instant>) -> Woken {
        loop {
            let sleep = async {
                match time {
                    Some(time) => tokio::time::sleep_until(time).await,
                    None => std::future::pending().await,
                }
            };
            let Some(vmm) = self.vmm.as_mut() else {
                tokio::select! {
                    () = self.changed.notified() => return Woken::Changed,
                    Some(ask) = self.mailbox.recv() => drop(ask),
                    () = sleep => return Woken::Time,
                }
                continue;
            };
            let event = tokio::select! {
                event = vmm.event() => event,
                () = self.changed.notified() => return Woken::Changed,
                Some(ask) = self.mailbox.recv() => {
                    answer(&self.shared, &self.id, vmm, ask).await;
                    continue;
                }
                () = sleep => return Woken::Time,
            };
            match event.map(|event| event.what) {
                Ok(Happening::Ended(ending)) => return Woken::Seen(ended(ending)),
                Ok(Happening::BootSourceWanted { .. }) => {
                    if let Some(instance) = self.record::<Instance>(&self.id) {
                        self.answer_boot(&instance).await;
                    }
                }
                Ok(Happening::BootSourceRefused { reason }) => {
                    tracing::warn!(instance = %self.id, reason, "rebooted with the kernel of before");
                }
                Ok(Happening::DeviceFreed { id }) => {
                    let was_disk = id.parse().is_ok_and(|id| self.disks.remove(&id).is_some());
                    let was_interface = id.parse().is_ok_and(|id| self.interfaces.remove(&id));
                    if was_disk || was_interface {
                        return Woken::Changed;
                    }
                }
                Ok(Happening::DiskSealed { id, failure }) => {
                    if let Err(error) = self.sealed(&id, failure).await {
                        tracing::error!(instance = %self.id, error = chain(error.as_ref()), "a snapshot is not recorded");
                    }
                    return Woken::Changed;
                }
                Ok(_) => {}
                Err(error) => {
                    tracing::debug!(instance = %self.id, error = chain(&error), "the connection to the VMM is gone");
                    // Whether it is dead shows when it is looked for.
                    self.vmm = None;
                    return Woken::Changed;
                }
            }
        }
    }

    /// Says what to boot now that the guest is reset. Without an answer the VMM boots what it booted before.
    async fn answer_boot(&mut self, instance: &Instance) {
        let Some(vmm) = self.vmm.as_mut() else { return };
        let deadline = Instant::now() + BOOT_PATIENCE;
        let images = snapshots::waiting_images(&self.shared.state.read(), &self.id);
        if instance.boot.is_none() || !images.is_empty() {
            let within_ms = u64::try_from(BOOT_PATIENCE.as_millis()).unwrap_or(u64::MAX);
            if let Err(error) = vmm.say(Command::DelayBoot { within_ms }).await {
                tracing::debug!(instance = %self.id, error = chain(&error), "the VMM does not wait for a boot source");
            }
        }
        // What the guest has flushed is in the layers below from here on: an image may be waiting for that.
        match self.photograph().await {
            Ok(()) => self.cover_while_down(images).await,
            Err(error) => {
                tracing::warn!(instance = %self.id, error = chain(error.as_ref()), "an image has to wait");
            }
        }
        let mut parcel = Vec::new();
        let source = match timeout_at(deadline, self.boot_source(instance, &mut parcel)).await {
            Ok(Ok(source)) => Some(source),
            Ok(Err(error)) => {
                tracing::warn!(instance = %self.id, error = chain(error.as_ref()), "no fresh boot source");
                None
            }
            Err(_) => {
                tracing::warn!(instance = %self.id, "the disk does not say in time what it boots");
                None
            }
        };
        if let Some(vmm) = self.vmm.as_mut()
            && let Err(error) = vmm.call(Command::Boot { source }, &parcel).await
        {
            tracing::warn!(instance = %self.id, error = chain(&error), "reboots with the kernel of before");
        }
    }
}

/// Answers what somebody wants to know of a VMM. Who has asked may not wait any more.
async fn answer(shared: &Arc<Shared>, id: &InstanceId, vmm: &mut Vmm, ask: Ask) {
    match ask {
        Ask::Console(answer) if !answer.is_closed() => {
            let _ = answer.send(vmm.console().await.ok());
        }
        Ask::Sample(answer) if !answer.is_closed() => {
            let _ = answer.send(sample(shared, id, vmm).await);
        }
        Ask::Console(_) | Ask::Sample(_) => {}
    }
}

async fn sample(shared: &Arc<Shared>, id: &InstanceId, vmm: &mut Vmm) -> Option<Sample> {
    let metrics = vmm.metrics().await.ok()?;
    let (shared, id) = (Arc::clone(shared), id.clone());
    match blocking(move || shared.host.vmm_usage(&id)).await {
        Ok(process) => Some(Sample { vmm: metrics, process: process? }),
        Err(error) => {
            tracing::debug!(error = chain(&error), "what a VMM takes is not known");
            None
        }
    }
}

/// What the end of a guest means.
fn ended(ending: Ending) -> Observation {
    match ending {
        Ending::PowerOff => Observation::PoweredOff,
        Ending::Stopped => Observation::Died("The VMM was told to end by somebody else".into()),
        Ending::Failed { reason } => Observation::Died(format!("The guest cannot go on: {reason}")),
    }
}

/// Runs what blocks where that is allowed.
pub(super) async fn blocking<T: Send + 'static>(function: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(function).await {
        Ok(value) => value,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}
