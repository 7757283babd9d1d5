//! The receive side: frames from the tap straight into the guest's buffers (section 5.1.6.3).
//!
//! With mergeable buffers (section 5.1.6.4) a frame may fill several chains. The host hands a frame over
//! whole or cuts it off, so there must be room for the largest one before asking for any. Chains are
//! therefore collected ahead, and kept until frames have filled them.

use std::collections::VecDeque;
use std::io;

use super::interface::Interface;
use super::segment::{MAX_SEGMENTS, Segment, as_iovecs};
use super::tap::{HEADER_SIZE, Tap};
use super::{ANNOUNCE_AFTER, Pause};
use crate::memory::GuestMemory;
use crate::virtio::queue::{Chain, QueueError};
use crate::virtio::{ActiveQueue, BATCH};

/// Where `num_buffers` is in the header.
const NUM_BUFFERS: usize = 10;

pub(super) struct Receiver {
    queue: ActiveQueue,
    is_mergeable: bool,
    /// The largest frame that may come, with its header.
    largest: usize,
    /// Chains that wait for a frame.
    chains: VecDeque<Waiting>,
    /// The buffers of all chains, one after the other, behind those of chains that were given back already.
    segments: Vec<Segment>,
    /// Where the first chain's buffers begin.
    start: usize,
    /// Bytes in all of `chains`.
    room: usize,
    /// A byte of our own behind the guest's buffers: if the host fills it, a frame did not fit.
    spill: Box<u8>,
    /// Whether the driver was told to ring, because it had too few buffers.
    is_starved: bool,
    pause: Pause,
}

struct Waiting {
    head: u16,
    segments: usize,
    length: usize,
}

impl Receiver {
    pub fn new(queue: ActiveQueue, is_mergeable: bool, largest: usize) -> Self {
        Self {
            queue,
            is_mergeable,
            largest,
            chains: VecDeque::new(),
            segments: Vec::new(),
            start: 0,
            room: 0,
            spill: Box::default(),
            is_starved: true,
            pause: Pause::UntilWoken,
        }
    }

    pub fn queue(&self) -> &ActiveQueue {
        &self.queue
    }

    pub fn pause(&self) -> Pause {
        self.pause
    }

    /// Receives frames until the tap has no more, the guest has no more room, the limit is reached, or it is
    /// the other direction's turn.
    ///
    /// `memory` must be the same memory for all of a receiver's life.
    pub fn receive(
        &mut self,
        memory: &GuestMemory,
        interface: &Interface,
        tap: &Tap,
    ) -> Result<(), QueueError> {
        let before = std::mem::replace(&mut self.pause, Pause::ForOthers);
        // The first frame is announced at once, so that the guest works on it while we look for others.
        let mut unannounced = ANNOUNCE_AFTER;
        let mut has_received = false;
        for _ in 0..BATCH {
            if let Some(time) = interface.receive_limit.wait() {
                self.pause = if tap.is_readable() { Pause::Until(time) } else { Pause::UntilWoken };
                let is_new = has_received || !matches!(before, Pause::Until(_));
                if is_new && self.pause != Pause::UntilWoken {
                    interface.counters.throttled.add(1);
                }
                break;
            }
            if !self.collect(memory)? {
                self.pause = Pause::UntilWoken;
                break;
            }
            match self.read(tap) {
                Ok(Some(length)) => {
                    self.complete(memory, length)?;
                    let bytes = length.saturating_sub(HEADER_SIZE);
                    interface.receive_limit.take(bytes as u64);
                    interface.counters.received_bytes.add(bytes as u64);
                    interface.counters.received_frames.add(1);
                    has_received = true;
                    unannounced += length;
                    if unannounced >= ANNOUNCE_AFTER {
                        self.queue.announce(memory)?;
                        unannounced = 0;
                    }
                }
                Ok(None) => interface.counters.receive_drops.add(1),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    // The interface has no more, or it went down or away. It announces itself when it is
                    // back.
                    if error.kind() != io::ErrorKind::WouldBlock {
                        tracing::debug!(%error, "no frames from the tap");
                    }
                    self.pause = Pause::UntilWoken;
                    break;
                }
            }
        }
        if has_received && unannounced > 0 {
            self.queue.announce(memory)?;
        }
        Ok(())
    }

    /// Takes chains from the queue until the largest frame fits. False if the guest has not enough of them;
    /// it then rings when it has more.
    fn collect(&mut self, memory: &GuestMemory) -> Result<bool, QueueError> {
        let mut has_asked = false;
        while !self.has_room() {
            match self.queue.queue.pop(memory)? {
                Some(chain) => {
                    self.keep(&chain)?;
                    has_asked = false;
                }
                // The ring has shrunk again, which no honest driver makes it do.
                None if has_asked => return Ok(false),
                None => {
                    self.is_starved = true;
                    has_asked = true;
                    if !self.queue.queue.enable_doorbell(memory)? {
                        return Ok(false);
                    }
                }
            }
        }
        if std::mem::take(&mut self.is_starved) {
            self.queue.queue.disable_doorbell(memory)?;
        }
        Ok(true)
    }

    fn has_room(&self) -> bool {
        if self.is_mergeable {
            self.room >= self.largest || self.segments.len() - self.start >= MAX_SEGMENTS - 1
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
        // Moving what is left to the front each time would cost more than the room it saves.
        if self.start > MAX_SEGMENTS {
            self.segments.drain(..self.start);
            self.start = 0;
        }
        let slices = chain.writable.slices();
        self.segments.extend(slices.iter().map(Segment::of));
        self.chains.push_back(Waiting { head: chain.head, segments: slices.len(), length });
        self.room += length;
        Ok(())
    }

    /// Reads one frame into the segments that it may fill, which without mergeable buffers are those of one
    /// chain. Returns its length, or nothing if it was larger than that.
    fn read(&mut self, tap: &Tap) -> io::Result<Option<usize>> {
        let waiting = self.segments.len() - self.start;
        let usable =
            if self.is_mergeable { waiting } else { self.chains.front().map_or(0, |chain| chain.segments) };
        let end = self.start + usable.min(MAX_SEGMENTS - 1);
        // For the time of the call, our own byte takes the place of the segment behind them.
        let spill = Segment::of_byte(&mut self.spill);
        let behind = self.segments.get_mut(end).map(|behind| std::mem::replace(behind, spill));
        if behind.is_none() {
            self.segments.push(spill);
        }
        let offered = self.segments.get(self.start..=end).unwrap_or_default();
        let room = as_iovecs(offered).iter().map(|iovec| iovec.iov_len).sum::<usize>() - 1;
        // SAFETY: the segments are guest memory, which is mapped (see `Segment`), and our own byte.
        let result = unsafe { tap.receive(as_iovecs(offered)) };
        match behind {
            Some(behind) => self.segments[end] = behind,
            None => self.segments.truncate(end),
        }
        // The host cuts off what does not fit, and does not say so; but then our byte is filled.
        let length = result?;
        if length > room {
            tracing::debug!(room, "dropped a frame that is too large for the guest");
            return Ok(None);
        }
        Ok(Some(length))
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
            self.start += chain.segments;
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
        for segment in as_iovecs(self.segments.get(self.start..).unwrap_or_default()) {
            for (at, byte) in (NUM_BUFFERS..).zip(count.to_le_bytes()) {
                if let Some(offset) = at.checked_sub(start).filter(|offset| *offset < segment.iov_len) {
                    // SAFETY: inside the segment, which is mapped guest memory; the guest may race with us,
                    // so the write is volatile.
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
