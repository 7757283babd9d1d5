//! DescribeKeyPairs.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::actions::lookup::{key_pairs, time};
use crate::query::filters::{Field, Filter, Filtered, Selection};
use crate::query::{Action, ApiError, Context};
use crate::records::KeyPair;

/// The account's key pairs.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct DescribeKeyPairs {
    #[serde(default, rename = "Filter")]
    filters: Vec<Filter>,
    #[serde(default, rename = "KeyName")]
    names: Vec<String>,
    #[serde(default, rename = "KeyPairId")]
    ids: Vec<String>,
    #[serde(default)]
    include_public_key: bool,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Response {
    key_set: Vec<Item>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Item {
    key_pair_id: String,
    key_name: String,
    key_type: String,
    key_fingerprint: String,
    public_key: Option<String>,
    create_time: String,
    #[serde(rename = "tagSet", serialize_with = "crate::actions::tags::set")]
    tags: BTreeMap<String, String>,
}

impl Filtered for Item {
    fn field(name: &str) -> Option<Field<Self>> {
        Some(match name {
            "key-pair-id" => |pair| vec![pair.key_pair_id.clone()],
            "key-name" => |pair| vec![pair.key_name.clone()],
            "fingerprint" => |pair| vec![pair.key_fingerprint.clone()],
            _ => return None,
        })
    }

    fn tags(&self) -> Option<&BTreeMap<String, String>> {
        Some(&self.tags)
    }
}

impl Action for DescribeKeyPairs {
    const NAME: &'static str = "DescribeKeyPairs";
    type Response = Response;

    fn run(self, context: Context<'_>) -> Result<Response, ApiError> {
        let world = context.agent.state.read();
        let wanted = Selection::new(&self.filters)?;
        if let Some(name) =
            self.names.iter().find(|name| !key_pairs(&world, context).any(|pair| pair.name == **name))
        {
            let message = format!("The key pair '{name}' does not exist");
            return Err(ApiError::new("InvalidKeyPair.NotFound", message));
        }
        if let Some(id) =
            self.ids.iter().find(|id| !key_pairs(&world, context).any(|pair| pair.id.as_str() == **id))
        {
            let message = format!("The keyPair ID '{id}' does not exist");
            return Err(ApiError::new("InvalidKeyPair.NotFound", message));
        }
        let is_named = |pair: &KeyPair| {
            (self.names.is_empty() || self.names.contains(&pair.name))
                && (self.ids.is_empty() || self.ids.iter().any(|id| *id == pair.id.as_str()))
        };
        let mut key_set: Vec<Item> = key_pairs(&world, context)
            .filter(|pair| is_named(pair))
            .map(|pair| Item {
                key_pair_id: pair.id.to_string(),
                key_name: pair.name.clone(),
                key_type: pair.key_type.clone(),
                key_fingerprint: pair.fingerprint.clone(),
                public_key: self.include_public_key.then(|| pair.public_key.clone()),
                create_time: time(pair.created),
                tags: world.tags(&pair.id).cloned().unwrap_or_default(),
            })
            .collect();
        key_set.retain(|item| wanted.accepts(item));
        Ok(Response { key_set })
    }
}
