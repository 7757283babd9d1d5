//! Volumes and snapshots with files, against arrays of bytes.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::FileExt;

use innkeeper_block::EngineKind;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::ids::SnapshotId;
use crate::records::{ModificationState, Snapshot, SnapshotState, VolumeShape, VolumeState};
use crate::store::memory::Memory;
use crate::store::{Store, Write};

/// What is looked at of each volume, in bytes, and the piece that is written at once.
const LENGTH: usize = 64 << 10;
const PIECE: usize = 3000;

/// Volumes in a directory of their own.
struct Lab {
    directory: tempfile::TempDir,
    state: Arc<State>,
    volumes: Volumes,
}

impl Lab {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let state = Arc::new(State::open(Arc::new(Memory::default())).unwrap());
        let volumes = Volumes::new(state.clone(), directory.path());
        Self { directory, state, volumes }
    }

    fn change<T>(&self, change: impl Fn(&mut Draft) -> T) -> T {
        let changed: Result<T, StoreError> = self.state.change(|draft| Ok(change(draft)));
        changed.unwrap()
    }

    /// A volume of 1 GiB.
    fn create(&self, snapshot: Option<&SnapshotId>) -> VolumeId {
        self.create_sized(snapshot, 1)
    }

    fn create_sized(&self, snapshot: Option<&SnapshotId>, size: u32) -> VolumeId {
        let id = VolumeId::random();
        self.change(|draft| {
            let base = snapshot.and_then(|id| draft.get::<Snapshot>(id)).map(|one| one.layer.clone());
            let layer = stack::found(draft, base.as_ref(), size);
            draft.put(Volume {
                id: id.clone(),
                owner: "000000000000".into(),
                size,
                volume_type: "gp3".into(),
                iops: None,
                throughput: None,
                encrypted: false,
                snapshot: snapshot.cloned(),
                layer,
                availability_zone: "us-east-1a".into(),
                created: Timestamp::UNIX_EPOCH,
                state: VolumeState::Available,
                attachment: None,
                modification: None,
                impairment: None,
                auto_enable_io: false,
            });
        });
        id
    }

    /// A snapshot, that is not brought about yet.
    fn record_snapshot(&self, volume: &VolumeId) -> SnapshotId {
        self.change(|draft| snapshots::take(draft, volume, "", Timestamp::UNIX_EPOCH).unwrap().id)
    }

    fn snapshot(&self, volume: &VolumeId) -> SnapshotId {
        let id = self.record_snapshot(volume);
        self.volumes.settle(volume).unwrap();
        assert_eq!(self.state.read().get::<Snapshot>(&id).unwrap().state, SnapshotState::Completed);
        id
    }

    fn open(&self, volume: &VolumeId) -> Layered {
        let held = self.volumes.open(volume).unwrap();
        Layered::open(held.opened.files, false).unwrap().with_engine(EngineKind::Synchronous)
    }

    fn write(&self, volume: &VolumeId, offset: usize, byte: u8) {
        let disk = self.open(volume);
        disk.write_at(&[byte; PIECE], offset as u64).unwrap();
        disk.flush().unwrap();
    }

    fn read(&self, volume: &VolumeId) -> Vec<u8> {
        let mut content = vec![0; LENGTH];
        self.open(volume).read_at(&mut content, 0).unwrap();
        content
    }

    /// How many files of layers there are.
    fn files(&self) -> usize {
        fs::read_dir(self.directory.path().join("layers")).map_or(0, |entries| entries.count())
    }

    fn delete_snapshot(&self, id: &SnapshotId) {
        self.change(|draft| draft.remove::<Snapshot>(id));
    }
}

#[test]
fn a_snapshot_is_what_the_volume_was() {
    let lab = Lab::new();
    let volume = lab.create(None);
    lab.write(&volume, 0, 1);
    let first = lab.snapshot(&volume);
    lab.write(&volume, 0, 2);
    let second = lab.snapshot(&volume);
    lab.write(&volume, 0, 3);
    let (of_first, of_second) = (lab.create(Some(&first)), lab.create(Some(&second)));
    for (volume, expected) in [(&of_first, 1), (&of_second, 2), (&volume, 3)] {
        assert_eq!(lab.read(volume)[..PIECE], [expected; PIECE]);
        assert!(lab.volumes.check(volume).unwrap().is_sound());
    }
    // All that is needed of the first is in those above it.
    lab.delete_snapshot(&first);
    lab.change(|draft| [&volume, &of_first].into_iter().for_each(|id| draft.remove::<Volume>(id)));
    lab.volumes.collect().unwrap();
    assert_eq!(lab.read(&of_second)[..PIECE], [2; PIECE]);
    while lab.volumes.merge_some(&|| false) {}
    lab.volumes.collect().unwrap();
    assert_eq!(lab.read(&of_second)[..PIECE], [2; PIECE]);
    assert_eq!(lab.files(), 4, "the layers of the snapshots are one, and the volume has its own");
    lab.delete_snapshot(&second);
    lab.change(|draft| draft.remove::<Volume>(&of_second));
    lab.volumes.collect().unwrap();
    assert_eq!(lab.files(), 0);
}

#[test]
fn what_a_crash_has_interrupted_goes_on() {
    let lab = Lab::new();
    let volume = lab.create(None);
    // Before there was a file, and twice before anything was brought about.
    let empty = lab.record_snapshot(&volume);
    let also_empty = lab.record_snapshot(&volume);
    lab.volumes.settle_all();
    lab.write(&volume, 0, 1);
    let snapshot = lab.record_snapshot(&volume);
    // A guest gets it first: what is below its top was not sealed by anybody.
    let held = lab.volumes.open(&volume).unwrap();
    assert_eq!(held.opened.layers.last().unwrap().state, LayerState::Top);
    drop(held);
    lab.write(&volume, 0, 2);
    assert_eq!(lab.state.read().get::<Snapshot>(&snapshot).unwrap().state, SnapshotState::Pending);
    lab.volumes.settle_all();
    for (snapshot, expected) in [(&empty, 0), (&also_empty, 0), (&snapshot, 1)] {
        assert_eq!(lab.state.read().get::<Snapshot>(snapshot).unwrap().state, SnapshotState::Completed);
        assert_eq!(lab.read(&lab.create(Some(snapshot)))[..PIECE], [expected; PIECE]);
    }
    assert_eq!(lab.read(&volume)[..PIECE], [2; PIECE]);
}

#[test]
fn a_snapshot_outlives_a_volume_that_was_deleted_before_it_was_complete() {
    let lab = Lab::new();
    let volume = lab.create(None);
    lab.write(&volume, 0, 1);
    let [snapshot, later] = [(); 2].map(|()| lab.record_snapshot(&volume));
    lab.change(|draft| draft.remove::<Volume>(&volume));
    lab.volumes.collect().unwrap();
    lab.volumes.settle_orphans();
    for snapshot in [&snapshot, &later] {
        assert_eq!(lab.state.read().get::<Snapshot>(snapshot).unwrap().state, SnapshotState::Completed);
        let volume = lab.create(Some(snapshot));
        assert_eq!(lab.read(&volume)[..PIECE], [1; PIECE]);
        lab.change(|draft| draft.remove::<Volume>(&volume));
    }
    lab.volumes.collect().unwrap();
    assert_eq!(lab.files(), 4, "one layer for each snapshot");
}

/// What an instance costs does not depend on its image, and it takes no more than what it writes.
#[test]
fn a_hundred_volumes_of_a_large_image_take_what_they_write() {
    const SPACING: u64 = 1 << 20;
    let lab = Lab::new();
    // 10 GiB with something everywhere, and 10 MiB.
    let import = |size: u64| {
        let file = tempfile::tempfile_in(lab.directory.path()).unwrap();
        file.set_len(size).unwrap();
        for offset in (0..size).step_by(SPACING as usize) {
            file.write_all_at(&[5; 4096], offset).unwrap();
        }
        let layer = lab.volumes.import::<Error>(&file, |_| Ok(())).unwrap();
        let id = SnapshotId::random();
        lab.change(|draft| {
            draft.put(layer.record.clone());
            draft.put(Snapshot {
                id: id.clone(),
                owner: "000000000000".into(),
                description: String::new(),
                volume_size: 10,
                volume: None,
                started: Timestamp::UNIX_EPOCH,
                layer: layer.record.id.clone(),
                state: SnapshotState::Completed,
                completed: None,
                encrypted: false,
                create_volume_permissions: Vec::new(),
                file: None,
            });
        });
        id
    };
    let (large, small) = (import(10 << 30), import(10 << 20));
    let launch = |snapshot: &SnapshotId| {
        let volume = lab.create_sized(Some(snapshot), 10);
        let begun = std::time::Instant::now();
        drop(lab.open(&volume));
        (volume, begun.elapsed())
    };
    let mut times = [Vec::new(), Vec::new()];
    let mut volumes = Vec::new();
    for _ in 0..100 {
        for (snapshot, times) in [&large, &small].into_iter().zip(&mut times) {
            let (volume, time) = launch(snapshot);
            times.push(time);
            volumes.push(volume);
        }
    }
    let [of_large, of_small] = times.map(|mut times| {
        times.sort();
        times[times.len() / 2]
    });
    println!("10 GiB: {of_large:?}, 10 MiB: {of_small:?} (medians of 100)");
    // Both wait for the disk alike; what the size of the image adds is nothing.
    assert!(of_large < of_small + std::time::Duration::from_millis(5), "{of_large:?}, {of_small:?}");
    assert!(of_large < std::time::Duration::from_millis(50), "{of_large:?}");
    let mut taken = 0;
    for volume in &volumes {
        lab.write(volume, 100, 9);
        let layer = lab.state.read().get::<Volume>(volume).unwrap().layer.clone();
        for kind in ["data", "map"] {
            let path = lab.directory.path().join("layers").join(format!("{layer}.{kind}"));
            taken += std::os::unix::fs::MetadataExt::blocks(&path.metadata().unwrap()) * 512;
        }
    }
    // A block, two headers and two pages, of each.
    assert!(taken <= 200 * 5 * 4096, "200 volumes with a block each take {taken} bytes");
}

#[test]
fn a_volume_becomes_larger_and_its_snapshots_stay() {
    let lab = Lab::new();
    let volume = lab.create(None);
    lab.write(&volume, 0, 1);
    let snapshot = lab.snapshot(&volume);
    let shape = |size| VolumeShape { size, volume_type: "gp3".into(), iops: Some(3000), throughput: None };
    lab.change(|draft| {
        draft.update::<Volume>(&volume, |volume| {
            volume.modification = Some(Modification {
                original: shape(1),
                target: shape(3),
                state: ModificationState::Modifying,
                started: Timestamp::UNIX_EPOCH,
                ended: None,
            });
        })
    });
    assert!(stack::is_unsettled(&lab.state.read(), &volume));
    lab.volumes.settle(&volume).unwrap();
    assert!(!stack::is_unsettled(&lab.state.read(), &volume));
    let record = lab.state.read().get::<Volume>(&volume).cloned().unwrap();
    assert_eq!((record.size, record.iops), (3, Some(3000)));
    assert_eq!(record.modification.as_ref().unwrap().state, ModificationState::Completed);
    assert_eq!(lab.open(&volume).capacity(), 3 << 30);
    let larger = lab.snapshot(&volume);
    assert_eq!(lab.open(&lab.create(Some(&snapshot))).capacity(), 1 << 30);
    assert_eq!(lab.read(&lab.create(Some(&snapshot)))[..PIECE], [1; PIECE]);
    let layer = lab.state.read().get::<Snapshot>(&larger).unwrap().layer.clone();
    assert_eq!(lab.state.read().get::<Layer>(&layer).unwrap().size, 3 << 30);
}

/// The records and the files that an agent of before there were layers has left.
#[test]
fn files_of_before_there_were_layers_become_some() {
    let lab = Lab::new();
    let (volume, unmade) = (lab.create(None), lab.create(None));
    let snapshot = lab.record_snapshot(&volume);
    let old = lab.directory.path().join("volumes");
    fs::create_dir(&old).unwrap();
    let raw = |name: &str, byte: u8| {
        let path = old.join(name);
        let file = File::create(&path).unwrap();
        file.set_len(1 << 30).unwrap();
        file.write_all_at(&[byte; PIECE], 0).unwrap();
        path
    };
    let of_volume = raw(&format!("{volume}.raw"), 7);
    let of_snapshot = raw("snapshot", 8);
    let world = lab.state.read();
    let store = Arc::new(Memory::default());
    let put = |kind: &str, mut document: Value| {
        let fields = document.as_object_mut().unwrap();
        fields.remove("layer");
        let key = format!("{kind}/{}", fields["id"].as_str().unwrap());
        let value = serde_json::to_vec(&json!({ "version": 1, "document": document })).unwrap();
        store.commit(&[Write { key, value: Some(value) }]).unwrap();
    };
    // Makes the store one.
    State::open(store.clone()).unwrap();
    put("volume", serde_json::to_value(&**world.get::<Volume>(&volume).unwrap()).unwrap());
    put("volume", serde_json::to_value(&**world.get::<Volume>(&unmade).unwrap()).unwrap());
    let record = Snapshot {
        file: Some(of_snapshot.clone()),
        state: SnapshotState::Completed,
        ..Snapshot::clone(world.get::<Snapshot>(&snapshot).unwrap())
    };
    put("snapshot", serde_json::to_value(record).unwrap());

    // Each agent reads what is written down, and nothing else.
    let agent = || {
        let state = Arc::new(State::open(store.clone()).unwrap());
        let volumes = Volumes::new(state.clone(), lab.directory.path());
        volumes.adopt_all();
        volumes.settle_all();
        volumes.collect().unwrap();
        (state, volumes)
    };
    for expected in [7, 9] {
        let (_, volumes) = agent();
        assert!(!of_volume.exists());
        let open = |id: &VolumeId| Layered::open(volumes.open(id).unwrap().opened.files, false).unwrap();
        let mut content = [0; PIECE];
        open(&volume).read_at(&mut content, 0).unwrap();
        assert_eq!(content, [expected; PIECE]);
        open(&volume).write_at(&[9; PIECE], 0).unwrap();
        open(&unmade).read_at(&mut content, 0).unwrap();
        assert_eq!(content, [0; PIECE]);
    }
    fs::remove_file(&of_snapshot).unwrap();
    let (state, volumes) = agent();
    let layer = state.read().get::<Snapshot>(&snapshot).unwrap().layer.clone();
    let opened = volumes.open_layers(&layer, Access::Read).unwrap();
    let mut content = [0; PIECE];
    Layered::open_still(opened.files).unwrap().read_at(&mut content, 0).unwrap();
    assert_eq!(content, [8; PIECE]);
}

/// What may happen. Numbers choose among what there is.
#[derive(Clone, Debug)]
enum Step {
    Create(Option<usize>),
    Write(usize, usize, u8),
    Snapshot(usize),
    DeleteVolume(usize),
    DeleteSnapshot(usize),
    Tidy,
}

fn step() -> impl Strategy<Value = Step> {
    let any = 0..1000_usize;
    prop_oneof![
        2 => prop::option::of(any.clone()).prop_map(Step::Create),
        6 => (any.clone(), 0..LENGTH - PIECE, 1..=255_u8).prop_map(|(a, b, c)| Step::Write(a, b, c)),
        4 => any.clone().prop_map(Step::Snapshot),
        1 => any.clone().prop_map(Step::DeleteVolume),
        3 => any.prop_map(Step::DeleteSnapshot),
        2 => Just(Step::Tidy),
    ]
}

fn choose<K: Clone, V: Clone>(all: &BTreeMap<K, V>, number: usize) -> Option<(K, V)> {
    let (key, value) = all.iter().nth(number % all.len().max(1))?;
    Some((key.clone(), value.clone()))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn nothing_is_lost_in_whatever_order(steps in prop::collection::vec(step(), 1..40)) {
        let lab = Lab::new();
        let mut volumes: BTreeMap<VolumeId, Vec<u8>> = BTreeMap::new();
        let mut snapshots: BTreeMap<SnapshotId, Vec<u8>> = BTreeMap::new();
        for step in steps {
            match step {
                Step::Create(from) => {
                    let from = from.and_then(|number| choose(&snapshots, number));
                    let id = lab.create(from.as_ref().map(|(id, _)| id));
                    volumes.insert(id, from.map_or_else(|| vec![0; LENGTH], |(_, content)| content));
                }
                Step::Write(number, offset, byte) => {
                    let Some((id, _)) = choose(&volumes, number) else { continue };
                    lab.write(&id, offset, byte);
                    volumes.get_mut(&id).unwrap()[offset..offset + PIECE].fill(byte);
                }
                Step::Snapshot(number) => {
                    let Some((id, content)) = choose(&volumes, number) else { continue };
                    snapshots.insert(lab.snapshot(&id), content);
                }
                Step::DeleteVolume(number) => {
                    let Some((id, _)) = choose(&volumes, number) else { continue };
                    lab.change(|draft| draft.remove::<Volume>(&id));
                    volumes.remove(&id);
                }
                Step::DeleteSnapshot(number) => {
                    let Some((id, _)) = choose(&snapshots, number) else { continue };
                    lab.delete_snapshot(&id);
                    snapshots.remove(&id);
                }
                Step::Tidy => {
                    lab.volumes.collect().unwrap();
                    while lab.volumes.merge_some(&|| false) {}
                    lab.volumes.collect().unwrap();
                }
            }
        }
        for (id, expected) in &volumes {
            prop_assert!(lab.read(id) == *expected);
        }
        for (id, expected) in &snapshots {
            let volume = lab.create(Some(id));
            prop_assert!(lab.read(&volume) == *expected);
            lab.change(|draft| draft.remove::<Volume>(&volume));
        }
        lab.change(|draft| {
            volumes.keys().for_each(|id| draft.remove::<Volume>(id));
            snapshots.keys().for_each(|id| draft.remove::<Snapshot>(id));
        });
        lab.volumes.collect().unwrap();
        prop_assert_eq!(lab.files(), 0);
        prop_assert_eq!(lab.state.read().all::<Layer>().len(), 0);
    }
}

#[test]
fn what_is_missing_is_found_and_explained() {
    let lab = Lab::new();
    let volume = lab.create(None);
    for byte in 1..=3 {
        lab.write(&volume, 0, byte);
        lab.snapshot(&volume);
    }
    let chain = stack::chain(&lab.state.read(), &lab.state.read().get::<Volume>(&volume).unwrap().layer);
    assert!(lab.volumes.check(&volume).unwrap().is_sound());
    let path = |layer: usize, kind: &str| {
        lab.directory.path().join("layers").join(format!("{}.{kind}", chain[layer].files))
    };
    for (layer, kind) in [(1, "map"), (0, "data")] {
        let (path, aside) = (path(layer, kind), lab.directory.path().join("aside"));
        fs::rename(&path, &aside).unwrap();
        let report = lab.volumes.check(&volume).unwrap();
        let [finding] = &report.findings[..] else { panic!("{report:?}") };
        assert_eq!(finding.layer, layer);
        assert!(finding.problem.is_damage() && !report.is_sound());
        let told = finding.problem.to_string();
        assert!(told.contains("No such file") && told.contains(&path.display().to_string()), "{told}");
        let readable: Vec<bool> = report.layers.iter().map(Option::is_some).collect();
        assert_eq!(readable, (0..4).map(|other| other != layer).collect::<Vec<_>>());
        fs::rename(&aside, &path).unwrap();
    }
    lab.change(|draft| draft.remove::<Layer>(&chain[1].id));
    let report = lab.volumes.check(&volume).unwrap();
    assert!(!report.is_sound() && report.findings[0].problem.to_string().contains("is lost"), "{report:?}");
}
