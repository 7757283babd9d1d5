//! Threads for what an asynchronous engine does not do itself, because it waits: flushes, zeroing, parts of blocks, and
//! whatever needs a map that is not in memory.

use std::collections::VecDeque;
use std::io;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use vmm_sys_util::eventfd::EventFd;

use super::volume::Volume;
use crate::{Completion, Operation};

/// Threads for operations other than flushes.
const THREADS: usize = 2;

/// The threads of a volume. They end when nobody can give them anything more.
pub struct Workers {
    operations: Sender<Job>,
    /// A flush takes its time, and one is enough for all who wait.
    flushes: Sender<Job>,
}

struct Job {
    volume: Arc<Volume>,
    operation: Operation,
    slot: u16,
    mailbox: Arc<Mailbox>,
}

/// Where an engine finds what was done for it.
pub struct Mailbox {
    state: Mutex<Mail>,
    arrived: Condvar,
    bell: EventFd,
}

#[derive(Default)]
struct Mail {
    done: VecDeque<Completion>,
    /// What is not there yet.
    pending: usize,
}

impl Workers {
    pub fn start() -> io::Result<Self> {
        let spawn = |name: &str, run: Box<dyn FnOnce() + Send>| {
            std::thread::Builder::new().name(name.to_owned()).spawn(run).map(drop)
        };
        let (operations, receiver) = channel();
        let receiver = Arc::new(Mutex::new(receiver));
        for _ in 0..THREADS {
            let receiver = Arc::clone(&receiver);
            spawn("volume", Box::new(move || work(&receiver)))?;
        }
        let (flushes, receiver) = channel();
        spawn("volume flush", Box::new(move || flush(&receiver)))?;
        Ok(Self { operations, flushes })
    }

    /// Has an operation carried out. Its completion comes to the mailbox.
    pub fn submit(&self, volume: &Arc<Volume>, slot: u16, operation: Operation, mailbox: &Arc<Mailbox>) {
        let queue = if matches!(operation, Operation::Flush) { &self.flushes } else { &self.operations };
        mailbox.lock().pending += 1;
        let (volume, mailbox) = (Arc::clone(volume), Arc::clone(mailbox));
        if let Err(error) = queue.send(Job { volume, operation, slot, mailbox }) {
            error.0.end(Err(io::Error::other("the volume's threads are gone")));
        }
    }
}

fn work(jobs: &Mutex<Receiver<Job>>) {
    loop {
        let job = jobs.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(Job { volume, operation, slot, mailbox }) = job else { return };
        let result = volume.run(operation);
        drop(volume);
        mailbox.put(Completion { slot, result });
    }
}

fn flush(jobs: &Receiver<Job>) {
    while let Ok(first) = jobs.recv() {
        // All who have asked by now are served by one flush.
        let waiting: Vec<Job> = std::iter::once(first).chain(jobs.try_iter()).collect();
        let Some(volume) = waiting.first().map(|job| Arc::clone(&job.volume)) else { continue };
        let result = volume.run(Operation::Flush).map_err(|error| (error.kind(), error.to_string()));
        drop(volume);
        for job in waiting {
            job.end(result.clone().map_err(|(kind, message)| io::Error::new(kind, message)));
        }
    }
}

impl Job {
    fn end(self, result: io::Result<()>) {
        let Self { volume, operation, slot, mailbox } = self;
        // Whoever is told may close the volume.
        drop((volume, operation));
        mailbox.put(Completion { slot, result });
    }
}

impl Mailbox {
    /// Rings `bell` when something has come.
    pub fn new(bell: EventFd) -> Self {
        Self { state: Mutex::default(), arrived: Condvar::new(), bell }
    }

    fn lock(&self) -> MutexGuard<'_, Mail> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn put(&self, completion: Completion) {
        let mut state = self.lock();
        state.done.push_back(completion);
        state.pending -= 1;
        self.arrived.notify_all();
        drop(state);
        if let Err(error) = self.bell.write(1) {
            tracing::error!(%error, "nobody is told what was done for a volume");
        }
    }

    /// What has come.
    pub fn take(&self) -> Option<Completion> {
        self.lock().done.pop_front()
    }

    /// Waits until nothing more comes.
    pub fn wait(&self) {
        let mut state = self.lock();
        while state.pending > 0 {
            state = self.arrived.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}
