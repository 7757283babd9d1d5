//! Eventfds, as the rest of the system's interfaces take them.

use std::os::fd::{AsRawFd, BorrowedFd};

use vmm_sys_util::eventfd::EventFd;

/// The descriptor of an eventfd, which has no such method of its own.
pub fn as_fd(event: &EventFd) -> BorrowedFd<'_> {
    // SAFETY: `event` owns an open descriptor and is borrowed for as long as the result.
    unsafe { BorrowedFd::borrow_raw(event.as_raw_fd()) }
}
