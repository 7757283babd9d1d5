//! MonitorInstances and UnmonitorInstances.

use serde::{Deserialize, Serialize};

use super::named::Changes;
use crate::query::{Action, ApiError, Context};
use crate::state::World;

/// Turns detailed monitoring on.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct MonitorInstances {
    #[serde(default, rename = "InstanceId")]
    ids: Vec<String>,
}

/// Turns detailed monitoring off.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct UnmonitorInstances {
    #[serde(default, rename = "InstanceId")]
    ids: Vec<String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Response {
    instances_set: Vec<Item>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Item {
    instance_id: String,
    monitoring: Monitoring,
}

#[derive(Debug, Serialize)]
struct Monitoring {
    state: &'static str,
}

fn plan(world: &World, context: Context<'_>, ids: &[String], on: bool) -> Result<Changes, ApiError> {
    Changes::plan(world, context, ids, |_, instance| {
        instance.monitoring = on;
        Ok(())
    })
}

fn set(context: Context<'_>, ids: &[String], on: bool) -> Result<Response, ApiError> {
    context.agent.state.change(|draft| {
        let changes = plan(draft, context, ids, on)?;
        changes.record(draft);
        // EC2 says what is on its way; afterwards the instance says that it is so.
        let state = if on { "pending" } else { "disabling" };
        let instances_set = changes
            .changed()
            .map(|instance| Item { instance_id: instance.id.to_string(), monitoring: Monitoring { state } })
            .collect();
        Ok(Response { instances_set })
    })
}

impl Action for MonitorInstances {
    const NAME: &'static str = "MonitorInstances";
    type Response = Response;

    fn check(&self, context: Context<'_>) -> Result<(), ApiError> {
        plan(&context.agent.state.read(), context, &self.ids, true).map(drop)
    }

    fn run(self, context: Context<'_>) -> Result<Response, ApiError> {
        set(context, &self.ids, true)
    }
}

impl Action for UnmonitorInstances {
    const NAME: &'static str = "UnmonitorInstances";
    type Response = Response;

    fn check(&self, context: Context<'_>) -> Result<(), ApiError> {
        plan(&context.agent.state.read(), context, &self.ids, false).map(drop)
    }

    fn run(self, context: Context<'_>) -> Result<Response, ApiError> {
        set(context, &self.ids, false)
    }
}
