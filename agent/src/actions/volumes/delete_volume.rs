//! DeleteVolume.

use serde::Deserialize;

use super::item::state_name;
use crate::actions::lookup::find;
use crate::query::{Action, ApiError, Context};
use crate::records::{Tags, Volume, VolumeState};
use crate::state::World;

/// Deletes a volume that no instance has, even while it is changed or a snapshot of it is pending: whoever is at it finds
/// the record gone. Its layers go when no snapshot needs them.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct DeleteVolume {
    volume_id: String,
}

impl DeleteVolume {
    fn plan(&self, world: &World, context: Context<'_>) -> Result<(), ApiError> {
        let volume = find::<Volume>(world, context, &self.volume_id)?;
        if let Some(attachment) = &volume.attachment {
            let message = format!("Volume {} is currently attached to {}", volume.id, attachment.instance);
            return Err(ApiError::new("VolumeInUse", message));
        }
        if matches!(volume.state, VolumeState::Creating | VolumeState::Deleting) {
            let message = format!("Volume {} is in the '{}' state.", volume.id, state_name(volume.state));
            return Err(ApiError::new("IncorrectState", message));
        }
        Ok(())
    }
}

impl Action for DeleteVolume {
    const NAME: &'static str = "DeleteVolume";
    type Response = ();

    fn check(&self, context: Context<'_>) -> Result<(), ApiError> {
        self.plan(&context.agent.state.read(), context)
    }

    fn run(self, context: Context<'_>) -> Result<(), ApiError> {
        context.agent.state.change(|draft| {
            self.plan(draft, context)?;
            draft.remove::<Volume>(&self.volume_id);
            draft.remove::<Tags>(&self.volume_id);
            Ok(())
        })
    }
}
