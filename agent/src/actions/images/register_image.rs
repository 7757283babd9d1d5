//! RegisterImage.

mod copying;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use copying::{Copying, from_images};

use super::mapping::{BlockDeviceMapping, Root, resolve};
use crate::actions::device_name::is_device_name;
use crate::actions::lookup::{Named, own_completed_snapshot};
use crate::ids::{ImageId, SnapshotId};
use crate::images::Source;
use crate::query::tags::{TagSpecification, specified};
use crate::query::{Action, ApiError, Context};
use crate::records::{BootFiles, Image, ImageState, MappedVolume, Mapping, StoreDisk};
use crate::state::World;

/// The root device of an image for which none is named.
const ROOT_DEVICE: &str = "/dev/xvda";

/// Makes an image: from a directory of the host (`ImageLocation`), whose files are copied, while it is pending if that takes
/// long; or from a snapshot that the root device is mapped to. A root device of a directory that is mapped to
/// `VirtualName=ami` is in the instance store. `ImageId` and `KernelCommandLine` are not EC2's: they are for operators.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct RegisterImage {
    name: String,
    description: Option<String>,
    image_location: Option<String>,
    image_id: Option<String>,
    kernel_command_line: Option<String>,
    architecture: Option<String>,
    root_device_name: Option<String>,
    #[serde(default, rename = "BlockDeviceMapping")]
    mappings: Vec<BlockDeviceMapping>,
    virtualization_type: Option<String>,
    #[serde(rename = "EnaSupport")]
    _ena_support: Option<bool>,
    #[serde(rename = "SriovNetSupport")]
    _sriov_net_support: Option<String>,
    boot_mode: Option<String>,
    imds_support: Option<String>,
    tpm_support: Option<String>,
    uefi_data: Option<String>,
    kernel_id: Option<String>,
    ramdisk_id: Option<String>,
    #[serde(default, rename = "BillingProduct")]
    billing_products: Vec<String>,
    #[serde(default, rename = "TagSpecification")]
    tags: Vec<TagSpecification>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Response {
    image_id: String,
}

/// Tags for each kind of resource that is made.
type Tags = BTreeMap<String, BTreeMap<String, String>>;

impl RegisterImage {
    fn root(&self) -> &str {
        self.root_device_name.as_deref().unwrap_or(ROOT_DEVICE)
    }

    fn tags(&self) -> Result<Tags, ApiError> {
        specified(&self.tags, &["image", "snapshot"])
    }

    /// What does not depend on records.
    fn check_parameters(&self) -> Result<(), ApiError> {
        check_name(&self.name)?;
        if self.description.as_ref().is_some_and(|text| text.chars().count() > 255) {
            let message = "The description of an image has at most 255 characters.";
            return Err(ApiError::new("InvalidParameterValue", message));
        }
        if !is_device_name(self.root()) {
            let reason = "It is not a valid EBS device name.";
            return Err(ApiError::invalid(self.root(), "rootDeviceName", reason));
        }
        for (value, parameter, allowed) in [
            (&self.architecture, "Architecture", &["x86_64"][..]),
            (&self.virtualization_type, "VirtualizationType", &["hvm"]),
            (&self.boot_mode, "BootMode", &["legacy-bios", "uefi", "uefi-preferred"]),
            (&self.imds_support, "ImdsSupport", &["v2.0"]),
        ] {
            if let Some(value) = value.as_ref().filter(|value| !allowed.contains(&value.as_str())) {
                let reason = format!("Supported: {}.", allowed.join(", "));
                return Err(ApiError::invalid(value, parameter, reason));
            }
        }
        for (is_there, parameter) in [
            (self.tpm_support.is_some(), "TpmSupport"),
            (self.uefi_data.is_some(), "UefiData"),
            (self.kernel_id.is_some(), "KernelId"),
            (self.ramdisk_id.is_some(), "RamdiskId"),
            (!self.billing_products.is_empty(), "BillingProduct"),
        ] {
            if is_there {
                let message = format!("The parameter {parameter} is not supported.");
                return Err(ApiError::new("UnsupportedOperation", message));
            }
        }
        if self.image_location.is_none() && self.kernel_command_line.is_some() {
            let message = "KernelCommandLine goes with ImageLocation only.";
            return Err(ApiError::combination(message));
        }
        self.tags().map(|_| ())
    }

    /// Whether its name and id are free.
    fn check_free(&self, world: &World, context: Context<'_>) -> Result<(), ApiError> {
        let mut own = world.all::<Image>().filter(|image| image.owner == context.caller.account);
        if let Some(other) = own.find(|image| image.name == self.name) {
            let message = format!("AMI name {} is already in use by AMI {}", self.name, other.id);
            return Err(ApiError::new("InvalidAMIName.Duplicate", message));
        }
        if let Some(id) = self.image_id.as_ref().filter(|id| world.get::<Image>(id).is_some()) {
            return Err(ApiError::invalid(id, "ImageId", "It is already in use."));
        }
        Ok(())
    }

    /// The chosen id, or a new one.
    fn id(&self) -> Result<ImageId, ApiError> {
        let Some(id) = &self.image_id else { return Ok(ImageId::random()) };
        id.parse().map_err(|_| {
            let message = format!("Invalid id: \"{id}\" (expecting \"ami-...\")");
            ApiError::new(Image::MALFORMED, message)
        })
    }

    /// The directory to register from, with its files opened.
    fn source(&self, context: Context<'_>) -> Result<Option<Source>, ApiError> {
        let allowed = &context.agent.config.image_directories;
        let open = |location: &String| Source::open(location, allowed, self.kernel_command_line.as_deref());
        self.image_location.as_ref().map(open).transpose().map_err(from_images)
    }

    /// The mapping of the root device, if that is a volume, and those of the others.
    fn mappings(
        &self,
        world: &World,
        context: Context<'_>,
        source: Option<&Source>,
        new: &SnapshotId,
    ) -> Result<(Option<Mapping>, Vec<Mapping>), ApiError> {
        let root = self.root();
        let (own_root, others) = resolve(world, context, &self.mappings, root)?;
        let ebs = match own_root {
            Root::Volume(ebs) => ebs,
            Root::Store if source.is_some() => return Ok((None, others)),
            Root::Store => {
                let message =
                    format!("The root device {root} can be in the instance store with ImageLocation only.");
                return Err(ApiError::combination(message));
            }
        };
        let volume = match (source, ebs.snapshot_id.as_deref()) {
            (Some(source), None) => {
                let snapshot = source.has_disk().then(|| new.clone());
                ebs.resolve(snapshot, Some(source.volume_size()))?
            }
            (None, Some(id)) => {
                let snapshot = own_completed_snapshot(world, context, id)?;
                let volume = ebs.resolve(Some(snapshot.id.clone()), Some(snapshot.volume_size))?;
                MappedVolume { encrypted: volume.encrypted || snapshot.encrypted, ..volume }
            }
            (Some(_), Some(_)) => {
                let message = "The root device's disk comes from ImageLocation: leave its SnapshotId out.";
                return Err(ApiError::combination(message));
            }
            (None, None) => {
                if self.root_device_name.is_none() && self.mappings.is_empty() {
                    return Err(ApiError::missing("imageLocation, or rootDeviceName and a mapping of it"));
                }
                let message = format!("The root device {root} must be mapped to a snapshot.");
                return Err(ApiError::new("InvalidBlockDeviceMapping", message));
            }
        };
        let root = Mapping { device_name: root.to_owned(), volume: Some(volume), virtual_name: None };
        Ok((Some(root), others))
    }

    /// What the new image is. One from a directory is pending, as its files are yet to be copied; its root disk will be the
    /// snapshot `new`.
    fn image(
        &self,
        world: &World,
        context: Context<'_>,
        id: ImageId,
        source: Option<&Source>,
        new: &SnapshotId,
    ) -> Result<Image, ApiError> {
        self.check_free(world, context)?;
        let owner = &context.caller.account;
        let (root, others) = self.mappings(world, context, source, new)?;
        let root_store = source.filter(|_| root.is_none()).map(|source| StoreDisk {
            name: StoreDisk::ROOT.to_owned(),
            device_name: None,
            size: source.disk_size(),
            layer: None,
            source: None,
        });
        let boot = match (source, &root) {
            (None, Some(root)) => boot_of(world, context, root),
            _ => None,
        };
        let block_devices = root.into_iter().chain(others).collect();
        let location = match source {
            Some(source) => source.directory.display().to_string(),
            None => format!("{owner}/{}", self.name),
        };
        Ok(Image {
            id,
            name: self.name.clone(),
            description: self.description.clone().filter(|text| !text.is_empty()),
            owner: owner.clone(),
            state: if source.is_some() { ImageState::Pending } else { ImageState::Available },
            launch_permissions: Vec::new(),
            architecture: "x86_64".into(),
            root_device_name: self.root().to_owned(),
            block_devices,
            root_store,
            boot,
            boot_mode: self.boot_mode.clone(),
            imds_support: self.imds_support.clone(),
            location,
            created: Timestamp::now(),
            origin: None,
            waits_for: None,
            awaited: None,
            is_copied: source.is_some(),
            failure: None,
        })
    }
}

/// An image's name has 3 to 128 of the characters that EC2 allows.
pub(super) fn check_name(name: &str) -> Result<(), ApiError> {
    if name.is_empty() {
        return Err(ApiError::missing("Name"));
    }
    let is_allowed = |character: char| character.is_ascii_alphanumeric() || "()[] ./-'@_".contains(character);
    if !(3..=128).contains(&name.chars().count()) || !name.chars().all(is_allowed) {
        let message = "AMI names must be between 3 and 128 characters long, and may contain letters, numbers, '(', \
                       ')', '[', ']', ' ', '.', '/', '-', ''', '@' and '_'";
        return Err(ApiError::new("InvalidAMIName.Malformed", message));
    }
    Ok(())
}

/// A snapshot of a disk without its kernel can be booted with the kernel that its image was registered with.
fn boot_of(world: &World, context: Context<'_>, root: &Mapping) -> Option<BootFiles> {
    let snapshot = root.volume.as_ref()?.snapshot.as_ref();
    let mut visible = world.all::<Image>().filter(|image| image.is_visible(&context.caller.account));
    let has_it = |image: &Image| {
        image.boot.is_some()
            && image.block_devices.iter().any(|mapping| {
                mapping.device_name == image.root_device_name
                    && mapping.volume.as_ref().is_some_and(|volume| volume.snapshot.as_ref() == snapshot)
            })
    };
    visible.find(|image| has_it(image))?.boot.clone()
}

impl Action for RegisterImage {
    const NAME: &'static str = "RegisterImage";
    type Response = Response;

    fn check(&self, context: Context<'_>) -> Result<(), ApiError> {
        self.check_parameters()?;
        let source = self.source(context)?;
        let world = context.agent.state.read();
        self.image(&world, context, self.id()?, source.as_ref(), &SnapshotId::random()).map(|_| ())
    }

    fn run(self, context: Context<'_>) -> Result<Response, ApiError> {
        let id = self.id()?;
        let mut tags = self.tags()?;
        let source = self.source(context)?;
        let turn = source.as_ref().map(|_| context.agent.copying.begin()).transpose().map_err(from_images)?;
        let new = SnapshotId::random();
        context.agent.state.change(|draft| {
            let image = self.image(draft, context, id.clone(), source.as_ref(), &new)?;
            draft.tag(&image.id, tags.remove("image").unwrap_or_default());
            draft.put(image);
            Ok::<_, ApiError>(())
        })?;
        if let (Some(source), Some(turn)) = (source, turn) {
            let tags = tags.remove("snapshot").unwrap_or_default();
            copying::begin(context.agent, turn, Copying { id: id.clone(), source, snapshot: new, tags })?;
        }
        Ok(Response { image_id: id.to_string() })
    }
}
