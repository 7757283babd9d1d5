//! The tags of roles and of instance profiles: TagRole, UntagRole, ListRoleTags, and the same for instance profiles.

use serde::{Deserialize, Serialize};

use super::item::{TagItem, tags_of};
use super::members::Members;
use super::{listed, named};
use crate::query::tags::{Tag, checked, fits};
use crate::query::{Action, ApiError, Context, Service};
use crate::records::{InstanceProfile, Role, Tags};
use crate::state::Draft;

/// A page of tags.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct List {
    tags: Vec<TagItem>,
    is_truncated: bool,
    marker: Option<String>,
}

/// Adds tags, or changes their values.
fn add(draft: &mut Draft, id: &str, tags: &[Tag]) -> Result<(), ApiError> {
    let tags = checked(tags)?;
    let mut keys: Vec<&String> = draft.tags(id).into_iter().flatten().map(|(key, _)| key).collect();
    keys.extend(tags.keys());
    keys.sort();
    keys.dedup();
    fits(keys.len())?;
    draft.tag(id, tags);
    Ok(())
}

/// Takes tags away, whether they are there or not.
fn remove(draft: &mut Draft, id: &str, keys: &[String]) {
    let Some(mut tags) = draft.tags(id).cloned() else { return };
    tags.retain(|key, _| !keys.contains(key));
    if tags.is_empty() {
        draft.remove::<Tags>(id);
    } else {
        draft.put(Tags { resource: id.to_owned(), tags });
    }
}

macro_rules! tagged {
    ($record:ty, $name:literal, $tag:ident, $untag:ident, $list:ident) => {
        /// Adds tags, or changes their values.
        #[derive(Debug, Deserialize)]
        #[serde(rename_all = "PascalCase", deny_unknown_fields)]
        pub struct $tag {
            #[serde(rename = $name)]
            name: String,
            tags: Members<Tag>,
        }

        impl Action for $tag {
            const NAME: &'static str = stringify!($tag);
            const SERVICE: Service = Service::Iam;
            type Response = ();

            fn run(self, context: Context<'_>) -> Result<(), ApiError> {
                context.agent.state.change(|draft| {
                    let id = named::<$record>(draft, context, &self.name)?.id.clone();
                    add(draft, &id, &self.tags.0)
                })
            }
        }

        /// Takes tags away.
        #[derive(Debug, Deserialize)]
        #[serde(rename_all = "PascalCase", deny_unknown_fields)]
        pub struct $untag {
            #[serde(rename = $name)]
            name: String,
            tag_keys: Members<String>,
        }

        impl Action for $untag {
            const NAME: &'static str = stringify!($untag);
            const SERVICE: Service = Service::Iam;
            type Response = ();

            fn run(self, context: Context<'_>) -> Result<(), ApiError> {
                context.agent.state.change(|draft| {
                    let id = named::<$record>(draft, context, &self.name)?.id.clone();
                    remove(draft, &id, &self.tag_keys.0);
                    Ok(())
                })
            }
        }

        /// The tags.
        #[derive(Debug, Deserialize)]
        #[serde(rename_all = "PascalCase", deny_unknown_fields)]
        pub struct $list {
            #[serde(rename = $name)]
            name: String,
            marker: Option<String>,
            max_items: Option<i64>,
        }

        impl Action for $list {
            const NAME: &'static str = stringify!($list);
            const SERVICE: Service = Service::Iam;
            type Response = List;

            fn run(self, context: Context<'_>) -> Result<List, ApiError> {
                let world = context.agent.state.read();
                let tags = tags_of(&world, &named::<$record>(&world, context, &self.name)?.id);
                let (tags, marker) =
                    listed(tags, |tag: &TagItem| &tag.key, self.max_items, self.marker.as_deref())?;
                Ok(List { tags, is_truncated: marker.is_some(), marker })
            }
        }
    };
}

tagged!(Role, "RoleName", TagRole, UntagRole, ListRoleTags);
tagged!(
    InstanceProfile,
    "InstanceProfileName",
    TagInstanceProfile,
    UntagInstanceProfile,
    ListInstanceProfileTags
);
