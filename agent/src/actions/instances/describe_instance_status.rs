//! DescribeInstanceStatus.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::describe_instances::no_pages_of_ids;
use super::named::named;
use super::view::State;
use crate::actions::lookup::time;
use crate::actions::regions::zone_id;
use crate::instances::health::Check;
use crate::query::filters::{Field, Filter, Filtered, Selection};
use crate::query::pages::page;
use crate::query::{Action, ApiError, Context};
use crate::records::{Instance, InstanceState, ScheduledEvent};

/// How the instances are doing: the running ones, if not all are wanted.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct DescribeInstanceStatus {
    #[serde(default, rename = "InstanceId")]
    ids: Vec<String>,
    #[serde(default, rename = "Filter")]
    filters: Vec<Filter>,
    #[serde(default)]
    include_all_instances: bool,
    max_results: Option<i64>,
    next_token: Option<String>,
    /// There are none.
    #[serde(default, rename = "IncludeManagedResources")]
    _include_managed_resources: bool,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Response {
    instance_status_set: Vec<Item>,
    next_token: Option<String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Item {
    instance_id: String,
    availability_zone: String,
    availability_zone_id: String,
    instance_state: State,
    system_status: Status,
    instance_status: Status,
    attached_ebs_status: Status,
    events_set: Vec<EventItem>,
    #[serde(skip)]
    state: InstanceState,
}

#[derive(Debug, Serialize)]
struct Status {
    status: &'static str,
    details: Option<Vec<Detail>>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Detail {
    name: &'static str,
    status: &'static str,
    impaired_since: Option<String>,
}

impl Status {
    /// Of an instance in this state, whose check has ended so.
    fn of(state: InstanceState, check: Check) -> Self {
        if state != InstanceState::Running {
            return Self { status: "not-applicable", details: None };
        }
        let (status, detail, since) = match check {
            Check::Initializing => ("initializing", "initializing", None),
            Check::Passed => ("ok", "passed", None),
            Check::Failed { since } => ("impaired", "failed", Some(time(since))),
        };
        Self {
            status,
            details: Some(vec![Detail { name: "reachability", status: detail, impaired_since: since }]),
        }
    }

    fn reachability(&self) -> Vec<String> {
        self.details.iter().flatten().map(|detail| detail.status.to_owned()).collect()
    }
}

/// A scheduled event.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct EventItem {
    instance_event_id: String,
    code: &'static str,
    description: String,
    not_before: String,
    not_after: Option<String>,
    not_before_deadline: Option<String>,
}

impl From<&ScheduledEvent> for EventItem {
    fn from(event: &ScheduledEvent) -> Self {
        Self {
            instance_event_id: event.id.to_string(),
            code: event.code.name(),
            description: event.description(),
            not_before: time(event.not_before),
            not_after: event.not_after.map(time),
            not_before_deadline: event.not_before_deadline.map(time),
        }
    }
}

impl Item {
    /// A value of each of its events.
    fn events(&self, value: fn(&EventItem) -> Option<String>) -> Vec<String> {
        self.events_set.iter().filter_map(value).collect()
    }
}

impl Filtered for Item {
    fn field(name: &str) -> Option<Field<Self>> {
        Some(match name {
            "availability-zone" => |item| vec![item.availability_zone.clone()],
            "availability-zone-id" => |item| vec![item.availability_zone_id.clone()],
            "instance-state-code" => |item| vec![item.state.code().to_string()],
            "instance-state-name" => |item| vec![item.state.name().to_owned()],
            "instance-status.reachability" => |item| item.instance_status.reachability(),
            "instance-status.status" => |item| vec![item.instance_status.status.to_owned()],
            "system-status.reachability" => |item| item.system_status.reachability(),
            "system-status.status" => |item| vec![item.system_status.status.to_owned()],
            "attached-ebs-status.status" => |item| vec![item.attached_ebs_status.status.to_owned()],
            "event.code" => |item| item.events(|event| Some(event.code.to_owned())),
            "event.description" => |item| item.events(|event| Some(event.description.clone())),
            "event.instance-event-id" => |item| item.events(|event| Some(event.instance_event_id.clone())),
            "event.not-after" => |item| item.events(|event| event.not_after.clone()),
            "event.not-before" => |item| item.events(|event| Some(event.not_before.clone())),
            "event.not-before-deadline" => |item| item.events(|event| event.not_before_deadline.clone()),
            "operator.managed" => |_| vec!["false".to_owned()],
            // What no instance of this host has.
            "application-status.status" | "operator.principal" => |_| Vec::new(),
            _ => return None,
        })
    }

    fn tags(&self) -> Option<&BTreeMap<String, String>> {
        None
    }
}

impl Action for DescribeInstanceStatus {
    const NAME: &'static str = "DescribeInstanceStatus";
    type Response = Response;

    fn run(self, context: Context<'_>) -> Result<Response, ApiError> {
        no_pages_of_ids(&self.ids, self.max_results)?;
        let world = context.agent.state.read();
        let wanted = Selection::new(&self.filters)?;
        let region = &context.agent.config.region;
        let mut instances: Vec<_> = if self.ids.is_empty() {
            world.all::<Instance>().filter(|instance| instance.owner == context.caller.account).collect()
        } else {
            named(&world, context, &self.ids)?
        };
        instances.sort_by(|one, other| one.id.cmp(&other.id));
        let items: Vec<Item> = instances
            .into_iter()
            .map(|instance| (instance, instance.lifecycle.state))
            .filter(|(_, state)| self.include_all_instances || *state == InstanceState::Running)
            .map(|(instance, state)| (instance, state, context.agent.instances.health(&instance.id)))
            .map(|(instance, state, health)| Item {
                instance_id: instance.id.to_string(),
                availability_zone: instance.availability_zone.clone(),
                availability_zone_id: zone_id(region, &instance.availability_zone),
                instance_state: state.into(),
                system_status: Status::of(state, health.system),
                instance_status: Status::of(state, health.instance),
                attached_ebs_status: Status::of(state, health.volumes),
                events_set: world
                    .all::<ScheduledEvent>()
                    .filter(|event| event.instance == instance.id)
                    .map(|event| EventItem::from(event.as_ref()))
                    .collect(),
                state,
            })
            .filter(|item| wanted.accepts(item))
            .collect();
        let (instance_status_set, next_token) =
            page(items, |item| &item.instance_id, self.max_results, self.next_token.as_deref(), 5)?;
        Ok(Response { instance_status_set, next_token })
    }
}
