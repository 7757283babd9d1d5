//! DeleteTags.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::check;
use crate::query::{Action, ApiError, Context};
use crate::records::Tags;

/// Takes tags away from resources: those named, whatever their values are or if they have the given ones, or all if
/// none is named. What is not there is no error.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct DeleteTags {
    #[serde(default, rename = "ResourceId")]
    resources: Vec<String>,
    #[serde(default, rename = "Tag")]
    tags: Vec<Unwanted>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
struct Unwanted {
    key: String,
    /// Without one, any; the empty text is a value like any other.
    value: Option<String>,
}

impl Unwanted {
    fn is(&self, key: &str, value: &str) -> bool {
        self.key == key && self.value.as_ref().is_none_or(|wanted| wanted == value)
    }
}

impl Action for DeleteTags {
    const NAME: &'static str = "DeleteTags";
    type Response = ();

    fn check(&self, context: Context<'_>) -> Result<(), ApiError> {
        check(&context.agent.state.read(), context, &self.resources)
    }

    fn run(self, context: Context<'_>) -> Result<(), ApiError> {
        context.agent.state.change(|draft| {
            check(draft, context, &self.resources)?;
            for resource in &self.resources {
                let Some(tags) = draft.tags(resource) else { continue };
                let mut left = BTreeMap::new();
                if !self.tags.is_empty() {
                    left.clone_from(tags);
                    left.retain(|key, value| !self.tags.iter().any(|unwanted| unwanted.is(key, value)));
                }
                if left.is_empty() {
                    draft.remove::<Tags>(resource);
                } else {
                    draft.put(Tags { resource: resource.clone(), tags: left });
                }
            }
            Ok(())
        })
    }
}
