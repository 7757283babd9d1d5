//! ModifyInstanceEventStartTime.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::describe_instance_status::EventItem;
use crate::actions::innkeeper::find_event;
use crate::actions::lookup::{find_own, parse_time};
use crate::query::{Action, ApiError, Context};
use crate::records::{Instance, ScheduledEvent};
use crate::state::World;

/// Puts a scheduled event off, or has it earlier.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct ModifyInstanceEventStartTime {
    instance_id: String,
    instance_event_id: String,
    not_before: String,
}

#[derive(Debug, Serialize)]
pub struct Response {
    event: EventItem,
}

impl ModifyInstanceEventStartTime {
    fn plan(&self, world: &World, context: Context<'_>) -> Result<ScheduledEvent, ApiError> {
        let instance = find_own::<Instance>(world, context, &self.instance_id)?;
        let event = find_event(world, context, &self.instance_event_id)?;
        if event.instance != instance.id {
            let message = format!("The event ID '{}' does not exist for '{}'", event.id, instance.id);
            return Err(ApiError::new("InvalidInstanceEventIDNotFound", message));
        }
        let (wanted, now) = (parse_time(&self.not_before, "notBefore")?, Timestamp::now());
        if wanted <= now {
            let message = format!("The time {} is over: name one that is to come.", self.not_before);
            return Err(ApiError::new("InvalidInstanceEventStartTime", message));
        }
        let cannot = |why: String| Err(ApiError::new("InstanceEventStartTimeCannotChange", why));
        if event.completed.is_some() || event.not_before <= now {
            return cannot(format!("The event '{}' has begun.", event.id));
        }
        match event.not_before_deadline {
            Some(deadline) if wanted <= deadline => {}
            Some(deadline) => {
                return cannot(format!("The event '{}' can be put off until {deadline}.", event.id));
            }
            None => return cannot(format!("The event '{}' cannot be put off.", event.id)),
        }
        // It takes as long as before.
        let length = event.not_after.map(|end| end.duration_since(event.not_before));
        let not_after = length.and_then(|length| wanted.checked_add(length).ok());
        Ok(ScheduledEvent { not_before: wanted, not_after, ..event })
    }
}

impl Action for ModifyInstanceEventStartTime {
    const NAME: &'static str = "ModifyInstanceEventStartTime";
    type Response = Response;

    fn check(&self, context: Context<'_>) -> Result<(), ApiError> {
        self.plan(&context.agent.state.read(), context).map(drop)
    }

    fn run(self, context: Context<'_>) -> Result<Response, ApiError> {
        context.agent.state.change(|draft| {
            let event = self.plan(draft, context)?;
            let item = EventItem::from(&event);
            draft.put(event);
            Ok(Response { event: item })
        })
    }
}
