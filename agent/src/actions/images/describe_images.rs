//! DescribeImages.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::mapping::{EbsItem, MappingItem};
use super::snapshots;
use crate::actions::lookup::{select, time};
use crate::actions::sharing::EVERYBODY;
use crate::query::filters::{Field, Filter, Filtered, Selection};
use crate::query::pages::page;
use crate::query::{Action, ApiError, Context};
use crate::records::{Image, ImageOrigin, ImageState, Snapshot, SnapshotState};
use crate::state::World;

/// The images that the caller may launch.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct DescribeImages {
    #[serde(default, rename = "Filter")]
    filters: Vec<Filter>,
    #[serde(default, rename = "ImageId")]
    ids: Vec<String>,
    #[serde(default, rename = "Owner")]
    owners: Vec<String>,
    #[serde(default)]
    executable_by: Vec<String>,
    #[serde(default, rename = "IncludeDeprecated")]
    _deprecated: bool,
    #[serde(default, rename = "IncludeDisabled")]
    _disabled: bool,
    max_results: Option<i64>,
    next_token: Option<String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Response {
    images_set: Vec<Item>,
    next_token: Option<String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Item {
    image_id: String,
    image_location: String,
    image_state: &'static str,
    image_owner_id: String,
    creation_date: String,
    is_public: bool,
    architecture: String,
    image_type: &'static str,
    platform_details: &'static str,
    usage_operation: &'static str,
    name: String,
    description: Option<String>,
    root_device_type: &'static str,
    root_device_name: String,
    block_device_mapping: Vec<MappingItem>,
    virtualization_type: &'static str,
    hypervisor: &'static str,
    boot_mode: Option<String>,
    imds_support: Option<String>,
    state_reason: Option<Reason>,
    source_instance_id: Option<String>,
    source_image_id: Option<String>,
    source_image_region: Option<String>,
    #[serde(rename = "tagSet", serialize_with = "crate::actions::tags::set")]
    tags: BTreeMap<String, String>,
}

/// `stateReason`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Reason {
    code: &'static str,
    message: String,
}

impl Reason {
    /// Why an image could not be made: it says so, or one of its snapshots does.
    fn new(world: &World, image: &Image) -> Option<Self> {
        if image.state != ImageState::Failed {
            return None;
        }
        let of_snapshot = |id| match world.get::<Snapshot>(id).map(|snapshot| &snapshot.state) {
            None => Some(format!("The snapshot {id} is gone")),
            Some(SnapshotState::Error(why)) => {
                Some(format!("The snapshot {id} could not be completed: {why}"))
            }
            Some(_) => None,
        };
        let why = image.failure.clone().or_else(|| snapshots(image).find_map(of_snapshot));
        let why = why.unwrap_or_else(|| "The image could not be made".to_owned());
        let code = "Server.InternalError";
        Some(Self { code, message: format!("{code}: {why}") })
    }
}

impl Item {
    fn new(world: &World, (region, account): (&str, &str), image: &Image) -> Self {
        let (instance, source) = match &image.origin {
            Some(ImageOrigin::Instance(id)) => (Some(id.to_string()), None),
            Some(ImageOrigin::Image(id)) => (None, Some(id.to_string())),
            None => (None, None),
        };
        Self {
            image_id: image.id.to_string(),
            image_location: image.location.clone(),
            image_state: match image.state {
                ImageState::Pending => "pending",
                ImageState::Available => "available",
                ImageState::Failed => "failed",
            },
            image_owner_id: image.owner.clone(),
            creation_date: time(image.created),
            is_public: image.launch_permissions.iter().any(|who| who == EVERYBODY),
            architecture: image.architecture.clone(),
            image_type: "machine",
            platform_details: "Linux/UNIX",
            usage_operation: "RunInstances",
            name: image.name.clone(),
            description: image.description.clone(),
            root_device_type: image.root_device_type().name(),
            root_device_name: image.root_device_name.clone(),
            block_device_mapping: image.block_devices.iter().map(MappingItem::from).collect(),
            virtualization_type: "hvm",
            // What EC2 calls Nitro, too.
            hypervisor: "xen",
            boot_mode: image.boot_mode.clone(),
            imds_support: image.imds_support.clone(),
            state_reason: Reason::new(world, image),
            source_instance_id: instance,
            source_image_region: source.as_ref().map(|_| region.to_owned()),
            source_image_id: source,
            // Others do not see the owner's.
            tags: world.tags(&image.id).filter(|_| image.owner == account).cloned().unwrap_or_default(),
        }
    }

    /// A value of each mapped volume.
    fn volumes(&self, value: fn(&EbsItem) -> Option<String>) -> Vec<String> {
        self.block_device_mapping.iter().filter_map(|mapping| value(mapping.ebs.as_ref()?)).collect()
    }
}

impl Filtered for Item {
    fn field(name: &str) -> Option<Field<Self>> {
        Some(match name {
            "image-id" => |image| vec![image.image_id.clone()],
            "name" => |image| vec![image.name.clone()],
            "description" => |image| image.description.iter().cloned().collect(),
            "architecture" => |image| vec![image.architecture.clone()],
            "owner-id" => |image| vec![image.image_owner_id.clone()],
            "state" => |image| vec![image.image_state.to_owned()],
            "image-type" => |image| vec![image.image_type.to_owned()],
            "is-public" => |image| vec![image.is_public.to_string()],
            "creation-date" => |image| vec![image.creation_date.clone()],
            "manifest-location" => |image| vec![image.image_location.clone()],
            "root-device-name" => |image| vec![image.root_device_name.clone()],
            "root-device-type" => |image| vec![image.root_device_type.to_owned()],
            "virtualization-type" => |image| vec![image.virtualization_type.to_owned()],
            "hypervisor" => |image| vec![image.hypervisor.to_owned()],
            "boot-mode" => |image| image.boot_mode.iter().cloned().collect(),
            "source-image-id" => |image| image.source_image_id.iter().cloned().collect(),
            "source-image-region" => |image| image.source_image_region.iter().cloned().collect(),
            "source-instance-id" => |image| image.source_instance_id.iter().cloned().collect(),
            "state-reason-code" => {
                |image| image.state_reason.iter().map(|reason| reason.code.to_owned()).collect()
            }
            "state-reason-message" => {
                |image| image.state_reason.iter().map(|reason| reason.message.clone()).collect()
            }
            "image-allowed" => |_| vec!["true".to_owned()],
            "block-device-mapping.device-name" => {
                |image| image.block_device_mapping.iter().map(|mapping| mapping.device_name.clone()).collect()
            }
            "block-device-mapping.snapshot-id" => |image| image.volumes(|ebs| ebs.snapshot_id.clone()),
            "block-device-mapping.volume-size" => {
                |image| image.volumes(|ebs| Some(ebs.volume_size.to_string()))
            }
            "block-device-mapping.volume-type" => |image| image.volumes(|ebs| Some(ebs.volume_type.clone())),
            "block-device-mapping.encrypted" => |image| image.volumes(|ebs| Some(ebs.encrypted.to_string())),
            "block-device-mapping.delete-on-termination" => {
                |image| image.volumes(|ebs| Some(ebs.delete_on_termination.to_string()))
            }
            // What no image of this host has.
            "image-watermark.source-image-creation-time"
            | "image-watermark.source-image-id"
            | "image-watermark.source-image-region"
            | "image-watermark.watermark-creation-time"
            | "image-watermark.watermark-key"
            | "instance-type-specification.supported-instance-type"
            | "instance-type-specification.unsupported-instance-type"
            | "scan-result.critical-fix-available-since"
            | "scan-result.finding-scan-date"
            | "scan-result.high-fix-available-since"
            | "scan-result.highest-finding-severity-label"
            | "scan-result.informational-fix-available-since"
            | "scan-result.low-fix-available-since"
            | "scan-result.medium-fix-available-since"
            | "owner-alias"
            | "platform"
            | "kernel-id"
            | "ramdisk-id"
            | "product-code"
            | "product-code.type"
            | "ena-support"
            | "free-tier-eligible"
            | "sriov-net-support"
            | "public-ssm-parameter-name" => |_| Vec::new(),
            _ => return None,
        })
    }

    fn tags(&self) -> Option<&BTreeMap<String, String>> {
        Some(&self.tags)
    }
}

impl DescribeImages {
    /// Whether an image is of one of the owners, and may be launched by one of those that are named.
    fn is_wanted(&self, image: &Image, account: &str) -> bool {
        let of = |owner: &String| *owner == image.owner || owner == "self" && image.owner == account;
        let by = |who: &String| {
            let who = if who == "self" { account } else { who };
            image.launch_permissions.iter().any(|permitted| permitted == who)
        };
        (self.owners.is_empty() || self.owners.iter().any(of))
            && (self.executable_by.is_empty() || self.executable_by.iter().any(by))
    }
}

impl Action for DescribeImages {
    const NAME: &'static str = "DescribeImages";
    type Response = Response;

    fn run(self, context: Context<'_>) -> Result<Response, ApiError> {
        let world = context.agent.state.read();
        let wanted = Selection::new(&self.filters)?;
        let (account, region) = (&context.caller.account, &context.agent.config.region);
        let images = select::<Image>(&world, context, &self.ids)?;
        let images = images.iter().filter(|image| self.is_wanted(image, account));
        let mut items: Vec<Item> =
            images.map(|image| Item::new(&world, (region, &context.caller.account), image)).collect();
        items.retain(|item| wanted.accepts(item));
        let (images_set, next_token) =
            page(items, |item| &item.image_id, self.max_results, self.next_token.as_deref(), 5)?;
        Ok(Response { images_set, next_token })
    }
}
