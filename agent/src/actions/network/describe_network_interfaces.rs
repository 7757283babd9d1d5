//! DescribeNetworkInterfaces.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::actions::lookup::{select, time};
use crate::actions::regions::zone_id;
use crate::query::filters::{Field, Filter, Filtered, Selection};
use crate::query::pages::page;
use crate::query::{Action, ApiError, Context};
use crate::records::{NetworkInterface, SecurityGroup, Subnet};
use crate::state::World;

/// The caller's network interfaces.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct DescribeNetworkInterfaces {
    #[serde(default, rename = "Filter")]
    filters: Vec<Filter>,
    #[serde(default, rename = "NetworkInterfaceId")]
    ids: Vec<String>,
    #[serde(default, rename = "IncludeManagedResources")]
    _managed: bool,
    max_results: Option<i64>,
    next_token: Option<String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Response {
    network_interface_set: Vec<Item>,
    next_token: Option<String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Item {
    network_interface_id: String,
    owner_id: String,
    vpc_id: String,
    subnet_id: String,
    availability_zone: String,
    availability_zone_id: String,
    description: String,
    interface_type: &'static str,
    mac_address: String,
    private_dns_name: String,
    private_ip_address: String,
    private_ip_addresses_set: Vec<Address>,
    requester_managed: bool,
    source_dest_check: bool,
    status: &'static str,
    group_set: Vec<Group>,
    attachment: Attachment,
    #[serde(rename = "tagSet", serialize_with = "crate::actions::tags::set")]
    tags: BTreeMap<String, String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Address {
    private_ip_address: String,
    private_dns_name: String,
    primary: bool,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Group {
    group_id: String,
    group_name: String,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Attachment {
    attachment_id: String,
    instance_id: String,
    instance_owner_id: String,
    device_index: u32,
    network_card_index: u32,
    status: &'static str,
    attach_time: String,
    delete_on_termination: bool,
}

impl Item {
    fn new(world: &World, context: Context<'_>, interface: &NetworkInterface) -> Self {
        let region = &context.agent.config.region;
        let zone = world.get::<Subnet>(&interface.subnet).map(|subnet| subnet.availability_zone.clone());
        let zone = zone.unwrap_or_default();
        let address = interface.private_address.to_string();
        // As EC2 does it: the oldest region has a short name.
        let domain = match region.as_str() {
            "us-east-1" => "ec2.internal".to_owned(),
            region => format!("{region}.compute.internal"),
        };
        let private_dns_name = format!("ip-{}.{domain}", address.replace('.', "-"));
        Self {
            network_interface_id: interface.id.to_string(),
            owner_id: interface.owner.clone(),
            vpc_id: interface.vpc.to_string(),
            subnet_id: interface.subnet.to_string(),
            availability_zone_id: zone_id(region, &zone),
            availability_zone: zone,
            description: interface.description.clone(),
            interface_type: "interface",
            mac_address: interface.mac.clone(),
            private_ip_addresses_set: vec![Address {
                private_ip_address: address.clone(),
                private_dns_name: private_dns_name.clone(),
                primary: true,
            }],
            private_dns_name,
            private_ip_address: address,
            requester_managed: false,
            source_dest_check: interface.source_dest_check,
            status: "in-use",
            group_set: interface
                .groups
                .iter()
                .map(|id| Group {
                    group_id: id.to_string(),
                    group_name: world
                        .get::<SecurityGroup>(id)
                        .map(|group| group.name.clone())
                        .unwrap_or_default(),
                })
                .collect(),
            attachment: Attachment {
                attachment_id: interface.attachment.to_string(),
                instance_id: interface.instance.to_string(),
                instance_owner_id: interface.owner.clone(),
                device_index: 0,
                network_card_index: 0,
                status: "attached",
                attach_time: time(interface.attached),
                delete_on_termination: interface.delete_on_termination,
            },
            tags: world.tags(&interface.id).cloned().unwrap_or_default(),
        }
    }
}

impl Filtered for Item {
    fn field(name: &str) -> Option<Field<Self>> {
        Some(match name {
            "network-interface-id" => |item| vec![item.network_interface_id.clone()],
            "owner-id" => |item| vec![item.owner_id.clone()],
            "vpc-id" => |item| vec![item.vpc_id.clone()],
            "subnet-id" => |item| vec![item.subnet_id.clone()],
            "availability-zone" => |item| vec![item.availability_zone.clone()],
            "availability-zone-id" => |item| vec![item.availability_zone_id.clone()],
            "description" => |item| vec![item.description.clone()],
            "interface-type" => |item| vec![item.interface_type.to_owned()],
            "mac-address" => |item| vec![item.mac_address.clone()],
            "private-ip-address" | "addresses.private-ip-address" => {
                |item| vec![item.private_ip_address.clone()]
            }
            "private-dns-name" => |item| vec![item.private_dns_name.clone()],
            "addresses.primary" => |_| vec!["true".to_owned()],
            "requester-managed" | "operator.managed" => |_| vec!["false".to_owned()],
            "source-dest-check" => |item| vec![item.source_dest_check.to_string()],
            "status" => |item| vec![item.status.to_owned()],
            "group-id" => |item| item.group_set.iter().map(|group| group.group_id.clone()).collect(),
            "group-name" => |item| item.group_set.iter().map(|group| group.group_name.clone()).collect(),
            "attachment.attachment-id" => |item| vec![item.attachment.attachment_id.clone()],
            "attachment.instance-id" => |item| vec![item.attachment.instance_id.clone()],
            "attachment.instance-owner-id" => |item| vec![item.attachment.instance_owner_id.clone()],
            "attachment.device-index" => |item| vec![item.attachment.device_index.to_string()],
            "attachment.status" => |item| vec![item.attachment.status.to_owned()],
            "attachment.attach-time" => |item| vec![item.attachment.attach_time.clone()],
            "attachment.delete-on-termination" => {
                |item| vec![item.attachment.delete_on_termination.to_string()]
            }
            "association.allocation-id"
            | "association.association-id"
            | "association.ip-owner-id"
            | "association.public-ip"
            | "association.public-dns-name"
            | "addresses.association.owner-id"
            | "addresses.association.public-ip"
            | "ipv6-addresses.ipv6-address"
            | "operator.principal"
            | "requester-id" => |_| Vec::new(),
            _ => return None,
        })
    }

    fn tags(&self) -> Option<&BTreeMap<String, String>> {
        Some(&self.tags)
    }
}

impl Action for DescribeNetworkInterfaces {
    const NAME: &'static str = "DescribeNetworkInterfaces";
    type Response = Response;

    fn run(self, context: Context<'_>) -> Result<Response, ApiError> {
        let world = context.agent.state.read();
        let wanted = Selection::new(&self.filters)?;
        let interfaces = select::<NetworkInterface>(&world, context, &self.ids)?;
        let mut items: Vec<Item> =
            interfaces.iter().map(|interface| Item::new(&world, context, interface)).collect();
        items.retain(|item| wanted.accepts(item));
        let (network_interface_set, next_token) =
            page(items, |item| &item.network_interface_id, self.max_results, self.next_token.as_deref(), 5)?;
        Ok(Response { network_interface_set, next_token })
    }
}
