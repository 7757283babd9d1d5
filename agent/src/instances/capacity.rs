//! How many more instances the host has room for.

use std::collections::BTreeMap;

use crate::catalogue::{Catalogue, InstanceType};
use crate::ids::InstanceId;
use crate::records::{Instance, StoreDisk};
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

/// What an instance takes of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Need {
    /// As the guest sees them.
    pub vcpus: u32,
    /// In MiB, the instance store with it.
    pub memory: u64,
}

impl Need {
    /// What one of this type with these disks takes: an instance store is in the host's memory, and may be filled.
    pub fn new(kind: &InstanceType, disks: &[StoreDisk]) -> Self {
        let store = disks.iter().fold(0, |sum: u64, disk| sum.saturating_add(disk.size));
        Self { vcpus: kind.vcpus, memory: kind.memory.saturating_add(store.div_ceil(1 << 20)) }
    }
}

impl Capacity {
    /// How many more such instances fit beside those that there are. None do beside one whose type has left the
    /// configuration: nobody knows what is left.
    pub fn room(self, world: &World, catalogue: &Catalogue, wanted: Need) -> u64 {
        if wanted.vcpus > self.largest {
            return 0;
        }
        let (mut vcpus, mut memory) = (self.vcpus, self.memory);
        for instance in world.all::<Instance>().filter(|instance| instance.lifecycle.state.holds_capacity()) {
            let Some(taken) = catalogue.get(&instance.instance_type) else { return 0 };
            let taken = Need::new(taken, &instance.instance_store);
            vcpus = vcpus.saturating_sub(taken.vcpus.into());
            memory = memory.saturating_sub(taken.memory);
        }
        (vcpus / u64::from(wanted.vcpus.max(1))).min(memory / wanted.memory.max(1))
    }
}

/// Says which instances have a type that has left the configuration. To be called at the start: types come and go with
/// one.
pub fn warn_of_unknown_types(world: &World, catalogue: &Catalogue) {
    for (instance_type, instances) in unknown_types(world, catalogue) {
        let instances: Vec<&str> = instances.iter().map(|id| id.as_str()).collect();
        tracing::warn!(
            instance_type,
            instances = instances.join(" "),
            "there is no such instance type any more, and nobody knows what these instances take: nothing is \
             launched or started until they stop, or until instance-types in the configuration has the type again"
        );
    }
}

/// The instances that take a part of the host of which the catalogue does not say how large it is, by their types.
fn unknown_types<'w>(world: &'w World, catalogue: &Catalogue) -> BTreeMap<&'w str, Vec<&'w InstanceId>> {
    let mut unknown: BTreeMap<&str, Vec<&InstanceId>> = BTreeMap::new();
    for instance in world.all::<Instance>() {
        if instance.lifecycle.state.holds_capacity() && catalogue.get(&instance.instance_type).is_none() {
            unknown.entry(&instance.instance_type).or_default().push(&instance.id);
        }
    }
    unknown
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::actions::testing::Client;
    use crate::catalogue::Own;
    use crate::records::InstanceState;

    #[test]
    fn beside_an_instance_of_an_unknown_size_there_is_no_room() {
        let host = Capacity { vcpus: 8, memory: 8192, largest: 4 };
        let (known, smaller) = (
            Catalogue::new([Own { name: "lab.tiny", vcpus: 1, memory: 128, ..Own::default() }]),
            Catalogue::default(),
        );
        let wanted = Need::new(known.get("t3.micro").unwrap(), &[]);
        for (state, with, without) in [
            (InstanceState::Pending, 3, 0),
            (InstanceState::Running, 3, 0),
            (InstanceState::Stopping, 3, 0),
            (InstanceState::Stopped, 4, 4),
            (InstanceState::Terminated, 4, 4),
        ] {
            let client = Client::new();
            let id = client.instance(state);
            let world = client.agent.state.read();
            let instance = Instance::clone(world.get::<Instance>(&id).unwrap());
            client.put(Instance { instance_type: "lab.tiny".into(), ..instance });
            let world = client.agent.state.read();
            assert_eq!(host.room(&world, &known, wanted), with, "{state:?}");
            assert_eq!(host.room(&world, &smaller, wanted), without, "{state:?}");
            assert!(unknown_types(&world, &known).is_empty());
            let expected = if without == 0 { vec![("lab.tiny", vec![&id])] } else { Vec::new() };
            assert_eq!(
                unknown_types(&world, &smaller).into_iter().collect::<Vec<_>>(),
                expected,
                "{state:?}"
            );
        }
    }

    #[test]
    fn an_instance_store_takes_memory() {
        let host = Capacity { vcpus: 64, memory: 8192, largest: 4 };
        let catalogue = Catalogue::default();
        let kind = catalogue.get("t3.micro").unwrap();
        let disk = |size| StoreDisk {
            name: "ephemeral0".into(),
            device_name: None,
            size,
            layer: None,
            source: None,
        };
        let client = Client::new();
        let room = |size| {
            host.room(&client.agent.state.read(), &catalogue, Need::new(kind, &[disk(size), disk(size)]))
        };
        assert_eq!([room(0), room(1), room(512 << 20), room(u64::MAX)], [8, 7, 4, 0]);
        let id = client.instance(InstanceState::Running);
        let instance = Instance::clone(client.agent.state.read().get::<Instance>(&id).unwrap());
        client.put(Instance { instance_store: vec![disk(3 << 30)], ..instance });
        assert_eq!([room(0), room(512 << 20)], [4, 2]);
    }
}
