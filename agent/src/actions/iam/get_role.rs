//! GetRole and ListRoles.

use serde::{Deserialize, Serialize};

use super::item::RoleItem;
use super::{listed, named, own};
use crate::query::{Action, ApiError, Context, Service};
use crate::records::Role;

/// A role.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct GetRole {
    role_name: String,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Response {
    role: RoleItem,
}

impl Action for GetRole {
    const NAME: &'static str = "GetRole";
    const SERVICE: Service = Service::Iam;
    type Response = Response;

    fn run(self, context: Context<'_>) -> Result<Response, ApiError> {
        let world = context.agent.state.read();
        let role = named(&world, context, &self.role_name)?;
        Ok(Response { role: RoleItem::new(&world, role) })
    }
}

/// The account's roles.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct ListRoles {
    #[serde(default)]
    path_prefix: String,
    marker: Option<String>,
    max_items: Option<i64>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct List {
    roles: Vec<RoleItem>,
    is_truncated: bool,
    marker: Option<String>,
}

impl Action for ListRoles {
    const NAME: &'static str = "ListRoles";
    const SERVICE: Service = Service::Iam;
    type Response = List;

    fn run(self, context: Context<'_>) -> Result<List, ApiError> {
        let world = context.agent.state.read();
        let wanted =
            own::<Role>(&world, context).into_iter().filter(|role| role.path.starts_with(&self.path_prefix));
        let roles = wanted.map(|role| RoleItem::listed(role)).collect();
        let (roles, marker) =
            listed(roles, |role: &RoleItem| &role.role_name, self.max_items, self.marker.as_deref())?;
        Ok(List { roles, is_truncated: marker.is_some(), marker })
    }
}
