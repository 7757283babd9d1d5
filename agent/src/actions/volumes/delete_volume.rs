//! DeleteVolume.

use serde::Deserialize;

use crate::actions::lookup::find;
use crate::query::{Action, ApiError, Context};
use crate::records::{Tags, Volume};
use crate::state::World;

/// Deletes a volume that no instance has. Its file goes with the record.
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
