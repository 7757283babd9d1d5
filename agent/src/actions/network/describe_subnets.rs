//! DescribeSubnets.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::actions::lookup::{arn, select};
use crate::actions::regions::zone_id;
use crate::query::filters::{Field, Filter, Filtered, Selection};
use crate::query::pages::page;
use crate::query::{Action, ApiError, Context};
use crate::records::{NetworkInterface, Subnet};
use crate::state::World;

/// The first four addresses of a subnet and the last one are not for instances.
const RESERVED: u64 = 5;

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
    subnet_set: Vec<Item>,
    next_token: Option<String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Item {
    subnet_id: String,
    subnet_arn: String,
    owner_id: String,
    vpc_id: String,
    state: &'static str,
    cidr_block: String,
    available_ip_address_count: u64,
    availability_zone: String,
    availability_zone_id: String,
    default_for_az: bool,
    map_public_ip_on_launch: bool,
    map_customer_owned_ip_on_launch: bool,
    assign_ipv6_address_on_creation: bool,
    ipv6_cidr_block_association_set: Vec<Nothing>,
    enable_dns64: bool,
    ipv6_native: bool,
    private_dns_name_options_on_launch: DnsOptions,
    #[serde(rename = "tagSet", serialize_with = "crate::actions::tags::set")]
    tags: BTreeMap<String, String>,
}

/// There are no IPv6 addresses yet.
#[derive(Debug, Serialize)]
enum Nothing {}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct DnsOptions {
    hostname_type: &'static str,
    enable_resource_name_dns_a_record: bool,
    #[serde(rename = "enableResourceNameDnsAAAARecord")]
    enable_resource_name_dns_aaaa_record: bool,
}

impl Item {
    fn new(world: &World, context: Context<'_>, subnet: &Subnet) -> Self {
        let used = world.all::<NetworkInterface>().filter(|interface| interface.subnet == subnet.id).count();
        Self {
            subnet_id: subnet.id.to_string(),
            subnet_arn: arn(context, &subnet.owner, "subnet", &subnet.id),
            owner_id: subnet.owner.clone(),
            vpc_id: subnet.vpc.to_string(),
            state: "available",
            cidr_block: subnet.cidr.clone(),
            available_ip_address_count: free_addresses(&subnet.cidr, used),
            availability_zone: subnet.availability_zone.clone(),
            availability_zone_id: zone_id(&context.agent.config.region, &subnet.availability_zone),
            default_for_az: subnet.default_for_az,
            map_public_ip_on_launch: subnet.map_public_ip_on_launch,
            map_customer_owned_ip_on_launch: false,
            assign_ipv6_address_on_creation: false,
            ipv6_cidr_block_association_set: Vec::new(),
            enable_dns64: false,
            ipv6_native: false,
            private_dns_name_options_on_launch: DnsOptions {
                hostname_type: "ip-name",
                enable_resource_name_dns_a_record: false,
                enable_resource_name_dns_aaaa_record: false,
            },
            tags: world.tags(&subnet.id).cloned().unwrap_or_default(),
        }
    }
}

/// How many addresses of a range are left for instances.
fn free_addresses(cidr: &str, used: usize) -> u64 {
    let length: u32 = cidr.split_once('/').and_then(|(_, length)| length.parse().ok()).unwrap_or(32);
    let all = 1_u64 << 32_u32.saturating_sub(length);
    all.saturating_sub(RESERVED).saturating_sub(used as u64)
}

impl Filtered for Item {
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
        let mut items: Vec<Item> = subnets.iter().map(|subnet| Item::new(&world, context, subnet)).collect();
        items.retain(|item| wanted.accepts(item));
        let (subnet_set, next_token) =
            page(items, |item| &item.subnet_id, self.max_results, self.next_token.as_deref(), 5)?;
        Ok(Response { subnet_set, next_token })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn five_addresses_are_not_for_instances() {
        for (cidr, used, expected) in [
            ("10.0.0.0/24", 0, 251),
            ("10.0.0.0/24", 3, 248),
            ("172.31.0.0/20", 0, 4091),
            ("10.0.0.0/28", 11, 0),
            ("10.0.0.0/28", 12, 0),
        ] {
            assert_eq!(free_addresses(cidr, used), expected, "{cidr} {used}");
        }
    }
}
