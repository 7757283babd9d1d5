//! Many operations at a time, on several engines, while layers are put on top.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};

use super::{Random, make};
use crate::layered::Layered;
use crate::segments::tests::Memory;
use crate::{Backend, Completion, Engine, EngineKind, Operation, uring};

const SIZE: u64 = 1 << 20;
const DEPTH: u16 = 16;
const THREADS: u64 = 3;

/// Waits as a device does: until it is told.
struct Waiter(Epoll);

impl Waiter {
    fn new(engine: &dyn Engine) -> Self {
        let epoll = Epoll::new(EpollCreateFlags::empty()).unwrap();
        if let Some(event) = engine.event() {
            epoll.add(event, EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLET, 0)).unwrap();
        }
        Self(epoll)
    }

    fn wait(&self, engine: &mut dyn Engine) -> Completion {
        loop {
            if let Some(completion) = engine.complete() {
                return completion;
            }
            match self.0.wait(&mut [EpollEvent::empty()], 10_000u16) {
                Ok(count) => assert_eq!(count, 1, "slept for ever"),
                Err(error) => assert_eq!(error, nix::Error::EINTR),
            }
        }
    }
}

/// What a thread does to sectors that are its own, in blocks that it shares with the others.
fn work(volume: &Layered, thread: u64, is_over: &AtomicBool) {
    let mut engine = volume.engine(DEPTH).unwrap();
    let waiter = Waiter::new(&*engine);
    let mut random = Random::new(thread + 1);
    let mut sectors = [0u8; 64];
    let mut blocks = [0u8; 40];
    let sector_at = |index: usize| (index as u64 * 4 + thread) * 512;
    let block_at = |index: usize| SIZE / 2 + (index as u64 * THREADS + thread) * 4096;
    while !is_over.load(Ordering::SeqCst) {
        let mut pending: Vec<Option<(Memory, u8)>> = (0..DEPTH).map(|_| None).collect();
        let (first_sector, first_block) = (random.below(64) as usize, random.below(40) as usize);
        for slot in 0..DEPTH {
            let index = usize::from(slot);
            let is_sector = random.once_in(2);
            let (value, offset, length) = if is_sector {
                let index = (first_sector + index) % 64;
                (&mut sectors[index], sector_at(index), 512)
            } else {
                let index = (first_block + index) % 40;
                (&mut blocks[index], block_at(index), 4096)
            };
            let operation = match random.below(8) {
                0..3 => {
                    *value = random.next() as u8;
                    let segments = Memory::new(vec![vec![*value; length]]).segments();
                    Operation::Write { offset, segments }
                }
                3 => {
                    *value = 0;
                    Operation::WriteZeroes { offset, length: length as u64, may_free: random.once_in(2) }
                }
                4 if random.once_in(8) => Operation::Flush,
                _ => {
                    let memory = Memory::new(vec![vec![0xee; length / 2], vec![0xee; length / 2]]);
                    pending[index] = Some((memory.clone(), *value));
                    Operation::Read { offset, segments: memory.segments() }
                }
            };
            engine.submit(slot, operation);
        }
        engine.start().unwrap();
        let mut slots: Vec<u16> = Vec::new();
        while slots.len() < usize::from(DEPTH) {
            let Completion { slot, result } = waiter.wait(&mut *engine);
            result.unwrap();
            slots.push(slot);
        }
        slots.sort_unstable();
        assert!(slots.into_iter().eq(0..DEPTH));
        for (memory, expected) in pending.into_iter().flatten() {
            assert!(memory.bytes().iter().all(|byte| *byte == expected));
        }
    }
}

#[test]
fn operations_at_the_same_time_do_not_disturb_each_other() {
    for kind in uring::tests::kinds() {
        let directory = tempfile::tempdir().unwrap();
        let first = make(directory.path(), 1, SIZE);
        let volume = Layered::open(vec![first], false).unwrap().with_engine(kind);
        let is_over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for thread in 0..THREADS {
                let (volume, is_over) = (&volume, &is_over);
                scope.spawn(move || work(volume, thread, is_over));
            }
            for id in 2..25 {
                let layer = make(directory.path(), id, SIZE);
                std::thread::sleep(Duration::from_millis(10));
                volume.seal(layer).unwrap();
                volume.finish_seal().unwrap();
            }
            is_over.store(true, Ordering::SeqCst);
        });
    }
}

/// The kernel and the volume's threads own the buffers until they are done.
#[test]
fn an_engine_waits_for_what_is_in_flight() {
    let directory = tempfile::tempdir().unwrap();
    if !uring::tests::is_there() {
        return;
    }
    let volume = Layered::open(vec![make(directory.path(), 1, SIZE)], false).unwrap();
    let volume = volume.with_engine(EngineKind::IoUring);
    for round in 0..50u64 {
        let mut engine = volume.engine(DEPTH).unwrap();
        for slot in 0..DEPTH {
            // Blocks as a whole, and parts of others.
            let (offset, length) = if slot % 2 == 0 { (0, 4096) } else { (512, 1024) };
            let offset = offset + (round * 16 + u64::from(slot)) % 256 * 4096;
            let segments = Memory::new(vec![vec![1; length]]).segments();
            engine.submit(slot, Operation::Write { offset, segments });
        }
        engine.start().unwrap();
        drop(engine);
        assert!(volume.volume.in_flight.is_idle());
    }
    let start = Instant::now();
    let threads = std::sync::Arc::downgrade(&volume.workers);
    drop(volume);
    assert!(threads.upgrade().is_none() && start.elapsed() < Duration::from_secs(1));
}

#[test]
fn a_slot_cannot_be_used_twice_or_beyond_the_depth() {
    let directory = tempfile::tempdir().unwrap();
    if !uring::tests::is_there() {
        return;
    }
    let volume = Layered::open(vec![make(directory.path(), 1, SIZE)], false).unwrap();
    let mut engine = volume.with_engine(EngineKind::IoUring).engine(2).unwrap();
    let waiter = Waiter::new(&*engine);
    for slot in [0, 0, 2, u16::MAX] {
        engine.submit(slot, Operation::Flush);
    }
    let results: Vec<bool> = (0..4).map(|_| waiter.wait(&mut *engine).result.is_ok()).collect();
    assert_eq!(results.iter().filter(|is_ok| **is_ok).count(), 1);
}
