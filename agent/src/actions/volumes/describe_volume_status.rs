//! DescribeVolumeStatus.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::actions::lookup::select;
use crate::actions::regions::zone_id;
use crate::ids::VolumeId;
use crate::query::filters::{Field, Filter, Filtered, Selection};
use crate::query::pages::page;
use crate::query::{Action, ApiError, Context};
use crate::records::{Volume, VolumeState};

/// Whether the caller's volumes can be written to, and what is to be done if not.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct DescribeVolumeStatus {
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
    volume_status_set: Vec<Item>,
    next_token: Option<String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Item {
    volume_id: String,
    availability_zone: String,
    availability_zone_id: String,
    volume_status: Status,
    events_set: Vec<Event>,
    actions_set: Vec<Remedy>,
    attachment_statuses: Vec<AttachmentStatus>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Status {
    status: &'static str,
    details: Vec<Detail>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Detail {
    name: &'static str,
    status: &'static str,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Event {
    event_id: String,
    event_type: &'static str,
    description: String,
    instance_id: Option<String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Remedy {
    code: &'static str,
    description: &'static str,
    event_id: String,
    event_type: &'static str,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct AttachmentStatus {
    instance_id: String,
    io_performance: &'static str,
}

/// What happens to a volume that something written to was lost of.
const EVENT: &str = "potential-data-inconsistency";

/// A volume has at most one event: its id is made of the volume's.
fn event_id(volume: &VolumeId) -> String {
    volume.as_str().replacen(VolumeId::PREFIX, "evol", 1)
}

impl Item {
    fn new(context: Context<'_>, volume: &Volume) -> Self {
        let instance = volume.attachment.as_ref().map(|attachment| attachment.instance.to_string());
        let is_impaired = volume.impairment.is_some();
        let is_made = matches!(volume.state, VolumeState::Available | VolumeState::InUse);
        let (status, io_enabled) = match (is_impaired, is_made) {
            (true, _) => ("impaired", "failed"),
            (false, true) => ("ok", "passed"),
            (false, false) => ("insufficient-data", "insufficient-data"),
        };
        // It is said of volumes whose speed was paid for, as long as an instance has them.
        let io_performance = match (volume.volume_type.as_str(), &instance) {
            ("gp3" | "io1" | "io2", Some(_)) if is_impaired => "stalled",
            ("gp3" | "io1" | "io2", Some(_)) => "normal",
            _ => "not-applicable",
        };
        let (mut events_set, mut actions_set) = (Vec::new(), Vec::new());
        if let Some(why) = &volume.impairment {
            events_set.push(Event {
                event_id: event_id(&volume.id),
                event_type: EVENT,
                description: why.clone(),
                instance_id: instance.clone(),
            });
            actions_set.push(Remedy {
                code: "enable-volume-io",
                description: "Enable volume I/O, then check what is on the volume",
                event_id: event_id(&volume.id),
                event_type: EVENT,
            });
        }
        Self {
            volume_id: volume.id.to_string(),
            availability_zone: volume.availability_zone.clone(),
            availability_zone_id: zone_id(&context.agent.config.region, &volume.availability_zone),
            volume_status: Status {
                status,
                details: vec![
                    Detail { name: "io-enabled", status: io_enabled },
                    Detail { name: "io-performance", status: io_performance },
                ],
            },
            events_set,
            actions_set,
            attachment_statuses: instance
                .map(|instance_id| AttachmentStatus { instance_id, io_performance })
                .into_iter()
                .collect(),
        }
    }

    fn events(&self, value: fn(&Event) -> String) -> Vec<String> {
        self.events_set.iter().map(value).collect()
    }

    fn actions(&self, value: fn(&Remedy) -> String) -> Vec<String> {
        self.actions_set.iter().map(value).collect()
    }

    fn attachments(&self, value: fn(&AttachmentStatus) -> String) -> Vec<String> {
        self.attachment_statuses.iter().map(value).collect()
    }

    fn details(&self, value: fn(&Detail) -> String) -> Vec<String> {
        self.volume_status.details.iter().map(value).collect()
    }
}

impl Filtered for Item {
    fn field(name: &str) -> Option<Field<Self>> {
        Some(match name {
            "action.code" => |item| item.actions(|action| action.code.to_owned()),
            "action.description" => |item| item.actions(|action| action.description.to_owned()),
            "action.event-id" => |item| item.actions(|action| action.event_id.clone()),
            "attachment-status.instance-id" => |item| item.attachments(|one| one.instance_id.clone()),
            "attachment-status.io-performance" => {
                |item| item.attachments(|one| one.io_performance.to_owned())
            }
            "availability-zone" => |item| vec![item.availability_zone.clone()],
            "availability-zone-id" => |item| vec![item.availability_zone_id.clone()],
            "event.description" => |item| item.events(|event| event.description.clone()),
            "event.event-id" => |item| item.events(|event| event.event_id.clone()),
            "event.event-type" => |item| item.events(|event| event.event_type.to_owned()),
            // Nobody has written down when it began, and it ends when somebody ends it.
            "event.not-after" | "event.not-before" => |_| Vec::new(),
            "volume-status.details-name" => |item| item.details(|detail| detail.name.to_owned()),
            "volume-status.details-status" => |item| item.details(|detail| detail.status.to_owned()),
            "volume-status.status" => |item| vec![item.volume_status.status.to_owned()],
            _ => return None,
        })
    }

    fn tags(&self) -> Option<&BTreeMap<String, String>> {
        None
    }
}

impl Action for DescribeVolumeStatus {
    const NAME: &'static str = "DescribeVolumeStatus";
    type Response = Response;

    fn run(self, context: Context<'_>) -> Result<Response, ApiError> {
        if self.max_results.is_some() && !self.ids.is_empty() {
            let message = "The parameter volumeSet cannot be used with the parameter maxResults";
            return Err(ApiError::combination(message));
        }
        let world = context.agent.state.read();
        let wanted = Selection::new(&self.filters)?;
        let volumes = select::<Volume>(&world, context, &self.ids)?;
        let mut items: Vec<Item> = volumes.iter().map(|volume| Item::new(context, volume)).collect();
        items.retain(|item| wanted.accepts(item));
        let (volume_status_set, next_token) =
            page(items, |item| &item.volume_id, self.max_results, self.next_token.as_deref(), 5)?;
        Ok(Response { volume_status_set, next_token })
    }
}
