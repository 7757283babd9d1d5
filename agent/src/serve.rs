//! The daemon: puts the parts together, and runs until it is told to stop.

use std::sync::Arc;

use crate::catalogue::Catalogue;
use crate::config::Config;
use crate::instances::Instances;
use crate::instances::capacity::Capacity;
use crate::state::State;

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
