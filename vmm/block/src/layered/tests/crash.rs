//! Crash states: whatever a crash leaves of what was not synced, every acknowledged flush is there, and nothing is
//! garbage.
//!
//! A volume works on files that record what happens. For each moment, some of what could be left is put together: any
//! subset of the pages that were written since their file was last synced, and one of them torn. From there the volume
//! is opened, and each sector has to be what it was at the last flush that was over, or what some later operation made
//! of it. One of these states is gone on with.
//!
//! `INNKEEPER_BLOCK_CRASHES` says how many states.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::recorder::{Change, Content, Event, Log, Recorder};
use super::{Random, create, length};
use crate::layered::check::inspect;
use crate::layered::format::REGION_SIZE;
use crate::layered::map::read_header;
use crate::layered::merge::write_merged;
use crate::layered::stack::OpenLayer;
use crate::layered::storage::Storage;
use crate::layered::{Layered, Report};
use crate::segments::tests::Memory;
use crate::{Backend, Operation, SECTOR_SIZE};

/// A block's number of sectors.
const SECTORS: u64 = 8;
/// The sectors that are used: the first of the volume, and some on both sides of where a region ends.
const BEGIN: u64 = REGION_SIZE / SECTOR_SIZE;
const WINDOWS: [std::ops::Range<u64>; 2] = [0..5 * SECTORS, BEGIN - 3 * SECTORS..BEGIN + 3 * SECTORS + 2];
/// The last block is not a whole one.
const SIZE: u64 = REGION_SIZE + 3 * 4096 + 1024;
const MOST_LAYERS: usize = 4;

/// What an operation makes of sectors.
#[derive(Clone, Debug)]
enum Step {
    /// Each sector gets a number of its own.
    Write {
        first: u64,
        end: u64,
        tag: u64,
    },
    Zero {
        first: u64,
        end: u64,
        may_free: bool,
    },
    Discard {
        first: u64,
        end: u64,
    },
    Flush,
    /// Somebody else writes during one of the syncs of a flush: of the top's data, or of its map.
    FlushMeanwhile {
        first: u64,
        end: u64,
        tag: u64,
        is_map: bool,
    },
    Seal,
    FinishSeal,
    Grow {
        size: u64,
    },
    /// The process is killed, and another one goes on with what it finds.
    Kill {
        during: During,
        found: BTreeMap<u64, u64>,
    },
}

/// What a process is killed in the middle of: it has written the map, and not synced it.
#[derive(Clone, Copy, Debug)]
enum During {
    Nothing,
    Flush,
    Grow { size: u64 },
}

impl Step {
    /// What a sector is after this, if it changes.
    fn value(&self, sector: u64) -> Option<u64> {
        let inside = |first: u64, end: u64| (first..end).contains(&sector);
        if let Self::Kill { found, .. } = self {
            return found.get(&sector).copied();
        }
        match *self {
            Self::Write { first, end, tag } | Self::FlushMeanwhile { first, end, tag, .. } => {
                inside(first, end).then_some(tag + sector)
            }
            Self::Zero { first, end, .. } => inside(first, end).then_some(0),
            Self::Discard { first, end } => {
                inside(first.next_multiple_of(SECTORS), end / SECTORS * SECTORS).then_some(0)
            }
            _ => None,
        }
    }
}

/// A volume that records what it does.
struct Recording {
    log: Log,
    /// Data and map of each layer.
    files: Vec<[Recorder; 2]>,
    volume: Layered,
    /// What every sector was to begin with.
    before: BTreeMap<u64, u64>,
    size_before: u64,
    contents: Vec<Content>,
    steps: Vec<Step>,
    next_tag: u64,
}

/// A step began, or was over, or a layer more belongs to the volume: as marks in the log.
fn begun(step: usize) -> usize {
    step * 2
}

fn sectors() -> impl Iterator<Item = u64> {
    WINDOWS.into_iter().flatten()
}

fn open(files: &[[Recorder; 2]]) -> Layered {
    let files = files.iter().map(|[data, map]| boxed(data, map)).collect();
    Layered::over(files, false).unwrap_or_else(|error| panic!("the volume does not open: {error}"))
}

fn report(files: &[[Recorder; 2]]) -> Report {
    let mut report = Report::default();
    inspect(&files.iter().map(|[data, map]| Some(boxed(data, map))).collect::<Vec<_>>(), &mut report);
    report
}

fn boxed(data: &Recorder, map: &Recorder) -> (Box<dyn Storage>, Box<dyn Storage>) {
    (Box::new(data.clone()), Box::new(map.clone()))
}

fn read(volume: &Layered) -> BTreeMap<u64, u64> {
    let mut values = BTreeMap::new();
    for window in WINDOWS {
        let length = (window.end - window.start) * SECTOR_SIZE;
        let memory = Memory::new(vec![vec![0xee; length as usize]]);
        let offset = window.start * SECTOR_SIZE;
        volume.volume.run(Operation::Read { offset, segments: memory.segments() }).unwrap();
        for (sector, bytes) in window.zip(memory.bytes().chunks(SECTOR_SIZE as usize)) {
            let number = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
            let value = number(0);
            let is_whole = (0..64).all(|word| number(word * 8) == value);
            values.insert(sector, if is_whole { value } else { u64::MAX });
        }
    }
    values
}

/// A write that gives each sector a number.
fn tagged(first: u64, end: u64, tag: u64) -> Operation {
    let bytes = (first..end).flat_map(|sector| (tag + sector).to_le_bytes().repeat(64)).collect();
    Operation::Write { offset: first * SECTOR_SIZE, segments: Memory::new(vec![bytes]).segments() }
}

impl Recording {
    fn new(contents: Vec<Content>, first_tag: u64) -> Self {
        let log = Log::default();
        let mut files = Vec::new();
        for (layer, pair) in contents.chunks(2).enumerate() {
            files.push([0, 1].map(|at| Recorder::new(layer * 2 + at, &log, pair[at].clone())));
        }
        if files.is_empty() {
            files.push([0, 1].map(|at| Recorder::new(at, &log, Content::default())));
            create(&files[0][0], &files[0][1], 1, SIZE);
        }
        log.lock().unwrap().clear();
        let contents = files.iter().flatten().map(Recorder::content).collect();
        let volume = open(&files);
        let (before, size_before) = (read(&volume), volume.capacity());
        Self { log, files, volume, before, size_before, contents, steps: Vec::new(), next_tag: first_tag }
    }

    fn choose(&mut self, random: &mut Random) -> Step {
        let window = WINDOWS[random.below(2) as usize].clone();
        let mut first = window.start + random.below(window.end - window.start);
        let mut end = (first + 1 + random.below(20)).min(window.end);
        if random.once_in(3) {
            // Blocks as a whole.
            (first, end) = (first / SECTORS * SECTORS, end.next_multiple_of(SECTORS).min(window.end));
        }
        self.next_tag += 1 << 32;
        match random.below(20) {
            0..7 => Step::Write { first, end, tag: self.next_tag },
            7..9 => Step::Discard { first, end },
            9..12 => Step::Zero { first, end, may_free: random.once_in(2) },
            12..14 => Step::Flush,
            14 => Step::FlushMeanwhile { first, end, tag: self.next_tag, is_map: random.once_in(2) },
            15 if self.files.len() < MOST_LAYERS => Step::Seal,
            16 => Step::FinishSeal,
            17 => Step::Grow { size: self.volume.capacity() + random.below(9) * SECTOR_SIZE },
            18 => {
                let during = match random.below(3) {
                    0 => During::Nothing,
                    1 => During::Flush,
                    _ => During::Grow { size: self.volume.capacity() + SECTOR_SIZE },
                };
                Step::Kill { during, found: BTreeMap::new() }
            }
            _ => Step::Write { first, end, tag: self.next_tag },
        }
    }

    fn run(&mut self, step: Step) {
        let mark = begun(self.steps.len());
        self.steps.push(step.clone());
        self.log.lock().unwrap().push((0, Event::Mark(mark)));
        let range = |first: u64, end: u64| (first * SECTOR_SIZE, (end - first) * SECTOR_SIZE);
        let volume = &self.volume.volume;
        match step {
            Step::Write { first, end, tag } => volume.run(tagged(first, end, tag)).unwrap(),
            Step::FlushMeanwhile { first, end, tag, is_map } => {
                let [data, map] = &self.files[self.files.len() - 1];
                let file = if is_map { map } else { data };
                let writer = self.volume.clone();
                let write = move || writer.volume.run(tagged(first, end, tag)).unwrap();
                *file.meanwhile.lock().unwrap() = Some(Box::new(write));
                volume.run(Operation::Flush).unwrap();
                // There was no such sync.
                let left = file.meanwhile.lock().unwrap().take();
                left.into_iter().for_each(|write| write());
            }
            Step::Discard { first, end } => {
                let (offset, length) = range(first, end);
                volume.run(Operation::Discard { offset, length }).unwrap();
            }
            Step::Zero { first, end, may_free } => {
                let (offset, length) = range(first, end);
                volume.run(Operation::WriteZeroes { offset, length, may_free }).unwrap();
            }
            Step::Flush => volume.run(Operation::Flush).unwrap(),
            Step::Seal => {
                // The agent makes the files, and writes down that they belong to the volume, before it says so.
                let id = self.files.len();
                let unlogged = Log::default();
                let files = [0, 1].map(|at| Recorder::new(id * 2 + at, &unlogged, Content::default()));
                create(&files[0], &files[1], id as u128 + 1, self.volume.capacity());
                self.contents.extend(files.iter().map(Recorder::content));
                let files = files.map(|file| Recorder::new(file.number(), &self.log, file.content()));
                let [data, map] = files.clone().map(|file| Box::new(file) as Box<dyn Storage>);
                self.files.push(files);
                self.volume.seal_over(data, map).unwrap();
            }
            Step::FinishSeal => self.volume.finish_seal().unwrap(),
            Step::Grow { size } => self.volume.resize(size).unwrap(),
            Step::Kill { during, .. } => {
                let [_, map] = &self.files[self.files.len() - 1];
                match during {
                    During::Nothing => {}
                    During::Flush => {
                        *map.fails.lock().unwrap() = true;
                        let _ = volume.run(Operation::Flush);
                    }
                    During::Grow { size } => {
                        // It is the second sync that fails.
                        let fails = Arc::clone(&map.fails);
                        *map.meanwhile.lock().unwrap() =
                            Some(Box::new(move || *fails.lock().unwrap() = true));
                        assert!(self.volume.resize(size).is_err());
                    }
                }
                *map.fails.lock().unwrap() = false;
                self.volume.volume.abandon();
                self.volume = open(&self.files);
                // What the map did not say on disk yet is gone, and what was flushed is not.
                let found = read(&self.volume);
                self.check(&found, self.volume.capacity(), self.steps.len(), self.steps.len());
                self.steps.pop();
                self.steps.push(Step::Kill { during, found });
            }
        }
        self.log.lock().unwrap().push((0, Event::Mark(mark + 1)));
    }

    /// Whether what was read after a crash can be, when the steps up to `begun` had begun, and the first `over` were over.
    fn check(&self, found: &BTreeMap<u64, u64>, size: u64, begun: usize, over: usize) {
        let steps = &self.steps[..begun];
        let last = |end: usize, is_it: fn(&Step) -> bool| steps[..end].iter().rposition(is_it);
        let flush = last(over, |step| matches!(step, Step::Flush)).map_or(0, |at| at + 1);
        let meanwhile = last(over, |step| matches!(step, Step::FlushMeanwhile { .. }));
        // What was sealed is durable then, and what came later is not.
        let finish = last(over, |step| matches!(step, Step::FinishSeal));
        let sealed = finish.and_then(|finish| last(finish, |step| matches!(step, Step::Seal)));
        let flushed = flush.max(sealed.unwrap_or(0)).max(meanwhile.unwrap_or(0));
        for sector in sectors() {
            let durable = steps[..flushed].iter().filter_map(|step| step.value(sector)).next_back();
            let durable = durable.unwrap_or(self.before[&sector]);
            let value = found[&sector];
            let is_later = steps[flushed..].iter().any(|step| step.value(sector) == Some(value));
            assert!(
                value == durable || is_later,
                "sector {sector} is {value:#x}, and was {durable:#x} at the flush before step {flushed} of {steps:?}"
            );
        }
        let size_of = |step: &Step| match step {
            Step::Grow { size } | Step::Kill { during: During::Grow { size }, .. } => Some(*size),
            _ => None,
        };
        let is_over = |step: &&Step| matches!(step, Step::Grow { .. });
        let known =
            steps[..over].iter().filter(is_over).filter_map(size_of).max().unwrap_or(self.size_before);
        let is_later = steps.iter().filter_map(size_of).any(|tried| tried == size && size > known);
        assert!(size == known || is_later, "{size} bytes, and {known} were there after {over} of {steps:?}");
    }

    /// Tries states that crashes leave, and returns what is in the files in one of them.
    fn crash(&self, random: &mut Random, states: &mut u64) -> Vec<Content> {
        let log = self.log.lock().unwrap();
        let mut durable = self.contents.clone();
        let mut pending: Vec<Vec<&Change>> = vec![Vec::new(); durable.len()];
        let (mut layers, mut begun, mut over) = (1.max(self.contents.len() / 2 - self.seals()), 0, 0);
        let mut chosen = None;
        for (file, event) in &*log {
            match event {
                Event::Change(change) => pending[*file].push(change),
                Event::Sync => {
                    for change in pending[*file].drain(..) {
                        durable[*file].apply(change);
                    }
                    continue;
                }
                Event::Mark(mark) if mark % 2 == 0 => {
                    begun = mark / 2 + 1;
                    layers += usize::from(matches!(self.steps[mark / 2], Step::Seal));
                }
                Event::Mark(mark) => over = mark / 2 + 1,
            }
            for attempt in 0..tries(&pending) {
                let contents = left(&durable, &pending, attempt, random);
                let recorders = recorders(&contents[..layers * 2]);
                let report = report(&recorders);
                assert!(report.is_sound(), "{report}");
                let volume = open(&recorders);
                self.check(&read(&volume), volume.capacity(), begun, over);
                *states += 1;
                if chosen.is_none() || random.once_in(*states / 8 + 2) {
                    chosen = Some(contents[..layers * 2].to_vec());
                }
            }
        }
        chosen.unwrap_or_else(|| self.contents.clone())
    }

    fn seals(&self) -> usize {
        self.steps.iter().filter(|step| matches!(step, Step::Seal)).count()
    }
}

/// How many ways are tried: all of them if they are few.
fn tries(pending: &[Vec<&Change>]) -> u64 {
    let count: usize = pending.iter().map(Vec::len).sum();
    if count < 4 { 1 << count } else { 12 }
}

/// What a crash leaves of the files: which changes is chosen by the bits of `attempt` if they are few.
fn left(durable: &[Content], pending: &[Vec<&Change>], attempt: u64, random: &mut Random) -> Vec<Content> {
    let count: usize = pending.iter().map(Vec::len).sum();
    let torn = if attempt % 2 == 1 { Some(random.below(count as u64)) } else { None };
    // Nearly nothing, nearly all, and what is between.
    let share = random.below(8);
    let mut number = 0;
    let mut contents = durable.to_vec();
    for (content, changes) in contents.iter_mut().zip(pending) {
        for change in changes {
            let is_there =
                if count < 4 { attempt >> number & 1 == 1 } else { attempt > 0 && random.below(8) <= share };
            if Some(number) == torn && count >= 4 {
                content.tear(change, random);
            } else if is_there {
                content.apply(change);
            }
            number += 1;
        }
    }
    if count < 4 && count > 0 && random.once_in(2) {
        // And one torn on top of that.
        let file = random.below(pending.len() as u64) as usize;
        if let Some(change) = pending[file].last() {
            let mut content = durable[file].clone();
            pending[file][..pending[file].len() - 1].iter().for_each(|change| content.apply(change));
            content.tear(change, random);
            contents[file] = content;
        }
    }
    contents
}

fn recorders(contents: &[Content]) -> Vec<[Recorder; 2]> {
    let log = Log::default();
    let pairs = contents.chunks(2).enumerate();
    pairs
        .map(|(layer, pair)| [0, 1].map(|at| Recorder::new(layer * 2 + at, &log, pair[at].clone())))
        .collect()
}

#[test]
fn every_crash_leaves_what_was_flushed() {
    let wanted = length("INNKEEPER_BLOCK_CRASHES", 5_000);
    let seed = length("INNKEEPER_BLOCK_SEED", 1);
    let mut states = 0;
    for scenario in seed.. {
        let mut random = Random::new(scenario);
        let mut contents = Vec::new();
        for life in 1..4 {
            let mut recording = Recording::new(contents, life << 48);
            let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                for _ in 0..4 + random.below(16) {
                    let step = recording.choose(&mut random);
                    recording.run(step);
                }
                recording.crash(&mut random, &mut states)
            }));
            contents =
                result.unwrap_or_else(|_| panic!("seen with INNKEEPER_BLOCK_SEED={scenario}, life {life}"));
        }
        if states >= wanted {
            println!("{states} states of {} scenarios", scenario - seed + 1);
            return;
        }
    }
}

/// Until a merge is over, what there is of it is no layer; then it is one, and all of it is durable.
#[test]
fn a_merge_is_over_or_is_nothing() {
    let mut states = 0;
    for scenario in 0..20 {
        let mut random = Random::new(scenario);
        let mut recording = Recording::new(Vec::new(), 1 << 48);
        while recording.files.len() < 3 {
            let step = if random.once_in(6) { Step::Seal } else { recording.choose(&mut random) };
            recording.run(Step::FinishSeal);
            recording.run(step);
        }
        recording.run(Step::FinishSeal);
        let sealed = &recording.files[..2];
        let expected = read(&open_read_only(sealed));
        let log = Log::default();
        let files = [0, 1].map(|at| Recorder::new(at, &log, Content::default()));
        let layers = sealed.iter().map(|[data, map]| boxed(data, map));
        let layers: Vec<_> = layers.map(|(data, map)| OpenLayer::open(data, map).unwrap()).collect();
        write_merged(&layers, &files[0], &files[1], &mut |_| true).unwrap();
        assert_eq!(read(&open_read_only(std::slice::from_ref(&files))), expected);
        let mut durable = [Content::default(), Content::default()].to_vec();
        let mut pending: Vec<Vec<&Change>> = vec![Vec::new(); 2];
        for (file, event) in &*log.lock().unwrap() {
            match event {
                Event::Change(change) => pending[*file].push(change),
                _ => pending[*file].drain(..).for_each(|change| durable[*file].apply(change)),
            }
            for attempt in 0..tries(&pending) {
                let recorders = recorders(&left(&durable, &pending, attempt, &mut random));
                states += 1;
                if read_header(&recorders[0][1]).is_ok() {
                    assert_eq!(read(&open_read_only(&recorders)), expected);
                    assert!(report(&recorders).findings.is_empty());
                }
            }
        }
    }
    assert!(states > 1000, "{states}");
}

fn open_read_only(files: &[[Recorder; 2]]) -> Layered {
    Layered::over(files.iter().map(|[data, map]| boxed(data, map)).collect(), true).unwrap()
}

/// The test would find mistakes: here the map is synced without the data.
#[test]
fn a_map_before_its_data_would_be_found() {
    let found = (1..200).any(|scenario| {
        let mut random = Random::new(scenario);
        let mut recording = Recording::new(Vec::new(), 1 << 48);
        for _ in 0..12 {
            let step = recording.choose(&mut random);
            recording.run(step);
        }
        // The data's syncs never happened.
        let is_data = |file: usize| file.is_multiple_of(2);
        recording
            .log
            .lock()
            .unwrap()
            .retain(|(file, event)| !(is_data(*file) && matches!(event, Event::Sync)));
        let hook = std::panic::take_hook();
        std::panic::set_hook(Box::new(|_| {}));
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            recording.crash(&mut random, &mut 0);
        }));
        std::panic::set_hook(hook);
        result.is_err()
    });
    assert!(found);
}
