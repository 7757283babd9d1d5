//! AddRoleToInstanceProfile and RemoveRoleFromInstanceProfile.

use serde::Deserialize;

use super::{limit_exceeded, missing, named};
use crate::iam::{PASS_ROLE, authorise};
use crate::query::{Action, ApiError, Context, Service};
use crate::records::{InstanceProfile, Role};

/// Gives a role to an instance profile that has none. Instances that have the profile get credentials for it.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct AddRoleToInstanceProfile {
    instance_profile_name: String,
    role_name: String,
}

impl Action for AddRoleToInstanceProfile {
    const NAME: &'static str = "AddRoleToInstanceProfile";
    const SERVICE: Service = Service::Iam;
    type Response = ();

    fn check(&self, context: Context<'_>) -> Result<(), ApiError> {
        authorise(&context.agent.state.read(), context.caller, Self::SERVICE, PASS_ROLE)
    }

    fn run(self, context: Context<'_>) -> Result<(), ApiError> {
        context.agent.state.change(|draft| {
            let profile = named::<InstanceProfile>(draft, context, &self.instance_profile_name)?;
            let role = named::<Role>(draft, context, &self.role_name)?;
            if profile.role.is_some() {
                return Err(limit_exceeded("InstanceSessionsPerInstanceProfile", 1));
            }
            let role = Some(role.id.clone());
            let profile = InstanceProfile { role, ..InstanceProfile::clone(profile) };
            draft.put(profile);
            Ok(())
        })
    }
}

/// Takes its role away from an instance profile. Credentials that were handed out stay good until their end.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct RemoveRoleFromInstanceProfile {
    instance_profile_name: String,
    role_name: String,
}

impl Action for RemoveRoleFromInstanceProfile {
    const NAME: &'static str = "RemoveRoleFromInstanceProfile";
    const SERVICE: Service = Service::Iam;
    type Response = ();

    fn run(self, context: Context<'_>) -> Result<(), ApiError> {
        context.agent.state.change(|draft| {
            let profile = named::<InstanceProfile>(draft, context, &self.instance_profile_name)?;
            let role = named::<Role>(draft, context, &self.role_name)?;
            if profile.role.as_ref() != Some(&role.id) {
                let (role, profile) = (&role.name, &profile.name);
                return Err(missing(format!("The role {role} is not in the instance profile {profile}.")));
            }
            let profile = InstanceProfile { role: None, ..InstanceProfile::clone(profile) };
            draft.put(profile);
            Ok(())
        })
    }
}
