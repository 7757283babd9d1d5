//! GetUser: clients ask it for the account's number. There are no users but the account itself.

use serde::{Deserialize, Serialize};

use super::missing;
use crate::actions::lookup::time;
use crate::query::{Action, ApiError, Context, Service};
use crate::records::AccessKey;

/// Who am I?
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct GetUser {
    user_name: Option<String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Response {
    user: User,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct User {
    path: &'static str,
    user_name: &'static str,
    user_id: String,
    arn: String,
    create_date: String,
}

impl Action for GetUser {
    const NAME: &'static str = "GetUser";
    const SERVICE: Service = Service::Iam;
    type Response = Response;

    fn run(self, context: Context<'_>) -> Result<Response, ApiError> {
        if let Some(name) = &self.user_name {
            return Err(missing(format!("The user with name {name} cannot be found.")));
        }
        let caller = context.caller;
        if caller.role.is_some() {
            let message = "Must specify userName when calling with non-User credentials";
            return Err(ApiError::new("ValidationError", message));
        }
        let world = context.agent.state.read();
        let keys = world.all::<AccessKey>().filter(|key| key.account == caller.account);
        let created = keys.map(|key| key.created).min().unwrap_or_default();
        let (user_id, arn) = (caller.user_id.clone(), caller.arn.clone());
        let user = User { path: "/", user_name: "root", user_id, arn, create_date: time(created) };
        Ok(Response { user })
    }
}
