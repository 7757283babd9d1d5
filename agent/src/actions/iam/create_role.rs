//! CreateRole and DeleteRole.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::item::RoleItem;
use super::members::Members;
use super::{named, room_for};
use crate::actions::refused::unsupported;
use crate::iam::policy::trusts_ec2;
use crate::ids::unique_id;
use crate::query::tags::{Tag, checked};
use crate::query::{Action, ApiError, Context, Service};
use crate::records::{InstanceProfile, Role, Tags};

/// The most characters of a trust policy.
const LONGEST_TRUST: usize = 2048;

/// In seconds, if it is not said.
const SESSION: u32 = 3600;

/// Makes a role, that may do nothing yet.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct CreateRole {
    role_name: String,
    assume_role_policy_document: String,
    path: Option<String>,
    description: Option<String>,
    max_session_duration: Option<u32>,
    permissions_boundary: Option<String>,
    #[serde(default)]
    tags: Members<Tag>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Response {
    role: RoleItem,
}

/// A trust policy that can be kept.
pub fn check_trust(document: &str) -> Result<(), ApiError> {
    if document.chars().count() > LONGEST_TRUST {
        return Err(super::limit_exceeded("ACLSizePerRole", LONGEST_TRUST));
    }
    match trusts_ec2(document) {
        Ok(_) => Ok(()),
        Err(error) => Err(ApiError::new("MalformedPolicyDocument", error.to_string())),
    }
}

/// What a role's maker can say of it.
pub fn check_words(description: Option<&str>, session: Option<u32>) -> Result<(), ApiError> {
    if description.is_some_and(|text| text.chars().count() > 1000) {
        return Err(ApiError::new("ValidationError", "A description has at most 1000 characters."));
    }
    if session.is_some_and(|seconds| !(3600..=43200).contains(&seconds)) {
        return Err(ApiError::new("ValidationError", "MaxSessionDuration is from 3600 to 43200 seconds."));
    }
    Ok(())
}

impl Action for CreateRole {
    const NAME: &'static str = "CreateRole";
    const SERVICE: Service = Service::Iam;
    type Response = Response;

    fn run(self, context: Context<'_>) -> Result<Response, ApiError> {
        if self.permissions_boundary.is_some() {
            return Err(unsupported(
                "This host has no permissions boundaries: leave PermissionsBoundary out.",
            ));
        }
        check_trust(&self.assume_role_policy_document)?;
        check_words(self.description.as_deref(), self.max_session_duration)?;
        let tags = checked(&self.tags.0)?;
        let role = Role {
            id: unique_id("AROA", 17),
            owner: context.caller.account.clone(),
            name: self.role_name,
            path: self.path.unwrap_or_else(|| "/".to_owned()),
            description: self.description.filter(|text| !text.is_empty()),
            trust: self.assume_role_policy_document,
            policies: Default::default(),
            max_session_duration: self.max_session_duration.unwrap_or(SESSION),
            created: Timestamp::now(),
        };
        context.agent.state.change(|draft| {
            room_for::<Role>(draft, context, &role.name, &role.path)?;
            draft.put(role.clone());
            draft.tag(&role.id, tags);
            Ok(Response { role: RoleItem::new(draft, &role) })
        })
    }
}

/// Deletes a role that has no policies, and that no instance profile has.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct DeleteRole {
    role_name: String,
}

impl Action for DeleteRole {
    const NAME: &'static str = "DeleteRole";
    const SERVICE: Service = Service::Iam;
    type Response = ();

    fn run(self, context: Context<'_>) -> Result<(), ApiError> {
        context.agent.state.change(|draft| {
            let role = named::<Role>(draft, context, &self.role_name)?.clone();
            let conflict = |what: &str| {
                ApiError::new("DeleteConflict", format!("Cannot delete entity, must {what} first."))
            };
            if draft.all::<InstanceProfile>().any(|profile| profile.role.as_ref() == Some(&role.id)) {
                return Err(conflict("remove roles from instance profile"));
            }
            if !role.policies.is_empty() {
                return Err(conflict("delete policies"));
            }
            draft.remove::<Role>(&role.id);
            draft.remove::<Tags>(&role.id);
            Ok(())
        })
    }
}
