//! EC2's `Instance` element: how an instance looks in the answers of RunInstances and DescribeInstances.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::Serialize;

use crate::actions::instance_profiles::ProfileItem;
use crate::actions::lookup::time;
use crate::actions::network_interfaces::item::{Address, Association, Attachment, addresses, public_name};
pub use crate::actions::network_interfaces::item::{Group, groups};
use crate::actions::regions::zone_id;
use crate::ids::InstanceId;
use crate::network::names::private_dns_name;
use crate::query::Context;
use crate::query::tags::{Tag, tag_set};
use crate::records::{
    AttachmentStatus, BlockDevice, Image, Instance, InstanceState, MetadataOptions, NetworkInterface, Volume,
};
use crate::state::World;

/// A reservation: what one RunInstances has launched.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Reservation {
    pub reservation_id: String,
    pub owner_id: String,
    /// Only instances outside of VPCs had groups here.
    pub group_set: Vec<Group>,
    pub instances_set: Vec<Item>,
}

/// An instance.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Item {
    instance_id: String,
    image_id: String,
    instance_state: State,
    private_dns_name: String,
    dns_name: String,
    reason: String,
    key_name: Option<String>,
    ami_launch_index: u32,
    product_codes: Vec<Nothing>,
    instance_type: String,
    launch_time: String,
    placement: Placement,
    monitoring: Monitoring,
    subnet_id: Option<String>,
    vpc_id: Option<String>,
    private_ip_address: Option<String>,
    ip_address: Option<String>,
    source_dest_check: Option<bool>,
    group_set: Vec<Group>,
    state_reason: Option<StateReason>,
    architecture: String,
    root_device_type: &'static str,
    root_device_name: String,
    block_device_mapping: Vec<Mapping>,
    virtualization_type: &'static str,
    client_token: String,
    tag_set: Vec<Tag>,
    hypervisor: &'static str,
    iam_instance_profile: Option<ProfileItem>,
    network_interface_set: Vec<Interface>,
    ebs_optimized: bool,
    ena_support: bool,
    cpu_options: CpuOptions,
    capacity_reservation_specification: CapacityReservationSpecification,
    hibernation_options: HibernationOptions,
    metadata_options: MetadataItem,
    enclave_options: EnclaveOptions,
    platform_details: &'static str,
    usage_operation: &'static str,
    usage_operation_update_time: String,
    private_dns_name_options: Option<DnsOptions>,
    maintenance_options: MaintenanceOptions,
    current_instance_boot_mode: &'static str,
    network_performance_options: NetworkPerformanceOptions,
    operator: Operator,
}

/// What there is never any of.
#[derive(Debug, Serialize)]
pub enum Nothing {}

/// A state, as a number and a name.
#[derive(Debug, Serialize)]
pub struct State {
    code: u32,
    name: &'static str,
}

impl From<InstanceState> for State {
    fn from(state: InstanceState) -> Self {
        Self { code: state.code(), name: state.name() }
    }
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Placement {
    availability_zone: String,
    availability_zone_id: String,
    group_name: &'static str,
    tenancy: &'static str,
}

#[derive(Debug, Serialize)]
struct Monitoring {
    state: &'static str,
}

#[derive(Debug, Serialize)]
struct StateReason {
    code: String,
    message: String,
}

/// An entry of `blockDeviceMapping`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Mapping {
    device_name: String,
    ebs: Ebs,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Ebs {
    volume_id: String,
    status: &'static str,
    attach_time: String,
    delete_on_termination: bool,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Interface {
    network_interface_id: String,
    subnet_id: String,
    vpc_id: String,
    description: String,
    owner_id: String,
    status: &'static str,
    mac_address: String,
    private_ip_address: String,
    private_dns_name: String,
    source_dest_check: bool,
    group_set: Vec<Group>,
    attachment: Option<Attachment>,
    association: Option<Association>,
    private_ip_addresses_set: Vec<Address>,
    ipv6_addresses_set: Vec<Nothing>,
    interface_type: &'static str,
    operator: Operator,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct CpuOptions {
    core_count: u32,
    threads_per_core: u32,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct CapacityReservationSpecification {
    capacity_reservation_preference: &'static str,
}

#[derive(Debug, Serialize)]
struct HibernationOptions {
    configured: bool,
}

/// How the metadata service answers.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct MetadataItem {
    state: &'static str,
    http_tokens: String,
    http_put_response_hop_limit: u32,
    http_endpoint: String,
    http_protocol_ipv6: &'static str,
    instance_metadata_tags: String,
}

impl From<&MetadataOptions> for MetadataItem {
    fn from(options: &MetadataOptions) -> Self {
        Self {
            state: "applied",
            http_tokens: options.http_tokens.clone(),
            http_put_response_hop_limit: options.http_put_response_hop_limit,
            http_endpoint: options.http_endpoint.clone(),
            http_protocol_ipv6: "disabled",
            instance_metadata_tags: options.instance_metadata_tags.clone(),
        }
    }
}

#[derive(Debug, Serialize)]
struct EnclaveOptions {
    enabled: bool,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct DnsOptions {
    hostname_type: &'static str,
    enable_resource_name_dns_a_record: bool,
    #[serde(rename = "enableResourceNameDnsAAAARecord")]
    enable_resource_name_dns_aaaa_record: bool,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct MaintenanceOptions {
    auto_recovery: &'static str,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct NetworkPerformanceOptions {
    bandwidth_weighting: &'static str,
}

#[derive(Debug, Serialize)]
struct Operator {
    managed: bool,
}

/// A reservation with these instances of it.
pub fn reservation<'w>(
    world: &'w World,
    context: Context<'_>,
    interfaces: &Interfaces<'_>,
    id: String,
    instances: impl Iterator<Item = &'w Instance>,
) -> Reservation {
    let instances_set = instances.map(|instance| item(world, context, interfaces, instance)).collect();
    Reservation {
        reservation_id: id,
        owner_id: context.caller.account.clone(),
        group_set: Vec::new(),
        instances_set,
    }
}

/// An instance.
fn item(world: &World, context: Context<'_>, interfaces: &Interfaces<'_>, instance: &Instance) -> Item {
    let region = &context.agent.config.region;
    // What is gone has left its network and its volumes.
    let there = instance.lifecycle.state != InstanceState::Terminated;
    let interfaces = interfaces.of(instance);
    let primary = interfaces.iter().copied().find(|interface| interface.id == instance.network_interface);
    let address = primary.map(|interface| interface.primary.address);
    let public = primary.and_then(|interface| Some((interface, interface.primary.public.as_ref()?)));
    let kind = context.agent.catalogue.get(&instance.instance_type);
    let threads = kind.map_or(1, |kind| kind.processor.threads_per_core);
    let vcpus = kind.map_or(1, |kind| kind.vcpus);
    let lifecycle = &instance.lifecycle;
    Item {
        instance_id: instance.id.to_string(),
        image_id: instance.image.to_string(),
        instance_state: lifecycle.state.into(),
        private_dns_name: address.map(|address| private_dns_name(address, region)).unwrap_or_default(),
        dns_name: public
            .map(|(interface, public)| public_name(world, region, interface, public))
            .unwrap_or_default(),
        reason: lifecycle.transition_reason.clone(),
        key_name: instance.key_name.clone(),
        ami_launch_index: instance.launch_index,
        product_codes: Vec::new(),
        instance_type: instance.instance_type.clone(),
        launch_time: time(instance.launch_time),
        placement: Placement {
            availability_zone: instance.availability_zone.clone(),
            availability_zone_id: zone_id(region, &instance.availability_zone),
            group_name: "",
            tenancy: "default",
        },
        monitoring: Monitoring { state: enabled(instance.monitoring) },
        subnet_id: there.then(|| instance.subnet.to_string()),
        vpc_id: there.then(|| instance.vpc.to_string()),
        private_ip_address: address.map(|address| address.to_string()),
        ip_address: public.map(|(_, public)| public.address.to_string()),
        source_dest_check: primary.map(|interface| interface.source_dest_check),
        group_set: primary.map(|interface| groups(world, &interface.groups)).unwrap_or_default(),
        state_reason: lifecycle
            .state_reason
            .as_ref()
            .map(|reason| StateReason { code: reason.code.clone(), message: reason.message.clone() }),
        architecture: architecture(world, instance),
        root_device_type: instance.root_device_type().name(),
        root_device_name: instance.root_device_name.clone(),
        block_device_mapping: mappings(world, instance),
        virtualization_type: "hvm",
        client_token: instance.client_token.clone().unwrap_or_default(),
        tag_set: tag_set(world.tags(&instance.id)),
        // For Nitro, too.
        hypervisor: "xen",
        iam_instance_profile: instance.instance_profile.as_ref().filter(|_| there).map(ProfileItem::from),
        network_interface_set: interfaces
            .iter()
            .map(|interface| interface_item(world, region, interface))
            .collect(),
        ebs_optimized: instance.ebs_optimized,
        ena_support: true,
        cpu_options: CpuOptions { core_count: (vcpus / threads).max(1), threads_per_core: threads },
        capacity_reservation_specification: CapacityReservationSpecification {
            capacity_reservation_preference: "open",
        },
        hibernation_options: HibernationOptions { configured: false },
        metadata_options: (&instance.metadata_options).into(),
        enclave_options: EnclaveOptions { enabled: false },
        platform_details: "Linux/UNIX",
        usage_operation: "RunInstances",
        usage_operation_update_time: time(launched(world, instance)),
        private_dns_name_options: there.then_some(DnsOptions {
            hostname_type: "ip-name",
            enable_resource_name_dns_a_record: false,
            enable_resource_name_dns_aaaa_record: false,
        }),
        maintenance_options: MaintenanceOptions { auto_recovery: "default" },
        current_instance_boot_mode: "legacy-bios",
        network_performance_options: NetworkPerformanceOptions { bandwidth_weighting: "default" },
        operator: Operator { managed: false },
    }
}

/// An interface of an instance.
fn interface_item(world: &World, region: &str, interface: &NetworkInterface) -> Interface {
    let primary = &interface.primary;
    let association = primary.public.as_ref();
    let association =
        association.map(|public| Association::new(world, region, interface, public).of_instance());
    let mut addresses = addresses(world, region, interface);
    for address in &mut addresses {
        address.association = address.association.take().map(Association::of_instance);
    }
    Interface {
        network_interface_id: interface.id.to_string(),
        subnet_id: interface.subnet.to_string(),
        vpc_id: interface.vpc.to_string(),
        description: interface.description.clone(),
        owner_id: interface.owner.clone(),
        status: interface.status(),
        mac_address: interface.mac.clone(),
        private_ip_address: primary.address.to_string(),
        private_dns_name: private_dns_name(primary.address, region),
        source_dest_check: interface.source_dest_check,
        group_set: groups(world, &interface.groups),
        attachment: interface
            .attachment
            .as_ref()
            .map(|attachment| Attachment::new(attachment, &interface.owner).of_instance()),
        association,
        private_ip_addresses_set: addresses,
        ipv6_addresses_set: Vec::new(),
        interface_type: interface.interface_type.name(),
        operator: Operator { managed: false },
    }
}

/// Who has which interfaces: found in one pass over all of them, however many instances an answer is about.
pub struct Interfaces<'w>(BTreeMap<&'w InstanceId, Vec<&'w NetworkInterface>>);

impl<'w> Interfaces<'w> {
    /// Those of all instances.
    pub fn new(world: &'w World) -> Self {
        let mut all: BTreeMap<&InstanceId, Vec<&NetworkInterface>> = BTreeMap::new();
        for interface in world.all::<NetworkInterface>() {
            if let Some(instance) = interface.instance() {
                all.entry(instance).or_default().push(interface);
            }
        }
        let index =
            |interface: &NetworkInterface| interface.attachment.as_ref().map(|found| found.device_index);
        for interfaces in all.values_mut() {
            interfaces.sort_by_key(|interface| index(interface));
        }
        Self(all)
    }

    /// Those of an instance, in the order of their device indexes. One that is terminated has none.
    pub fn of(&self, instance: &Instance) -> &[&'w NetworkInterface] {
        let there = instance.lifecycle.state != InstanceState::Terminated;
        self.0.get(&instance.id).filter(|_| there).map_or(&[], Vec::as_slice)
    }
}

/// `blockDeviceMapping`.
pub fn mappings(world: &World, instance: &Instance) -> Vec<Mapping> {
    attached_devices(instance)
        .map(|device| {
            let (status, attached) = attachment(world, instance, device);
            Mapping {
                device_name: device.device_name.clone(),
                ebs: Ebs {
                    volume_id: device.volume.to_string(),
                    status,
                    attach_time: time(attached),
                    delete_on_termination: device.delete_on_termination,
                },
            }
        })
        .collect()
}

/// The volumes of an instance. One that is terminated has none.
pub fn attached_devices(instance: &Instance) -> impl Iterator<Item = &BlockDevice> {
    let there = instance.lifecycle.state != InstanceState::Terminated;
    instance.block_devices.iter().filter(move |_| there)
}

/// How far a volume's attachment is, and since when it is there.
pub fn attachment(world: &World, instance: &Instance, device: &BlockDevice) -> (&'static str, Timestamp) {
    let volume = world.get::<Volume>(&device.volume);
    match volume.and_then(|volume| volume.attachment.as_ref()) {
        Some(attachment) => (attachment.status.name(), attachment.attached),
        None => (AttachmentStatus::Attached.name(), instance.launch_time),
    }
}

/// When it was launched, and not just started.
pub fn launched(world: &World, instance: &Instance) -> Timestamp {
    let primary = world.get::<NetworkInterface>(&instance.network_interface);
    let attachment = primary.and_then(|interface| interface.attachment.as_ref());
    attachment.map_or(instance.launch_time, |attachment| attachment.attached)
}

/// What its image is for. There is one architecture.
pub fn architecture(world: &World, instance: &Instance) -> String {
    world
        .get::<Image>(&instance.image)
        .map_or_else(|| "x86_64".to_owned(), |image| image.architecture.clone())
}

/// EC2's word for what is on or off.
pub fn enabled(on: bool) -> &'static str {
    if on { "enabled" } else { "disabled" }
}
