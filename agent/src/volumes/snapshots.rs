//! Snapshots, as they are recorded: of a volume, and of those that an image is made of.

use std::sync::Arc;

use jiff::Timestamp;

use super::stack;
use crate::ids::{ImageId, InstanceId, SnapshotId, VolumeId};
use crate::records::{Image, ImageState, Layer, LayerState, Snapshot, SnapshotState, Volume};
use crate::state::{Draft, World};

/// Records a snapshot of what a volume holds now. None if there is no such volume.
pub fn take(draft: &mut Draft, volume: &VolumeId, description: &str, now: Timestamp) -> Option<Snapshot> {
    let layer = stack::cover(draft, volume)?;
    let volume = draft.get::<Volume>(volume)?;
    let snapshot = Snapshot {
        id: SnapshotId::random(),
        owner: volume.owner.clone(),
        description: description.to_owned(),
        volume_size: volume.size,
        volume: Some(volume.id.clone()),
        started: now,
        layer,
        state: SnapshotState::Pending,
        completed: None,
        encrypted: volume.encrypted,
        create_volume_permissions: Vec::new(),
        file: None,
    };
    draft.put(snapshot.clone());
    Some(snapshot)
}

/// The images that wait for an instance's guest to be down.
pub fn waiting_images(world: &World, instance: &InstanceId) -> Vec<ImageId> {
    let waiting = world.all::<Image>().filter(|image| image.waits_for.as_ref() == Some(instance));
    waiting.map(|image: &Arc<Image>| image.id.clone()).collect()
}

/// Records the snapshots of all images that wait for an instance, whose guest is down: see [`photograph`].
pub fn photograph_waiting(draft: &mut Draft, instance: &InstanceId, now: Timestamp) {
    for image in waiting_images(draft, instance) {
        photograph(draft, &image, now);
    }
}

/// Records that images cannot be made whose instance is about to write again to what they are of.
pub fn fail_uncovered(draft: &mut Draft, images: &[ImageId], why: &str) {
    let is_covered = |draft: &Draft, snapshot: &SnapshotId| {
        let layer = draft.get::<Snapshot>(snapshot).and_then(|snapshot| draft.get::<Layer>(&snapshot.layer));
        layer.is_some_and(|layer| layer.state >= LayerState::Covered)
    };
    for id in images {
        let Some(image) = draft.get::<Image>(id).filter(|image| image.state == ImageState::Pending) else {
            continue;
        };
        let mut snapshots =
            image.block_devices.iter().filter_map(|one| one.volume.as_ref()?.snapshot.as_ref());
        if !snapshots.all(|snapshot| is_covered(draft, snapshot)) {
            draft.update::<Image>(id, |image| image.fail(why));
        }
    }
}

/// Records that images of an instance cannot be made.
pub fn fail_waiting(draft: &mut Draft, instance: &InstanceId, why: &str) {
    for image in waiting_images(draft, instance) {
        draft.update::<Image>(&image, |image| image.fail(why));
    }
}

/// Records snapshots of the volumes that an image is to have, all of one point in time, and that it waits for them and for
/// nothing else. To be called when nobody writes to the volumes, or if nobody is to wait for that: when its instance's
/// guest is down, or before the volumes of an instance that ends are released. Returns the volumes, which are to be
/// settled then. Without effect on an image that waits for no instance, or is not there any more.
pub fn photograph(draft: &mut Draft, image: &ImageId, now: Timestamp) -> Vec<VolumeId> {
    let Some(image) = draft.get::<Image>(image) else { return Vec::new() };
    let mut image = Image::clone(image);
    let Some(awaited) = image.awaited.take() else { return Vec::new() };
    let origin = image.waits_for.take();
    if let Some(gone) = awaited.volumes.values().find(|id| draft.get::<Volume>(id).is_none()) {
        image.fail(format!("Volume {gone} was deleted before there was a snapshot of it"));
        draft.put(image);
        return Vec::new();
    }
    let description = match origin {
        Some(instance) => format!("Created by CreateImage({instance}) for {}", image.id),
        None => format!("Created by CreateImage for {}", image.id),
    };
    for mapping in &mut image.block_devices {
        let (Some(id), Some(volume)) = (awaited.volumes.get(&mapping.device_name), &mut mapping.volume)
        else {
            continue;
        };
        let Some(snapshot) = take(draft, id, &description, now) else {
            image.failure = Some(format!("Volume {id} has no layers yet: stop and start its instance once"));
            image.state = ImageState::Failed;
            break;
        };
        draft.tag(&snapshot.id, awaited.tags.clone());
        // It can have grown since the image was asked for.
        volume.size = volume.size.max(snapshot.volume_size);
        volume.snapshot = Some(snapshot.id);
    }
    draft.put(image);
    awaited.volumes.into_values().collect()
}
