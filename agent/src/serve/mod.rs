//! The daemon: puts the parts together, and runs until it is told to stop.

pub mod bootstrap;

use std::sync::Arc;

use crate::catalogue::Catalogue;
use crate::config::Config;
use crate::instances::Instances;
use crate::instances::capacity::Capacity;
use crate::state::State;
use crate::store::{Store, StoreError};

/// Everything that the agent has.
pub struct Agent {
    /// What the operator has chosen.
    pub config: Config,
    /// The records.
    pub state: State,
    /// The instance types.
    pub catalogue: Catalogue,
    /// What the host has to give.
    pub capacity: Capacity,
    /// The actors of the instances.
    pub instances: Instances,
}

impl Agent {
    /// Puts the parts together, over what the store has.
    pub fn new(
        config: Config,
        store: Arc<dyn Store>,
        catalogue: Catalogue,
        capacity: Capacity,
    ) -> Result<Self, StoreError> {
        let state = State::open(store)?;
        Ok(Self { config, state, catalogue, capacity, instances: Instances })
    }

    /// One over memory, with an access key and the default VPC, and a host of 64 CPUs (8 vCPUs each) and 256 GiB.
    #[cfg(test)]
    pub fn for_tests() -> Self {
        let capacity = Capacity { vcpus: 512, memory: 256 << 10, largest: 64 };
        let store = Arc::new(crate::store::memory::Memory::default());
        let agent = Self::new(Config::default(), store, Catalogue::default(), capacity).unwrap();
        bootstrap::bootstrap(&agent.state, &agent.config, jiff::Timestamp::UNIX_EPOCH).unwrap();
        agent
    }
}
