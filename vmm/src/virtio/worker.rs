//! The thread of a device: it sleeps until something happens, and wakes for nothing else.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::thread::JoinHandle;

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use vmm_sys_util::eventfd::EventFd;

use super::Notifier;
use super::queue::QueueError;
use crate::event::{self, as_fd};

/// A worker needs little: its requests' buffers are in guest memory.
const STACK_SIZE: usize = 256 << 10;
const STOP: u64 = u64::MAX;

/// What a device does when something happens.
pub(super) trait Handler: Send + 'static {
    /// The descriptors to wait for, with the numbers that [`Handler::handle`] is to get for them. They are
    /// watched edge by edge: after a wake-up, a handler is to work until there is nothing left to do.
    fn sources(&self) -> Vec<(BorrowedFd<'_>, u64)>;

    /// Something happened at source `source`. An error ends the worker: the device needs a reset.
    fn handle(&mut self, source: u64) -> Result<(), QueueError>;
}

/// A device's thread. Dropping it stops the thread and waits for it.
#[derive(Debug)]
pub(super) struct Worker {
    stop: EventFd,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    pub fn spawn(name: &str, notifier: Arc<Notifier>, mut handler: impl Handler) -> io::Result<Self> {
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

impl Drop for Worker {
    fn drop(&mut self) {
        // The counter starts at 0 and nobody else writes: it cannot overflow.
        let _ = self.stop.write(1);
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
        let count = match epoll.wait(&mut events, EpollTimeout::NONE) {
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
    }
}
