//! The asynchronous engine: operations go to the kernel through an `io_uring(7)`, many with one system call.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Arc;

use io_uring::{IoUring, cqueue, opcode, squeue, types};
use nix::fcntl::FallocateFlags;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::raw::{self, Disk};
use crate::{Completion, Engine, Operation};

pub(crate) struct UringEngine {
    ring: IoUring,
    event: EventFd,
    disk: Arc<Disk>,
    /// What the kernel works on, by slot. It owns the buffers until the kernel is done with them.
    in_flight: Vec<Option<Operation>>,
    count: usize,
    /// What was over before it began.
    done: VecDeque<Completion>,
}

impl UringEngine {
    /// Fails where the kernel has no `io_uring`, or does not allow it.
    pub fn new(disk: Arc<Disk>, depth: u16) -> io::Result<Self> {
        let ring = IoUring::new(u32::from(depth.max(1)))?;
        let event = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
        ring.submitter().register_eventfd(event.as_raw_fd())?;
        let in_flight = (0..depth).map(|_| None).collect();
        Ok(Self { ring, event, disk, in_flight, count: 0, done: VecDeque::new() })
    }

    /// Hands the operation in `slot` to the kernel, or what is left of it.
    fn push(&mut self, slot: u16) -> io::Result<()> {
        let Some(Some(operation)) = self.in_flight.get(usize::from(slot)) else { return Ok(()) };
        let entry = entry(&self.disk, operation).user_data(slot.into());
        loop {
            // SAFETY: the file stays open as long as `disk`; the buffers and the list of them are owned by
            // `in_flight`, which gives them up only when the kernel has completed the operation.
            match unsafe { self.ring.submission().push(&entry) } {
                Ok(()) => return Ok(()),
                // The submission queue is full: the kernel takes what is there.
                Err(_) => self.ring.submit()?,
            };
        }
    }

    fn finish(&mut self, slot: u16, result: io::Result<()>) {
        if let Some(operation) = self.in_flight.get_mut(usize::from(slot))
            && operation.take().is_some()
        {
            self.count -= 1;
        }
        self.done.push_back(Completion { slot, result });
    }

    /// Deals with one answer of the kernel.
    fn take(&mut self, slot: u16, answer: i32) {
        let Some(Some(operation)) = self.in_flight.get_mut(usize::from(slot)) else { return };
        match progress(&self.disk, operation, answer) {
            Progress::Done(result) => self.finish(slot, result),
            Progress::Again => {
                if let Err(error) = self.push(slot) {
                    self.finish(slot, Err(error));
                }
            }
        }
    }

    fn reap(&mut self) {
        loop {
            // One at a time: what is taken may be pushed again.
            let answer: Option<cqueue::Entry> = self.ring.completion().next();
            let Some(answer) = answer else { return };
            // Slots are what we gave the kernel.
            self.take(answer.user_data() as u16, answer.result());
        }
    }
}

impl Engine for UringEngine {
    fn submit(&mut self, slot: u16, operation: Operation) {
        if let Err(error) = self.disk.check(&operation) {
            return self.done.push_back(Completion { slot, result: Err(error) });
        }
        match self.in_flight.get_mut(usize::from(slot)) {
            Some(free @ None) => *free = Some(operation),
            _ => {
                let error =
                    io::Error::new(io::ErrorKind::InvalidInput, "the slot is in use, or does not exist");
                return self.done.push_back(Completion { slot, result: Err(error) });
            }
        }
        self.count += 1;
        if let Err(error) = self.push(slot) {
            self.finish(slot, Err(error));
        }
    }

    fn start(&mut self) -> io::Result<()> {
        loop {
            match self.ring.submit() {
                Ok(_) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // The completion queue is full: what is there makes room.
                Err(error) if error.raw_os_error() == Some(libc::EBUSY) => self.reap(),
                Err(error) => return Err(error),
            }
        }
    }

    fn complete(&mut self) -> Option<Completion> {
        if self.done.is_empty() {
            self.reap();
            // What had to go on is set going at once. If that fails, the next `start` says so.
            if !self.ring.submission().is_empty() {
                let _ = self.ring.submit();
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
        while self.count > 0 {
            match self.ring.submit_and_wait(1) {
                Err(error) if error.kind() != io::ErrorKind::Interrupted => break,
                _ => self.reap(),
            }
        }
        if self.count > 0 {
            // The kernel may still write to these buffers: they must never be unmapped.
            tracing::error!(operations = self.count, "the kernel does not give operations back");
            std::mem::take(&mut self.in_flight).into_iter().for_each(std::mem::forget);
        }
    }
}

/// The operation as the kernel takes it.
fn entry(disk: &Disk, operation: &Operation) -> squeue::Entry {
    let file = types::Fd(disk.as_raw_fd());
    let fallocate = |flags: FallocateFlags, offset, length| {
        opcode::Fallocate::new(file, length).offset(offset).mode(flags.bits()).build()
    };
    match operation {
        Operation::Read { offset, segments } => {
            let (pieces, count) = raw::first_pieces(segments);
            opcode::Readv::new(file, pieces, count).offset(*offset).build()
        }
        Operation::Write { offset, segments } => {
            let (pieces, count) = raw::first_pieces(segments);
            opcode::Writev::new(file, pieces, count).offset(*offset).build()
        }
        Operation::Flush => opcode::Fsync::new(file).flags(types::FsyncFlags::DATASYNC).build(),
        Operation::Discard { offset, length } => fallocate(raw::DISCARD, *offset, *length),
        Operation::WriteZeroes { offset, length, may_free } => {
            fallocate(raw::zero_flags(*may_free), *offset, *length)
        }
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
            (_, Some(libc::EINTR | libc::EAGAIN)) => Progress::Again,
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
mod tests {
    use super::*;

    /// What the kernel is asked for is a sync of the file's data: IORING_OP_FSYNC with IORING_FSYNC_DATASYNC.
    #[test]
    fn a_flush_is_a_data_sync() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(512).unwrap();
        let disk = crate::RawFile::open(file.path(), false).unwrap().into_disk();
        let text = format!("{:?}", entry(&disk, &Operation::Flush));
        assert!(text.contains("op_code: 3"), "{text}");
    }
}
