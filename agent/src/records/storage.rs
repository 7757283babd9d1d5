//! Volumes, snapshots, the layers that both are made of, and the mappings that make volumes.

use std::path::PathBuf;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use serde_json::{Value, json};

use super::{Record, fields};
use crate::ids::{InstanceId, LayerId, SnapshotId, VolumeId};

/// Files with a part of what is on volumes: what was written between two snapshots. A volume is the layer on top of it and
/// all that are below that.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layer {
    /// A UUID.
    pub id: LayerId,
    /// The layer that it is on top of.
    pub parent: Option<LayerId>,
    /// The size of a volume that it is on top of, in bytes: a multiple of 512.
    pub size: u64,
    /// The name of its files. Another one when it was merged with layers below it.
    pub files: String,
    /// How far it is.
    pub state: LayerState,
}

impl Layer {
    /// A new, empty one on top of `parent`, whose files are yet to be made.
    pub fn plan(parent: Option<LayerId>, size: u64) -> Self {
        let id = LayerId::random();
        Self { files: id.to_string(), id, parent, size, state: LayerState::Planned }
    }
}

/// How far a layer is. It never goes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LayerState {
    /// Its files are yet to be made.
    Planned,
    /// It is the top of a volume, and takes what is written.
    Top,
    /// Another one is on top of it. It changes no more, and is being made durable.
    Covered,
    /// It is durable, and volumes may share it.
    Sealed,
}

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
    /// Its topmost layer.
    pub layer: LayerId,
    /// Such as `us-east-1a`.
    pub availability_zone: String,
    /// When it was made.
    pub created: Timestamp,
    /// Where it is in its life.
    pub state: VolumeState,
    /// Who has it.
    pub attachment: Option<Attachment>,
    /// The last ModifyVolume.
    #[serde(default)]
    pub modification: Option<Modification>,
    /// Why nothing can be written to it, if that is so: once something could not be made durable, nobody knows what is.
    #[serde(default)]
    pub impairment: Option<String>,
    /// Whether it is to take writes again by itself after it was impaired.
    #[serde(default)]
    pub auto_enable_io: bool,
}

impl Record for Volume {
    const KIND: &'static str = "volume";
    /// 2: has layers.
    const VERSION: u32 = 2;

    fn key(&self) -> &str {
        self.id.as_str()
    }

    fn migrate(_: u32, document: Value) -> Result<Value, String> {
        with_layer(document)
    }
}

impl Volume {
    /// Why nobody is to have it, if that is so: it is impaired, and was not enabled again.
    pub fn hindrance(&self) -> Option<String> {
        let why = self.impairment.as_ref().filter(|_| !self.auto_enable_io)?;
        let id = &self.id;
        Some(format!(
            "{id} is impaired ({why}): look at it with `innkeeper volume check {id}`, and then use EnableVolumeIO"
        ))
    }

    /// The change of it that is yet to be done.
    pub fn change_under_way(&self) -> Option<&Modification> {
        self.modification.as_ref().filter(|change| change.is_under_way())
    }
}

/// Gives a document of before there were layers the name of one. What was its file becomes that when the agent starts.
fn with_layer(mut document: Value) -> Result<Value, String> {
    fields(&mut document)?.insert("layer".into(), json!(LayerId::random()));
    Ok(document)
}

/// What can be changed of a volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeShape {
    /// In GiB.
    pub size: u32,
    /// Such as `gp3`.
    pub volume_type: String,
    /// Operations per second, of types that have them.
    pub iops: Option<u32>,
    /// MiB per second, of types that have it.
    pub throughput: Option<u32>,
}

impl VolumeShape {
    /// What a volume is.
    pub fn of(volume: &Volume) -> Self {
        Self {
            size: volume.size,
            volume_type: volume.volume_type.clone(),
            iops: volume.iops,
            throughput: volume.throughput,
        }
    }
}

/// A change of a volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Modification {
    /// What it was.
    pub original: VolumeShape,
    /// What it is to be.
    pub target: VolumeShape,
    /// How far it is.
    pub state: ModificationState,
    /// When it was asked for.
    pub started: Timestamp,
    /// When it was done, or given up.
    pub ended: Option<Timestamp>,
}

impl Modification {
    /// Whether it is yet to be done.
    pub fn is_under_way(&self) -> bool {
        self.state == ModificationState::Modifying
    }
}

/// How far a change of a volume is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ModificationState {
    /// It was asked for.
    Modifying,
    /// It is done.
    Completed,
    /// It could not be done: why.
    Failed(String),
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
    /// What was on the volume: this layer, and those below it.
    pub layer: LayerId,
    /// How far it is.
    #[serde(default)]
    pub state: SnapshotState,
    /// When it was complete.
    #[serde(default)]
    pub completed: Option<Timestamp>,
    /// Whether the volume was said to be encrypted.
    #[serde(default)]
    pub encrypted: bool,
    /// The accounts that may make volumes of it besides its owner; `all` is everybody.
    #[serde(default)]
    pub create_volume_permissions: Vec<String>,
    /// The raw file of one of before there were layers, until it is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<PathBuf>,
}

impl Record for Snapshot {
    const KIND: &'static str = "snapshot";
    /// 2: has a layer.
    const VERSION: u32 = 2;

    fn key(&self) -> &str {
        self.id.as_str()
    }

    fn migrate(_: u32, document: Value) -> Result<Value, String> {
        with_layer(document)
    }
}

/// How far a snapshot is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SnapshotState {
    /// Its layer is not durable yet.
    Pending,
    /// Volumes can be made of it.
    #[default]
    Completed,
    /// It could not be made durable: why.
    Error(String),
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
    /// What it begins with, if not with zeroes: this layer and those below it.
    #[serde(default)]
    pub layer: Option<LayerId>,
    /// The same of before there were layers: a raw file that nobody writes to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
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
