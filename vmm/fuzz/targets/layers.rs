//! Layers whose files hold anything: they are a volume, or an error that says why not; and a volume reads and takes writes,
//! or fails, within its bound of memory. The checker says something about all of them.

#![no_main]

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use arbitrary::Arbitrary;
use innkeeper_block::layered::{Layer, LayerDescription, check, create_layer, description};
use innkeeper_block::{Backend, Engine, EngineKind, Layered, Operation, Segments};
use innkeeper_fuzz::{Bytes, List, Steps};
use libfuzzer_sys::fuzz_target;
use nix::sys::memfd::{MFdFlags, memfd_create};
use uuid::Uuid;

const PAGE: u64 = 4096;
/// What a volume has at first, in bytes: two regions, and a part of a block.
const SIZE: u64 = (32 << 20) + 8192 + 512;
/// The most that an operation is about, in bytes.
const MOST: u64 = 1 << 20;

/// What a layer's files are.
#[derive(Arbitrary, Clone, Debug)]
struct Files {
    /// Whether it begins as a layer that belongs where it is.
    is_layer: bool,
    changes: List<Change>,
    /// Bytes of the data file, in units of 1 KiB, if it is not as long as it has to be.
    data: Option<u16>,
    /// The same of the map file.
    map: Option<u8>,
}

/// What is done to a map.
#[derive(Arbitrary, Clone, Debug)]
enum Change {
    /// Anything, anywhere in a page of the file.
    Bytes { page: u8, at: u16, bytes: Bytes, is_signed: bool },
    /// A page with these states, which counts if the generation says so.
    Page { slot: bool, region: u8, generation: u8, layer: u8, states: Bytes },
    /// A header.
    Header { slot: bool, generation: u8, layer: u8, parent: u8, size: u64, sealed: Option<u8> },
}

#[derive(Arbitrary, Clone, Debug)]
enum Step {
    Read {
        offset: u32,
        length: u16,
    },
    Write {
        offset: u32,
        length: u16,
    },
    Discard {
        offset: u32,
        length: u32,
    },
    Zero {
        offset: u32,
        length: u32,
        may_free: bool,
    },
    /// At the end of what there is.
    WriteLast,
    Flush,
    FinishSeal,
    Seal {
        is_right: bool,
    },
    Grow(u16),
    Check,
}

#[derive(Arbitrary, Debug)]
struct Input {
    layers: List<Files, 3>,
    read_only: bool,
    is_still: bool,
    is_asynchronous: bool,
    steps: Steps<Step>,
}

fn file() -> File {
    File::from(memfd_create(c"layer", MFdFlags::MFD_CLOEXEC).unwrap())
}

fn id(number: u8) -> Uuid {
    Uuid::from_u128(u128::from(number % 4))
}

fn sign(page: &mut [u8; PAGE as usize]) {
    let checksum = crc32fast::hash(&page[..4092]);
    page[4092..].copy_from_slice(&checksum.to_le_bytes());
}

impl Change {
    fn apply(&self, map: &File) {
        let mut page = [0; PAGE as usize];
        let mut put = |at: usize, bytes: &[u8]| page[at..at + bytes.len()].copy_from_slice(bytes);
        let at = match self {
            Self::Bytes { page: number, at, bytes, is_signed } => {
                let offset = u64::from(number % 8) * PAGE;
                let _ = map.read_at(&mut page, offset).unwrap();
                let at = usize::from(*at) % (PAGE as usize - bytes.len());
                page[at..at + bytes.len()].copy_from_slice(bytes);
                if *is_signed {
                    sign(&mut page);
                }
                return map.write_all_at(&page, offset).unwrap();
            }
            Self::Page { slot, region, generation, layer, states } => {
                let region = u32::from(region % 3);
                put(0, b"INNKPAGE");
                put(8, &region.to_le_bytes());
                put(16, &u64::from(*generation).to_le_bytes());
                put(24, id(*layer).as_bytes());
                put(64, states);
                2 + 2 * u64::from(region) + u64::from(*slot)
            }
            Self::Header { slot, generation, layer, parent, size, sealed } => {
                put(0, b"INNKLAYR");
                put(8, &1u32.to_le_bytes());
                put(12, &(PAGE as u32).to_le_bytes());
                put(16, &u64::from(*generation).to_le_bytes());
                put(24, &size.to_le_bytes());
                put(32, id(*layer).as_bytes());
                put(48, id(*parent).as_bytes());
                put(64, &u32::from(sealed.is_some()).to_le_bytes());
                put(72, &u64::from(sealed.unwrap_or(0)).to_le_bytes());
                u64::from(*slot)
            }
        };
        sign(&mut page);
        map.write_all_at(&page, at * PAGE).unwrap();
    }
}

fn layer(number: u8, files: &Files) -> Layer {
    let layer = Layer { data: file(), map: file() };
    if files.is_layer {
        let parent = (number > 1).then(|| id(number - 1));
        create_layer(&layer, &LayerDescription { id: id(number), parent, size: SIZE }).unwrap();
    }
    files.changes.iter().for_each(|change| change.apply(&layer.map));
    if let Some(length) = files.data {
        layer.data.set_len(u64::from(length) << 10).unwrap();
    }
    if let Some(length) = files.map {
        layer.map.set_len(u64::from(length) << 10).unwrap();
    }
    layer
}

fn segments(length: u64) -> Segments {
    let memory: Arc<Box<[u64]>> = Arc::new(vec![0x0101_0101_0101_0101; length.div_ceil(8) as usize].into());
    let iov_base = memory.as_ptr().cast_mut().cast();
    // SAFETY: the memory is that large, is looked at by nobody else, and lives as long as the share in it.
    unsafe { Segments::new([libc::iovec { iov_base, iov_len: length as usize }], memory.clone()) }
}

fn run(engine: &mut dyn Engine, operation: Operation) {
    engine.submit(0, operation);
    engine.start().unwrap();
    // Whether it succeeds is for the layers to say; but it ends.
    for _ in 0..1_000_000 {
        if engine.complete().is_some() {
            return;
        }
        std::thread::yield_now();
    }
    panic!("an operation does not end");
}

fn copies(layers: &[Layer]) -> Vec<Layer> {
    let copy = |file: &File| File::options().read(true).open(format!("/proc/self/fd/{}", fd(file))).unwrap();
    layers.iter().map(|layer| Layer { data: copy(&layer.data), map: copy(&layer.map) }).collect()
}

fn fd(file: &File) -> i32 {
    std::os::fd::AsRawFd::as_raw_fd(file)
}

fn step(volume: &Layered, engine: &mut dyn Engine, kept: &[Layer], step: &Step) {
    let place = |offset: u32, length: u64| {
        let offset = u64::from(offset) % volume.capacity().max(1) / 512 * 512;
        (offset, (length / 512 * 512 + 512).min(MOST).min(volume.capacity() - offset))
    };
    match *step {
        Step::Read { offset, length } => {
            let (offset, length) = place(offset, length.into());
            run(engine, Operation::Read { offset, segments: segments(length) });
            let _ = volume.read_at(&mut vec![0; length as usize], offset);
        }
        Step::Write { offset, length } => {
            let (offset, length) = place(offset, length.into());
            run(engine, Operation::Write { offset, segments: segments(length) });
        }
        Step::Discard { offset, length } => {
            let (offset, length) = place(offset, length.into());
            run(engine, Operation::Discard { offset, length });
        }
        Step::Zero { offset, length, may_free } => {
            let (offset, length) = place(offset, length.into());
            run(engine, Operation::WriteZeroes { offset, length, may_free });
        }
        Step::WriteLast => {
            let offset = volume.capacity() - 512;
            run(engine, Operation::Write { offset, segments: segments(512) });
        }
        Step::Flush => run(engine, Operation::Flush),
        Step::FinishSeal => drop(volume.finish_seal()),
        Step::Seal { is_right } => {
            let top = Layer { data: file(), map: file() };
            let parent = Some(volume.top()).filter(|_| is_right);
            let id = Uuid::from_u128(volume.top().as_u128().wrapping_add(1 << 32));
            if create_layer(&top, &LayerDescription { id, parent, size: volume.capacity() }).is_ok() {
                let _ = volume.seal(top);
            }
        }
        Step::Grow(sectors) => {
            drop(volume.resize(volume.capacity().saturating_add(u64::from(sectors) * 512)))
        }
        Step::Check => drop(check(copies(kept)).to_string()),
    }
}

/// How many threads this process has.
fn threads() -> usize {
    std::fs::read_dir("/proc/self/task").unwrap().count()
}

fuzz_target!(|input: Input| {
    let Input { layers, read_only, is_still, is_asynchronous, steps } = input;
    let layers: Vec<Layer> = (1..).zip(layers.iter()).map(|(number, files)| layer(number, files)).collect();
    layers.iter().for_each(|layer| drop(description(&layer.map)));
    let report = check(copies(&layers));
    assert!(report.layers.len() == layers.len() && !report.to_string().is_empty());
    let own = |file: &File| file.try_clone().unwrap();
    let files = layers.iter().map(|layer| Layer { data: own(&layer.data), map: own(&layer.map) }).collect();
    let volume = if is_still { Layered::open_still(files) } else { Layered::open(files, read_only) };
    let volume = match volume {
        Ok(volume) => volume,
        Err(error) => return assert!(!error.to_string().is_empty()),
    };
    assert!(volume.capacity() > 0 && volume.layers() == layers.len() && volume.unsealed() < layers.len());
    let kind = if is_asynchronous { EngineKind::Auto } else { EngineKind::Synchronous };
    let volume = volume.with_engine(kind);
    let others = threads();
    let mut engine = volume.engine(4).unwrap();
    for next in steps {
        step(&volume, &mut *engine, &layers, &next);
        assert!(volume.memory() <= (1 << 20) + volume.layers() * (256 << 10));
    }
    drop((engine, volume));
    // What a thread has that is about to end would be taken for lost.
    for _ in 0..1_000_000 {
        if threads() <= others {
            return;
        }
        std::thread::yield_now();
    }
    panic!("a thread of a volume does not end");
});
