//! RebootInstances.

use serde::Deserialize;

use super::named::Changes;
use crate::query::{Action, ApiError, Context};
use crate::state::World;

/// Reboots running instances: they stay where they are, with all that they have.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct RebootInstances {
    #[serde(default, rename = "InstanceId")]
    ids: Vec<String>,
}

impl RebootInstances {
    fn plan(&self, world: &World, context: Context<'_>) -> Result<Changes, ApiError> {
        Changes::plan(world, context, &self.ids, |_, instance| {
            instance.lifecycle.reboot().map_err(|_| {
                let message = format!(
                    "The instance '{}' is not in a state from which it can be rebooted.",
                    instance.id
                );
                ApiError::new("IncorrectInstanceState", message)
            })
        })
    }
}

impl Action for RebootInstances {
    const NAME: &'static str = "RebootInstances";
    type Response = ();

    fn check(&self, context: Context<'_>) -> Result<(), ApiError> {
        self.plan(&context.agent.state.read(), context).map(drop)
    }

    fn run(self, context: Context<'_>) -> Result<(), ApiError> {
        context.agent.state.change(|draft| {
            self.plan(draft, context)?.record(draft);
            Ok(())
        })
    }
}
