//! The asynchronous engine: operations go to the kernel through an `io_uring(7)`, many with one system call.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};
use std::time::{Duration, Instant};

use io_uring::{IoUring, opcode, squeue, types};
use nix::fcntl::FallocateFlags;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::raw::{self, Disk, EndedSync};
use crate::{Completion, Engine, Operation, Segments};

/// The number of a ring's own file among those that are registered with it.
const OWN_FILE: types::Fd = types::Fd(0);

/// Bytes of a write that this thread has the time for.
const SMALL_WRITE: usize = 1 << 20;
/// A write to the page cache that takes longer had to wait for something, and not only for a CPU.
const SLOW_WRITE: Duration = Duration::from_millis(8);
/// The kernel's threads write for this many times as long as the write took that was slow.
const SLOW_FACTOR: u32 = 10;

pub(crate) struct UringEngine {
    ring: IoUring,
    event: EventFd,
    /// What operations are about that do not say otherwise.
    disk: Option<Arc<Disk>>,
    /// What the kernel works on, by slot. It owns the buffers until the kernel is done with them.
    in_flight: Vec<Option<Work>>,
    count: usize,
    /// What is over, and was not asked for yet.
    done: VecDeque<Completion>,
    /// Flushes that are over, and cannot be believed before others are, by slot.
    held: Vec<(u16, Arc<Disk>, EndedSync)>,
    /// What the kernel has done a part of, for as long as its answers are being read.
    unfinished: Vec<u16>,
    /// The ring waits for its thread, which is the one that submits first.
    is_disabled: bool,
    /// Until when the kernel writes on its own.
    slow_until: Option<Instant>,
    /// The kernel rings `event` when an operation has completed.
    is_armed: bool,
}

/// An operation, and the disk that it is about if that is not the engine's own.
struct Work {
    disk: Option<Arc<Disk>>,
    operation: Operation,
    /// The number of a flush that is under way: see [`Disk::begin_sync`].
    sync: Option<u64>,
}

impl UringEngine {
    /// For operations on `disk`, or on any that they come with.
    ///
    /// Fails where the kernel has no `io_uring`, has too old a one, or does not allow it.
    pub fn new(disk: Option<Arc<Disk>>, depth: u16) -> io::Result<Self> {
        let (ring, is_disabled) = ring(depth.max(1))?;
        // The first feature that is newer (5.12) than the switch for the event (5.8).
        if !ring.params().is_feature_native_workers() {
            return Err(io::Error::new(io::ErrorKind::Unsupported, "the kernel's io_uring is too old"));
        }
        let event = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
        ring.submitter().register_eventfd(event.as_raw_fd())?;
        // Otherwise the file's reference count would go up and down with each operation, for all queues.
        if let Some(disk) = &disk {
            ring.submitter().register_files(&[disk.as_raw_fd()])?;
        }
        let in_flight = (0..depth).map(|_| None).collect();
        let done = VecDeque::with_capacity(usize::from(depth));
        Ok(Self {
            ring,
            event,
            disk,
            in_flight,
            count: 0,
            done,
            held: Vec::new(),
            unfinished: Vec::new(),
            is_disabled,
            slow_until: None,
            is_armed: true,
        })
    }

    /// The same, but the kernel does all writes.
    #[cfg(test)]
    pub fn with_patience(mut self) -> Self {
        self.slow_until = Some(Instant::now() + SLOW_WRITE * 100_000);
        self
    }

    /// Hands the operation in `slot` to the kernel, or what is left of it.
    fn push(&mut self, slot: u16) -> io::Result<()> {
        let Some(Some(Work { disk, operation, .. })) = self.in_flight.get(usize::from(slot)) else {
            return Ok(());
        };
        let entry = match disk {
            None => entry(OWN_FILE, operation).flags(squeue::Flags::FIXED_FILE),
            Some(disk) => entry(types::Fd(disk.as_raw_fd()), operation),
        };
        let entry = entry.user_data(slot.into());
        loop {
            // SAFETY: the file stays open as long as `disk`, the engine's or the operation's; the buffers and the list of them are owned by
            // `in_flight`, which gives them up only when the kernel has completed the operation.
            match unsafe { self.ring.submission().push(&entry) } {
                Ok(()) => return Ok(()),
                // The submission queue is full: the kernel takes what is there.
                Err(_) => self.ring.submit()?,
            };
        }
    }

    fn finish(&mut self, slot: u16, result: io::Result<()>) {
        if let Some(work) = self.in_flight.get_mut(usize::from(slot)).and_then(Option::take) {
            self.count -= 1;
            if let (Some(disk), Some(sync)) = (work.disk.as_ref().or(self.disk.as_ref()), work.sync) {
                // The kernel was not asked, and has told nobody of anything.
                disk.end_sync(sync, Ok(()));
            }
        }
        self.done.push_back(Completion { slot, result });
    }

    /// Deals with all answers that the kernel has given.
    fn take_answers(&mut self) {
        let Self { ring, disk, in_flight, count, done, held, unfinished, .. } = self;
        for answer in ring.completion() {
            // Slots are what we gave the kernel.
            let slot = answer.user_data() as u16;
            let Some(place) = in_flight.get_mut(usize::from(slot)) else { continue };
            let Some(Work { disk: other, operation, sync }) = place else { continue };
            let Some(disk) = other.as_ref().or(disk.as_ref()) else { continue };
            match progress(disk, operation, answer.result()) {
                Progress::Done(result) => {
                    match sync {
                        Some(sync) => held.push((slot, Arc::clone(disk), disk.end_sync(*sync, result))),
                        None => done.push_back(Completion { slot, result }),
                    }
                    *place = None;
                    *count -= 1;
                }
                Progress::Again => unfinished.push(slot),
            }
        }
        while let Some(slot) = self.unfinished.pop() {
            if let Err(error) = self.push(slot) {
                self.finish(slot, Err(error));
            }
        }
        let Self { held, done, event, .. } = self;
        held.retain_mut(|(slot, disk, sync)| match disk.sync_result(sync, event) {
            Some(result) => {
                done.push_back(Completion { slot: *slot, result });
                false
            }
            None => true,
        });
    }

    /// Whether the kernel has to be entered: there is something to submit, or it has put off completing something until
    /// we come.
    fn needs_kernel(&mut self) -> bool {
        let submission = self.ring.submission();
        !submission.is_empty() || submission.taskrun()
    }

    /// Finds what was completed. False if the kernel does not take what has to go on.
    fn reap(&mut self) -> bool {
        loop {
            let is_stuck = self.needs_kernel() && self.start().is_err();
            self.take_answers();
            if is_stuck || !self.needs_kernel() {
                return !is_stuck;
            }
        }
    }

    /// Has the kernel tell of what completes from now on, or not.
    fn arm(&mut self, is_armed: bool) {
        if is_armed == self.is_armed {
            return;
        }
        self.is_armed = is_armed;
        let completion = self.ring.completion();
        if is_armed {
            completion.enable_eventfd()
        } else {
            completion.disable_eventfd()
        }
        // Whoever looks at the queue after this sees what was completed without a ring.
        fence(Ordering::SeqCst);
    }
}

/// Carries out a write in this thread if that is only copying. Most file systems cannot tell `io_uring` that a write to
/// the page cache need not wait; so it has a thread of the kernel do each, one after the other, and that takes longer
/// than the copying.
///
/// The page cache does make writers wait when too much of it is dirty. Then nothing else should wait with them, and it
/// is the kernel's threads that write for a while: until `slow_until`.
fn write_at_once(
    disk: &Disk,
    operation: &mut Operation,
    slow_until: &mut Option<Instant>,
) -> Option<io::Result<()>> {
    match operation {
        Operation::Write { segments, .. } if disk.is_cached() && segments.len() <= SMALL_WRITE => {}
        _ => return None,
    }
    let start = Instant::now();
    if slow_until.is_some_and(|until| start < until) {
        return None;
    }
    let result = disk.run(operation);
    let time = start.elapsed();
    *slow_until = (time > SLOW_WRITE).then(|| start + time.saturating_mul(SLOW_FACTOR));
    Some(result)
}

/// A ring with what this kernel has to make it fast. True if it is disabled at first.
fn ring(depth: u16) -> io::Result<(IoUring, bool)> {
    let depth = u32::from(depth);
    // Completing is put off until this thread comes for it, and nothing interrupts it (6.1). The thread is the one
    // that enables the ring.
    let deferred = IoUring::builder()
        .setup_r_disabled()
        .setup_single_issuer()
        .setup_defer_taskrun()
        .setup_taskrun_flag()
        .build(depth);
    match deferred {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok((IoUring::new(depth)?, false)),
        result => Ok((result?, true)),
    }
}

impl UringEngine {
    /// Takes an operation on another disk over: see [`Engine::submit`].
    pub fn submit_to(&mut self, slot: u16, disk: Arc<Disk>, operation: Operation) {
        self.take_over(slot, Work { disk: Some(disk), operation, sync: None });
    }

    fn take_over(&mut self, slot: u16, mut work: Work) {
        if let Some(result) = self.begin(slot, &mut work) {
            return self.done.push_back(Completion { slot, result });
        }
        if let Some(place) = self.in_flight.get_mut(usize::from(slot)) {
            *place = Some(work);
            self.count += 1;
        }
        if let Err(error) = self.push(slot) {
            self.finish(slot, Err(error));
        }
    }

    /// Does what can be done without the kernel's help: if that is all, it returns how it went.
    fn begin(&mut self, slot: u16, work: &mut Work) -> Option<io::Result<()>> {
        let invalid = |message| Some(Err(io::Error::new(io::ErrorKind::InvalidInput, message)));
        let Some(disk) = work.disk.as_ref().or(self.disk.as_ref()) else {
            return invalid("the operation is about no disk");
        };
        if let Err(error) = disk.check(&work.operation) {
            return Some(Err(error));
        }
        if !matches!(self.in_flight.get(usize::from(slot)), Some(None)) {
            return invalid("the slot is in use, or does not exist");
        }
        work.sync = matches!(work.operation, Operation::Flush).then(|| disk.begin_sync());
        write_at_once(disk, &mut work.operation, &mut self.slow_until)
    }

    /// What rings when something has completed; others may ring it too.
    pub fn bell(&self) -> io::Result<EventFd> {
        self.event.try_clone()
    }

    /// Waits until something completes. False if nothing is in flight, or the kernel does not tell.
    pub fn wait(&mut self) -> bool {
        if self.count == 0 {
            return false;
        }
        match self.start().and_then(|()| self.ring.submit_and_wait(1)) {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => return false,
            _ => self.take_answers(),
        }
        true
    }
}

impl Engine for UringEngine {
    fn submit(&mut self, slot: u16, operation: Operation) {
        self.take_over(slot, Work { disk: None, operation, sync: None });
    }

    fn start(&mut self) -> io::Result<()> {
        if self.is_disabled {
            self.ring.submitter().register_enable_rings()?;
            self.is_disabled = false;
        }
        while self.needs_kernel() {
            // Whoever comes by asks for completions before it sleeps, and much is completed by then.
            self.arm(false);
            match self.ring.submit() {
                Ok(_) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // The completion queue is full: what is there makes room.
                Err(error) if error.raw_os_error() == Some(libc::EBUSY) => self.take_answers(),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn complete(&mut self) -> Option<Completion> {
        while self.done.is_empty() {
            let is_going = self.reap();
            if self.is_armed || !self.done.is_empty() {
                break;
            }
            // Once more, for what came in between.
            self.arm(true);
            if !is_going {
                // The next `start` says why.
                break;
            }
        }
        self.done.pop_front()
    }

    fn event(&self) -> Option<BorrowedFd<'_>> {
        // SAFETY: `event` owns an open descriptor and is borrowed for as long as the result.
        Some(unsafe { BorrowedFd::borrow_raw(self.event.as_raw_fd()) })
    }
}

impl Drop for UringEngine {
    fn drop(&mut self) {
        while self.wait() {}
        if self.count > 0 {
            // The kernel may still write to these buffers: they must never be unmapped.
            tracing::error!(operations = self.count, "the kernel does not give operations back");
            for work in std::mem::take(&mut self.in_flight) {
                if let Some(Work { disk, sync: Some(sync), .. }) = &work
                    && let Some(disk) = disk.as_ref().or(self.disk.as_ref())
                {
                    disk.end_sync(*sync, Err(io::Error::other("the kernel does not end it")));
                }
                std::mem::forget(work);
            }
        }
        // Closing a ring takes its time, in which nobody else could lock the file.
        if self.disk.is_some()
            && let Err(error) = self.ring.submitter().unregister_files()
        {
            tracing::debug!(%error, "the file is let go of when the ring is");
        }
    }
}

/// The operation as the kernel takes it.
fn entry(file: types::Fd, operation: &Operation) -> squeue::Entry {
    let fallocate = |flags: FallocateFlags, offset, length| {
        opcode::Fallocate::new(file, length).offset(offset).mode(flags.bits()).build()
    };
    match operation {
        Operation::Read { offset, segments } => match single_piece(segments) {
            Some((address, length)) => opcode::Read::new(file, address, length).offset(*offset).build(),
            None => {
                let (pieces, count) = raw::first_pieces(segments);
                opcode::Readv::new(file, pieces, count).offset(*offset).build()
            }
        },
        Operation::Write { offset, segments } => match single_piece(segments) {
            Some((address, length)) => opcode::Write::new(file, address, length).offset(*offset).build(),
            None => {
                let (pieces, count) = raw::first_pieces(segments);
                opcode::Writev::new(file, pieces, count).offset(*offset).build()
            }
        },
        Operation::Flush => opcode::Fsync::new(file).flags(types::FsyncFlags::DATASYNC).build(),
        Operation::Discard { offset, length } => fallocate(raw::DISCARD, *offset, *length),
        Operation::WriteZeroes { offset, length, may_free } => {
            fallocate(raw::zero_flags(*may_free), *offset, *length)
        }
    }
}

/// The only piece, which spares the kernel reading a list; none if there is another number of them.
fn single_piece(segments: &Segments) -> Option<(*mut u8, u32)> {
    match segments.as_iovecs() {
        &[libc::iovec { iov_base, iov_len }] => Some((iov_base.cast(), u32::try_from(iov_len).ok()?)),
        _ => None,
    }
}

enum Progress {
    Done(io::Result<()>),
    Again,
}

/// What the kernel's answer to an operation means.
fn progress(disk: &Disk, operation: &mut Operation, answer: i32) -> Progress {
    let Ok(count) = usize::try_from(answer) else {
        let error = io::Error::from_raw_os_error(answer.saturating_neg());
        return match (&*operation, error.raw_os_error()) {
            (_, Some(libc::EINTR)) => Progress::Again,
            // It would have to wait, and it will not.
            (Operation::Flush, Some(libc::EAGAIN)) => Progress::Done(disk.sync_file()),
            (_, Some(libc::EAGAIN)) => Progress::Done(disk.run(operation)),
            // The medium cannot: then as the synchronous engine does it.
            (Operation::Discard { .. } | Operation::WriteZeroes { .. }, _) if raw::is_unsupported(&error) => {
                Progress::Done(disk.run(operation))
            }
            _ => Progress::Done(Err(error)),
        };
    };
    match operation {
        Operation::Read { offset, segments } | Operation::Write { offset, segments } => {
            if count == 0 && !segments.is_empty() {
                return Progress::Done(Err(raw::too_short()));
            }
            segments.advance(count);
            *offset += count as u64;
            if segments.is_empty() { Progress::Done(Ok(())) } else { Progress::Again }
        }
        _ => Progress::Done(Ok(())),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::io::Write;

    use super::*;
    use crate::EngineKind;

    /// Whether the kernel has what the asynchronous engines need. If not, that is said where nobody keeps it back, as what a
    /// test prints is that succeeds: a part of the test is left out then.
    pub fn is_there() -> bool {
        let Err(error) = UringEngine::new(None, 1) else { return true };
        let test = std::thread::current().name().unwrap_or("a test").to_owned();
        let _ = writeln!(io::stderr(), "SKIPPED the io_uring half of {test}: {error}");
        false
    }

    /// Each kind of engine that there is, by its name: none is tested in the place of another.
    pub fn kinds() -> Vec<EngineKind> {
        let uring = is_there().then_some(EngineKind::IoUring);
        [EngineKind::Synchronous].into_iter().chain(uring).collect()
    }

    /// What the kernel is asked for is a sync of the file's data: IORING_OP_FSYNC with IORING_FSYNC_DATASYNC.
    #[test]
    fn a_flush_is_a_data_sync() {
        let text = format!("{:?}", entry(OWN_FILE, &Operation::Flush));
        assert!(text.contains("op_code: 3"), "{text}");
    }
}
