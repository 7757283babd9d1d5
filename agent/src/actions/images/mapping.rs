//! Block device mappings of images, in requests and in answers.

use serde::{Deserialize, Serialize};

use crate::actions::device_name::{is_device_name, is_ephemeral};
use crate::actions::instances::MAX_VOLUMES;
use crate::actions::lookup::own_completed_snapshot;
use crate::query::{ApiError, Context};
use crate::records::{MappedVolume, Mapping};
use crate::state::World;
use crate::volumes::types;

/// `BlockDeviceMapping.N`.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub(super) struct BlockDeviceMapping {
    pub device_name: String,
    virtual_name: Option<String>,
    no_device: Option<String>,
    pub ebs: Option<Ebs>,
}

/// A volume to make at launch.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub(super) struct Ebs {
    pub snapshot_id: Option<String>,
    volume_size: Option<u32>,
    volume_type: Option<String>,
    iops: Option<u32>,
    throughput: Option<u32>,
    encrypted: Option<bool>,
    delete_on_termination: Option<bool>,
    kms_key_id: Option<String>,
    outpost_arn: Option<String>,
    availability_zone: Option<String>,
    availability_zone_id: Option<String>,
    /// Volumes are there at once, at any rate.
    #[serde(rename = "VolumeInitializationRate")]
    _volume_initialization_rate: Option<i64>,
    #[serde(default)]
    ebs_card_index: i64,
}

impl BlockDeviceMapping {
    /// Whether it has one of Ebs, VirtualName and NoDevice.
    pub fn says_one_thing(&self) -> bool {
        let all = [self.ebs.is_some(), self.virtual_name.is_some(), self.no_device.is_some()];
        all.iter().filter(|is_there| **is_there).count() == 1
    }
}

impl Ebs {
    /// Refuses what an image of this host cannot say of its volumes.
    fn check_supported(&self) -> Result<(), ApiError> {
        for (asked, message) in [
            (self.kms_key_id.is_some(), "This host has no KMS keys: leave KmsKeyId out."),
            (self.outpost_arn.is_some(), "There are no outposts: leave OutpostArn out."),
            (
                self.availability_zone.is_some() || self.availability_zone_id.is_some(),
                "An image is for every zone: leave the availability zones of its volumes out.",
            ),
            (self.ebs_card_index != 0, "An instance has one EBS card, 0: leave EbsCardIndex out."),
        ] {
            if asked {
                return Err(ApiError::new("UnsupportedOperation", message));
            }
        }
        Ok(())
    }

    /// What an image is to have of a volume of its instance. EC2 lets only DeleteOnTermination be changed; that the
    /// volumes of the image's instances can be larger, and of another type, does no harm.
    pub fn change(&self, device: &str, volume: MappedVolume) -> Result<MappedVolume, ApiError> {
        self.check_supported()?;
        let invalid = |reason: &str| {
            Err(ApiError::new("InvalidBlockDeviceMapping", format!("The mapping of {device} {reason}.")))
        };
        if self.snapshot_id.is_some() {
            return invalid(
                "is of a volume of the instance, whose snapshot is yet to be made: leave SnapshotId out",
            );
        }
        if self.encrypted.is_some_and(|encrypted| encrypted != volume.encrypted) {
            return invalid("cannot change whether its volume is encrypted: copy the image instead");
        }
        let size = self.volume_size.unwrap_or(volume.size);
        if size < volume.size {
            return invalid("makes its volume smaller");
        }
        let volume_type = self.volume_type.clone().unwrap_or_else(|| volume.volume_type.clone());
        // What was chosen of one type says nothing of another.
        let stays = volume_type == volume.volume_type;
        let iops = self.iops.or(volume.iops.filter(|_| stays));
        let throughput = self.throughput.or(volume.throughput.filter(|_| stays));
        types::check(&volume_type, size, iops, throughput)?;
        let delete_on_termination = self.delete_on_termination.unwrap_or(volume.delete_on_termination);
        Ok(MappedVolume { size, volume_type, iops, throughput, delete_on_termination, ..volume })
    }

    /// As it is recorded. A size is at least `smallest`, and that if none is named.
    pub fn resolve(
        &self,
        snapshot: Option<crate::ids::SnapshotId>,
        smallest: Option<u32>,
    ) -> Result<MappedVolume, ApiError> {
        self.check_supported()?;
        let Some(size) = self.volume_size.or(smallest) else {
            return Err(ApiError::missing("size/snapshot"));
        };
        if let Some(smallest) = smallest.filter(|smallest| size < *smallest) {
            let message =
                format!("Volume of size {size}GB is smaller than its snapshot, expect size >= {smallest}GB");
            return Err(ApiError::new("InvalidBlockDeviceMapping", message));
        }
        let volume_type = self.volume_type.as_deref().unwrap_or(types::DEFAULT);
        types::check(volume_type, size, self.iops, self.throughput)?;
        Ok(MappedVolume {
            snapshot,
            size,
            volume_type: volume_type.to_owned(),
            iops: self.iops,
            throughput: self.throughput,
            encrypted: self.encrypted.unwrap_or(false),
            delete_on_termination: self.delete_on_termination.unwrap_or(true),
        })
    }
}

/// The `VirtualName` of a root device in the instance store: EC2's name for it in the metadata.
const ROOT_STORE: &str = "ami";

/// What a request says of the root device.
#[derive(Clone, Debug)]
pub(super) enum Root {
    /// It is a volume, of which this is said.
    Volume(Ebs),
    /// It is in the instance store.
    Store,
}

/// A request's mappings as they are recorded, but for that of `root`, which is given back apart.
pub(super) fn resolve(
    world: &World,
    context: Context<'_>,
    mappings: &[BlockDeviceMapping],
    root: &str,
) -> Result<(Root, Vec<Mapping>), ApiError> {
    let mut own_root = Root::Volume(Ebs::default());
    let mut resolved: Vec<Mapping> = Vec::new();
    let mut names = Vec::new();
    for mapping in mappings {
        let name = &mapping.device_name;
        let invalid = |reason: &str| {
            Err(ApiError::new("InvalidBlockDeviceMapping", format!("The mapping of {name} {reason}.")))
        };
        if names.contains(&name) {
            return invalid("is there twice");
        }
        names.push(name);
        if !is_device_name(name) {
            return invalid("is of a device whose name is not a valid EBS device name");
        }
        match (&mapping.ebs, &mapping.virtual_name, &mapping.no_device) {
            (None, None, Some(_)) => {}
            (None, Some(virtual_name), None) if name == root => {
                if virtual_name != ROOT_STORE {
                    return invalid("is that of the root device: it has to be a volume, or VirtualName=ami");
                }
                own_root = Root::Store;
            }
            (None, Some(virtual_name), None) => {
                if !is_ephemeral(virtual_name) {
                    return invalid("has a VirtualName that is none of ephemeral0 to ephemeral23");
                }
                let virtual_name = Some(virtual_name.clone());
                if resolved.iter().any(|other| other.virtual_name == virtual_name) {
                    return invalid("has the VirtualName of another");
                }
                resolved.push(Mapping { device_name: name.clone(), volume: None, virtual_name });
            }
            (Some(ebs), None, None) if name == root => own_root = Root::Volume(ebs.clone()),
            (Some(ebs), None, None) => {
                let id = ebs.snapshot_id.as_deref();
                let snapshot = id.map(|id| own_completed_snapshot(world, context, id)).transpose()?;
                let smallest = snapshot.map(|snapshot| snapshot.volume_size);
                let mut volume = ebs.resolve(snapshot.map(|snapshot| snapshot.id.clone()), smallest)?;
                volume.encrypted |= snapshot.is_some_and(|snapshot| snapshot.encrypted);
                resolved.push(Mapping {
                    device_name: name.clone(),
                    volume: Some(volume),
                    virtual_name: None,
                });
            }
            _ => return invalid("must have exactly one of Ebs, VirtualName and NoDevice"),
        }
    }
    // That of the root is there, whether it is named or not.
    if 1 + resolved.iter().filter(|mapping| mapping.volume.is_some()).count() > MAX_VOLUMES {
        let message = format!("An instance can have at most {MAX_VOLUMES} volumes.");
        return Err(ApiError::new("InvalidBlockDeviceMapping", message));
    }
    Ok((own_root, resolved))
}

/// `blockDeviceMapping`.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct MappingItem {
    pub device_name: String,
    pub virtual_name: Option<String>,
    pub ebs: Option<EbsItem>,
}

/// `ebs`.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct EbsItem {
    pub snapshot_id: Option<String>,
    pub volume_size: u32,
    pub volume_type: String,
    pub iops: Option<u32>,
    pub throughput: Option<u32>,
    pub delete_on_termination: bool,
    pub encrypted: bool,
}

impl From<&Mapping> for MappingItem {
    fn from(mapping: &Mapping) -> Self {
        Self {
            device_name: mapping.device_name.clone(),
            virtual_name: mapping.virtual_name.clone(),
            ebs: mapping.volume.as_ref().map(|volume| EbsItem {
                snapshot_id: volume.snapshot.as_ref().map(ToString::to_string),
                volume_size: volume.size,
                volume_type: volume.volume_type.clone(),
                iops: volume.iops,
                throughput: volume.throughput,
                delete_on_termination: volume.delete_on_termination,
                encrypted: volume.encrypted,
            }),
        }
    }
}
