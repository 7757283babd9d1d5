//! InnkeeperDescribeHost: what people on the host want to know of it.

use serde::{Deserialize, Serialize};

use crate::network::public_addresses::Pool;
use crate::query::{Action, ApiError, Context};

/// The host, as instances see it.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct DescribeHost {}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Response {
    /// By which address the host talks to instances. None, if there are no public addresses.
    host_address: Option<String>,
}

impl Action for DescribeHost {
    const NAME: &'static str = "InnkeeperDescribeHost";
    type Response = Response;

    fn run(self, context: Context<'_>) -> Result<Response, ApiError> {
        let pool = Pool::new(&context.agent.config.public_addresses);
        Ok(Response { host_address: pool.host_address().map(|address| address.to_string()) })
    }
}
