//! DescribeVolumesModifications.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::modification::ModificationItem;
use crate::actions::lookup::select;
use crate::query::filters::{Field, Filter, Filtered, Selection};
use crate::query::pages::page;
use crate::query::{Action, ApiError, Context};
use crate::records::Volume;

/// The last change of each of the caller's volumes that was ever changed.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct DescribeVolumesModifications {
    #[serde(default, rename = "Filter")]
    filters: Vec<Filter>,
    #[serde(default, rename = "VolumeId")]
    ids: Vec<String>,
    #[serde(default, rename = "IncludeManagedResources")]
    _managed: bool,
    max_results: Option<i64>,
    next_token: Option<String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Response {
    volume_modification_set: Vec<ModificationItem>,
    next_token: Option<String>,
}

impl Filtered for ModificationItem {
    fn field(name: &str) -> Option<Field<Self>> {
        Some(match name {
            "volume-id" => |item| vec![item.volume_id.clone()],
            "modification-state" => |item| vec![item.modification_state.to_owned()],
            "original-iops" => |item| item.original_iops.iter().map(ToString::to_string).collect(),
            "original-size" => |item| vec![item.original_size.to_string()],
            "original-volume-type" => |item| vec![item.original_volume_type.clone()],
            "originalMultiAttachEnabled" | "targetMultiAttachEnabled" => |_| vec!["false".to_owned()],
            "start-time" => |item| vec![item.start_time.clone()],
            "target-iops" => |item| item.target_iops.iter().map(ToString::to_string).collect(),
            "target-size" => |item| vec![item.target_size.to_string()],
            "target-volume-type" => |item| vec![item.target_volume_type.clone()],
            _ => return None,
        })
    }

    fn tags(&self) -> Option<&BTreeMap<String, String>> {
        None
    }
}

impl Action for DescribeVolumesModifications {
    const NAME: &'static str = "DescribeVolumesModifications";
    type Response = Response;

    fn run(self, context: Context<'_>) -> Result<Response, ApiError> {
        let world = context.agent.state.read();
        let wanted = Selection::new(&self.filters)?;
        let mut items = Vec::new();
        for volume in select::<Volume>(&world, context, &self.ids)? {
            match &volume.modification {
                Some(modification) => items.push(ModificationItem::new(&volume, modification)),
                None if self.ids.is_empty() => {}
                None => {
                    let message = format!("Modification for volume '{}' does not exist.", volume.id);
                    return Err(ApiError::new("InvalidVolumeModification.NotFound", message));
                }
            }
        }
        items.retain(|item| wanted.accepts(item));
        let (volume_modification_set, next_token) =
            page(items, |item| &item.volume_id, self.max_results, self.next_token.as_deref(), 1)?;
        Ok(Response { volume_modification_set, next_token })
    }
}
