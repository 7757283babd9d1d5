//! The documents that the agent keeps: one type per kind of resource, plain data, in EC2's words.
//!
//! Each is stored as JSON with the version of its form. When a form changes, [`Record::VERSION`] goes up and
//! [`Record::migrate`] learns to read the one before.

mod event;
mod iam;
mod identity;
mod image;
mod instance;
mod meter;
mod network;
pub mod secret;
mod storage;

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

pub use event::{EventCode, Interruption, InterruptionAction, Notice, ScheduledEvent, StateChange};
pub use iam::{InstanceProfile, ProfileAssociation, Role};
pub use identity::Identity;
pub use image::{AwaitedSnapshots, BootFiles, Image, ImageOrigin, ImageState};
pub use instance::{
    BlockDevice, Endings, Instance, InstanceState, Lifecycle, MetadataOptions, ShutdownBehavior, StateReason,
    Step,
};
pub use meter::{Counts, Meter};
pub use network::{
    AclAssociation, AclEntry, CidrAssociation, Connectivity, DhcpOptions, ElasticAddress, ElasticAssociation,
    InterfaceAttachment, InterfaceType, InternetGateway, NatGateway, NatGatewayState, NetworkAcl,
    NetworkInterface, Peer, PrivateAddress, PublicAddress, Route, RouteOrigin, RouteTable,
    RouteTableAssociation, RouteTarget, Rule, SecurityGroup, Subnet, Vpc,
};
pub use secret::Secret;
pub use storage::{
    Attachment, AttachmentStatus, Layer, LayerState, MappedVolume, Mapping, Modification, ModificationState,
    RootDeviceType, Snapshot, SnapshotState, StoreDisk, Volume, VolumeShape, VolumeState,
};

use crate::ids::KeyPairId;

/// A document that is kept.
pub trait Record: Clone + Serialize + DeserializeOwned + Send + Sync + 'static {
    /// The kind's name, and the first part of its keys in the store.
    const KIND: &'static str;
    /// The version of its form, from 1.
    const VERSION: u32 = 1;

    /// What tells it from others of its kind.
    fn key(&self) -> &str;

    /// Turns a document of an older version into one of the next.
    fn migrate(version: u32, document: Value) -> Result<Value, String> {
        let _ = document;
        Err(format!("no way leads from version {version} of {} to the next", Self::KIND))
    }
}

/// The fields of a stored document, for those that migrate it.
fn fields(document: &mut Value) -> Result<&mut Map<String, Value>, String> {
    document.as_object_mut().ok_or_else(|| "it has no fields".to_owned())
}

/// A text of a stored document.
fn text(fields: &Map<String, Value>, name: &str) -> Result<String, String> {
    let text = fields.get(name).and_then(Value::as_str).map(str::to_owned);
    text.ok_or_else(|| format!("it has no {name}"))
}

/// A kind of record whose form is still the first one.
macro_rules! records {
    ($($name:ty, $kind:literal, $field:tt;)*) => {$(
        impl Record for $name {
            const KIND: &'static str = $kind;

            fn key(&self) -> &str {
                self.$field.as_ref()
            }
        }
    )*};
}

records! {
    AccessKey, "access-key", id;
    DhcpOptions, "dhcp-options", id;
    ElasticAddress, "elastic-address", id;
    Idempotency, "idempotency", key;
    Image, "image", id;
    InstanceProfile, "instance-profile", id;
    InternetGateway, "internet-gateway", id;
    KeyPair, "key-pair", id;
    Layer, "layer", id;
    Machine, "machine", name;
    Meter, "meter", name;
    NatGateway, "nat-gateway", id;
    NetworkAcl, "network-acl", id;
    Notice, "notice", instance;
    Role, "role", id;
    RouteTable, "route-table", id;
    ScheduledEvent, "scheduled-event", id;
    SecurityGroup, "security-group", id;
    StateChange, "state-change", number;
    Tags, "tags", resource;
}

/// What requests are signed with.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AccessKey {
    /// `AKIA…`.
    pub id: String,
    /// The secret.
    pub secret: String,
    /// The account that it acts for.
    pub account: String,
    /// When it was made.
    pub created: Timestamp,
}

impl std::fmt::Debug for AccessKey {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("AccessKey").field("id", &self.id).finish_non_exhaustive()
    }
}

/// A key pair's public half. The private one is not kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyPair {
    /// `key-…`.
    pub id: KeyPairId,
    /// The account.
    pub owner: String,
    /// Unique in the account.
    pub name: String,
    /// `rsa` or `ed25519`.
    pub key_type: String,
    /// As EC2 computes it.
    pub fingerprint: String,
    /// In OpenSSH's one-line form.
    pub public_key: String,
    /// When it was made or imported.
    pub created: Timestamp,
}

/// What is remembered of a machine that instances run on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// Tells it from others that share the store: [`Machine::THIS`] as long as there is one.
    pub name: String,
    /// Which boot of it the agent has seen last.
    pub boot_id: String,
}

impl Machine {
    /// The name of the machine that the agent runs on.
    pub const THIS: &'static str = "this";
}

/// The tags of one resource.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tags {
    /// The resource's id.
    pub resource: String,
    /// Keys and values.
    pub tags: BTreeMap<String, String>,
}

/// What was answered to a request with a client token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Idempotency {
    /// Account, action and token.
    pub key: String,
    /// A hash of the other parameters.
    pub request: String,
    /// The id of what was made, by which the answer is made again.
    pub resource: String,
    /// When.
    pub created: Timestamp,
}
