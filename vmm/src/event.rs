//! Eventfds, as the rest of the system's interfaces take them.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// An eventfd that never blocks, and that no other program gets.
pub fn new() -> io::Result<EventFd> {
    EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)
}

/// The descriptor of an eventfd, which has no such method of its own.
pub fn as_fd(event: &EventFd) -> BorrowedFd<'_> {
    // SAFETY: `event` owns an open descriptor and is borrowed for as long as the result.
    unsafe { BorrowedFd::borrow_raw(event.as_raw_fd()) }
}
