//! CreateTags.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::check;
use crate::actions::instances::check_tag_keys;
use crate::query::tags::{Tag, checked, fits};
use crate::query::{Action, ApiError, Context};
use crate::records::Instance;
use crate::state::World;

/// Adds tags to resources, or changes their values: to all of the resources, or to none.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct CreateTags {
    #[serde(default, rename = "ResourceId")]
    resources: Vec<String>,
    #[serde(default, rename = "Tag")]
    tags: Vec<Tag>,
}

impl CreateTags {
    /// Refuses what an instance could not show in its metadata, if it shows its tags there.
    fn check_paths(&self, world: &World, tags: &BTreeMap<String, String>) -> Result<(), ApiError> {
        let instances = self.resources.iter().filter_map(|id| world.get::<Instance>(id));
        instances.into_iter().try_for_each(|one| check_tag_keys(&one.metadata_options, tags.keys()))
    }
}

impl Action for CreateTags {
    const NAME: &'static str = "CreateTags";
    type Response = ();

    fn check(&self, context: Context<'_>) -> Result<(), ApiError> {
        if self.tags.is_empty() {
            return Err(ApiError::missing("tagSet"));
        }
        let tags = checked(&self.tags)?;
        self.check_paths(&context.agent.state.read(), &tags)?;
        check(&context.agent.state.read(), context, &self.resources)
    }

    fn run(self, context: Context<'_>) -> Result<(), ApiError> {
        let tags = checked(&self.tags)?;
        context.agent.state.change(|draft| {
            check(draft, context, &self.resources)?;
            self.check_paths(draft, &tags)?;
            for resource in &self.resources {
                let new = |key: &&String| !draft.tags(resource).is_some_and(|tags| tags.contains_key(*key));
                let count = draft.tags(resource).map_or(0, |tags| tags.len());
                fits(count + tags.keys().filter(new).count())?;
                draft.tag(resource, tags.clone());
            }
            Ok(())
        })
    }
}
