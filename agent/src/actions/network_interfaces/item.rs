//! A network interface in answers.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::actions::lookup::time;
use crate::actions::regions::zone_id;
use crate::ids::SecurityGroupId;
use crate::network::names::{private_dns_name, public_dns_name};
use crate::query::Context;
use crate::records::{
    InterfaceAttachment, InterfaceType, NetworkInterface, PrivateAddress, PublicAddress, SecurityGroup,
    Subnet, Vpc,
};
use crate::state::World;

/// `networkInterface`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct InterfaceItem {
    pub network_interface_id: String,
    pub owner_id: String,
    pub vpc_id: String,
    pub subnet_id: String,
    pub availability_zone: String,
    pub availability_zone_id: String,
    pub description: String,
    pub interface_type: &'static str,
    pub mac_address: String,
    pub private_dns_name: String,
    pub private_ip_address: String,
    pub private_ip_addresses_set: Vec<Address>,
    pub association: Option<Association>,
    pub requester_id: Option<String>,
    pub requester_managed: bool,
    pub source_dest_check: bool,
    pub status: &'static str,
    pub group_set: Vec<Group>,
    pub attachment: Option<Attachment>,
    #[serde(rename = "tagSet", serialize_with = "crate::actions::tags::set")]
    pub tags: BTreeMap<String, String>,
}

/// An entry of `privateIpAddressesSet`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Address {
    pub private_ip_address: String,
    pub private_dns_name: String,
    pub primary: bool,
    pub association: Option<Association>,
}

/// `association`: a public address.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Association {
    pub allocation_id: Option<String>,
    pub association_id: Option<String>,
    pub ip_owner_id: String,
    pub public_dns_name: String,
    pub public_ip: String,
}

impl Association {
    /// With the ids of an elastic address.
    pub fn new(world: &World, region: &str, interface: &NetworkInterface, public: &PublicAddress) -> Self {
        let elastic = public.elastic.as_ref();
        Self {
            allocation_id: elastic.map(|elastic| elastic.allocation.to_string()),
            association_id: elastic.map(|elastic| elastic.id.to_string()),
            ip_owner_id: elastic.map_or_else(|| "amazon".to_owned(), |_| interface.owner.clone()),
            public_dns_name: public_name(world, region, interface, public),
            public_ip: public.address.to_string(),
        }
    }

    /// As it is in an instance, without ids.
    pub fn of_instance(self) -> Self {
        Self { allocation_id: None, association_id: None, ..self }
    }
}

/// The name of a public address, or nothing if the VPC wants no names.
pub fn public_name(
    world: &World,
    region: &str,
    interface: &NetworkInterface,
    public: &PublicAddress,
) -> String {
    let wants_names = |vpc: &std::sync::Arc<Vpc>| vpc.enable_dns_hostnames && vpc.enable_dns_support;
    let has_names = world.get::<Vpc>(&interface.vpc).is_some_and(wants_names);
    if has_names { public_dns_name(public.address, region) } else { String::new() }
}

/// An entry of `groupSet`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Group {
    pub group_id: String,
    pub group_name: String,
}

/// Security groups with their names.
pub fn groups(world: &World, ids: &[SecurityGroupId]) -> Vec<Group> {
    let name = |id| world.get::<SecurityGroup>(id).map(|group| group.name.clone()).unwrap_or_default();
    ids.iter().map(|id| Group { group_id: id.to_string(), group_name: name(id) }).collect()
}

/// `attachment`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Attachment {
    pub attachment_id: String,
    pub instance_id: Option<String>,
    pub instance_owner_id: Option<String>,
    pub device_index: u32,
    pub network_card_index: u32,
    pub status: &'static str,
    pub attach_time: String,
    pub delete_on_termination: bool,
}

impl Attachment {
    /// The attachment of an interface of this account.
    pub fn new(attachment: &InterfaceAttachment, owner: &str) -> Self {
        Self {
            attachment_id: attachment.id.to_string(),
            instance_id: Some(attachment.instance.to_string()),
            instance_owner_id: Some(owner.to_owned()),
            device_index: attachment.device_index,
            network_card_index: 0,
            status: attachment.status.name(),
            attach_time: time(attachment.attached),
            delete_on_termination: attachment.delete_on_termination,
        }
    }

    /// As it is in an instance, which is not named once more.
    pub fn of_instance(self) -> Self {
        Self { instance_id: None, instance_owner_id: None, ..self }
    }
}

/// `privateIpAddressesSet`.
pub fn addresses(world: &World, region: &str, interface: &NetworkInterface) -> Vec<Address> {
    let association =
        |address: &PrivateAddress| Some(Association::new(world, region, interface, address.public.as_ref()?));
    let item = |(number, address): (usize, &PrivateAddress)| Address {
        private_ip_address: address.address.to_string(),
        private_dns_name: private_dns_name(address.address, region),
        primary: number == 0,
        association: association(address),
    };
    interface.addresses().enumerate().map(item).collect()
}

impl InterfaceItem {
    pub fn new(world: &World, context: Context<'_>, interface: &NetworkInterface) -> Self {
        let region = &context.agent.config.region;
        let zone = world.get::<Subnet>(&interface.subnet).map(|subnet| subnet.availability_zone.clone());
        let zone = zone.unwrap_or_default();
        let is_managed = interface.interface_type != InterfaceType::Interface;
        let primary = &interface.primary;
        Self {
            network_interface_id: interface.id.to_string(),
            owner_id: interface.owner.clone(),
            vpc_id: interface.vpc.to_string(),
            subnet_id: interface.subnet.to_string(),
            availability_zone_id: zone_id(region, &zone),
            availability_zone: zone,
            description: interface.description.clone(),
            interface_type: interface.interface_type.name(),
            mac_address: interface.mac.clone(),
            private_ip_addresses_set: addresses(world, region, interface),
            private_dns_name: private_dns_name(primary.address, region),
            private_ip_address: primary.address.to_string(),
            association: primary
                .public
                .as_ref()
                .map(|public| Association::new(world, region, interface, public)),
            requester_id: is_managed.then(|| interface.owner.clone()),
            requester_managed: is_managed,
            source_dest_check: interface.source_dest_check,
            status: interface.status(),
            group_set: groups(world, &interface.groups),
            attachment: interface
                .attachment
                .as_ref()
                .map(|attachment| Attachment::new(attachment, &interface.owner)),
            tags: world.tags(&interface.id).cloned().unwrap_or_default(),
        }
    }
}
