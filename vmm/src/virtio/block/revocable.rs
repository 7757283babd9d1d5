//! Taking away what a disk is on, while a driver still uses the disk.
//!
//! A driver whose device vanishes waits for ever for the requests that it has under way; one whose requests fail knows
//! what to do. So a disk that is taken by force stays on the bus and answers every request with an error, until the
//! guest lets go of it. What it was on is closed when the last operation that was begun is over.

use std::collections::VecDeque;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use innkeeper_block::{Backend, Completion, Engine, FileUse, Operation};

/// A backend that can be taken away.
pub(super) struct Revocable {
    is_read_only: bool,
    shared: Arc<Shared>,
}

struct Shared {
    is_revoked: AtomicBool,
    state: Mutex<State>,
    released: Condvar,
}

struct State {
    backend: Option<Arc<dyn Backend>>,
    /// The files that it was on when it was taken away: engines may still be at work on them.
    files: Vec<FileUse>,
    /// How many engines still have something of it.
    engines: usize,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_revoked(&self) -> bool {
        self.is_revoked.load(Ordering::Acquire)
    }
}

fn gone() -> io::Error {
    io::Error::new(io::ErrorKind::NotConnected, "the disk was taken away")
}

impl Revocable {
    /// Over `backend`, for the time being.
    pub fn new(backend: Arc<dyn Backend>) -> Self {
        let is_read_only = backend.is_read_only();
        let state = Mutex::new(State { backend: Some(backend), files: Vec::new(), engines: 0 });
        let shared = Shared { is_revoked: AtomicBool::new(false), state, released: Condvar::new() };
        Self { is_read_only, shared: Arc::new(shared) }
    }

    /// Takes the backend away: what is asked for from now on fails. Engines let go of it when they are next asked what
    /// is complete, and have nothing in flight. Whoever drops what is returned may have to wait for the disk.
    pub fn revoke(&self) -> Option<Arc<dyn Backend>> {
        self.shared.is_revoked.store(true, Ordering::Release);
        let mut state = self.shared.lock();
        let backend = state.backend.take();
        if let Some(backend) = &backend {
            state.files = backend.files();
        }
        backend
    }

    /// Waits until nobody has anything of a backend that was taken away.
    pub fn wait_until_released(&self) {
        let mut state = self.shared.lock();
        while state.engines > 0 {
            state = self.shared.released.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Backend for Revocable {
    fn capacity(&self) -> u64 {
        self.shared.lock().backend.as_ref().map_or(0, |backend| backend.capacity())
    }

    fn is_read_only(&self) -> bool {
        self.is_read_only
    }

    fn resize(&self, size: u64) -> io::Result<()> {
        let backend = self.shared.lock().backend.clone();
        backend.ok_or_else(gone)?.resize(size)
    }

    fn files(&self) -> Vec<FileUse> {
        let state = self.shared.lock();
        state.backend.as_ref().map_or_else(|| state.files.clone(), |backend| backend.files())
    }

    fn engine(&self, depth: u16) -> io::Result<Box<dyn Engine>> {
        let mut state = self.shared.lock();
        let inner = match &state.backend {
            Some(backend) => Some(backend.engine(depth)?),
            None => None,
        };
        state.engines += usize::from(inner.is_some());
        let shared = Arc::clone(&self.shared);
        Ok(Box::new(RevocableEngine { inner, in_flight: 0, refused: VecDeque::new(), shared }))
    }
}

struct RevocableEngine {
    /// None once it is taken away.
    inner: Option<Box<dyn Engine>>,
    in_flight: usize,
    /// Slots of operations that came too late.
    refused: VecDeque<u16>,
    shared: Arc<Shared>,
}

impl RevocableEngine {
    fn release(&mut self) {
        if self.inner.take().is_some() {
            self.shared.lock().engines -= 1;
            self.shared.released.notify_all();
        }
    }
}

impl Engine for RevocableEngine {
    fn submit(&mut self, slot: u16, operation: Operation) {
        match &mut self.inner {
            Some(inner) if !self.shared.is_revoked() => {
                self.in_flight += 1;
                inner.submit(slot, operation);
            }
            _ => self.refused.push_back(slot),
        }
    }

    fn start(&mut self) -> io::Result<()> {
        self.inner.as_mut().map_or(Ok(()), |inner| inner.start())
    }

    fn complete(&mut self) -> Option<Completion> {
        if let Some(slot) = self.refused.pop_front() {
            return Some(Completion { slot, result: Err(gone()) });
        }
        let completion = self.inner.as_mut()?.complete();
        self.in_flight = self.in_flight.saturating_sub(usize::from(completion.is_some()));
        if self.in_flight == 0 && self.shared.is_revoked() {
            self.release();
        }
        completion
    }

    fn event(&self) -> Option<BorrowedFd<'_>> {
        self.inner.as_ref()?.event()
    }
}

impl Drop for RevocableEngine {
    fn drop(&mut self) {
        self.release();
    }
}

#[cfg(test)]
mod tests {
    use super::super::recorder::Recorder;
    use super::*;

    #[test]
    fn what_is_under_way_is_finished_and_the_rest_refused() {
        let recorder = Recorder::new(64).asynchronous();
        let disk = Revocable::new(Arc::new(recorder.clone()));
        let mut engine = disk.engine(8).unwrap();
        engine.submit(1, Operation::Flush);
        drop(disk.revoke());
        engine.submit(2, Operation::Flush);
        engine.start().unwrap();
        let refused = engine.complete().unwrap();
        assert_eq!((refused.slot, refused.result.is_err()), (2, true));
        assert!(engine.complete().is_none());
        assert!(engine.event().is_some(), "it still waits for the first one");
        recorder.complete(1);
        let finished = engine.complete().unwrap();
        assert_eq!((finished.slot, finished.result.is_ok()), (1, true));
        assert!(engine.event().is_none());
        disk.wait_until_released();
        engine.submit(3, Operation::Flush);
        assert_eq!(engine.complete().unwrap().slot, 3);
        assert!(engine.complete().is_none());
        assert_eq!(disk.capacity(), 0);
        assert!(disk.resize(512).is_err());
        // A driver that begins anew finds the same.
        let mut late = disk.engine(8).unwrap();
        late.submit(1, Operation::Flush);
        assert!(late.complete().unwrap().result.is_err());
    }

    #[test]
    fn it_is_released_by_idle_engines_and_by_those_that_end() {
        let recorder = Recorder::new(64).asynchronous();
        let backend: Arc<dyn Backend> = Arc::new(recorder);
        let disk = Revocable::new(Arc::clone(&backend));
        let (mut idle, dropped) = (disk.engine(8).unwrap(), disk.engine(8).unwrap());
        drop(disk.revoke());
        assert_eq!(Arc::strong_count(&backend), 1);
        assert!(idle.complete().is_none());
        drop(dropped);
        disk.wait_until_released();
    }
}
