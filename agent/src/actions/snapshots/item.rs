//! A snapshot in answers.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::actions::lookup::time;
use crate::records::{Snapshot, SnapshotState};
use crate::state::World;

/// What EC2 names as the volume of a snapshot that was not made from one, or was copied.
const NO_VOLUME: &str = "vol-ffffffff";

/// `snapshot`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct SnapshotItem {
    pub snapshot_id: String,
    pub volume_id: String,
    pub status: &'static str,
    /// Why it has failed.
    pub status_message: Option<String>,
    pub start_time: String,
    pub completion_time: Option<String>,
    pub progress: &'static str,
    pub owner_id: String,
    pub volume_size: u32,
    pub description: String,
    pub encrypted: bool,
    pub storage_tier: &'static str,
    #[serde(rename = "tagSet", serialize_with = "crate::actions::tags::set")]
    pub tags: BTreeMap<String, String>,
}

impl SnapshotItem {
    /// As an account sees it.
    pub fn new(world: &World, account: &str, snapshot: &Snapshot) -> Self {
        let (status, status_message, progress) = match &snapshot.state {
            // What is left to do is to have it on the disk, and nobody counts how much of it is there.
            SnapshotState::Pending => ("pending", None, "0%"),
            SnapshotState::Completed => ("completed", None, "100%"),
            SnapshotState::Error(why) => ("error", Some(why.clone()), "0%"),
        };
        Self {
            snapshot_id: snapshot.id.to_string(),
            volume_id: snapshot.volume.as_ref().map_or_else(|| NO_VOLUME.to_owned(), ToString::to_string),
            status,
            status_message,
            start_time: time(snapshot.started),
            completion_time: snapshot.completed.map(time),
            progress,
            owner_id: snapshot.owner.clone(),
            volume_size: snapshot.volume_size,
            description: snapshot.description.clone(),
            encrypted: snapshot.encrypted,
            storage_tier: "standard",
            // Others do not see the owner's.
            tags: world.tags(&snapshot.id).filter(|_| snapshot.owner == account).cloned().unwrap_or_default(),
        }
    }
}
