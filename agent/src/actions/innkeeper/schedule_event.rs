//! InnkeeperScheduleEvent and InnkeeperCancelEvent: an operator announces maintenance, as EC2 does itself.

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use crate::actions::lookup::{find_own, parse_time, time};
use crate::ids::InstanceEventId;
use crate::query::{Action, ApiError, Context};
use crate::records::{EventCode, Instance, InstanceState, ScheduledEvent};
use crate::state::World;

/// By how much an event may be put off by default.
const DEFERRAL: SignedDuration = SignedDuration::from_hours(7 * 24);

/// The most characters of a description.
const MAX_DESCRIPTION: usize = 255;

/// Announces an event for an instance.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct ScheduleEvent {
    instance_id: String,
    /// Such as `instance-stop`.
    code: String,
    /// When it begins.
    not_before: String,
    /// When it is over.
    not_after: Option<String>,
    /// Until when its owner may put off its beginning; by default for a week.
    not_before_deadline: Option<String>,
    description: Option<String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Response {
    instance_event_id: String,
    not_before: String,
}

impl ScheduleEvent {
    fn plan(&self, world: &World, context: Context<'_>) -> Result<ScheduledEvent, ApiError> {
        let instance = find_own::<Instance>(world, context, &self.instance_id)?;
        if matches!(instance.lifecycle.state, InstanceState::ShuttingDown | InstanceState::Terminated) {
            let message = format!("The instance '{}' is terminated: nothing can happen to it.", instance.id);
            return Err(ApiError::new("IncorrectInstanceState", message));
        }
        let Some(code) = EventCode::ALL.into_iter().find(|code| code.name() == self.code) else {
            let known = EventCode::ALL.map(EventCode::name).join(", ");
            return Err(ApiError::invalid(&self.code, "code", format!("Expecting one of: {known}.")));
        };
        let read = |text: &Option<String>, name: &str| -> Result<Option<Timestamp>, ApiError> {
            text.as_deref().map(|text| parse_time(text, name)).transpose()
        };
        let not_before = parse_time(&self.not_before, "notBefore")?;
        let not_after = read(&self.not_after, "notAfter")?;
        if not_after.is_some_and(|end| end <= not_before) {
            return Err(ApiError::combination("NotAfter has to be later than NotBefore."));
        }
        let deadline = read(&self.not_before_deadline, "notBeforeDeadline")?;
        if deadline.is_some_and(|deadline| deadline < not_before) {
            return Err(ApiError::combination("NotBeforeDeadline cannot be earlier than NotBefore."));
        }
        let description = self.description.clone().unwrap_or_else(|| code.description().to_owned());
        if description.chars().count() > MAX_DESCRIPTION {
            let message = format!("A description has at most {MAX_DESCRIPTION} characters.");
            return Err(ApiError::new("InvalidParameterValue", message));
        }
        Ok(ScheduledEvent {
            id: InstanceEventId::random(),
            instance: instance.id.clone(),
            code,
            description,
            not_before,
            not_after,
            not_before_deadline: deadline.or(not_before.checked_add(DEFERRAL).ok()),
            completed: None,
            canceled: false,
        })
    }
}

impl Action for ScheduleEvent {
    const NAME: &'static str = "InnkeeperScheduleEvent";
    type Response = Response;

    fn check(&self, context: Context<'_>) -> Result<(), ApiError> {
        self.plan(&context.agent.state.read(), context).map(drop)
    }

    fn run(self, context: Context<'_>) -> Result<Response, ApiError> {
        context.agent.state.change(|draft| {
            let event = self.plan(draft, context)?;
            let response =
                Response { instance_event_id: event.id.to_string(), not_before: time(event.not_before) };
            draft.put(event);
            Ok(response)
        })
    }
}

/// Takes back an event that has not happened yet.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct CancelEvent {
    instance_event_id: String,
}

impl CancelEvent {
    fn plan(&self, world: &World, context: Context<'_>) -> Result<ScheduledEvent, ApiError> {
        let event = find_event(world, context, &self.instance_event_id)?;
        if event.completed.is_some() {
            let message = format!("The event '{}' is {}, and cannot be canceled.", event.id, event.state());
            return Err(ApiError::new("IncorrectState", message));
        }
        Ok(ScheduledEvent { completed: Some(Timestamp::now()), canceled: true, ..event })
    }
}

/// An event of one of the caller's instances.
pub fn find_event(world: &World, context: Context<'_>, id: &str) -> Result<ScheduledEvent, ApiError> {
    let is_own = |event: &ScheduledEvent| {
        let instance = world.get::<Instance>(&event.instance);
        instance.is_some_and(|instance| instance.owner == context.caller.account)
    };
    match world.get::<ScheduledEvent>(id).filter(|event| is_own(event)) {
        Some(event) => Ok(ScheduledEvent::clone(event)),
        None => {
            let message = format!("The event ID '{id}' does not exist");
            Err(ApiError::new("InvalidInstanceEventIDNotFound", message))
        }
    }
}

impl Action for CancelEvent {
    const NAME: &'static str = "InnkeeperCancelEvent";
    type Response = ();

    fn check(&self, context: Context<'_>) -> Result<(), ApiError> {
        self.plan(&context.agent.state.read(), context).map(drop)
    }

    fn run(self, context: Context<'_>) -> Result<(), ApiError> {
        context.agent.state.change(|draft| {
            let event = self.plan(draft, context)?;
            draft.put(event);
            Ok(())
        })
    }
}

#[cfg(test)]
mod tests {
    use crate::actions::testing::Client;
    use crate::records::InstanceState;

    #[test]
    fn an_event_is_announced_moved_and_taken_back() {
        let client = Client::new();
        let id = client.instance(InstanceState::Running);
        let announce = |rest: &str| format!("InnkeeperScheduleEvent&InstanceId={id}{rest}");
        let stop =
            announce("&Code=instance-stop&NotBefore=2100-01-02T10:00:00Z&NotAfter=2100-01-02T12:00:00Z");
        let event = client.text(&stop, "instanceEventId");
        let described = format!("DescribeInstanceStatus&InstanceId.1={id}");
        let table = [
            ("instanceEventId", event.as_str()),
            ("code", "instance-stop"),
            ("description", "The instance is running on degraded hardware"),
            ("notBefore", "2100-01-02T10:00:00.000Z"),
            ("notAfter", "2100-01-02T12:00:00.000Z"),
            ("notBeforeDeadline", "2100-01-09T10:00:00.000Z"),
        ];
        for (element, value) in table {
            // The state has a code, too.
            assert_eq!(
                client.texts(&described, element).last().map(String::as_str),
                Some(value),
                "{element}"
            );
        }
        for (filter, value, count) in [
            ("event.code", "instance-stop", 1),
            ("event.code", "instance-reboot", 0),
            ("event.instance-event-id", &event, 1),
            ("event.description", "The instance*", 1),
            ("event.not-before", "2100-01-02*", 1),
            ("event.not-after", "2100-01-02T12*", 1),
            ("event.not-before-deadline", "2100-01-09*", 1),
        ] {
            let filtered = format!("{described}&Filter.1.Name={filter}&Filter.1.Value.1={value}");
            assert_eq!(client.texts(&filtered, "instanceId").len(), count, "{filter}");
        }

        let to = |time: &str| {
            format!("ModifyInstanceEventStartTime&InstanceId={id}&InstanceEventId={event}&NotBefore={time}")
        };
        assert_eq!(client.text(&to("2100-01-05T10:00:00Z"), "notBefore"), "2100-01-05T10:00:00.000Z");
        assert_eq!(client.text(&described, "notAfter"), "2100-01-05T12:00:00.000Z", "it takes as long");
        let other = client.instance(InstanceState::Running);
        client.refuses(&[
            (&to("2100-01-10T10:00:00Z"), "InstanceEventStartTimeCannotChange"),
            (&to("2000-01-01T10:00:00Z"), "InvalidInstanceEventStartTime"),
            (&to("soon"), "InvalidParameterValue"),
            (
                &to("2100-01-05T10:00:00Z").replace(&event, "instance-event-00000000000000000"),
                "InvalidInstanceEventIDNotFound",
            ),
            (
                &to("2100-01-05T10:00:00Z").replace(id.as_str(), other.as_str()),
                "InvalidInstanceEventIDNotFound",
            ),
            (&announce("&Code=flood&NotBefore=2100-01-02T10:00:00Z"), "InvalidParameterValue"),
            (&announce("&Code=instance-stop&NotBefore=2100-01-02"), "InvalidParameterValue"),
            (
                &announce("&Code=instance-stop&NotBefore=2100-01-02T10:00:00Z&NotAfter=2100-01-02T09:00:00Z"),
                "InvalidParameterCombination",
            ),
        ]);
        let cancel = format!("InnkeeperCancelEvent&InstanceEventId={event}");
        client.ask(&cancel).unwrap();
        client.refuses(&[
            (&cancel, "IncorrectState"),
            (&to("2100-01-06T10:00:00Z"), "InstanceEventStartTimeCannotChange"),
        ]);
        // It stays listed for a while, as what has become of it.
        let description = client.text(&described, "description");
        assert_eq!(description, "[Canceled] The instance is running on degraded hardware");
    }

    #[test]
    fn other_accounts_have_no_events_here() {
        let client = Client::new();
        let id = client.instance(InstanceState::Running);
        let announce = format!(
            "InnkeeperScheduleEvent&InstanceId={id}&Code=instance-stop&NotBefore=2100-01-02T10:00:00Z"
        );
        let event = client.text(&announce, "instanceEventId");
        for request in [announce, format!("InnkeeperCancelEvent&InstanceEventId={event}")] {
            assert!(client.ask_as("123456789012", &request).is_err(), "{request}");
        }
    }
}
