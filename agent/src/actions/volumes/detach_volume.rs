//! DetachVolume.

use serde::{Deserialize, Serialize};

use super::item::AttachmentItem;
use crate::actions::lookup::{Named, find};
use crate::ids::is_well_formed;
use crate::instances::detach;
use crate::query::{Action, ApiError, Context};
use crate::records::{Attachment, AttachmentStatus, Instance, InstanceState, Volume};
use crate::state::World;

/// Takes a volume away from its instance.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct DetachVolume {
    volume_id: String,
    instance_id: Option<String>,
    device: Option<String>,
    /// Whether the guest is not waited for; it loses what it has not written.
    #[serde(default)]
    force: bool,
}

/// The attachment that was.
#[derive(Debug, Serialize)]
#[serde(transparent)]
pub struct Response(AttachmentItem);

impl DetachVolume {
    fn plan(&self, world: &World, context: Context<'_>) -> Result<Attachment, ApiError> {
        let volume = find::<Volume>(world, context, &self.volume_id)?;
        if let Some(id) = &self.instance_id
            && !is_well_formed(Instance::PREFIX, id)
        {
            // One that is well-formed and wrong has no such attachment.
            find::<Instance>(world, context, id)?;
        }
        let Some(attachment) = &volume.attachment else {
            let message = format!("Volume '{}' is in the 'available' state.", volume.id);
            return Err(ApiError::new("IncorrectState", message));
        };
        let is_meant = self.instance_id.as_ref().is_none_or(|id| *id == attachment.instance.as_str())
            && self.device.as_ref().is_none_or(|device| *device == attachment.device);
        if !is_meant {
            let message = format!(
                "The volume '{}' is attached to instance '{}' as device '{}', and not as the request says.",
                volume.id, attachment.instance, attachment.device
            );
            return Err(ApiError::new("InvalidAttachment.NotFound", message));
        }
        if let Some(instance) = world.get::<Instance>(&attachment.instance) {
            // Its volumes are being taken from it already.
            if instance.lifecycle.state == InstanceState::ShuttingDown {
                let message = format!("Instance '{}' is shutting down.", instance.id);
                return Err(ApiError::new("IncorrectState", message));
            }
            let is_root = instance.root_device_name == attachment.device;
            let state = instance.lifecycle.state;
            if is_root && !matches!(state, InstanceState::Stopped | InstanceState::Terminated) {
                let message = format!(
                    "Unable to detach root volume '{}' from instance '{}'",
                    volume.id, attachment.instance
                );
                return Err(ApiError::new("OperationNotPermitted", message));
            }
        }
        Ok(attachment.clone())
    }
}

impl Action for DetachVolume {
    const NAME: &'static str = "DetachVolume";
    type Response = Response;

    fn check(&self, context: Context<'_>) -> Result<(), ApiError> {
        self.plan(&context.agent.state.read(), context).map(|_| ())
    }

    fn run(self, context: Context<'_>) -> Result<Response, ApiError> {
        context.agent.state.change(|draft| {
            let attachment = self.plan(draft, context)?;
            let mut volume = Volume::clone(find(draft, context, &self.volume_id)?);
            // Who asks again without force does not take it back.
            let force =
                self.force || matches!(attachment.status, AttachmentStatus::Detaching { force: true });
            let attachment = Attachment { status: AttachmentStatus::Detaching { force }, ..attachment };
            let item = AttachmentItem::new(&volume, &attachment);
            let has_vmm = draft
                .get::<Instance>(&attachment.instance)
                .is_some_and(|instance| instance.lifecycle.state.holds_capacity());
            volume.attachment = Some(attachment);
            let id = volume.id.clone();
            draft.put(volume);
            // A guest that has it has to let go of it first: its instance's actor sees to that.
            if !has_vmm {
                detach(draft, &id);
            }
            Ok(Response(item))
        })
    }
}
