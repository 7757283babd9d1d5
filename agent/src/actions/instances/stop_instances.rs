//! StopInstances.

use jiff::{SignedDuration, Timestamp};
use serde::Deserialize;

use super::named::{Changes, States};
use crate::query::{Action, ApiError, Context};
use crate::records::{Instance, RootDeviceType};
use crate::state::World;

/// Stops instances: their guests are asked to switch themselves off, and are switched off if that takes too long.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct StopInstances {
    #[serde(default, rename = "InstanceId")]
    ids: Vec<String>,
    /// Do not wait for the guest.
    #[serde(default)]
    force: bool,
    /// Do not even ask it.
    #[serde(default)]
    skip_os_shutdown: bool,
    #[serde(default)]
    hibernate: bool,
}

impl StopInstances {
    fn plan(&self, world: &World, context: Context<'_>) -> Result<Changes, ApiError> {
        let now = Timestamp::now();
        let seconds = i64::try_from(context.agent.config.stop_timeout).unwrap_or(i64::MAX);
        let patience = SignedDuration::from_secs(seconds);
        let force = self.force || self.skip_os_shutdown;
        Changes::plan(world, context, &self.ids, |_, instance| {
            self.allowed(instance)?;
            instance.lifecycle.stop(force, patience, now).map_err(|_| {
                let message = format!(
                    "This instance '{}' is not in a state from which it can be stopped.",
                    instance.id
                );
                ApiError::new("IncorrectInstanceState", message)
            })
        })
    }

    fn allowed(&self, instance: &Instance) -> Result<(), ApiError> {
        let id = &instance.id;
        if self.hibernate {
            let message = format!(
                "The instance '{id}' was not launched with hibernation: no instance of this host is."
            );
            return Err(ApiError::new("UnsupportedHibernationConfiguration", message));
        }
        if instance.root_device_type() == RootDeviceType::InstanceStore {
            let message =
                format!("The instance '{id}' does not have an 'ebs' root device type and cannot be stopped");
            return Err(ApiError::new("UnsupportedOperation", message));
        }
        if instance.disable_api_stop {
            let message = format!(
                "The instance '{id}' may not be stopped. Modify its 'disableApiStop' instance attribute and try again."
            );
            return Err(ApiError::new("OperationNotPermitted", message));
        }
        Ok(())
    }
}

impl Action for StopInstances {
    const NAME: &'static str = "StopInstances";
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
