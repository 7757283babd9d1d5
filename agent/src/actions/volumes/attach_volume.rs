//! AttachVolume.

use serde::{Deserialize, Serialize};

use super::item::{AttachmentItem, state_name};
use crate::actions::device_name::is_device_name;
use crate::actions::instances::check_attachments;
use crate::actions::lookup::find;
use crate::instances::interfaces;
use crate::query::{Action, ApiError, Context};
use crate::records::{
    Attachment, AttachmentStatus, BlockDevice, Instance, InstanceState, Volume, VolumeState,
};
use crate::state::World;

/// Gives a volume to an instance that is running or stopped.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct AttachVolume {
    volume_id: String,
    instance_id: String,
    device: String,
    #[serde(default)]
    ebs_card_index: i64,
}

/// The attachment itself.
#[derive(Debug, Serialize)]
#[serde(transparent)]
pub struct Response(AttachmentItem);

impl AttachVolume {
    fn plan(&self, world: &World, context: Context<'_>) -> Result<(), ApiError> {
        let volume = find::<Volume>(world, context, &self.volume_id)?;
        let instance = find::<Instance>(world, context, &self.instance_id)?;
        if !is_device_name(&self.device) {
            let reason = format!("{} is not a valid EBS device name.", self.device);
            return Err(ApiError::invalid(&self.device, "unixDevice", reason));
        }
        if self.ebs_card_index != 0 {
            let message = "An instance has one EBS card, 0: leave EbsCardIndex out.";
            return Err(ApiError::new("UnsupportedOperation", message));
        }
        if volume.attachment.is_some() {
            let message = format!("{} is already attached to an instance", volume.id);
            return Err(ApiError::new("VolumeInUse", message));
        }
        if volume.state != VolumeState::Available {
            let message = format!("{} is not 'available'; it is '{}'.", volume.id, state_name(volume.state));
            return Err(ApiError::new("IncorrectState", message));
        }
        if let Some(why) = volume.hindrance() {
            return Err(ApiError::new("IncorrectState", why));
        }
        if volume.change_under_way().is_some() {
            let message =
                format!("Cannot attach volume {} when it is in modification state: MODIFYING", volume.id);
            return Err(ApiError::new("OperationNotPermitted", message));
        }
        let state = instance.lifecycle.state;
        if !matches!(state, InstanceState::Running | InstanceState::Stopped) {
            let message = format!(
                "Instance '{}' is not 'running' or 'stopped'; it is '{}'.",
                instance.id,
                state.name()
            );
            return Err(ApiError::new("IncorrectState", message));
        }
        if volume.availability_zone != instance.availability_zone {
            let message = format!(
                "The volume '{}' is not in the same availability zone as instance '{}'",
                volume.id, instance.id
            );
            return Err(ApiError::new("InvalidVolume.ZoneMismatch", message));
        }
        let disks = instance.block_devices.len() + instance.instance_store.len();
        check_attachments(disks + 1, interfaces(world, &instance.id).len())?;
        let volumes = instance.block_devices.iter().map(|device| &device.device_name);
        let store = instance.instance_store.iter().filter_map(|disk| disk.device_name.as_ref());
        if volumes.chain(store).any(|name| *name == self.device) {
            let message = format!(
                "Invalid value '{}' for unixDevice. Attachment point {} is already in use",
                self.device, self.device
            );
            return Err(ApiError::new("InvalidParameterValue", message));
        }
        Ok(())
    }
}

impl Action for AttachVolume {
    const NAME: &'static str = "AttachVolume";
    type Response = Response;

    fn check(&self, context: Context<'_>) -> Result<(), ApiError> {
        self.plan(&context.agent.state.read(), context)
    }

    fn run(self, context: Context<'_>) -> Result<Response, ApiError> {
        context.agent.state.change(|draft| {
            self.plan(draft, context)?;
            let mut volume = Volume::clone(find(draft, context, &self.volume_id)?);
            let mut instance = Instance::clone(find(draft, context, &self.instance_id)?);
            let attachment = Attachment {
                instance: instance.id.clone(),
                device: self.device.clone(),
                delete_on_termination: false,
                attached: jiff::Timestamp::now(),
                // The instance's actor gives it to a guest that runs.
                status: match instance.lifecycle.state {
                    InstanceState::Running => AttachmentStatus::Attaching,
                    _ => AttachmentStatus::Attached,
                },
            };
            instance.block_devices.push(BlockDevice {
                device_name: self.device.clone(),
                volume: volume.id.clone(),
                delete_on_termination: false,
            });
            let answer = Attachment { status: AttachmentStatus::Attaching, ..attachment.clone() };
            let item = AttachmentItem::new(&volume, &answer);
            volume.state = VolumeState::InUse;
            volume.attachment = Some(attachment);
            draft.put(volume);
            draft.put(instance);
            Ok(Response(item))
        })
    }
}
