//! ImportKeyPair.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use super::{check_name, keep};
use crate::keys::{Public, import};
use crate::query::tags::{Tag, TagSpecification, specified, tag_set};
use crate::query::{Action, ApiError, Context};

/// Takes a public key that somebody has.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct ImportKeyPair {
    key_name: String,
    /// Base64 of whatever the key's file has.
    public_key_material: String,
    #[serde(default, rename = "TagSpecification")]
    tags: Vec<TagSpecification>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Response {
    key_pair_id: String,
    key_name: String,
    key_fingerprint: String,
    tag_set: Vec<Tag>,
}

impl ImportKeyPair {
    fn public(&self) -> Result<Public, ApiError> {
        let invalid = |reason: &dyn std::fmt::Display| {
            ApiError::new(
                "InvalidKey.Format",
                format!("Key is not in valid OpenSSH public key format: {reason}"),
            )
        };
        let text: String = self.public_key_material.split_whitespace().collect();
        let material = STANDARD.decode(text).map_err(|_| invalid(&"PublicKeyMaterial is not base64"))?;
        import(&material, &self.key_name).map_err(|error| invalid(&error))
    }
}

impl Action for ImportKeyPair {
    const NAME: &'static str = "ImportKeyPair";
    type Response = Response;

    fn check(&self, context: Context<'_>) -> Result<(), ApiError> {
        specified(&self.tags, &["key-pair"])?;
        check_name(&context.agent.state.read(), context, &self.key_name)?;
        self.public().map(|_| ())
    }

    fn run(self, context: Context<'_>) -> Result<Response, ApiError> {
        let pair = keep(context, &self.key_name, self.public()?, &self.tags)?;
        Ok(Response {
            tag_set: tag_set(context.agent.state.read().tags(&pair.id)),
            key_pair_id: pair.id.to_string(),
            key_name: pair.name,
            key_fingerprint: pair.fingerprint,
        })
    }
}
