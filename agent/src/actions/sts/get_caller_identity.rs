//! GetCallerIdentity: clients ask it to see whether their credentials are good, and for the account's number.

use serde::{Deserialize, Serialize};

use crate::query::{Action, ApiError, Context, Service};

/// Who am I?
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GetCallerIdentity {}

/// Unlike EC2's, the names of STS's elements begin with a capital.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Response {
    arn: String,
    user_id: String,
    account: String,
}

impl Action for GetCallerIdentity {
    const NAME: &'static str = "GetCallerIdentity";
    const SERVICE: Service = Service::Sts;
    type Response = Response;

    fn run(self, context: Context<'_>) -> Result<Response, ApiError> {
        let caller = context.caller.clone();
        Ok(Response { arn: caller.arn, user_id: caller.user_id, account: caller.account })
    }
}
