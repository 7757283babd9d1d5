//! What a Prometheus server wants to know, at `/metrics` on an address of its own.
//!
//! - [`requests`] counts the API's requests, and `instance` says what a VMM has counted and what it takes.
//! - [`families`](mod@families) are the names, kinds and explanations, and [`text`] is how they are written.
//! - [`serve`](mod@serve) is the server.
//!
//! **A counter never goes backwards**, whoever is started anew: what an agent or a VMM has counted is added up in a
//! [`Meter`], which is recorded before it is told. What was counted after the last time that somebody asked goes with the
//! process that has counted it.

pub mod families;
mod instance;
pub mod requests;
pub mod serve;
pub mod text;

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use tokio::sync::Mutex;

use crate::host::HostError;
use crate::ids::InstanceId;
use crate::instances::Sample;
use crate::instances::capacity::Need;
use crate::instances::health::Check;
use crate::records::{Counts, Image, Instance, InstanceState, Meter, Snapshot, StateChange, Volume};
use crate::serve::Agent;
use crate::state::World;
use crate::store::StoreError;
use families as family;
use requests::Requests;
use text::Text;

/// MiB, in bytes.
const MIB: u64 = 1 << 20;

/// What the agent counts, and who asks for it.
pub struct Metrics {
    /// The API's requests.
    pub requests: Requests,
    started: Timestamp,
    /// This process among all that have counted.
    process: String,
    /// One after the other: each records what it tells.
    asking: Mutex<()>,
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            requests: Requests::default(),
            started: Timestamp::now(),
            process: format!("{:016x}", rand::random::<u64>()),
            asking: Mutex::default(),
        }
    }
}

/// Why there are no metrics.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// They could not be recorded, and what is not recorded is not told.
    #[error("what was counted cannot be recorded")]
    Store(#[from] StoreError),
    /// The host does not say what the agent takes.
    #[error(transparent)]
    Host(#[from] HostError),
}

/// Everything, in Prometheus's text form.
pub async fn scrape(agent: &Arc<Agent>) -> Result<String, Error> {
    let _turn = agent.metrics.asking.lock().await;
    let samples = agent.instances.samples().await;
    let agent = Arc::clone(agent);
    let written = tokio::task::spawn_blocking(move || {
        record(&agent, &samples)?;
        write(&agent, &samples)
    });
    match written.await {
        Ok(result) => result,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

/// Adds what was counted to what was counted before.
fn record(agent: &Agent, samples: &BTreeMap<InstanceId, Sample>) -> Result<(), StoreError> {
    let mut readings: Vec<(&str, &str, Counts)> =
        vec![(Meter::AGENT, &agent.metrics.process, agent.metrics.requests.counts())];
    for (id, sample) in samples {
        readings.push((id.as_str(), &sample.process.name, instance::counts(id, sample)));
    }
    agent.state.change(|draft| {
        for (name, process, counts) in &readings {
            // One that has been forgotten meanwhile stays forgotten.
            if *name != Meter::AGENT && draft.get::<Instance>(name).is_none() {
                continue;
            }
            let before = draft.get::<Meter>(name).map(|meter| Meter::clone(meter));
            let mut meter = before.clone().unwrap_or_else(|| Meter::new(*name));
            meter.read(process, counts.clone());
            if before.as_ref() != Some(&meter) {
                draft.put(meter);
            }
        }
        Ok(())
    })
}

fn write(agent: &Agent, samples: &BTreeMap<InstanceId, Sample>) -> Result<String, Error> {
    let world = agent.state.read();
    let mut text = Text::default();
    let version = env!("CARGO_PKG_VERSION");
    text.gauge(&family::BUILD_INFO, &[("version", version)], 1.0);
    text.gauge(&family::AGENT_START, &[], agent.metrics.started.as_millisecond() as f64 / 1000.0);
    let own = agent.instances.agent_usage()?;
    text.gauge(&family::AGENT_RESIDENT, &[], own.resident as f64);
    text.gauge(&family::AGENT_DESCRIPTORS, &[], own.descriptors as f64);
    // What is over memory has no file.
    if let Ok(metadata) = std::fs::metadata(agent.config.store()) {
        text.gauge(&family::STORE_BYTES, &[], metadata.len() as f64);
    }
    let changes = world.last::<StateChange>().map_or(0, |last| last.ordinal());
    text.counter(&family::STATE_CHANGES, &[], changes as f64);
    for (kind, count) in [
        ("image", world.all::<Image>().len()),
        ("snapshot", world.all::<Snapshot>().len()),
        ("volume", world.all::<Volume>().len()),
    ] {
        text.gauge(&family::RESOURCES, &[("kind", kind)], count as f64);
    }
    write_capacity(agent, &world, &mut text);
    for instance in world.all::<Instance>() {
        write_instance(agent, &world, instance, samples.get(&instance.id), &mut text);
    }
    for meter in world.all::<Meter>() {
        let instance = world.get::<Instance>(&meter.name);
        if meter.name == Meter::AGENT {
            meter.totals().for_each(|(series, total)| text.total(series, total));
        } else if instance.is_some_and(|instance| instance.lifecycle.state.holds_capacity()) {
            // Without the disks that it has lost.
            meter.current().for_each(|(series, total)| text.total(series, total));
        }
    }
    Ok(text.render())
}

fn write_capacity(agent: &Agent, world: &World, text: &mut Text) {
    let mut states: BTreeMap<InstanceState, u32> = InstanceState::ALL.map(|state| (state, 0)).into();
    let (mut vcpus, mut memory) = (0, 0);
    for instance in world.all::<Instance>() {
        *states.entry(instance.lifecycle.state).or_default() += 1;
        if instance.lifecycle.state.holds_capacity()
            && let Some(kind) = agent.catalogue.get(&instance.instance_type)
        {
            let need = Need::new(kind, &instance.instance_store);
            vcpus += u64::from(need.vcpus);
            memory += need.memory;
        }
    }
    for (state, count) in states {
        text.gauge(&family::INSTANCES, &[("state", state.name())], count.into());
    }
    let capacity = agent.capacity;
    text.gauge(&family::CAPACITY_VCPUS, &[], capacity.vcpus as f64);
    text.gauge(&family::CAPACITY_VCPUS_USED, &[], vcpus as f64);
    text.gauge(&family::CAPACITY_MEMORY, &[], capacity.memory.saturating_mul(MIB) as f64);
    text.gauge(&family::CAPACITY_MEMORY_USED, &[], memory.saturating_mul(MIB) as f64);
}

/// What there is of an instance but its counters.
fn write_instance(
    agent: &Agent,
    world: &World,
    instance: &Instance,
    sample: Option<&Sample>,
    text: &mut Text,
) {
    let id = instance.id.as_str();
    if !instance.lifecycle.state.holds_capacity() {
        return;
    }
    let tags = world.tags(id);
    let name = tags.and_then(|tags| tags.get("Name")).map_or("", String::as_str);
    let labels = [
        ("instance_id", id),
        ("instance_type", &instance.instance_type),
        ("image_id", instance.image.as_str()),
        ("availability_zone", &instance.availability_zone),
        ("name", name),
    ];
    text.gauge(&family::INSTANCE_INFO, &labels, 1.0);
    let labels = [("instance_id", id)];
    if let Some(kind) = agent.catalogue.get(&instance.instance_type) {
        text.gauge(&family::INSTANCE_VCPUS, &labels, kind.vcpus.into());
        text.gauge(&family::INSTANCE_MEMORY, &labels, kind.memory.saturating_mul(MIB) as f64);
    }
    let store = instance.instance_store.iter().fold(0, |sum: u64, disk| sum.saturating_add(disk.size));
    text.gauge(&family::INSTANCE_STORE, &labels, store as f64);
    if let Some(sample) = sample {
        text.gauge(&family::INSTANCE_RESIDENT, &labels, sample.process.guest_memory as f64);
        text.gauge(&family::VMM_RESIDENT, &labels, sample.process.own_memory as f64);
    }
    if instance.lifecycle.state == InstanceState::Running {
        let health = agent.instances.health(&instance.id);
        for (check, outcome) in
            [("system", health.system), ("instance", health.instance), ("attached-ebs", health.volumes)]
        {
            let passed = match outcome {
                Check::Initializing => continue,
                Check::Passed => 1.0,
                Check::Failed { .. } => 0.0,
            };
            text.gauge(&family::STATUS_CHECK, &[("instance_id", id), ("check", check)], passed);
        }
    }
}
