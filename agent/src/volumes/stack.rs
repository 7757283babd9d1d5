//! Which layers are on top of each other, and what has to be written down when that changes. Nothing here touches a file.
//!
//! A snapshot *covers* its volume's top layer with a new one, in the transaction that records it. Who serves the volume
//! brings that about, whenever it comes to it, and records how far it is: see [`LayerState`].

use std::collections::BTreeSet;
use std::sync::Arc;

use jiff::Timestamp;

use crate::ids::{LayerId, VolumeId};
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
    !chain.iter().rev().skip(1).all(is_covered)
        || volume.modification.as_ref().is_some_and(Modification::is_under_way)
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
    let Some(change) = volume.modification.clone().filter(|change| change.is_under_way()) else { return };
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
    let waiting = draft.all::<Image>().filter(|image| image.state == ImageState::Pending);
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

/// The layers that nobody needs any more: no volume, snapshot, image or instance store is on top of them.
pub fn unneeded(world: &World) -> Vec<LayerId> {
    let mut needed: BTreeSet<&LayerId> = BTreeSet::new();
    let is_alive = |instance: &&Arc<Instance>| instance.lifecycle.state != InstanceState::Terminated;
    let mut tops: Vec<&LayerId> = Vec::new();
    tops.extend(world.all::<Volume>().map(|volume| &volume.layer));
    tops.extend(world.all::<Snapshot>().map(|snapshot| &snapshot.layer));
    tops.extend(world.all::<Image>().filter_map(|image| image.root_store.as_ref()?.layer.as_ref()));
    tops.extend(
        world
            .all::<Instance>()
            .filter(is_alive)
            .flat_map(|instance| &instance.instance_store)
            .filter_map(|disk| disk.layer.as_ref()),
    );
    for top in tops {
        let mut next = Some(top);
        while let Some(id) = next.filter(|id| needed.insert(id)) {
            next = world.get::<Layer>(id).and_then(|layer| layer.parent.as_ref());
        }
    }
    world.all::<Layer>().filter(|layer| !needed.contains(&layer.id)).map(|layer| layer.id.clone()).collect()
}
