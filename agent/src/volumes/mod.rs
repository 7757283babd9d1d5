//! Volumes: what the records say of their layers, and the files that these are.
//!
//! - [`stack`] is the pure part: which layers are on top of each other, and what is written down when that changes.
//! - [`snapshots`] is what is recorded of those: of a volume, and of an instance that becomes an image.
//! - [`layers`] is the files, [`copy`] how an image's disk becomes one of them, `legacy` what volumes were before.
//! - [`keeper`] removes what nobody needs any more, and merges what has become too deep.
//! - [`types`] is EC2's volume types, and what they may do.
//!
//! What is recorded of a volume is brought about by who has it: the VMM of its instance, by the instance's actor; or,
//! while there is none, [`Volumes::settle`]. Either way the order is: files are made and synced, recorded to be the top,
//! then used; and what they cover is sealed, and then recorded to be that.

pub mod copy;
pub mod keeper;
pub mod layers;
mod legacy;
pub mod snapshots;
pub mod stack;
#[cfg(test)]
mod tests;
pub mod types;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use innkeeper_block::Backend;
use innkeeper_block::layered::{self, Finding, LayerDescription, LayerError, Layered, Problem, Report};
use jiff::Timestamp;
use tokio::sync::Notify;

use crate::ids::{LayerId, VolumeId};
use crate::records::{Layer, LayerState, Modification, Snapshot, SnapshotState, Volume};
use crate::state::{Draft, State};
use crate::store::StoreError;
use layers::{Access, Claim, Layers};

/// How often layers are looked up that were merged while they were being opened.
const TRIES: usize = 5;

/// Why something cannot be done with a volume.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It was deleted meanwhile.
    #[error("{0} does not exist any more")]
    Gone(VolumeId),
    /// The records lack one.
    #[error("layer {0} is lost: there is no record of it, or of one below it (`innkeeper state check`)")]
    Lost(LayerId),
    /// Its files are no volume.
    #[error("its layers cannot be used (`innkeeper volume check` says more)")]
    Layers(#[source] LayerError),
    /// The host failed.
    #[error("cannot {what}")]
    Io {
        /// Such as `make a layer`.
        what: &'static str,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// The records cannot be changed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Error {
    /// Whether somebody else has it open.
    pub fn is_locked(&self) -> bool {
        matches!(self, Self::Layers(error) if error.is_locked())
    }
}

fn io_error(what: &'static str) -> impl FnOnce(io::Error) -> Error {
    move |cause| Error::Io { what, cause }
}

/// A stack of layers, open, from the bottom, and what is recorded of each.
#[derive(Debug)]
pub struct Opened {
    /// Their files.
    pub files: Vec<layered::Layer>,
    /// Their records.
    pub layers: Vec<Arc<Layer>>,
}

/// What is recorded of the layers of a stack, from the bottom, and their files, or why they cannot be opened.
type Each = (Vec<Arc<Layer>>, Vec<io::Result<layered::Layer>>);

/// A volume that is open for a guest. Nobody else begins anything with it until this is dropped.
#[derive(Debug)]
pub struct Held {
    /// Its layers.
    pub opened: Opened,
    _turn: Turn,
}

/// A sealed layer that no record has yet.
#[derive(Debug)]
pub struct NewLayer {
    /// What is to be recorded.
    pub record: Layer,
    _claim: Claim,
}

/// The volumes. All functions block, some for long.
pub struct Volumes {
    state: Arc<State>,
    layers: Layers,
    /// Where volumes were before there were layers.
    legacy: PathBuf,
    turns: Turns,
    /// Something was deleted, or has changed its layers.
    changed: Notify,
    /// The same, for who merges.
    to_merge: Notify,
    /// When runs of layers could not be merged, by their topmost.
    unmerged: Mutex<BTreeMap<LayerId, Instant>>,
}

impl Volumes {
    /// With files below the agent's state directory.
    pub fn new(state: Arc<State>, state_directory: &std::path::Path) -> Self {
        Self {
            state,
            layers: Layers::new(state_directory.join("layers")),
            legacy: state_directory.join("volumes"),
            turns: Turns::default(),
            changed: Notify::new(),
            to_merge: Notify::new(),
            unmerged: Mutex::default(),
        }
    }

    /// Makes the files of a volume's layers that have none yet.
    pub fn make(&self, volume: &VolumeId) -> Result<(), Error> {
        let _turn = self.turns.take(volume);
        self.make_planned(volume).map(drop)
    }

    /// The same in one's turn. Returns the volume.
    fn make_planned(&self, id: &VolumeId) -> Result<Arc<Volume>, Error> {
        let gone = || Error::Gone(id.clone());
        let mut volume = self.state.read().get::<Volume>(id).cloned().ok_or_else(gone)?;
        if self.state.read().get::<Layer>(&volume.layer).is_none() {
            self.adopt_volume(&volume)?;
            volume = self.state.read().get::<Volume>(id).cloned().ok_or_else(gone)?;
        }
        self.make_layers(&volume.layer)?;
        Ok(volume)
    }

    /// Makes the files of a layer and of those below it that have none yet.
    fn make_layers(&self, top: &LayerId) -> Result<(), Error> {
        let mut planned = Vec::new();
        let mut below: Option<Arc<Layer>> = None;
        for layer in self.chain(top)? {
            let mut layer = layer;
            if layer.state == LayerState::Planned {
                // Whoever made the layer below larger may have died before that was recorded.
                let least = match &below {
                    Some(below) => self.size_of(below)?,
                    None => 0,
                };
                layer = Arc::new(Layer { size: layer.size.max(least), ..Layer::clone(&layer) });
                self.layers.make(&layer).map_err(io_error("make a layer"))?;
                planned.push(Arc::clone(&layer));
            }
            below = Some(layer);
        }
        if !planned.is_empty() {
            self.record(|draft| {
                for layer in &planned {
                    draft.update::<Layer>(&layer.id, |record| record.size = layer.size);
                }
                let ids = planned.iter().map(|layer| &layer.id);
                stack::advance(draft, ids, LayerState::Top, Timestamp::now());
            })?;
        }
        Ok(())
    }

    /// The size that a layer's file says, in bytes.
    fn size_of(&self, layer: &Layer) -> Result<u64, Error> {
        let files = self.layers.open(layer, Access::Read).map_err(io_error("open a layer"))?;
        let (description, _) = layered::description(&files.map).map_err(io_error("read a layer"))?;
        Ok(description.size)
    }

    fn chain(&self, top: &LayerId) -> Result<Vec<Arc<Layer>>, Error> {
        let chain = stack::chain(&self.state.read(), top);
        match chain.first() {
            Some(bottom) if bottom.parent.is_none() => Ok(chain),
            _ => Err(Error::Lost(top.clone())),
        }
    }

    /// Opens a layer and those below it. With `access` to write, that is the top layer and those that are not sealed yet.
    pub fn open_layers(&self, top: &LayerId, access: Access) -> Result<Opened, Error> {
        let (layers, opened) = self.open_each(top, access)?;
        let files = opened.into_iter().collect::<io::Result<_>>().map_err(io_error("open a layer"))?;
        Ok(Opened { files, layers })
    }

    /// The same, with the reasons why some of them cannot be opened.
    fn open_each(&self, top: &LayerId, access: Access) -> Result<Each, Error> {
        let mut tries = TRIES;
        loop {
            let layers = self.chain(top)?;
            let open = |layer: &Arc<Layer>| {
                let is_writable = access == Access::Write && layer.state < LayerState::Sealed;
                self.layers.open(layer, if is_writable { Access::Write } else { Access::Read })
            };
            let opened: Vec<_> = layers.iter().map(open).collect();
            let is_missing = |opened: &io::Result<_>| {
                opened.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
            };
            if tries == 0 || !opened.iter().any(is_missing) {
                return Ok((layers, opened));
            }
            // They may have been merged since they were looked up.
            tries -= 1;
        }
    }

    /// Those of layers whose files say that they are sealed.
    pub fn sealed_of(&self, layers: Vec<LayerId>) -> Vec<LayerId> {
        let world = self.state.read();
        let is_sealed = |id: &LayerId| {
            let layer = world.get::<Layer>(id)?;
            let files = self.layers.open(layer, Access::Read).ok()?;
            Some(layered::description(&files.map).ok()?.1)
        };
        layers.into_iter().filter(|id| is_sealed(id) == Some(true)).collect()
    }

    /// Opens one sealed layer.
    pub fn open_layer(&self, layer: &Layer) -> Result<layered::Layer, Error> {
        self.layers.open(layer, Access::Read).map_err(io_error("open a layer"))
    }

    /// Opens a volume for a guest, and makes what it lacks.
    pub fn open(&self, volume: &VolumeId) -> Result<Held, Error> {
        let turn = self.turns.take(volume);
        let record = self.make_planned(volume)?;
        let opened = self.open_layers(&record.layer, Access::Write)?;
        Ok(Held { opened, _turn: turn })
    }

    /// Opens a volume only to be read, while whoever writes to it stands still.
    pub fn open_still(&self, volume: &VolumeId) -> Result<Opened, Error> {
        let record = {
            let _turn = self.turns.take(volume);
            self.make_planned(volume)?
        };
        self.open_layers(&record.layer, Access::Read)
    }

    /// Opens files of layers that were planned for volumes in a guest's hands, and are to be put on top of what it has:
    /// those above `top`, which is the guest's.
    pub fn open_above(&self, volume: &VolumeId, top: &LayerId) -> Result<Opened, Error> {
        let record = {
            let _turn = self.turns.take(volume);
            self.make_planned(volume)?
        };
        let chain = self.chain(&record.layer)?;
        let position = chain.iter().position(|layer| layer.id == *top);
        let above = position.and_then(|position| chain.get(position + 1..));
        let layers = above.ok_or_else(|| Error::Lost(top.clone()))?.to_vec();
        let open = |layer: &Arc<Layer>| self.layers.open(layer, Access::Write);
        let files = layers.iter().map(open).collect::<io::Result<_>>().map_err(io_error("open a layer"))?;
        Ok(Opened { files, layers })
    }

    /// Brings about what is recorded of a volume that no guest has: seals what was covered, and makes it larger.
    pub fn settle(&self, id: &VolumeId) -> Result<(), Error> {
        let _turn = self.turns.take(id);
        let Some(volume) = self.state.read().get::<Volume>(id).cloned() else { return Ok(()) };
        let unsealed = self.unsealed(&volume.layer);
        let modification = volume.change_under_way();
        if unsealed.is_empty() && modification.is_none() {
            return Ok(());
        }
        if let Some(why) = volume.hindrance() {
            // Another sync would say that all is well.
            return self.give_up(id, &unsealed, &why);
        }
        match self.settle_open(id, &unsealed, modification) {
            // Nothing will become of it by itself.
            Err(error @ Error::Lost(_)) => {
                self.give_up(id, &unsealed, &error.to_string())?;
                Err(error)
            }
            Err(error @ Error::Layers(_)) if !error.is_locked() => {
                self.give_up(id, &unsealed, &crate::instances::chain(&error))?;
                Err(error)
            }
            result => result,
        }
    }

    fn settle_open(
        &self,
        id: &VolumeId,
        unsealed: &[Arc<Layer>],
        modification: Option<&Modification>,
    ) -> Result<(), Error> {
        let volume = self.make_planned(id)?;
        let opened = self.open_layers(&volume.layer, Access::Write)?;
        let open = Layered::open(opened.files, false).map_err(Error::Layers)?;
        self.seal(&open, unsealed)?;
        if let Some(why) = open.impairment() {
            self.record(|draft| {
                draft.update::<Volume>(id, |volume| volume.impairment = Some(why.to_owned()));
            })?;
        }
        if let Some(modification) = modification {
            let size = u64::from(modification.target.size) << 30;
            let resized = if size > open.capacity() { open.resize(size) } else { Ok(()) };
            let outcome = resized.map_err(|error| error.to_string());
            self.record(|draft| stack::modified(draft, id, &outcome, Timestamp::now()))?;
        }
        Ok(())
    }

    /// Records that what was asked for of a volume will not be.
    fn give_up(&self, id: &VolumeId, unsealed: &[Arc<Layer>], why: &str) -> Result<(), Error> {
        let is_pending = |snapshot: &Snapshot| snapshot.state == SnapshotState::Pending;
        let world = self.state.read();
        let concerned = unsealed.iter().any(|layer| {
            world.all::<Snapshot>().any(|snapshot| is_pending(snapshot) && snapshot.layer == layer.id)
        });
        let is_modified = world.get::<Volume>(id).is_some_and(|volume| volume.change_under_way().is_some());
        if !concerned && !is_modified {
            return Ok(());
        }
        self.record(|draft| {
            unsealed.iter().for_each(|layer| stack::fail(draft, &layer.id, why));
            stack::modified(draft, id, &Err(why.to_owned()), Timestamp::now());
        })
    }

    /// Makes durable what is below the top of an open volume, and records that.
    fn seal(&self, open: &Layered, unsealed: &[Arc<Layer>]) -> Result<(), Error> {
        let below: Vec<LayerId> = unsealed.iter().map(|layer| layer.id.clone()).collect();
        self.record(|draft| stack::advance(draft, &below, LayerState::Covered, Timestamp::now()))?;
        match open.finish_seal() {
            Ok(()) => {
                self.record(|draft| stack::advance(draft, &below, LayerState::Sealed, Timestamp::now()))
            }
            Err(error) => {
                let why = format!("it cannot be made durable: {error}");
                self.record(|draft| below.iter().for_each(|layer| stack::fail(draft, layer, &why)))
            }
        }
    }

    /// Makes a snapshot durable whose volume was deleted before it was.
    fn seal_orphan(&self, layer: &LayerId) -> Result<(), Error> {
        self.make_layers(layer)?;
        let opened = self.open_layers(layer, Access::Write)?;
        // It takes another layer on top to seal one.
        let size = opened.layers.last().map(|layer| self.size_of(layer)).transpose()?;
        let lid = Layer::plan(Some(layer.clone()), size.unwrap_or_default());
        let _claim = self.layers.claim(&lid.files);
        let put_on = || {
            self.layers.make(&lid)?;
            self.layers.open(&lid, Access::Write)
        };
        let mut files = opened.files;
        files.push(put_on().map_err(io_error("make a layer"))?);
        let unsealed: Vec<_> =
            opened.layers.into_iter().filter(|layer| layer.state < LayerState::Sealed).collect();
        let sealed =
            Layered::open(files, false).map_err(Error::Layers).and_then(|open| self.seal(&open, &unsealed));
        self.layers.remove(&lid.files).map_err(io_error("remove a layer's files"))?;
        sealed
    }

    /// The layers below a top that are not sealed yet.
    fn unsealed(&self, top: &LayerId) -> Vec<Arc<Layer>> {
        let mut chain = stack::chain(&self.state.read(), top);
        chain.pop();
        chain.retain(|layer| layer.state < LayerState::Sealed);
        chain
    }

    fn record(&self, change: impl Fn(&mut Draft)) -> Result<(), Error> {
        Ok(self.state.change(|draft| -> Result<(), StoreError> {
            change(draft);
            Ok(())
        })?)
    }

    /// Settles all volumes that no instance has, of which somebody may not have come to that: an agent that has died, or a
    /// guest that was not quite done with one.
    pub fn settle_all(&self) {
        let world = self.state.read();
        for volume in world.all::<Volume>().filter(|volume| volume.attachment.is_none()) {
            if let Err(error) = self.settle(&volume.id) {
                let error = crate::instances::chain(&error);
                tracing::warn!(volume = %volume.id, error, "what was asked for cannot be done");
            }
        }
        self.settle_orphans();
    }

    /// Makes snapshots durable whose volumes were deleted before they were.
    pub fn settle_orphans(&self) {
        for layer in stack::orphans(&self.state.read()) {
            if let Err(error) = self.seal_orphan(&layer) {
                let error = crate::instances::chain(&error);
                tracing::warn!(%layer, error, "a snapshot of a deleted volume cannot be completed");
            }
        }
    }

    /// Finds out what is wrong with the layers of a volume that nobody writes to.
    pub fn check(&self, id: &VolumeId) -> Result<Report, Error> {
        let _turn = self.turns.take(id);
        if let Err(error) = self.make_planned(id) {
            if let Error::Gone(_) | Error::Store(_) = error {
                return Err(error);
            }
            // What is in its way is what is looked for.
            tracing::warn!(volume = %id, error = crate::instances::chain(&error), "what it lacks cannot be made");
        }
        let volume = self.state.read().get::<Volume>(id).cloned().ok_or_else(|| Error::Gone(id.clone()))?;
        match self.open_each(&volume.layer, Access::Read) {
            Ok((_, opened)) => Ok(layered::check_opened(opened)),
            Err(lost) => {
                let findings = vec![Finding { layer: 0, problem: Problem::Missing(lost.to_string()) }];
                Ok(Report { layers: Vec::new(), findings })
            }
        }
    }

    /// Makes a sealed layer of a raw disk, which `look` is shown when it is copied.
    pub fn import<E: From<Error>>(
        &self,
        disk: &File,
        look: impl FnOnce(&File) -> Result<(), E>,
    ) -> Result<NewLayer, E> {
        let mut record = Layer::plan(None, 0);
        let claim = self.layers.claim(&record.files);
        let made = self.layers.make_files(&record.files).map_err(io_error("make a layer"))?;
        copy::copy_sparse(disk, &made.data).map_err(io_error("copy the disk"))?;
        look(&made.data)?;
        self.seal_imported(&mut record, made)?;
        Ok(NewLayer { record, _claim: claim })
    }

    /// Makes a sealed layer of data that is in place already.
    fn seal_imported(&self, record: &mut Layer, made: layered::Layer) -> Result<(), Error> {
        let length = made.data.metadata().map_err(io_error("look at the disk"))?.len();
        record.size = length.next_multiple_of(innkeeper_block::SECTOR_SIZE);
        record.state = LayerState::Sealed;
        let description = LayerDescription { id: record.id.uuid(), parent: None, size: record.size };
        layered::import(made, &description).map_err(io_error("make a layer of the disk"))?;
        self.layers.sync().map_err(io_error("make a layer of the disk"))
    }
}

/// Who is doing something with which volume: one at a time.
#[derive(Debug, Default)]
struct Turns {
    taken: Arc<(Mutex<BTreeSet<VolumeId>>, Condvar)>,
}

/// A turn, until it is dropped.
#[derive(Debug)]
struct Turn {
    volume: VolumeId,
    taken: Arc<(Mutex<BTreeSet<VolumeId>>, Condvar)>,
}

impl Turns {
    /// Waits for a turn.
    fn take(&self, volume: &VolumeId) -> Turn {
        let (taken, freed) = &*self.taken;
        let mut set: MutexGuard<'_, _> = taken.lock().unwrap_or_else(PoisonError::into_inner);
        while !set.insert(volume.clone()) {
            set = freed.wait(set).unwrap_or_else(PoisonError::into_inner);
        }
        Turn { volume: volume.clone(), taken: Arc::clone(&self.taken) }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let (taken, freed) = &*self.taken;
        taken.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.volume);
        freed.notify_all();
    }
}
