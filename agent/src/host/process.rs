//! Processes, held by descriptors.

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

use super::{AgentUsage, VmmUsage};
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use nix::sys::wait::{Id, WaitPidFlag, waitid};

/// The unit of times in `/proc`, on every machine that this runs on, in milliseconds.
const TICK_MS: u64 = 10;

/// The unit of memory in `statm`, in bytes.
const PAGE: u64 = 4096;

/// The least memory that a guest can have, in bytes.
const SMALLEST_GUEST: u64 = 4 << 20;

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
    Ok(times(pid)?.started)
}

/// A process's times, in ticks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Times {
    user: u64,
    system: u64,
    started: u64,
    guest: u64,
}

fn times(pid: u32) -> io::Result<Times> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    parse_times(&stat).ok_or_else(|| io::Error::other(format!("/proc/{pid}/stat cannot be understood")))
}

/// What a VMM's process takes.
pub fn usage(pid: u32) -> io::Result<VmmUsage> {
    let Times { user, system, started, guest } = times(pid)?;
    let memory = parse_memory(&std::fs::read_to_string(format!("/proc/{pid}/smaps"))?);
    let duration = |ticks: u64| Duration::from_millis(ticks.saturating_mul(TICK_MS));
    Ok(VmmUsage {
        name: format!("{pid}@{started}"),
        guest_time: duration(guest),
        // Not without the guest's: both grow, but the kernel finds them out in two ways, and their difference wavers.
        user_time: duration(user),
        system_time: duration(system),
        guest_memory: memory.guest,
        own_memory: memory.own,
    })
}

/// What this process takes.
pub fn own_usage() -> io::Result<AgentUsage> {
    let statm = std::fs::read_to_string("/proc/self/statm")?;
    let pages = statm.split_whitespace().nth(1).and_then(|pages| pages.parse::<u64>().ok());
    let pages = pages.ok_or_else(|| io::Error::other("/proc/self/statm cannot be understood"))?;
    // The one that looks is not counted.
    let descriptors = std::fs::read_dir("/proc/self/fd")?.count().saturating_sub(1) as u64;
    Ok(AgentUsage { resident: pages.saturating_mul(PAGE), descriptors })
}

/// Whether an error of [`open`] or [`start_time`] says that there is no such process. Any other is the agent's own
/// trouble, such as having no descriptors left, and says nothing of the process.
pub fn is_gone(error: &io::Error) -> bool {
    // A number can have become that of a thread, which cannot be held.
    matches!(error.raw_os_error(), Some(libc::ESRCH | libc::ENOENT | libc::EINVAL))
}

/// Fields 14, 15, 22 and 43 of `/proc/PID/stat`. The second field is a name, in parentheses, that may hold anything.
fn parse_times(stat: &str) -> Option<Times> {
    let (_, fields) = stat.rsplit_once(')')?;
    // The third comes first.
    let fields: Vec<&str> = fields.split_whitespace().collect();
    let field = |number: usize| fields.get(number - 3)?.parse().ok();
    Some(Times { user: field(14)?, system: field(15)?, started: field(22)?, guest: field(43)? })
}

/// What of a VMM's memory is the guest's, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Memory {
    guest: u64,
    own: u64,
}

/// Takes `/proc/PID/smaps` apart: a large anonymous mapping that can be written to is the guest's memory. A VMM itself
/// has none.
fn parse_memory(smaps: &str) -> Memory {
    let mut memory = Memory::default();
    let (mut may_be_guests, mut size) = (false, 0);
    for line in smaps.lines() {
        let mut words = line.split_whitespace();
        let (first, second) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let kilobytes = || second.parse::<u64>().unwrap_or(0).saturating_mul(1024);
        match first {
            "Size:" => size = kilobytes(),
            "Rss:" if may_be_guests && size >= SMALLEST_GUEST => memory.guest += kilobytes(),
            "Rss:" => memory.own += kilobytes(),
            // The mapping's head: addresses, permissions, offset, device, inode and what is mapped.
            _ if !first.ends_with(':') => may_be_guests = second == "rw-p" && words.nth(3).is_none(),
            _ => {}
        }
    }
    memory
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
        let rest: Vec<String> = (3..53).map(|field| field.to_string()).collect();
        let stat = format!("1 (a) b 7 (c) {}", rest.join(" "));
        let expected = Times { user: 14, system: 15, started: 22, guest: 43 };
        assert_eq!(parse_times(&stat), Some(expected));
        assert_eq!(parse_times("1 (a) S 1"), None);
        assert_eq!(parse_times(""), None);
    }

    #[test]
    fn large_anonymous_memory_is_the_guests() {
        let mapping = |head: &str, size: u64, resident: u64| {
            format!("{head}\nSize:   {size} kB\nKernelPageSize: 4 kB\nRss:  {resident} kB\nPss: 9 kB\n")
        };
        let smaps = [
            mapping("00400000-00a00000 r-xp 00001000 fe:00 1234    /usr/bin/innkeeper-vmm", 6144, 1000),
            mapping("7f0000000000-7f0008000000 rw-p 00000000 00:00 0 ", 131_072, 70_000),
            mapping("7f0010000000-7f0010021000 rw-p 00000000 00:00 0 ", 132, 100),
            mapping("7f0010021000-7f0014000000 ---p 00000000 00:00 0 ", 65_404, 0),
            mapping("7f0020000000-7f0020800000 rw-p 00000000 00:00 0       [heap]", 8192, 10),
            mapping("7f0030000000-7f0030800000 rw-s 00000000 00:0e 12 anon_inode:[io_uring]", 8192, 1),
        ];
        let memory = parse_memory(&smaps.concat());
        assert_eq!(memory, Memory { guest: 70_000 << 10, own: 1111 << 10 });
    }

    #[test]
    fn a_process_can_be_looked_at() {
        let own = own_usage().unwrap();
        assert!(own.resident > 1 << 20 && own.descriptors > 2, "{own:?}");
        let usage = usage(std::process::id()).unwrap();
        assert!(usage.own_memory > 1 << 20 && usage.name.contains('@'), "{usage:?}");
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
