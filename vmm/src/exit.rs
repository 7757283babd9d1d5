//! How a machine ends, and the one place where CPUs and devices say so.

use std::io;
use std::sync::{Mutex, PoisonError};

use innkeeper_protocol::ResetCause;
use vmm_sys_util::eventfd::EventFd;

use crate::event;

/// Why a machine stopped running.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Exit {
    /// The guest switched itself off.
    PowerOff,
    /// The guest is to start anew.
    Reset(ResetCause),
    /// The machine cannot go on; the text says why.
    Failure(String),
}

/// Carries the first [`Exit`] from the CPU threads to the supervisor.
#[derive(Debug)]
pub struct ExitSignal {
    exit: Mutex<Option<Exit>>,
    event: EventFd,
}

impl ExitSignal {
    /// A signal that nobody has set yet.
    pub fn new() -> io::Result<Self> {
        Ok(Self { exit: Mutex::new(None), event: event::new()? })
    }

    /// Ends the machine. Only the first call counts.
    pub fn set(&self, exit: Exit) {
        let mut slot = self.exit.lock().unwrap_or_else(PoisonError::into_inner);
        if slot.is_none() {
            *slot = Some(exit);
            // Adding 1 to a counter that is never read cannot overflow it.
            let _ = self.event.write(1);
        }
    }

    /// What was set, if anything was.
    pub fn get(&self) -> Option<Exit> {
        self.exit.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Becomes readable, for good, once the signal is set.
    pub fn event(&self) -> &EventFd {
        &self.event
    }
}
