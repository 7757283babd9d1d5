//! Images.

use std::collections::BTreeMap;
use std::path::PathBuf;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{Mapping, RootDeviceType, StoreDisk};
use crate::ids::{ImageId, InstanceId, VolumeId};

/// An image (AMI).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    /// `ami-…`, chosen by the operator or random.
    pub id: ImageId,
    /// Unique in the account.
    pub name: String,
    /// For people.
    pub description: Option<String>,
    /// The account.
    pub owner: String,
    /// `available`, or why not.
    pub state: ImageState,
    /// The accounts that may launch it besides its owner; `all` is everybody.
    pub launch_permissions: Vec<String>,
    /// `x86_64`.
    pub architecture: String,
    /// Such as `/dev/xvda`.
    pub root_device_name: String,
    /// What its instances' disks are made from.
    pub block_devices: Vec<Mapping>,
    /// The root disk, if that is in the instance store and no volume.
    #[serde(default)]
    pub root_store: Option<StoreDisk>,
    /// Kernel and initial RAM disk. Without them, the root disk says what it boots.
    pub boot: Option<BootFiles>,
    /// `uefi` and so on, if it was said at registration. Guests start without firmware, whatever it is.
    pub boot_mode: Option<String>,
    /// `v2.0` makes tokens required in the metadata service.
    pub imds_support: Option<String>,
    /// Where it was registered from: a directory of the host.
    pub location: String,
    /// When it was registered.
    pub created: Timestamp,
    /// What it was made of, if not of a directory or a snapshot.
    #[serde(default)]
    pub origin: Option<ImageOrigin>,
    /// The instance whose guest is to be down before the snapshots are made: it is being rebooted, or stopped.
    #[serde(default)]
    pub waits_for: Option<InstanceId>,
    /// The snapshots that are yet to be made, then.
    #[serde(default)]
    pub awaited: Option<AwaitedSnapshots>,
    /// Whether its files are being copied from where it is registered from, which an agent that dies does not go on with.
    #[serde(default)]
    pub is_copied: bool,
    /// Why it could not be made, if its snapshots do not say that.
    #[serde(default)]
    pub failure: Option<String>,
}

impl Image {
    /// It cannot be made, and waits for nothing any more.
    pub fn fail(&mut self, why: impl Into<String>) {
        (self.waits_for, self.awaited, self.is_copied) = (None, None, false);
        self.state = ImageState::Failed;
        self.failure = Some(why.into());
    }

    /// What the root device of its instances is on.
    pub fn root_device_type(&self) -> RootDeviceType {
        match self.root_store {
            Some(_) => RootDeviceType::InstanceStore,
            None => RootDeviceType::Ebs,
        }
    }
}

/// What an image was made of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ImageOrigin {
    /// An instance: CreateImage.
    Instance(InstanceId),
    /// Another image: CopyImage.
    Image(ImageId),
}

/// Snapshots that an image is yet to get.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AwaitedSnapshots {
    /// Of which volume, by the device name of the image's mapping.
    pub volumes: BTreeMap<String, VolumeId>,
    /// Their tags.
    pub tags: BTreeMap<String, String>,
}

/// Files to boot from. They are the image's own, and nobody writes to them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootFiles {
    /// An uncompressed ELF kernel or a bzImage.
    pub kernel: PathBuf,
    /// The initial RAM file system.
    pub initrd: Option<PathBuf>,
    /// The kernel's command line.
    pub command_line: String,
}

/// How far an image is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ImageState {
    /// Being made.
    Pending,
    /// Can be launched.
    Available,
    /// Could not be made.
    Failed,
}
