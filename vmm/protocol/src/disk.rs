//! Disks.

use serde::{Deserialize, Serialize};

use crate::message::{Descriptor, Limits};

/// A disk to add.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AttachDisk {
    /// The controller's name for it, unique among all devices.
    pub id: String,
    /// What the disk is made of. Never guessed.
    pub source: DiskSource,
    /// Whether the guest can only read.
    #[serde(default)]
    pub read_only: bool,
    /// Whether the files are taken as they are, whoever has locked them. The controller knows that nobody writes to them as
    /// long as the guest reads. Only for a disk that the guest can only read.
    #[serde(default)]
    pub still: bool,
    /// What the guest sees as serial number: at most 20 printable ASCII characters.
    #[serde(default)]
    pub serial: String,
    /// How requests are carried out.
    #[serde(default)]
    pub engine: DiskEngine,
    /// How many queues, 1 to 16; by default as many as CPUs, up to 4.
    #[serde(default)]
    pub queues: Option<u16>,
    /// How much the guest may do.
    #[serde(default)]
    pub limits: Limits,
}

/// What a disk is made of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum DiskSource {
    /// Byte N of the disk is byte N of the file.
    Raw {
        /// The opened file or block device.
        file: Descriptor,
    },
    /// A stack of layers, as `docs/volumes.md` describes them.
    Layered {
        /// From the bottom; above those that came with `layers` before.
        layers: Vec<LayerFiles>,
    },
}

/// The opened files of a layer. Those of a top are opened for reading and writing, and so are those of a layer that may not
/// be marked as sealed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LayerFiles {
    /// What is in the layer.
    pub data: Descriptor,
    /// Where in it that is.
    pub map: Descriptor,
}

/// A layered disk that gets new tops.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SealDisk {
    /// The disk.
    pub id: String,
    /// Empty layers, from the lowest. Those that the disk has already as its upper layers are skipped; the first of the
    /// others was made to be on top of the disk's top, and each other on top of the one before.
    pub tops: Vec<LayerFiles>,
}

/// How a disk's requests are carried out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DiskEngine {
    /// With `io_uring` where the kernel has it, else synchronously.
    #[default]
    Auto,
    /// With `io_uring`, or not at all.
    #[serde(rename = "io_uring")]
    IoUring,
    /// One by one, in the thread that serves the queue.
    Sync,
}
