//! Volumes, snapshots and what is deleted of them, in any order, against a model: what a volume or a snapshot needs is
//! never given up, and what nobody needs is.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use proptest::prelude::*;

use super::copy;
use crate::actions::testing::Client;
use crate::ids::{LayerId, SnapshotId, VolumeId};
use crate::query::ApiError;
use crate::records::{Layer, LayerState, Snapshot, SnapshotState, Volume};
use crate::state::Draft;
use crate::volumes::snapshots::take;
use crate::volumes::stack;

/// What happens. Numbers choose among what there is.
#[derive(Clone, Debug)]
enum Step {
    /// A new volume, empty or from a snapshot.
    Create(Option<usize>),
    /// What a guest writes into a volume: a new value of a block.
    Write(usize, u8),
    Take(usize),
    Copy(usize),
    DeleteVolume(usize),
    DeleteSnapshot(usize),
    /// Layers that are covered reach the disk, and those that nobody needs are removed.
    Settle,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        2 => proptest::option::of(any::<usize>()).prop_map(Step::Create),
        4 => (any::<usize>(), 0..4_u8).prop_map(|(volume, block)| Step::Write(volume, block)),
        4 => any::<usize>().prop_map(Step::Take),
        1 => any::<usize>().prop_map(Step::Copy),
        1 => any::<usize>().prop_map(Step::DeleteVolume),
        3 => any::<usize>().prop_map(Step::DeleteSnapshot),
        2 => Just(Step::Settle),
    ];
    prop::collection::vec(step, 0..60)
}

/// What is on a disk, by the number of the block.
type Contents = BTreeMap<u8, u32>;

/// What there should be: contents are copied whole.
#[derive(Default)]
struct Model {
    volumes: Vec<(VolumeId, Contents)>,
    snapshots: Vec<(SnapshotId, Contents)>,
}

fn choose<T>(all: &[T], number: usize) -> Option<usize> {
    number.checked_rem(all.len())
}

/// The layers' files: what was written to each.
type Files = BTreeMap<LayerId, Contents>;

/// What is read through a stack.
fn read(draft: &Draft, files: &Files, top: &LayerId) -> Contents {
    let mut contents = Contents::new();
    for layer in stack::chain(draft, top) {
        contents.extend(files.get(&layer.id).expect("a layer that is needed was removed"));
    }
    contents
}

fn perform(draft: &mut Draft, files: &mut Files, model: &mut Model, step: &Step, time: u32) {
    match *step {
        Step::Create(from) => {
            let from = from.and_then(|number| choose(&model.snapshots, number));
            let (source, contents) = match from {
                None => (None, Contents::new()),
                Some(at) => (Some(model.snapshots[at].0.clone()), model.snapshots[at].1.clone()),
            };
            let base = source.as_ref().map(|id| draft.get::<Snapshot>(id).unwrap().layer.clone());
            let layer = stack::found(draft, base.as_ref(), 1);
            files.insert(layer.clone(), Contents::new());
            let volume = Volume { snapshot: source, ..super::tests::volume(layer) };
            model.volumes.push((volume.id.clone(), contents));
            draft.put(volume);
        }
        Step::Write(volume, block) => {
            if let Some(at) = choose(&model.volumes, volume) {
                let (id, contents) = &mut model.volumes[at];
                contents.insert(block, time);
                let top = draft.get::<Volume>(&*id).unwrap().layer.clone();
                files.get_mut(&top).unwrap().insert(block, time);
            }
        }
        Step::Take(volume) => {
            if let Some(at) = choose(&model.volumes, volume) {
                let (id, contents) = &model.volumes[at];
                let snapshot = take(draft, id, "", Timestamp::UNIX_EPOCH).unwrap();
                assert_eq!(snapshot.state, SnapshotState::Pending);
                let top = draft.get::<Volume>(id).unwrap().layer.clone();
                assert_eq!(draft.get::<Layer>(&top).unwrap().parent.as_ref(), Some(&snapshot.layer));
                files.insert(top, Contents::new());
                model.snapshots.push((snapshot.id, contents.clone()));
            }
        }
        Step::Copy(snapshot) => {
            if let Some(at) = choose(&model.snapshots, snapshot) {
                let (id, contents) = model.snapshots[at].clone();
                let source = draft.get::<Snapshot>(&id).unwrap();
                let copied = copy(source, "111111111111", String::new(), Timestamp::UNIX_EPOCH);
                model.snapshots.push((copied.id.clone(), contents));
                draft.put(copied);
            }
        }
        Step::DeleteVolume(volume) => {
            if let Some(at) = choose(&model.volumes, volume) {
                let (id, _) = model.volumes.remove(at);
                draft.remove::<Volume>(id);
            }
        }
        Step::DeleteSnapshot(snapshot) => {
            if let Some(at) = choose(&model.snapshots, snapshot) {
                let (id, _) = model.snapshots.remove(at);
                draft.remove::<Snapshot>(id);
            }
        }
        Step::Settle => {
            let tops: BTreeSet<_> = draft.all::<Volume>().map(|volume| volume.layer.clone()).collect();
            let ids = draft.all::<Layer>().map(|layer| layer.id.clone());
            let covered: Vec<_> = ids.filter(|id| !tops.contains(id)).collect();
            stack::advance(draft, &covered, LayerState::Sealed, Timestamp::UNIX_EPOCH);
            for layer in stack::unneeded(draft) {
                draft.remove::<Layer>(&layer);
                files.remove(&layer);
            }
            // Each layer that is left is one that is read by somebody.
            let volumes = draft.all::<Volume>().map(|volume| volume.layer.clone());
            let snapshots = draft.all::<Snapshot>().map(|snapshot| snapshot.layer.clone());
            let needed: BTreeSet<_> = volumes
                .chain(snapshots)
                .flat_map(|top| stack::chain(draft, &top))
                .map(|layer| layer.id.clone())
                .collect();
            assert_eq!(needed, draft.all::<Layer>().map(|layer| layer.id.clone()).collect());
            let is_complete = |one: &std::sync::Arc<Snapshot>| one.state == SnapshotState::Completed;
            assert!(draft.all::<Snapshot>().all(is_complete));
        }
    }
}

fn check(draft: &Draft, files: &Files, model: &Model) {
    for (id, contents) in &model.volumes {
        assert_eq!(read(draft, files, &draft.get::<Volume>(id).unwrap().layer), *contents, "{id}");
    }
    for (id, contents) in &model.snapshots {
        assert_eq!(read(draft, files, &draft.get::<Snapshot>(id).unwrap().layer), *contents, "{id}");
    }
}

proptest! {
    #[test]
    fn what_is_needed_stays_whatever_is_deleted_first(steps in steps()) {
        let client = Client::new();
        let (mut files, mut model) = (Files::new(), Model::default());
        let all = |draft: &mut Draft| {
            for (time, step) in (0..).zip(&steps) {
                perform(draft, &mut files, &mut model, step, time);
                check(draft, &files, &model);
            }
            perform(draft, &mut files, &mut model, &Step::Settle, 0);
            check(draft, &files, &model);
            while !(model.volumes.is_empty() && model.snapshots.is_empty()) {
                perform(draft, &mut files, &mut model, &Step::DeleteSnapshot(steps.len()), 0);
                perform(draft, &mut files, &mut model, &Step::DeleteVolume(steps.len()), 0);
                perform(draft, &mut files, &mut model, &Step::Settle, 0);
                check(draft, &files, &model);
            }
            assert!(files.is_empty());
            Ok::<_, ApiError>(())
        };
        client.agent.state.change(all).unwrap();
    }
}
