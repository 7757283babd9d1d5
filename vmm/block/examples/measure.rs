//! Measures layered volumes beside raw files, in turns, and prints medians as a table.
//!
//!     cargo run --release -p innkeeper-block --example measure -- DIRECTORY [MIB]
//!
//! DIRECTORY is on the file system to be measured, and gets some files of MIB mebibytes (256 unless told), most of which
//! is soon in the page cache: what is compared is the work that layers add, not the disk. One volume is larger, and its files
//! are sparse: 3 GiB are written to them, and given back.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use innkeeper_block::layered::{Layer, LayerDescription, create_layer};
use innkeeper_block::{Backend, Completion, Engine, Layered, Operation, RawFile, Segments};
use nix::fcntl::{FallocateFlags, fallocate};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use uuid::Uuid;

const BLOCK: u64 = 4096;
const ROUNDS: usize = 7;
const OPERATIONS: u64 = 20_000;
const DEPTH: u16 = 32;
const MANY: u128 = 200;
/// Of a map, 32 MiB of the volume each: more than any fixed bound of a few MiB would keep.
const FRAGMENTED: u64 = 400;
const REGION: u64 = 32 << 20;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// Memory that operations use.
struct Memory(Box<[u8]>);

fn segments(memory: &Arc<Memory>, length: usize) -> Segments {
    let iov_base = memory.0.as_ptr().cast_mut().cast();
    // SAFETY: the memory is that large, is never looked at, and lives as long as the share in it.
    unsafe { Segments::new([libc::iovec { iov_base, iov_len: length }], memory.clone()) }
}

/// Random numbers that are the same for all who are compared.
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Read,
    Write,
}

/// Waits for a completion as a device does.
fn wait(engine: &mut dyn Engine) -> Result<Completion> {
    loop {
        if let Some(completion) = engine.complete() {
            return Ok(completion);
        }
        let Some(event) = engine.event() else { return Err("nothing completes".into()) };
        poll(&mut [PollFd::new(event, PollFlags::POLLIN)], PollTimeout::from(1000u16))?;
        let _ = nix::unistd::read(event, &mut [0; 8]);
    }
}

/// Random blocks, `depth` at a time. Returns the time for each.
fn random(engine: &mut dyn Engine, kind: Kind, blocks: u64, depth: u16, count: u64) -> Result<Duration> {
    let memory = Arc::new(Memory(vec![7; BLOCK as usize].into()));
    let mut random = Random(88_172_645_463_325_252);
    let mut operation = || {
        let (offset, segments) = (random.below(blocks) * BLOCK, segments(&memory, BLOCK as usize));
        match kind {
            Kind::Read => Operation::Read { offset, segments },
            Kind::Write => Operation::Write { offset, segments },
        }
    };
    let start = Instant::now();
    (0..depth).for_each(|slot| engine.submit(slot, operation()));
    engine.start()?;
    let mut begun = u64::from(depth);
    let mut ended = 0;
    while ended < count {
        let Completion { slot, result } = wait(engine)?;
        result?;
        ended += 1;
        if begun < count {
            engine.submit(slot, operation());
            begun += 1;
        }
        // All that is there by now, and then the next ones at once.
        while let Some(Completion { slot, result }) = engine.complete() {
            result?;
            ended += 1;
            if begun < count {
                engine.submit(slot, operation());
                begun += 1;
            }
        }
        engine.start()?;
    }
    Ok(start.elapsed() / count as u32)
}

fn execute(engine: &mut dyn Engine, operation: Operation) -> Result<()> {
    engine.submit(0, operation);
    engine.start()?;
    Ok(wait(engine)?.result?)
}

fn fill(engine: &mut dyn Engine, size: u64) -> Result<()> {
    let memory = Arc::new(Memory(vec![7; 1 << 20].into()));
    for offset in (0..size).step_by(1 << 20) {
        execute(engine, Operation::Write { offset, segments: segments(&memory, 1 << 20) })?;
    }
    execute(engine, Operation::Flush)
}

/// The files of layers in a directory.
struct Files {
    directory: PathBuf,
    size: u64,
}

impl Files {
    fn open(&self, name: &str) -> io::Result<Layer> {
        let open = |kind: &str| -> io::Result<File> {
            let path = self.directory.join(format!("{name}.{kind}"));
            OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)
        };
        Ok(Layer { data: open("data")?, map: open("map")? })
    }

    fn make(&self, name: &str, id: u128) -> Result<Layer> {
        let parent = (id > 1).then(|| Uuid::from_u128(id - 1));
        let description = LayerDescription { id: Uuid::from_u128(id), parent, size: self.size };
        self.remove(name);
        let layer = self.open(name)?;
        create_layer(&layer, &description)?;
        Ok(layer)
    }

    fn remove(&self, name: &str) {
        for kind in ["data", "map"] {
            // Most are not there.
            let _ = std::fs::remove_file(self.directory.join(format!("{name}.{kind}")));
        }
    }
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times.get(times.len() / 2).copied().unwrap_or_default()
}

fn row(name: &str, time: Duration, of: Duration) {
    let nanoseconds = time.as_nanos() as f64;
    let ratio = of.as_nanos() as f64 / nanoseconds;
    println!("| {name} | {:.2} | {:.0} | {ratio:.2} |", nanoseconds / 1e3, 1e9 / nanoseconds);
}

/// Operations per second of each, compared with the first.
fn table(title: &str, times: &BTreeMap<usize, Vec<Duration>>, names: &[&str]) {
    println!("\n| {title} | µs each | per second | of the first |\n| --- | --- | --- | --- |");
    let first = times.get(&0).cloned().map(median).unwrap_or_default();
    for (index, name) in names.iter().enumerate() {
        row(name, times.get(&index).cloned().map(median).unwrap_or_default(), first);
    }
}

fn raw(directory: &Path, size: u64) -> Result<RawFile> {
    let path = directory.join("raw");
    File::create(&path)?.set_len(size)?;
    Ok(RawFile::open(&path, false)?)
}

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let directory = PathBuf::from(arguments.next().ok_or("say in which directory")?);
    let mebibytes: u64 = arguments.next().map_or(Ok(256), |text| text.parse())?;
    let size = mebibytes << 20;
    let blocks = size / BLOCK;
    let files = Files { directory: directory.clone(), size };

    // A base that is full, and a stack in which each layer has an equal share of it.
    let raw = raw(&directory, size)?;
    fill(&mut *raw.engine(1)?, size)?;
    let base = Layered::open(vec![files.make("base", 1)?], false)?;
    fill(&mut *base.engine(1)?, size)?;
    base.seal(files.make("unused", 2)?)?;
    base.finish_seal()?;
    drop(base);
    let many = Layered::open(vec![files.make("many1", 1)?], false)?;
    fill(&mut *many.engine(1)?, size)?;
    for id in 2..=MANY {
        random(&mut *many.engine(DEPTH)?, Kind::Write, blocks, DEPTH, blocks / MANY as u64)?;
        many.seal(files.make(&format!("many{id}"), id)?)?;
        many.finish_seal()?;
    }

    let start = Instant::now();
    let top = files.make("top", 2)?;
    let over_base = Layered::open(vec![files.open("base")?, top], false)?;
    println!("A volume over a base of {mebibytes} MiB: made and open in {:?}", start.elapsed());

    // As after a restart: no map is in memory.
    drop(many);
    let start = Instant::now();
    let layers = (1..=MANY).map(|id| files.open(&format!("many{id}"))).collect::<io::Result<_>>()?;
    let many = Layered::open(layers, true)?;
    println!("{MANY} layers: open in {:?}", start.elapsed());
    let memory = Arc::new(Memory(vec![7; BLOCK as usize].into()));
    let mut engine = many.engine(1)?;
    let mut times = Vec::new();
    for offset in (0..size).step_by(32 << 20) {
        let start = Instant::now();
        execute(&mut *engine, Operation::Read { offset, segments: segments(&memory, BLOCK as usize) })?;
        times.push(start.elapsed());
    }
    drop(engine);
    println!("The first read of a region of theirs: {:?}", median(times));

    for (title, depth) in
        [("random 4 KiB reads, one at a time", 1), ("random 4 KiB reads, 32 at a time", DEPTH)]
    {
        let mut times: BTreeMap<usize, Vec<Duration>> = BTreeMap::new();
        for round in 0..=ROUNDS {
            let backends: [&dyn Backend; 3] = [&raw, &over_base, &many];
            for (index, backend) in backends.into_iter().enumerate() {
                let time = random(&mut *backend.engine(DEPTH)?, Kind::Read, blocks, depth, OPERATIONS)?;
                if round > 0 {
                    times.entry(index).or_default().push(time);
                }
            }
        }
        table(title, &times, &["raw", "one layer and a top", "200 layers"]);
    }

    let mut first = BTreeMap::<usize, Vec<Duration>>::new();
    let mut again = BTreeMap::<usize, Vec<Duration>>::new();
    for _ in 0..ROUNDS {
        let sparse = directory.join("sparse");
        File::create(&sparse)?.set_len(size)?;
        let sparse = RawFile::open(&sparse, false)?;
        let fresh = Layered::open(vec![files.open("base")?, files.make("fresh", 2)?], false)?;
        let backends: [&dyn Backend; 3] = [&raw, &sparse, &fresh];
        for times in [&mut first, &mut again] {
            for (index, backend) in backends.into_iter().enumerate() {
                let mut engine = backend.engine(DEPTH)?;
                let time = random(&mut *engine, Kind::Write, blocks, DEPTH, OPERATIONS)?;
                execute(&mut *engine, Operation::Flush)?;
                times.entry(index).or_default().push(time);
            }
        }
    }
    let names = ["raw, full", "raw, sparse", "layered, over a base"];
    table("random 4 KiB writes, for the first time", &first, &names);
    table("the same again", &again, &names);
    let taken = std::fs::metadata(directory.join("fresh.data"))?.blocks() * 512;
    println!("\nThe layer's data takes {} MiB.", taken >> 20);

    fragmented(&directory)?;

    flushes(&directory, &files, blocks)?;

    seal_stalls(&files, blocks)
}

/// Random reads all over a large volume of many layers, every region of which is in short runs.
fn fragmented(directory: &Path) -> Result<()> {
    let files = Files { directory: directory.into(), size: FRAGMENTED * REGION };
    let (blocks, region) = (files.size / BLOCK, REGION / BLOCK);
    let sparse = directory.join("sparse");
    File::create(&sparse)?.set_len(files.size)?;
    let sparse = RawFile::open(&sparse, false)?;
    let memory = Arc::new(Memory(vec![7; BLOCK as usize].into()));
    let volume = Layered::open(vec![files.make("large1", 1)?], false)?;
    let base = files.open("large1")?.data;
    for first in (0..blocks).step_by(region as usize) {
        // Two runs for each fourth block are as many as there is a list of.
        for block in (first..first + region).step_by(4) {
            volume.write_at(&memory.0, block * BLOCK)?;
        }
        volume.flush()?;
        // The map is what matters: the disk has something else to do.
        let punch = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        fallocate(&base, punch, (first * BLOCK).try_into()?, REGION.try_into()?)?;
    }
    for id in 2..=MANY {
        volume.seal(files.make(&format!("large{id}"), id)?)?;
        volume.finish_seal()?;
        for index in (id as u64 % 8..FRAGMENTED).step_by(8) {
            volume.write_at(&memory.0, (index * region + id as u64 * 8) * BLOCK)?;
        }
    }
    drop(volume);
    let layers = (1..=MANY).map(|id| files.open(&format!("large{id}"))).collect::<io::Result<_>>()?;
    let volume = Layered::open(layers, false)?;
    let mut times = BTreeMap::<usize, Vec<Duration>>::new();
    // The first round is the one in which regions are first used.
    for round in 0..=ROUNDS {
        let backends: [&dyn Backend; 2] = [&sparse, &volume];
        for (index, backend) in backends.into_iter().enumerate() {
            let time = random(&mut *backend.engine(DEPTH)?, Kind::Read, blocks, DEPTH, OPERATIONS)?;
            if round > 0 {
                times.entry(index).or_default().push(time);
            }
        }
    }
    let title = format!("random 4 KiB reads of {FRAGMENTED} fragmented regions, 32 at a time");
    table(&title, &times, &["raw, sparse", "200 layers"]);
    println!("\nWhat is known of where is what takes {} KiB.", volume.memory() >> 10);
    drop(volume);
    (1..=MANY).for_each(|id| files.remove(&format!("large{id}")));
    Ok(())
}

/// A few blocks that were never written, and a flush, again and again.
fn flushes(directory: &Path, files: &Files, blocks: u64) -> Result<()> {
    let sparse = directory.join("sparse");
    File::create(&sparse)?.set_len(files.size)?;
    let sparse = RawFile::open(&sparse, false)?;
    let fresh = Layered::open(vec![files.open("base")?, files.make("fresh", 2)?], false)?;
    let memory = Arc::new(Memory(vec![7; BLOCK as usize].into()));
    let mut random = [Random(7_777_777), Random(7_777_777)];
    let mut times = BTreeMap::<usize, Vec<Duration>>::new();
    for _ in 0..100 {
        let backends: [&dyn Backend; 2] = [&sparse, &fresh];
        for (index, (backend, random)) in backends.into_iter().zip(&mut random).enumerate() {
            let mut engine = backend.engine(DEPTH)?;
            let start = Instant::now();
            for slot in 0..8 {
                let offset = random.below(blocks) * BLOCK;
                engine.submit(slot, Operation::Write { offset, segments: segments(&memory, BLOCK as usize) });
            }
            engine.start()?;
            for _ in 0..8 {
                wait(&mut *engine)?.result?;
            }
            execute(&mut *engine, Operation::Flush)?;
            times.entry(index).or_default().push(start.elapsed());
        }
    }
    table(
        "8 random blocks for the first time, and a flush",
        &times,
        &["raw, sparse", "layered, over a base"],
    );
    Ok(())
}

/// How long operations take while a layer is put on top again and again, or is only flushed.
fn seal_stalls(files: &Files, blocks: u64) -> Result<()> {
    for is_sealed in [false, true] {
        let volume = Layered::open(vec![files.open("base")?, files.make("stall2", 2)?], false)?;
        let is_over = AtomicBool::new(false);
        let mut seals = Vec::new();
        let mut batches = std::thread::scope(|scope| -> Result<Vec<Duration>> {
            let writer =
                scope.spawn(|| write_batches(&volume, blocks, &is_over).map_err(|error| error.to_string()));
            for id in 3..43 {
                let layer = if is_sealed { Some(files.make(&format!("stall{id}"), id)?) } else { None };
                std::thread::sleep(Duration::from_millis(25));
                let start = Instant::now();
                match layer {
                    Some(layer) => {
                        volume.seal(layer)?;
                        seals.push(start.elapsed());
                        volume.finish_seal()?;
                    }
                    None => execute(&mut *volume.engine(1)?, Operation::Flush)?,
                }
            }
            is_over.store(true, Ordering::Relaxed);
            Ok(writer.join().map_err(|_| "the writer is gone")??)
        })?;
        batches.sort_unstable();
        let longest: Vec<_> = batches.iter().rev().take(5).collect();
        let what = if is_sealed { "seals" } else { "flushes" };
        println!(
            "\n40 {what} while {} batches of 32 blocks were written: the longest took {longest:?}",
            batches.len()
        );
        if is_sealed {
            println!("a seal: median {:?}, longest {:?}", median(seals.clone()), seals.iter().max());
        }
    }
    Ok(())
}

/// Writes random blocks, 32 at a time. Returns how long each batch took.
fn write_batches(volume: &Layered, blocks: u64, is_over: &AtomicBool) -> Result<Vec<Duration>> {
    let mut engine = volume.engine(DEPTH)?;
    let memory = Arc::new(Memory(vec![7; BLOCK as usize].into()));
    let mut random = Random(1_234_567);
    let mut times = Vec::new();
    while !is_over.load(Ordering::Relaxed) {
        let start = Instant::now();
        for slot in 0..DEPTH {
            let offset = random.below(blocks) * BLOCK;
            engine.submit(slot, Operation::Write { offset, segments: segments(&memory, BLOCK as usize) });
        }
        engine.start()?;
        for _ in 0..DEPTH {
            wait(&mut *engine)?.result?;
        }
        times.push(start.elapsed());
    }
    Ok(times)
}
