//! What a RunInstances request can say.

use serde::Deserialize;
use serde::de::IgnoredAny;

use crate::actions::instance_profiles::Specification;
use crate::actions::instances::metadata;
use crate::actions::network_interfaces::new::PrivateIpAddress;
use crate::query::tags::TagSpecification;

/// Launches instances.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct RunInstances {
    pub image_id: Option<String>,
    pub min_count: Option<i64>,
    pub max_count: Option<i64>,
    pub instance_type: Option<String>,
    pub key_name: Option<String>,
    #[serde(default, rename = "SecurityGroup")]
    pub security_groups: Vec<String>,
    #[serde(default, rename = "SecurityGroupId")]
    pub security_group_ids: Vec<String>,
    pub subnet_id: Option<String>,
    #[serde(default)]
    pub placement: Placement,
    pub private_ip_address: Option<String>,
    #[serde(default, rename = "NetworkInterface")]
    pub network_interfaces: Vec<NetworkInterface>,
    pub user_data: Option<String>,
    #[serde(default, rename = "BlockDeviceMapping")]
    pub block_devices: Vec<BlockDeviceMapping>,
    #[serde(default, rename = "TagSpecification")]
    pub tags: Vec<TagSpecification>,
    pub client_token: Option<String>,
    #[serde(default)]
    pub disable_api_termination: bool,
    #[serde(default)]
    pub disable_api_stop: bool,
    pub instance_initiated_shutdown_behavior: Option<String>,
    #[serde(default)]
    pub ebs_optimized: bool,
    #[serde(default)]
    pub monitoring: Monitoring,
    #[serde(default)]
    pub metadata_options: metadata::Wanted,
    pub credit_specification: Option<CreditSpecification>,
    pub cpu_options: Option<CpuOptions>,
    #[serde(default)]
    pub private_dns_name_options: PrivateDnsNameOptions,
    #[serde(default)]
    pub enclave_options: Switch,
    #[serde(default)]
    pub hibernation_options: HibernationOptions,
    #[serde(default)]
    pub capacity_reservation_specification: CapacityReservationSpecification,
    #[serde(default)]
    pub maintenance_options: MaintenanceOptions,
    #[serde(default)]
    pub network_performance_options: NetworkPerformanceOptions,
    #[serde(default)]
    pub ipv6_address_count: i64,
    #[serde(default)]
    pub enable_primary_ipv6: bool,
    #[serde(default, rename = "Ipv6Address")]
    pub ipv6_addresses: Vec<IgnoredAny>,
    pub kernel_id: Option<String>,
    pub ramdisk_id: Option<String>,
    pub launch_template: Option<IgnoredAny>,
    pub instance_market_options: Option<IgnoredAny>,
    pub iam_instance_profile: Option<Specification>,
    #[serde(default, rename = "ElasticGpuSpecification")]
    pub elastic_gpus: Vec<IgnoredAny>,
    #[serde(default, rename = "ElasticInferenceAccelerator")]
    pub inference_accelerators: Vec<IgnoredAny>,
    #[serde(default, rename = "LicenseSpecification")]
    pub licenses: Vec<IgnoredAny>,
    #[serde(default, rename = "SecondaryInterface")]
    pub secondary_interfaces: Vec<IgnoredAny>,
    pub operator: Option<IgnoredAny>,
    /// Reserved by EC2.
    #[serde(rename = "AdditionalInfo")]
    pub _additional_info: Option<IgnoredAny>,
}

/// `Placement`.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct Placement {
    pub availability_zone: Option<String>,
    pub availability_zone_id: Option<String>,
    pub tenancy: Option<String>,
    pub affinity: Option<String>,
    pub group_name: Option<String>,
    pub group_id: Option<String>,
    pub partition_number: Option<i64>,
    pub host_id: Option<String>,
    pub host_resource_group_arn: Option<String>,
    pub spread_domain: Option<String>,
}

/// `NetworkInterface.N`.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct NetworkInterface {
    pub device_index: Option<i64>,
    pub network_interface_id: Option<String>,
    pub subnet_id: Option<String>,
    #[serde(default, rename = "SecurityGroupId")]
    pub security_group_ids: Vec<String>,
    pub private_ip_address: Option<String>,
    #[serde(default)]
    pub private_ip_addresses: Vec<PrivateIpAddress>,
    #[serde(default)]
    pub secondary_private_ip_address_count: i64,
    pub associate_public_ip_address: Option<bool>,
    pub delete_on_termination: Option<bool>,
    pub description: Option<String>,
    pub interface_type: Option<String>,
    #[serde(default)]
    pub network_card_index: i64,
    #[serde(default)]
    pub ipv6_address_count: i64,
    #[serde(default)]
    pub ipv6_addresses: Vec<IgnoredAny>,
    #[serde(default)]
    pub ipv4_prefix_count: i64,
    #[serde(default, rename = "Ipv4Prefix")]
    pub ipv4_prefixes: Vec<IgnoredAny>,
    #[serde(default)]
    pub ipv6_prefix_count: i64,
    #[serde(default, rename = "Ipv6Prefix")]
    pub ipv6_prefixes: Vec<IgnoredAny>,
    #[serde(default)]
    pub primary_ipv6: bool,
    #[serde(default)]
    pub associate_carrier_ip_address: bool,
    pub ena_srd_specification: Option<IgnoredAny>,
    pub ena_queue_count: Option<i64>,
    pub connection_tracking_specification: Option<IgnoredAny>,
}

/// `BlockDeviceMapping.N`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct BlockDeviceMapping {
    pub device_name: String,
    pub virtual_name: Option<String>,
    pub no_device: Option<String>,
    pub ebs: Option<Ebs>,
}

/// `BlockDeviceMapping.N.Ebs`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct Ebs {
    pub snapshot_id: Option<String>,
    pub volume_size: Option<u32>,
    pub volume_type: Option<String>,
    pub iops: Option<u32>,
    pub throughput: Option<u32>,
    pub delete_on_termination: Option<bool>,
    pub encrypted: Option<bool>,
    pub kms_key_id: Option<String>,
    pub outpost_arn: Option<String>,
    pub availability_zone: Option<String>,
    pub availability_zone_id: Option<String>,
    /// Volumes are there at once, at any rate.
    #[serde(rename = "VolumeInitializationRate")]
    pub _volume_initialization_rate: Option<i64>,
    #[serde(default)]
    pub ebs_card_index: i64,
}

/// `Monitoring`.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct Monitoring {
    #[serde(default)]
    pub enabled: bool,
    #[serde(default, rename = "MetricCategoryId")]
    pub metric_categories: Vec<IgnoredAny>,
}

/// Something that is on or off.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct Switch {
    #[serde(default)]
    pub enabled: bool,
}

/// `CreditSpecification`.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct CreditSpecification {
    pub cpu_credits: String,
}

/// `CpuOptions`.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct CpuOptions {
    pub core_count: Option<u32>,
    pub threads_per_core: Option<u32>,
    pub amd_sev_snp: Option<String>,
    pub nested_virtualization: Option<String>,
}

/// `PrivateDnsNameOptions`.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct PrivateDnsNameOptions {
    pub hostname_type: Option<String>,
    #[serde(default)]
    pub enable_resource_name_dns_a_record: bool,
    #[serde(default, rename = "EnableResourceNameDnsAAAARecord")]
    pub enable_resource_name_dns_aaaa_record: bool,
}

/// `HibernationOptions`.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct HibernationOptions {
    #[serde(default)]
    pub configured: bool,
}

/// `CapacityReservationSpecification`.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct CapacityReservationSpecification {
    pub capacity_reservation_preference: Option<String>,
    pub capacity_reservation_target: Option<IgnoredAny>,
}

/// `MaintenanceOptions`.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct MaintenanceOptions {
    pub auto_recovery: Option<String>,
}

/// `NetworkPerformanceOptions`.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct NetworkPerformanceOptions {
    pub bandwidth_weighting: Option<String>,
}
