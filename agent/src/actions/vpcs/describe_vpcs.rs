//! DescribeVpcs.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::item::VpcItem;
use crate::actions::lookup::select;
use crate::query::filters::{Field, Filter, Filtered, Selection};
use crate::query::pages::page;
use crate::query::{Action, ApiError, Context};
use crate::records::Vpc;

/// The caller's VPCs.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct DescribeVpcs {
    #[serde(default, rename = "Filter")]
    filters: Vec<Filter>,
    #[serde(default, rename = "VpcId")]
    ids: Vec<String>,
    max_results: Option<i64>,
    next_token: Option<String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Response {
    vpc_set: Vec<VpcItem>,
    next_token: Option<String>,
}

impl Filtered for VpcItem {
    fn field(name: &str) -> Option<Field<Self>> {
        Some(match name {
            "vpc-id" => |vpc| vec![vpc.vpc_id.clone()],
            "owner-id" => |vpc| vec![vpc.owner_id.clone()],
            "state" => |vpc| vec![vpc.state.to_owned()],
            "cidr" | "cidr-block" | "cidrBlock" => |vpc| vec![vpc.cidr_block.clone()],
            "cidr-block-association.cidr-block" => {
                |vpc| vpc.cidr_block_association_set.iter().map(|one| one.cidr_block.clone()).collect()
            }
            "cidr-block-association.association-id" => {
                |vpc| vpc.cidr_block_association_set.iter().map(|one| one.association_id.clone()).collect()
            }
            "cidr-block-association.state" => |_| vec!["associated".to_owned()],
            "dhcp-options-id" | "dhcpOptionsId" => |vpc| vec![vpc.dhcp_options_id.clone()],
            "is-default" | "isDefault" => |vpc| vec![vpc.is_default.to_string()],
            "ipv6-cidr-block-association.ipv6-cidr-block"
            | "ipv6-cidr-block-association.ipv6-pool"
            | "ipv6-cidr-block-association.association-id"
            | "ipv6-cidr-block-association.state" => |_| Vec::new(),
            _ => return None,
        })
    }

    fn tags(&self) -> Option<&BTreeMap<String, String>> {
        Some(&self.tags)
    }
}

impl Action for DescribeVpcs {
    const NAME: &'static str = "DescribeVpcs";
    type Response = Response;

    fn run(self, context: Context<'_>) -> Result<Response, ApiError> {
        let world = context.agent.state.read();
        let wanted = Selection::new(&self.filters)?;
        let mut items: Vec<VpcItem> =
            select::<Vpc>(&world, context, &self.ids)?.iter().map(|vpc| VpcItem::new(&world, vpc)).collect();
        items.retain(|item| wanted.accepts(item));
        let (vpc_set, next_token) =
            page(items, |item| &item.vpc_id, self.max_results, self.next_token.as_deref(), 5)?;
        Ok(Response { vpc_set, next_token })
    }
}
