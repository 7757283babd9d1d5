//! The daemon: puts the parts together, and runs until it is told to stop.

pub mod bootstrap;

use std::sync::Arc;
use std::time::Duration;

use crate::catalogue::Catalogue;
use crate::config::Config;
use crate::host::Host;
use crate::instances::capacity::Capacity;
use crate::instances::{Consoles, Instances, Shared};
use crate::state::State;
use crate::store::{Store, StoreError};
use crate::volumes::RawVolumes;

/// Everything that the agent has.
pub struct Agent {
    /// What the operator has chosen.
    pub config: Config,
    /// The records.
    pub state: Arc<State>,
    /// The instance types.
    pub catalogue: Arc<Catalogue>,
    /// What the host has to give.
    pub capacity: Capacity,
    /// The actors of the instances.
    pub instances: Instances,
}

impl Agent {
    /// Puts the parts together, over what the store has. Nothing runs yet: see [`Instances::supervise`].
    pub fn new(
        config: Config,
        store: Arc<dyn Store>,
        catalogue: Catalogue,
        capacity: Capacity,
        host: Arc<dyn Host>,
    ) -> Result<Self, StoreError> {
        let state = Arc::new(State::open(store)?);
        let catalogue = Arc::new(catalogue);
        let instances = Instances::new(Shared {
            state: state.clone(),
            host,
            volumes: Arc::new(RawVolumes::new(config.state_directory.join("volumes"))),
            consoles: Consoles::new(config.state_directory.join("consoles")),
            catalogue: catalogue.clone(),
            reboot_timeout: Duration::from_secs(config.reboot_timeout),
        });
        Ok(Self { config, state, catalogue, capacity, instances })
    }

    /// One over memory, with an access key and the default VPC, and a host of 64 CPUs (8 vCPUs each) and 256 GiB.
    #[cfg(test)]
    pub fn for_tests() -> Self {
        let capacity = Capacity { vcpus: 512, memory: 256 << 10, largest: 64 };
        let store = Arc::new(crate::store::memory::Memory::default());
        let config = Config::default();
        let host = Arc::new(crate::host::Linux::new(config.host_settings()));
        let agent = Self::new(config, store, Catalogue::default(), capacity, host).unwrap();
        bootstrap::bootstrap(&agent.state, &agent.config, jiff::Timestamp::UNIX_EPOCH).unwrap();
        agent
    }
}
