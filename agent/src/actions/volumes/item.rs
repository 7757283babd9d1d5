//! A volume in answers.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::actions::lookup::time;
use crate::actions::regions::zone_id;
use crate::query::Context;
use crate::records::{Attachment, Volume, VolumeState};
use crate::state::World;

/// `volume`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct VolumeItem {
    pub volume_id: String,
    pub size: u32,
    pub snapshot_id: String,
    pub availability_zone: String,
    pub availability_zone_id: String,
    pub status: &'static str,
    pub create_time: String,
    pub attachment_set: Vec<AttachmentItem>,
    #[serde(rename = "tagSet", serialize_with = "crate::actions::tags::set")]
    pub tags: BTreeMap<String, String>,
    pub volume_type: String,
    pub iops: Option<u32>,
    pub throughput: Option<u32>,
    pub encrypted: bool,
    pub multi_attach_enabled: bool,
}

/// `attachment`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct AttachmentItem {
    pub volume_id: String,
    pub instance_id: String,
    pub device: String,
    pub status: &'static str,
    pub attach_time: String,
    pub delete_on_termination: bool,
}

impl VolumeItem {
    pub fn new(world: &World, context: Context<'_>, volume: &Volume) -> Self {
        let attachment = volume.attachment.as_ref();
        Self {
            volume_id: volume.id.to_string(),
            size: volume.size,
            snapshot_id: volume.snapshot.as_ref().map(ToString::to_string).unwrap_or_default(),
            availability_zone: volume.availability_zone.clone(),
            availability_zone_id: zone_id(&context.agent.config.region, &volume.availability_zone),
            status: state_name(volume.state),
            create_time: time(volume.created),
            attachment_set: attachment
                .map(|attachment| AttachmentItem::new(volume, attachment))
                .into_iter()
                .collect(),
            tags: world.tags(&volume.id).cloned().unwrap_or_default(),
            volume_type: volume.volume_type.clone(),
            iops: volume.iops,
            throughput: volume.throughput,
            encrypted: volume.encrypted,
            multi_attach_enabled: false,
        }
    }
}

impl AttachmentItem {
    pub fn new(volume: &Volume, attachment: &Attachment) -> Self {
        Self {
            volume_id: volume.id.to_string(),
            instance_id: attachment.instance.to_string(),
            device: attachment.device.clone(),
            status: attachment.status.name(),
            attach_time: time(attachment.attached),
            delete_on_termination: attachment.delete_on_termination,
        }
    }
}

/// EC2's name for a state.
pub(super) fn state_name(state: VolumeState) -> &'static str {
    match state {
        VolumeState::Creating => "creating",
        VolumeState::Available => "available",
        VolumeState::InUse => "in-use",
        VolumeState::Deleting => "deleting",
        VolumeState::Error => "error",
    }
}
