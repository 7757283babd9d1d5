//! DescribeTags.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{check, kind};
use crate::query::filters::{Field, Filter, Filtered, Selection};
use crate::query::pages::page;
use crate::query::{Action, ApiError, Context};
use crate::records::Tags;

/// The tags of all of the caller's resources.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct DescribeTags {
    #[serde(default, rename = "Filter")]
    filters: Vec<Filter>,
    max_results: Option<i64>,
    next_token: Option<String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Response {
    tag_set: Vec<Item>,
    next_token: Option<String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Item {
    resource_id: String,
    resource_type: &'static str,
    key: String,
    value: String,
    /// For `tag:` filters, which see one tag at a time here.
    #[serde(skip)]
    as_map: BTreeMap<String, String>,
    /// For pages: a resource has many tags.
    #[serde(skip)]
    position: String,
}

impl Filtered for Item {
    fn field(name: &str) -> Option<Field<Self>> {
        Some(match name {
            "key" => |tag| vec![tag.key.clone()],
            "value" => |tag| vec![tag.value.clone()],
            "resource-id" => |tag| vec![tag.resource_id.clone()],
            "resource-type" => |tag| vec![tag.resource_type.to_owned()],
            _ => return None,
        })
    }

    fn tags(&self) -> Option<&BTreeMap<String, String>> {
        Some(&self.as_map)
    }
}

impl Action for DescribeTags {
    const NAME: &'static str = "DescribeTags";
    type Response = Response;

    fn run(self, context: Context<'_>) -> Result<Response, ApiError> {
        let world = context.agent.state.read();
        let wanted = Selection::new(&self.filters)?;
        let mut items = Vec::new();
        for Tags { resource, tags } in world.all::<Tags>().map(|tags| &**tags) {
            let Some(resource_type) = kind(resource) else { continue };
            if check(&world, context, std::slice::from_ref(resource)).is_err() {
                continue;
            }
            for (key, value) in tags {
                let item = Item {
                    resource_id: resource.clone(),
                    resource_type,
                    key: key.clone(),
                    value: value.clone(),
                    as_map: BTreeMap::from([(key.clone(), value.clone())]),
                    position: format!("{resource}\n{key}"),
                };
                if wanted.accepts(&item) {
                    items.push(item);
                }
            }
        }
        let (tag_set, next_token) =
            page(items, |item| &item.position, self.max_results, self.next_token.as_deref(), 5)?;
        Ok(Response { tag_set, next_token })
    }
}
