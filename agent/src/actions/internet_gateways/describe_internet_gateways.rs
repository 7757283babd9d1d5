//! DescribeInternetGateways.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::item::GatewayItem;
use crate::actions::lookup::select;
use crate::query::filters::{Field, Filter, Filtered, Selection};
use crate::query::pages::page;
use crate::query::{Action, ApiError, Context};
use crate::records::InternetGateway;

/// The caller's internet gateways.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct DescribeInternetGateways {
    #[serde(default, rename = "Filter")]
    filters: Vec<Filter>,
    #[serde(default, rename = "InternetGatewayId")]
    ids: Vec<String>,
    max_results: Option<i64>,
    next_token: Option<String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Response {
    internet_gateway_set: Vec<GatewayItem>,
    next_token: Option<String>,
}

impl Filtered for GatewayItem {
    fn field(name: &str) -> Option<Field<Self>> {
        Some(match name {
            "internet-gateway-id" => |gateway| vec![gateway.internet_gateway_id.clone()],
            "owner-id" => |gateway| vec![gateway.owner_id.clone()],
            "attachment.vpc-id" => {
                |gateway| gateway.attachment_set.iter().map(|one| one.vpc_id.clone()).collect()
            }
            "attachment.state" => {
                |gateway| gateway.attachment_set.iter().map(|one| one.state.to_owned()).collect()
            }
            _ => return None,
        })
    }

    fn tags(&self) -> Option<&BTreeMap<String, String>> {
        Some(&self.tags)
    }
}

impl Action for DescribeInternetGateways {
    const NAME: &'static str = "DescribeInternetGateways";
    type Response = Response;

    fn run(self, context: Context<'_>) -> Result<Response, ApiError> {
        let world = context.agent.state.read();
        let wanted = Selection::new(&self.filters)?;
        let gateways = select::<InternetGateway>(&world, context, &self.ids)?;
        let mut items: Vec<GatewayItem> =
            gateways.iter().map(|gateway| GatewayItem::new(&world, gateway)).collect();
        items.retain(|item| wanted.accepts(item));
        let (internet_gateway_set, next_token) =
            page(items, |item| &item.internet_gateway_id, self.max_results, self.next_token.as_deref(), 5)?;
        Ok(Response { internet_gateway_set, next_token })
    }
}
