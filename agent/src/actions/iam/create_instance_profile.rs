//! CreateInstanceProfile and DeleteInstanceProfile.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::item::ProfileItem;
use super::members::Members;
use super::{named, room_for};
use crate::ids::unique_id;
use crate::query::tags::{Tag, checked};
use crate::query::{Action, ApiError, Context, Service};
use crate::records::{InstanceProfile, Tags};

/// Makes an instance profile, that has no role yet.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct CreateInstanceProfile {
    instance_profile_name: String,
    path: Option<String>,
    #[serde(default)]
    tags: Members<Tag>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Response {
    instance_profile: ProfileItem,
}

impl Action for CreateInstanceProfile {
    const NAME: &'static str = "CreateInstanceProfile";
    const SERVICE: Service = Service::Iam;
    type Response = Response;

    fn run(self, context: Context<'_>) -> Result<Response, ApiError> {
        let tags = checked(&self.tags.0)?;
        let profile = InstanceProfile {
            id: unique_id("AIPA", 17),
            owner: context.caller.account.clone(),
            name: self.instance_profile_name,
            path: self.path.unwrap_or_else(|| "/".to_owned()),
            role: None,
            created: Timestamp::now(),
        };
        context.agent.state.change(|draft| {
            room_for::<InstanceProfile>(draft, context, &profile.name, &profile.path)?;
            draft.put(profile.clone());
            draft.tag(&profile.id, tags);
            Ok(Response { instance_profile: ProfileItem::new(draft, &profile) })
        })
    }
}

/// Deletes an instance profile that has no role. Instances that have it are not asked, as in AWS: they get no new
/// credentials, and another profile of that name is not theirs.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct DeleteInstanceProfile {
    instance_profile_name: String,
}

impl Action for DeleteInstanceProfile {
    const NAME: &'static str = "DeleteInstanceProfile";
    const SERVICE: Service = Service::Iam;
    type Response = ();

    fn run(self, context: Context<'_>) -> Result<(), ApiError> {
        context.agent.state.change(|draft| {
            let profile = named::<InstanceProfile>(draft, context, &self.instance_profile_name)?.clone();
            if profile.role.is_some() {
                let message = "Cannot delete entity, must remove roles from instance profile first.";
                return Err(ApiError::new("DeleteConflict", message));
            }
            draft.remove::<InstanceProfile>(&profile.id);
            draft.remove::<Tags>(&profile.id);
            Ok(())
        })
    }
}
