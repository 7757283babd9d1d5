//! Snapshots. The actions record them, in no time: a snapshot is the layer that its volume had on top, which gets another
//! one. When that has happened is for the storage to say, and when the layer is on the disk.

mod attributes;
mod copy_snapshot;
mod create_snapshot;
mod create_snapshots;
mod delete_snapshot;
mod describe_snapshots;
mod item;
#[cfg(test)]
mod model;
#[cfg(test)]
mod tests;

pub(super) use copy_snapshot::{check_encryption, check_region};

use jiff::Timestamp;

use crate::actions::refused::refuse;
use crate::ids::SnapshotId;
use crate::query::ApiError;
use crate::query::dispatch::Registry;
use crate::records::{Image, Snapshot, SnapshotState, Volume, VolumeState};
use crate::state::World;
use crate::volumes::stack;

/// The most characters of a description.
const MAX_DESCRIPTION: usize = 255;

/// The most snapshots of a volume that are not complete yet.
const MAX_PENDING: usize = 5;

/// The same of the volume types that are made for large files.
const MAX_PENDING_OF_DISKS: usize = 1;

pub(super) fn register(registry: &mut Registry) {
    registry.add::<attributes::DescribeSnapshotAttribute>();
    registry.add::<attributes::ModifySnapshotAttribute>();
    registry.add::<attributes::ResetSnapshotAttribute>();
    registry.add::<copy_snapshot::CopySnapshot>();
    registry.add::<create_snapshot::CreateSnapshot>();
    registry.add::<create_snapshots::CreateSnapshots>();
    registry.add::<delete_snapshot::DeleteSnapshot>();
    registry.add::<describe_snapshots::DescribeSnapshots>();
}

/// Whether there can be a snapshot of a volume now.
pub(super) fn check(world: &World, volume: &Volume) -> Result<(), ApiError> {
    let state = match volume.state {
        VolumeState::Available | VolumeState::InUse => None,
        VolumeState::Creating => Some("creating"),
        VolumeState::Deleting => Some("deleting"),
        VolumeState::Error => Some("error"),
    };
    if let Some(state) = state {
        let message = format!("Volume {} is in the '{state}' state and cannot be snapshotted.", volume.id);
        return Err(ApiError::new("IncorrectState", message));
    }
    let most = match volume.volume_type.as_str() {
        "st1" | "sc1" => MAX_PENDING_OF_DISKS,
        _ => MAX_PENDING,
    };
    let pending = world.all::<Snapshot>().filter(|snapshot| {
        snapshot.state == SnapshotState::Pending && snapshot.volume.as_ref() == Some(&volume.id)
    });
    if pending.count() >= most {
        let message = format!(
            "Maximum allowed in-progress snapshots for a single volume exceeded: {} has {most}. Wait until one of them \
             is completed.",
            volume.id
        );
        return Err(ApiError::new("ConcurrentSnapshotLimitExceeded", message));
    }
    if stack::chain(world, &volume.layer).len() >= stack::MAX_DEPTH {
        let message = format!(
            "Volume {} is on top of {} snapshots that are still needed, which is the most. Delete some of them first.",
            volume.id,
            stack::MAX_DEPTH
        );
        return Err(ApiError::new("SnapshotLimitExceeded", message));
    }
    Ok(())
}

/// A snapshot of the same layer for another owner. It takes no more room, and outlives the one that it is made of.
pub(super) fn copy(source: &Snapshot, owner: &str, description: String, now: Timestamp) -> Snapshot {
    Snapshot {
        id: SnapshotId::random(),
        owner: owner.to_owned(),
        description,
        volume: None,
        started: now,
        completed: Some(now),
        create_volume_permissions: Vec::new(),
        ..source.clone()
    }
}

/// The image that still needs a snapshot. Volumes that were made of it have what it has for good.
pub(super) fn user_of(world: &World, snapshot: &SnapshotId) -> Option<String> {
    let needs = |image: &Image| {
        let volumes = image.block_devices.iter().filter_map(|mapping| mapping.volume.as_ref());
        volumes.into_iter().any(|volume| volume.snapshot.as_ref() == Some(snapshot))
    };
    world.all::<Image>().find(|image| needs(image)).map(|image| image.id.to_string())
}

fn check_description(description: Option<&String>) -> Result<(), ApiError> {
    match description.filter(|text| text.chars().count() > MAX_DESCRIPTION) {
        None => Ok(()),
        Some(text) => {
            let reason = format!("A description has at most {MAX_DESCRIPTION} characters.");
            Err(ApiError::invalid(text, "description", reason))
        }
    }
}

/// Refuses places for snapshots that there are not.
fn check_place(outpost: Option<&String>, location: Option<&String>) -> Result<(), ApiError> {
    refuse(&[(outpost.is_some(), "There are no outposts: leave OutpostArn out.")])?;
    match location.map(String::as_str) {
        None | Some("regional") => Ok(()),
        Some("local") => refuse(&[(true, "There are no local zones: leave Location out, or say regional.")]),
        Some(other) => Err(ApiError::invalid(other, "Location", "There are regional and local.")),
    }
}
