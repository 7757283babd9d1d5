//! GetEbsEncryptionByDefault, EnableEbsEncryptionByDefault and DisableEbsEncryptionByDefault. What is on the disks of this
//! host is not encrypted by it, so that the answer is always no.

use serde::{Deserialize, Serialize};

use crate::actions::refused::unsupported;
use crate::query::{Action, ApiError, Context};

/// Whether new volumes are encrypted without being asked for it.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct GetEbsEncryptionByDefault {}

/// Asks for that.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct EnableEbsEncryptionByDefault {}

/// Asks for the contrary.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct DisableEbsEncryptionByDefault {}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Response {
    ebs_encryption_by_default: bool,
    sse_type: Option<&'static str>,
}

impl Action for GetEbsEncryptionByDefault {
    const NAME: &'static str = "GetEbsEncryptionByDefault";
    type Response = Response;

    fn run(self, _: Context<'_>) -> Result<Response, ApiError> {
        Ok(Response { ebs_encryption_by_default: false, sse_type: Some("none") })
    }
}

impl Action for EnableEbsEncryptionByDefault {
    const NAME: &'static str = "EnableEbsEncryptionByDefault";
    type Response = Response;

    fn check(&self, _: Context<'_>) -> Result<(), ApiError> {
        Err(unsupported(
            "This host does not encrypt what is on volumes: have the agent's state directory on an encrypted disk, or \
             encrypt inside of the instances.",
        ))
    }

    fn run(self, context: Context<'_>) -> Result<Response, ApiError> {
        self.check(context)?;
        Ok(Response { ebs_encryption_by_default: false, sse_type: None })
    }
}

impl Action for DisableEbsEncryptionByDefault {
    const NAME: &'static str = "DisableEbsEncryptionByDefault";
    type Response = Response;

    fn run(self, _: Context<'_>) -> Result<Response, ApiError> {
        Ok(Response { ebs_encryption_by_default: false, sse_type: None })
    }
}
