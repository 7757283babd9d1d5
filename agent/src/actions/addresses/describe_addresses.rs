//! DescribeAddresses and DescribeAddressesAttribute.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::meant;
use crate::actions::lookup::select;
use crate::network::public_addresses::association;
use crate::query::filters::{Field, Filter, Filtered, Selection};
use crate::query::{Action, ApiError, Context};
use crate::records::ElasticAddress;
use crate::state::World;

/// The caller's elastic addresses.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct DescribeAddresses {
    #[serde(default, rename = "Filter")]
    filters: Vec<Filter>,
    #[serde(default, rename = "AllocationId")]
    ids: Vec<String>,
    #[serde(default, rename = "PublicIp")]
    addresses: Vec<String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Response {
    addresses_set: Vec<AddressItem>,
}

/// `address`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct AddressItem {
    public_ip: String,
    allocation_id: String,
    domain: &'static str,
    public_ipv4_pool: &'static str,
    network_border_group: String,
    association_id: Option<String>,
    instance_id: Option<String>,
    network_interface_id: Option<String>,
    network_interface_owner_id: Option<String>,
    private_ip_address: Option<String>,
    #[serde(rename = "tagSet", serialize_with = "crate::actions::tags::set")]
    tags: BTreeMap<String, String>,
}

impl AddressItem {
    fn new(world: &World, context: Context<'_>, address: &ElasticAddress) -> Self {
        let found = association(world, &address.id);
        Self {
            public_ip: address.public_address.to_string(),
            allocation_id: address.id.to_string(),
            domain: "vpc",
            public_ipv4_pool: "amazon",
            network_border_group: context.agent.config.region.clone(),
            association_id: found.map(|(_, _, association)| association.id.to_string()),
            instance_id: found.and_then(|(interface, _, _)| Some(interface.instance()?.to_string())),
            network_interface_id: found.map(|(interface, _, _)| interface.id.to_string()),
            network_interface_owner_id: found.map(|(interface, _, _)| interface.owner.clone()),
            private_ip_address: found.map(|(_, private, _)| private.address.to_string()),
            tags: world.tags(&address.id).cloned().unwrap_or_default(),
        }
    }
}

impl Filtered for AddressItem {
    fn field(name: &str) -> Option<Field<Self>> {
        Some(match name {
            "allocation-id" => |address| vec![address.allocation_id.clone()],
            "association-id" => |address| address.association_id.iter().cloned().collect(),
            "domain" => |address| vec![address.domain.to_owned()],
            "instance-id" => |address| address.instance_id.iter().cloned().collect(),
            "network-border-group" => |address| vec![address.network_border_group.clone()],
            "network-interface-id" => |address| address.network_interface_id.iter().cloned().collect(),
            "network-interface-owner-id" => {
                |address| address.network_interface_owner_id.iter().cloned().collect()
            }
            "private-ip-address" => |address| address.private_ip_address.iter().cloned().collect(),
            "public-ip" => |address| vec![address.public_ip.clone()],
            _ => return None,
        })
    }

    fn tags(&self) -> Option<&BTreeMap<String, String>> {
        Some(&self.tags)
    }
}

impl Action for DescribeAddresses {
    const NAME: &'static str = "DescribeAddresses";
    type Response = Response;

    fn run(mut self, context: Context<'_>) -> Result<Response, ApiError> {
        let world = context.agent.state.read();
        let wanted = Selection::new(&self.filters)?;
        for address in &self.addresses {
            self.ids.push(meant(&world, context, None, Some(address))?.id.to_string());
        }
        let addresses = select::<ElasticAddress>(&world, context, &self.ids)?;
        let mut addresses_set: Vec<AddressItem> =
            addresses.iter().map(|address| AddressItem::new(&world, context, address)).collect();
        addresses_set.retain(|item| wanted.accepts(item));
        Ok(Response { addresses_set })
    }
}

/// The names that addresses were given for those who look them up, of which there are none.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct DescribeAddressesAttribute {
    #[serde(default, rename = "AllocationId")]
    ids: Vec<String>,
    attribute: Option<String>,
    #[serde(rename = "MaxResults")]
    _max_results: Option<i64>,
    #[serde(rename = "NextToken")]
    _next_token: Option<String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Attributes {
    address_set: Vec<Nothing>,
}

/// There are no names.
#[derive(Debug, Serialize)]
pub enum Nothing {}

impl Action for DescribeAddressesAttribute {
    const NAME: &'static str = "DescribeAddressesAttribute";
    type Response = Attributes;

    fn run(self, context: Context<'_>) -> Result<Attributes, ApiError> {
        select::<ElasticAddress>(&context.agent.state.read(), context, &self.ids)?;
        match self.attribute.as_deref() {
            None | Some("domain-name") => Ok(Attributes { address_set: Vec::new() }),
            Some(other) => Err(ApiError::invalid(other, "attribute", "Expecting domain-name.")),
        }
    }
}
