//! CreateTags.

use serde::Deserialize;

use super::check;
use crate::query::tags::{Tag, checked, fits};
use crate::query::{Action, ApiError, Context};

/// Adds tags to resources, or changes their values: to all of the resources, or to none.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct CreateTags {
    #[serde(default, rename = "ResourceId")]
    resources: Vec<String>,
    #[serde(default, rename = "Tag")]
    tags: Vec<Tag>,
}

impl Action for CreateTags {
    const NAME: &'static str = "CreateTags";
    type Response = ();

    fn check(&self, context: Context<'_>) -> Result<(), ApiError> {
        if self.tags.is_empty() {
            return Err(ApiError::missing("tagSet"));
        }
        checked(&self.tags)?;
        check(&context.agent.state.read(), context, &self.resources)
    }

    fn run(self, context: Context<'_>) -> Result<(), ApiError> {
        let tags = checked(&self.tags)?;
        context.agent.state.change(|draft| {
            check(draft, context, &self.resources)?;
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
