//! Which disks instances are launched with: the image's volumes, as the request changes them, and more; and those of the
//! instance store.

use std::collections::{BTreeMap, BTreeSet};

use super::request::{BlockDeviceMapping, Ebs};
use crate::actions::device_name::{is_device_name, is_ephemeral};
use crate::actions::lookup::completed_snapshot;
use crate::actions::refused::unsupported;
use crate::catalogue::InstanceType;
use crate::query::{ApiError, Context};
use crate::records::{Image, MappedVolume, Snapshot, StoreDisk};
use crate::state::World;
use crate::volumes::types;

/// A volume to make.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// Such as `/dev/sdf`.
    pub name: String,
    /// What it is.
    pub volume: MappedVolume,
}

/// What each instance gets.
#[derive(Clone, Debug)]
pub struct Devices {
    /// Its volumes, the root first.
    pub volumes: Vec<Device>,
    /// The disks of its instance store, the root first if it is there.
    pub instance_store: Vec<StoreDisk>,
}

/// The disks of each instance of a type.
pub fn plan(
    world: &World,
    context: Context<'_>,
    image: &Image,
    kind: &InstanceType,
    wanted: &[BlockDeviceMapping],
) -> Result<Devices, ApiError> {
    let root = &image.root_device_name;
    let mut names = BTreeSet::new();
    for mapping in wanted {
        if !names.insert(mapping.device_name.as_str()) {
            let message =
                format!("The device '{}' is used in more than one block-device mapping", mapping.device_name);
            return Err(bad_mapping(message));
        }
        if image.root_store.is_some() && mapping.device_name == *root {
            return Err(bad_mapping(format!(
                "The root device {root} is in the instance store, and cannot be mapped to anything else."
            )));
        }
    }
    let mut devices = Vec::new();
    for mapping in &image.block_devices {
        let volume = mapping.volume.clone();
        let change = wanted.iter().find(|change| change.device_name == mapping.device_name);
        let volume = match change {
            Some(change) => resolve(world, context, change, volume, mapping.device_name == *root)?,
            None => volume.map(|volume| as_in_image(volume, &mapping.device_name)).transpose()?,
        };
        devices.extend(volume.map(|volume| Device { name: mapping.device_name.clone(), volume }));
    }
    let known = |name: &str| image.block_devices.iter().any(|mapping| mapping.device_name == name);
    for mapping in wanted.iter().filter(|mapping| !known(&mapping.device_name)) {
        let name = &mapping.device_name;
        if !is_device_name(name) {
            let reason = format!("{name} is not a valid EBS device name.");
            return Err(ApiError::invalid(name, "blockDeviceMapping.deviceName", reason));
        }
        let volume = resolve(world, context, mapping, None, false)?;
        devices.extend(volume.map(|volume| Device { name: name.clone(), volume }));
    }
    let instance_store = instance_store(image, kind, wanted)?;
    // What is made of something encrypted is so, too, whatever is asked for.
    for volume in devices.iter_mut().map(|device| &mut device.volume) {
        let snapshot = volume.snapshot.as_ref().and_then(|id| world.get::<Snapshot>(id));
        volume.encrypted |= snapshot.is_some_and(|snapshot| snapshot.encrypted);
    }
    devices.sort_by_key(|device| device.name != *root);
    Ok(Devices { volumes: devices, instance_store })
}

/// The disks of the instance store. They come with the type, whatever is said here; a mapping gives one a name. What is
/// mapped to a disk that the type does not have is nothing, as in EC2.
fn instance_store(
    image: &Image,
    kind: &InstanceType,
    wanted: &[BlockDeviceMapping],
) -> Result<Vec<StoreDisk>, ApiError> {
    let mut names: BTreeMap<&str, &str> = BTreeMap::new();
    for mapping in &image.block_devices {
        let is_changed = wanted.iter().any(|change| change.device_name == mapping.device_name);
        if let Some(disk) = mapping.virtual_name.as_deref().filter(|_| !is_changed) {
            names.insert(disk, &mapping.device_name);
        }
    }
    let mut mapped = BTreeSet::new();
    for mapping in wanted {
        let Some(disk) = mapping.virtual_name.as_deref() else { continue };
        if !mapped.insert(disk) {
            return Err(bad_mapping(format!("{disk} is mapped to more than one device.")));
        }
        names.insert(disk, &mapping.device_name);
    }
    let mut disks: Vec<StoreDisk> = image.root_store.iter().cloned().collect();
    disks.extend(kind.instance_store());
    for disk in &mut disks {
        disk.device_name = names.get(disk.name.as_str()).map(|name| (*name).to_owned());
    }
    Ok(disks)
}

/// What an entry of the request makes of the image's: a volume, or nothing.
fn resolve(
    world: &World,
    context: Context<'_>,
    mapping: &BlockDeviceMapping,
    image: Option<MappedVolume>,
    is_root: bool,
) -> Result<Option<MappedVolume>, ApiError> {
    let name = &mapping.device_name;
    let kinds = [mapping.ebs.is_some(), mapping.virtual_name.is_some(), mapping.no_device.is_some()];
    if kinds.iter().filter(|kind| **kind).count() > 1 {
        let message =
            format!("The block device mapping of {name} has more than one of Ebs, VirtualName and NoDevice.");
        return Err(ApiError::combination(message));
    }
    if is_root && mapping.ebs.is_none() && kinds.contains(&true) {
        return Err(bad_mapping(format!(
            "The root device {name} cannot be left out or be an instance store volume."
        )));
    }
    if let Some(virtual_name) = &mapping.virtual_name {
        if !is_ephemeral(virtual_name) {
            let reason = "Expecting ephemeral0 to ephemeral23.";
            return Err(ApiError::invalid(virtual_name, "blockDeviceMapping.virtualName", reason));
        }
        // What there is of it is for `instance_store` to say.
        return Ok(None);
    }
    if mapping.no_device.is_some() {
        return Ok(None);
    }
    let Some(ebs) = &mapping.ebs else {
        return match image {
            Some(volume) => as_in_image(volume, name).map(Some),
            None => Err(ApiError::missing("ebs")),
        };
    };
    volume(world, context, name, ebs, image, is_root).map(Some)
}

fn volume(
    world: &World,
    context: Context<'_>,
    name: &str,
    ebs: &Ebs,
    image: Option<MappedVolume>,
    is_root: bool,
) -> Result<MappedVolume, ApiError> {
    if let Some(zone) = ebs.availability_zone.as_ref().or(ebs.availability_zone_id.as_ref()) {
        let reason = "A volume is made where its instance is.";
        return Err(ApiError::invalid(zone, "blockDeviceMapping.ebs.availabilityZone", reason));
    }
    if ebs.kms_key_id.is_some() && ebs.encrypted != Some(true) {
        let message = "The parameter KmsKeyId requires the parameter Encrypted to be set.";
        return Err(ApiError::new("InvalidParameterDependency", message));
    }
    if ebs.kms_key_id.is_some() || ebs.outpost_arn.is_some() || ebs.ebs_card_index != 0 {
        return Err(unsupported("This host has no KMS keys, no outposts and one EBS card: leave them out."));
    }
    if is_root
        && let Some(wanted) = &ebs.snapshot_id
        && image.as_ref().and_then(|volume| volume.snapshot.as_ref()).is_none_or(|own| own.as_str() != wanted)
    {
        return Err(bad_mapping(format!(
            "The snapshot of the root device {name} is the image's, and cannot be changed."
        )));
    }
    let snapshot = match &ebs.snapshot_id {
        Some(id) => Some(completed_snapshot(world, context, id)?.id.clone()),
        None => image.as_ref().and_then(|volume| volume.snapshot.clone()),
    };
    let smallest = snapshot.as_ref().and_then(|id| Some(world.get::<Snapshot>(id)?.volume_size));
    let of_image = image.as_ref().map(|volume| volume.size);
    let Some(size) = ebs.volume_size.or(of_image.max(smallest)) else {
        return Err(ApiError::new(
            "MissingParameter",
            "The request must contain the parameter size or snapshotId",
        ));
    };
    // An image can have a volume without a record of its snapshot: what it needs is what it was made with.
    let smallest = smallest.or(of_image.filter(|_| snapshot.is_some() || is_root));
    if let Some(smallest) = smallest.filter(|smallest| size < *smallest) {
        let from = snapshot.map_or_else(|| "its image".to_owned(), |id| format!("snapshot '{id}'"));
        return Err(bad_mapping(format!(
            "Volume of size {size}GB is smaller than {from}, expect size >= {smallest}GB"
        )));
    }
    // The operations of one type say nothing of another.
    let same_type =
        |volume: &&MappedVolume| ebs.volume_type.as_ref().is_none_or(|wanted| *wanted == volume.volume_type);
    let alike = image.as_ref().filter(same_type);
    let volume_type = match (&ebs.volume_type, &image) {
        (Some(wanted), _) => wanted.clone(),
        (None, Some(volume)) => volume.volume_type.clone(),
        (None, None) => types::DEFAULT.to_owned(),
    };
    let volume = MappedVolume {
        snapshot,
        size,
        volume_type,
        iops: ebs.iops.or(alike.and_then(chosen_iops)),
        throughput: ebs.throughput.or(alike.and_then(|volume| volume.throughput)),
        encrypted: ebs.encrypted.unwrap_or(false) || image.as_ref().is_some_and(|volume| volume.encrypted),
        delete_on_termination: ebs
            .delete_on_termination
            .or(image.as_ref().map(|volume| volume.delete_on_termination))
            .unwrap_or(true),
    };
    if is_root && matches!(volume.volume_type.as_str(), "st1" | "sc1") {
        let message = format!("A volume of type {} cannot be the root device {name}.", volume.volume_type);
        return Err(ApiError::new("InvalidParameterValue", message));
    }
    checked(volume, name)
}

/// The operations that an image has chosen. What it says of gp2, which leaves no choice, is only a figure.
fn chosen_iops(volume: &MappedVolume) -> Option<u32> {
    volume.iops.filter(|_| volume.volume_type != "gp2")
}

/// A volume that the request does not change.
fn as_in_image(volume: MappedVolume, name: &str) -> Result<MappedVolume, ApiError> {
    let iops = chosen_iops(&volume);
    checked(MappedVolume { iops, ..volume }, name)
}

/// A volume within the limits of its type, with everything that was left open filled in.
fn checked(volume: MappedVolume, name: &str) -> Result<MappedVolume, ApiError> {
    let found = types::check(&volume.volume_type, volume.size, volume.iops, volume.throughput)
        .map_err(|error| ApiError { message: format!("{} (device {name})", error.message), ..error })?;
    Ok(MappedVolume { iops: found.iops, throughput: found.throughput, ..volume })
}

fn bad_mapping(message: String) -> ApiError {
    ApiError::new("InvalidBlockDeviceMapping", message)
}
