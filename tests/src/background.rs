//! Threads that wait at descriptors until they are told to end.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::thread::JoinHandle;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};

/// A thread. It ends when this is dropped, which waits for that.
pub struct Background {
    end: End,
    thread: Option<JoinHandle<()>>,
}

/// Where a thread learns that it is to end.
#[derive(Clone)]
pub struct End(Arc<EventFd>);

impl Background {
    /// Starts a thread, which is to wait for nothing but by [`End::or_readable`].
    pub fn spawn(work: impl FnOnce(&End) + Send + 'static) -> io::Result<Self> {
        let end = End(Arc::new(EventFd::from_flags(EfdFlags::EFD_CLOEXEC)?));
        let theirs = end.clone();
        let thread = std::thread::Builder::new().spawn(move || work(&theirs))?;
        Ok(Self { end, thread: Some(thread) })
    }
}

impl End {
    /// Waits until one of these has something to be read, if only its end or an error. False: it is time to end.
    pub fn or_readable(&self, sources: &[BorrowedFd<'_>]) -> bool {
        let all = sources.iter().copied().chain([self.0.as_fd()]);
        let mut all: Vec<PollFd> = all.map(|source| PollFd::new(source, PollFlags::POLLIN)).collect();
        loop {
            match poll(&mut all, PollTimeout::NONE) {
                Err(nix::Error::EINTR) => {}
                Err(_) => return false,
                // Nobody reads the number of this one, so that all threads learn of it.
                Ok(_) => return all.last().is_some_and(|end| end.any() == Some(false)),
            }
        }
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        let _ = self.end.0.write(1);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
