//! The instances that a request names, and what becomes of them.

use std::sync::Arc;

use serde::Serialize;

use super::view::State;
use crate::actions::lookup::{Named, find_own};
use crate::query::{ApiError, Context};
use crate::records::Instance;
use crate::state::{Draft, Kept, World};

/// The instances with these ids, each once, in the order of the request.
pub fn named<'w>(
    world: &'w World,
    context: Context<'_>,
    ids: &[String],
) -> Result<Vec<&'w Arc<Instance>>, ApiError> {
    if ids.is_empty() {
        return Err(ApiError::missing("InstanceId"));
    }
    let mut found: Vec<&Arc<Instance>> = Vec::with_capacity(ids.len());
    let mut seen = std::collections::BTreeSet::new();
    let mut missing = Vec::new();
    for id in ids.iter().filter(|id| seen.insert(id.as_str())) {
        match find_own::<Instance>(world, context, id) {
            Ok(instance) => found.push(instance),
            Err(error) if error.code == Instance::NOT_FOUND => missing.push(id.as_str()),
            Err(error) => return Err(error),
        }
    }
    match missing.as_slice() {
        [] => Ok(found),
        [one] => Err(ApiError::new(Instance::NOT_FOUND, format!("The instance ID '{one}' does not exist"))),
        many => {
            let message = format!("The instance IDs '{}' do not exist", many.join(", "));
            Err(ApiError::new(Instance::NOT_FOUND, message))
        }
    }
}

/// What is to become of instances: each as it is, and as it shall be.
pub struct Changes(Vec<(Arc<Instance>, Instance)>);

impl Changes {
    /// Changes all instances of a request, or fails if one of them does not allow it. `change` sees the world with those
    /// before it changed. Nothing is recorded yet.
    pub fn plan(
        world: &World,
        context: Context<'_>,
        ids: &[String],
        mut change: impl FnMut(&World, &mut Instance) -> Result<(), ApiError>,
    ) -> Result<Self, ApiError> {
        let mut world = world.clone();
        let instances: Vec<Arc<Instance>> = named(&world, context, ids)?.into_iter().cloned().collect();
        let mut changes = Vec::with_capacity(instances.len());
        for before in instances {
            let mut after = Instance::clone(&before);
            change(&world, &mut after)?;
            Instance::table_mut(&mut world).insert(after.id.as_str().into(), Arc::new(after.clone()));
            changes.push((before, after));
        }
        Ok(Self(changes))
    }

    /// Records them.
    pub fn record(&self, draft: &mut Draft) {
        for (before, after) in &self.0 {
            if **before != *after {
                draft.put(after.clone());
            }
        }
    }

    /// The instances as they shall be.
    pub fn changed(&self) -> impl Iterator<Item = &Instance> {
        self.0.iter().map(|(_, after)| after)
    }

    /// The answer that EC2 gives when states change.
    pub fn states(&self) -> States {
        let instances_set = self
            .0
            .iter()
            .map(|(before, after)| StateChange {
                instance_id: after.id.to_string(),
                current_state: after.lifecycle.state.into(),
                previous_state: before.lifecycle.state.into(),
            })
            .collect();
        States { instances_set }
    }
}

/// How states have changed.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct States {
    instances_set: Vec<StateChange>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct StateChange {
    instance_id: String,
    current_state: State,
    previous_state: State,
}
