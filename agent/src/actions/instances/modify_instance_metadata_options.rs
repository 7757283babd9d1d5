//! ModifyInstanceMetadataOptions.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::metadata::{Wanted, check_tag_keys};
use super::named::Changes;
use super::view::MetadataItem;
use crate::query::{Action, ApiError, Context};
use crate::records::InstanceState;
use crate::state::World;

/// Changes how the metadata service answers an instance, at once.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct ModifyInstanceMetadataOptions {
    instance_id: String,
    http_tokens: Option<String>,
    http_put_response_hop_limit: Option<i64>,
    http_endpoint: Option<String>,
    http_protocol_ipv6: Option<String>,
    instance_metadata_tags: Option<String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Response {
    instance_id: String,
    instance_metadata_options: Option<MetadataItem>,
}

impl ModifyInstanceMetadataOptions {
    fn plan(&self, world: &World, context: Context<'_>) -> Result<Changes, ApiError> {
        let wanted = Wanted {
            http_tokens: self.http_tokens.clone(),
            http_put_response_hop_limit: self.http_put_response_hop_limit,
            http_endpoint: self.http_endpoint.clone(),
            http_protocol_ipv6: self.http_protocol_ipv6.clone(),
            instance_metadata_tags: self.instance_metadata_tags.clone(),
        };
        Changes::plan(world, context, std::slice::from_ref(&self.instance_id), |world, instance| {
            if matches!(instance.lifecycle.state, InstanceState::ShuttingDown | InstanceState::Terminated) {
                let message = format!("The instance '{}' is terminated, and cannot be changed.", instance.id);
                return Err(ApiError::new("IncorrectInstanceState", message));
            }
            wanted.apply(&mut instance.metadata_options)?;
            let tags = world.tags(&instance.id).into_iter().flat_map(BTreeMap::keys);
            check_tag_keys(&instance.metadata_options, tags)
        })
    }
}

impl Action for ModifyInstanceMetadataOptions {
    const NAME: &'static str = "ModifyInstanceMetadataOptions";
    type Response = Response;

    fn check(&self, context: Context<'_>) -> Result<(), ApiError> {
        self.plan(&context.agent.state.read(), context).map(drop)
    }

    fn run(self, context: Context<'_>) -> Result<Response, ApiError> {
        context.agent.state.change(|draft| {
            let changes = self.plan(draft, context)?;
            changes.record(draft);
            let options = changes.changed().next().map(|instance| (&instance.metadata_options).into());
            Ok(Response { instance_id: self.instance_id, instance_metadata_options: options })
        })
    }
}
