//! The machine that instances run on, behind one boundary: what needs privileges is asked for here, and what comes back is
//! a descriptor. The rest of the agent opens no device and starts no process.

mod linux;
mod mounts;
mod process;
mod store;

use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use innkeeper_network::linux::HostSettings;
use innkeeper_network::plan::{Interface, Vpc as Plan};
use innkeeper_network::probe::Probe;
use innkeeper_network::services::Sockets;
use innkeeper_network::trace::Tracer;

use crate::ids::{InstanceId, NetworkInterfaceId, VpcId};
use crate::instances::capacity::Capacity;

pub use linux::Linux;

/// Why the host cannot do what it was asked for.
#[derive(Debug, thiserror::Error)]
#[error("cannot {what}")]
pub struct HostError {
    /// What was asked for.
    pub what: String,
    /// Why not.
    #[source]
    pub cause: std::io::Error,
}

/// A VMM's process.
#[derive(Debug)]
pub struct VmmProcess {
    /// Holds on to the process, whose number may be another's later.
    pub pidfd: OwnedFd,
    /// A connection to it, of the protocol in `innkeeper-protocol`, on which nothing was said yet. Non-blocking.
    pub control: OwnedFd,
}

/// What a VMM's process takes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VmmUsage {
    /// Tells the process from all others on this boot of the host.
    pub name: String,
    /// CPU time of the guest.
    pub guest_time: Duration,
    /// CPU time in user mode, the guest's among it.
    pub user_time: Duration,
    /// CPU time of the kernel for it.
    pub system_time: Duration,
    /// The guest's memory that is in use, in bytes.
    pub guest_memory: u64,
    /// Its other memory, in bytes.
    pub own_memory: u64,
}

/// What the agent itself takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AgentUsage {
    /// Its memory in bytes.
    pub resident: u64,
    /// Its open files.
    pub descriptors: u64,
}

/// What the agent asks of the machine. All functions block, for milliseconds.
pub trait Host: Send + Sync {
    /// What it has to give to instances.
    fn capacity(&self) -> Result<Capacity, HostError>;

    /// Tells this boot of the machine from all others.
    fn boot_id(&self) -> Result<String, HostError>;

    /// `/dev/kvm`.
    fn kvm(&self) -> Result<OwnedFd, HostError>;

    /// A kernel or an initial RAM disk, for reading.
    fn boot_file(&self, path: &Path) -> Result<OwnedFd, HostError>;

    /// Starts a VMM that was told nothing yet, and that ends with the agent until it is given [`Host::listener`].
    fn start_vmm(&self, instance: &InstanceId) -> Result<VmmProcess, HostError>;

    /// Starts a VMM that is no instance's, and that ends with the agent.
    fn start_helper(&self) -> Result<VmmProcess, HostError>;

    /// A file without a name, of `size` bytes, which takes room as it is written to.
    fn scratch_file(&self, size: u64) -> Result<OwnedFd, HostError>;

    /// Where controllers to come find the VMM of an instance.
    fn listener(&self, instance: &InstanceId) -> Result<OwnedFd, HostError>;

    /// The VMM of an instance that was started by this agent or one before it. One that cannot be talked to is ended.
    fn find_vmm(&self, instance: &InstanceId) -> Result<Option<VmmProcess>, HostError>;

    /// The instances that have or had a VMM, until [`Host::forget_vmm`].
    fn vmms(&self) -> Result<Vec<InstanceId>, HostError>;

    /// What the VMM of an instance takes; none if it has ended.
    fn vmm_usage(&self, instance: &InstanceId) -> Result<Option<VmmUsage>, HostError>;

    /// What this process takes.
    fn agent_usage(&self) -> Result<AgentUsage, HostError>;

    /// Removes what is left of a VMM that has ended. Nothing, if nothing is left.
    fn forget_vmm(&self, instance: &InstanceId) -> Result<(), HostError>;

    /// The directory of a new and empty instance store, which holds `size` bytes in the host's memory. What an earlier
    /// one of the instance had is gone.
    fn make_store(&self, instance: &InstanceId, size: u64) -> Result<OwnedFd, HostError>;

    /// The directory of an instance store, if it is there.
    fn store(&self, instance: &InstanceId) -> Result<Option<OwnedFd>, HostError>;

    /// Takes an instance store away. Nothing, if there is none.
    fn remove_store(&self, instance: &InstanceId) -> Result<(), HostError>;

    /// The instances that have one.
    fn stores(&self) -> Result<Vec<InstanceId>, HostError>;

    /// Brings about what a VPC's plan says. `mend` is that somebody else may have done something with what is there.
    fn apply_vpc(&self, plan: &Plan, mend: bool) -> Result<(), HostError>;

    /// The sockets of the services of a VPC that was brought about.
    fn vpc_sockets(&self, vpc: &VpcId) -> Result<Sockets, HostError>;

    /// Takes a VPC's network away. Nothing, if there is none.
    fn remove_vpc(&self, vpc: &VpcId) -> Result<(), HostError>;

    /// The VPCs that have a network.
    fn vpcs(&self) -> Result<Vec<VpcId>, HostError>;

    /// A question to a guest: whether it answers at an interface of a VPC that was brought about.
    fn probe(
        &self,
        vpc: &VpcId,
        id: &NetworkInterfaceId,
        interface: &Interface,
        router: Ipv4Addr,
    ) -> Result<Probe, HostError>;

    /// Sees the packets of a VPC that was brought about.
    fn trace_vpc(&self, plan: &Plan) -> Result<Tracer, HostError>;

    /// The tap of an interface of a VPC that was brought about, once for each pair of queues.
    fn open_tap(
        &self,
        vpc: &VpcId,
        interface: &NetworkInterfaceId,
        queues: u16,
    ) -> Result<Vec<OwnedFd>, HostError>;
}

/// Ends a process, and waits until it is gone. Without effect on one that is.
pub fn kill(pidfd: &OwnedFd) -> Result<(), HostError> {
    process::kill(pidfd).map_err(|cause| HostError { what: "end a VMM".into(), cause })
}

/// Forgets a child that has ended, so that it does not stay a zombie. Without effect on a process that is not a child.
pub fn reap(pidfd: &OwnedFd) {
    process::reap(pidfd);
}

/// Where things are, and what the operator lets instances have.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The program `innkeeper-vmm`.
    pub vmm: PathBuf,
    /// For sockets; gone after a reboot of the host.
    pub run_directory: PathBuf,
    /// For files without names, which may be large.
    pub scratch_directory: PathBuf,
    /// The file in which the kernel says which boot this is.
    pub boot_id_file: PathBuf,
    /// How many vCPUs are given for each CPU.
    pub cpu_overcommit: f64,
    /// MiB that no instance gets.
    pub reserved_memory: u64,
    /// How instances are seen from outside.
    pub network: HostSettings,
}
