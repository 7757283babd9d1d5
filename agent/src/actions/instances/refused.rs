//! What EC2 has and this host does not: refused if a request asks for it, accepted if it says the default.

use super::run_instances::RunInstances;
use crate::actions::refused::unsupported;
use crate::catalogue::InstanceType;
use crate::query::ApiError;

/// Whether a launch asks only for what there is.
pub fn check(request: &RunInstances, kind: &InstanceType) -> Result<(), ApiError> {
    let placement = &request.placement;
    let weighting = &request.network_performance_options.bandwidth_weighting;
    for (asked, what) in [
        (request.launch_template.is_some(), "This host has no launch templates: name what they would."),
        (
            request.instance_market_options.is_some(),
            "This host has no spot market: leave InstanceMarketOptions out.",
        ),
        (!request.elastic_gpus.is_empty(), "This host has no elastic GPUs."),
        (!request.inference_accelerators.is_empty(), "This host has no inference accelerators."),
        (!request.licenses.is_empty(), "This host has no license configurations."),
        (!request.secondary_interfaces.is_empty(), "This host has no secondary networks."),
        (!request.monitoring.metric_categories.is_empty(), "This host has no metric categories."),
        (request.operator.is_some(), "This host has no managed instances: leave Operator out."),
        (given(&request.kernel_id), "An image of this host brings its kernel: leave KernelId out."),
        (
            given(&request.ramdisk_id),
            "An image of this host brings its initial RAM disk: leave RamdiskId out.",
        ),
        (
            request.ipv6_address_count != 0
                || request.enable_primary_ipv6
                || !request.ipv6_addresses.is_empty(),
            "The subnets of this host have no IPv6 addresses.",
        ),
        (not(&placement.tenancy, "default"), "There is one host: Placement.Tenancy can only be default."),
        (not(&placement.affinity, "default"), "There is one host: Placement.Affinity can only be default."),
        (
            given(&placement.host_id) || given(&placement.host_resource_group_arn),
            "This host has no dedicated hosts: leave Placement.HostId out.",
        ),
        (
            given(&placement.group_name)
                || given(&placement.group_id)
                || given(&placement.spread_domain)
                || placement.partition_number.is_some(),
            "There is one host: leave the placement group out.",
        ),
        (request.enclave_options.enabled, "This host has no enclaves: leave EnclaveOptions out."),
        (
            not(&request.maintenance_options.auto_recovery, "default"),
            "MaintenanceOptions.AutoRecovery can only be default.",
        ),
        (not(weighting, "default"), "NetworkPerformanceOptions.BandwidthWeighting can only be default."),
    ] {
        refuse_if(asked, what)?;
    }
    if request.hibernation_options.configured {
        let message = "This host cannot hibernate instances: leave HibernationOptions out.";
        return Err(ApiError::new("UnsupportedHibernationConfiguration", message));
    }
    reservations(request)?;
    names(request)?;
    credits(request, kind)?;
    cpus(request, kind)
}

fn refuse_if(asked: bool, what: &str) -> Result<(), ApiError> {
    if asked { Err(unsupported(what)) } else { Ok(()) }
}

/// Whether there is a text.
fn given(text: &Option<String>) -> bool {
    text.as_ref().is_some_and(|text| !text.is_empty())
}

/// Whether there is another text than this one.
fn not(text: &Option<String>, default: &str) -> bool {
    text.as_ref().is_some_and(|text| !text.is_empty() && text != default)
}

fn reservations(request: &RunInstances) -> Result<(), ApiError> {
    let specification = &request.capacity_reservation_specification;
    let none = "This host has no capacity reservations.";
    refuse_if(specification.capacity_reservation_target.is_some(), none)?;
    match specification.capacity_reservation_preference.as_deref() {
        None | Some("open" | "none") => Ok(()),
        Some("capacity-reservations-only") => Err(unsupported(none)),
        Some(other) => Err(ApiError::invalid(
            other,
            "CapacityReservationPreference",
            "Expecting one of: open, none, capacity-reservations-only.",
        )),
    }
}

fn names(request: &RunInstances) -> Result<(), ApiError> {
    let options = &request.private_dns_name_options;
    let records = options.enable_resource_name_dns_a_record || options.enable_resource_name_dns_aaaa_record;
    let what = "The names of this host's instances come from their addresses: HostnameType can only be ip-name, \
                without records for resource names.";
    refuse_if(records || not(&options.hostname_type, "ip-name"), what)
}

/// A choice of CPU credits. No CPU of this host is taken away, whatever has been spent.
pub fn check_credits(wanted: &str) -> Result<(), ApiError> {
    if matches!(wanted, "standard" | "unlimited") {
        return Ok(());
    }
    Err(ApiError::invalid(wanted, "CpuCredits", "Expecting one of: standard, unlimited."))
}

fn credits(request: &RunInstances, kind: &InstanceType) -> Result<(), ApiError> {
    let Some(wanted) = &request.credit_specification else { return Ok(()) };
    check_credits(&wanted.cpu_credits)?;
    if kind.burstable {
        return Ok(());
    }
    let message =
        format!("The instance type {} has no CPU credits: leave CreditSpecification out.", kind.name);
    Err(ApiError::combination(message))
}

fn cpus(request: &RunInstances, kind: &InstanceType) -> Result<(), ApiError> {
    let Some(options) = &request.cpu_options else { return Ok(()) };
    let threads = kind.processor.threads_per_core;
    let cores = (kind.vcpus / threads.max(1)).max(1);
    let other = options.core_count.is_some_and(|count| count != cores)
        || options.threads_per_core.is_some_and(|count| count != threads);
    let what = format!(
        "On this host {} has {cores} cores with {threads} threads each. Choose another type for other CPUs.",
        kind.name
    );
    refuse_if(other, &what)?;
    let special = not(&options.amd_sev_snp, "disabled") || not(&options.nested_virtualization, "disabled");
    refuse_if(special, "CpuOptions can only say what every instance of this host has.")
}
