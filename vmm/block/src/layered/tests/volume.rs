//! What opening, sealing, growing and failing do.

use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use proptest::prelude::*;

use super::recorder::{Content, Log, Recorder};
use super::{Random, create, description, files};
use crate::layered::format::{PAGE_SIZE, REGION_BLOCKS, REGION_SIZE, Slot, State};
use crate::layered::map::{MAX_CHANGED, region_of};
use crate::layered::plan::Source;
use crate::layered::stack::OpenLayer;
use crate::layered::storage::Storage;
use crate::layered::{
    Finding, Layer, LayerDescription, LayerError, Layered, Problem, create_layer, seal_together,
};
use crate::segments::tests::Memory;
use crate::{Backend, Engine, Operation};

const SIZE: u64 = 1 << 20;

fn make(directory: &Path, id: u128) -> Layer {
    super::make(directory, id, SIZE)
}

fn write(volume: &Layered, offset: u64, byte: u8, length: usize) -> std::io::Result<()> {
    let segments = Memory::new(vec![vec![byte; length]]).segments();
    volume.volume.run(Operation::Write { offset, segments })
}

fn read(volume: &Layered, offset: u64, length: usize) -> std::io::Result<Vec<u8>> {
    let memory = Memory::new(vec![vec![0xee; length]]);
    volume.volume.run(Operation::Read { offset, segments: memory.segments() })?;
    Ok(memory.bytes())
}

fn flush(volume: &Layered) -> std::io::Result<()> {
    volume.volume.run(Operation::Flush)
}

#[test]
fn layers_that_do_not_belong_together_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path();
    let volume = Layered::open(vec![make(directory, 1)], false).unwrap();
    (2..=3).for_each(|id| drop(make(directory, id)));
    volume.seal(files(directory, 2)).unwrap();
    volume.finish_seal().unwrap();
    drop(volume);
    let opened = |ids: &[u128]| Layered::open(ids.iter().map(|id| files(directory, *id)).collect(), false);
    assert!(opened(&[1, 2, 3]).is_ok());
    assert!(matches!(opened(&[]), Err(LayerError::None)));
    assert!(matches!(opened(&[2]), Err(LayerError::Parent { index: 0, .. })));
    let error = opened(&[1, 3]).unwrap_err();
    assert!(
        error.to_string().starts_with("layer 1 (00000000-0000-0000-0000-000000000003) belongs on top of")
    );
    assert!(matches!(opened(&[1, 2, 4]), Err(LayerError::Data(2, crate::OpenError::Empty))));
    // The top is for one, and those below are for all who only read.
    let volume = opened(&[1, 2]).unwrap();
    assert!(matches!(opened(&[1, 2]), Err(LayerError::Data(1, crate::OpenError::Locked))));
    drop(volume);
    let (_one, _two) = (opened(&[1, 2]).unwrap(), Layered::open(vec![files(directory, 1)], true).unwrap());
    // No file is made a layer twice, and no layer is impossible.
    assert!(create_layer(&files(directory, 1), &description(1, SIZE)).is_err());
    for size in [0, 100, u64::MAX] {
        assert!(
            create_layer(&files(directory, 7), &LayerDescription { size, ..description(7, SIZE) }).is_err()
        );
    }
}

#[test]
fn what_is_sealed_does_not_change_and_can_be_shared() {
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path();
    let volume = Layered::open(vec![make(directory, 1)], false).unwrap();
    write(&volume, 0, 1, 8192).unwrap();
    assert!(volume.seal(files(directory, 1)).is_err(), "it is in use");
    let wrong = LayerDescription { size: SIZE * 2, ..description(2, SIZE) };
    let layer = files(directory, 9);
    create_layer(&layer, &wrong).unwrap();
    assert!(volume.seal(layer).unwrap_err().to_string().contains("not made to be on top"));
    volume.seal(make(directory, 2)).unwrap();
    write(&volume, 512, 2, 1024).unwrap();
    assert_eq!(read(&volume, 0, 2048).unwrap(), [vec![1; 512], vec![2; 1024], vec![1; 512]].concat());
    volume.finish_seal().unwrap();
    let snapshot = Layered::open(vec![files(directory, 1)], true).unwrap();
    assert_eq!(read(&snapshot, 0, 8192).unwrap(), vec![1; 8192]);
    assert!(write(&snapshot, 0, 3, 512).is_err() && snapshot.resize(SIZE * 2).is_err());
    volume.volume.abandon();
    drop((volume, snapshot));
    assert!(matches!(Layered::open(vec![files(directory, 1)], false), Err(LayerError::Sealed)));
    let volume = Layered::open(vec![files(directory, 1), files(directory, 2)], false).unwrap();
    assert_eq!(read(&volume, 0, 8192).unwrap()[..512], [1; 512], "nobody flushed what came after the seal");
}

#[test]
fn space_is_given_back_over_base_data() {
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path();
    let volume = Layered::open(vec![make(directory, 1)], false).unwrap();
    write(&volume, 0, 1, SIZE as usize).unwrap();
    volume.seal(make(directory, 2)).unwrap();
    volume.finish_seal().unwrap();
    write(&volume, 0, 2, SIZE as usize / 2).unwrap();
    flush(&volume).unwrap();
    let blocks = || directory.join("2.data").metadata().unwrap().blocks();
    let before = blocks();
    volume.volume.run(Operation::Discard { offset: 0, length: SIZE }).unwrap();
    flush(&volume).unwrap();
    assert!(before >= SIZE / 1024 && blocks() < before / 4, "{before} {}", blocks());
    assert_eq!(read(&volume, 0, SIZE as usize).unwrap(), vec![0; SIZE as usize]);
    drop(volume);
    let volume = Layered::open(vec![files(directory, 1), files(directory, 2)], false).unwrap();
    assert_eq!(read(&volume, 0, SIZE as usize).unwrap(), vec![0; SIZE as usize]);
}

/// A failed sync is never repeated: the kernel may have dropped what it could not write, and say nothing the next time.
#[test]
fn a_failed_sync_impairs_the_volume_for_good() {
    for file in 0..2 {
        let log = Log::default();
        let files = [0, 1].map(|number| Recorder::new(number, &log, Content::default()));
        create(&files[0], &files[1], 1, SIZE);
        let [data, map] = files.clone().map(|file| Box::new(file) as Box<dyn Storage>);
        let volume = Layered::over(vec![(data, map)], false).unwrap();
        write(&volume, 0, 1, 4096).unwrap();
        assert_eq!(volume.impairment(), None);
        *files[file].fails.lock().unwrap() = true;
        assert!(flush(&volume).unwrap_err().to_string().contains("impaired"));
        assert!(volume.impairment().unwrap().contains("the medium is gone"));
        for _ in 0..2 {
            assert!(flush(&volume).is_err());
            assert!(write(&volume, 0, 1, 512).is_err());
            assert!(volume.volume.run(Operation::Discard { offset: 0, length: 4096 }).is_err());
            assert!(volume.resize(SIZE * 2).is_err());
        }
        assert_eq!(read(&volume, 0, 512).unwrap(), [1; 512]);
    }
}

#[test]
fn a_damaged_page_is_an_error_where_it_matters() {
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path();
    let volume = Layered::open(vec![make(directory, 1)], false).unwrap();
    for _ in 0..2 {
        write(&volume, 0, 1, 4096).unwrap();
        volume.volume.run(Operation::Discard { offset: 4096, length: 4096 }).unwrap();
        write(&volume, 4096, 1, 4096).unwrap();
        flush(&volume).unwrap();
        volume.volume.run(Operation::WriteZeroes { offset: 0, length: 4096, may_free: true }).unwrap();
    }
    flush(&volume).unwrap();
    volume.seal(make(directory, 2)).unwrap();
    volume.finish_seal().unwrap();
    drop(volume);
    let map = files(directory, 1).map;
    map.write_all_at(b"X", Slot::First.of_page(0) + 100).unwrap();
    let volume = Layered::open(vec![files(directory, 1), files(directory, 2)], false).unwrap();
    let error = read(&volume, 0, 4096).unwrap_err().to_string();
    assert!(error.contains("region 0") && error.contains("checksum"), "{error}");
    // Somebody has replaced a data file by a shorter one.
    map.write_all_at(&[0; PAGE_SIZE], Slot::First.of_page(0)).unwrap();
    files(directory, 1).data.set_len(4096).unwrap();
    let volume = Layered::open(vec![files(directory, 1)], true).unwrap();
    assert!(read(&volume, 4096, 4096).is_err());
}

/// Else it could not be told from damage later, and the other slot's content would be taken for the newest.
#[test]
fn a_torn_page_is_whole_again_when_its_layer_is_sealed() {
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path();
    let volume = Layered::open(vec![make(directory, 1)], false).unwrap();
    write(&volume, 0, 1, 4096).unwrap();
    flush(&volume).unwrap();
    drop(volume);
    // A crash came when the page was written for the second time.
    files(directory, 1).map.write_all_at(b"torn", Slot::Second.of_page(0)).unwrap();
    let volume = Layered::open(vec![files(directory, 1)], false).unwrap();
    volume.seal(make(directory, 2)).unwrap();
    volume.finish_seal().unwrap();
    assert_eq!(read(&volume, 0, 4096).unwrap(), [1; 4096]);
    drop(volume);
    let report = crate::layered::check(vec![files(directory, 1), files(directory, 2)]);
    assert_eq!(report.to_string(), "2 layers are sound\n");
}

/// Nothing syncs the length of a new data file, which has nothing in it. Whoever opens the layer does not need it.
#[test]
fn a_data_file_may_have_lost_its_length_as_long_as_nothing_is_in_it() {
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path();
    let volume = Layered::open(vec![make(directory, 1)], false).unwrap();
    write(&volume, 0, 1, 8192).unwrap();
    volume.seal(make(directory, 2)).unwrap();
    volume.seal(make(directory, 3)).unwrap();
    // It says that there is nothing, and not where something would be.
    volume.volume.run(Operation::Discard { offset: 0, length: 4096 }).unwrap();
    flush(&volume).unwrap();
    volume.volume.abandon();
    drop(volume);
    let empty = |id| files(directory, id).data.set_len(0).unwrap();
    [2, 3].into_iter().for_each(empty);
    let layers = || (1..=3).map(|id| files(directory, id)).collect::<Vec<_>>();
    let content = [[0; 4096], [1; 4096], [0; 4096]].concat();
    let report = crate::layered::check(layers());
    assert!(report.is_sound() && report.layers[2].as_ref().is_some_and(|top| top.zeroes == 4096), "{report}");
    for volume in [Layered::open(layers(), true).unwrap(), Layered::open_still(layers()).unwrap()] {
        assert_eq!(read(&volume, 0, 12288).unwrap(), content);
    }
    // Now the top has its length again, and the other is sealed without. A new top may have lost it too.
    let volume = Layered::open(layers(), false).unwrap();
    assert_eq!(read(&volume, 0, 12288).unwrap(), content);
    volume.finish_seal().unwrap();
    write(&volume, SIZE - 4096, 3, 4096).unwrap();
    drop(make(directory, 4));
    empty(4);
    volume.seal(files(directory, 4)).unwrap();
    volume.finish_seal().unwrap();
    write(&volume, SIZE - 8192, 4, 4096).unwrap();
    assert_eq!(read(&volume, SIZE - 8192, 8192).unwrap(), [[4; 4096], [3; 4096]].concat());
    drop(volume);
    assert_eq!(files(directory, 2).data.metadata().unwrap().len(), 0);

    // Where there should be data, nobody takes zeroes for it.
    empty(3);
    let layers = || (1..=4).map(|id| files(directory, id)).collect::<Vec<_>>();
    let opened =
        [Layered::open(layers(), false), Layered::open(layers(), true), Layered::open_still(layers())];
    for error in opened.map(Result::unwrap_err) {
        assert!(matches!(error, LayerError::Map(2, _)) && error.to_string().contains("empty"), "{error}");
    }
    let short = Problem::Short { size: 0, needed: SIZE };
    assert_eq!(crate::layered::check(layers()).findings, [Finding { layer: 2, problem: short }]);
}

/// Sealing waits for what is under way, and everybody else waits for nothing else.
#[test]
fn a_busy_volume_is_sealed_again_and_again() {
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path();
    let volume = Layered::open(vec![make(directory, 1)], false).unwrap();
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for thread in 0..4u64 {
            let (volume, is_over) = (&volume, &is_over);
            scope.spawn(move || {
                // Threads share blocks, and no sectors.
                let mut random = Random::new(thread + 1);
                let mut expected = vec![[0; 512]; 64];
                while !is_over.load(Ordering::SeqCst) {
                    let sector = random.below(64);
                    let offset = (sector * 4 + thread) * 512;
                    match random.below(4) {
                        0 => {
                            let byte = random.next() as u8;
                            expected[sector as usize] = [byte; 512];
                            write(volume, offset, byte, 512).unwrap();
                        }
                        1 => {
                            expected[sector as usize] = [0; 512];
                            let zero = Operation::WriteZeroes { offset, length: 512, may_free: true };
                            volume.volume.run(zero).unwrap();
                        }
                        2 if random.once_in(4) => flush(volume).unwrap(),
                        _ => assert_eq!(read(volume, offset, 512).unwrap(), expected[sector as usize]),
                    }
                }
                for (sector, bytes) in (0..).zip(&expected) {
                    assert_eq!(read(volume, (sector * 4 + thread) * 512, 512).unwrap(), bytes);
                }
            });
        }
        for id in 2..20 {
            let layer = make(directory, id);
            std::thread::sleep(std::time::Duration::from_millis(5));
            volume.seal(layer).unwrap();
            volume.finish_seal().unwrap();
        }
        is_over.store(true, Ordering::SeqCst);
    });
}

#[test]
fn a_change_of_many_regions_is_flushed_in_between() {
    let log = Log::default();
    let recorder = |number| Recorder::new(number, &log, Content::default());
    let (files, size) = ([recorder(0), recorder(1)], 100 << 30);
    create(&files[0], &files[1], 1, size);
    let [data, map] = files.clone().map(|file| Box::new(file) as Box<dyn Storage>);
    let volume = Layered::over(vec![(data, map)], false).unwrap();
    let spots = (0..3000u64).map(|region| region * REGION_SIZE + region * 4096);
    for (byte, offset) in (0u64..).zip(spots.clone()) {
        write(&volume, offset, byte as u8, 4096).unwrap();
        let stack = volume.volume.stack();
        let map = &stack.top.as_ref().unwrap().map;
        assert!(map.is_counted() && map.pending() <= MAX_CHANGED && volume.memory() <= 1 << 20);
    }
    for (byte, offset) in (0u64..).zip(spots) {
        assert_eq!(read(&volume, offset, 4096).unwrap(), vec![byte as u8; 4096]);
    }
}

/// A snapshot may be taken while the one before is not durable yet. A flush covers all of them, and each is marked later.
#[test]
fn several_layers_may_wait_to_be_marked_as_sealed() {
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path();
    let volume = Layered::open(vec![make(directory, 1)], false).unwrap();
    for id in 2..=4 {
        write(&volume, (id - 2) * 4096, id as u8 - 1, 4096).unwrap();
        write(&volume, 16384 + (id - 2) * 512, id as u8 - 1, 512).unwrap();
        volume.seal(make(directory, id.into())).unwrap();
    }
    write(&volume, 3 * 4096, 4, 4096).unwrap();
    assert_eq!((volume.layers(), volume.unsealed(), volume.top().as_u128()), (4, 3, 4));
    volume.flush().unwrap();
    // Here comes a crash.
    volume.volume.abandon();
    drop(volume);
    let opened = |is_writable: &dyn Fn(u128) -> bool| {
        let layer = |id| {
            let Layer { data, map } = files(directory, id);
            if is_writable(id) {
                return Layer { data, map };
            }
            let [data, map] = super::paths(directory, id).map(|path| std::fs::File::open(path).unwrap());
            Layer { data, map }
        };
        Layered::open((1..=4).map(layer).collect(), false)
    };
    let error = opened(&|id| id != 2).unwrap_err();
    assert!(matches!(error, LayerError::Unsealed(1)), "{error}");
    assert!(matches!(opened(&|id| id != 4), Err(LayerError::Data(3, crate::OpenError::Access { .. }))));
    // Nobody else has them meanwhile.
    let reader = Layered::open(vec![files(directory, 1)], true).unwrap();
    assert!(matches!(opened(&|_| true), Err(LayerError::Data(0, crate::OpenError::Locked))));
    drop(reader);
    let volume = opened(&|_| true).unwrap();
    assert!(matches!(Layered::open(vec![files(directory, 1)], true), Err(LayerError::Data(..))));
    let content = || [vec![1; 4096], vec![2; 4096], vec![3; 4096], vec![4; 4096], vec![1; 512]].concat();
    assert_eq!((volume.unsealed(), read(&volume, 0, 16896).unwrap()), (3, content()));
    volume.finish_seal().unwrap();
    assert_eq!(volume.unsealed(), 0);
    volume.finish_seal().unwrap();
    let snapshot = Layered::open(vec![files(directory, 1), files(directory, 2)], true).unwrap();
    let expected = [vec![1; 4096], vec![2; 4096], vec![0; 8192], vec![1; 512], vec![2; 512]].concat();
    assert_eq!(read(&snapshot, 0, 17408).unwrap(), expected);
    drop((snapshot, volume));
    let report = crate::layered::check((1..=4).map(|id| files(directory, id)).collect());
    assert!(report.findings.is_empty(), "{report}");
    // What is sealed needs nobody who may write to it.
    let volume = opened(&|id| id == 4).unwrap();
    assert_eq!(read(&volume, 0, 16896).unwrap(), content());
}

#[test]
fn a_reader_of_what_stands_still_asks_for_no_lock() {
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path();
    let volume = Layered::open(vec![make(directory, 1)], false).unwrap();
    write(&volume, 0, 1, 4096).unwrap();
    volume.seal(make(directory, 2)).unwrap();
    write(&volume, 4096, 2, 4096).unwrap();
    volume.flush().unwrap();
    let layers = || vec![files(directory, 1), files(directory, 2)];
    assert!(Layered::open(layers(), true).is_err());
    let still = Layered::open_still(layers()).unwrap();
    assert!(still.is_read_only() && still.seal(make(directory, 3)).is_err());
    assert_eq!(read(&still, 0, 8192).unwrap(), [[1; 4096], [2; 4096]].concat());
    drop(still);
    // And takes nobody's away.
    assert!(Layered::open(layers(), true).is_err());
    write(&volume, 0, 3, 4096).unwrap();
}

#[test]
fn a_volume_that_is_closed_keeps_what_was_written() {
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path();
    let volume = Layered::open(vec![make(directory, 1)], false).unwrap();
    write(&volume, 0, 1, 4096).unwrap();
    volume.seal(make(directory, 2)).unwrap();
    write(&volume, 4096, 2, 4096).unwrap();
    drop(volume);
    let volume = Layered::open(vec![files(directory, 1), files(directory, 2)], false).unwrap();
    assert_eq!(read(&volume, 0, 8192).unwrap(), [[1; 4096], [2; 4096]].concat());
}

#[test]
fn volumes_get_new_tops_together_or_not_at_all() {
    let directories = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let volumes = directories.each_ref().map(|directory| {
        let volume = Layered::open(vec![make(directory.path(), 1)], false).unwrap();
        write(&volume, 0, 1, 4096).unwrap();
        volume
    });
    let tops = |ids: [&[u128]; 2]| {
        let tops = |at: usize| ids[at].iter().map(|id| files(directories[at].path(), *id)).collect();
        vec![(&volumes[0], tops(0)), (&volumes[1], tops(1))]
    };
    let patience = Duration::from_millis(50);
    let counts = || volumes.each_ref().map(|volume| (volume.layers(), volume.top().as_u128()));
    for id in 2..=4 {
        directories.iter().for_each(|directory| drop(make(directory.path(), id)));
    }
    // The second has the wrong ones.
    let error = seal_together(tops([&[2], &[3]]), patience).unwrap_err();
    assert_eq!(error.volume, 1);
    assert!(error.to_string().contains("not made to be on top"), "{error}");
    assert_eq!(counts(), [(1, 1), (1, 1)]);
    // The second waits for too long.
    let hold = volumes[1].volume.in_flight.hold(5..6);
    let error = seal_together(tops([&[2], &[2]]), patience).unwrap_err();
    assert_eq!((error.volume, error.error.kind()), (1, std::io::ErrorKind::TimedOut));
    assert_eq!(counts(), [(1, 1), (1, 1)]);
    drop(hold);
    volumes.iter().for_each(|volume| write(volume, 0, 1, 4096).unwrap());
    // Several at a time, some that are there already, and none.
    seal_together(tops([&[2, 3], &[2]]), patience).unwrap();
    assert_eq!(counts(), [(3, 3), (2, 2)]);
    seal_together(tops([&[2, 3], &[2, 3]]), patience).unwrap();
    assert_eq!(counts(), [(3, 3), (3, 3)]);
    seal_together(tops([&[], &[2, 3, 4]]), patience).unwrap();
    assert_eq!(counts(), [(3, 3), (4, 4)]);
    for volume in &volumes {
        volume.finish_seal().unwrap();
        assert_eq!(read(volume, 0, 4096).unwrap(), [1; 4096]);
    }
    let error = seal_together(vec![(&volumes[0], vec![files(directories[1].path(), 4)])], patience);
    assert!(error.unwrap_err().to_string().contains("it is in use"));
}

#[test]
fn no_file_is_two_of_a_volumes() {
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path();
    let first = make(directory, 1);
    let same = Layer { data: first.map.try_clone().unwrap(), map: first.map.try_clone().unwrap() };
    assert!(matches!(Layered::open(vec![same], false), Err(LayerError::Twice(0))));
    let second = make(directory, 2);
    let data = first.data.try_clone().unwrap();
    let mixed = Layer { data: data.try_clone().unwrap(), map: second.map };
    assert!(matches!(Layered::open(vec![first, mixed], false), Err(LayerError::Twice(1))));
    // The lock does not tell: it is the same open file.
    let volume = Layered::open(vec![files(directory, 1)], false).unwrap();
    let third = make(directory, 3);
    let mixed = Layer { data: files(directory, 1).data, map: third.map };
    assert!(volume.seal(mixed).unwrap_err().to_string().contains("one of the volume's already"));
}

/// Whoever opens a volume is told how much memory that takes, at 100 GiB and whatever a guest does.
#[test]
fn memory_is_bounded() {
    let size: u64 = 100 << 30;
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path();
    let volume = Layered::open(vec![super::make(directory, 1, size)], false).unwrap();
    let mut random = Random::new(1);
    let regions = size / REGION_SIZE;
    let mut most = 0;
    for id in 2..=4u128 {
        let mut check = || {
            let layers = volume.layers();
            most = most.max(volume.memory());
            assert!(volume.memory() <= (1 << 20) + layers * (256 << 10), "{} {layers}", volume.memory());
        };
        let mut engine = volume.engine(256).unwrap();
        let finish = |engine: &mut dyn Engine, count: u16| {
            engine.start().unwrap();
            let mut done = 0;
            while done < count {
                match engine.complete() {
                    Some(completion) => {
                        completion.result.unwrap();
                        done += 1;
                    }
                    None => std::thread::sleep(Duration::from_micros(50)),
                }
            }
        };
        // Every second block of each region, some of them as parts, and many at a time.
        let order: Vec<u64> = (0..regions).map(|region| region * 7 % regions).collect();
        for chunk in order.chunks(256) {
            for (slot, region) in (0..).zip(chunk) {
                let block = random.below(REGION_SIZE / 8192) * 8192;
                let (at, length) = if random.once_in(4) { (512, 1024) } else { (0, 4096) };
                let offset = region * REGION_SIZE + block + at;
                let segments = Memory::new(vec![vec![id as u8; length]]).segments();
                engine.submit(slot, Operation::Write { offset, segments });
            }
            finish(&mut *engine, chunk.len() as u16);
            check();
            for (slot, region) in (0..).zip(chunk) {
                let offset = (region * 3 % regions) * REGION_SIZE + random.below(8192) * 4096;
                let segments = Memory::new(vec![vec![0; 4096]]).segments();
                engine.submit(slot, Operation::Read { offset, segments });
            }
            finish(&mut *engine, chunk.len() as u16);
            check();
        }
        drop(engine);
        let stack = volume.volume.stack();
        assert!(stack.all().all(|layer| layer.map.is_counted()));
        volume.seal(super::make(directory, id, size)).unwrap();
        check();
        // Some are marked later.
        if id % 2 == 1 {
            volume.finish_seal().unwrap();
        }
        check();
    }
    println!("{} KiB at most, with up to 4 layers", most >> 10);
}

/// What it costs to find out again where the blocks of a region are grows with the layers. So does what is remembered.
#[test]
fn a_volume_of_many_layers_remembers_fragmented_regions() {
    const REGIONS: u64 = 300;
    for (layers, is_enough) in [(3, false), (24, true)] {
        let log = Log::default();
        let files: Vec<_> =
            (0..2 * layers).map(|file| Recorder::new(file, &log, Content::default())).collect();
        let boxed = |file: &Recorder| Box::new(file.clone()) as Box<dyn Storage>;
        let layer = |files: &[Recorder]| (boxed(&files[0]), boxed(&files[1]));
        for (id, files) in (1..).zip(files.chunks(2)) {
            create(&files[0], &files[1], id, 100 << 30);
        }
        // In each region every second block has data.
        let (data, map) = layer(&files[..2]);
        let base = OpenLayer::open(data, map).unwrap();
        for region in 0..REGIONS {
            let blocks = (region * REGION_BLOCKS..(region + 1) * REGION_BLOCKS).step_by(2);
            blocks.for_each(|block| base.map.set(block..block + 1, State::Data).unwrap());
            if region % 100 == 99 {
                base.flush().unwrap();
            }
        }
        drop(base);
        let volume = Layered::over(files.chunks(2).map(layer).collect(), false).unwrap();
        let stack = volume.volume.stack();
        let is_known = |block| stack.index.known(region_of(block), layers - 1).is_some();
        let mut random = Random::new(1);
        let mut read = |count: u64| {
            let mut misses = 0;
            for _ in 0..count {
                let block = random.below(REGIONS * REGION_BLOCKS);
                misses += u64::from(!is_known(block));
                let source = stack.view(&(block..block + 1)).unwrap().source(block);
                assert_eq!(source, if block.is_multiple_of(2) { Source::Lower(0) } else { Source::Nothing });
            }
            misses
        };
        // Each region once, with a probability that is good enough.
        read(3000);
        let misses = read(1000);
        assert_eq!(misses < 10, is_enough, "{misses} misses with {layers} layers");
        assert!(volume.memory() <= (1 << 20) + layers * (256 << 10), "{} {layers}", volume.memory());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Whatever is in the files of a layer: it opens or not, and then reads and takes writes or not.
    #[test]
    fn any_bytes_are_a_map_or_an_error(
        changes in proptest::collection::vec((0..6u64, 0..4096u64, any::<u8>(), any::<bool>()), 0..20),
        length in 0..7u64 * 4096,
    ) {
        let log = Log::default();
        let files = [0, 1].map(|number| Recorder::new(number, &log, Content::default()));
        create(&files[0], &files[1], 1, SIZE);
        let boxed = || files.clone().map(|file| Box::new(file) as Box<dyn Storage>);
        let [data, map] = boxed();
        let volume = Layered::over(vec![(data, map)], false).unwrap();
        write(&volume, 0, 1, 8192).unwrap();
        flush(&volume).unwrap();
        let [data, map] = boxed();
        let mut bytes = vec![0; length as usize];
        let _ = map.read_at(&mut bytes, 0).unwrap();
        for (page, at, byte, is_signed) in changes {
            let page = (page * 4096) as usize;
            let Some(page) = bytes.get_mut(page..page + 4096) else { continue };
            page[at as usize] = byte;
            if is_signed {
                let checksum = crc32fast::hash(&page[..4092]);
                page[4092..].copy_from_slice(&checksum.to_le_bytes());
            }
        }
        let changed = Recorder::new(1, &log, Content::default());
        changed.write_at(&bytes, 0).unwrap();
        if let Ok(volume) = Layered::over(vec![(data, Box::new(changed))], false) {
            let capacity = volume.capacity();
            let _ = read(&volume, 0, 4096.min(capacity as usize));
            let _ = write(&volume, 512, 1, 512);
            let _ = volume.volume.run(Operation::WriteZeroes { offset: 0, length: 4096.min(capacity), may_free: true });
            let _ = flush(&volume);
            let _ = volume.finish_seal();
            let _ = volume.resize(capacity + 4096);
        }
    }
}
