//! A handler, called as its thread would call it.

use std::time::Instant;

use innkeeper_vmm::virtio::worker::{Handler, SOURCE_DEADLINE};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

use crate::guest::Guest;

/// A handler may be woken this often by what it was given before it has to be done with it.
const MOST_WAKE_UPS: usize = 4096;

/// A handler, and what wakes it. After an error there is none any more, as it is with a thread.
pub struct Device {
    handler: Option<Box<dyn Handler>>,
    epoll: Epoll,
}

impl Device {
    /// Takes the place of a thread.
    pub fn new(handler: impl Handler) -> Self {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).unwrap();
        for (fd, source) in handler.sources() {
            epoll.add(fd, EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLET, source)).unwrap();
        }
        Self { handler: Some(Box::new(handler)), epoll }
    }

    /// Whether it has given up on the driver.
    pub fn has_given_up(&self) -> bool {
        self.handler.is_none()
    }

    /// Calls the handler, whether something has happened at `source` or not.
    pub fn handle(&mut self, guest: &mut Guest, source: u64) {
        let Some(handler) = &mut self.handler else { return };
        guest.may_change();
        let result = handler.handle(source);
        guest.has_changed();
        guest.judge(&result);
        if result.is_err() {
            self.handler = None;
            guest.has_changed();
        }
    }

    /// Calls the handler for all that happens until nothing does.
    pub fn run(&mut self, guest: &mut Guest) {
        let mut events = [EpollEvent::empty(); 8];
        for _ in 0..MOST_WAKE_UPS {
            let Some(handler) = &self.handler else { return };
            let is_due = handler.deadline().is_some_and(|deadline| deadline <= Instant::now());
            let count = self.epoll.wait(&mut events, EpollTimeout::ZERO).unwrap_or(0);
            if count == 0 && !is_due {
                return;
            }
            for event in events.iter().take(count) {
                self.handle(guest, event.data());
            }
            if is_due {
                self.handle(guest, SOURCE_DEADLINE);
            }
        }
        assert!(guest.memory.is_blind(), "the device does not come to rest");
    }
}
