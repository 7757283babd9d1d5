//! DescribeNatGateways.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::item::GatewayItem;
use crate::actions::lookup::select;
use crate::query::filters::{Field, Filter, Filtered, Selection};
use crate::query::pages::page;
use crate::query::{Action, ApiError, Context};
use crate::records::NatGateway;

/// The caller's NAT gateways, with those that were deleted within the last hour.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct DescribeNatGateways {
    #[serde(default, rename = "Filter")]
    filters: Vec<Filter>,
    #[serde(default, rename = "NatGatewayId")]
    ids: Vec<String>,
    max_results: Option<i64>,
    next_token: Option<String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Response {
    nat_gateway_set: Vec<GatewayItem>,
    next_token: Option<String>,
}

impl Filtered for GatewayItem {
    fn field(name: &str) -> Option<Field<Self>> {
        Some(match name {
            "nat-gateway-id" => |gateway| vec![gateway.nat_gateway_id.clone()],
            "vpc-id" => |gateway| vec![gateway.vpc_id.clone()],
            "subnet-id" => |gateway| vec![gateway.subnet_id.clone()],
            "state" => |gateway| vec![gateway.state.to_owned()],
            "connectivity-type" => |gateway| vec![gateway.connectivity_type.to_owned()],
            _ => return None,
        })
    }

    fn tags(&self) -> Option<&BTreeMap<String, String>> {
        Some(&self.tags)
    }
}

impl Action for DescribeNatGateways {
    const NAME: &'static str = "DescribeNatGateways";
    type Response = Response;

    fn run(self, context: Context<'_>) -> Result<Response, ApiError> {
        let world = context.agent.state.read();
        let wanted = Selection::new(&self.filters)?;
        let gateways = select::<NatGateway>(&world, context, &self.ids)?;
        let mut items: Vec<GatewayItem> =
            gateways.iter().map(|gateway| GatewayItem::new(&world, gateway)).collect();
        items.retain(|item| wanted.accepts(item));
        let (nat_gateway_set, next_token) =
            page(items, |item| &item.nat_gateway_id, self.max_results, self.next_token.as_deref(), 5)?;
        Ok(Response { nat_gateway_set, next_token })
    }
}
