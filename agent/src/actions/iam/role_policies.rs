//! PutRolePolicy, GetRolePolicy, ListRolePolicies and DeleteRolePolicy: what a role may do. ListAttachedRolePolicies:
//! managed policies, of which there are none.

use serde::{Deserialize, Serialize};

use super::item::document;
use super::{check_name, listed, missing, named};
use crate::iam::policy::Policy;
use crate::iam::{ALL_OF_OPERATORS, authorise};
use crate::query::{Action, ApiError, Context, Service};
use crate::records::Role;

/// The most characters of a role's policies together, without the white space.
const LONGEST: usize = 10_240;

/// The most characters of a document, with all that it has.
const LONGEST_DOCUMENT: usize = 131_072;

/// Adds a policy to a role, or replaces the one with its name. It counts from the next request on.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct PutRolePolicy {
    role_name: String,
    policy_name: String,
    policy_document: String,
}

impl Action for PutRolePolicy {
    const NAME: &'static str = "PutRolePolicy";
    const SERVICE: Service = Service::Iam;
    type Response = ();

    fn run(self, context: Context<'_>) -> Result<(), ApiError> {
        check_name(&self.policy_name, 128)?;
        if self.policy_document.chars().count() > LONGEST_DOCUMENT {
            let message = format!("A policy's document has at most {LONGEST_DOCUMENT} characters.");
            return Err(ApiError::new("ValidationError", message));
        }
        let policy = Policy::parse(&self.policy_document)
            .map_err(|error| ApiError::new("MalformedPolicyDocument", error.to_string()))?;
        context.agent.state.change(|draft| {
            // Nobody gives what he does not have, or who may change policies would be an operator.
            if policy.is_for_operators() {
                authorise(draft, context.caller, Service::Iam, ALL_OF_OPERATORS)?;
            }
            let mut role = Role::clone(named(draft, context, &self.role_name)?);
            role.policies.insert(self.policy_name, self.policy_document);
            let characters = role.policies.values().flat_map(|document| document.chars());
            if characters.filter(|character| !character.is_whitespace()).count() > LONGEST {
                let message =
                    format!("Maximum policy size of {LONGEST} bytes exceeded for role {}", role.name);
                return Err(ApiError::new("LimitExceeded", message));
            }
            draft.put(role);
            Ok(())
        })
    }
}

fn no_policy(name: &str) -> ApiError {
    missing(format!("The role policy with name {name} cannot be found."))
}

/// A policy of a role, as it was put.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct GetRolePolicy {
    role_name: String,
    policy_name: String,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Response {
    role_name: String,
    policy_name: String,
    policy_document: String,
}

impl Action for GetRolePolicy {
    const NAME: &'static str = "GetRolePolicy";
    const SERVICE: Service = Service::Iam;
    type Response = Response;

    fn run(self, context: Context<'_>) -> Result<Response, ApiError> {
        let world = context.agent.state.read();
        let role = named::<Role>(&world, context, &self.role_name)?;
        let policy = role.policies.get(&self.policy_name).ok_or_else(|| no_policy(&self.policy_name))?;
        let policy_document = document(policy);
        Ok(Response { role_name: self.role_name, policy_name: self.policy_name, policy_document })
    }
}

/// The names of a role's policies.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct ListRolePolicies {
    role_name: String,
    marker: Option<String>,
    max_items: Option<i64>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Names {
    policy_names: Vec<String>,
    is_truncated: bool,
    marker: Option<String>,
}

impl Action for ListRolePolicies {
    const NAME: &'static str = "ListRolePolicies";
    const SERVICE: Service = Service::Iam;
    type Response = Names;

    fn run(self, context: Context<'_>) -> Result<Names, ApiError> {
        let world = context.agent.state.read();
        let names = named::<Role>(&world, context, &self.role_name)?.policies.keys().cloned().collect();
        let (policy_names, marker) = listed(names, String::as_str, self.max_items, self.marker.as_deref())?;
        Ok(Names { policy_names, is_truncated: marker.is_some(), marker })
    }
}

/// Takes a policy away from a role.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct DeleteRolePolicy {
    role_name: String,
    policy_name: String,
}

impl Action for DeleteRolePolicy {
    const NAME: &'static str = "DeleteRolePolicy";
    const SERVICE: Service = Service::Iam;
    type Response = ();

    fn run(self, context: Context<'_>) -> Result<(), ApiError> {
        context.agent.state.change(|draft| {
            let mut role = Role::clone(named(draft, context, &self.role_name)?);
            role.policies.remove(&self.policy_name).ok_or_else(|| no_policy(&self.policy_name))?;
            draft.put(role);
            Ok(())
        })
    }
}

/// The managed policies of a role.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct ListAttachedRolePolicies {
    role_name: String,
    #[serde(rename = "PathPrefix")]
    _path_prefix: Option<String>,
    #[serde(rename = "Marker")]
    _marker: Option<String>,
    #[serde(rename = "MaxItems")]
    _max_items: Option<i64>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Attached {
    attached_policies: [(); 0],
    is_truncated: bool,
}

impl Action for ListAttachedRolePolicies {
    const NAME: &'static str = "ListAttachedRolePolicies";
    const SERVICE: Service = Service::Iam;
    type Response = Attached;

    fn run(self, context: Context<'_>) -> Result<Attached, ApiError> {
        named::<Role>(&context.agent.state.read(), context, &self.role_name)?;
        Ok(Attached { attached_policies: [], is_truncated: false })
    }
}
