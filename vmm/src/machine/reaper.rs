//! Letting go of what may take its time to end.
//!
//! A device is only gone when the last request that it has under way is done, and a disk may not answer for long.
//! The control thread waits for nobody: it hands over what is to go, and hears when it has gone.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::mpsc::{Receiver, Sender, channel};

use vmm_sys_util::eventfd::EventFd;

use crate::event::{self, as_fd};

/// Drops things elsewhere.
#[derive(Debug)]
pub struct Reaper<T> {
    sender: Sender<T>,
    receiver: Receiver<T>,
    event: EventFd,
}

impl<T: Send + 'static> Reaper<T> {
    /// One that has nothing to do.
    pub fn new() -> io::Result<Self> {
        let (sender, receiver) = channel();
        Ok(Self { sender, receiver, event: event::new()? })
    }

    /// Drops `what` in a thread of its own. When that is done, `name` is one of [`Reaper::done`]. Without a thread, it is
    /// dropped here.
    pub fn drop(&self, name: T, what: impl Send + 'static) -> io::Result<()> {
        self.run(move || {
            drop(what);
            name
        })
    }

    /// Does `work` in a thread of its own. When that is done, what it returns is one of [`Reaper::done`].
    pub fn run(&self, work: impl FnOnce() -> T + Send + 'static) -> io::Result<()> {
        // Of layered disks, pages are on the stack.
        const STACK_SIZE: usize = 256 << 10;
        let (sender, event) = (self.sender.clone(), self.event.try_clone()?);
        let work = move || {
            // Nobody listens any more only when the process ends.
            let _ = sender.send(work());
            let _ = event.write(1);
        };
        std::thread::Builder::new().name("reaper".into()).stack_size(STACK_SIZE).spawn(work)?;
        Ok(())
    }

    /// What has gone since the last call.
    pub fn done(&self) -> Vec<T> {
        let _ = self.event.read();
        self.receiver.try_iter().collect()
    }

    /// Becomes readable when something has gone.
    pub fn event(&self) -> BorrowedFd<'_> {
        as_fd(&self.event)
    }
}
