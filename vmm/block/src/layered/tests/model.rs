//! Any sequence of operations leaves what a plain array of bytes would hold, with either engine.
//!
//! `INNKEEPER_BLOCK_OPERATIONS` says how many.

use std::io;

use super::{Random, files, length, paths};
use crate::layered::format::REGION_SIZE;
use crate::layered::{LayerDescription, Layered, check, create_layer, merge};
use crate::segments::tests::Memory;
use crate::{Backend, Engine, EngineKind, Operation, SECTOR_SIZE, uring};
use uuid::Uuid;

const WINDOW: u64 = 96 << 10;
/// More layers are merged to fewer.
const MOST_LAYERS: usize = 8;

/// Parts of a volume that are used: where each begins, and what is in it. All else is zeroes.
type Windows = Vec<(u64, Vec<u8>)>;

/// Layers as files of a directory, and what has to be in the volume.
struct Model {
    directory: tempfile::TempDir,
    kind: EngineKind,
    /// The names of the layers, from the bottom, and what they are.
    layers: Vec<(u128, LayerDescription)>,
    made: u128,
    volume: Layered,
    engine: Box<dyn Engine>,
    expected: Windows,
    capacity: u64,
    /// What the volume held when the layers up to this one were sealed.
    snapshot: Option<(usize, Windows)>,
    random: Random,
}

fn execute(engine: &mut dyn Engine, operation: Operation) -> io::Result<()> {
    engine.submit(3, operation);
    engine.start().unwrap();
    for _ in 0..100_000 {
        if let Some(completion) = engine.complete() {
            assert_eq!(completion.slot, 3);
            return completion.result;
        }
        std::thread::sleep(std::time::Duration::from_micros(20));
    }
    panic!("nothing completes");
}

impl Model {
    fn new(kind: EngineKind, seed: u64) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let size = REGION_SIZE + (512 << 10) + 1024;
        let description = LayerDescription { id: Uuid::from_u128(1), parent: None, size };
        let layer = files(directory.path(), 0);
        create_layer(&layer, &description).unwrap();
        let volume = Layered::open(vec![layer], false).unwrap().with_engine(kind);
        let starts = [0, REGION_SIZE - WINDOW / 2, size - WINDOW];
        Self {
            engine: volume.engine(8).unwrap(),
            volume,
            directory,
            kind,
            layers: vec![(0, description)],
            made: 1,
            expected: starts.map(|start| (start, vec![0; WINDOW as usize])).to_vec(),
            capacity: size,
            snapshot: None,
            random: Random::new(seed),
        }
    }

    /// Some sectors of a window: which, from where, and how many bytes.
    fn range(&mut self) -> (usize, u64, usize) {
        let window = self.random.below(self.expected.len() as u64) as usize;
        let sectors = WINDOW / SECTOR_SIZE;
        let first = self.random.below(sectors);
        let most = if self.random.once_in(4) { sectors } else { 20 };
        let count = (1 + self.random.below(most)).min(sectors - first);
        let is_whole = self.random.once_in(2);
        let (first, count) =
            if is_whole { (first / 8 * 8, count.next_multiple_of(8)) } else { (first, count) };
        let count = count.min(sectors - first);
        (window, first * SECTOR_SIZE, (count * SECTOR_SIZE) as usize)
    }

    fn step(&mut self) {
        match self.random.below(1000) {
            0..330 => {
                let (window, at, length) = self.range();
                let byte = self.random.next();
                let bytes: Vec<u8> = (0..length as u64).map(|i| (byte + i / 512 * 7 + i % 3) as u8).collect();
                let (start, expected) = &mut self.expected[window];
                expected[at as usize..][..length].copy_from_slice(&bytes);
                // In pieces, now and then.
                let pieces = if self.random.once_in(3) {
                    let (first, second) = bytes.split_at(length / 3);
                    vec![first.to_vec(), second.to_vec()]
                } else {
                    vec![bytes]
                };
                let operation =
                    Operation::Write { offset: *start + at, segments: Memory::new(pieces).segments() };
                execute(&mut *self.engine, operation).unwrap();
            }
            330..730 => {
                let (window, at, length) = self.range();
                let (start, expected) = &self.expected[window];
                let found = read(&mut *self.engine, start + at, length);
                assert!(found == expected[at as usize..][..length], "{} bytes at {}", length, start + at);
            }
            730..850 => {
                let (window, at, length) = self.range();
                let may_free = self.random.once_in(2);
                let (start, expected) = &mut self.expected[window];
                expected[at as usize..][..length].fill(0);
                let operation =
                    Operation::WriteZeroes { offset: *start + at, length: length as u64, may_free };
                execute(&mut *self.engine, operation).unwrap();
            }
            850..940 => {
                let (window, at, length) = self.range();
                let (start, expected) = &mut self.expected[window];
                let (first, end) = (*start + at, *start + at + length as u64);
                let (first, end) = (first.next_multiple_of(4096), end / 4096 * 4096);
                if first < end {
                    expected[(first - *start) as usize..(end - *start) as usize].fill(0);
                }
                let operation = Operation::Discard { offset: *start + at, length: length as u64 };
                execute(&mut *self.engine, operation).unwrap();
            }
            940..975 => execute(&mut *self.engine, Operation::Flush).unwrap(),
            975..983 => self.seal(),
            983..985 => self.grow(),
            985..992 => self.reopen(),
            992..995 => self.open_snapshot(),
            995 => self.discard_all(),
            996..998 => self.merge(),
            _ => self.compare(),
        }
    }

    fn seal(&mut self) {
        while self.layers.len() >= MOST_LAYERS {
            self.merge();
        }
        let below = self.layers.last().unwrap().1;
        let name = self.made;
        self.made += 1;
        let id = Uuid::from_u128(name + 1);
        let description = LayerDescription { id, parent: Some(below.id), size: self.capacity };
        let layer = files(self.directory.path(), name);
        create_layer(&layer, &description).unwrap();
        self.volume.seal(layer).unwrap();
        if self.random.once_in(2) {
            // Something happens in between.
            let (start, expected) = &self.expected[0];
            assert!(read(&mut *self.engine, *start, expected.len()) == *expected);
            execute(&mut *self.engine, Operation::Flush).unwrap();
        }
        self.volume.finish_seal().unwrap();
        self.layers.push((name, description));
        self.snapshot = Some((self.layers.len() - 1, self.expected.clone()));
    }

    fn grow(&mut self) {
        if self.capacity > 4 * REGION_SIZE {
            return;
        }
        let old = self.capacity;
        self.capacity += self.random.below(1 << 14) * SECTOR_SIZE;
        self.volume.resize(self.capacity).unwrap();
        assert_eq!(self.volume.capacity(), self.capacity);
        // The last window moves up. What comes into it was never written.
        if let Some((start, content)) = self.expected.last_mut() {
            let shift = (self.capacity - old).min(WINDOW / 2);
            *start += shift;
            content.drain(..shift as usize);
            content.resize(WINDOW as usize, 0);
        }
        self.snapshot = None;
    }

    fn reopen(&mut self) {
        execute(&mut *self.engine, Operation::Flush).unwrap();
        self.open();
    }

    fn open(&mut self) {
        // Locks and descriptors are given back first.
        let nothing = tempfile::tempdir().unwrap();
        let layer = files(nothing.path(), 0);
        create_layer(&layer, &LayerDescription { id: Uuid::from_u128(9), parent: None, size: 4096 }).unwrap();
        self.volume = Layered::open(vec![layer], false).unwrap();
        self.engine = self.volume.engine(1).unwrap();
        let layers = self.layers.iter().map(|(name, _)| files(self.directory.path(), *name)).collect();
        self.volume = Layered::open(layers, false).unwrap().with_engine(self.kind);
        self.engine = self.volume.engine(8).unwrap();
        assert_eq!(self.volume.capacity(), self.capacity);
    }

    fn open_snapshot(&mut self) {
        let Some((count, expected)) = &self.snapshot else { return };
        let layers =
            self.layers[..*count].iter().map(|(name, _)| files(self.directory.path(), *name)).collect();
        let snapshot = Layered::open(layers, true).unwrap().with_engine(self.kind);
        let mut engine = snapshot.engine(8).unwrap();
        for (start, bytes) in expected {
            assert!(read(&mut *engine, *start, bytes.len()) == *bytes, "a snapshot has changed");
        }
        let operation = Operation::Write { offset: 0, segments: Memory::new(vec![vec![1; 512]]).segments() };
        assert!(execute(&mut *engine, operation).is_err());
    }

    fn discard_all(&mut self) {
        let (offset, length) = (0, self.capacity / 4096 * 4096);
        execute(&mut *self.engine, Operation::Discard { offset, length }).unwrap();
        for (start, content) in &mut self.expected {
            let whole = (length.saturating_sub(*start)).min(WINDOW) as usize;
            content[..whole].fill(0);
        }
    }

    fn merge(&mut self) {
        let below = self.layers.len() as u64 - 1;
        if below < 2 {
            return;
        }
        let first = self.random.below(below - 1) as usize;
        let end = first + 2 + self.random.below(below - first as u64 - 1) as usize;
        let name = self.made;
        self.made += 1;
        let old: Vec<u128> = self.layers[first..end].iter().map(|(name, _)| *name).collect();
        let layers = old.iter().map(|name| files(self.directory.path(), *name)).collect();
        let description = merge(layers, files(self.directory.path(), name), |_| true).unwrap();
        assert_eq!(
            (description.id, description.parent),
            (self.layers[end - 1].1.id, self.layers[first].1.parent)
        );
        self.volume.replace_layers(first..end, files(self.directory.path(), name)).unwrap();
        old.iter()
            .flat_map(|name| paths(self.directory.path(), *name))
            .for_each(|path| std::fs::remove_file(path).unwrap());
        self.layers.splice(first..end, [(name, description)]);
        self.snapshot = match self.snapshot.take() {
            Some((count, expected)) if count >= end => Some((count - (end - first - 1), expected)),
            snapshot => snapshot.filter(|(count, _)| *count <= first),
        };
        self.check();
    }

    fn check(&self) {
        // The top is in use.
        let layers = self.layers[..self.layers.len() - 1].iter();
        let report = check(layers.map(|(name, _)| files(self.directory.path(), *name)).collect());
        assert!(report.findings.is_empty(), "{report}");
    }

    fn compare(&mut self) {
        for (start, expected) in &self.expected {
            let found = read(&mut *self.engine, *start, expected.len());
            let differs = found.iter().zip(expected).position(|(found, expected)| found != expected);
            assert_eq!(differs.map(|at| start + at as u64), None, "differs");
        }
    }
}

fn read(engine: &mut dyn Engine, offset: u64, length: usize) -> Vec<u8> {
    let memory = Memory::new(vec![vec![0xee; length / 2], vec![0xee; length - length / 2]]);
    execute(engine, Operation::Read { offset, segments: memory.segments() }).unwrap();
    memory.bytes()
}

#[test]
fn a_volume_holds_what_an_array_would() {
    let operations = length("INNKEEPER_BLOCK_OPERATIONS", 4_000);
    let seed = length("INNKEEPER_BLOCK_SEED", 1);
    for kind in uring::tests::kinds() {
        let mut done = 0;
        for seed in seed.. {
            let mut model = Model::new(kind, seed);
            for _ in 0..(operations / 2).min(20_000) {
                let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| model.step()));
                result.unwrap_or_else(|_| panic!("seen with INNKEEPER_BLOCK_SEED={seed}, {kind:?}"));
                done += 1;
            }
            model.compare();
            if done >= operations / 2 {
                break;
            }
        }
    }
}
