//! Which layers are on top of each other, and what has to be written down when that changes. Nothing here touches a file.
//!
//! A snapshot *covers* its volume's top layer with a new one, in the transaction that records it. Who serves the volume
//! brings that about, whenever it comes to it, and records how far it is: see [`LayerState`].

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use jiff::Timestamp;

use crate::ids::{InstanceId, LayerId, VolumeId};
use crate::records::{
    Image, ImageState, Instance, InstanceState, Layer, LayerState, Modification, ModificationState, Snapshot,
    SnapshotState, Volume, VolumeShape,
};
use crate::state::{Draft, World};

/// The layers of a volume, or of a snapshot, from the bottom to `top`. One that has no record is left out, with all that
/// would be below it: who opens them finds that out.
pub fn chain(world: &World, top: &LayerId) -> Vec<Arc<Layer>> {
    let mut chain: Vec<Arc<Layer>> = Vec::new();
    let mut next = Some(top);
    let layers = world.all::<Layer>().len();
    while let Some(layer) = next.and_then(|id| world.get::<Layer>(id)).filter(|_| chain.len() < layers) {
        chain.push(Arc::clone(layer));
        next = layer.parent.as_ref();
    }
    chain.reverse();
    chain
}

/// The most layers that a volume may consist of. With more, its VMM could not say which they are. What others still do while a
/// snapshot is being asked for makes it a few more.
pub const MAX_DEPTH: usize = innkeeper_protocol::NAMED_LAYERS_MAX - 100;

/// Records a new, empty layer for a volume of `size` GiB, on top of `parent`.
pub fn found(draft: &mut Draft, parent: Option<&LayerId>, size: u32) -> LayerId {
    let layer = Layer::plan(parent.cloned(), u64::from(size) << 30);
    let id = layer.id.clone();
    draft.put(layer);
    id
}

/// Records that a volume gets a new top. What was the top is returned: what the volume holds now will be in it and below.
pub fn cover(draft: &mut Draft, volume: &VolumeId) -> Option<LayerId> {
    let old = draft.get::<Volume>(volume)?.layer.clone();
    let size = draft.get::<Layer>(&old)?.size;
    let layer = Layer::plan(Some(old.clone()), size);
    let id = layer.id.clone();
    draft.put(layer);
    draft.update::<Volume>(volume, |volume| volume.layer = id);
    Some(old)
}

/// Whether something that was recorded of a volume is yet to be brought about, other than making it durable.
pub fn is_unsettled(world: &World, id: &VolumeId) -> bool {
    let Some(volume) = world.get::<Volume>(id) else { return false };
    let chain = chain(world, &volume.layer);
    let is_covered = |layer: &Arc<Layer>| layer.state >= LayerState::Covered;
    !chain.iter().rev().skip(1).all(is_covered) || volume.change_under_way().is_some()
}

/// Records how far layers are. With a layer that is sealed, snapshots are complete, and images available.
pub fn advance<'a>(
    draft: &mut Draft,
    layers: impl IntoIterator<Item = &'a LayerId>,
    to: LayerState,
    now: Timestamp,
) {
    let mut changed = BTreeSet::new();
    for id in layers {
        if draft.get::<Layer>(id).is_some_and(|layer| layer.state < to) {
            draft.update::<Layer>(id, |layer| layer.state = to);
            changed.insert(id.clone());
        }
    }
    if to < LayerState::Sealed || changed.is_empty() {
        return;
    }
    let pending = |snapshot: &&Arc<Snapshot>| {
        snapshot.state == SnapshotState::Pending
            && chain(draft, &snapshot.layer).iter().all(|layer| layer.state == LayerState::Sealed)
    };
    let complete: Vec<_> =
        draft.all::<Snapshot>().filter(pending).map(|snapshot| snapshot.id.clone()).collect();
    for id in complete {
        draft.update::<Snapshot>(&id, |snapshot| {
            snapshot.state = SnapshotState::Completed;
            snapshot.completed = Some(now);
        });
    }
    settle_images(draft);
}

/// Records that a layer cannot be made durable, and what that means for the snapshots on it.
pub fn fail(draft: &mut Draft, layer: &LayerId, why: &str) {
    let is_over = |snapshot: &&Arc<Snapshot>| {
        snapshot.state == SnapshotState::Pending
            && chain(draft, &snapshot.layer).iter().any(|other| other.id == *layer)
    };
    let lost: Vec<_> = draft.all::<Snapshot>().filter(is_over).map(|snapshot| snapshot.id.clone()).collect();
    for id in lost {
        draft.update::<Snapshot>(&id, |snapshot| snapshot.state = SnapshotState::Error(why.to_owned()));
    }
    settle_images(draft);
}

/// Records what has become of a change of a volume.
pub fn modified(draft: &mut Draft, id: &VolumeId, outcome: &Result<(), String>, now: Timestamp) {
    let Some(volume) = draft.get::<Volume>(id) else { return };
    let Some(change) = volume.change_under_way().cloned() else { return };
    let mut volume = Volume::clone(volume);
    let state = match outcome {
        Ok(()) => {
            let VolumeShape { size, volume_type, iops, throughput } = change.target.clone();
            volume = Volume { size, volume_type, iops, throughput, ..volume };
            let size = u64::from(size) << 30;
            draft.update::<Layer>(&volume.layer, |layer| layer.size = layer.size.max(size));
            ModificationState::Completed
        }
        Err(why) => ModificationState::Failed(why.clone()),
    };
    volume.modification = Some(Modification { state, ended: Some(now), ..change });
    draft.put(volume);
}

/// Images that waited for snapshots: available when all are complete, and failed with the first that is lost.
fn settle_images(draft: &mut Draft) {
    // One that waits for an instance, or whose files are being copied, has none of its snapshots yet, which is not the same
    // as having them all.
    let is_pending = |image: &&Arc<Image>| {
        image.state == ImageState::Pending && image.waits_for.is_none() && !image.is_copied
    };
    let waiting = draft.all::<Image>().filter(is_pending);
    let settled: Vec<_> = waiting
        .filter_map(|image| {
            let mut snapshots =
                image.block_devices.iter().filter_map(|mapping| mapping.volume.as_ref()?.snapshot.as_ref());
            let mut is_complete = true;
            let is_lost =
                snapshots.any(|id| match draft.get::<Snapshot>(id).map(|snapshot| &snapshot.state) {
                    Some(SnapshotState::Completed) => false,
                    Some(SnapshotState::Pending) => {
                        is_complete = false;
                        false
                    }
                    Some(SnapshotState::Error(_)) | None => true,
                });
            match (is_lost, is_complete) {
                (true, _) => Some((image.id.clone(), ImageState::Failed)),
                (false, true) => Some((image.id.clone(), ImageState::Available)),
                (false, false) => None,
            }
        })
        .collect();
    for (id, state) in settled {
        draft.update::<Image>(&id, |image| image.state = state);
    }
}

/// The layers that a volume, snapshot, image or instance store is on top of.
fn named(world: &World) -> Vec<&LayerId> {
    let is_alive = |instance: &&Arc<Instance>| instance.lifecycle.state != InstanceState::Terminated;
    let mut named: Vec<&LayerId> = Vec::new();
    named.extend(world.all::<Volume>().map(|volume| &volume.layer));
    named.extend(world.all::<Snapshot>().map(|snapshot| &snapshot.layer));
    named.extend(world.all::<Image>().filter_map(|image| image.root_store.as_ref()?.layer.as_ref()));
    named.extend(
        world
            .all::<Instance>()
            .filter(is_alive)
            .flat_map(|instance| &instance.instance_store)
            .filter_map(|disk| disk.layer.as_ref()),
    );
    named
}

/// The layers that nobody needs any more: nothing is on top of them.
pub fn unneeded(world: &World) -> Vec<LayerId> {
    let mut needed: BTreeSet<&LayerId> = BTreeSet::new();
    for top in named(world) {
        let mut next = Some(top);
        while let Some(id) = next.filter(|id| needed.insert(id)) {
            next = world.get::<Layer>(id).and_then(|layer| layer.parent.as_ref());
        }
    }
    world.all::<Layer>().filter(|layer| !needed.contains(&layer.id)).map(|layer| layer.id.clone()).collect()
}

/// The layers of snapshots that are not complete, and whose volume is gone.
pub fn orphans(world: &World) -> Vec<LayerId> {
    let pending: Vec<_> =
        world.all::<Snapshot>().filter(|snapshot| snapshot.state == SnapshotState::Pending).collect();
    if pending.is_empty() {
        return Vec::new();
    }
    let volumes = world.all::<Volume>().flat_map(|volume| chain(world, &volume.layer));
    let of_volumes: BTreeSet<LayerId> = volumes.map(|layer| layer.id.clone()).collect();
    let layers = pending.iter().map(|snapshot| &snapshot.layer);
    layers
        .filter(|layer| !of_volumes.contains(*layer))
        .cloned()
        .collect::<BTreeSet<_>>()
        .into_iter()
        .collect()
}

/// Sealed layers on top of each other, from the bottom, of which nobody needs any but the last by itself: one layer would
/// do. All such runs, as long as they can be.
pub fn mergeable(world: &World) -> Vec<Vec<Arc<Layer>>> {
    let named: BTreeSet<&LayerId> = named(world).into_iter().collect();
    let mut children: BTreeMap<&LayerId, Vec<&Arc<Layer>>> = BTreeMap::new();
    for layer in world.all::<Layer>() {
        children.entry(layer.parent.as_ref().unwrap_or(&layer.id)).or_default().push(layer);
    }
    let is_sealed = |layer: &Layer| layer.state == LayerState::Sealed;
    // Whether the layer on top of it can take its place.
    let goes_into = |layer: &Layer| -> Option<&Arc<Layer>> {
        let above = children.get(&layer.id).into_iter().flatten().filter(|other| other.id != layer.id);
        let above: Vec<_> = above.collect();
        match *above.as_slice() {
            [only] if is_sealed(layer) && is_sealed(only) && !named.contains(&layer.id) => Some(*only),
            _ => None,
        }
    };
    let mut runs = Vec::new();
    for layer in world.all::<Layer>() {
        let below = layer.parent.as_ref().and_then(|parent| world.get::<Layer>(parent));
        if below.is_some_and(|below| goes_into(below).is_some()) {
            // Not the lowest of its run.
            continue;
        }
        let mut run = vec![Arc::clone(layer)];
        while let Some(above) = run.last().and_then(|last| goes_into(last)).cloned() {
            run.push(above);
        }
        if run.len() > 1 {
            runs.push(run);
        }
    }
    runs
}

/// Records that one layer, with files of this name, is in the place of a run of them. False if they are not what they were
/// any more, and then nothing is changed.
pub fn merged(draft: &mut Draft, run: &[Arc<Layer>], files: &str) -> bool {
    let (Some(lowest), Some(topmost)) = (run.first(), run.last()) else { return false };
    let is_the_same = mergeable(draft).iter().any(|now| {
        now.windows(run.len()).any(|window| {
            let alike =
                |(one, other): (&Arc<Layer>, &Arc<Layer>)| one.id == other.id && one.files == other.files;
            window.iter().zip(run).all(alike)
        })
    });
    if is_the_same {
        draft.update::<Layer>(&topmost.id, |layer| {
            layer.parent.clone_from(&lowest.parent);
            files.clone_into(&mut layer.files);
        });
    }
    is_the_same
}

/// The instances with a volume on a layer, if that was merged: their guests still have what it was merged of.
pub fn users_of_merged(world: &World, layer: &str) -> BTreeSet<InstanceId> {
    let is_merged = |layer: &&Arc<Layer>| layer.files != layer.id.as_ref();
    let Some(layer) = world.get::<Layer>(layer).filter(is_merged) else { return BTreeSet::new() };
    let has_it = |volume: &&Arc<Volume>| chain(world, &volume.layer).iter().any(|other| other.id == layer.id);
    let users = world.all::<Volume>().filter(|volume| volume.attachment.is_some()).filter(has_it);
    users.filter_map(|volume| Some(volume.attachment.as_ref()?.instance.clone())).collect()
}
