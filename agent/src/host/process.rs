//! Processes, held by descriptors.

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};

use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use nix::sys::wait::{Id, WaitPidFlag, waitid};

/// How long the kernel may take to end a process that was killed, in milliseconds: one that waits for a disk ends
/// when that answers.
const PATIENCE_MS: u16 = 30_000;

/// Holds a process by its number.
pub fn open(pid: u32) -> io::Result<OwnedFd> {
    // SAFETY: takes numbers only, and returns a new descriptor or -1.
    let descriptor = unsafe { libc::syscall(libc::SYS_pidfd_open, pid as libc::pid_t, 0) };
    if descriptor < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made it for us.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor as RawFd) })
}

/// When a process was started, in ticks since boot: with its number, what no other process has.
pub fn start_time(pid: u32) -> io::Result<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    parse_start_time(&stat).ok_or_else(|| io::Error::other(format!("/proc/{pid}/stat cannot be understood")))
}

/// Whether an error of [`open`] or [`start_time`] says that there is no such process. Any other is the agent's own
/// trouble, such as having no descriptors left, and says nothing of the process.
pub fn is_gone(error: &io::Error) -> bool {
    // A number can have become that of a thread, which cannot be held.
    matches!(error.raw_os_error(), Some(libc::ESRCH | libc::ENOENT | libc::EINVAL))
}

/// Field 22 of `/proc/PID/stat`. The second field is a name, in parentheses, that may hold anything.
fn parse_start_time(stat: &str) -> Option<u64> {
    let (_, fields) = stat.rsplit_once(')')?;
    fields.split_whitespace().nth(19)?.parse().ok()
}

/// See [`super::kill`].
pub fn kill(pidfd: &OwnedFd) -> io::Result<()> {
    // SAFETY: takes a descriptor and numbers, and no information about the signal.
    let result = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            Signal::SIGKILL as libc::c_int,
            std::ptr::null::<libc::siginfo_t>(),
            0,
        )
    };
    if result < 0 {
        let error = io::Error::last_os_error();
        if error.raw_os_error() != Some(libc::ESRCH) {
            return Err(error);
        }
    }
    let mut source = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
    if poll(&mut source, PollTimeout::from(PATIENCE_MS))? == 0 {
        return Err(io::Error::new(io::ErrorKind::TimedOut, "the kernel does not end it"));
    }
    reap(pidfd);
    Ok(())
}

/// See [`super::reap`].
pub fn reap(pidfd: &OwnedFd) {
    // Not a child of ours, or still running: either is fine.
    let _ = waitid(Id::PIDFd(pidfd.as_fd()), WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_can_hold_anything() {
        let rest: Vec<String> = (3..30).map(|field| field.to_string()).collect();
        let stat = format!("1 (a) b 7 (c) {}", rest.join(" "));
        assert_eq!(parse_start_time(&stat), Some(22));
        assert_eq!(parse_start_time("1 (a) S 1"), None);
        assert_eq!(parse_start_time(""), None);
    }

    #[test]
    fn a_process_ends_and_leaves_no_zombie() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let pid = child.id();
        let pidfd = open(pid).unwrap();
        assert_eq!(start_time(pid).unwrap(), start_time(pid).unwrap());
        kill(&pidfd).unwrap();
        assert!(start_time(pid).is_err());
        kill(&pidfd).unwrap();
        // It was waited for already.
        assert!(child.wait().is_err());
    }
}
