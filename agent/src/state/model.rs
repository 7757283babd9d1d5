//! The state against a model: a map that is copied before each transaction.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use proptest::prelude::*;

use super::{Draft, State, World};
use crate::records::{Record, Tags};
use crate::store::memory::Memory;
use crate::store::redb::Redb;
use crate::store::{Store, StoreError, Write};

/// What a transaction does.
#[derive(Clone, Debug)]
enum Step {
    Put(u8, u8),
    Remove(u8),
    /// Adds to what is there.
    Update(u8, u8),
    Tag(u8, u8),
}

/// How a transaction ends.
#[derive(Clone, Copy, Debug, PartialEq)]
enum End {
    Commit,
    /// It changes its mind.
    GiveUp,
    /// The store cannot write.
    StoreFails,
    /// The agent is started again.
    Reopen,
}

/// By resource, the tags.
type Model = BTreeMap<String, BTreeMap<String, String>>;

/// A store that can be made to fail.
struct Unreliable {
    store: Box<dyn Store>,
    fails: AtomicBool,
}

impl Store for Unreliable {
    fn load(&self, prefix: &str) -> Result<Vec<(String, Vec<u8>)>, StoreError> {
        self.store.load(prefix)
    }

    fn commit(&self, writes: &[Write]) -> Result<(), StoreError> {
        if self.fails.load(Ordering::Relaxed) {
            return Err(failure());
        }
        self.store.commit(writes)
    }
}

fn failure() -> StoreError {
    StoreError { what: "write".into(), cause: "it was told so".into() }
}

fn steps() -> impl Strategy<Value = Vec<(Vec<Step>, End)>> {
    let step = prop_oneof![
        (0..6_u8, any::<u8>()).prop_map(|(key, value)| Step::Put(key, value)),
        (0..6_u8).prop_map(Step::Remove),
        (0..6_u8, any::<u8>()).prop_map(|(key, value)| Step::Update(key, value)),
        (0..6_u8, any::<u8>()).prop_map(|(key, value)| Step::Tag(key, value)),
    ];
    let end = prop_oneof![
        6 => Just(End::Commit),
        1 => Just(End::GiveUp),
        1 => Just(End::StoreFails),
        1 => Just(End::Reopen),
    ];
    prop::collection::vec((prop::collection::vec(step, 0..6), end), 0..12)
}

fn name(key: u8) -> String {
    format!("i-{key}")
}

fn tag(value: u8) -> (String, String) {
    (format!("key-{}", value % 3), value.to_string())
}

fn perform(draft: &mut Draft, step: &Step) {
    match *step {
        Step::Put(key, value) => draft.put(Tags { resource: name(key), tags: [tag(value)].into() }),
        Step::Remove(key) => draft.remove::<Tags>(name(key)),
        Step::Update(key, value) => {
            draft.update::<Tags>(name(key), |record| record.tags.extend([tag(value)]));
        }
        Step::Tag(key, value) => draft.tag(name(key), [tag(value)]),
    }
}

/// Does the same to the model, and returns the key if it has changed something.
fn expect(model: &mut Model, step: &Step) -> Option<String> {
    let (key, has_changed) = match *step {
        Step::Put(key, value) => {
            model.insert(name(key), [tag(value)].into());
            (key, true)
        }
        Step::Remove(key) => (key, model.remove(&name(key)).is_some()),
        Step::Update(key, value) => {
            (key, model.get_mut(&name(key)).map(|tags| tags.extend([tag(value)])).is_some())
        }
        Step::Tag(key, value) => {
            model.entry(name(key)).or_default().extend([tag(value)]);
            (key, true)
        }
    };
    has_changed.then(|| format!("{}/{}", Tags::KIND, name(key)))
}

fn seen(state: &State) -> Model {
    let world = state.read();
    world.all::<Tags>().map(|record| (record.resource.clone(), record.tags.clone())).collect()
}

fn check(store: Box<dyn Store>, transactions: &[(Vec<Step>, End)]) {
    let store = Arc::new(Unreliable { store, fails: AtomicBool::new(false) });
    let mut state = State::open(store.clone()).unwrap();
    let mut model = Model::new();
    for (steps, end) in transactions {
        let mut changes = state.watch();
        let before = state.read();
        let mut next = model.clone();
        let expected: BTreeSet<String> = steps.iter().filter_map(|step| expect(&mut next, step)).collect();
        store.fails.store(*end == End::StoreFails, Ordering::Relaxed);
        let result = state.change(|draft| {
            for step in steps {
                perform(draft, step);
            }
            if *end == End::GiveUp { Err(failure()) } else { Ok(()) }
        });
        store.fails.store(false, Ordering::Relaxed);
        let is_done = match end {
            End::Commit | End::Reopen => true,
            End::GiveUp => false,
            // Without anything to write it is not asked.
            End::StoreFails => expected.is_empty(),
        };
        assert_eq!(result.is_ok(), is_done);
        // Who has looked before goes on seeing what it saw.
        assert_eq!(before.all::<Tags>().count(), model.len());
        if is_done {
            model = next;
        }
        match changes.try_recv() {
            Ok(keys) => assert_eq!((is_done, keys.iter().cloned().collect()), (true, expected)),
            Err(_) => assert!(!is_done || expected.is_empty()),
        }
        if *end == End::Reopen {
            state = State::open(store.clone()).unwrap();
        }
        assert_eq!(seen(&state), model);
    }
    assert_eq!(seen(&State::open(store).unwrap()), model);
}

proptest! {
    #[test]
    fn the_state_in_memory_is_as_its_model(transactions in steps()) {
        check(Box::new(Memory::default()), &transactions);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn the_state_in_a_file_is_as_its_model(transactions in steps()) {
        let directory = tempfile::tempdir().unwrap();
        check(Box::new(Redb::open(directory.path().join("state.redb")).unwrap()), &transactions);
    }
}

/// A store that takes its time, and fails every now and then.
#[derive(Default)]
struct Slow {
    memory: Memory,
    commits: AtomicU32,
    fails_every: u32,
}

impl Store for Slow {
    fn load(&self, prefix: &str) -> Result<Vec<(String, Vec<u8>)>, StoreError> {
        self.memory.load(prefix)
    }

    fn commit(&self, writes: &[Write]) -> Result<(), StoreError> {
        std::thread::sleep(Duration::from_millis(1));
        let number = self.commits.fetch_add(1, Ordering::Relaxed);
        if self.fails_every > 0 && number % self.fails_every == self.fails_every - 1 {
            return Err(failure());
        }
        self.memory.commit(writes)
    }
}

const THREADS: u8 = 8;
const TURNS: u32 = 50;

/// Lets threads count together, each of which also counts for itself; returns what each was told.
fn count_together(state: &State) -> Vec<u32> {
    let add = |draft: &mut Draft, resource: &str| {
        let count: u32 = draft.tags(resource).map_or(0, |tags| tags["count"].parse().unwrap());
        draft.tag(resource, [("count".to_owned(), (count + 1).to_string())]);
    };
    let count = |thread: u8| {
        let mut succeeded = 0;
        for _ in 0..TURNS {
            let result: Result<(), StoreError> = state.change(|draft| {
                add(draft, "all");
                add(draft, &name(thread));
                Ok(())
            });
            succeeded += u32::from(result.is_ok());
            // What we were told is there to be seen.
            assert_eq!(counted(&state.read(), &name(thread)), succeeded);
        }
        succeeded
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS).map(|thread| scope.spawn(move || count(thread))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

fn counted(world: &World, resource: &str) -> u32 {
    world.tags(resource).map_or(0, |tags| tags["count"].parse().unwrap())
}

#[test]
fn transactions_build_on_each_other_and_are_written_together() {
    let store = Arc::new(Slow::default());
    let state = State::open(store.clone()).unwrap();
    assert_eq!(count_together(&state), [TURNS; THREADS as usize]);
    assert_eq!(counted(&state.read(), "all"), u32::from(THREADS) * TURNS);
    let commits = store.commits.load(Ordering::Relaxed);
    assert!(commits < u32::from(THREADS) * TURNS / 2, "{commits}");
}

#[test]
fn what_is_built_on_a_failed_transaction_fails_too_and_nothing_else() {
    let store = Arc::new(Slow { fails_every: 4, ..Slow::default() });
    let state = State::open(store.clone()).unwrap();
    let succeeded = count_together(&state);
    let total: u32 = succeeded.iter().sum();
    assert!((1..u32::from(THREADS) * TURNS).contains(&total), "{total}");
    for state in [state, State::open(store).unwrap()] {
        let world = state.read();
        assert_eq!(counted(&world, "all"), total);
        for (thread, succeeded) in (0..THREADS).zip(&succeeded) {
            assert_eq!(counted(&world, &name(thread)), *succeeded);
        }
    }
}

#[test]
fn who_only_looks_waits_for_what_it_sees() {
    let store = Arc::new(Slow { fails_every: 2, ..Slow::default() });
    let state = State::open(store).unwrap();
    let (seen, saw) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        let state = &state;
        scope.spawn(move || {
            let result: Result<(), StoreError> = state.change(|draft| {
                draft.tag("i-1", [("count".to_owned(), "1".to_owned())]);
                seen.send(()).unwrap();
                Ok(())
            });
            assert!(result.is_err());
        });
        saw.recv().unwrap();
        let result: Result<u32, StoreError> = state.change(|draft| Ok(counted(draft, "i-1")));
        // Either it came after the failure, or it saw what has failed, and fails too.
        assert!(matches!(result, Ok(0) | Err(_)), "{result:?}");
    });
}

#[test]
fn a_transaction_that_panics_changes_nothing_and_lets_the_next_one_in() {
    let state = State::open(Arc::new(Memory::default())).unwrap();
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let _: Result<(), StoreError> = state.change(|draft| {
            draft.tag("i-1", [("half".to_owned(), "done".to_owned())]);
            panic!("in the middle");
        });
    }));
    assert!(panicked.is_err());
    assert_eq!(seen(&state), Model::new());
    let result: Result<(), StoreError> = state.change(|draft| {
        draft.tag("i-2", [("all".to_owned(), "done".to_owned())]);
        Ok(())
    });
    result.unwrap();
    assert_eq!(seen(&state).len(), 1);
}

/// Panics once, when it is told to.
#[derive(Debug, Default)]
struct Panicking {
    memory: Memory,
    panics: AtomicBool,
}

impl Store for Panicking {
    fn load(&self, prefix: &str) -> Result<Vec<(String, Vec<u8>)>, StoreError> {
        self.memory.load(prefix)
    }

    fn commit(&self, writes: &[Write]) -> Result<(), StoreError> {
        assert!(!self.panics.swap(false, Ordering::Relaxed), "as it was told");
        self.memory.commit(writes)
    }
}

#[test]
fn what_was_lost_in_a_panic_of_the_store_is_not_there() {
    let store = Arc::new(Panicking::default());
    let state = State::open(store.clone()).unwrap();
    let tag = |resource: &str| -> Result<(), StoreError> {
        state.change(|draft| {
            draft.tag(resource, [("a".to_owned(), "b".to_owned())]);
            Ok(())
        })
    };
    store.panics.store(true, Ordering::Relaxed);
    tag("i-1").unwrap_err();
    tag("i-2").unwrap();
    assert_eq!(seen(&state).len(), 1);
    assert_eq!(seen(&State::open(store).unwrap()), seen(&state));
}
