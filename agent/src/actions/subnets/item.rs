//! A subnet in answers.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::actions::lookup::arn;
use crate::actions::regions::zone_id;
use crate::network::subnets::{count_free, taken};
use crate::query::Context;
use crate::records::Subnet;
use crate::state::World;

/// `subnet`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct SubnetItem {
    pub subnet_id: String,
    pub subnet_arn: String,
    pub owner_id: String,
    pub vpc_id: String,
    pub state: &'static str,
    pub cidr_block: String,
    pub available_ip_address_count: u64,
    pub availability_zone: String,
    pub availability_zone_id: String,
    pub default_for_az: bool,
    pub map_public_ip_on_launch: bool,
    pub map_customer_owned_ip_on_launch: bool,
    pub assign_ipv6_address_on_creation: bool,
    pub ipv6_cidr_block_association_set: Vec<Nothing>,
    pub enable_dns64: bool,
    pub ipv6_native: bool,
    pub private_dns_name_options_on_launch: DnsOptions,
    #[serde(rename = "tagSet", serialize_with = "crate::actions::tags::set")]
    pub tags: BTreeMap<String, String>,
}

/// There are no IPv6 addresses yet.
#[derive(Debug, Serialize)]
pub enum Nothing {}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DnsOptions {
    pub hostname_type: &'static str,
    enable_resource_name_dns_a_record: bool,
    #[serde(rename = "enableResourceNameDnsAAAARecord")]
    enable_resource_name_dns_aaaa_record: bool,
}

impl SubnetItem {
    pub fn new(world: &World, context: Context<'_>, subnet: &Subnet) -> Self {
        Self {
            subnet_id: subnet.id.to_string(),
            subnet_arn: arn(context, &subnet.owner, "subnet", &subnet.id),
            owner_id: subnet.owner.clone(),
            vpc_id: subnet.vpc.to_string(),
            state: "available",
            cidr_block: subnet.cidr.to_string(),
            available_ip_address_count: count_free(subnet.cidr, &taken(world, &subnet.id)),
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
