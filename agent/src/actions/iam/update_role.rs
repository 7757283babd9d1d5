//! UpdateRole and UpdateAssumeRolePolicy.

use serde::{Deserialize, Serialize};

use super::create_role::{check_trust, check_words};
use super::named;
use crate::query::{Action, ApiError, Context, Service};
use crate::records::Role;

/// Changes what a role's maker says of it.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct UpdateRole {
    role_name: String,
    description: Option<String>,
    max_session_duration: Option<u32>,
}

#[derive(Debug, Serialize)]
pub struct Response {}

impl Action for UpdateRole {
    const NAME: &'static str = "UpdateRole";
    const SERVICE: Service = Service::Iam;
    type Response = Response;

    fn run(self, context: Context<'_>) -> Result<Response, ApiError> {
        check_words(self.description.as_deref(), self.max_session_duration)?;
        context.agent.state.change(|draft| {
            let mut role = Role::clone(named(draft, context, &self.role_name)?);
            if let Some(description) = self.description {
                role.description = Some(description).filter(|text| !text.is_empty());
            }
            role.max_session_duration = self.max_session_duration.unwrap_or(role.max_session_duration);
            draft.put(role);
            Ok(Response {})
        })
    }
}

/// Changes who may have a role. Credentials that were handed out stay good until their end.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct UpdateAssumeRolePolicy {
    role_name: String,
    policy_document: String,
}

impl Action for UpdateAssumeRolePolicy {
    const NAME: &'static str = "UpdateAssumeRolePolicy";
    const SERVICE: Service = Service::Iam;
    type Response = ();

    fn run(self, context: Context<'_>) -> Result<(), ApiError> {
        check_trust(&self.policy_document)?;
        context.agent.state.change(|draft| {
            let role = named::<Role>(draft, context, &self.role_name)?;
            let role = Role { trust: self.policy_document, ..Role::clone(role) };
            draft.put(role);
            Ok(())
        })
    }
}
