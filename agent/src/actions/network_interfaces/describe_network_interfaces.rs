//! DescribeNetworkInterfaces.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::item::{Address, Association, Attachment, InterfaceItem};
use crate::actions::lookup::select;
use crate::query::filters::{Field, Filter, Filtered, Selection};
use crate::query::pages::page;
use crate::query::{Action, ApiError, Context};
use crate::records::NetworkInterface;

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
    network_interface_set: Vec<InterfaceItem>,
    next_token: Option<String>,
}

/// A value of the attachment, if there is one.
fn attached(item: &InterfaceItem, value: impl Fn(&Attachment) -> Option<String>) -> Vec<String> {
    item.attachment.as_ref().and_then(value).into_iter().collect()
}

/// A value of each address.
fn addresses(item: &InterfaceItem, value: impl Fn(&Address) -> String) -> Vec<String> {
    item.private_ip_addresses_set.iter().map(value).collect()
}

/// A value of the primary address's association, if there is one.
fn associated(item: &InterfaceItem, value: impl Fn(&Association) -> Option<String>) -> Vec<String> {
    item.association.as_ref().and_then(value).into_iter().collect()
}

/// A value of each address's association.
fn all_associated(item: &InterfaceItem, value: impl Fn(&Association) -> String) -> Vec<String> {
    let associations = item.private_ip_addresses_set.iter().filter_map(|one| one.association.as_ref());
    associations.map(value).collect()
}

impl Filtered for InterfaceItem {
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
            "private-ip-address" => |item| vec![item.private_ip_address.clone()],
            "private-dns-name" => |item| vec![item.private_dns_name.clone()],
            "addresses.private-ip-address" => {
                |item| addresses(item, |address| address.private_ip_address.clone())
            }
            "addresses.primary" => |item| addresses(item, |address| address.primary.to_string()),
            "addresses.association.owner-id" => |item| all_associated(item, |one| one.ip_owner_id.clone()),
            "addresses.association.public-ip" => |item| all_associated(item, |one| one.public_ip.clone()),
            "association.allocation-id" => |item| associated(item, |one| one.allocation_id.clone()),
            "association.association-id" => |item| associated(item, |one| one.association_id.clone()),
            "association.ip-owner-id" => |item| associated(item, |one| Some(one.ip_owner_id.clone())),
            "association.public-ip" => |item| associated(item, |one| Some(one.public_ip.clone())),
            "association.public-dns-name" => |item| associated(item, |one| Some(one.public_dns_name.clone())),
            "requester-id" => |item| item.requester_id.iter().cloned().collect(),
            "requester-managed" => |item| vec![item.requester_managed.to_string()],
            "operator.managed" => |_| vec!["false".to_owned()],
            "source-dest-check" => |item| vec![item.source_dest_check.to_string()],
            "status" => |item| vec![item.status.to_owned()],
            "group-id" => |item| item.group_set.iter().map(|group| group.group_id.clone()).collect(),
            "group-name" => |item| item.group_set.iter().map(|group| group.group_name.clone()).collect(),
            "attachment.attachment-id" => |item| attached(item, |one| Some(one.attachment_id.clone())),
            "attachment.instance-id" => |item| attached(item, |one| one.instance_id.clone()),
            "attachment.instance-owner-id" => |item| attached(item, |one| one.instance_owner_id.clone()),
            "attachment.device-index" => |item| attached(item, |one| Some(one.device_index.to_string())),
            "attachment.status" => |item| attached(item, |one| Some(one.status.to_owned())),
            "attachment.attach-time" => |item| attached(item, |one| Some(one.attach_time.clone())),
            "attachment.delete-on-termination" => {
                |item| attached(item, |one| Some(one.delete_on_termination.to_string()))
            }
            "ipv6-addresses.ipv6-address" | "operator.principal" => |_| Vec::new(),
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
        let mut items: Vec<InterfaceItem> =
            interfaces.iter().map(|interface| InterfaceItem::new(&world, context, interface)).collect();
        items.retain(|item| wanted.accepts(item));
        let (network_interface_set, next_token) =
            page(items, |item| &item.network_interface_id, self.max_results, self.next_token.as_deref(), 5)?;
        Ok(Response { network_interface_set, next_token })
    }
}
