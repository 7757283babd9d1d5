//! GetConsoleOutput.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use crate::actions::lookup::{find_own, time};
use crate::query::{Action, ApiError, Context};
use crate::records::Instance;

/// What an instance has printed on its serial console, up to now.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct GetConsoleOutput {
    instance_id: String,
    /// It is always the latest.
    #[serde(default, rename = "Latest")]
    _latest: bool,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Response {
    instance_id: String,
    timestamp: String,
    output: Option<String>,
}

impl Action for GetConsoleOutput {
    const NAME: &'static str = "GetConsoleOutput";
    type Response = Response;

    fn check(&self, context: Context<'_>) -> Result<(), ApiError> {
        find_own::<Instance>(&context.agent.state.read(), context, &self.instance_id).map(|_| ())
    }

    fn run(self, context: Context<'_>) -> Result<Response, ApiError> {
        let world = context.agent.state.read();
        let instance = find_own::<Instance>(&world, context, &self.instance_id)?;
        let console = context.agent.instances.console_output(&instance.id)?;
        Ok(Response {
            instance_id: self.instance_id,
            timestamp: time(console.as_ref().map_or(instance.lifecycle.since, |console| console.time)),
            output: console.map(|console| STANDARD.encode(console.bytes)),
        })
    }
}
