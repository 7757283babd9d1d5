//! ModifyInstanceCreditSpecification.

use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};

use super::refused::check_credits;
use crate::actions::lookup::find_own;
use crate::query::{Action, ApiError, Context};
use crate::records::{Instance, InstanceState};
use crate::state::World;

/// Changes the CPU credits of burstable instances: of each for which that can be done.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct ModifyInstanceCreditSpecification {
    #[serde(default, rename = "InstanceCreditSpecification")]
    wanted: Vec<Wanted>,
    /// The same change twice is the same as once.
    #[serde(rename = "ClientToken")]
    _client_token: Option<IgnoredAny>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
struct Wanted {
    instance_id: String,
    cpu_credits: String,
}

#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Response {
    successful_instance_credit_specification_set: Vec<Changed>,
    unsuccessful_instance_credit_specification_set: Vec<Unchanged>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Changed {
    instance_id: String,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Unchanged {
    instance_id: String,
    error: Reason,
}

#[derive(Debug, Serialize)]
struct Reason {
    code: &'static str,
    message: String,
}

impl Wanted {
    /// The instance as it will be.
    fn plan(&self, world: &World, context: Context<'_>) -> Result<Instance, ApiError> {
        let mut instance = Instance::clone(find_own(world, context, &self.instance_id)?);
        let state = instance.lifecycle.state;
        if matches!(state, InstanceState::ShuttingDown | InstanceState::Terminated) {
            let message = format!("The instance '{}' is '{}'.", instance.id, state.name());
            return Err(ApiError::new("IncorrectInstanceState", message));
        }
        if !context.agent.catalogue.get(&instance.instance_type).is_some_and(|kind| kind.burstable) {
            let (id, kind) = (&instance.id, &instance.instance_type);
            let message = format!("The instance '{id}' has type {kind}, which has no CPU credits.");
            return Err(ApiError::new("InstanceCreditSpecification.NotSupported", message));
        }
        instance.cpu_credits = Some(self.cpu_credits.clone());
        Ok(instance)
    }
}

impl Action for ModifyInstanceCreditSpecification {
    const NAME: &'static str = "ModifyInstanceCreditSpecification";
    type Response = Response;

    fn check(&self, _: Context<'_>) -> Result<(), ApiError> {
        if self.wanted.is_empty() {
            return Err(ApiError::missing("InstanceCreditSpecification"));
        }
        self.wanted.iter().try_for_each(|wanted| check_credits(&wanted.cpu_credits))
    }

    fn run(self, context: Context<'_>) -> Result<Response, ApiError> {
        context.agent.state.change(|draft| {
            let mut response = Response::default();
            for wanted in &self.wanted {
                let instance_id = wanted.instance_id.clone();
                match wanted.plan(draft, context) {
                    Ok(instance) => {
                        draft.put(instance);
                        response.successful_instance_credit_specification_set.push(Changed { instance_id });
                    }
                    Err(ApiError { code, message, .. }) => {
                        let error = Reason { code, message };
                        let failed = Unchanged { instance_id, error };
                        response.unsuccessful_instance_credit_specification_set.push(failed);
                    }
                }
            }
            Ok(response)
        })
    }
}
