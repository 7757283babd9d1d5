//! DescribeRouteTables.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::item::{AssociationItem, RouteItem, RouteTableItem};
use crate::actions::lookup::select;
use crate::query::filters::{Field, Filter, Filtered, Selection};
use crate::query::pages::page;
use crate::query::{Action, ApiError, Context};
use crate::records::RouteTable;

/// The caller's route tables.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct DescribeRouteTables {
    #[serde(default, rename = "Filter")]
    filters: Vec<Filter>,
    #[serde(default, rename = "RouteTableId")]
    ids: Vec<String>,
    max_results: Option<i64>,
    next_token: Option<String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Response {
    route_table_set: Vec<RouteTableItem>,
    next_token: Option<String>,
}

/// A value of each association that has it.
fn associations(table: &RouteTableItem, value: impl Fn(&AssociationItem) -> Option<String>) -> Vec<String> {
    table.association_set.iter().filter_map(value).collect()
}

/// A value of each route that has it.
fn routes(table: &RouteTableItem, value: impl Fn(&RouteItem) -> Option<String>) -> Vec<String> {
    table.route_set.iter().filter_map(value).collect()
}

impl Filtered for RouteTableItem {
    fn field(name: &str) -> Option<Field<Self>> {
        Some(match name {
            "route-table-id" => |table| vec![table.route_table_id.clone()],
            "owner-id" => |table| vec![table.owner_id.clone()],
            "vpc-id" => |table| vec![table.vpc_id.clone()],
            "association.route-table-association-id" => {
                |table| associations(table, |one| Some(one.route_table_association_id.clone()))
            }
            "association.route-table-id" => {
                |table| associations(table, |one| Some(one.route_table_id.clone()))
            }
            "association.subnet-id" => |table| associations(table, |one| one.subnet_id.clone()),
            "association.main" => |table| associations(table, |one| Some(one.main.to_string())),
            "route.destination-cidr-block" => {
                |table| routes(table, |route| Some(route.destination_cidr_block.clone()))
            }
            "route.gateway-id" => |table| routes(table, |route| route.gateway_id.clone()),
            "route.nat-gateway-id" => |table| routes(table, |route| route.nat_gateway_id.clone()),
            "route.instance-id" => |table| routes(table, |route| route.instance_id.clone()),
            "route.network-interface-id" => |table| routes(table, |route| route.network_interface_id.clone()),
            "route.origin" => |table| routes(table, |route| Some(route.origin.to_owned())),
            "route.state" => |table| routes(table, |route| Some(route.state.to_owned())),
            "association.gateway-id"
            | "route.destination-ipv6-cidr-block"
            | "route.destination-prefix-list-id"
            | "route.egress-only-internet-gateway-id"
            | "route.transit-gateway-id"
            | "route.vpc-peering-connection-id" => |_| Vec::new(),
            _ => return None,
        })
    }

    fn tags(&self) -> Option<&BTreeMap<String, String>> {
        Some(&self.tags)
    }
}

impl Action for DescribeRouteTables {
    const NAME: &'static str = "DescribeRouteTables";
    type Response = Response;

    fn run(self, context: Context<'_>) -> Result<Response, ApiError> {
        let world = context.agent.state.read();
        let wanted = Selection::new(&self.filters)?;
        let tables = select::<RouteTable>(&world, context, &self.ids)?;
        let mut items: Vec<RouteTableItem> =
            tables.iter().map(|table| RouteTableItem::new(&world, table)).collect();
        items.retain(|item| wanted.accepts(item));
        let (route_table_set, next_token) =
            page(items, |item| &item.route_table_id, self.max_results, self.next_token.as_deref(), 5)?;
        Ok(Response { route_table_set, next_token })
    }
}
