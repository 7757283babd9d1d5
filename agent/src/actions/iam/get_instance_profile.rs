//! GetInstanceProfile, ListInstanceProfiles and ListInstanceProfilesForRole.

use serde::{Deserialize, Serialize};

use super::item::ProfileItem;
use super::{listed, named, own};
use crate::query::{Action, ApiError, Context, Service};
use crate::records::{InstanceProfile, Role};
use crate::state::World;

/// An instance profile.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct GetInstanceProfile {
    instance_profile_name: String,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Response {
    instance_profile: ProfileItem,
}

impl Action for GetInstanceProfile {
    const NAME: &'static str = "GetInstanceProfile";
    const SERVICE: Service = Service::Iam;
    type Response = Response;

    fn run(self, context: Context<'_>) -> Result<Response, ApiError> {
        let world = context.agent.state.read();
        let profile = named(&world, context, &self.instance_profile_name)?;
        Ok(Response { instance_profile: ProfileItem::new(&world, profile) })
    }
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct List {
    instance_profiles: Vec<ProfileItem>,
    is_truncated: bool,
    marker: Option<String>,
}

/// A page of the account's profiles, of those that are wanted.
fn list(
    world: &World,
    context: Context<'_>,
    wanted: impl Fn(&InstanceProfile) -> bool,
    max_items: Option<i64>,
    marker: Option<&str>,
) -> Result<List, ApiError> {
    let profiles = own::<InstanceProfile>(world, context).into_iter().filter(|profile| wanted(profile));
    let items = profiles.map(|profile| ProfileItem::listed(world, profile)).collect();
    let (instance_profiles, marker) =
        listed(items, |item: &ProfileItem| &item.instance_profile_name, max_items, marker)?;
    Ok(List { instance_profiles, is_truncated: marker.is_some(), marker })
}

/// The account's instance profiles.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct ListInstanceProfiles {
    #[serde(default)]
    path_prefix: String,
    marker: Option<String>,
    max_items: Option<i64>,
}

impl Action for ListInstanceProfiles {
    const NAME: &'static str = "ListInstanceProfiles";
    const SERVICE: Service = Service::Iam;
    type Response = List;

    fn run(self, context: Context<'_>) -> Result<List, ApiError> {
        let world = context.agent.state.read();
        let wanted = |profile: &InstanceProfile| profile.path.starts_with(&self.path_prefix);
        list(&world, context, wanted, self.max_items, self.marker.as_deref())
    }
}

/// The instance profiles that have a role.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct ListInstanceProfilesForRole {
    role_name: String,
    marker: Option<String>,
    max_items: Option<i64>,
}

impl Action for ListInstanceProfilesForRole {
    const NAME: &'static str = "ListInstanceProfilesForRole";
    const SERVICE: Service = Service::Iam;
    type Response = List;

    fn run(self, context: Context<'_>) -> Result<List, ApiError> {
        let world = context.agent.state.read();
        let role = named::<Role>(&world, context, &self.role_name)?;
        let wanted = |profile: &InstanceProfile| profile.role.as_ref() == Some(&role.id);
        list(&world, context, wanted, self.max_items, self.marker.as_deref())
    }
}
