//! An internet gateway in answers.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::ids::VpcId;
use crate::records::InternetGateway;
use crate::state::World;

/// `internetGateway`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct GatewayItem {
    pub internet_gateway_id: String,
    pub owner_id: String,
    pub attachment_set: Vec<Attachment>,
    #[serde(rename = "tagSet", serialize_with = "crate::actions::tags::set")]
    pub tags: BTreeMap<String, String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Attachment {
    pub vpc_id: String,
    /// EC2 says `available`, though its model knows only `attached`; clients wait for the former.
    pub state: &'static str,
}

impl GatewayItem {
    pub fn new(world: &World, gateway: &InternetGateway) -> Self {
        let attachment = |vpc: &VpcId| Attachment { vpc_id: vpc.to_string(), state: "available" };
        Self {
            internet_gateway_id: gateway.id.to_string(),
            owner_id: gateway.owner.clone(),
            attachment_set: gateway.vpc.iter().map(attachment).collect(),
            tags: world.tags(&gateway.id).cloned().unwrap_or_default(),
        }
    }
}
