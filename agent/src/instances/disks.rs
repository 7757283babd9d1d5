//! The disks of an instance: its volumes, and those of its instance store.
//!
//! The VMM has a volume's layers as they were when it got them. What is recorded of them since then, new tops and what was
//! merged, the actor brings to it.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use innkeeper_block::layered;
use innkeeper_protocol::{
    Command, DeviceStatus, Error as ProtocolError, FailureCode, Limits, State as GuestState, Status,
};
use jiff::Timestamp;
use tokio::time::Instant;

use super::actor::{Actor, blocking};
use super::failpoint::pass;
use super::settle::{attached, detach};
use super::vmm::{DiskFiles, LAYERS_AT_ONCE, NewDisk, Vmm, VmmError};
use super::{chain, store};
use crate::ids::{ImageId, LayerId, VolumeId};
use crate::records::{
    Attachment, AttachmentStatus, Instance, Layer, LayerState, StoreDisk, Volume, VolumeShape,
};
use crate::volumes::layers::Access;
use crate::volumes::{snapshots, stack, types};

/// How long a disk may be another VMM's that has ended: of one that was killed, the kernel closes what its io_uring had
/// in hand some time after.
const LETTING_GO: Duration = Duration::from_secs(2);

/// After how long something is tried again that a busy VMM has refused.
const AGAIN: Duration = Duration::from_secs(1);

/// The same of what has failed.
const REST: Duration = Duration::from_secs(60);

/// How long it is tried to put new tops on volumes whose guest is down and waits for that.
const COVER_PATIENCE: Duration = Duration::from_secs(5);

/// A volume that the VMM has.
#[derive(Debug)]
pub(super) struct Attached {
    /// Its layers there, from the bottom. None of a volume of before there were layers.
    layers: Vec<LayerId>,
    /// Whether nobody knows which are below these.
    is_bottomless: bool,
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
    fn with(layers: Vec<LayerId>) -> Self {
        Self { layers, is_bottomless: false, sealing: Sealing::Idle }
    }

    /// The layer that takes what the guest writes.
    fn top(&self) -> Option<&LayerId> {
        self.layers.last()
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
        if let Some(why) = volume.hindrance() {
            bail!(why);
        }
        let limits = match self.shared.limits_volumes {
            true => types::limits(&VolumeShape::of(&volume)),
            false => Limits::default(),
        };
        let files = DiskFiles::Layers(held.opened.files);
        self.attach_disk(id.as_str(), limits, &files).await?;
        let layers = held.opened.layers;
        let attached = Attached::with(layers.iter().map(|layer| layer.id.clone()).collect());
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

    /// Asks the VMM which volumes an earlier agent has given to it, and what it has of them.
    pub(super) async fn find_disks(
        &mut self,
        vmm: &mut Vmm,
        devices: &[DeviceStatus],
    ) -> Result<(), VmmError> {
        self.disks.clear();
        for device in devices {
            let Ok(id) = device.id.parse::<VolumeId>() else { continue };
            let (layers, is_bottomless) = match &device.top {
                Some(top) => match vmm.disk_layers(&device.id).await {
                    // It is of an earlier version, and keeps what it has.
                    Err(VmmError::Protocol(ProtocolError::Refused(_))) => {
                        (vec![top.clone()], device.layers > 1)
                    }
                    layers => (layers?, false),
                },
                None => (Vec::new(), false),
            };
            let layers = layers.into_iter().map(LayerId::try_from).collect::<Result<Vec<_>, _>>();
            // What it has beside layers is none of ours.
            let layers = layers.unwrap_or_default();
            self.disks.insert(id, Attached { is_bottomless, ..Attached::with(layers) });
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
        self.reconcile_layers().await;
    }

    /// Records that a volume is nobody's, and finishes what its guest has left.
    async fn let_go(&mut self, id: &VolumeId) -> Result<()> {
        // Whether all of it was written, nobody asks any more when it is another's.
        let status = self.vmm()?.status().await?;
        self.note_impairments(&status).await?;
        self.change(id, detach).await?;
        let (shared, id) = (self.shared.clone(), id.clone());
        Ok(blocking(move || shared.volumes.settle(&id)).await?)
    }

    /// Brings to the VMM what was recorded of the volumes that it has. What fails is tried again.
    pub(super) async fn reconcile_layers(&mut self) {
        let volumes: Vec<VolumeId> = self.disks.keys().cloned().collect();
        // What does not work for one is done for the others.
        let mut result = self.cover(&volumes).await;
        for id in &volumes {
            result = result.and(self.finish_seal(id).await);
            result = result.and(self.modify(id).await);
            result = result.and(self.replace_merged(id).await);
        }
        if let Err(error) = result {
            tracing::warn!(instance = %self.id, error = chain(error.as_ref()), "cannot bring volumes up to date");
            self.check = self.check.min(Instant::now() + AGAIN);
        }
    }

    /// The same of volumes whose guest is down, and comes up again after it. What these images are of cannot wait for later:
    /// the guest would have written to it.
    pub(super) async fn cover_while_down(&mut self, images: Vec<ImageId>) {
        let volumes: Vec<VolumeId> = self.disks.keys().cloned().collect();
        let deadline = Instant::now() + COVER_PATIENCE;
        loop {
            let Err(error) = self.cover(&volumes).await else { return };
            tracing::warn!(instance = %self.id, error = chain(error.as_ref()), "cannot put layers on volumes");
            if images.is_empty() {
                return;
            }
            if Instant::now() + AGAIN > deadline {
                break;
            }
            tokio::time::sleep(AGAIN).await;
        }
        let is_about_to_boot = match self.vmm.as_mut() {
            Some(vmm) => vmm.status().await.is_ok_and(|status| status.state == GuestState::Resetting),
            None => false,
        };
        if !is_about_to_boot {
            // Nobody writes to them any more, and whoever has them next finds what is to be done.
            return;
        }
        let why = "The disks could not be kept as they were while the instance was down";
        let given_up = self.record_change(move |draft| snapshots::fail_uncovered(draft, &images, why));
        if let Err(error) = given_up.await {
            tracing::error!(instance = %self.id, error = chain(error.as_ref()), "an image is not what it should be");
        }
    }

    /// Puts the new tops on volumes, on all at one point of time. Only if so many wait that a message has no room for them
    /// is that done one after the other, from the lowest.
    async fn cover(&mut self, volumes: &[VolumeId]) -> Result<()> {
        while self.cover_some(volumes).await? {}
        Ok(())
    }

    /// The same of as many as there is room for. Returns whether there are more.
    async fn cover_some(&mut self, volumes: &[VolumeId]) -> Result<bool> {
        let mut seals = Vec::new();
        let mut failure = None;
        for id in volumes {
            let Some(top) = self.disks.get(id).and_then(Attached::top).cloned() else { continue };
            if self.record::<Volume>(id).is_none_or(|volume| volume.layer == top) {
                continue;
            }
            let (shared, volume, of) = (self.shared.clone(), id.clone(), top.clone());
            let opened = blocking(move || shared.volumes.open_above(&volume, &of)).await;
            match opened.with_context(|| format!("cannot put a layer on {id}")) {
                Ok(opened) => {
                    let (files, layers) = (opened.files, opened.layers);
                    seals.push(Seal { volume: id.clone(), top, files, layers });
                }
                // The others get theirs.
                Err(error) => failure = failure.or(Some(error)),
            }
        }
        if seals.is_empty() {
            return failure.map_or(Ok(false), Err);
        }
        // One that the guest is about to be without is settled by whoever has it next.
        let there = self.vmm()?.status().await?.devices;
        seals.retain(|seal| {
            there.iter().any(|device| device.id == seal.volume.as_str() && device.top.is_some())
        });
        let depth = lowest_that_fit(seals.iter().map(|seal| seal.layers.len()), LAYERS_AT_ONCE);
        let is_too_much = seals.iter().any(|seal| seal.layers.len() > depth);
        for seal in &mut seals {
            seal.files.truncate(depth);
            seal.layers.truncate(depth);
        }
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
        let has_any = !seals.is_empty();
        for seal in seals {
            if let Some(attached) = self.disks.get_mut(&seal.volume) {
                attached.layers.extend(seal.layers.iter().map(|layer| layer.id.clone()));
            }
        }
        self.record_change(move |draft| {
            stack::advance(draft, &covered, LayerState::Covered, Timestamp::now());
            lost.iter().for_each(|(layer, why)| stack::fail(draft, layer, why));
        })
        .await?;
        failure.map_or(Ok(is_too_much && has_any), Err)
    }

    /// Has a volume's VMM make durable what was covered.
    async fn finish_seal(&mut self, id: &VolumeId) -> Result<()> {
        let Some(attached) = self.disks.get_mut(id) else { return Ok(()) };
        let Some(top) = attached.top() else { return Ok(()) };
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
        // The word may be the answer to somebody who asked earlier, and then it is not about all of them; nor is a failure,
        // which the last of them may have met.
        let (shared, asked) = (self.shared.clone(), layers.clone());
        let durable = blocking(move || shared.volumes.sealed_of(asked)).await;
        self.record_change(move |draft| {
            stack::advance(draft, &durable, LayerState::Sealed, Timestamp::now());
            let Some(why) = failure else { return };
            layers
                .iter()
                .filter(|layer| !durable.contains(layer))
                .for_each(|layer| stack::fail(draft, layer, &why));
        })
        .await
    }

    /// Changes a volume's size and limits as ModifyVolume says.
    async fn modify(&mut self, id: &VolumeId) -> Result<()> {
        let Some(volume) = self.record::<Volume>(id) else { return Ok(()) };
        let Some(change) = volume.change_under_way() else { return Ok(()) };
        let has = self.disks.get(id).and_then(Attached::top);
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
        let Some(attached) = self.disks.get(id).filter(|attached| !attached.is_bottomless) else {
            return Ok(());
        };
        let Some(top) = attached.top() else { return Ok(()) };
        let layers = stack::chain(&self.shared.state.read(), top);
        let Some((range, merged)) = replaced(&attached.layers, &layers) else { return Ok(()) };
        let (shared, layer) = (self.shared.clone(), Layer::clone(merged));
        let opened = blocking(move || shared.volumes.open_layer(&layer)).await?;
        self.vmm()?.replace_layers(id.as_str(), (range.start, range.len()), &opened).await?;
        let merged = merged.id.clone();
        if let Some(attached) = self.disks.get_mut(id) {
            attached.layers.splice(range, [merged]);
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

    /// Notes which volumes the VMM cannot write to any more, and of which something was lost when they went.
    pub(super) async fn note_impairments(&self, status: &Status) -> Result<()> {
        let there =
            status.devices.iter().filter_map(|device| Some((&device.id, device.impairment.as_ref()?)));
        let mut news = Vec::new();
        for (id, why, is_there) in there
            .map(|(id, why)| (id, why, true))
            .chain(status.losses.iter().map(|(id, why)| (id, why, false)))
        {
            let Ok(id) = id.parse::<VolumeId>() else { continue };
            let Some(volume) = self.record::<Volume>(&id) else { continue };
            // One that went, and is another's by now or comes anew, has a story of its own.
            let is_from_here = |attachment: &Attachment| {
                attachment.instance == self.id && attachment.status != AttachmentStatus::Attaching
            };
            let is_meant = is_there || volume.attachment.as_ref().is_some_and(is_from_here);
            if is_meant && volume.impairment.as_ref() != Some(why) {
                tracing::error!(instance = %self.id, volume = %id, why, "a volume is impaired");
                news.push((id, Some(why.clone())));
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

    /// The same where the next look at the VMM shows it again.
    pub(super) async fn try_to_note_impairments(&self, status: &Status) {
        if let Err(error) = self.note_impairments(status).await {
            tracing::warn!(instance = %self.id, error = chain(error.as_ref()), "a volume's trouble is not recorded");
        }
    }
}

/// How many of each list's first can be taken, at least one, so that they are not more than `room` in all.
fn lowest_that_fit(lists: impl Iterator<Item = usize> + Clone, room: usize) -> usize {
    let fits = |depth: usize| lists.clone().map(|length| length.min(depth)).sum::<usize>() <= room;
    let longest = lists.clone().max().unwrap_or_default();
    (2..=longest).take_while(|depth| fits(*depth)).last().unwrap_or(1)
}

/// The first layers of a stack that are one layer by now, which has the id of the topmost of them.
fn replaced<'a>(has: &[LayerId], layers: &'a [Arc<Layer>]) -> Option<(Range<usize>, &'a Layer)> {
    for (start, layer) in layers.iter().enumerate() {
        let at = has.iter().position(|id| *id == layer.id)?;
        if at != start {
            return (start < at).then_some((start..at + 1, layer.as_ref()));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_comes_later() {
        for (lists, room, expected) in [
            (&[1, 1][..], 2, 1),
            (&[3, 3], 6, 3),
            (&[3, 3], 5, 2),
            (&[100, 1, 1], 10, 8),
            (&[500], 126, 126),
            (&[2, 2, 2], 1, 1),
        ] {
            assert_eq!(lowest_that_fit(lists.iter().copied(), room), expected, "{lists:?}");
        }
    }

    #[test]
    fn merged_layers_are_found() {
        let ids = [(); 5].map(|()| LayerId::random());
        // By the number of the id.
        for (recorded, expected) in [
            (&[0, 1, 2, 3, 4][..], None),
            (&[0, 2, 3, 4], Some((1..3, 2))),
            (&[2, 3, 4], Some((0..3, 2))),
            // Two next to each other: one after the other.
            (&[1, 3, 4], Some((0..2, 1))),
            (&[0, 1, 2, 4], Some((3..5, 4))),
        ] {
            let layer = |number: &usize| Layer { id: ids[*number].clone(), ..Layer::plan(None, 0) };
            let layers: Vec<_> = recorded.iter().map(|number| Arc::new(layer(number))).collect();
            let found = replaced(&ids, &layers).map(|(range, layer)| (range, layer.id.clone()));
            let expected = expected.map(|(range, number)| (range, ids[number].clone()));
            assert_eq!(found, expected, "{recorded:?}");
        }
    }
}
