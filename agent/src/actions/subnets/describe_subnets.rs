//! DescribeSubnets.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::item::SubnetItem;
use crate::actions::lookup::select;
use crate::query::filters::{Field, Filter, Filtered, Selection};
use crate::query::pages::page;
use crate::query::{Action, ApiError, Context};
use crate::records::Subnet;

/// The caller's subnets.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct DescribeSubnets {
    #[serde(default, rename = "Filter")]
    filters: Vec<Filter>,
    #[serde(default, rename = "SubnetId")]
    ids: Vec<String>,
    max_results: Option<i64>,
    next_token: Option<String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Response {
    subnet_set: Vec<SubnetItem>,
    next_token: Option<String>,
}

impl Filtered for SubnetItem {
    fn field(name: &str) -> Option<Field<Self>> {
        Some(match name {
            "subnet-id" => |subnet| vec![subnet.subnet_id.clone()],
            "subnet-arn" => |subnet| vec![subnet.subnet_arn.clone()],
            "owner-id" => |subnet| vec![subnet.owner_id.clone()],
            "vpc-id" => |subnet| vec![subnet.vpc_id.clone()],
            "state" => |subnet| vec![subnet.state.to_owned()],
            "cidr" | "cidr-block" | "cidrBlock" => |subnet| vec![subnet.cidr_block.clone()],
            "available-ip-address-count" => |subnet| vec![subnet.available_ip_address_count.to_string()],
            "availability-zone" | "availabilityZone" => |subnet| vec![subnet.availability_zone.clone()],
            "availability-zone-id" | "availabilityZoneId" => {
                |subnet| vec![subnet.availability_zone_id.clone()]
            }
            "default-for-az" | "defaultForAz" => |subnet| vec![subnet.default_for_az.to_string()],
            "map-public-ip-on-launch" => |subnet| vec![subnet.map_public_ip_on_launch.to_string()],
            "map-customer-owned-ip-on-launch" | "enable-dns64" | "ipv6-native" => {
                |_| vec!["false".to_owned()]
            }
            "private-dns-name-options-on-launch.hostname-type" => {
                |subnet| vec![subnet.private_dns_name_options_on_launch.hostname_type.to_owned()]
            }
            "private-dns-name-options-on-launch.enable-resource-name-dns-a-record"
            | "private-dns-name-options-on-launch.enable-resource-name-dns-aaaa-record" => {
                |_| vec!["false".to_owned()]
            }
            "ipv6-cidr-block-association.ipv6-cidr-block"
            | "ipv6-cidr-block-association.association-id"
            | "ipv6-cidr-block-association.state"
            | "customer-owned-ipv4-pool"
            | "enable-lni-at-device-index"
            | "outpost-arn" => |_| Vec::new(),
            _ => return None,
        })
    }

    fn tags(&self) -> Option<&BTreeMap<String, String>> {
        Some(&self.tags)
    }
}

impl Action for DescribeSubnets {
    const NAME: &'static str = "DescribeSubnets";
    type Response = Response;

    fn run(self, context: Context<'_>) -> Result<Response, ApiError> {
        let world = context.agent.state.read();
        let wanted = Selection::new(&self.filters)?;
        let subnets = select::<Subnet>(&world, context, &self.ids)?;
        let mut items: Vec<SubnetItem> =
            subnets.iter().map(|subnet| SubnetItem::new(&world, context, subnet)).collect();
        items.retain(|item| wanted.accepts(item));
        let (subnet_set, next_token) =
            page(items, |item| &item.subnet_id, self.max_results, self.next_token.as_deref(), 5)?;
        Ok(Response { subnet_set, next_token })
    }
}
