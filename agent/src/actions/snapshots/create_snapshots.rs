//! CreateSnapshots.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::item::SnapshotItem;
use super::{check, check_description, check_place};
use crate::actions::lookup::find;
use crate::ids::{VolumeId, is_well_formed};
use crate::query::tags::{TagSpecification, fits, specified_for};
use crate::query::{Action, ApiError, Context};
use crate::records::{BlockDevice, Instance, Volume};
use crate::state::World;
use crate::volumes::snapshots::take;

/// The most volumes that a request leaves out.
const MAX_EXCLUDED: usize = 40;

/// Keeps what is on an instance's volumes, all of them at the same point in time.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct CreateSnapshots {
    instance_specification: InstanceSpecification,
    description: Option<String>,
    outpost_arn: Option<String>,
    location: Option<String>,
    copy_tags_from_source: Option<String>,
    #[serde(default, rename = "TagSpecification")]
    tags: Vec<TagSpecification>,
}

/// `InstanceSpecification`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
struct InstanceSpecification {
    instance_id: String,
    #[serde(default)]
    exclude_boot_volume: bool,
    #[serde(default, rename = "ExcludeDataVolumeId")]
    excluded: Vec<String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Response {
    snapshot_set: Vec<Item>,
}

/// `snapshotInfo`, which calls some things by other names than `snapshot` does.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Item {
    description: String,
    #[serde(rename = "tagSet", serialize_with = "crate::actions::tags::set")]
    tags: BTreeMap<String, String>,
    encrypted: bool,
    volume_id: String,
    state: &'static str,
    volume_size: u32,
    start_time: String,
    progress: &'static str,
    owner_id: String,
    snapshot_id: String,
}

impl From<SnapshotItem> for Item {
    fn from(item: SnapshotItem) -> Self {
        Self {
            description: item.description,
            tags: item.tags,
            encrypted: item.encrypted,
            volume_id: item.volume_id,
            state: item.status,
            volume_size: item.volume_size,
            start_time: item.start_time,
            progress: item.progress,
            owner_id: item.owner_id,
            snapshot_id: item.snapshot_id,
        }
    }
}

/// A volume, and the tags of its snapshot.
type Planned = (VolumeId, BTreeMap<String, String>);

impl CreateSnapshots {
    /// The volumes of the instance that are wanted.
    fn volumes<'w>(&self, world: &'w World, context: Context<'_>) -> Result<Vec<&'w Volume>, ApiError> {
        let InstanceSpecification { instance_id, exclude_boot_volume, excluded } =
            &self.instance_specification;
        let instance = find::<Instance>(world, context, instance_id)?;
        let invalid = |id: &str, reason: &str| Err(ApiError::invalid(id, "ExcludeDataVolumeId", reason));
        if excluded.len() > MAX_EXCLUDED {
            let message = format!("At most {MAX_EXCLUDED} volumes can be excluded.");
            return Err(ApiError::new("InvalidParameterValue", message));
        }
        for id in excluded {
            if !is_well_formed(VolumeId::PREFIX, id) {
                find::<Volume>(world, context, id)?;
            }
            match instance.block_devices.iter().find(|device| device.volume.as_str() == id) {
                None => return invalid(id, "The volume is not attached to the instance."),
                Some(device) if device.device_name == instance.root_device_name => {
                    return invalid(id, "It is the root volume: say ExcludeBootVolume instead.");
                }
                Some(_) => {}
            }
        }
        let is_left_out = |device: &&BlockDevice| {
            *exclude_boot_volume && device.device_name == instance.root_device_name
                || excluded.iter().any(|id| *id == device.volume.as_str())
        };
        // A terminated instance still says what it had, and others may have that now.
        let has = |volume: &&Volume| {
            volume.attachment.as_ref().is_some_and(|attachment| attachment.instance == instance.id)
        };
        let devices = instance.block_devices.iter().filter(|device| !is_left_out(device));
        let volumes = devices.filter_map(|device| world.get::<Volume>(&device.volume));
        let volumes: Vec<&Volume> = volumes.map(AsRef::as_ref).filter(has).collect();
        if volumes.is_empty() {
            let reason = "The instance has no volumes, or none that are not excluded.";
            return Err(ApiError::invalid(instance_id, "instanceId", reason));
        }
        Ok(volumes)
    }

    fn plan(&self, world: &World, context: Context<'_>) -> Result<Vec<Planned>, ApiError> {
        check_description(self.description.as_ref())?;
        check_place(self.outpost_arn.as_ref(), self.location.as_ref())?;
        let copies_tags = match self.copy_tags_from_source.as_deref() {
            None => false,
            Some("volume") => true,
            Some(other) => {
                return Err(ApiError::invalid(other, "CopyTagsFromSource", "There is volume."));
            }
        };
        let tags = specified_for(&self.tags, "snapshot")?;
        let planned = |volume: &Volume| {
            check(world, volume)?;
            let copied = world.tags(&volume.id).filter(|_| copies_tags);
            let mut all = copied.cloned().unwrap_or_default();
            all.extend(tags.clone());
            fits(all.len())?;
            Ok((volume.id.clone(), all))
        };
        self.volumes(world, context)?.into_iter().map(planned).collect()
    }
}

impl Action for CreateSnapshots {
    const NAME: &'static str = "CreateSnapshots";
    type Response = Response;

    fn check(&self, context: Context<'_>) -> Result<(), ApiError> {
        self.plan(&context.agent.state.read(), context).map(drop)
    }

    fn run(self, context: Context<'_>) -> Result<Response, ApiError> {
        let description = self.description.as_deref().unwrap_or_default();
        let (volumes, snapshot_set) = context.agent.state.change(|draft| {
            let now = Timestamp::now();
            let (mut volumes, mut items) = (Vec::new(), Vec::new());
            // One transaction is one point in time.
            for (volume, tags) in self.plan(draft, context)? {
                let snapshot = take(draft, &volume, description, now)
                    .ok_or_else(|| ApiError::internal(format_args!("{volume} has no layer")))?;
                draft.tag(&snapshot.id, tags);
                items.push(SnapshotItem::new(draft, &snapshot.owner, &snapshot).into());
                volumes.push(volume);
            }
            Ok::<_, ApiError>((volumes, items))
        })?;
        context.agent.settle_volumes(&volumes);
        Ok(Response { snapshot_set })
    }
}
