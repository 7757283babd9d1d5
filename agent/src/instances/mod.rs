//! The instances' lives: one actor each, that brings about what its record says.
//!
//! - [`lifecycle`] is the pure part: which step follows from what.
//! - `actor` is the loop that does the recorded step and records what came of it; `steps` is how each is done, `settle`
//!   what that means for other records, `disks` its volumes, `store` its instance store, `interfaces` its network,
//!   `boot_disk` what its disk boots.
//! - [`host_reboot`] is what has to be done before that, when the host itself was started anew.
//! - [`vmm`] is the connection to a VMM, [`health`] what it says of the guest, [`capacity`] what the host has room for,
//!   [`failpoint`] where tests let the agent die.
//!
//! [`Instances`] holds the actors: it hears of every change of the records and wakes whom it concerns. After a restart it
//! finds the same records and the same VMMs, and goes on.

mod actor;
mod boot_disk;
pub mod capacity;
mod console;
mod disks;
pub mod failpoint;
pub mod health;
pub mod host_reboot;
mod interfaces;
pub mod lifecycle;
mod settle;
mod steps;
mod store;
pub mod vmm;

use std::collections::BTreeMap;
use std::fs::File;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use innkeeper_protocol::Metrics;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{Notify, Semaphore, mpsc, oneshot};

use crate::catalogue::Catalogue;
use crate::data_plane::DataPlane;
use crate::host::{AgentUsage, Host, HostError, VmmUsage};
use crate::ids::{InstanceId, VolumeId};
use crate::query::ApiError;
use crate::records::{Image, Instance, InstanceState, Layer, NetworkInterface, Record, Snapshot, Volume};
use crate::state::State;
use crate::volumes::{Volumes, stack};
use actor::Actor;
pub use console::{ConsoleOutput, Consoles};
use health::{Health, Healths};
pub use settle::{detach, detach_interface, interface_attached, interfaces, settle};
use vmm::DiskFiles;

/// How long an actor may take to answer: it may be copying a disk.
const PATIENCE: Duration = Duration::from_secs(5);

/// How long all actors together may take to say what their VMMs have counted.
const SAMPLING: Duration = Duration::from_secs(3);

/// What every actor works with.
pub struct Shared {
    /// The records.
    pub state: Arc<State>,
    /// The machine.
    pub host: Arc<dyn Host>,
    /// The network.
    pub data_plane: DataPlane,
    /// The volumes' files.
    pub volumes: Arc<Volumes>,
    /// What is kept of consoles.
    pub consoles: Consoles,
    /// The instance types.
    pub catalogue: Arc<Catalogue>,
    /// How long a guest has to reboot before it is reset.
    pub reboot_timeout: Duration,
    /// Whether volumes are as fast as their types allow, and no faster.
    pub limits_volumes: bool,
    /// The status checks of those that run.
    pub healths: Healths,
    /// Turns to read what a disk boots, each of which decompresses a kernel.
    pub boot_readers: Arc<Semaphore>,
    /// The artefacts of the guest that reads other file systems.
    pub boot_reader: Option<PathBuf>,
    /// Turns to start that guest, which takes memory that is no instance's.
    pub boot_guests: Semaphore,
}

/// How many disks are read for what they boot at once.
pub const MAX_BOOT_READERS: usize = 4;

/// How many guests read disks at once.
pub const MAX_BOOT_GUESTS: usize = 2;

/// The actors of the instances.
#[derive(Clone)]
pub struct Instances {
    shared: Arc<Shared>,
    actors: Arc<Mutex<BTreeMap<InstanceId, Handle>>>,
    /// Turns to wait for an actor's answer, each of which keeps a request's thread.
    askers: Arc<Semaphore>,
}

/// How many wait for an actor's answer at once.
const MAX_ASKERS: usize = 8;
/// How long an actor that has panicked is left alone.
const REST: Duration = Duration::from_secs(5);

/// How an actor is reached.
struct Handle {
    changed: Arc<Notify>,
    asks: mpsc::UnboundedSender<Ask>,
}

/// Something that an actor is asked. None is the answer of one without a VMM.
enum Ask {
    /// What the guest has printed.
    Console(oneshot::Sender<Option<Vec<u8>>>),
    /// What the VMM has counted and takes.
    Sample(oneshot::Sender<Option<Sample>>),
}

/// What is known of a VMM at a moment.
#[derive(Clone, Debug, Default)]
pub struct Sample {
    /// What it has counted.
    pub vmm: Metrics,
    /// What its process takes.
    pub process: VmmUsage,
}

impl Instances {
    /// No actor runs yet: see [`Instances::supervise`].
    pub fn new(shared: Shared) -> Self {
        let askers = Arc::new(Semaphore::new(MAX_ASKERS));
        Self { shared: Arc::new(shared), actors: Arc::default(), askers }
    }

    /// The status checks of an instance that runs.
    pub fn health(&self, instance: &InstanceId) -> Health {
        self.shared.healths.get(instance)
    }

    /// Lets checks have ended so.
    #[cfg(test)]
    pub fn set_health(&self, instance: &InstanceId, health: Health) {
        self.shared.healths.set(instance, health);
    }

    fn actors(&self) -> MutexGuard<'_, BTreeMap<InstanceId, Handle>> {
        self.actors.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes over what an earlier agent has left, and runs the actors until it is dropped. Guests do not notice.
    pub async fn supervise(&self) {
        let mut changes = self.shared.state.watch();
        let shared = self.shared.clone();
        if let Err(error) = tokio::task::spawn_blocking(move || clear_leftovers(&shared)).await {
            tracing::error!(%error, "what an earlier agent has left was not cleared up");
        }
        self.wake_all();
        loop {
            match changes.recv().await {
                Ok(keys) => keys.iter().for_each(|key| self.changed(key)),
                Err(RecvError::Lagged(_)) => self.wake_all(),
                Err(RecvError::Closed) => return,
            }
        }
    }

    fn wake_all(&self) {
        for instance in self.shared.state.read().all::<Instance>() {
            self.wake(&instance.id);
        }
    }

    /// A record has changed, or is gone.
    fn changed(&self, key: &str) {
        let Some((kind, name)) = key.split_once('/') else { return };
        if kind == Instance::KIND
            && let Ok(id) = name.parse::<InstanceId>()
        {
            self.wake(&id);
        } else if kind == NetworkInterface::KIND {
            let interface = self.shared.state.read().get::<NetworkInterface>(name).cloned();
            if let Some(instance) = interface.as_ref().and_then(|interface| interface.instance()) {
                self.wake(instance);
            }
        } else if kind == Volume::KIND
            && let Ok(id) = name.parse::<VolumeId>()
        {
            let volume = self.shared.state.read().get::<Volume>(&id).cloned();
            match volume.map(|volume| volume.attachment.clone()) {
                Some(Some(attachment)) => self.wake(&attachment.instance),
                Some(None) => {}
                None => self.shared.volumes.something_was_deleted(),
            }
        } else if [Snapshot::KIND, Image::KIND].contains(&kind) {
            self.shared.volumes.something_was_deleted();
        } else if kind == Layer::KIND {
            for instance in stack::users_of_merged(&self.shared.state.read(), name) {
                self.wake(&instance);
            }
        }
    }

    /// Lets an instance's actor look at its record; there is an actor for each that is not terminated.
    fn wake(&self, id: &InstanceId) {
        let mut actors = self.actors();
        if let Some(handle) = actors.get(id) {
            handle.changed.notify_one();
            return;
        }
        let world = self.shared.state.read();
        match world.get::<Instance>(id) {
            None => self.shared.consoles.remove(id),
            Some(instance) if instance.lifecycle.state == InstanceState::Terminated => {}
            Some(_) => {
                let changed = Arc::new(Notify::new());
                let (asks, mailbox) = mpsc::unbounded_channel();
                actors.insert(id.clone(), Handle { changed: changed.clone(), asks });
                let actor = Actor::new(id.clone(), self.shared.clone(), changed, mailbox);
                let (id, instances) = (id.clone(), self.clone());
                tokio::spawn(async move {
                    let ended = tokio::spawn(actor.run()).await;
                    instances.actors().remove(&id);
                    if let Err(error) = ended {
                        tracing::error!(instance = %id, %error, "an actor has failed, and begins anew");
                        tokio::time::sleep(REST).await;
                        instances.wake(&id);
                    }
                });
            }
        }
    }

    /// Whether a disk that is to boot by itself can, or why not. Blocks, for as long as a guest takes to read it if it has to.
    pub fn check_boots(&self, disk: File) -> Result<(), String> {
        let disk = DiskFiles::Raw(disk.into());
        let found = match tokio::runtime::Handle::try_current() {
            Ok(runtime) => runtime.block_on(boot_disk::read(&self.shared, disk)),
            // Nobody could wait for a guest.
            Err(_) => boot_disk::find(&disk),
        };
        match found {
            Ok(source) => {
                tracing::info!(title = source.origin.title, "the disk boots by itself");
                Ok(())
            }
            Err(error) => Err(format!("{error:#}")),
        }
    }

    /// What the VMMs have counted, of those that answer soon.
    pub async fn samples(&self) -> BTreeMap<InstanceId, Sample> {
        let mut asked = Vec::new();
        for (id, handle) in self.actors().iter() {
            let (answer, answered) = oneshot::channel();
            if handle.asks.send(Ask::Sample(answer)).is_ok() {
                asked.push((id.clone(), answered));
            }
        }
        let deadline = tokio::time::Instant::now() + SAMPLING;
        let mut samples = BTreeMap::new();
        for (id, answered) in asked {
            if let Ok(Ok(Some(sample))) = tokio::time::timeout_at(deadline, answered).await {
                samples.insert(id, sample);
            }
        }
        samples
    }

    /// What the agent itself takes. Blocks.
    pub fn agent_usage(&self) -> Result<AgentUsage, HostError> {
        self.shared.host.agent_usage()
    }

    /// The console of an instance, also of one that has stopped. None if it never had any. Blocks, for 5 s at most.
    pub fn console_output(&self, instance: &InstanceId) -> Result<Option<ConsoleOutput>, ApiError> {
        let (answer, answered) = oneshot::channel();
        // Too many at once get what was kept of earlier guests.
        let turn = self.askers.try_acquire();
        let asked = turn.is_ok()
            && self
                .actors()
                .get(instance)
                .is_some_and(|handle| handle.asks.send(Ask::Console(answer)).is_ok());
        if asked && let Some(Some(bytes)) = wait(answered) {
            return Ok(Some(ConsoleOutput { bytes, time: jiff::Timestamp::now() }));
        }
        self.shared.consoles.read(instance).map_err(ApiError::internal)
    }
}

/// Waits for an answer, on a thread that may block.
fn wait<T>(answered: oneshot::Receiver<T>) -> Option<T> {
    let runtime = tokio::runtime::Handle::try_current().ok()?;
    runtime.block_on(async { tokio::time::timeout(PATIENCE, answered).await.ok()?.ok() })
}

/// Removes what a crash has left and no record knows: VMMs, instance stores, consoles.
fn clear_leftovers(shared: &Shared) {
    let world = shared.state.read();
    let has_vmm = |id: &InstanceId| {
        world.get::<Instance>(id).is_some_and(|instance| instance.lifecycle.state.holds_capacity())
    };
    match shared.host.vmms() {
        Err(error) => tracing::error!(error = chain(&error), "VMMs of an earlier agent cannot be looked for"),
        Ok(vmms) => {
            for id in vmms.iter().filter(|id| !has_vmm(id)) {
                let ended = shared.host.find_vmm(id).and_then(|found| match found {
                    Some(process) => crate::host::kill(&process.pidfd),
                    None => Ok(()),
                });
                match ended.and_then(|()| shared.host.forget_vmm(id)) {
                    Ok(()) => tracing::info!(instance = %id, "cleared up what was left of a VMM"),
                    Err(error) => {
                        tracing::warn!(instance = %id, error = chain(&error), "a VMM is left behind")
                    }
                }
            }
        }
    }
    match shared.host.stores() {
        Err(error) => tracing::error!(error = chain(&error), "instance stores cannot be looked for"),
        Ok(stores) => {
            for id in stores.iter().filter(|id| !has_vmm(id)) {
                match shared.host.remove_store(id) {
                    Ok(()) => tracing::info!(instance = %id, "took away an instance store that was left"),
                    Err(error) => {
                        tracing::warn!(instance = %id, error = chain(&error), "an instance store is left behind")
                    }
                }
            }
        }
    }
    shared.consoles.retain(|id| world.get::<Instance>(id).is_some());
}

/// An error and its causes, in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
