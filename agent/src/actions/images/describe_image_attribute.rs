//! DescribeImageAttribute.

use serde::{Deserialize, Serialize};

use super::mapping::MappingItem;
use crate::actions::lookup::find_own;
use crate::actions::sharing::Permission;
use crate::query::{Action, ApiError, Context};
use crate::records::Image;

/// One attribute of an image.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct DescribeImageAttribute {
    image_id: String,
    attribute: String,
}

#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Response {
    image_id: String,
    launch_permission: Option<Vec<Permission>>,
    block_device_mapping: Option<Vec<MappingItem>>,
    product_codes: Option<Vec<ProductCode>>,
    description: Option<Value>,
    kernel: Option<Value>,
    ramdisk: Option<Value>,
    sriov_net_support: Option<Value>,
    boot_mode: Option<Value>,
    tpm_support: Option<Value>,
    uefi_data: Option<Value>,
    last_launched_time: Option<Value>,
    imds_support: Option<Value>,
    deregistration_protection: Option<Value>,
}

/// There are none.
#[derive(Debug, Serialize)]
enum ProductCode {}

/// Without one, the attribute is not set.
#[derive(Debug, Default, Serialize)]
struct Value {
    value: Option<String>,
}

impl Action for DescribeImageAttribute {
    const NAME: &'static str = "DescribeImageAttribute";
    type Response = Response;

    fn run(self, context: Context<'_>) -> Result<Response, ApiError> {
        let world = context.agent.state.read();
        let image = find_own::<Image>(&world, context, &self.image_id)?;
        let mut response = Response { image_id: self.image_id, ..Response::default() };
        let unset = Some(Value::default());
        match self.attribute.as_str() {
            "launchPermission" => {
                response.launch_permission =
                    Some(image.launch_permissions.iter().map(Permission::from).collect());
            }
            "blockDeviceMapping" => {
                response.block_device_mapping =
                    Some(image.block_devices.iter().map(MappingItem::from).collect());
            }
            "description" => response.description = Some(Value { value: image.description.clone() }),
            "imdsSupport" => response.imds_support = Some(Value { value: image.imds_support.clone() }),
            "deregistrationProtection" => {
                response.deregistration_protection = Some(Value { value: Some("disabled".to_owned()) });
            }
            "productCodes" => response.product_codes = Some(Vec::new()),
            "kernel" => response.kernel = unset,
            "ramdisk" => response.ramdisk = unset,
            "sriovNetSupport" => response.sriov_net_support = unset,
            "bootMode" => response.boot_mode = Some(Value { value: image.boot_mode.clone() }),
            "tpmSupport" => response.tpm_support = unset,
            "uefiData" => response.uefi_data = unset,
            "lastLaunchedTime" => response.last_launched_time = unset,
            other => {
                let reason = "See DescribeImageAttribute for the attributes of images.";
                return Err(ApiError::invalid(other, "attribute", reason));
            }
        }
        Ok(response)
    }
}
