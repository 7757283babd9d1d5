//! CreateKeyPair.

use serde::{Deserialize, Serialize};

use super::{check_name, keep};
use crate::keys::{KeyType, generate};
use crate::query::tags::{Tag, TagSpecification, specified, tag_set};
use crate::query::{Action, ApiError, Context};

/// Makes a key pair.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct CreateKeyPair {
    key_name: String,
    key_type: Option<String>,
    key_format: Option<String>,
    #[serde(default, rename = "TagSpecification")]
    tags: Vec<TagSpecification>,
}

/// Not `Debug`: it has the private key.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Response {
    key_pair_id: String,
    key_name: String,
    key_fingerprint: String,
    key_material: String,
    tag_set: Vec<Tag>,
}

impl CreateKeyPair {
    fn key_type(&self) -> Result<KeyType, ApiError> {
        let name = self.key_type.as_deref().unwrap_or("rsa");
        KeyType::named(name)
            .ok_or_else(|| ApiError::invalid(name, "KeyType", "Valid values are rsa and ed25519."))
    }
}

impl Action for CreateKeyPair {
    const NAME: &'static str = "CreateKeyPair";
    type Response = Response;

    fn check(&self, context: Context<'_>) -> Result<(), ApiError> {
        self.key_type()?;
        match self.key_format.as_deref() {
            None | Some("pem") => {}
            Some("ppk") => {
                let message = "Keys are made as pem only: puttygen turns one into ppk.";
                return Err(ApiError::new("Unsupported", message));
            }
            Some(other) => {
                return Err(ApiError::invalid(other, "KeyFormat", "Valid values are pem and ppk."));
            }
        }
        specified(&self.tags, &["key-pair"])?;
        check_name(&context.agent.state.read(), context, &self.key_name)
    }

    fn run(self, context: Context<'_>) -> Result<Response, ApiError> {
        let (public, key_material) =
            generate(self.key_type()?, &self.key_name).map_err(ApiError::internal)?;
        let pair = keep(context, &self.key_name, public, &self.tags)?;
        Ok(Response {
            tag_set: tag_set(context.agent.state.read().tags(&pair.id)),
            key_pair_id: pair.id.to_string(),
            key_name: pair.name,
            key_fingerprint: pair.fingerprint,
            key_material,
        })
    }
}
