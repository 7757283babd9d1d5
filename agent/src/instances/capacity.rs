//! How many more instances the host has room for.

use crate::catalogue::{Catalogue, InstanceType};
use crate::records::Instance;
use crate::state::World;

/// What a host has to give to instances.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacity {
    /// vCPUs, overcommitted as the operator has chosen.
    pub vcpus: u64,
    /// Memory in MiB.
    pub memory: u64,
    /// The CPUs that a single instance can have.
    pub largest: u32,
}

impl Capacity {
    /// How many more instances of a type fit beside those that there are.
    pub fn room(self, world: &World, catalogue: &Catalogue, wanted: &InstanceType) -> u64 {
        if wanted.vcpus > self.largest {
            return 0;
        }
        let (mut vcpus, mut memory) = (self.vcpus, self.memory);
        for instance in world.all::<Instance>().filter(|instance| instance.lifecycle.state.holds_capacity()) {
            if let Some(taken) = catalogue.get(&instance.instance_type) {
                vcpus = vcpus.saturating_sub(taken.vcpus.into());
                memory = memory.saturating_sub(taken.memory);
            }
        }
        (vcpus / u64::from(wanted.vcpus.max(1))).min(memory / wanted.memory.max(1))
    }
}
