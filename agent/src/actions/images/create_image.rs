//! CreateImage.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::mapping::{BlockDeviceMapping, resolve};
use super::register_image::check_name;
use super::{check_description, check_name_is_free};
use crate::actions::instances::MAX_VOLUMES;
use crate::actions::lookup::find;
use crate::actions::refused::refuse;
use crate::actions::snapshots;
use crate::ids::{ImageId, VolumeId};
use crate::query::tags::{TagSpecification, specified};
use crate::query::{Action, ApiError, Context};
use crate::records::{
    AwaitedSnapshots, BlockDevice, Image, ImageOrigin, ImageState, Instance, InstanceState, MappedVolume,
    Mapping, RootDeviceType, Volume,
};
use crate::state::World;
use crate::volumes::snapshots::photograph;

/// Makes an image of an instance: of what is on its volumes when its guest is down. One that runs is rebooted for that,
/// unless the request says `NoReboot`; then the snapshots are what a power failure would leave.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct CreateImage {
    instance_id: String,
    name: String,
    description: Option<String>,
    #[serde(default)]
    no_reboot: bool,
    #[serde(default, rename = "BlockDeviceMapping")]
    mappings: Vec<BlockDeviceMapping>,
    boot_mode_override: Option<String>,
    snapshot_location: Option<String>,
    #[serde(default, rename = "TagSpecification")]
    tags: Vec<TagSpecification>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Response {
    image_id: String,
}

/// What is to be recorded.
struct Plan {
    image: Image,
    /// Whether the instance is to be rebooted for it.
    reboots: bool,
}

impl CreateImage {
    fn invalid_instance(&self, reason: &str) -> ApiError {
        let message = format!("Invalid value '{}' for instanceId. {reason}", self.instance_id);
        ApiError::new("InvalidParameterValue", message)
    }

    /// What does not depend on records.
    fn check_parameters(&self) -> Result<(), ApiError> {
        check_name(&self.name)?;
        check_description(self.description.as_ref())?;
        refuse(&[
            (
                self.boot_mode_override.is_some(),
                "Instances start without firmware: leave BootModeOverride out.",
            ),
            (
                self.snapshot_location.as_ref().is_some_and(|location| location != "regional"),
                "There are no local zones and outposts: leave SnapshotLocation out, or say regional.",
            ),
        ])
    }

    /// What the image has at each device, and which volumes there are to be snapshots of.
    fn devices(
        &self,
        world: &World,
        context: Context<'_>,
        instance: &Instance,
    ) -> Result<(Vec<Mapping>, BTreeMap<String, VolumeId>), ApiError> {
        let root = &instance.root_device_name;
        let mut asked: BTreeMap<&str, &BlockDeviceMapping> = BTreeMap::new();
        for mapping in &self.mappings {
            if asked.insert(&mapping.device_name, mapping).is_some() {
                return Err(bad_mapping(&mapping.device_name, "is there twice"));
            }
        }
        if asked.get(root.as_str()).is_some_and(|mapping| mapping.ebs.is_none()) {
            return Err(bad_mapping(root, "is that of the root device: it has to be its volume"));
        }
        let (mut mappings, mut volumes) = (Vec::new(), BTreeMap::new());
        let mut own: Vec<&BlockDevice> = instance.block_devices.iter().collect();
        own.sort_by_key(|device| device.device_name != *root);
        let mut done = BTreeSet::new();
        for device in own {
            let name = &device.device_name;
            let Some(volume) = world.get::<Volume>(&device.volume) else { continue };
            let as_it_is = as_it_is(volume, device);
            let volume = match asked.get(name.as_str()) {
                None => as_it_is,
                Some(mapping) => match &mapping.ebs {
                    Some(ebs) if mapping.says_one_thing() => {
                        done.insert(name.as_str());
                        ebs.change(name, as_it_is)?
                    }
                    // Another thing is there, or nothing.
                    _ => continue,
                },
            };
            volumes.insert(name.clone(), device.volume.clone());
            mappings.push(Mapping { device_name: name.clone(), volume: Some(volume), virtual_name: None });
        }
        let rest = self.mappings.iter().filter(|mapping| !done.contains(mapping.device_name.as_str()));
        let (_, new) = resolve(world, context, &rest.cloned().collect::<Vec<_>>(), root)?;
        for disk in &instance.instance_store {
            let Some(name) = &disk.device_name else { continue };
            let is_elsewhere = new.iter().any(|one| one.virtual_name.as_ref() == Some(&disk.name));
            if !asked.contains_key(name.as_str()) && !is_elsewhere {
                mappings.push(Mapping {
                    device_name: name.clone(),
                    volume: None,
                    virtual_name: Some(disk.name.clone()),
                });
            }
        }
        mappings.extend(new);
        if mappings.iter().filter(|mapping| mapping.volume.is_some()).count() > MAX_VOLUMES {
            let message = format!("An instance can have at most {MAX_VOLUMES} volumes.");
            return Err(ApiError::new("InvalidBlockDeviceMapping", message));
        }
        Ok((mappings, volumes))
    }

    fn plan(&self, world: &World, context: Context<'_>) -> Result<Plan, ApiError> {
        let instance = find::<Instance>(world, context, &self.instance_id)?;
        check_name_is_free(world, context, &self.name)?;
        let state = instance.lifecycle.state;
        if !matches!(state, InstanceState::Running | InstanceState::Stopping | InstanceState::Stopped) {
            let reason = "Instance is not in state 'running' or 'stopping' or 'stopped'";
            return Err(self.invalid_instance(reason));
        }
        let root = &instance.root_device_name;
        let has_root = instance.block_devices.iter().any(|device| device.device_name == *root);
        if instance.root_device_type() == RootDeviceType::InstanceStore || !has_root {
            let reason = format!("Instance does not have a volume attached at root ({root})");
            return Err(self.invalid_instance(&reason));
        }
        let (block_devices, volumes) = self.devices(world, context, instance)?;
        for volume in volumes.values().filter_map(|id| world.get::<Volume>(id)) {
            snapshots::check(world, volume)?;
        }
        let tags = specified(&self.tags, &["image", "snapshot"])?.remove("snapshot").unwrap_or_default();
        // The image can be gone since.
        let launched_from = world.get::<Image>(&instance.image);
        let image = Image {
            id: ImageId::random(),
            name: self.name.clone(),
            description: self.description.clone().filter(|text| !text.is_empty()),
            owner: context.caller.account.clone(),
            state: ImageState::Pending,
            launch_permissions: Vec::new(),
            architecture: launched_from.map_or("x86_64", |image| &image.architecture).to_owned(),
            root_device_name: root.clone(),
            block_devices,
            root_store: None,
            boot: instance.boot.clone(),
            boot_mode: launched_from.and_then(|image| image.boot_mode.clone()),
            imds_support: launched_from.and_then(|image| image.imds_support.clone()),
            location: format!("{}/{}", context.caller.account, self.name),
            created: Timestamp::now(),
            origin: Some(ImageOrigin::Instance(instance.id.clone())),
            waits_for: Some(instance.id.clone()),
            awaited: Some(AwaitedSnapshots { volumes, tags }),
            is_copied: false,
            failure: None,
        };
        Ok(Plan { image, reboots: !self.no_reboot && state == InstanceState::Running })
    }

    /// Whether it has to be waited until the guest is down.
    fn waits(&self, instance: &Instance) -> bool {
        !self.no_reboot && instance.lifecycle.state != InstanceState::Stopped
    }
}

/// A volume as an image has it that was asked for nothing else.
fn as_it_is(volume: &Volume, device: &BlockDevice) -> MappedVolume {
    MappedVolume {
        // That is yet to be made.
        snapshot: None,
        size: volume.size,
        volume_type: volume.volume_type.clone(),
        // Those of gp2 follow from its size.
        iops: volume.iops.filter(|_| volume.volume_type != "gp2"),
        throughput: volume.throughput,
        encrypted: volume.encrypted,
        delete_on_termination: device.delete_on_termination,
    }
}

fn bad_mapping(device: &str, reason: &str) -> ApiError {
    ApiError::new("InvalidBlockDeviceMapping", format!("The mapping of {device} {reason}."))
}

impl Action for CreateImage {
    const NAME: &'static str = "CreateImage";
    type Response = Response;

    fn check(&self, context: Context<'_>) -> Result<(), ApiError> {
        self.check_parameters()?;
        self.plan(&context.agent.state.read(), context).map(drop)
    }

    fn run(self, context: Context<'_>) -> Result<Response, ApiError> {
        let mut tags = specified(&self.tags, &["image", "snapshot"])?;
        let (image_id, volumes) = context.agent.state.change(|draft| {
            let Plan { image, reboots } = self.plan(draft, context)?;
            let id = image.id.clone();
            draft.tag(&id, tags.remove("image").unwrap_or_default());
            draft.put(image);
            let instance = find::<Instance>(draft, context, &self.instance_id)?;
            let (instance_id, waits) = (instance.id.clone(), self.waits(instance));
            if reboots {
                // Whoever reboots it finds the image, and has its snapshots made at the right moment.
                let mut is_refused = false;
                draft.update::<Instance>(&instance_id, |instance| {
                    is_refused = instance.lifecycle.reboot().is_err();
                });
                if is_refused {
                    return Err(ApiError::internal("an instance that runs cannot be rebooted"));
                }
            }
            let volumes = if waits { Vec::new() } else { photograph(draft, &id, Timestamp::now()) };
            Ok((id, volumes))
        })?;
        if !volumes.is_empty() {
            context.agent.settle_volumes(&volumes);
        }
        Ok(Response { image_id: image_id.to_string() })
    }
}
