//! DescribeVolumes.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::item::{AttachmentItem, VolumeItem};
use crate::actions::lookup::select;
use crate::query::filters::{Field, Filter, Filtered, Selection};
use crate::query::pages::page;
use crate::query::{Action, ApiError, Context};
use crate::records::Volume;

/// The caller's volumes.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct DescribeVolumes {
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
    volume_set: Vec<VolumeItem>,
    next_token: Option<String>,
}

/// A value of each attachment.
fn attached(volume: &VolumeItem, value: fn(&AttachmentItem) -> String) -> Vec<String> {
    volume.attachment_set.iter().map(value).collect()
}

impl Filtered for VolumeItem {
    fn field(name: &str) -> Option<Field<Self>> {
        Some(match name {
            "volume-id" => |volume| vec![volume.volume_id.clone()],
            "volume-type" => |volume| vec![volume.volume_type.clone()],
            "size" => |volume| vec![volume.size.to_string()],
            "snapshot-id" => |volume| vec![volume.snapshot_id.clone()],
            "status" => |volume| vec![volume.status.to_owned()],
            "create-time" => |volume| vec![volume.create_time.clone()],
            "encrypted" => |volume| vec![volume.encrypted.to_string()],
            "availability-zone" => |volume| vec![volume.availability_zone.clone()],
            "availability-zone-id" => |volume| vec![volume.availability_zone_id.clone()],
            "attachment.instance-id" => |volume| attached(volume, |one| one.instance_id.clone()),
            "attachment.device" => |volume| attached(volume, |one| one.device.clone()),
            "attachment.status" => |volume| attached(volume, |one| one.status.to_owned()),
            "attachment.attach-time" => |volume| attached(volume, |one| one.attach_time.clone()),
            "attachment.delete-on-termination" => {
                |volume| attached(volume, |one| one.delete_on_termination.to_string())
            }
            "multi-attach-enabled" | "fast-restored" | "operator.managed" => |_| vec!["false".to_owned()],
            "operator.principal" => |_| Vec::new(),
            _ => return None,
        })
    }

    fn tags(&self) -> Option<&BTreeMap<String, String>> {
        Some(&self.tags)
    }
}

impl Action for DescribeVolumes {
    const NAME: &'static str = "DescribeVolumes";
    type Response = Response;

    fn run(self, context: Context<'_>) -> Result<Response, ApiError> {
        if self.max_results.is_some() && !self.ids.is_empty() {
            let message = "The parameter volumeSet cannot be used with the parameter maxResults";
            return Err(ApiError::combination(message));
        }
        let world = context.agent.state.read();
        let wanted = Selection::new(&self.filters)?;
        let volumes = select::<Volume>(&world, context, &self.ids)?;
        let mut items: Vec<VolumeItem> =
            volumes.iter().map(|volume| VolumeItem::new(&world, context, volume)).collect();
        items.retain(|item| wanted.accepts(item));
        let (volume_set, next_token) =
            page(items, |item| &item.volume_id, self.max_results, self.next_token.as_deref(), 5)?;
        Ok(Response { volume_set, next_token })
    }
}
