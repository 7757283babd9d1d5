//! A route table in answers.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::network::routes::is_blackhole;
use crate::records::{NetworkInterface, Route, RouteOrigin, RouteTable, RouteTarget};
use crate::state::World;

/// `routeTable`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct RouteTableItem {
    pub route_table_id: String,
    pub owner_id: String,
    pub vpc_id: String,
    pub route_set: Vec<RouteItem>,
    pub association_set: Vec<AssociationItem>,
    pub propagating_vgw_set: Vec<Nothing>,
    #[serde(rename = "tagSet", serialize_with = "crate::actions::tags::set")]
    pub tags: BTreeMap<String, String>,
}

/// There are no VPN gateways.
#[derive(Debug, Serialize)]
pub enum Nothing {}

/// `route`.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RouteItem {
    pub destination_cidr_block: String,
    pub gateway_id: Option<String>,
    pub nat_gateway_id: Option<String>,
    pub network_interface_id: Option<String>,
    pub instance_id: Option<String>,
    pub instance_owner_id: Option<String>,
    pub state: &'static str,
    pub origin: &'static str,
}

/// `association`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct AssociationItem {
    pub route_table_association_id: String,
    pub route_table_id: String,
    pub subnet_id: Option<String>,
    pub main: bool,
    pub association_state: AssociationState,
}

/// How far an association is. Nothing has to be waited for.
#[derive(Debug, Serialize)]
pub struct AssociationState {
    state: &'static str,
}

impl AssociationState {
    pub const ASSOCIATED: Self = Self { state: "associated" };
}

impl RouteItem {
    fn new(world: &World, table: &RouteTable, route: &Route) -> Self {
        let mut item = Self {
            destination_cidr_block: route.destination.to_string(),
            state: if is_blackhole(world, &table.vpc, route) { "blackhole" } else { "active" },
            origin: match route.origin {
                RouteOrigin::CreateRouteTable => "CreateRouteTable",
                RouteOrigin::CreateRoute => "CreateRoute",
            },
            ..Self::default()
        };
        match &route.target {
            RouteTarget::Local => item.gateway_id = Some("local".to_owned()),
            RouteTarget::InternetGateway(id) => item.gateway_id = Some(id.to_string()),
            RouteTarget::NatGateway(id) => item.nat_gateway_id = Some(id.to_string()),
            RouteTarget::NetworkInterface(id) => {
                item.network_interface_id = Some(id.to_string());
                if let Some(interface) = world.get::<NetworkInterface>(id)
                    && let Some(instance) = interface.instance()
                {
                    item.instance_id = Some(instance.to_string());
                    item.instance_owner_id = Some(interface.owner.clone());
                }
            }
        }
        item
    }
}

impl RouteTableItem {
    pub fn new(world: &World, table: &RouteTable) -> Self {
        let routes = table.routes.iter().map(|route| RouteItem::new(world, table, route));
        let associations = table.associations.iter().map(|association| AssociationItem {
            route_table_association_id: association.id.to_string(),
            route_table_id: table.id.to_string(),
            subnet_id: association.subnet.as_ref().map(ToString::to_string),
            main: association.subnet.is_none(),
            association_state: AssociationState::ASSOCIATED,
        });
        Self {
            route_table_id: table.id.to_string(),
            owner_id: table.owner.clone(),
            vpc_id: table.vpc.to_string(),
            route_set: routes.collect(),
            association_set: associations.collect(),
            propagating_vgw_set: Vec::new(),
            tags: world.tags(&table.id).cloned().unwrap_or_default(),
        }
    }
}
