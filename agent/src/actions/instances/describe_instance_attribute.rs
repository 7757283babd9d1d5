//! DescribeInstanceAttribute.

use serde::{Deserialize, Serialize};

use super::view::{Group, Mapping, Nothing, groups, mappings};
use crate::actions::lookup::find_own;
use crate::query::{Action, ApiError, Context};
use crate::records::{Instance, NetworkInterface, ShutdownBehavior};

/// One attribute of an instance.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct DescribeInstanceAttribute {
    instance_id: String,
    attribute: String,
}

/// The instance, and the one that was asked for.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Response {
    instance_id: String,
    instance_type: Option<Value<String>>,
    kernel: Option<Value<String>>,
    ramdisk: Option<Value<String>>,
    user_data: Option<Value<String>>,
    disable_api_termination: Option<Value<bool>>,
    disable_api_stop: Option<Value<bool>>,
    instance_initiated_shutdown_behavior: Option<Value<&'static str>>,
    root_device_name: Option<Value<String>>,
    block_device_mapping: Option<Vec<Mapping>>,
    product_codes: Option<Vec<Nothing>>,
    ebs_optimized: Option<Value<bool>>,
    sriov_net_support: Option<Value<String>>,
    source_dest_check: Option<Value<bool>>,
    ena_support: Option<Value<bool>>,
    enclave_options: Option<EnclaveOptions>,
    group_set: Option<Vec<Group>>,
}

/// A value; an attribute that is not set is there without one.
#[derive(Debug, Serialize)]
struct Value<T> {
    value: Option<T>,
}

#[derive(Debug, Serialize)]
struct EnclaveOptions {
    enabled: bool,
}

fn set<T>(value: T) -> Option<Value<T>> {
    Some(Value { value: Some(value) })
}

/// The attribute is there, and has no value.
fn unset() -> Option<Value<String>> {
    Some(Value { value: None })
}

/// EC2's word.
fn behavior(behavior: ShutdownBehavior) -> &'static str {
    match behavior {
        ShutdownBehavior::Stop => "stop",
        ShutdownBehavior::Terminate => "terminate",
    }
}

impl Action for DescribeInstanceAttribute {
    const NAME: &'static str = "DescribeInstanceAttribute";
    type Response = Response;

    fn run(self, context: Context<'_>) -> Result<Response, ApiError> {
        let world = context.agent.state.read();
        let instance = find_own::<Instance>(&world, context, &self.instance_id)?;
        let mut response = Response { instance_id: self.instance_id, ..Response::default() };
        match self.attribute.as_str() {
            "instanceType" => response.instance_type = set(instance.instance_type.clone()),
            "kernel" => response.kernel = unset(),
            "ramdisk" => response.ramdisk = unset(),
            "userData" => response.user_data = Some(Value { value: instance.user_data.clone() }),
            "disableApiTermination" => {
                response.disable_api_termination = set(instance.disable_api_termination)
            }
            "disableApiStop" => response.disable_api_stop = set(instance.disable_api_stop),
            "instanceInitiatedShutdownBehavior" => {
                response.instance_initiated_shutdown_behavior = set(behavior(instance.shutdown_behavior));
            }
            "rootDeviceName" => response.root_device_name = set(instance.root_device_name.clone()),
            "blockDeviceMapping" => response.block_device_mapping = Some(mappings(&world, instance)),
            "productCodes" => response.product_codes = Some(Vec::new()),
            "ebsOptimized" => response.ebs_optimized = set(instance.ebs_optimized),
            "sriovNetSupport" => response.sriov_net_support = unset(),
            "sourceDestCheck" => {
                let primary = world.get::<NetworkInterface>(&instance.network_interface);
                response.source_dest_check = primary.and_then(|interface| set(interface.source_dest_check));
            }
            "enaSupport" => response.ena_support = set(true),
            "enclaveOptions" => response.enclave_options = Some(EnclaveOptions { enabled: false }),
            "groupSet" => {
                let primary = world.get::<NetworkInterface>(&instance.network_interface);
                let groups = primary.map(|interface| groups(&world, &interface.groups));
                response.group_set = Some(groups.unwrap_or_default());
            }
            other => {
                return Err(ApiError::invalid(other, "attribute", "An instance has no such attribute."));
            }
        }
        Ok(response)
    }
}
