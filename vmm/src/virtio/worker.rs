//! The threads of a device: they sleep until something happens, and wake for nothing else.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use vmm_sys_util::eventfd::EventFd;

use super::Notifier;
use super::queue::QueueError;
use crate::event::{self, as_fd};

/// A worker needs little: its requests' buffers are in guest memory.
const STACK_SIZE: usize = 256 << 10;
const STOP: u64 = u64::MAX;
/// The source of a [`Handler::handle`] that was waiting for a time.
pub const SOURCE_DEADLINE: u64 = u64::MAX - 1;

/// What a device does when something happens.
pub trait Handler: Send + 'static {
    /// The descriptors to wait for, with the numbers that [`Handler::handle`] is to get for them. They are
    /// watched edge by edge: after a wake-up, a handler is to work until there is nothing left to do.
    fn sources(&self) -> Vec<(BorrowedFd<'_>, u64)>;

    /// Something happened at source `source`. An error ends the worker: the device needs a reset.
    fn handle(&mut self, source: u64) -> Result<(), QueueError>;

    /// When to be called with [`SOURCE_DEADLINE`], whatever happens or not. Asked after every call.
    fn deadline(&self) -> Option<Instant> {
        None
    }
}

/// The threads of a device. Dropping it stops them, and waits for them.
#[derive(Debug, Default)]
pub(super) struct Workers(Vec<Worker>);

impl Workers {
    /// Starts another thread. `name` is at most 15 bytes long.
    pub fn spawn(&mut self, name: &str, notifier: Arc<Notifier>, handler: impl Handler) -> io::Result<()> {
        self.0.push(Worker::spawn(name, notifier, handler)?);
        Ok(())
    }

    /// Stops all threads; returns when the last one has ended.
    pub fn stop(&mut self) {
        // All are told before the first is waited for.
        self.0.iter().for_each(Worker::stop);
        self.0.clear();
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.stop();
    }
}

#[derive(Debug)]
struct Worker {
    stop: EventFd,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    fn spawn(name: &str, notifier: Arc<Notifier>, mut handler: impl Handler) -> io::Result<Self> {
        let stop = event::new()?;
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        epoll.add(as_fd(&stop), edge(STOP))?;
        for (fd, source) in handler.sources() {
            epoll.add(fd, edge(source))?;
        }
        let thread =
            std::thread::Builder::new().name(name.into()).stack_size(STACK_SIZE).spawn(move || {
                if let Err(error) = serve(&epoll, &mut handler) {
                    notifier.fail(&error);
                }
            })?;
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Worker {
    fn stop(&self) {
        // Cannot fail before the counter overflows, and somebody has told it already then.
        let _ = self.stop.write(1);
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.stop();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("a device thread panicked");
        }
    }
}

fn edge(source: u64) -> EpollEvent {
    EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLET, source)
}

/// How long to sleep, rounded up to the milliseconds that the system counts in.
fn timeout(deadline: Option<Instant>) -> EpollTimeout {
    let Some(deadline) = deadline else {
        return EpollTimeout::NONE;
    };
    let rest = deadline.saturating_duration_since(Instant::now());
    let rounded = if rest.is_zero() { rest } else { rest + Duration::from_micros(999) };
    EpollTimeout::try_from(rounded).unwrap_or(EpollTimeout::MAX)
}

#[derive(Debug, thiserror::Error)]
enum ServeError {
    #[error(transparent)]
    Queue(#[from] QueueError),
    #[error("waiting for events failed")]
    Wait(#[source] nix::Error),
}

fn serve(epoll: &Epoll, handler: &mut impl Handler) -> Result<(), ServeError> {
    let mut events = [EpollEvent::empty(); 8];
    loop {
        let deadline = handler.deadline();
        let count = match epoll.wait(&mut events, timeout(deadline)) {
            Ok(count) => count,
            Err(nix::Error::EINTR) => continue,
            Err(error) => return Err(ServeError::Wait(error)),
        };
        for event in events.iter().take(count) {
            match event.data() {
                STOP => return Ok(()),
                source => handler.handle(source)?,
            }
        }
        // Also when there was something else: a busy source must not make the time stand still.
        if deadline.is_some_and(|deadline| deadline <= Instant::now()) {
            handler.handle(SOURCE_DEADLINE)?;
        }
    }
}
