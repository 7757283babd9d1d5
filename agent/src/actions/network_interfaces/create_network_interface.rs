//! CreateNetworkInterface.

use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};

use super::item::InterfaceItem;
use super::new::{
    AddressPlan, AddressWish, Addresses, PrivateIpAddress, groups_or_default, interface, no_address,
    used_macs,
};
use crate::actions::lookup::{find, find_own};
use crate::actions::refused::{NO_IPV6, NO_PREFIXES, refuse};
use crate::ids::SecurityGroupId;
use crate::network::subnets::taken;
use crate::query::idempotency::{recall, remember};
use crate::query::tags::{TagSpecification, specified_for};
use crate::query::{Action, ApiError, Context};
use crate::records::{NetworkInterface, Subnet};
use crate::state::World;

/// Makes an interface that no instance has yet.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct CreateNetworkInterface {
    subnet_id: String,
    #[serde(default)]
    description: String,
    private_ip_address: Option<String>,
    #[serde(default)]
    private_ip_addresses: Vec<PrivateIpAddress>,
    #[serde(default)]
    secondary_private_ip_address_count: i64,
    #[serde(default, rename = "SecurityGroupId")]
    groups: Vec<String>,
    interface_type: Option<String>,
    client_token: Option<String>,
    #[serde(default, rename = "TagSpecification")]
    tags: Vec<TagSpecification>,
    #[serde(default)]
    ipv4_prefix_count: i64,
    #[serde(default, rename = "Ipv4Prefix")]
    ipv4_prefixes: Vec<IgnoredAny>,
    #[serde(default)]
    ipv6_prefix_count: i64,
    #[serde(default, rename = "Ipv6Prefix")]
    ipv6_prefixes: Vec<IgnoredAny>,
    #[serde(default)]
    ipv6_address_count: i64,
    #[serde(default)]
    ipv6_addresses: Vec<IgnoredAny>,
    #[serde(default)]
    enable_primary_ipv6: bool,
    connection_tracking_specification: Option<IgnoredAny>,
    operator: Option<IgnoredAny>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Response {
    network_interface: InterfaceItem,
    client_token: Option<String>,
}

impl CreateNetworkInterface {
    fn plan(
        &self,
        world: &World,
        context: Context<'_>,
    ) -> Result<(Subnet, Addresses, Vec<SecurityGroupId>), ApiError> {
        let ipv6 = self.ipv6_address_count != 0
            || !self.ipv6_addresses.is_empty()
            || self.ipv6_prefix_count != 0
            || !self.ipv6_prefixes.is_empty()
            || self.enable_primary_ipv6;
        let special = self.interface_type.as_deref().is_some_and(|kind| !matches!(kind, "" | "interface"));
        refuse(&[
            (ipv6, NO_IPV6),
            (self.ipv4_prefix_count != 0 || !self.ipv4_prefixes.is_empty(), NO_PREFIXES),
            (special, "Network interfaces of this host are plain ones: leave InterfaceType out."),
            (
                self.connection_tracking_specification.is_some(),
                "The timeouts of connections cannot be chosen: leave ConnectionTrackingSpecification out.",
            ),
            (self.operator.is_some(), "There are no managed interfaces: leave Operator out."),
        ])?;
        let subnet = find_own::<Subnet>(world, context, &self.subnet_id)?;
        let groups = groups_or_default(world, context, &self.groups, subnet)?;
        let mut taken = taken(world, &subnet.id);
        let wish = AddressWish {
            primary: self.private_ip_address.as_deref(),
            list: &self.private_ip_addresses,
            secondary_count: self.secondary_private_ip_address_count,
        };
        let addresses = AddressPlan::new(subnet, &taken, wish)?.take(subnet, &mut taken);
        let addresses = addresses.ok_or_else(|| no_address(subnet))?;
        Ok((Subnet::clone(subnet), addresses, groups))
    }

    fn answer(&self, world: &World, context: Context<'_>, found: &NetworkInterface) -> Response {
        Response {
            network_interface: InterfaceItem::new(world, context, found),
            client_token: self.client_token.clone(),
        }
    }
}

impl Action for CreateNetworkInterface {
    const NAME: &'static str = "CreateNetworkInterface";
    type Response = Response;

    fn check(&self, context: Context<'_>) -> Result<(), ApiError> {
        specified_for(&self.tags, "network-interface")?;
        let world = context.agent.state.read();
        match recall(&world, context, Self::NAME, self.client_token.as_deref())? {
            Some(_) => Ok(()),
            None => self.plan(&world, context).map(drop),
        }
    }

    fn run(self, context: Context<'_>) -> Result<Response, ApiError> {
        let tags = specified_for(&self.tags, "network-interface")?;
        let token = self.client_token.as_deref();
        context.agent.state.change(|draft| {
            if let Some(earlier) = recall(draft, context, Self::NAME, token)? {
                let found = find::<NetworkInterface>(draft, context, &earlier)?;
                return Ok(self.answer(draft, context, found));
            }
            let (subnet, addresses, groups) = self.plan(draft, context)?;
            let description = self.description.clone();
            let new = interface(&subnet, addresses, &mut used_macs(draft));
            let new = NetworkInterface { groups, description, ..new };
            remember(draft, context, Self::NAME, token, &new.id);
            draft.tag(&new.id, tags);
            draft.put(new.clone());
            Ok(self.answer(draft, context, &new))
        })
    }
}
