//! Everything the agent knows: the [`records`](crate::records), in memory for reading, in the store for keeps.
//!
//! [`State::read`] hands out an immutable [`World`]: a consistent view that costs nothing to take and that no writer
//! waits for. [`State::change`] runs a transaction on a [`Draft`] of it, one at a time; what it has changed is on the
//! disk before anybody outside of other transactions sees it.

mod document;
pub mod journal;
#[cfg(test)]
mod model;

use std::collections::BTreeMap;
use std::ops::{Bound, Deref};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};

use arc_swap::ArcSwap;
use jiff::Timestamp;
use tokio::sync::broadcast;

use crate::records::{
    AccessKey, DhcpOptions, ElasticAddress, Idempotency, Identity, Image, Instance, InstanceProfile,
    InternetGateway, KeyPair, Layer, Machine, Meter, NatGateway, NetworkAcl, NetworkInterface, Notice,
    Record, Role, RouteTable, ScheduledEvent, Secret, SecurityGroup, Snapshot, StateChange, Subnet, Tags,
    Volume, Vpc,
};
use crate::store::{Store, StoreError, Write, format};

use document::encode;
pub use document::{Document, decode};

/// How many transactions a watcher may be behind.
const WATCH_DEPTH: usize = 1024;

/// The keys, `kind/name`, that one transaction has changed, or several that were written together.
pub type Changed = Arc<[String]>;

/// The records of one kind, by key. Shared by the worlds in which it is the same; who changes it copies it first, which
/// takes some 20 µs for a thousand records.
pub type Table<R> = Arc<BTreeMap<Arc<str>, Arc<R>>>;

/// A record that has a table.
pub trait Kept: Record {
    /// Its table.
    fn table(world: &World) -> &Table<Self>;
    /// Its table.
    fn table_mut(world: &mut World) -> &mut BTreeMap<Arc<str>, Arc<Self>>;
}

macro_rules! world {
    ($($field:ident: $record:ty,)*) => {
        /// All records at one moment. A copy is cheap: it shares what it does not change.
        #[derive(Clone, Debug, Default)]
        pub struct World {
            $($field: Table<$record>,)*
        }

        $(impl Kept for $record {
            fn table(world: &World) -> &Table<Self> {
                &world.$field
            }

            fn table_mut(world: &mut World) -> &mut BTreeMap<Arc<str>, Arc<Self>> {
                Arc::make_mut(&mut world.$field)
            }
        })*

        impl World {
            /// Reads a world from the store.
            fn load(store: &dyn Store) -> Result<Self, StoreError> {
                let mut world = Self::default();
                $(load::<$record>(store, &mut world)?;)*
                Ok(world)
            }

            /// All records as they are kept, in the order of their keys.
            pub fn documents(&self) -> Result<Vec<Document>, serde_json::Error> {
                let mut documents = Vec::new();
                $(for record in self.all::<$record>() {
                    documents.push(Document::new(record.as_ref())?);
                })*
                documents.sort_by(|one, other| one.key.cmp(&other.key));
                Ok(documents)
            }
        }
    };
}

world! {
    access_keys: AccessKey,
    dhcp_options: DhcpOptions,
    elastic_addresses: ElasticAddress,
    idempotency: Idempotency,
    identities: Identity,
    images: Image,
    instance_profiles: InstanceProfile,
    instances: Instance,
    internet_gateways: InternetGateway,
    key_pairs: KeyPair,
    layers: Layer,
    machines: Machine,
    meters: Meter,
    nat_gateways: NatGateway,
    network_acls: NetworkAcl,
    network_interfaces: NetworkInterface,
    notices: Notice,
    roles: Role,
    route_tables: RouteTable,
    scheduled_events: ScheduledEvent,
    secrets: Secret,
    security_groups: SecurityGroup,
    snapshots: Snapshot,
    state_changes: StateChange,
    subnets: Subnet,
    tags: Tags,
    volumes: Volume,
    vpcs: Vpc,
}

impl World {
    /// The record with this key.
    pub fn get<R: Kept>(&self, key: impl AsRef<str>) -> Option<&Arc<R>> {
        R::table(self).get(key.as_ref())
    }

    /// All records of a kind, in the order of their keys.
    pub fn all<R: Kept>(&self) -> impl ExactSizeIterator<Item = &Arc<R>> {
        R::table(self).values()
    }

    /// The records of a kind behind this key, in the order of their keys.
    pub fn after<R: Kept>(&self, key: &str) -> impl Iterator<Item = &Arc<R>> {
        let behind = (Bound::Excluded(key), Bound::Unbounded);
        R::table(self).range::<str, _>(behind).map(|(_, record)| record)
    }

    /// The record of a kind with the last key.
    pub fn last<R: Kept>(&self) -> Option<&Arc<R>> {
        R::table(self).last_key_value().map(|(_, record)| record)
    }

    /// A resource's tags.
    pub fn tags(&self, resource: impl AsRef<str>) -> Option<&BTreeMap<String, String>> {
        self.get::<Tags>(resource).map(|tags| &tags.tags)
    }
}

fn load<R: Kept>(store: &dyn Store, world: &mut World) -> Result<(), StoreError> {
    let prefix = format!("{}/", R::KIND);
    for (key, bytes) in store.load(&prefix)? {
        let failed = |reason: String| StoreError { what: format!("read {key}"), cause: reason.into() };
        let record: R = decode(&bytes).map_err(failed)?;
        if key.strip_prefix(&prefix) != Some(record.key()) {
            return Err(failed(format!("the document says that it is {prefix}{}", record.key())));
        }
        R::table_mut(world).insert(record.key().into(), Arc::new(record));
    }
    Ok(())
}

/// A world in the making.
#[derive(Debug)]
pub struct Draft {
    world: World,
    writes: BTreeMap<String, Option<Vec<u8>>>,
    failure: Option<StoreError>,
}

impl Deref for Draft {
    type Target = World;

    fn deref(&self) -> &World {
        &self.world
    }
}

impl Draft {
    /// Adds a record, or replaces the one of its key.
    pub fn put<R: Kept>(&mut self, record: R) {
        let name = format!("{}/{}", R::KIND, record.key());
        match encode(&record) {
            Ok(bytes) => {
                self.writes.insert(name, Some(bytes));
                R::table_mut(&mut self.world).insert(record.key().into(), Arc::new(record));
            }
            Err(cause) => {
                self.failure = Some(StoreError { what: format!("write {name}"), cause: cause.into() });
            }
        }
    }

    /// Takes a record away, if it is there.
    pub fn remove<R: Kept>(&mut self, key: impl AsRef<str>) {
        if self.get::<R>(&key).is_some() {
            R::table_mut(&mut self.world).remove(key.as_ref());
            self.writes.insert(format!("{}/{}", R::KIND, key.as_ref()), None);
        }
    }

    /// Changes a record, if it is there.
    pub fn update<R: Kept>(&mut self, key: impl AsRef<str>, change: impl FnOnce(&mut R)) -> bool {
        let Some(record) = self.get::<R>(key) else { return false };
        let mut record = R::clone(record);
        change(&mut record);
        self.put(record);
        true
    }

    /// Adds tags to a resource.
    pub fn tag(&mut self, resource: impl AsRef<str>, tags: impl IntoIterator<Item = (String, String)>) {
        let mut all = self.tags(&resource).cloned().unwrap_or_default();
        all.extend(tags);
        if !all.is_empty() {
            self.put(Tags { resource: resource.as_ref().to_owned(), tags: all });
        }
    }
}

/// All records, and the way to change them.
///
/// Transactions run one at a time, and are written together: while one is on its way to the disk, which takes
/// milliseconds, those that come meanwhile gather, each on what the one before has made, and go there next, all at once.
pub struct State {
    store: Arc<dyn Store>,
    /// How things are on the disk.
    world: ArcSwap<World>,
    gathered: Mutex<Gathered>,
    is_writing: Mutex<bool>,
    /// Whoever wrote has finished.
    written: Condvar,
    changed: broadcast::Sender<Changed>,
}

/// The transactions that are not on the disk yet.
struct Gathered {
    /// How things are after all of them, including those that are being written.
    world: World,
    /// What those have changed that are not being written yet.
    writes: BTreeMap<String, Option<Vec<u8>>>,
    /// What those will hear.
    outcome: Arc<Outcome>,
}

/// Whether transactions that were written together have reached the disk.
type Outcome = OnceLock<Result<(), Arc<StoreError>>>;

/// The turn to write, given up when it is dropped.
struct Turn<'a>(&'a State);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        *self.0.is_writing.lock().unwrap_or_else(PoisonError::into_inner) = false;
        self.0.written.notify_all();
    }
}

impl State {
    /// Reads everything; brings what an older agent has written up to date.
    pub fn open(store: Arc<dyn Store>) -> Result<Self, StoreError> {
        format::prepare(store.as_ref(), format::MIGRATIONS)?;
        let world = World::load(store.as_ref())?;
        let (changed, _) = broadcast::channel(WATCH_DEPTH);
        let gathered = Gathered { world: world.clone(), writes: BTreeMap::new(), outcome: Arc::default() };
        Ok(Self {
            store,
            world: ArcSwap::from_pointee(world),
            gathered: Mutex::new(gathered),
            is_writing: Mutex::new(false),
            written: Condvar::new(),
            changed,
        })
    }

    /// How things are now.
    pub fn read(&self) -> Arc<World> {
        self.world.load_full()
    }

    /// Changes things: all of it, or nothing if `transaction` or the store fails. Blocks until it is on the disk, and
    /// so is what the transaction saw.
    ///
    /// `transaction` must be quick, for nobody else changes anything meanwhile, and must not call this again.
    pub fn change<T, E: From<StoreError>>(
        &self,
        transaction: impl FnOnce(&mut Draft) -> Result<T, E>,
    ) -> Result<T, E> {
        let (result, outcome) = {
            let mut gathered = self.gathered();
            let mut draft = Draft { world: gathered.world.clone(), writes: BTreeMap::new(), failure: None };
            let result = transaction(&mut draft);
            if result.is_ok() {
                journal::note(&gathered.world, &mut draft, Timestamp::now());
            }
            if let Some(failure) = draft.failure {
                return Err(failure.into());
            }
            if result.is_ok() {
                gathered.world = draft.world;
                gathered.writes.append(&mut draft.writes);
            }
            (result, Arc::clone(&gathered.outcome))
        };
        // Also without changes, and after an error: those before it, on which it is built, may still fail.
        self.settle(&outcome)?;
        result
    }

    fn gathered(&self) -> MutexGuard<'_, Gathered> {
        self.gathered.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns when the transactions with this outcome are on the disk, or are not going to be. The first of them whose
    /// turn it is writes them all.
    fn settle(&self, outcome: &Outcome) -> Result<(), StoreError> {
        let mut is_writing = self.is_writing.lock().unwrap_or_else(PoisonError::into_inner);
        while outcome.get().is_none() && *is_writing {
            is_writing = self.written.wait(is_writing).unwrap_or_else(PoisonError::into_inner);
        }
        let result = if let Some(result) = outcome.get() {
            result.clone()
        } else {
            // Nobody has taken them, so they are those that are gathered.
            *is_writing = true;
            drop(is_writing);
            let turn = Turn(self);
            let result = self.write();
            // Nobody else sets it in our turn.
            let _ = outcome.set(result.clone());
            drop(turn);
            result
        };
        result.map_err(|error| StoreError { what: error.what.clone(), cause: Box::new(error) })
    }

    /// Writes what is gathered.
    fn write(&self) -> Result<(), Arc<StoreError>> {
        let (world, writes) = {
            let mut gathered = self.gathered();
            gathered.outcome = Arc::default();
            (gathered.world.clone(), std::mem::take(&mut gathered.writes))
        };
        if writes.is_empty() {
            return Ok(());
        }
        let writes: Vec<Write> = writes.into_iter().map(|(key, value)| Write { key, value }).collect();
        // Who waits for these must be told, also if the store panics.
        let committed = catch_unwind(AssertUnwindSafe(|| self.store.commit(&writes)));
        let panicked =
            |_| Err(StoreError { what: "be written to".into(), cause: "the store has panicked".into() });
        if let Err(error) = committed.unwrap_or_else(panicked) {
            let error = Arc::new(error);
            // Those that have gathered meanwhile are built on what has failed.
            let mut gathered = self.gathered();
            gathered.world = World::clone(&self.world.load());
            gathered.writes.clear();
            let _ = std::mem::take(&mut gathered.outcome).set(Err(Arc::clone(&error)));
            return Err(error);
        }
        self.world.store(Arc::new(world));
        let changed: Changed = writes.into_iter().map(|write| write.key).collect();
        // Nobody may be listening.
        let _ = self.changed.send(changed);
        Ok(())
    }

    /// Hears of the keys that transactions have changed, from now on. Who is too slow is told so, and has to look at
    /// everything.
    pub fn watch(&self) -> broadcast::Receiver<Changed> {
        self.changed.subscribe()
    }
}
