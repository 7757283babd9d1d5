//! The network that the records describe, brought about on the host: which VPCs have a namespace, what is in it, and who
//! serves there.
//!
//! - [`plan`] and [`directory`] are pure: they make from the records what `innkeeper-network` wants to know.
//! - [`peer`] says who is at the other end of a connection to one of the services.
//! - [`DataPlane`] hears of every change of the records, and looks at everything now and then, as others may have done
//!   something with it. A VPC has a namespace as long as an instance in it has a VMM.
//!
//! A plan is made and applied under one lock, so that an older one never follows a newer one.

mod directory;
pub mod peer;
pub mod plan;

use std::collections::BTreeMap;
use std::future::pending;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use innkeeper_network::plan::Vpc as Plan;
use innkeeper_network::routes::router;
use innkeeper_network::services::dns::{Resolvers, resolvers};
use innkeeper_network::services::{Directory, OwnSockets};
use innkeeper_network::trace::Traced;
use tokio::net::TcpListener;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};

use crate::host::{Host, HostError};
use crate::ids::{NetworkInterfaceId, VpcId};
use crate::metadata::Metadata;
use crate::records::{
    self, DhcpOptions, Instance, InternetGateway, NatGateway, NetworkAcl, NetworkInterface, Record,
    RouteTable, SecurityGroup, Subnet,
};
use crate::state::{State, World};

/// How often everything is looked at.
const MENDING: Duration = Duration::from_secs(10);

/// When everything is looked at again, if something could not be done.
const RETRY: Duration = Duration::from_secs(1);

/// How long a guest may take to answer.
const ANSWER: Duration = Duration::from_millis(500);

/// Where the host's resolvers are named.
const RESOLV_CONF: &str = "/etc/resolv.conf";

/// The kinds of records that a network is made of.
const KINDS: [&str; 10] = [
    records::Vpc::KIND,
    Subnet::KIND,
    RouteTable::KIND,
    InternetGateway::KIND,
    NatGateway::KIND,
    NetworkAcl::KIND,
    SecurityGroup::KIND,
    NetworkInterface::KIND,
    DhcpOptions::KIND,
    Instance::KIND,
];

/// The network on the host.
#[derive(Clone)]
pub struct DataPlane {
    shared: Arc<Shared>,
}

struct Shared {
    state: Arc<State>,
    host: Arc<dyn Host>,
    metadata: Arc<Metadata>,
    api: OnceLock<Api>,
    settings: Settings,
    vpcs: Mutex<BTreeMap<VpcId, Applied>>,
}

/// Serves the API to the guests of a VPC, on a listener that is non-blocking, until it is dropped.
pub type Api = Box<dyn Fn(VpcId, std::net::TcpListener) -> ApiServed + Send + Sync>;

/// See [`Api`].
pub type ApiServed = Pin<Box<dyn Future<Output = io::Result<()>> + Send>>;

/// What the operator has chosen.
pub struct Settings {
    /// The region.
    pub region: String,
    /// How many packets an interface may send to the services in a second.
    pub service_packets: Option<u32>,
}

/// What was brought about for a VPC.
struct Applied {
    plan: Plan,
    directory: watch::Sender<Arc<Directory>>,
    services: Option<JoinHandle<()>>,
}

impl Drop for Applied {
    fn drop(&mut self) {
        if let Some(services) = &self.services {
            services.abort();
        }
    }
}

impl DataPlane {
    /// Nothing is brought about yet: see [`DataPlane::supervise`].
    pub fn new(state: Arc<State>, host: Arc<dyn Host>, metadata: Arc<Metadata>, settings: Settings) -> Self {
        let (api, vpcs) = (OnceLock::new(), Mutex::default());
        Self { shared: Arc::new(Shared { state, host, metadata, api, settings, vpcs }) }
    }

    /// Lets guests ask the API from now on, which is made of what has a network. Once, and before anything else.
    pub fn offer(&self, api: Api) {
        let _ = self.shared.api.set(api);
    }

    /// Brings about what the records say, and keeps it so, until it is dropped. The network stays as it is then.
    pub async fn supervise(&self) {
        let mut changes = self.shared.state.watch();
        let mut mending = Instant::now();
        loop {
            let is_due = Instant::now() >= mending;
            if is_due {
                mending = Instant::now() + MENDING;
            }
            if !self.bring_about(is_due).await {
                mending = mending.min(Instant::now() + RETRY);
            }
            loop {
                let changed = tokio::select! {
                    changed = changes.recv() => changed,
                    () = sleep_until(mending) => break,
                };
                match changed {
                    Ok(keys) if keys.iter().any(|key| concerns_networks(key)) => break,
                    Ok(_) => {}
                    Err(RecvError::Lagged(_)) => break,
                    Err(RecvError::Closed) => return,
                }
            }
        }
    }

    /// Whether all is as it should be.
    async fn bring_about(&self, is_due: bool) -> bool {
        let shared = self.shared.clone();
        let runtime = tokio::runtime::Handle::current();
        let done = tokio::task::spawn_blocking(move || shared.bring_about(&runtime, is_due)).await;
        done.unwrap_or_else(|error| {
            tracing::error!(%error, "the network was not looked at to the end");
            false
        })
    }

    /// Opens the tap of an interface whose instance is about to have a VMM, once for each pair of queues, in a network
    /// that is ready.
    pub async fn open_tap(
        &self,
        interface: &NetworkInterfaceId,
        queues: u16,
    ) -> anyhow::Result<Vec<OwnedFd>> {
        let (shared, id) = (self.shared.clone(), interface.clone());
        let runtime = tokio::runtime::Handle::current();
        Ok(tokio::task::spawn_blocking(move || shared.open_tap(&runtime, &id, queues)).await??)
    }

    /// Whether the guest that has an interface answers there. An error is that it could not be asked.
    pub async fn is_answered(&self, interface: &NetworkInterfaceId) -> anyhow::Result<bool> {
        let (shared, id) = (self.shared.clone(), interface.clone());
        Ok(tokio::task::spawn_blocking(move || shared.is_answered(&id)).await??)
    }

    /// What becomes of the packets from and to an interface for some time. None, if its instance does not run. Blocks.
    pub fn trace(
        &self,
        interface: &NetworkInterface,
        time: Duration,
    ) -> Result<Option<Vec<Traced>>, HostError> {
        let world = self.shared.state.read();
        let Some(plan) = self.shared.plan(&world, &interface.vpc) else { return Ok(None) };
        if !plan.interfaces.contains_key(interface.id.as_str()) {
            return Ok(None);
        }
        let own = interface.addresses();
        let addresses: Vec<Ipv4Addr> = own
            .flat_map(|own| [Some(own.address), own.public.as_ref().map(|public| public.address)])
            .flatten()
            .collect();
        let tracer = self.shared.host.trace_vpc(&plan)?;
        let traced = tracer.look(&plan, &addresses, time);
        traced.map(Some).map_err(|cause| HostError { what: format!("see the packets of {}", plan.id), cause })
    }
}

/// Whether a record with this key has to do with networks.
fn concerns_networks(key: &str) -> bool {
    key.split_once('/').is_some_and(|(kind, _)| KINDS.contains(&kind))
}

impl Shared {
    fn vpcs(&self) -> MutexGuard<'_, BTreeMap<VpcId, Applied>> {
        self.vpcs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a VPC's network is to be. None if nobody in it uses it.
    fn plan(&self, world: &World, vpc: &VpcId) -> Option<Plan> {
        let service_packets = self.settings.service_packets;
        plan::plan(world, vpc).map(|plan| Plan { service_packets, ..plan })
    }

    /// Brings about all VPCs, and takes away what is none's; returns whether that went well. `is_due` is whether to look at
    /// what nobody has changed.
    fn bring_about(&self, runtime: &tokio::runtime::Handle, is_due: bool) -> bool {
        let mut is_well = true;
        let mut vpcs = self.vpcs();
        let world = self.state.read();
        let plans: BTreeMap<VpcId, Plan> = world
            .all::<records::Vpc>()
            .filter_map(|vpc| Some((vpc.id.clone(), self.plan(&world, &vpc.id)?)))
            .collect();
        if is_due {
            match self.host.vpcs() {
                Ok(present) => {
                    let unknown = present.into_iter().filter(|id| !vpcs.contains_key(id));
                    for id in unknown.filter(|id| !plans.contains_key(id)).collect::<Vec<_>>() {
                        self.remove(&id);
                    }
                }
                Err(error) => {
                    tracing::error!(error = chain(&error), "networks that were left cannot be looked for");
                }
            }
        }
        let gone: Vec<VpcId> = vpcs.keys().filter(|id| !plans.contains_key(*id)).cloned().collect();
        for id in gone {
            // Its services first: their sockets are in it.
            vpcs.remove(&id);
            self.remove(&id);
        }
        for (id, plan) in plans {
            if let Err(error) = self.apply(runtime, &mut vpcs, &id, plan, is_due) {
                tracing::error!(vpc = %id, error = chain(&error), "a network is not as it should be");
                is_well = false;
            }
        }
        is_well
    }

    fn remove(&self, vpc: &VpcId) {
        match self.host.remove_vpc(vpc) {
            Ok(()) => tracing::debug!(%vpc, "took its network away"),
            Err(error) => tracing::warn!(%vpc, error = chain(&error), "a network is left behind"),
        }
    }

    fn apply(
        &self,
        runtime: &tokio::runtime::Handle,
        vpcs: &mut BTreeMap<VpcId, Applied>,
        id: &VpcId,
        plan: Plan,
        is_due: bool,
    ) -> Result<(), HostError> {
        let known = vpcs.get(id);
        if is_due || known.is_none_or(|known| known.plan != plan) {
            self.host.apply_vpc(&plan, is_due).inspect_err(|_| {
                // Part of it may have been done: the next plan is a change, even if it is the one before.
                if let Some(known) = vpcs.get_mut(id) {
                    known.plan = Plan::default();
                }
            })?;
        }
        let mut directory = directory::directory(&self.state.read(), id, &self.settings.region);
        directory.resolvers = match (is_due, vpcs.get(id)) {
            (false, Some(known)) => known.directory.borrow().resolvers.clone(),
            // They change when a host moves from one network to another.
            _ => host_resolvers(),
        };
        let directory = Arc::new(directory);
        let applied = vpcs.entry(id.clone()).or_insert_with(|| Applied {
            plan: plan.clone(),
            directory: watch::Sender::new(directory.clone()),
            services: None,
        });
        applied.plan = plan;
        applied.directory.send_if_modified(|current| {
            let is_new = *current != directory;
            *current = directory;
            is_new
        });
        if applied.services.as_ref().is_none_or(JoinHandle::is_finished) {
            let sockets = self.host.vpc_sockets(id)?;
            let api = self.api.get().map(|api| api(id.clone(), sockets.api));
            let own = (sockets.own, applied.directory.subscribe());
            let served = serve(id.clone(), own, (sockets.metadata, self.metadata.clone()), api);
            applied.services = Some(runtime.spawn(served));
        }
        Ok(())
    }

    fn is_answered(&self, id: &NetworkInterfaceId) -> Result<bool, HostError> {
        let what = || format!("ask whoever has {id}");
        let gone =
            || HostError { what: what(), cause: io::Error::other("it is not an interface that is used") };
        let probe = {
            let vpcs = self.vpcs();
            let vpc = self.state.read().get::<NetworkInterface>(id).ok_or_else(gone)?.vpc.clone();
            let plan = &vpcs.get(&vpc).ok_or_else(gone)?.plan;
            let interface = plan.interfaces.get(id.as_str()).ok_or_else(gone)?;
            let subnet = plan.subnets.get(&interface.subnet).ok_or_else(gone)?;
            self.host.probe(&vpc, id, interface, router(subnet.cidr))?
        };
        probe.is_answered(ANSWER).map_err(|cause| HostError { what: what(), cause })
    }

    fn open_tap(
        &self,
        runtime: &tokio::runtime::Handle,
        interface: &NetworkInterfaceId,
        queues: u16,
    ) -> Result<Vec<OwnedFd>, HostError> {
        let mut vpcs = self.vpcs();
        let world = self.state.read();
        let gone = || HostError {
            what: format!("attach {interface}"),
            cause: io::Error::other("it is not an interface of an instance that is to run"),
        };
        let vpc = world.get::<NetworkInterface>(interface).ok_or_else(gone)?.vpc.clone();
        let plan = self.plan(&world, &vpc).ok_or_else(gone)?;
        self.apply(runtime, &mut vpcs, &vpc, plan.clone(), false)?;
        let tap = self.host.open_tap(&vpc, interface, queues)?;
        self.host.apply_vpc(&plan, false)?;
        Ok(tap)
    }
}

/// Runs all services of a VPC, until one of them ends.
async fn serve(
    vpc: VpcId,
    (own, directory): (OwnSockets, watch::Receiver<Arc<Directory>>),
    (metadata_socket, metadata): (std::net::TcpListener, Arc<Metadata>),
    api: Option<ApiServed>,
) {
    let of_metadata = async {
        metadata.serve(vpc.clone(), TcpListener::from_std(metadata_socket)?).await;
        Ok(())
    };
    let of_api = async {
        match api {
            Some(served) => served.await,
            None => pending().await,
        }
    };
    let ended = tokio::select! {
        ended = own.serve(directory) => ended,
        ended = of_metadata => ended,
        ended = of_api => ended,
    };
    if let Err(error) = ended {
        tracing::error!(%vpc, %error, "the services of a VPC have ended, and begin anew");
    }
}

/// Whom the host asks for names. None, if it does not say.
fn host_resolvers() -> Resolvers {
    let text = std::fs::read_to_string(RESOLV_CONF).unwrap_or_default();
    resolvers(&text)
}

/// An error and its causes, in one line.
fn chain(error: &HostError) -> String {
    format!("{error}: {}", error.cause)
}
