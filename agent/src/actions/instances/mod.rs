//! Instances: launched, looked at, changed, started and stopped; and the types that they can have.
//!
//! The actions change records only. What is to become of an instance is the business of [`crate::instances`].

mod attachments;
mod describe_instance_attribute;
mod describe_instance_credit_specifications;
mod describe_instance_status;
mod describe_instance_type_offerings;
mod describe_instance_types;
mod describe_instances;
mod filters;
mod get_console_output;
mod metadata;
mod modify_instance_attribute;
mod modify_instance_credit_specification;
mod modify_instance_event_start_time;
mod modify_instance_metadata_options;
mod monitor_instances;
mod named;
mod reboot_instances;
mod refused;
mod run_instances;
mod start_instances;
mod stop_instances;
mod terminate_instances;
#[cfg(test)]
mod tests;
mod user_data;
mod view;

use crate::query::dispatch::Registry;
pub use attachments::{MAX_VOLUMES, check_attachments};
pub(crate) use metadata::{check_tag_keys, tag_key_fits};
pub(crate) use view::{architecture, enabled};

pub(super) fn register(registry: &mut Registry) {
    registry.add::<describe_instance_attribute::DescribeInstanceAttribute>();
    registry.add::<describe_instance_credit_specifications::DescribeInstanceCreditSpecifications>();
    registry.add::<describe_instance_status::DescribeInstanceStatus>();
    registry.add::<describe_instance_type_offerings::DescribeInstanceTypeOfferings>();
    registry.add::<describe_instance_types::DescribeInstanceTypes>();
    registry.add::<describe_instances::DescribeInstances>();
    registry.add::<get_console_output::GetConsoleOutput>();
    registry.add::<modify_instance_attribute::ModifyInstanceAttribute>();
    registry.add::<modify_instance_attribute::ResetInstanceAttribute>();
    registry.add::<modify_instance_credit_specification::ModifyInstanceCreditSpecification>();
    registry.add::<modify_instance_event_start_time::ModifyInstanceEventStartTime>();
    registry.add::<modify_instance_metadata_options::ModifyInstanceMetadataOptions>();
    registry.add::<monitor_instances::MonitorInstances>();
    registry.add::<monitor_instances::UnmonitorInstances>();
    registry.add::<reboot_instances::RebootInstances>();
    registry.add::<run_instances::RunInstances>();
    registry.add::<start_instances::StartInstances>();
    registry.add::<stop_instances::StopInstances>();
    registry.add::<terminate_instances::TerminateInstances>();
}
