//! The receive side: frames from the tap straight into the guest's buffers.
//!
//! With mergeable buffers (section 5.1.6.4) a frame may fill several chains. The host hands a frame over
//! whole or cuts it off, so there must be room for the largest one before asking for any. Chains are
//! therefore collected ahead, and kept until frames have filled them.

use std::collections::VecDeque;
use std::io;

use vm_memory::VolatileSlice;
use vmm_sys_util::eventfd::EventFd;

use super::tap::{HEADER_SIZE, Tap};
use super::{ActiveQueue, MAX_SEGMENTS};
use crate::memory::GuestMemory;
use crate::virtio::BATCH;
use crate::virtio::queue::{Chain, QueueError};

/// Where `num_buffers` is in the header.
const NUM_BUFFERS: usize = 10;

pub(super) struct Receiver {
    queue: ActiveQueue,
    is_mergeable: bool,
    /// The largest frame that may come, with its header.
    largest: usize,
    /// Chains that wait for a frame, and their buffers one after the other.
    chains: VecDeque<Waiting>,
    segments: Vec<Segment>,
    /// Bytes in all of `chains`.
    room: usize,
    /// What is handed to the host: buffers, and a byte of our own behind them.
    offered: Vec<Segment>,
    spill: Box<u8>,
}

struct Waiting {
    head: u16,
    segments: usize,
    length: usize,
}

/// A buffer of the guest, in the form that `readv(2)` takes.
#[derive(Clone, Copy)]
#[repr(transparent)]
struct Segment(libc::iovec);

// SAFETY: the pointer is into guest memory, which all threads of the VMM share and which stays mapped for as
// long as the handler that owns the receiver holds it, or to the byte that the receiver owns.
unsafe impl Send for Segment {}

impl Receiver {
    pub fn new(queue: ActiveQueue, is_mergeable: bool, largest: usize) -> Self {
        Self {
            queue,
            is_mergeable,
            largest,
            chains: VecDeque::new(),
            segments: Vec::new(),
            room: 0,
            offered: Vec::new(),
            spill: Box::default(),
        }
    }

    pub fn doorbell(&self) -> &EventFd {
        &self.queue.doorbell
    }

    /// Receives frames until the tap has no more or the guest has no more room.
    ///
    /// `memory` must be the same memory for all of a receiver's life.
    pub fn receive(&mut self, memory: &GuestMemory, tap: &Tap) -> Result<(), QueueError> {
        let (mut turns, mut has_received) = (0, false);
        while turns < BATCH && self.collect(memory)? {
            turns += 1;
            let room = self.offer();
            // SAFETY: the segments are guest memory, which is mapped (see `Segment`), and our own byte; `iovec`
            // is what `Segment` is.
            let result = unsafe {
                let offered = std::slice::from_raw_parts(
                    self.offered.as_ptr().cast::<libc::iovec>(),
                    self.offered.len(),
                );
                tap.receive(offered)
            };
            match result {
                // The host cuts off what does not fit, and does not say so; but then our byte is filled.
                Ok(length) if length > room => {
                    tracing::debug!(room, "dropped a frame that is too large for the guest")
                }
                Ok(length) => {
                    self.complete(memory, length)?;
                    has_received = true;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    // The interface went down or away. It announces itself when it is back.
                    tracing::debug!(%error, "no frames from the tap");
                    break;
                }
            }
        }
        if has_received {
            self.queue.announce(memory)?;
        }
        if turns == BATCH {
            self.queue.wake_again();
        }
        Ok(())
    }

    /// Takes chains from the queue until the largest frame fits. False if the guest has not enough of them;
    /// it then rings when it has more.
    fn collect(&mut self, memory: &GuestMemory) -> Result<bool, QueueError> {
        while !self.has_room() {
            match self.queue.queue.pop(memory)? {
                Some(chain) => self.keep(&chain)?,
                None if self.queue.queue.enable_doorbell(memory)? => {}
                None => return Ok(false),
            }
        }
        Ok(true)
    }

    fn has_room(&self) -> bool {
        if self.is_mergeable {
            self.room >= self.largest || self.segments.len() >= MAX_SEGMENTS - 1
        } else {
            !self.chains.is_empty()
        }
    }

    fn keep(&mut self, chain: &Chain<'_>) -> Result<(), QueueError> {
        let length = chain.writable.len();
        // The first chain of a frame must hold the header, and any chain may become the first.
        if length < HEADER_SIZE {
            return Err(QueueError::TooShort(chain.head));
        }
        let slices = chain.writable.slices();
        self.segments.extend(slices.iter().map(segment));
        self.chains.push_back(Waiting { head: chain.head, segments: slices.len(), length });
        self.room += length;
        Ok(())
    }

    /// Prepares the segments that a frame may fill, which without mergeable buffers are those of one chain;
    /// returns how many bytes they have.
    fn offer(&mut self) -> usize {
        let all = if self.is_mergeable {
            self.segments.len()
        } else {
            self.chains.front().map_or(0, |chain| chain.segments)
        };
        self.offered.clear();
        self.offered.extend(self.segments.iter().take(all.min(MAX_SEGMENTS - 1)).copied());
        let room = self.offered.iter().map(|Segment(segment)| segment.iov_len).sum();
        self.offered.push(Segment(libc::iovec { iov_base: (&raw mut *self.spill).cast(), iov_len: 1 }));
        room
    }

    /// Gives back the chains that a frame of `length` bytes has filled.
    fn complete(&mut self, memory: &GuestMemory, length: usize) -> Result<(), QueueError> {
        let filled = self.chains_for(length);
        self.write_num_buffers(filled as u16);
        let mut rest = length;
        for _ in 0..filled {
            let Some(chain) = self.chains.pop_front() else {
                break;
            };
            let used = rest.min(chain.length);
            rest -= used;
            self.room -= chain.length;
            self.segments.drain(..chain.segments);
            self.queue.queue.push(memory, chain.head, used as u32)?;
        }
        Ok(())
    }

    /// How many chains `length` bytes fill; at least the first, which the header is in.
    fn chains_for(&self, length: usize) -> usize {
        let mut end = 0;
        let starts = self.chains.iter().take_while(|chain| {
            let start = end;
            end += chain.length;
            start < length
        });
        starts.count().max(1)
    }

    /// Writes `num_buffers` into the header, which may be cut at any byte.
    fn write_num_buffers(&self, count: u16) {
        let mut start = 0;
        for Segment(segment) in &self.segments {
            for (at, byte) in (NUM_BUFFERS..).zip(count.to_le_bytes()) {
                if let Some(offset) = at.checked_sub(start).filter(|offset| *offset < segment.iov_len) {
                    // SAFETY: inside the segment, which is mapped guest memory; the guest may race with us, so
                    // the write is volatile.
                    unsafe { segment.iov_base.cast::<u8>().add(offset).write_volatile(byte) };
                }
            }
            start += segment.iov_len;
            if start >= HEADER_SIZE {
                return;
            }
        }
    }
}

fn segment(slice: &VolatileSlice<'_>) -> Segment {
    let guard = slice.ptr_guard_mut();
    Segment(libc::iovec { iov_base: guard.as_ptr().cast(), iov_len: guard.len() })
}
