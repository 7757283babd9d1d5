//! The asynchronous engine: whole blocks go to the layers' files through an `io_uring(7)`, and what has to wait for
//! something to threads of the volume.
//!
//! An operation that is planned from what is in memory becomes parts, one for each run of blocks in one layer. A write is
//! one part, to the top, and its blocks are said to be there when it is complete. Everything else is rare, or waits for
//! the disk anyway, and is done as the synchronous engine does it, in another thread.

use std::collections::VecDeque;
use std::io;
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use super::format::State;
use super::in_flight::Hold;
use super::plan::{self, Extent};
use super::stack::{OpenLayer, Promise};
use super::volume::Volume;
use super::workers::{Mailbox, Workers};
use crate::raw::Disk;
use crate::uring::UringEngine;
use crate::{Completion, Engine, Operation, Segments};

pub struct LayeredEngine {
    volume: Arc<Volume>,
    ring: UringEngine,
    /// What is under way, by slot.
    requests: Vec<Option<Request>>,
    /// Which request a part belongs to, by the part's place in the ring.
    parts: Vec<u16>,
    /// Places in the ring that no part has.
    free: Vec<u16>,
    /// Parts without a place: what they are about, and the request's slot.
    waiting: VecDeque<(u16, Arc<Disk>, Operation)>,
    done: VecDeque<Completion>,
    workers: Arc<Workers>,
    mailbox: Arc<Mailbox>,
    extents: Vec<Extent>,
}

struct Request {
    /// Parts that are not over.
    parts: usize,
    /// The first error.
    result: io::Result<()>,
    gain: Option<Gain>,
}

/// What a write adds to the map.
struct Gain {
    top: Arc<OpenLayer>,
    blocks: Vec<Range<u64>>,
    // Given back in this order.
    _promise: Option<Promise>,
    _hold: Hold,
}

impl LayeredEngine {
    /// Fails where there is no `io_uring`, or no thread.
    pub fn new(volume: Arc<Volume>, workers: Arc<Workers>, depth: u16) -> io::Result<Self> {
        let ring = UringEngine::new(None, depth)?;
        let mailbox = Arc::new(Mailbox::new(ring.bell()?));
        Ok(Self {
            volume,
            ring,
            requests: (0..depth).map(|_| None).collect(),
            parts: vec![0; depth.into()],
            free: (0..depth).collect(),
            waiting: VecDeque::new(),
            done: VecDeque::with_capacity(depth.into()),
            workers,
            mailbox,
            extents: Vec::new(),
        })
    }

    /// Plans a read and sets its parts going, if all that is needed for that is in memory. Else gives it back.
    fn read(&mut self, slot: u16, offset: u64, mut segments: Segments) -> Result<(), Segments> {
        let bytes = offset..offset + segments.len() as u64;
        let stack = self.volume.stack();
        let Some(view) = stack.view_in_memory(&plan::blocks(&bytes)) else { return Err(segments) };
        let mut extents = std::mem::take(&mut self.extents);
        extents.clear();
        plan::read(&bytes, |block| view.source(block), &mut extents);
        self.begin(slot, None);
        for Extent { offset, length, source } in extents.drain(..) {
            let segments = segments.take_front(usize::try_from(length).unwrap_or(usize::MAX));
            match stack.data(source).map(|data| data.map(|data| data.disk())) {
                Ok(None) => segments.fill_with_zeroes(),
                Ok(Some(Some(disk))) => {
                    self.add_part(slot, Arc::clone(disk), Operation::Read { offset, segments });
                }
                Ok(Some(None)) => self.fail(slot, io::Error::other("the layer is not a file")),
                Err(error) => self.fail(slot, error),
            }
        }
        self.extents = extents;
        self.end_part(slot, Ok(()));
        Ok(())
    }

    /// The same for a write, which also must consist of blocks that are whole or in the top already, and that nobody else
    /// changes.
    fn write(&mut self, slot: u16, offset: u64, segments: Segments) -> Result<(), Segments> {
        let bytes = offset..offset + segments.len() as u64;
        let blocks = plan::blocks(&bytes);
        if blocks.is_empty() {
            return Err(segments);
        }
        let Some(hold) = self.volume.in_flight.try_hold(blocks.clone()) else { return Err(segments) };
        let stack = self.volume.stack();
        let Some(top) = &stack.top else { return Err(segments) };
        let (Some(view), Some(disk)) = (stack.view_in_memory(&blocks), top.data.disk()) else {
            return Err(segments);
        };
        let plan = plan::write(&bytes, |block| view.source(block));
        if plan.head.is_some() || plan.tail.is_some() {
            return Err(segments);
        }
        let promise = if plan.gained.is_empty() {
            None
        } else {
            match stack.promise(&blocks) {
                None => return Err(segments),
                some => some,
            }
        };
        let (top, blocks) = (Arc::clone(top), plan.gained);
        self.begin(slot, Some(Gain { top, blocks, _promise: promise, _hold: hold }));
        self.add_part(slot, Arc::clone(disk), Operation::Write { offset, segments });
        self.end_part(slot, Ok(()));
        Ok(())
    }

    /// Notes a request. It has a part more than those that are added, until `end_part`.
    fn begin(&mut self, slot: u16, gain: Option<Gain>) {
        if let Some(place) = self.requests.get_mut(usize::from(slot)) {
            *place = Some(Request { parts: 1, result: Ok(()), gain });
        }
    }

    fn add_part(&mut self, slot: u16, disk: Arc<Disk>, operation: Operation) {
        if let Some(Some(request)) = self.requests.get_mut(usize::from(slot)) {
            request.parts += 1;
            match self.free.pop() {
                Some(place) => self.place(place, slot, disk, operation),
                None => self.waiting.push_back((slot, disk, operation)),
            }
        }
    }

    /// Gives a part to the ring.
    fn place(&mut self, place: u16, slot: u16, disk: Arc<Disk>, operation: Operation) {
        if let Some(part) = self.parts.get_mut(usize::from(place)) {
            *part = slot;
        }
        self.ring.submit_to(place, disk, operation);
    }

    fn fail(&mut self, slot: u16, error: io::Error) {
        if let Some(Some(request)) = self.requests.get_mut(usize::from(slot))
            && request.result.is_ok()
        {
            request.result = Err(error);
        }
    }

    /// Notes that a part of a request is over, and with the last one the request.
    fn end_part(&mut self, slot: u16, result: io::Result<()>) {
        if let Err(error) = result {
            self.fail(slot, error);
        }
        let Some(place) = self.requests.get_mut(usize::from(slot)) else { return };
        let Some(request) = place else { return };
        request.parts -= 1;
        if request.parts > 0 {
            return;
        }
        let Some(Request { mut result, gain, .. }) = place.take() else { return };
        if let Some(Gain { _hold, _promise, top, blocks }) = gain
            && result.is_ok()
        {
            result = blocks.into_iter().try_for_each(|blocks| top.map.set(blocks, State::Data));
        }
        self.done.push_back(Completion { slot, result });
    }

    /// Takes what the ring and the threads have completed.
    fn collect(&mut self) {
        while let Some(completion) = self.mailbox.take() {
            if let Some(place) = self.requests.get_mut(usize::from(completion.slot)) {
                *place = None;
            }
            self.done.push_back(completion);
        }
        while let Some(Completion { slot: place, result }) = self.ring.complete() {
            let Some(slot) = self.parts.get(usize::from(place)).copied() else { continue };
            match self.waiting.pop_front() {
                Some((next, disk, operation)) => self.place(place, next, disk, operation),
                None => self.free.push(place),
            }
            self.end_part(slot, result);
        }
    }
}

impl Engine for LayeredEngine {
    fn submit(&mut self, slot: u16, operation: Operation) {
        if let Err(error) = self.volume.check(&operation) {
            return self.done.push_back(Completion { slot, result: Err(error) });
        }
        if !matches!(self.requests.get(usize::from(slot)), Some(None)) {
            let error = io::Error::new(io::ErrorKind::InvalidInput, "the slot is in use, or does not exist");
            return self.done.push_back(Completion { slot, result: Err(error) });
        }
        let rest = match operation {
            Operation::Read { offset, segments } => {
                let rest = self.read(slot, offset, segments);
                rest.map_err(|segments| Operation::Read { offset, segments })
            }
            Operation::Write { offset, segments } => {
                let rest = self.write(slot, offset, segments);
                rest.map_err(|segments| Operation::Write { offset, segments })
            }
            other => Err(other),
        };
        if let Err(operation) = rest {
            self.begin(slot, None);
            self.workers.submit(&self.volume, slot, operation, &self.mailbox);
        }
    }

    fn start(&mut self) -> io::Result<()> {
        self.ring.start()
    }

    fn complete(&mut self) -> Option<Completion> {
        if self.done.is_empty() {
            self.collect();
        }
        self.done.pop_front()
    }

    fn event(&self) -> Option<BorrowedFd<'_>> {
        self.ring.event()
    }
}

impl Drop for LayeredEngine {
    fn drop(&mut self) {
        loop {
            self.collect();
            if !self.ring.wait() {
                break;
            }
        }
        self.mailbox.wait();
    }
}
