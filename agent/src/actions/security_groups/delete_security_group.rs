//! DeleteSecurityGroup.

use serde::{Deserialize, Serialize};

use super::meant;
use crate::ids::SecurityGroupId;
use crate::query::{Action, ApiError, Context};
use crate::records::{NetworkInterface, Peer, SecurityGroup, Tags};
use crate::state::World;

/// Deletes a group that nothing uses.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct DeleteSecurityGroup {
    group_id: Option<String>,
    group_name: Option<String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Response {
    #[serde(rename = "return")]
    done: bool,
    group_id: String,
}

impl DeleteSecurityGroup {
    /// The group, if it can be deleted.
    fn group(&self, world: &World, context: Context<'_>) -> Result<SecurityGroup, ApiError> {
        let group = meant(world, context, self.group_id.as_deref(), self.group_name.as_deref())?;
        if group.name == "default" {
            let message = format!(
                "the specified group: \"{}\" name: \"default\" cannot be deleted by a user",
                group.id
            );
            return Err(ApiError::new("CannotDelete", message));
        }
        if let Some(user) = user(world, &group.id) {
            let message = format!("resource {} has a dependent object: {user}", group.id);
            return Err(ApiError::new("DependencyViolation", message));
        }
        Ok(SecurityGroup::clone(group))
    }
}

/// Something for which a group has to stay.
fn user(world: &World, id: &SecurityGroupId) -> Option<String> {
    let interface = world.all::<NetworkInterface>().find(|interface| interface.groups.contains(id));
    let group = || {
        let names = |group: &SecurityGroup| {
            group.rules.iter().any(|rule| matches!(&rule.peer, Peer::Group(peer) if peer == id))
        };
        let mut others = world.all::<SecurityGroup>().filter(|group| group.id != *id);
        others.find(|group| names(group)).map(|group| group.id.to_string())
    };
    interface.map(|interface| interface.id.to_string()).or_else(group)
}

impl Action for DeleteSecurityGroup {
    const NAME: &'static str = "DeleteSecurityGroup";
    type Response = Response;

    fn check(&self, context: Context<'_>) -> Result<(), ApiError> {
        self.group(&context.agent.state.read(), context).map(|_| ())
    }

    fn run(self, context: Context<'_>) -> Result<Response, ApiError> {
        context.agent.state.change(|draft| {
            let group = self.group(draft, context)?;
            for rule in &group.rules {
                draft.remove::<Tags>(&rule.id);
            }
            draft.remove::<Tags>(&group.id);
            draft.remove::<SecurityGroup>(&group.id);
            Ok(Response { done: true, group_id: group.id.to_string() })
        })
    }
}
