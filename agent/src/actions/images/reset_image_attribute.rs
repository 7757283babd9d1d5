//! ResetImageAttribute.

use serde::Deserialize;

use crate::actions::lookup::find_own;
use crate::query::{Action, ApiError, Context};
use crate::records::Image;
use crate::state::World;

/// Takes the launch permissions of all but the owner.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct ResetImageAttribute {
    image_id: String,
    attribute: String,
}

impl ResetImageAttribute {
    fn plan(&self, world: &World, context: Context<'_>) -> Result<Image, ApiError> {
        if self.attribute != "launchPermission" {
            let reason = "Of an image, only launchPermission can be reset.";
            return Err(ApiError::invalid(&self.attribute, "attribute", reason));
        }
        let image = Image::clone(find_own(world, context, &self.image_id)?);
        Ok(Image { launch_permissions: Vec::new(), ..image })
    }
}

impl Action for ResetImageAttribute {
    const NAME: &'static str = "ResetImageAttribute";
    type Response = ();

    fn check(&self, context: Context<'_>) -> Result<(), ApiError> {
        self.plan(&context.agent.state.read(), context).map(drop)
    }

    fn run(self, context: Context<'_>) -> Result<(), ApiError> {
        context.agent.state.change(|draft| {
            let image = self.plan(draft, context)?;
            draft.put(image);
            Ok(())
        })
    }
}
