//! InnkeeperNotifyInstance: an operator lets an instance know, by its metadata, what EC2 lets a spot instance know.

use jiff::{SignedDuration, Timestamp};
use serde::Deserialize;

use crate::actions::lookup::{find_own, parse_time};
use crate::query::{Action, ApiError, Context};
use crate::records::{Instance, InstanceState, Interruption, InterruptionAction, Notice};
use crate::state::World;

/// How long before an interruption EC2 announces it.
const WARNING: SignedDuration = SignedDuration::from_mins(2);

/// Gives notice to an instance, or takes it back.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct NotifyInstance {
    instance_id: String,
    /// `interruption`, `rebalance`, or `none` to take everything back.
    notice: String,
    /// Of an interruption: `hibernate`, `stop`, or `terminate`, which is the default.
    interruption_action: Option<String>,
    /// When it is, or since when there is a recommendation. By default in two minutes, or now.
    time: Option<String>,
}

impl NotifyInstance {
    /// What the instance is to know. None is nothing.
    fn plan(&self, world: &World, context: Context<'_>) -> Result<Option<Notice>, ApiError> {
        let instance = find_own::<Instance>(world, context, &self.instance_id)?;
        if !matches!(instance.lifecycle.state, InstanceState::Pending | InstanceState::Running) {
            let message =
                format!("The instance '{}' does not run: nobody would read the notice.", instance.id);
            return Err(ApiError::new("IncorrectInstanceState", message));
        }
        let now = Timestamp::now();
        let time = self.time.as_deref().map(|text| parse_time(text, "time")).transpose()?;
        // One that was given before the last start is none any more.
        let known = world.get::<Notice>(&instance.id).filter(|known| known.given >= instance.launch_time);
        let mut notice = known.map(|known| Notice::clone(known)).unwrap_or_else(|| Notice {
            instance: instance.id.clone(),
            given: now,
            interruption: None,
            rebalance: None,
        });
        notice.given = now;
        if self.notice != "interruption" && self.interruption_action.is_some() {
            return Err(ApiError::combination("InterruptionAction is for the notice 'interruption' only."));
        }
        match self.notice.as_str() {
            "interruption" => {
                let action = self.action()?;
                notice.interruption = Some(Interruption { action, time: time.unwrap_or(now + WARNING) });
            }
            "rebalance" => notice.rebalance = Some(time.unwrap_or(now)),
            "none" => return Ok(None),
            other => {
                let expected = "Expecting one of: interruption, rebalance, none.";
                return Err(ApiError::invalid(other, "notice", expected));
            }
        }
        Ok(Some(notice))
    }

    fn action(&self) -> Result<InterruptionAction, ApiError> {
        let Some(name) = &self.interruption_action else { return Ok(InterruptionAction::Terminate) };
        let found = InterruptionAction::ALL.into_iter().find(|action| action.name() == name);
        found.ok_or_else(|| {
            let known = InterruptionAction::ALL.map(InterruptionAction::name).join(", ");
            ApiError::invalid(name, "interruptionAction", format!("Expecting one of: {known}."))
        })
    }
}

impl Action for NotifyInstance {
    const NAME: &'static str = "InnkeeperNotifyInstance";
    type Response = ();

    fn check(&self, context: Context<'_>) -> Result<(), ApiError> {
        self.plan(&context.agent.state.read(), context).map(drop)
    }

    fn run(self, context: Context<'_>) -> Result<(), ApiError> {
        context.agent.state.change(|draft| {
            match self.plan(draft, context)? {
                Some(notice) => draft.put(notice),
                None => {
                    draft.remove::<Notice>(&self.instance_id);
                }
            }
            Ok(())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::actions::testing::Client;

    #[test]
    fn notice_is_given_and_taken_back() {
        let client = Client::new();
        let id = client.instance(InstanceState::Running);
        let notify = |rest: &str| format!("InnkeeperNotifyInstance&InstanceId={id}&Notice={rest}");
        let known = || client.agent.state.read().get::<Notice>(&id).map(|notice| Notice::clone(notice));
        client.ask(&notify("interruption&Time=2100-01-02T10:00:00Z&InterruptionAction=stop")).unwrap();
        client.ask(&notify("rebalance&Time=2100-01-02T09:00:00Z")).unwrap();
        let notice = known().unwrap();
        let interruption = notice.interruption.unwrap();
        assert_eq!(interruption.action, InterruptionAction::Stop);
        assert_eq!(interruption.time.to_string(), "2100-01-02T10:00:00Z");
        assert_eq!(notice.rebalance.unwrap().to_string(), "2100-01-02T09:00:00Z");
        client.ask(&notify("interruption")).unwrap();
        let interruption = known().unwrap().interruption.unwrap();
        assert_eq!(interruption.action, InterruptionAction::Terminate);
        let left = interruption.time.duration_since(Timestamp::now());
        assert!(left <= WARNING && left > SignedDuration::from_secs(60), "{left}");
        client.ask(&notify("none")).unwrap();
        assert_eq!(known(), None);

        let stopped = client.instance(InstanceState::Stopped);
        client.refuses(&[
            (&notify("flood"), "InvalidParameterValue"),
            (&notify("interruption&InterruptionAction=burn"), "InvalidParameterValue"),
            (&notify("rebalance&InterruptionAction=stop"), "InvalidParameterCombination"),
            (&notify("rebalance&Time=soon"), "InvalidParameterValue"),
            (&notify("rebalance").replace(id.as_str(), stopped.as_str()), "IncorrectInstanceState"),
            (&notify("rebalance").replace(id.as_str(), "i-00000000000000000"), "InvalidInstanceID.NotFound"),
        ]);
        assert!(client.ask_as("123456789012", &notify("rebalance")).is_err());
    }
}
