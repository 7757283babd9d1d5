//! A NAT gateway in answers.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::actions::lookup::time;
use crate::records::{NatGateway, NatGatewayState};
use crate::state::World;

/// `natGateway`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct GatewayItem {
    pub nat_gateway_id: String,
    pub vpc_id: String,
    pub subnet_id: String,
    pub state: &'static str,
    pub connectivity_type: &'static str,
    pub create_time: String,
    pub delete_time: Option<String>,
    pub nat_gateway_address_set: Vec<Address>,
    #[serde(rename = "tagSet", serialize_with = "crate::actions::tags::set")]
    pub tags: BTreeMap<String, String>,
}

/// `natGatewayAddress`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Address {
    pub allocation_id: Option<String>,
    pub association_id: Option<String>,
    pub network_interface_id: String,
    pub private_ip: String,
    pub public_ip: Option<String>,
    pub is_primary: bool,
    pub status: &'static str,
}

impl GatewayItem {
    pub fn new(world: &World, gateway: &NatGateway) -> Self {
        let (state, delete_time) = match gateway.state {
            NatGatewayState::Available => ("available", None),
            NatGatewayState::Deleted { at } => ("deleted", Some(time(at))),
        };
        let address = Address {
            allocation_id: gateway.allocation.as_ref().map(ToString::to_string),
            association_id: gateway.association.as_ref().map(ToString::to_string),
            network_interface_id: gateway.network_interface.to_string(),
            private_ip: gateway.private_address.to_string(),
            public_ip: gateway.public_address.map(|address| address.to_string()),
            is_primary: true,
            status: "succeeded",
        };
        Self {
            nat_gateway_id: gateway.id.to_string(),
            vpc_id: gateway.vpc.to_string(),
            subnet_id: gateway.subnet.to_string(),
            state,
            connectivity_type: gateway.connectivity.name(),
            create_time: time(gateway.created),
            delete_time,
            nat_gateway_address_set: vec![address],
            tags: world.tags(&gateway.id).cloned().unwrap_or_default(),
        }
    }
}
