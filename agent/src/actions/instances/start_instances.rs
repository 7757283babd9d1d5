//! StartInstances.

use jiff::Timestamp;
use serde::Deserialize;
use serde::de::IgnoredAny;

use super::named::{Changes, States};
use crate::instances::capacity::Need;
use crate::network::public_addresses::give_automatic;
use crate::query::{Action, ApiError, Context};
use crate::records::{Instance, InstanceState, RootDeviceType};
use crate::state::World;

/// Starts stopped instances, if the host has room for all of them.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct StartInstances {
    #[serde(default, rename = "InstanceId")]
    ids: Vec<String>,
    /// Reserved by EC2.
    #[serde(rename = "AdditionalInfo")]
    _additional_info: Option<IgnoredAny>,
}

impl StartInstances {
    fn plan(&self, world: &World, context: Context<'_>) -> Result<Changes, ApiError> {
        let now = Timestamp::now();
        Changes::plan(world, context, &self.ids, |world, instance| start(world, context, instance, now))
    }
}

fn start(
    world: &World,
    context: Context<'_>,
    instance: &mut Instance,
    now: Timestamp,
) -> Result<(), ApiError> {
    let id = &instance.id;
    if instance.lifecycle.state == InstanceState::Stopped {
        let root = &instance.root_device_name;
        let attached = instance.block_devices.iter().any(|device| device.device_name == *root);
        if instance.root_device_type() == RootDeviceType::Ebs && !attached {
            let message = format!(
                "Invalid value '{id}' for instanceId. Instance does not have a volume attached at root ({root})"
            );
            return Err(ApiError::new("IncorrectState", message));
        }
        let agent = context.agent;
        let Some(kind) = agent.catalogue.get(&instance.instance_type) else {
            let message = format!(
                "This host has no instance type '{}' any more. Give '{id}' another one with ModifyInstanceAttribute.",
                instance.instance_type
            );
            return Err(ApiError::new("Unsupported", message));
        };
        let need = Need::new(kind, &instance.instance_store);
        if agent.capacity.room(world, &agent.catalogue, need) == 0 {
            return Err(no_capacity(&instance.instance_type));
        }
        instance.launch_time = now;
    }
    instance.lifecycle.start(now).map_err(|_| {
        let message =
            format!("The instance '{}' is not in a state from which it can be started.", instance.id);
        ApiError::new("IncorrectInstanceState", message)
    })
}

/// The host is full.
pub fn no_capacity(instance_type: &str) -> ApiError {
    ApiError::new(
        "InsufficientInstanceCapacity",
        format!(
            "This host does not have enough free CPUs, or memory, of which an instance store is a part, for \
             {instance_type}. Stop or terminate instances, or choose a smaller type."
        ),
    )
}

impl Action for StartInstances {
    const NAME: &'static str = "StartInstances";
    type Response = States;

    fn check(&self, context: Context<'_>) -> Result<(), ApiError> {
        self.plan(&context.agent.state.read(), context).map(drop)
    }

    fn run(self, context: Context<'_>) -> Result<States, ApiError> {
        context.agent.state.change(|draft| {
            let changes = self.plan(draft, context)?;
            changes.record(draft);
            for instance in changes.changed() {
                give_automatic(draft, &context.agent.config, &instance.network_interface);
            }
            Ok(changes.states())
        })
    }
}
