//! InnkeeperDescribeIdentity: the certificates of the agent's authority.

use innkeeper_identity::Kind;
use serde::{Deserialize, Serialize};

use crate::query::{Action, ApiError, Context};

/// The certificates by which its signatures are verified. They are no secret.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct DescribeIdentity {}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Response {
    certificate_set: Vec<Item>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Item {
    /// What it is for: `signature`, `pkcs7`, `rsa2048` or `ca`.
    kind: &'static str,
    /// In PEM.
    certificate: String,
}

impl Action for DescribeIdentity {
    const NAME: &'static str = "InnkeeperDescribeIdentity";
    type Response = Response;

    fn run(self, context: Context<'_>) -> Result<Response, ApiError> {
        let authority = context.agent.identity.authority()?;
        let item = |kind: Kind| {
            let certificate = authority.certificate(kind).map_err(ApiError::internal)?;
            Ok(Item { kind: kind.name(), certificate })
        };
        Ok(Response { certificate_set: Kind::ALL.into_iter().map(item).collect::<Result<_, ApiError>>()? })
    }
}
