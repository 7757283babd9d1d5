//! ModifyVolume.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::item::state_name;
use super::modification::ModificationItem;
use crate::actions::lookup::find;
use crate::actions::refused::refuse;
use crate::query::{Action, ApiError, Context};
use crate::records::{
    Attachment, Instance, Modification, ModificationState, Volume, VolumeShape, VolumeState,
};
use crate::state::World;
use crate::volumes::types;

/// The operations per second of a type where they can be chosen, and are not when a volume becomes one of it.
const DEFAULT_IOPS: u32 = 3_000;

/// Makes a volume larger, or another type, or faster or slower, whether an instance has it or not. EC2 allows four changes
/// a day; they cost this host nothing, and there is no such limit.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct ModifyVolume {
    volume_id: String,
    size: Option<u32>,
    volume_type: Option<String>,
    iops: Option<u32>,
    throughput: Option<u32>,
    multi_attach_enabled: Option<bool>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Response {
    volume_modification: ModificationItem,
}

impl ModifyVolume {
    /// What the volume is to be. What is not said stays as it is, so that a request that says nothing, or what is so
    /// already, is a change like others, from one shape to the same.
    fn target(&self, volume: &Volume) -> Result<VolumeShape, ApiError> {
        let size = self.size.unwrap_or(volume.size);
        if size < volume.size {
            let message = format!("New size cannot be smaller than existing size: {} GiB.", volume.size);
            return Err(ApiError::new("InvalidParameterValue", message));
        }
        let volume_type = self.volume_type.as_deref().unwrap_or(&volume.volume_type);
        let stays = volume_type == volume.volume_type;
        let iops = match volume_type {
            "gp3" | "io1" | "io2" if stays => self.iops.or(volume.iops),
            "gp3" | "io1" | "io2" => self.iops.or(Some(DEFAULT_IOPS)),
            _ => self.iops,
        };
        let throughput = self.throughput.or(volume.throughput.filter(|_| stays));
        let resolved = types::check(volume_type, size, iops, throughput)?;
        Ok(VolumeShape {
            size,
            volume_type: resolved.volume_type,
            iops: resolved.iops,
            throughput: resolved.throughput,
        })
    }

    fn plan(&self, world: &World, context: Context<'_>) -> Result<Volume, ApiError> {
        let mut volume = Volume::clone(find(world, context, &self.volume_id)?);
        refuse(&[(
            self.multi_attach_enabled == Some(true),
            "A volume can be attached to one instance only: leave MultiAttachEnabled out.",
        )])?;
        if !matches!(volume.state, VolumeState::Available | VolumeState::InUse) {
            let message =
                format!("Volume {} cannot be modified in state '{}'.", volume.id, state_name(volume.state));
            return Err(ApiError::new("IncorrectState", message));
        }
        if volume.change_under_way().is_some() {
            let message = format!("Volume {} cannot be modified in modification state MODIFYING", volume.id);
            return Err(ApiError::new("IncorrectModificationState", message));
        }
        let target = self.target(&volume)?;
        if matches!(target.volume_type.as_str(), "st1" | "sc1") && is_root(world, volume.attachment.as_ref())
        {
            let reason = "A volume of this type cannot be a root device.";
            return Err(ApiError::invalid(target.volume_type, "volumeType", reason));
        }
        volume.modification = Some(Modification {
            original: VolumeShape::of(&volume),
            target,
            state: ModificationState::Modifying,
            started: Timestamp::now(),
            ended: None,
        });
        Ok(volume)
    }
}

/// Whether an instance has a volume as its root device.
fn is_root(world: &World, attachment: Option<&Attachment>) -> bool {
    attachment.is_some_and(|attachment| {
        let instance = world.get::<Instance>(&attachment.instance);
        instance.is_some_and(|instance| instance.root_device_name == attachment.device)
    })
}

impl Action for ModifyVolume {
    const NAME: &'static str = "ModifyVolume";
    type Response = Response;

    fn check(&self, context: Context<'_>) -> Result<(), ApiError> {
        self.plan(&context.agent.state.read(), context).map(drop)
    }

    fn run(self, context: Context<'_>) -> Result<Response, ApiError> {
        let (id, item) = context.agent.state.change(|draft| {
            let volume = self.plan(draft, context)?;
            let item = volume.modification.as_ref().map(|change| ModificationItem::new(&volume, change));
            let id = volume.id.clone();
            draft.put(volume);
            Ok::<_, ApiError>((id, item))
        })?;
        context.agent.settle_volumes(&[id]);
        let volume_modification = item.ok_or_else(|| ApiError::internal("a change was not recorded"))?;
        Ok(Response { volume_modification })
    }
}
