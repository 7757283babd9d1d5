//! Volumes, snapshots, and the mappings that make volumes.

use std::path::PathBuf;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::ids::{InstanceId, SnapshotId, VolumeId};

/// A volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    /// `vol-…`.
    pub id: VolumeId,
    /// The account.
    pub owner: String,
    /// In GiB.
    pub size: u32,
    /// Such as `gp3`.
    pub volume_type: String,
    /// Operations per second, of types that have them.
    pub iops: Option<u32>,
    /// MiB per second, of types that have it.
    pub throughput: Option<u32>,
    /// Whether it was asked to be encrypted.
    pub encrypted: bool,
    /// What it was made from.
    pub snapshot: Option<SnapshotId>,
    /// Such as `us-east-1a`.
    pub availability_zone: String,
    /// When it was made.
    pub created: Timestamp,
    /// Where it is in its life.
    pub state: VolumeState,
    /// Who has it.
    pub attachment: Option<Attachment>,
}

/// EC2's states.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum VolumeState {
    /// Its file is being made.
    Creating,
    /// Nobody has it.
    Available,
    /// An instance has it.
    InUse,
    /// Its file is being deleted.
    Deleting,
    /// Its file cannot be made.
    Error,
}

/// A volume's attachment to an instance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    /// To whom.
    pub instance: InstanceId,
    /// As what.
    pub device: String,
    /// Whether it goes with the instance.
    pub delete_on_termination: bool,
    /// Since when.
    pub attached: Timestamp,
    /// How far it is.
    pub status: AttachmentStatus,
}

/// How far an attachment is. A volume has one until no VMM can write to it any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AttachmentStatus {
    /// The guest is to get it.
    Attaching,
    /// The guest has it, or will have it when it starts.
    Attached,
    /// The guest was asked to let go of it.
    Detaching {
        /// Whether it is not waited for.
        force: bool,
    },
}

impl AttachmentStatus {
    /// EC2's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Attaching => "attaching",
            Self::Attached => "attached",
            Self::Detaching { .. } => "detaching",
        }
    }
}

/// A snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// `snap-…`.
    pub id: SnapshotId,
    /// The account.
    pub owner: String,
    /// For people.
    pub description: String,
    /// The size of the volume that it was made from, in GiB.
    pub volume_size: u32,
    /// What it was made from, if that was a volume.
    pub volume: Option<VolumeId>,
    /// When.
    pub started: Timestamp,
    /// Its data: a raw file that nobody writes to. None is all zeroes.
    pub file: Option<PathBuf>,
}

/// A disk of an instance store. Its contents go with the guest: they outlive a reboot, and nothing else.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoreDisk {
    /// `ephemeral0` and so on, or [`StoreDisk::ROOT`].
    pub name: String,
    /// Such as `/dev/sdb`, if a block device mapping says so.
    pub device_name: Option<String>,
    /// In bytes.
    pub size: u64,
    /// What it begins with, if not with zeroes: a raw file that nobody writes to.
    pub source: Option<PathBuf>,
}

impl StoreDisk {
    /// The name of a root disk.
    pub const ROOT: &'static str = "root";

    /// Whether it is the root disk.
    pub fn is_root(&self) -> bool {
        self.name == Self::ROOT
    }
}

/// What an instance's root device is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RootDeviceType {
    /// A volume.
    Ebs,
    /// Its instance store: it cannot be stopped.
    InstanceStore,
}

impl RootDeviceType {
    /// EC2's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ebs => "ebs",
            Self::InstanceStore => "instance-store",
        }
    }
}

/// An entry of a block device mapping.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mapping {
    /// Such as `/dev/sdf`.
    pub device_name: String,
    /// A volume to make, for all but instance store.
    pub volume: Option<MappedVolume>,
    /// `ephemeral0` and so on, for instance store.
    pub virtual_name: Option<String>,
}

/// A volume to make at launch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MappedVolume {
    /// From what; none is an empty volume.
    pub snapshot: Option<SnapshotId>,
    /// In GiB.
    pub size: u32,
    /// Such as `gp3`.
    pub volume_type: String,
    /// Operations per second, if chosen.
    pub iops: Option<u32>,
    /// MiB per second, if chosen.
    pub throughput: Option<u32>,
    /// Whether it is encrypted.
    pub encrypted: bool,
    /// Whether it goes with the instance.
    pub delete_on_termination: bool,
}
