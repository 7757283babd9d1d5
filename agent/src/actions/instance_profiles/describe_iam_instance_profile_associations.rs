//! DescribeIamInstanceProfileAssociations.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::item::AssociationItem;
use super::{associated, find};
use crate::query::filters::{Field, Filter, Filtered, Selection};
use crate::query::pages::page;
use crate::query::{Action, ApiError, Context};

/// Which of the caller's instances have which profile.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct DescribeIamInstanceProfileAssociations {
    #[serde(default, rename = "AssociationId")]
    ids: Vec<String>,
    #[serde(default, rename = "Filter")]
    filters: Vec<Filter>,
    max_results: Option<i64>,
    next_token: Option<String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Response {
    iam_instance_profile_association_set: Vec<AssociationItem>,
    next_token: Option<String>,
}

impl Filtered for AssociationItem {
    fn field(name: &str) -> Option<Field<Self>> {
        Some(match name {
            "instance-id" => |association| vec![association.instance_id.clone()],
            "state" => |association| vec![association.state.to_owned()],
            _ => return None,
        })
    }

    fn tags(&self) -> Option<&BTreeMap<String, String>> {
        None
    }
}

impl Action for DescribeIamInstanceProfileAssociations {
    const NAME: &'static str = "DescribeIamInstanceProfileAssociations";
    type Response = Response;

    fn run(self, context: Context<'_>) -> Result<Response, ApiError> {
        let world = context.agent.state.read();
        let wanted = Selection::new(&self.filters)?;
        self.ids.iter().try_for_each(|id| find(&world, context, id).map(drop))?;
        let items = associated(&world, context).filter_map(|instance| {
            let association = instance.instance_profile.as_ref()?;
            Some(AssociationItem::new(&instance.id, association, "associated"))
        });
        let mut items: Vec<AssociationItem> = items
            .filter(|item| self.ids.is_empty() || self.ids.contains(&item.association_id))
            .filter(|item| wanted.accepts(item))
            .collect();
        items.sort_by(|one, other| one.association_id.cmp(&other.association_id));
        let (iam_instance_profile_association_set, next_token) =
            page(items, |item| &item.association_id, self.max_results, self.next_token.as_deref(), 5)?;
        Ok(Response { iam_instance_profile_association_set, next_token })
    }
}
