//! The daemon: puts the parts together, and runs until it is told to stop.
//!
//! Guests do not depend on it. When it stops, is killed or is replaced by a newer one, they go on, and the next agent
//! takes over.

pub mod bootstrap;
mod housekeeping;
pub mod log;
mod systemd;
pub mod tls;

use std::fs::DirBuilder;
use std::io::Write;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use jiff::Timestamp;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Semaphore;

use crate::actions;
use crate::catalogue::{Catalogue, Disks, Own};
use crate::config::Config;
use crate::credentials::Credentials;
use crate::data_plane::DataPlane;
use crate::host::{Host, Linux};
use crate::identity::Identity;
use crate::ids::VolumeId;
use crate::images::{self, Copying};
use crate::instances::capacity::{Capacity, warn_of_unknown_types};
use crate::instances::health::Healths;
use crate::instances::host_reboot::settle_reboot;
use crate::instances::{Consoles, Instances, MAX_BOOT_GUESTS, MAX_BOOT_READERS, Shared, chain};
use crate::metadata::Metadata;
use crate::metrics::{self, Metrics};
use crate::query;
use crate::query::dispatch::Registry;
use crate::query::listener::Listener;
use crate::records::Volume;
use crate::state::State;
use crate::store::redb::Redb;
use crate::store::{Store, StoreError};
use crate::volumes::{Volumes, keeper, stack};

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
    /// Their network.
    pub data_plane: DataPlane,
    /// What keeps the volumes' files. The actors make them.
    pub volumes: Arc<Volumes>,
    /// The images that are being copied.
    pub copying: Copying,
    /// What is counted.
    pub metrics: Metrics,
    /// The authority that signs for the agent.
    pub identity: Arc<Identity>,
    /// How long a request waits for an instance's actor to bring about what it has recorded of volumes. One that starts a
    /// guest takes longer.
    settling: Duration,
    /// Where a test's agent has its files.
    #[cfg(test)]
    _directory: Option<tempfile::TempDir>,
}

/// See [`Agent::settle_volumes`].
const SETTLING: Duration = Duration::from_secs(5);

/// How often a request looks whether what it waits for is there.
const GLANCE: Duration = Duration::from_millis(1);

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
        let volumes = Arc::new(Volumes::new(state.clone(), &config.state_directory));
        let identity = Arc::new(Identity::new(state.clone(), config.region.clone()));
        let metadata = Metadata::new(
            state.clone(),
            config.region.clone(),
            identity.clone(),
            config.data_plane_settings().service_packets,
        );
        let metadata = Arc::new(metadata);
        let data_plane = DataPlane::new(state.clone(), host.clone(), metadata, config.data_plane_settings());
        let instances = Instances::new(Shared {
            state: state.clone(),
            host,
            data_plane: data_plane.clone(),
            volumes: volumes.clone(),
            consoles: Consoles::new(config.state_directory.join("consoles")),
            catalogue: catalogue.clone(),
            reboot_timeout: Duration::from_secs(config.reboot_timeout),
            limits_volumes: config.limit_volumes,
            healths: Healths::default(),
            boot_reader: config.boot_reader(),
            boot_guests: Semaphore::new(MAX_BOOT_GUESTS),
            boot_readers: Arc::new(Semaphore::new(MAX_BOOT_READERS)),
        });
        let (copying, metrics) = (Copying::default(), Metrics::default());
        Ok(Self {
            config,
            state,
            catalogue,
            capacity,
            instances,
            data_plane,
            volumes,
            copying,
            metrics,
            identity,
            settling: SETTLING,
            #[cfg(test)]
            _directory: None,
        })
    }

    /// Has what was recorded of volumes brought about: new layers on top of them, and changes of their size and limits. It
    /// was, mostly, when this returns; a guest that is busy starting gets it later. Blocks.
    pub fn settle_volumes(&self, volumes: &[VolumeId]) {
        let is_attached = |id: &&VolumeId| {
            self.state.read().get::<Volume>(id).is_some_and(|volume| volume.attachment.is_some())
        };
        let (attached, others): (Vec<_>, Vec<_>) = volumes.iter().partition(is_attached);
        for id in others {
            if let Err(error) = self.volumes.settle(id) {
                tracing::warn!(volume = %id, error = chain(&error), "what was asked for cannot be done yet");
            }
        }
        // Their instance's actor was woken by the record.
        let deadline = Instant::now() + self.settling;
        while attached.iter().any(|id| stack::is_unsettled(&self.state.read(), id))
            && Instant::now() < deadline
        {
            std::thread::sleep(GLANCE);
        }
    }

    /// One over memory, with files that go with it, an access key and the default VPC, and a host of 64 CPUs (8 vCPUs each) and 256 GiB.
    #[cfg(test)]
    pub fn for_tests() -> Self {
        let capacity = Capacity { vcpus: 512, memory: 256 << 10, largest: 64 };
        let store = Arc::new(crate::store::memory::Memory::default());
        let directory = tempfile::tempdir().unwrap();
        let config = Config { state_directory: directory.path().to_owned(), ..Config::default() };
        let host = Arc::new(crate::host::Linux::new(config.host_settings()));
        let agent = Self::new(config, store, Catalogue::default(), capacity, host).unwrap();
        // There are no actors that could be waited for.
        let agent = Self { _directory: Some(directory), settling: Duration::ZERO, ..agent };
        bootstrap::bootstrap(&agent.state, &agent.config, jiff::Timestamp::UNIX_EPOCH).unwrap();
        agent
    }
}

/// Runs the daemon until SIGTERM or SIGINT: then requests that have begun are answered, and guests go on.
pub async fn run(config: Config) -> anyhow::Result<()> {
    // At first, for whoever stops us while we start.
    let shutdown = shutdown()?;
    if let Err(error) = open_many_files() {
        tracing::warn!(%error, "cannot have more files open at once");
    }
    tracing::info!(version = env!("CARGO_PKG_VERSION"), state = %config.state_directory.display(), "starting");
    let (agent, bootstrap, tls) = tokio::task::spawn_blocking(move || {
        let (agent, bootstrap) = open(config)?;
        let tls = tls::configure(&agent.config, &agent.identity)?;
        anyhow::Ok((agent, bootstrap, tls))
    })
    .await??;
    let listener = TcpListener::bind(agent.config.listen).await;
    let listener = listener
        .with_context(|| format!("cannot listen on {} (another address: listen = …)", agent.config.listen))?;
    let endpoint_url = agent.config.endpoint_url(listener.local_addr()?.port());
    let listener = Listener::new(listener, tls);
    keep_credentials(&agent.config, bootstrap, &endpoint_url)?;
    let metrics = match agent.config.metrics_listen {
        Some(address) => Some(TcpListener::bind(address).await.with_context(|| {
            format!("cannot listen on {address} for metrics (another address: metrics-listen = …)")
        })?),
        None => None,
    };

    let mut registry = Registry::default();
    actions::register(&mut registry);
    let registry = Arc::new(registry);
    agent.data_plane.offer(query::http::inside_vpcs(&agent, &registry));
    let instances = Arc::clone(&agent);
    let mut tasks = vec![
        tokio::spawn(async move { instances.instances.supervise().await }),
        {
            let data_plane = agent.data_plane.clone();
            tokio::spawn(async move { data_plane.supervise().await })
        },
        tokio::spawn(housekeeping::keep(Arc::clone(&agent))),
        tokio::spawn(keeper::keep(agent.volumes.clone())),
        tokio::spawn(keeper::keep_merging(agent.volumes.clone())),
        tokio::spawn(systemd::watchdog()),
    ];
    if let Some(listener) = metrics {
        tracing::info!(address = %listener.local_addr()?, "metrics");
        tasks.push(tokio::spawn(metrics::serve::serve(listener, Arc::clone(&agent))));
    }
    tracing::info!(endpoint = endpoint_url, "ready");
    systemd::ready(&format!("EC2's API is at {endpoint_url}"));
    let stopped = query::http::serve(listener, agent, registry, shutdown).await;
    for task in tasks {
        task.abort();
    }
    tracing::info!("stopped; guests go on");
    stopped.context("the API has failed")
}

/// Lets the daemon have as many files open as whoever started it may allow: each connection of a guest is one.
fn open_many_files() -> nix::Result<()> {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most)
}

/// Makes the directories and opens what is in them. Blocks.
fn open(config: Config) -> anyhow::Result<(Arc<Agent>, bootstrap::Bootstrap)> {
    for directory in [&config.state_directory, &config.run_directory] {
        make_directory(directory)?;
    }
    let store = Arc::new(Redb::open(config.store())?);
    let host = Arc::new(Linux::new(config.host_settings()));
    let capacity = host.capacity()?;
    let catalogue = Catalogue::new(config.instance_types.iter().map(|own| {
        let disks =
            own.instance_store.map(|store| Disks { count: store.disks, size: store.size, kind: "ssd" });
        Own { name: &own.name, vcpus: own.vcpus, memory: own.memory, disks, bandwidth: own.bandwidth }
    }));
    let agent = Agent::new(config, store, catalogue, capacity, host.clone())?;
    warn_of_unknown_types(&agent.state.read(), &agent.catalogue);
    settle_reboot(&agent.state, host.as_ref(), Timestamp::now())?;
    images::fail_interrupted(&agent.state)?;
    agent.volumes.adopt_all();
    let bootstrap = bootstrap::bootstrap(&agent.state, &agent.config, Timestamp::now())?;
    Ok((Arc::new(agent), bootstrap))
}

fn make_directory(path: &Path) -> anyhow::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path).with_context(|| {
        format!(
            "cannot make the directory {} (run as root, or choose another in the configuration)",
            path.display()
        )
    })
}

/// Writes the access key down for clients, and on the first start shows it.
fn keep_credentials(
    config: &Config,
    bootstrap: bootstrap::Bootstrap,
    endpoint_url: &str,
) -> anyhow::Result<()> {
    let credentials = Credentials {
        access_key_id: bootstrap.access_key.id,
        secret_access_key: bootstrap.access_key.secret,
        region: config.region.clone(),
        endpoint_url: endpoint_url.to_owned(),
        ca_bundle: config.ca_bundle().map(|path| path.display().to_string()),
    };
    let path = config.credentials();
    credentials.write(&path).with_context(|| format!("cannot write {}", path.display()))?;
    if !bootstrap.is_first_start {
        return Ok(());
    }
    tracing::info!(file = %path.display(), account = config.account, "made an access key and the default VPC");
    // A journal is read by more people than the file.
    if !log::goes_to_journal() {
        let text = format!(
            "A new access key, which is also in {path}:\n\n{}\nTo use it:\n\n  \
             AWS_SHARED_CREDENTIALS_FILE={path} aws ec2 describe-regions\n\n",
            credentials.render(),
            path = path.display(),
        );
        // Nobody may be reading.
        let _ = std::io::stdout().write_all(text.as_bytes());
    }
    Ok(())
}

/// Is ready when it is time to stop. From now on signals do nothing else; SIGHUP does nothing at all, for the
/// configuration is read once and a restart costs nothing.
fn shutdown() -> anyhow::Result<impl Future<Output = ()>> {
    let listen = |kind| signal(kind).context("cannot listen for signals");
    let mut terminate = listen(SignalKind::terminate())?;
    let mut interrupt = listen(SignalKind::interrupt())?;
    let mut hang_up = listen(SignalKind::hangup())?;
    Ok(async move {
        loop {
            tokio::select! {
                _ = terminate.recv() => break,
                _ = interrupt.recv() => break,
                _ = hang_up.recv() => tracing::info!("to read the configuration again, restart: guests go on"),
            }
        }
        tracing::info!("stopping");
        systemd::stopping();
    })
}
