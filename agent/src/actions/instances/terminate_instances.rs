//! TerminateInstances.

use jiff::Timestamp;
use serde::Deserialize;

use super::named::{Changes, States};
use crate::query::{Action, ApiError, Context};
use crate::records::Instance;
use crate::state::World;

/// Terminates instances, and deletes those of their volumes that go with them.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct TerminateInstances {
    #[serde(default, rename = "InstanceId")]
    ids: Vec<String>,
    /// No guest is waited for.
    #[serde(default, rename = "Force")]
    _force: bool,
    #[serde(default, rename = "SkipOsShutdown")]
    _skip_os_shutdown: bool,
}

impl TerminateInstances {
    fn plan(&self, world: &World, context: Context<'_>) -> Result<Changes, ApiError> {
        let now = Timestamp::now();
        Changes::plan(world, context, &self.ids, |_, instance| {
            allowed(instance)?;
            instance.lifecycle.terminate(now);
            Ok(())
        })
    }
}

/// Who must not be stopped must not be terminated either.
fn allowed(instance: &Instance) -> Result<(), ApiError> {
    let attribute = if instance.disable_api_termination {
        "disableApiTermination"
    } else if instance.disable_api_stop {
        "disableApiStop"
    } else {
        return Ok(());
    };
    let message = format!(
        "The instance '{}' may not be terminated. Modify its '{attribute}' instance attribute and try again.",
        instance.id
    );
    Err(ApiError::new("OperationNotPermitted", message))
}

impl Action for TerminateInstances {
    const NAME: &'static str = "TerminateInstances";
    type Response = States;

    fn check(&self, context: Context<'_>) -> Result<(), ApiError> {
        self.plan(&context.agent.state.read(), context).map(drop)
    }

    fn run(self, context: Context<'_>) -> Result<States, ApiError> {
        context.agent.state.change(|draft| {
            let changes = self.plan(draft, context)?;
            changes.record(draft);
            Ok(changes.states())
        })
    }
}
