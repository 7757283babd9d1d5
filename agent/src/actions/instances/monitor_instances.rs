//! MonitorInstances and UnmonitorInstances.

use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};

use super::named::Changes;
use crate::actions::refused::unsupported;
use crate::query::{Action, ApiError, Context};
use crate::state::World;

/// Turns detailed monitoring on.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct MonitorInstances {
    #[serde(default, rename = "InstanceId")]
    ids: Vec<String>,
    #[serde(default, rename = "MetricCategoryId")]
    categories: Vec<IgnoredAny>,
}

/// Turns detailed monitoring off.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct UnmonitorInstances {
    #[serde(default, rename = "InstanceId")]
    ids: Vec<String>,
    #[serde(default, rename = "MetricCategoryId")]
    categories: Vec<IgnoredAny>,
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

fn plan(
    world: &World,
    context: Context<'_>,
    ids: &[String],
    categories: &[IgnoredAny],
    on: bool,
) -> Result<Changes, ApiError> {
    if !categories.is_empty() {
        return Err(unsupported("This host has no metric categories."));
    }
    Changes::plan(world, context, ids, |_, instance| {
        instance.monitoring = on;
        Ok(())
    })
}

fn set(
    context: Context<'_>,
    ids: &[String],
    categories: &[IgnoredAny],
    on: bool,
) -> Result<Response, ApiError> {
    context.agent.state.change(|draft| {
        let changes = plan(draft, context, ids, categories, on)?;
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
        plan(&context.agent.state.read(), context, &self.ids, &self.categories, true).map(drop)
    }

    fn run(self, context: Context<'_>) -> Result<Response, ApiError> {
        set(context, &self.ids, &self.categories, true)
    }
}

impl Action for UnmonitorInstances {
    const NAME: &'static str = "UnmonitorInstances";
    type Response = Response;

    fn check(&self, context: Context<'_>) -> Result<(), ApiError> {
        plan(&context.agent.state.read(), context, &self.ids, &self.categories, false).map(drop)
    }

    fn run(self, context: Context<'_>) -> Result<Response, ApiError> {
        set(context, &self.ids, &self.categories, false)
    }
}
