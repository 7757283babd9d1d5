//! DescribeInstanceTypes.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::attachments::MAX_ATTACHMENTS;
use crate::catalogue::{Disks, Ebs, InstanceType};
use crate::query::filters::{Field, Filter, Filtered, Selection};
use crate::query::pages::page;
use crate::query::{Action, ApiError, Context};

/// The most types of one page, and of one request.
const MAX: usize = 100;

/// What the types have, also those that are larger than the host.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct DescribeInstanceTypes {
    #[serde(default, rename = "InstanceType")]
    names: Vec<String>,
    #[serde(default, rename = "Filter")]
    filters: Vec<Filter>,
    max_results: Option<i64>,
    next_token: Option<String>,
    /// There are none.
    #[serde(default, rename = "IncludeUnsupportedInRegion")]
    _include_unsupported_in_region: bool,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Response {
    instance_type_set: Vec<Item>,
    next_token: Option<String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Item {
    instance_type: String,
    current_generation: bool,
    free_tier_eligible: bool,
    supported_usage_classes: Vec<&'static str>,
    supported_root_device_types: Vec<&'static str>,
    supported_virtualization_types: Vec<&'static str>,
    bare_metal: bool,
    hypervisor: &'static str,
    processor_info: ProcessorInfo,
    v_cpu_info: VCpuInfo,
    memory_info: MemoryInfo,
    instance_storage_supported: bool,
    instance_storage_info: Option<InstanceStorageInfo>,
    ebs_info: EbsInfo,
    network_info: NetworkInfo,
    placement_group_info: PlacementGroupInfo,
    hibernation_supported: bool,
    burstable_performance_supported: bool,
    dedicated_hosts_supported: bool,
    auto_recovery_supported: bool,
    supported_boot_modes: Vec<&'static str>,
    nitro_enclaves_support: &'static str,
    nitro_tpm_support: &'static str,
    phc_support: &'static str,
    reboot_migration_support: &'static str,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct ProcessorInfo {
    supported_architectures: Vec<&'static str>,
    sustained_clock_speed_in_ghz: f64,
    manufacturer: &'static str,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct VCpuInfo {
    default_v_cpus: u32,
    default_cores: u32,
    default_threads_per_core: u32,
    valid_cores: Vec<u32>,
    valid_threads_per_core: Vec<u32>,
}

#[derive(Debug, Serialize)]
struct MemoryInfo {
    #[serde(rename = "sizeInMiB")]
    size: u64,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct InstanceStorageInfo {
    #[serde(rename = "totalSizeInGB")]
    total_size: u64,
    disks: Vec<Disk>,
    nvme_support: &'static str,
    encryption_support: &'static str,
}

#[derive(Debug, Serialize)]
struct Disk {
    #[serde(rename = "sizeInGB")]
    size: u64,
    count: u32,
    #[serde(rename = "type")]
    kind: &'static str,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct EbsInfo {
    ebs_optimized_support: &'static str,
    encryption_support: &'static str,
    ebs_optimized_info: Option<EbsOptimizedInfo>,
    nvme_support: &'static str,
    attachment_limit_type: &'static str,
    maximum_ebs_attachments: usize,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct EbsOptimizedInfo {
    baseline_bandwidth_in_mbps: u32,
    #[serde(rename = "baselineThroughputInMBps")]
    baseline_throughput: f64,
    baseline_iops: u32,
    maximum_bandwidth_in_mbps: u32,
    #[serde(rename = "maximumThroughputInMBps")]
    maximum_throughput: f64,
    maximum_iops: u32,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct NetworkInfo {
    network_performance: String,
    maximum_network_interfaces: u32,
    maximum_network_cards: u32,
    default_network_card_index: u32,
    network_cards: Vec<NetworkCard>,
    ipv4_addresses_per_interface: u32,
    ipv6_addresses_per_interface: u32,
    ipv6_supported: bool,
    ena_support: &'static str,
    efa_supported: bool,
    encryption_in_transit_supported: bool,
    ena_srd_supported: bool,
    flexible_ena_queues_support: &'static str,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct NetworkCard {
    network_card_index: u32,
    network_performance: String,
    maximum_network_interfaces: u32,
    baseline_bandwidth_in_gbps: f64,
    peak_bandwidth_in_gbps: f64,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct PlacementGroupInfo {
    supported_strategies: Vec<&'static str>,
}

impl From<&InstanceType> for Item {
    fn from(kind: &InstanceType) -> Self {
        let threads = kind.processor.threads_per_core.max(1);
        let cores = (kind.vcpus / threads).max(1);
        let nitro = kind.hypervisor == "nitro";
        Self {
            instance_type: kind.name.clone(),
            current_generation: kind.current_generation,
            free_tier_eligible: kind.free_tier,
            supported_usage_classes: vec!["on-demand"],
            supported_root_device_types: vec!["ebs"],
            supported_virtualization_types: vec!["hvm"],
            bare_metal: false,
            hypervisor: kind.hypervisor,
            processor_info: ProcessorInfo {
                supported_architectures: vec!["x86_64"],
                sustained_clock_speed_in_ghz: kind.processor.clock,
                manufacturer: kind.processor.manufacturer,
            },
            v_cpu_info: VCpuInfo {
                default_v_cpus: kind.vcpus,
                default_cores: cores,
                default_threads_per_core: threads,
                valid_cores: vec![cores],
                valid_threads_per_core: vec![threads],
            },
            memory_info: MemoryInfo { size: kind.memory },
            instance_storage_supported: kind.disks.is_some(),
            instance_storage_info: kind.disks.map(InstanceStorageInfo::from),
            ebs_info: EbsInfo {
                ebs_optimized_support: if kind.ebs.is_some() { "default" } else { "unsupported" },
                encryption_support: "supported",
                ebs_optimized_info: kind.ebs.map(EbsOptimizedInfo::from),
                nvme_support: if nitro { "required" } else { "unsupported" },
                // Network interfaces take places away from volumes.
                attachment_limit_type: "shared",
                maximum_ebs_attachments: MAX_ATTACHMENTS,
            },
            network_info: network(kind, nitro),
            placement_group_info: PlacementGroupInfo { supported_strategies: Vec::new() },
            hibernation_supported: false,
            burstable_performance_supported: kind.burstable,
            dedicated_hosts_supported: false,
            auto_recovery_supported: false,
            supported_boot_modes: vec!["legacy-bios"],
            nitro_enclaves_support: "unsupported",
            nitro_tpm_support: "unsupported",
            phc_support: "unsupported",
            reboot_migration_support: "unsupported",
        }
    }
}

fn network(kind: &InstanceType, nitro: bool) -> NetworkInfo {
    let network = &kind.network;
    NetworkInfo {
        network_performance: network.performance.clone(),
        maximum_network_interfaces: network.interfaces,
        maximum_network_cards: 1,
        default_network_card_index: 0,
        network_cards: vec![NetworkCard {
            network_card_index: 0,
            network_performance: network.performance.clone(),
            maximum_network_interfaces: network.interfaces,
            baseline_bandwidth_in_gbps: network.baseline,
            peak_bandwidth_in_gbps: network.peak,
        }],
        ipv4_addresses_per_interface: network.addresses,
        ipv6_addresses_per_interface: network.addresses,
        ipv6_supported: true,
        ena_support: if nitro { "required" } else { "unsupported" },
        efa_supported: false,
        encryption_in_transit_supported: false,
        ena_srd_supported: false,
        flexible_ena_queues_support: "unsupported",
    }
}

impl From<Disks> for InstanceStorageInfo {
    fn from(disks: Disks) -> Self {
        Self {
            total_size: u64::from(disks.count) * disks.size,
            disks: vec![Disk { size: disks.size, count: disks.count, kind: disks.kind }],
            nvme_support: "required",
            encryption_support: "unsupported",
        }
    }
}

impl From<Ebs> for EbsOptimizedInfo {
    fn from(ebs: Ebs) -> Self {
        Self {
            baseline_bandwidth_in_mbps: ebs.baseline_bandwidth,
            baseline_throughput: f64::from(ebs.baseline_bandwidth) / 8.0,
            baseline_iops: ebs.baseline_iops,
            maximum_bandwidth_in_mbps: ebs.maximum_bandwidth,
            maximum_throughput: f64::from(ebs.maximum_bandwidth) / 8.0,
            maximum_iops: ebs.maximum_iops,
        }
    }
}

impl Item {
    fn of_store(&self, value: impl Fn(&InstanceStorageInfo) -> String) -> Vec<String> {
        self.instance_storage_info.iter().map(value).collect()
    }

    fn of_disks(&self, value: impl Fn(&Disk) -> String) -> Vec<String> {
        self.instance_storage_info.iter().flat_map(|store| &store.disks).map(value).collect()
    }

    fn of_ebs(&self, value: impl Fn(&EbsOptimizedInfo) -> String) -> Vec<String> {
        self.ebs_info.ebs_optimized_info.iter().map(value).collect()
    }
}

fn texts(list: &[&'static str]) -> Vec<String> {
    list.iter().map(ToString::to_string).collect()
}

impl Filtered for Item {
    fn field(name: &str) -> Option<Field<Self>> {
        if let Some(rest) = name.strip_prefix("ebs-info.") {
            return ebs_field(rest);
        }
        if let Some(rest) = name.strip_prefix("network-info.") {
            return network_field(rest);
        }
        Some(match name {
            "auto-recovery-supported" => |item| vec![item.auto_recovery_supported.to_string()],
            "bare-metal" => |item| vec![item.bare_metal.to_string()],
            "burstable-performance-supported" => {
                |item| vec![item.burstable_performance_supported.to_string()]
            }
            "current-generation" => |item| vec![item.current_generation.to_string()],
            "dedicated-hosts-supported" => |item| vec![item.dedicated_hosts_supported.to_string()],
            "free-tier-eligible" => |item| vec![item.free_tier_eligible.to_string()],
            "hibernation-supported" => |item| vec![item.hibernation_supported.to_string()],
            "hypervisor" => |item| vec![item.hypervisor.to_owned()],
            "instance-storage-info.disk.count" => |item| item.of_disks(|disk| disk.count.to_string()),
            "instance-storage-info.disk.size-in-gb" => |item| item.of_disks(|disk| disk.size.to_string()),
            "instance-storage-info.disk.type" => |item| item.of_disks(|disk| disk.kind.to_owned()),
            "instance-storage-info.encryption-support" => {
                |item| item.of_store(|store| store.encryption_support.to_owned())
            }
            "instance-storage-info.nvme-support" => {
                |item| item.of_store(|store| store.nvme_support.to_owned())
            }
            "instance-storage-info.total-size-in-gb" => {
                |item| item.of_store(|store| store.total_size.to_string())
            }
            "instance-storage-supported" => |item| vec![item.instance_storage_supported.to_string()],
            "instance-type" => |item| vec![item.instance_type.clone()],
            "memory-info.size-in-mib" => |item| vec![item.memory_info.size.to_string()],
            "nitro-enclaves-support" => |item| vec![item.nitro_enclaves_support.to_owned()],
            "nitro-tpm-support" => |item| vec![item.nitro_tpm_support.to_owned()],
            "nitro-tpm-info.supported-versions" | "processor-info.supported-features" => |_| Vec::new(),
            "processor-info.supported-architecture" => {
                |item| texts(&item.processor_info.supported_architectures)
            }
            "processor-info.sustained-clock-speed-in-ghz" => {
                |item| vec![item.processor_info.sustained_clock_speed_in_ghz.to_string()]
            }
            "reboot-migration-support" => |item| vec![item.reboot_migration_support.to_owned()],
            "supported-boot-mode" => |item| texts(&item.supported_boot_modes),
            "supported-root-device-type" => |item| texts(&item.supported_root_device_types),
            "supported-usage-class" => |item| texts(&item.supported_usage_classes),
            "supported-virtualization-type" => |item| texts(&item.supported_virtualization_types),
            "vcpu-info.default-cores" => |item| vec![item.v_cpu_info.default_cores.to_string()],
            "vcpu-info.default-threads-per-core" => {
                |item| vec![item.v_cpu_info.default_threads_per_core.to_string()]
            }
            "vcpu-info.default-vcpus" => |item| vec![item.v_cpu_info.default_v_cpus.to_string()],
            "vcpu-info.valid-cores" => {
                |item| item.v_cpu_info.valid_cores.iter().map(ToString::to_string).collect()
            }
            "vcpu-info.valid-threads-per-core" => {
                |item| item.v_cpu_info.valid_threads_per_core.iter().map(ToString::to_string).collect()
            }
            _ => return None,
        })
    }

    fn tags(&self) -> Option<&BTreeMap<String, String>> {
        None
    }
}

/// The filters whose names begin with `ebs-info.`.
fn ebs_field(name: &str) -> Option<Field<Item>> {
    Some(match name {
        "attachment-limit-type" => |item| vec![item.ebs_info.attachment_limit_type.to_owned()],
        "maximum-ebs-attachments" => |item| vec![item.ebs_info.maximum_ebs_attachments.to_string()],
        "ebs-optimized-info.baseline-bandwidth-in-mbps" => {
            |item| item.of_ebs(|ebs| ebs.baseline_bandwidth_in_mbps.to_string())
        }
        "ebs-optimized-info.baseline-iops" => |item| item.of_ebs(|ebs| ebs.baseline_iops.to_string()),
        "ebs-optimized-info.baseline-throughput-in-mbps" => {
            |item| item.of_ebs(|ebs| ebs.baseline_throughput.to_string())
        }
        "ebs-optimized-info.maximum-bandwidth-in-mbps" => {
            |item| item.of_ebs(|ebs| ebs.maximum_bandwidth_in_mbps.to_string())
        }
        "ebs-optimized-info.maximum-iops" => |item| item.of_ebs(|ebs| ebs.maximum_iops.to_string()),
        "ebs-optimized-info.maximum-throughput-in-mbps" => {
            |item| item.of_ebs(|ebs| ebs.maximum_throughput.to_string())
        }
        "ebs-optimized-support" => |item| vec![item.ebs_info.ebs_optimized_support.to_owned()],
        "encryption-support" => |item| vec![item.ebs_info.encryption_support.to_owned()],
        "nvme-support" => |item| vec![item.ebs_info.nvme_support.to_owned()],
        _ => return None,
    })
}

/// The filters whose names begin with `network-info.`.
fn network_field(name: &str) -> Option<Field<Item>> {
    Some(match name {
        "bandwidth-weightings" | "efa-info.maximum-efa-interfaces" => |_| Vec::new(),
        "efa-supported" => |item| vec![item.network_info.efa_supported.to_string()],
        "ena-support" => |item| vec![item.network_info.ena_support.to_owned()],
        "flexible-ena-queues-support" => {
            |item| vec![item.network_info.flexible_ena_queues_support.to_owned()]
        }
        "encryption-in-transit-supported" => {
            |item| vec![item.network_info.encryption_in_transit_supported.to_string()]
        }
        "ipv4-addresses-per-interface" => {
            |item| vec![item.network_info.ipv4_addresses_per_interface.to_string()]
        }
        "ipv6-addresses-per-interface" => {
            |item| vec![item.network_info.ipv6_addresses_per_interface.to_string()]
        }
        "ipv6-supported" => |item| vec![item.network_info.ipv6_supported.to_string()],
        "maximum-network-cards" => |item| vec![item.network_info.maximum_network_cards.to_string()],
        "maximum-network-interfaces" => |item| vec![item.network_info.maximum_network_interfaces.to_string()],
        "network-performance" => |item| vec![item.network_info.network_performance.clone()],
        _ => return None,
    })
}

impl Action for DescribeInstanceTypes {
    const NAME: &'static str = "DescribeInstanceTypes";
    type Response = Response;

    fn run(self, context: Context<'_>) -> Result<Response, ApiError> {
        let catalogue = &context.agent.catalogue;
        let wanted = Selection::new(&self.filters)?;
        if self.names.len() > MAX {
            let message = format!("A request can name at most {MAX} instance types.");
            return Err(ApiError::new("InvalidParameterValue", message));
        }
        if let Some(count) = self.max_results.filter(|count| *count > MAX as i64) {
            let reason = format!("Expecting a value between 5 and {MAX}.");
            return Err(ApiError::invalid(count, "maxResults", reason));
        }
        let unknown: Vec<&str> =
            self.names.iter().map(String::as_str).filter(|name| catalogue.get(name).is_none()).collect();
        if !unknown.is_empty() {
            let message =
                format!("The following supplied instance types do not exist: [{}]", unknown.join(", "));
            return Err(ApiError::new("InvalidInstanceType", message));
        }
        let names: BTreeSet<&str> = self.names.iter().map(String::as_str).collect();
        let items: Vec<Item> = catalogue
            .all()
            .filter(|kind| names.is_empty() || names.contains(kind.name.as_str()))
            .map(Item::from)
            .filter(|item| wanted.accepts(item))
            .collect();
        let (instance_type_set, next_token) =
            page(items, |item| &item.instance_type, self.max_results, self.next_token.as_deref(), 5)?;
        Ok(Response { instance_type_set, next_token })
    }
}
