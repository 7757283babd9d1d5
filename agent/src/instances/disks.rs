//! The disks of an instance: its volumes, and those of its instance store.
//!
//! The VMM has a volume's layers as they were when it got them. What is recorded of them since then, new tops and what was
//! merged, the actor brings to it.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use innkeeper_block::layered;
use innkeeper_protocol::{Command, DeviceStatus, Error as ProtocolError, FailureCode, Limits};
use jiff::Timestamp;
use tokio::time::Instant;

use super::actor::{Actor, blocking};
use super::failpoint::pass;
use super::settle::{attached, detach};
use super::vmm::{DiskFiles, NewDisk, VmmError};
use super::{chain, store};
use crate::ids::{LayerId, VolumeId};
use crate::records::{AttachmentStatus, Instance, Layer, LayerState, StoreDisk, Volume, VolumeShape};
use crate::state::World;
use crate::volumes::layers::Access;
use crate::volumes::{snapshots, stack, types};

/// How long a disk may be another VMM's that has ended: of one that was killed, the kernel closes what its io_uring had
/// in hand some time after.
const LETTING_GO: Duration = Duration::from_secs(2);

/// After how long something is tried again that a busy VMM has refused.
const AGAIN: Duration = Duration::from_secs(1);

/// The same of what has failed.
const REST: Duration = Duration::from_secs(60);

/// A volume that the VMM has.
#[derive(Debug)]
pub(super) struct Attached {
    /// Its top layer there. None of a volume of before there were layers.
    top: Option<LayerId>,
    /// Its layers and the names of their files, from the bottom, if that is known.
    files: Option<Vec<(LayerId, String)>>,
    sealing: Sealing,
}

/// How far a volume's VMM is with making durable what was covered.
#[derive(Debug, Default)]
enum Sealing {
    /// It was not asked to.
    #[default]
    Idle,
    /// It is at these.
    Asked(Vec<LayerId>),
    /// It has failed, and is asked again after this.
    GivenUp(Instant),
}

/// New layers for a volume that the VMM has.
struct Seal {
    volume: VolumeId,
    /// What is its top there.
    top: LayerId,
    /// Those that are to be on it, from the lowest.
    files: Vec<layered::Layer>,
    layers: Vec<Arc<Layer>>,
}

impl Seal {
    /// The layers that will not be the top any more.
    fn covered(&self) -> Vec<LayerId> {
        let ids = [&self.top].into_iter().chain(self.layers.iter().map(|layer| &layer.id));
        ids.take(self.layers.len()).cloned().collect()
    }
}

impl Attached {
    /// What a VMM says of a volume that an earlier agent has given to it.
    pub fn found(device: &DeviceStatus, world: &World) -> Self {
        let top = device.top.clone().and_then(|top| LayerId::try_from(top).ok());
        let layers = top.as_ref().map(|top| stack::chain(world, top)).unwrap_or_default();
        // If there are fewer, some were merged since, and nobody knows which it has.
        let is_known = usize::try_from(device.layers).is_ok_and(|count| count == layers.len());
        let files = is_known.then(|| layers.iter().map(|layer| of(layer)).collect());
        Self { top, files, sealing: Sealing::Idle }
    }
}

impl Actor {
    /// Makes the files of the instance's volumes.
    pub(super) async fn prepare_volumes(&mut self, instance: &Instance) -> Result<()> {
        pass("prepare-volumes.before");
        for device in &instance.block_devices {
            let (shared, id) = (self.shared.clone(), device.volume.clone());
            let made = blocking(move || shared.volumes.make(&id));
            made.await.with_context(|| format!("cannot make {}", device.volume))?;
        }
        pass("prepare-volumes.made");
        Ok(())
    }

    /// Makes the disks of the instance store.
    pub(super) async fn make_store(&self, instance: &Instance) -> Result<()> {
        if instance.instance_store.is_empty() {
            return Ok(());
        }
        let (shared, instance) = (self.shared.clone(), instance.clone());
        Ok(blocking(move || store::make(shared.host.as_ref(), &instance)).await?)
    }

    /// Gives a guest that is about to start all its disks. The first is its root.
    pub(super) async fn attach_disks(&mut self, instance: &Instance) -> Result<()> {
        self.disks.clear();
        for disk in instance.instance_store.iter().filter(|disk| disk.is_root()) {
            self.attach_store_disk(disk).await?;
        }
        for device in &instance.block_devices {
            self.attach_volume(&device.volume).await?;
        }
        for disk in instance.instance_store.iter().filter(|disk| !disk.is_root()) {
            self.attach_store_disk(disk).await?;
        }
        Ok(())
    }

    /// Opens the root disk, which has this name, to be read while no guest runs on it.
    pub(super) async fn open_root(&mut self, instance: &Instance) -> Result<(String, DiskFiles)> {
        if let Some(disk) = instance.instance_store.iter().find(|disk| disk.is_root()) {
            return Ok(("its instance store".to_owned(), self.open_store_disk(disk).await?));
        }
        let root = instance.block_devices.iter().find(|one| one.device_name == instance.root_device_name);
        let id = root.context("there is no root volume to boot from")?.volume.clone();
        let (shared, volume) = (self.shared.clone(), id.clone());
        let opened = blocking(move || shared.volumes.open_still(&volume)).await;
        let opened = opened.with_context(|| format!("cannot open {id}"))?;
        Ok((id.to_string(), DiskFiles::Layers(opened.files)))
    }

    async fn open_store_disk(&self, disk: &StoreDisk) -> Result<DiskFiles> {
        let (shared, id, disk) = (self.shared.clone(), self.id.clone(), disk.clone());
        blocking(move || {
            let base = disk.layer.as_ref();
            let below = base.map(|base| shared.volumes.open_layers(base, Access::Read)).transpose()?;
            Ok(store::open(shared.host.as_ref(), &id, &disk.name, below)?)
        })
        .await
    }

    async fn attach_store_disk(&mut self, disk: &StoreDisk) -> Result<()> {
        let files = self.open_store_disk(disk).await?;
        self.attach_disk(&disk.name, Limits::default(), &files).await
    }

    async fn attach_volume(&mut self, id: &VolumeId) -> Result<()> {
        let (shared, volume) = (self.shared.clone(), id.clone());
        let held = blocking(move || shared.volumes.open(&volume)).await;
        let held = held.with_context(|| format!("cannot open {id}"))?;
        let volume = self.record::<Volume>(id).with_context(|| format!("{id} does not exist any more"))?;
        if let Some(why) = volume.impairment.as_ref().filter(|_| !volume.auto_enable_io) {
            bail!(
                "{id} is impaired ({why}): look at it with `innkeeper volume check {id}`, and then use EnableVolumeIO"
            );
        }
        let limits = match self.shared.limits_volumes {
            true => types::limits(&VolumeShape::of(&volume)),
            false => Limits::default(),
        };
        let files = DiskFiles::Layers(held.opened.files);
        self.attach_disk(id.as_str(), limits, &files).await?;
        let layers = held.opened.layers;
        let attached = Attached {
            top: layers.last().map(|top| top.id.clone()),
            files: Some(layers.iter().map(|layer| of(layer)).collect()),
            sealing: Sealing::Idle,
        };
        self.disks.insert(id.clone(), attached);
        // What is below the top takes nothing any more, and a volume that was opened anew is as good as its layers.
        let below = layers.split_last().map_or(&[][..], |(_, below)| below);
        let is_news = below.iter().any(|layer| layer.state < LayerState::Covered);
        if is_news || volume.impairment.is_some() {
            let below: Vec<LayerId> = below.iter().map(|layer| layer.id.clone()).collect();
            let id = id.clone();
            self.record_change(move |draft| {
                stack::advance(draft, &below, LayerState::Covered, Timestamp::now());
                draft.update::<Volume>(&id, |volume| volume.impairment = None);
            })
            .await?;
        }
        Ok(())
    }

    /// Gives the guest a disk. Its serial number is its name, without a dash.
    async fn attach_disk(&mut self, name: &str, limits: Limits, files: &DiskFiles) -> Result<()> {
        let serial = name.replace('-', "");
        let disk = NewDisk { id: name, serial: &serial, is_still: false, limits };
        let deadline = Instant::now() + LETTING_GO;
        let slot = loop {
            match self.vmm()?.attach_disk(disk, files).await {
                Err(VmmError::Protocol(ProtocolError::Refused(failure)))
                    if failure.code == FailureCode::Conflict && Instant::now() < deadline =>
                {
                    tokio::time::sleep(LETTING_GO / 100).await;
                }
                Err(error @ VmmError::Protocol(ProtocolError::Refused(_))) => return Err(error.into()),
                // It may have got it. Whoever talks to it next asks what it has.
                Err(error) => {
                    self.vmm = None;
                    return Err(error.into());
                }
                Ok(slot) => break slot,
            }
        };
        tracing::debug!(instance = %self.id, disk = name, slot, "attached");
        Ok(())
    }

    /// Gives a running guest the volumes that it is to have, takes those that it is to lose, brings about what was recorded
    /// of those that it has, and records what came of it.
    pub(super) async fn reconcile_volumes(&mut self, instance: &Instance) {
        for device in &instance.block_devices {
            let id = &device.volume;
            let Some(attachment) = self.record::<Volume>(id).and_then(|volume| volume.attachment.clone())
            else {
                continue;
            };
            let result = match (attachment.status, self.disks.contains_key(id)) {
                (AttachmentStatus::Attached, true) => Ok(()),
                (AttachmentStatus::Attaching, true) => self.change(id, attached).await,
                (AttachmentStatus::Attaching | AttachmentStatus::Attached, false) => {
                    match self.attach_volume(id).await {
                        Ok(()) => self.change(id, attached).await,
                        Err(error) => Err(error),
                    }
                }
                (AttachmentStatus::Detaching { force }, true) => self.ask_for(id.as_str(), force).await,
                (AttachmentStatus::Detaching { .. }, false) => self.let_go(id).await,
            };
            if let Err(error) = result {
                tracing::warn!(instance = %self.id, volume = %id, error = chain(error.as_ref()), "cannot do so");
            }
        }
        if let Err(error) = self.reconcile_layers().await {
            tracing::warn!(instance = %self.id, error = chain(error.as_ref()), "cannot bring volumes up to date");
            self.check = self.check.min(Instant::now() + AGAIN);
        }
    }

    /// Records that a volume is nobody's, and finishes what its guest has left.
    async fn let_go(&self, id: &VolumeId) -> Result<()> {
        self.change(id, detach).await?;
        let (shared, id) = (self.shared.clone(), id.clone());
        Ok(blocking(move || shared.volumes.settle(&id)).await?)
    }

    /// Brings to the VMM what was recorded of the volumes that it has.
    pub(super) async fn reconcile_layers(&mut self) -> Result<()> {
        let volumes: Vec<VolumeId> = self.disks.keys().cloned().collect();
        // What does not work for one is done for the others.
        let mut result = self.cover(&volumes).await;
        for id in &volumes {
            result = result.and(self.finish_seal(id).await);
            result = result.and(self.modify(id).await);
            result = result.and(self.replace_merged(id).await);
        }
        result
    }

    /// Puts the new tops on volumes, on all at one point of time.
    async fn cover(&mut self, volumes: &[VolumeId]) -> Result<()> {
        let mut seals = Vec::new();
        for id in volumes {
            let Some(top) = self.disks.get(id).and_then(|attached| attached.top.clone()) else { continue };
            if self.record::<Volume>(id).is_none_or(|volume| volume.layer == top) {
                continue;
            }
            let (shared, volume, of) = (self.shared.clone(), id.clone(), top.clone());
            let opened = blocking(move || shared.volumes.open_above(&volume, &of)).await;
            let opened = opened.with_context(|| format!("cannot put a layer on {id}"))?;
            seals.push(Seal { volume: id.clone(), top, files: opened.files, layers: opened.layers });
        }
        if seals.is_empty() {
            return Ok(());
        }
        // One that the guest is about to be without is settled by whoever has it next.
        let there = self.vmm()?.status().await?.devices;
        seals.retain(|seal| {
            there.iter().any(|device| device.id == seal.volume.as_str() && device.top.is_some())
        });
        pass("cover.made");
        let mut lost: Vec<(LayerId, String)> = Vec::new();
        while !seals.is_empty() {
            match self.vmm()?.seal_disks(seals.iter().map(|seal| (seal.volume.as_str(), &*seal.files))).await
            {
                Ok(()) => break,
                // What was under way took too long to be waited for, or a disk has just gone.
                Err(VmmError::Protocol(ProtocolError::Refused(failure)))
                    if matches!(failure.code, FailureCode::Conflict | FailureCode::NotFound) =>
                {
                    bail!("{}", failure.message)
                }
                // Nothing has changed. One that stands in the others' way is left out; another try would come to the same.
                Err(VmmError::Protocol(ProtocolError::Refused(failure))) => {
                    let is_named = |seal: &Seal| failure.message.contains(seal.volume.as_str());
                    let is_one_named = seals.iter().any(is_named);
                    let (bad, good): (Vec<_>, _) =
                        seals.into_iter().partition(|seal| !is_one_named || is_named(seal));
                    lost.extend(
                        bad.iter().flat_map(Seal::covered).map(|layer| (layer, failure.message.clone())),
                    );
                    seals = good;
                }
                Err(error) => return Err(error.into()),
            }
        }
        pass("cover.sealed");
        let covered: Vec<LayerId> = seals.iter().flat_map(Seal::covered).collect();
        for seal in seals {
            if let (Some(attached), Some(new)) = (self.disks.get_mut(&seal.volume), seal.layers.last()) {
                attached.top = Some(new.id.clone());
                if let Some(files) = &mut attached.files {
                    files.extend(seal.layers.iter().map(|layer| of(layer)));
                }
            }
        }
        self.record_change(move |draft| {
            stack::advance(draft, &covered, LayerState::Covered, Timestamp::now());
            lost.iter().for_each(|(layer, why)| stack::fail(draft, layer, why));
        })
        .await
    }

    /// Has a volume's VMM make durable what was covered.
    async fn finish_seal(&mut self, id: &VolumeId) -> Result<()> {
        let Some(attached) = self.disks.get_mut(id) else { return Ok(()) };
        let Some(top) = &attached.top else { return Ok(()) };
        // Whether that they are covered was recorded or not: an agent may have died before.
        let mut layers = stack::chain(&self.shared.state.read(), top);
        layers.pop();
        layers.retain(|layer| layer.state < LayerState::Sealed);
        let is_time = match &attached.sealing {
            Sealing::Idle => true,
            Sealing::Asked(_) => false,
            Sealing::GivenUp(until) => Instant::now() >= *until,
        };
        if layers.is_empty() || !is_time {
            return Ok(());
        }
        self.vmm()?.say(Command::FinishSeal { id: id.to_string() }).await?;
        if let Some(attached) = self.disks.get_mut(id) {
            attached.sealing = Sealing::Asked(layers.iter().map(|layer| layer.id.clone()).collect());
        }
        Ok(())
    }

    /// Records what has become of that.
    pub(super) async fn sealed(&mut self, id: &str, failure: Option<String>) -> Result<()> {
        let Ok(id) = id.parse::<VolumeId>() else { return Ok(()) };
        let Some(attached) = self.disks.get_mut(&id) else { return Ok(()) };
        let Sealing::Asked(layers) = std::mem::take(&mut attached.sealing) else { return Ok(()) };
        if let Some(why) = &failure {
            tracing::error!(instance = %self.id, volume = %id, why, "a snapshot is not durable");
            attached.sealing = Sealing::GivenUp(Instant::now() + REST);
        }
        pass("cover.durable");
        // The word may be the answer to somebody who asked earlier, and then it is not about all of them.
        let shared = self.shared.clone();
        let layers = match &failure {
            None => blocking(move || shared.volumes.sealed_of(layers)).await,
            Some(_) => layers,
        };
        self.record_change(move |draft| match &failure {
            None => stack::advance(draft, &layers, LayerState::Sealed, Timestamp::now()),
            Some(why) => layers.iter().for_each(|layer| stack::fail(draft, layer, why)),
        })
        .await
    }

    /// Changes a volume's size and limits as ModifyVolume says.
    async fn modify(&mut self, id: &VolumeId) -> Result<()> {
        let Some(volume) = self.record::<Volume>(id) else { return Ok(()) };
        let Some(change) = volume.change_under_way() else { return Ok(()) };
        let has = self.disks.get(id).and_then(|attached| attached.top.as_ref());
        if has.is_some_and(|top| volume.layer != *top) {
            // The layer that waits to be put on top has the size of before.
            return Ok(());
        }
        let mut outcome = Ok(());
        let mut commands = Vec::new();
        if change.target.size > change.original.size {
            let size = u64::from(change.target.size) << 30;
            commands.push(Command::ResizeDisk { id: id.to_string(), size });
        }
        if self.shared.limits_volumes {
            let limits = types::limits(&change.target);
            commands.push(Command::LimitDisk { id: id.to_string(), limits });
        }
        for command in commands {
            match self.vmm()?.say(command).await {
                Ok(()) => {}
                // It is busy, or the guest is about to be without it.
                Err(VmmError::Protocol(ProtocolError::Refused(failure)))
                    if matches!(failure.code, FailureCode::Conflict | FailureCode::NotFound) =>
                {
                    bail!("{}", failure.message)
                }
                Err(VmmError::Protocol(ProtocolError::Refused(failure))) => outcome = Err(failure.message),
                Err(error) => return Err(error.into()),
            }
        }
        let id = id.clone();
        self.record_change(move |draft| stack::modified(draft, &id, &outcome, Timestamp::now())).await
    }

    /// Gives the VMM layers that were merged of some that it has.
    async fn replace_merged(&mut self, id: &VolumeId) -> Result<()> {
        let Some(attached) = self.disks.get(id) else { return Ok(()) };
        let (Some(top), Some(files)) = (&attached.top, attached.files.clone()) else { return Ok(()) };
        let layers = stack::chain(&self.shared.state.read(), top);
        let Some((range, merged)) = replaced(&files, &layers) else { return Ok(()) };
        let (shared, layer) = (self.shared.clone(), Layer::clone(merged));
        let opened = blocking(move || shared.volumes.open_layer(&layer)).await?;
        self.vmm()?.replace_layers(id.as_str(), (range.start, range.len()), &opened).await?;
        let merged = of(merged);
        if let Some(files) = self.disks.get_mut(id).and_then(|attached| attached.files.as_mut()) {
            files.splice(range, [merged]);
        }
        Ok(())
    }

    /// Records the snapshots of images that wait for the guest to be down. It is.
    pub(super) async fn photograph(&mut self) -> Result<()> {
        let id = self.id.clone();
        if snapshots::waiting_images(&self.shared.state.read(), &id).is_empty() {
            return Ok(());
        }
        self.record_change(move |draft| snapshots::photograph_waiting(draft, &id, Timestamp::now())).await
    }

    /// Has the guest rebooted that was rebooted for an image while no agent was there to see it.
    pub(super) async fn reboot_for_images(&mut self) {
        let id = self.id.clone();
        if snapshots::waiting_images(&self.shared.state.read(), &id).is_empty() {
            return;
        }
        let changed = self.record_change(move |draft| {
            let is_idle = |instance: &Instance| instance.lifecycle.step.is_none();
            if draft.get::<Instance>(&id).is_some_and(|instance| is_idle(instance)) {
                draft.update::<Instance>(&id, |instance| _ = instance.lifecycle.reboot());
            }
        });
        if let Err(error) = changed.await {
            tracing::warn!(instance = %self.id, error = chain(error.as_ref()), "an image has to wait");
        }
    }

    /// Records that images that wait for the guest cannot be made.
    pub(super) async fn fail_images(&mut self, why: &str) {
        let (id, why) = (self.id.clone(), why.to_owned());
        if snapshots::waiting_images(&self.shared.state.read(), &id).is_empty() {
            return;
        }
        if let Err(error) = self.record_change(move |draft| snapshots::fail_waiting(draft, &id, &why)).await {
            tracing::warn!(instance = %self.id, error = chain(error.as_ref()), "an image has to wait");
        }
    }

    /// Brings about what is recorded of the volumes of an instance that has no guest.
    pub(super) async fn settle_volumes(&mut self, instance: &Instance) {
        for device in &instance.block_devices {
            let (shared, id) = (self.shared.clone(), device.volume.clone());
            if let Err(error) = blocking(move || shared.volumes.settle(&id)).await {
                let (volume, error) = (&device.volume, chain(&error));
                tracing::warn!(instance = %self.id, %volume, error, "what was asked for cannot be done");
            }
        }
    }

    /// Notes which volumes the VMM cannot write to any more.
    pub(super) async fn note_impairments(&self, devices: &[DeviceStatus]) -> Result<()> {
        let mut news = Vec::new();
        for device in devices {
            let Ok(id) = device.id.parse::<VolumeId>() else { continue };
            let known = self.record::<Volume>(&id).map(|volume| volume.impairment.clone());
            if device.impairment.is_some() && known.is_some_and(|known| known != device.impairment) {
                tracing::error!(instance = %self.id, volume = %id, why = device.impairment, "a volume is impaired");
                news.push((id, device.impairment.clone()));
            }
        }
        if news.is_empty() {
            return Ok(());
        }
        self.record_change(move |draft| {
            for (id, impairment) in &news {
                draft.update::<Volume>(id, |volume| volume.impairment.clone_from(impairment));
            }
        })
        .await
    }
}

/// A layer, and the name of its files.
fn of(layer: &Layer) -> (LayerId, String) {
    (layer.id.clone(), layer.files.clone())
}

/// The first layers of a stack that are one layer by now, which has the id of the topmost of them.
fn replaced<'a>(has: &[(LayerId, String)], layers: &'a [Arc<Layer>]) -> Option<(Range<usize>, &'a Layer)> {
    let mut start = 0;
    for layer in layers {
        let at = has.iter().position(|(id, _)| *id == layer.id)?;
        if at != start || has.get(at).is_some_and(|(_, files)| *files != layer.files) {
            return (start <= at).then_some((start..at + 1, layer.as_ref()));
        }
        start = at + 1;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn merged_layers_are_found() {
        let ids = [(); 5].map(|()| LayerId::random());
        // By the number of the id, and the name.
        let stack = |layers: &[(usize, &str)]| -> Vec<Arc<Layer>> {
            let layer = |(id, name): &(usize, &str)| Layer {
                id: ids[*id].clone(),
                files: (*name).to_owned(),
                ..Layer::plan(None, 0)
            };
            layers.iter().map(|one| Arc::new(layer(one))).collect()
        };
        let has = [(0, "a"), (1, "b"), (2, "c"), (3, "d"), (4, "t")];
        for (recorded, expected) in [
            (&has[..], None),
            (&[(0, "a"), (2, "m"), (3, "d"), (4, "t")], Some((1..3, "m"))),
            (&[(2, "m"), (3, "d"), (4, "t")], Some((0..3, "m"))),
            // Two next to each other: one after the other.
            (&[(1, "m"), (3, "n"), (4, "t")], Some((0..2, "m"))),
            (&[(0, "m"), (1, "b"), (2, "c"), (3, "d"), (4, "t")], Some((0..1, "m"))),
            (&[(0, "a"), (1, "b"), (2, "c"), (3, "m"), (4, "t")], Some((3..4, "m"))),
        ] {
            let recorded = stack(recorded);
            let has: Vec<_> = stack(&has).iter().map(|layer| of(layer)).collect();
            let found = replaced(&has, &recorded).map(|(range, layer)| (range, layer.files.as_str()));
            assert_eq!(found, expected, "{recorded:?}");
        }
    }
}
