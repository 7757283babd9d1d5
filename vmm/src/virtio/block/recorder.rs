//! A backend for tests: it remembers what it is asked for, and completes it when it is told to, or at once.

use std::collections::VecDeque;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use innkeeper_block::{Backend, Completion, Engine, Operation, SECTOR_SIZE};
use vmm_sys_util::eventfd::EventFd;

use crate::event::{self, as_fd};

#[derive(Clone)]
pub(super) struct Recorder {
    is_read_only: bool,
    fails: bool,
    is_asynchronous: bool,
    capacity: Arc<AtomicU64>,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    calls: Vec<String>,
    starts: usize,
    submitted: VecDeque<u16>,
    completed: VecDeque<u16>,
}

impl Recorder {
    pub fn new(sectors: u64) -> Self {
        Self {
            is_read_only: false,
            fails: false,
            is_asynchronous: false,
            capacity: Arc::new(AtomicU64::new(sectors * SECTOR_SIZE)),
            state: Arc::default(),
        }
    }

    /// The same, with an engine that completes nothing before [`Recorder::complete`] says so.
    pub fn asynchronous(self) -> Self {
        Self { is_asynchronous: true, ..self }
    }

    pub fn read_only(self) -> Self {
        Self { is_read_only: true, ..self }
    }

    /// The same, with an engine that can do nothing.
    pub fn failing(self) -> Self {
        Self { fails: true, ..self }
    }

    /// What was asked for since the last call.
    pub fn calls(&self) -> Vec<String> {
        std::mem::take(&mut self.state.lock().unwrap().calls)
    }

    /// How often operations were set going.
    pub fn starts(&self) -> usize {
        self.state.lock().unwrap().starts
    }

    /// Completes the first `count` operations.
    pub fn complete(&self, count: usize) {
        let mut state = self.state.lock().unwrap();
        let count = count.min(state.submitted.len());
        let slots: Vec<_> = state.submitted.drain(..count).collect();
        state.completed.extend(slots);
    }

    /// Completes what may not be there.
    pub fn complete_slot(&self, slot: u16) {
        self.state.lock().unwrap().completed.push_back(slot);
    }
}

impl Backend for Recorder {
    fn capacity(&self) -> u64 {
        self.capacity.load(Ordering::Relaxed)
    }

    fn is_read_only(&self) -> bool {
        self.is_read_only
    }

    fn resize(&self, size: u64) -> io::Result<()> {
        if size < self.capacity() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        self.capacity.store(size, Ordering::Relaxed);
        Ok(())
    }

    fn engine(&self, _depth: u16) -> io::Result<Box<dyn Engine>> {
        let event = if self.is_asynchronous { Some(event::new()?) } else { None };
        Ok(Box::new(RecorderEngine { recorder: self.clone(), event }))
    }
}

struct RecorderEngine {
    recorder: Recorder,
    event: Option<EventFd>,
}

impl Engine for RecorderEngine {
    fn submit(&mut self, slot: u16, mut operation: Operation) {
        let call = describe(&mut operation);
        let mut state = self.recorder.state.lock().unwrap();
        state.calls.push(call);
        state.submitted.push_back(slot);
    }

    fn start(&mut self) -> io::Result<()> {
        self.recorder.state.lock().unwrap().starts += 1;
        Ok(())
    }

    fn complete(&mut self) -> Option<Completion> {
        if !self.recorder.is_asynchronous {
            self.recorder.complete(usize::MAX);
        }
        let slot = self.recorder.state.lock().unwrap().completed.pop_front()?;
        let result = if self.recorder.fails { Err(io::ErrorKind::Other.into()) } else { Ok(()) };
        Some(Completion { slot, result })
    }

    fn event(&self) -> Option<BorrowedFd<'_>> {
        self.event.as_ref().map(as_fd)
    }
}

/// An operation in words. A read is carried out: it gives bytes of 0xab.
pub(super) fn describe(operation: &mut Operation) -> String {
    match operation {
        Operation::Read { offset, segments } => {
            let length = segments.copy_from(&vec![0xab; segments.len()]);
            format!("read {offset} {length}")
        }
        Operation::Write { offset, segments } => format!("write {offset} {}", segments.len()),
        Operation::Flush => "flush".into(),
        Operation::Discard { offset, length } => format!("discard {offset} {length}"),
        Operation::WriteZeroes { offset, length, may_free } => format!("zero {offset} {length} {may_free}"),
    }
}
