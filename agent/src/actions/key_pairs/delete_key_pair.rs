//! DeleteKeyPair.

use serde::{Deserialize, Serialize};

use crate::actions::lookup::key_pairs;
use crate::query::{Action, ApiError, Context};
use crate::records::{KeyPair, Tags};

/// Forgets a key pair. That there is none is as well.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct DeleteKeyPair {
    key_name: Option<String>,
    key_pair_id: Option<String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Response {
    #[serde(rename = "return")]
    done: bool,
    key_pair_id: Option<String>,
}

impl Action for DeleteKeyPair {
    const NAME: &'static str = "DeleteKeyPair";
    type Response = Response;

    fn check(&self, _: Context<'_>) -> Result<(), ApiError> {
        if self.key_name.is_none() && self.key_pair_id.is_none() {
            return Err(ApiError::missing("KeyName or KeyPairId"));
        }
        Ok(())
    }

    fn run(self, context: Context<'_>) -> Result<Response, ApiError> {
        context.agent.state.change(|draft| {
            let is_meant = |pair: &KeyPair| {
                self.key_name.as_ref().is_none_or(|name| *name == pair.name)
                    && self.key_pair_id.as_ref().is_none_or(|id| *id == pair.id.as_str())
            };
            let id = key_pairs(draft, context).find(|pair| is_meant(pair)).map(|pair| pair.id.clone());
            if let Some(id) = &id {
                draft.remove::<KeyPair>(id);
                draft.remove::<Tags>(id);
            }
            Ok(Response { done: true, key_pair_id: id.map(String::from) })
        })
    }
}
