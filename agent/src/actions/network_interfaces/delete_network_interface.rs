//! DeleteNetworkInterface.

use serde::Deserialize;

use super::own;
use crate::query::{Action, ApiError, Context};
use crate::records::{NetworkInterface, Tags};
use crate::state::World;

/// Deletes an interface that no instance has. Its elastic addresses are free again; routes to it lead nowhere.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct DeleteNetworkInterface {
    network_interface_id: String,
}

impl DeleteNetworkInterface {
    fn plan(&self, world: &World, context: Context<'_>) -> Result<(), ApiError> {
        let interface = own(world, context, &self.network_interface_id)?;
        if interface.attachment.is_some() {
            let message = format!("Network interface '{}' is currently in use.", interface.id);
            return Err(ApiError::new("InvalidParameterValue", message));
        }
        Ok(())
    }
}

impl Action for DeleteNetworkInterface {
    const NAME: &'static str = "DeleteNetworkInterface";
    type Response = ();

    fn check(&self, context: Context<'_>) -> Result<(), ApiError> {
        self.plan(&context.agent.state.read(), context)
    }

    fn run(self, context: Context<'_>) -> Result<(), ApiError> {
        context.agent.state.change(|draft| {
            self.plan(draft, context)?;
            draft.remove::<NetworkInterface>(&self.network_interface_id);
            draft.remove::<Tags>(&self.network_interface_id);
            Ok(())
        })
    }
}
