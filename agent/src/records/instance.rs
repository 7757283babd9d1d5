//! Instances.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{BootFiles, ProfileAssociation, Record, RootDeviceType, StoreDisk, fields};
use crate::ids::{ImageId, InstanceId, NetworkInterfaceId, ReservationId, SubnetId, VolumeId, VpcId};

/// An instance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Instance {
    /// `i-…`.
    pub id: InstanceId,
    /// What it was launched with.
    pub reservation: ReservationId,
    /// The account.
    pub owner: String,
    /// What it was launched from.
    pub image: ImageId,
    /// Such as `t3.micro`. The host has it as long as it is not stopped or terminated.
    pub instance_type: String,
    /// Its number in the reservation, from 0.
    pub launch_index: u32,
    /// When it was last started by the API.
    pub launch_time: Timestamp,
    /// The key pair's name; the pair may be gone since.
    pub key_name: Option<String>,
    /// The public half of the key pair, in OpenSSH's one-line form, as it was at the launch.
    #[serde(default)]
    pub public_key: Option<String>,
    /// As in the request: base64.
    pub user_data: Option<String>,
    /// The client token of its RunInstances.
    pub client_token: Option<String>,
    /// Such as `us-east-1a`.
    pub availability_zone: String,
    /// The VPC.
    pub vpc: VpcId,
    /// The subnet.
    pub subnet: SubnetId,
    /// Its primary interface, for life, whose record says more.
    pub network_interface: NetworkInterfaceId,
    /// Such as `/dev/xvda`.
    pub root_device_name: String,
    /// Its volumes.
    pub block_devices: Vec<BlockDevice>,
    /// The disks of its instance store; the root first, if it is there.
    #[serde(default)]
    pub instance_store: Vec<StoreDisk>,
    /// What it boots: its image's, which may be gone since. Without that, what its root volume says.
    pub boot: Option<BootFiles>,
    /// What a power-off by the guest does.
    pub shutdown_behavior: ShutdownBehavior,
    /// `disableApiTermination`.
    pub disable_api_termination: bool,
    /// `disableApiStop`.
    pub disable_api_stop: bool,
    /// `ebsOptimized`.
    pub ebs_optimized: bool,
    /// Whether detailed monitoring is on.
    pub monitoring: bool,
    /// `standard` or `unlimited`, if it was chosen. It counts for a burstable type only.
    #[serde(default)]
    pub cpu_credits: Option<String>,
    /// How the metadata service answers.
    pub metadata_options: MetadataOptions,
    /// The instance profile that gives it a role.
    #[serde(default)]
    pub instance_profile: Option<ProfileAssociation>,
    /// Where it is in its life.
    pub lifecycle: Lifecycle,
}

impl Record for Instance {
    const KIND: &'static str = "instance";
    /// 2: what its primary interface says is no longer said twice.
    const VERSION: u32 = 2;

    fn key(&self) -> &str {
        self.id.as_str()
    }

    fn migrate(_: u32, mut document: Value) -> Result<Value, String> {
        let fields = fields(&mut document)?;
        for name in ["private_address", "security_groups", "source_dest_check"] {
            fields.remove(name);
        }
        Ok(document)
    }
}

impl Instance {
    /// What its root device is on, even if that is a volume that is detached now.
    pub fn root_device_type(&self) -> RootDeviceType {
        match self.instance_store.iter().any(StoreDisk::is_root) {
            true => RootDeviceType::InstanceStore,
            false => RootDeviceType::Ebs,
        }
    }

    /// What the ends of its guest mean for it.
    pub fn endings(&self) -> Endings {
        Endings { power_off: self.shutdown_behavior, root: self.root_device_type() }
    }
}

/// What the ends of a guest mean for its instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Endings {
    /// What a power-off by the guest does.
    pub power_off: ShutdownBehavior,
    /// What is lost without a guest is lost with any other end too.
    pub root: RootDeviceType,
}

impl Endings {
    /// Whether there is something to start again.
    pub fn can_stop(self) -> bool {
        self.root == RootDeviceType::Ebs
    }
}

/// How the metadata service answers an instance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MetadataOptions {
    /// `optional` or `required`.
    pub http_tokens: String,
    /// 1 to 64.
    pub http_put_response_hop_limit: u32,
    /// `enabled` or `disabled`.
    pub http_endpoint: String,
    /// `enabled` or `disabled`.
    pub instance_metadata_tags: String,
}

impl Default for MetadataOptions {
    fn default() -> Self {
        Self {
            http_tokens: "optional".into(),
            http_put_response_hop_limit: 1,
            http_endpoint: "enabled".into(),
            instance_metadata_tags: "disabled".into(),
        }
    }
}

/// A volume of an instance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockDevice {
    /// Such as `/dev/sdf`.
    pub device_name: String,
    /// The volume, whose record says more.
    pub volume: VolumeId,
    /// Whether it goes with the instance.
    pub delete_on_termination: bool,
}

/// What a power-off by the guest does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ShutdownBehavior {
    /// The instance is stopped.
    #[default]
    Stop,
    /// The instance is terminated.
    Terminate,
}

/// EC2's states.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum InstanceState {
    /// On its way to running.
    Pending,
    /// The VMM runs.
    Running,
    /// On its way to terminated.
    ShuttingDown,
    /// Gone, and listed for a while.
    Terminated,
    /// On its way to stopped.
    Stopping,
    /// Without a VMM; can be started.
    Stopped,
}

impl InstanceState {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Pending, Self::Running, Self::ShuttingDown, Self::Terminated, Self::Stopping, Self::Stopped];

    /// EC2's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Running => "running",
            Self::ShuttingDown => "shutting-down",
            Self::Terminated => "terminated",
            Self::Stopping => "stopping",
            Self::Stopped => "stopped",
        }
    }

    /// EC2's number.
    pub fn code(self) -> u32 {
        match self {
            Self::Pending => 0,
            Self::Running => 16,
            Self::ShuttingDown => 32,
            Self::Terminated => 48,
            Self::Stopping => 64,
            Self::Stopped => 80,
        }
    }

    /// Whether the host's CPUs and memory are set aside for it.
    pub fn holds_capacity(self) -> bool {
        !matches!(self, Self::Stopped | Self::Terminated)
    }
}

/// Where an instance is in its life. [`crate::instances::lifecycle`] says how it moves.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lifecycle {
    /// What EC2 calls it.
    pub state: InstanceState,
    /// What is being done, or is to be done next, on the way to the next state.
    pub step: Option<Step>,
    /// Why it is in this state: `stateReason`.
    pub state_reason: Option<StateReason>,
    /// `StateTransitionReason`: empty, or such as `User initiated (2026-11-21 10:00:00 GMT)`.
    pub transition_reason: String,
    /// When the state was entered.
    pub since: Timestamp,
    /// Whether it was ever running.
    pub has_run: bool,
}

/// A step on the way to the next state. Each is recorded before it is done, and is safe to be done again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Step {
    /// Pending: make the files of its new volumes.
    PrepareVolumes,
    /// Pending: start its VMM.
    StartVmm,
    /// Running: press the power button, and take the guest's power-off as a reset.
    Reboot,
    /// Stopping: press the power button until the guest is off.
    PressButton {
        /// Then it is switched off.
        deadline: Timestamp,
    },
    /// Stopping or shutting down: end the VMM, and remove what it left behind.
    EndVmm,
    /// Shutting down: delete the volumes that go with it, detach the others.
    ReleaseVolumes,
}

/// `stateReason`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StateReason {
    /// Such as `Client.UserInitiatedShutdown`.
    pub code: String,
    /// Such as `Client.UserInitiatedShutdown: User initiated shutdown`.
    pub message: String,
}

impl StateReason {
    /// EC2 writes the code before the sentence.
    pub fn new(code: &str, message: &str) -> Self {
        Self { code: code.to_owned(), message: format!("{code}: {message}") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::decode;

    #[test]
    fn an_instance_that_repeats_what_its_interface_says_is_read() {
        let text = r#"{"version":1,"document":{"id":"i-0123456789abcdef0","reservation":"r-0123456789abcdef0",
            "owner":"000000000000","image":"ami-0123456789abcdef0","instance_type":"t3.micro","launch_index":0,
            "launch_time":"2026-11-21T10:00:00Z","availability_zone":"us-east-1a","vpc":"vpc-0123456789abcdef0",
            "subnet":"subnet-0123456789abcdef0","private_address":"172.31.0.4","security_groups":[],
            "network_interface":"eni-0123456789abcdef0","root_device_name":"/dev/xvda","block_devices":[],
            "shutdown_behavior":"stop","disable_api_termination":false,"disable_api_stop":false,"ebs_optimized":false,
            "monitoring":false,"source_dest_check":true,"metadata_options":{"http_tokens":"optional",
            "http_put_response_hop_limit":1,"http_endpoint":"enabled","instance_metadata_tags":"disabled"},
            "lifecycle":{"has_run":true,"state":"running","transition_reason":"","since":"2026-11-21T10:00:00Z"}}}"#;
        let instance: Instance = decode(text.as_bytes()).unwrap();
        assert_eq!(instance.network_interface.as_str(), "eni-0123456789abcdef0");
    }
}
