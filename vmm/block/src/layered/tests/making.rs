//! Layers that are made of something else: of a raw disk, and of other layers.

use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, Ordering};

use super::recorder::{Content, Event, Log, Recorder};
use super::{description, files, make};
use crate::layered::format::REGION_SIZE;
use crate::layered::format::State;
use crate::layered::import::write_imported;
use crate::layered::storage::Storage;
use crate::layered::{LayerDescription, Layered, check, import, merge};
use crate::segments::tests::Memory;
use crate::{Backend, Operation};

fn read(volume: &Layered, offset: u64, length: usize) -> Vec<u8> {
    let memory = Memory::new(vec![vec![0xee; length]]);
    volume.volume.run(Operation::Read { offset, segments: memory.segments() }).unwrap();
    let mut same = vec![0xee; length];
    volume.read_at(&mut same, offset).unwrap();
    assert_eq!(memory.bytes(), same);
    same
}

fn write(volume: &Layered, offset: u64, byte: u8, length: usize) {
    let segments = Memory::new(vec![vec![byte; length]]).segments();
    volume.volume.run(Operation::Write { offset, segments }).unwrap();
}

#[test]
fn a_raw_disk_becomes_a_layer() {
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path();
    let size = 3 * REGION_SIZE + 1536;
    let layer = files(directory, 1);
    // Across the end of a region, a few bytes of a block, and an odd end.
    layer.data.write_all_at(&vec![1; 64 << 10], REGION_SIZE - (32 << 10)).unwrap();
    layer.data.write_all_at(&[2; 10], 2 * REGION_SIZE + 8192 + 100).unwrap();
    layer.data.write_all_at(&[3; 700], 2 * REGION_SIZE + (1 << 20)).unwrap();
    import(layer, &description(1, size)).unwrap();
    let (found, is_sealed) = crate::layered::description(&files(directory, 1).map).unwrap();
    assert_eq!((found, is_sealed), (description(1, size), true));
    let report = check(vec![files(directory, 1)]);
    assert!(report.findings.is_empty(), "{report}");
    let data = report.layers[0].as_ref().unwrap().data;
    assert!(((64 << 10) + 8192..=1 << 20).contains(&data), "most of it is a hole: {data}");
    let volume = Layered::open(vec![files(directory, 1), make(directory, 2, size)], false).unwrap();
    assert_eq!(volume.capacity(), size);
    let expected = [vec![0; 4096], vec![1; 64 << 10], vec![0; 4096]].concat();
    assert_eq!(read(&volume, REGION_SIZE - (36 << 10), 72 << 10), expected);
    assert_eq!(read(&volume, 2 * REGION_SIZE + 8192 + 99, 12)[..], [0, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 0]);
    assert_eq!(read(&volume, 2 * REGION_SIZE + (1 << 20), 701), [vec![3; 700], vec![0]].concat());
    assert_eq!(read(&volume, 3 * REGION_SIZE, 1536), [0; 1536]);
    write(&volume, 0, 9, 512);
    assert_eq!(read(&volume, 0, 512), [9; 512]);
    for offset in [size - 511, size, u64::MAX] {
        assert!(volume.read_at(&mut [0; 512], offset).is_err());
    }
}

#[test]
fn what_cannot_be_a_layer_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path();
    let raw = |length| {
        let layer = files(directory, 1);
        layer.map.set_len(0).unwrap();
        layer.data.set_len(length).unwrap();
        layer
    };
    let good = description(1, 8192);
    for bad in [
        LayerDescription { size: 0, ..good },
        LayerDescription { size: 1000, ..good },
        LayerDescription { parent: Some(uuid::Uuid::from_u128(2)), ..good },
        LayerDescription { id: uuid::Uuid::nil(), ..good },
    ] {
        assert!(import(raw(4096), &bad).is_err());
    }
    let error = import(raw(8193), &good).unwrap_err();
    assert!(error.to_string().contains("8193 bytes of data are more than a volume of 8192"), "{error}");
    // One that was begun before, and an empty one.
    import(raw(4096), &LayerDescription { size: 1024, ..good }).unwrap();
    import(raw(0), &good).unwrap();
    let error = import(files(directory, 1), &good).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::AlreadyExists);
    assert!(crate::layered::description(&files(directory, 7).map).is_err());
}

/// The header comes when all else is durable.
#[test]
fn an_import_is_over_or_is_nothing() {
    let log = Log::default();
    let [data, map] = [0, 1].map(|number| Recorder::new(number, &log, Content::default()));
    let size = 2 * REGION_SIZE;
    data.grow(size).unwrap();
    data.write_at(&[1; 4096], REGION_SIZE).unwrap();
    let id = uuid::Uuid::from_u128(1);
    write_imported(&data, &map, id, size).unwrap();
    let mut unsynced = [0, 0];
    let mut has_header = false;
    for (file, event) in &*log.lock().unwrap() {
        match event {
            Event::Change(change) => {
                if let super::recorder::Change::Write { page: 0 | 1, .. } = change
                    && *file == 1
                {
                    assert_eq!(unsynced, [0, 0]);
                    has_header = true;
                }
                unsynced[*file] += 1;
            }
            _ => unsynced[*file] = 0,
        }
    }
    assert!(has_header && unsynced == [0, 0]);
    let volume = Layered::over(vec![(Box::new(data), Box::new(map))], true).unwrap();
    let states = volume.volume.stack().lower[0].map.states(1).unwrap();
    assert_eq!((states.get(0), states.get(1)), (State::Data, State::Data), "a file without holes");
}

#[test]
fn a_merge_can_be_stopped() {
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path();
    let size = 4 << 20;
    let volume = Layered::open(vec![make(directory, 1, size)], false).unwrap();
    write(&volume, 0, 1, 3 << 20);
    volume.seal(make(directory, 2, size)).unwrap();
    write(&volume, 0, 2, 4096);
    volume.seal(make(directory, 3, size)).unwrap();
    volume.finish_seal().unwrap();
    let layers = || vec![files(directory, 1), files(directory, 2)];
    let copied = AtomicU64::new(0);
    let go_on = |bytes: u64| copied.fetch_add(bytes, Ordering::Relaxed) + bytes < 2 << 20;
    let error = merge(layers(), files(directory, 8), go_on).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::Interrupted);
    assert!((2 << 20..3 << 20).contains(&copied.load(Ordering::Relaxed)));
    assert!(crate::layered::description(&files(directory, 8).map).is_err(), "it is no layer");
    copied.store(0, Ordering::Relaxed);
    let go_on = |bytes: u64| copied.fetch_add(bytes, Ordering::Relaxed) < u64::MAX;
    merge(layers(), files(directory, 9), go_on).unwrap();
    assert_eq!(copied.into_inner(), 3 << 20);
    volume.replace_layers(0..2, files(directory, 9)).unwrap();
    assert_eq!((volume.layers(), read(&volume, 0, 8192)), (2, [[2; 4096], [1; 4096]].concat()));
}
