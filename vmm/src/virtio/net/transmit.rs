//! The transmit side: frames from the guest's buffers straight to the tap (section 5.1.6.2).

use super::interface::Interface;
use super::segment::{MAX_SEGMENTS, Segment, as_iovecs};
use super::tap::{HEADER_SIZE, Tap};
use super::{ANNOUNCE_AFTER, MAX_FRAME, Pause};
use crate::memory::GuestMemory;
use crate::virtio::queue::{Chain, QueueError};
use crate::virtio::{ActiveQueue, BATCH};

pub(super) struct Transmitter {
    queue: ActiveQueue,
    /// The frame that is being sent. Only kept for its room.
    segments: Vec<Segment>,
    pause: Pause,
}

impl Transmitter {
    pub fn new(queue: ActiveQueue) -> Self {
        Self { queue, segments: Vec::new(), pause: Pause::UntilWoken }
    }

    pub fn queue(&self) -> &ActiveQueue {
        &self.queue
    }

    pub fn pause(&self) -> Pause {
        self.pause
    }

    /// Sends frames until the guest has no more, the limit is reached, or it is the other direction's turn.
    ///
    /// Frames are given back as they are sent, but the driver hears of it only once in a while: it does not
    /// wait for them.
    pub fn transmit(
        &mut self,
        memory: &GuestMemory,
        interface: &Interface,
        tap: &Tap,
    ) -> Result<(), QueueError> {
        let before = std::mem::replace(&mut self.pause, Pause::ForOthers);
        let (mut sent, mut unannounced) = (0, 0);
        self.queue.queue.disable_doorbell(memory)?;
        for _ in 0..BATCH {
            let limit = interface.transmit_limit.wait();
            let popped = if limit.is_none() { self.queue.queue.pop(memory)? } else { None };
            let Some(chain) = popped else {
                // If there is more, then it has just arrived, or has to wait.
                let is_more = self.queue.queue.enable_doorbell(memory)?;
                self.pause = match (is_more, limit) {
                    (false, _) => Pause::UntilWoken,
                    (true, None) => continue,
                    (true, Some(time)) => {
                        self.queue.queue.disable_doorbell(memory)?;
                        Pause::Until(time)
                    }
                };
                break;
            };
            let length = send(&mut self.segments, interface, tap, &chain);
            let head = chain.head;
            self.queue.queue.push(memory, head, 0)?;
            sent += 1;
            // Whatever its size, it counts for something.
            unannounced += length.max(1);
            if unannounced >= ANNOUNCE_AFTER {
                self.queue.announce(memory)?;
                unannounced = 0;
            }
        }
        if unannounced > 0 {
            self.queue.announce(memory)?;
        }
        let is_throttled = |pause| matches!(pause, Pause::Until(_));
        if is_throttled(self.pause) && (sent > 0 || !is_throttled(before)) {
            interface.counters.throttled.add(1);
        }
        Ok(())
    }
}

/// Sends one frame and returns its length. What the host does not take (a header it finds wrong, an interface
/// that is down, a full queue) is lost, as on any network.
fn send(segments: &mut Vec<Segment>, interface: &Interface, tap: &Tap, chain: &Chain<'_>) -> usize {
    let counters = &interface.counters;
    let length = chain.readable.len();
    let slices = chain.readable.slices();
    if !(HEADER_SIZE..=MAX_FRAME).contains(&length) || slices.len() > MAX_SEGMENTS {
        tracing::debug!(length, segments = slices.len(), "dropped a frame of impossible size");
        counters.send_drops.add(1);
        // It has cost something all the same.
        interface.transmit_limit.take(0);
        return 0;
    }
    segments.clear();
    segments.extend(slices.iter().map(Segment::of));
    let bytes = (length - HEADER_SIZE) as u64;
    interface.transmit_limit.take(bytes);
    // SAFETY: the segments are guest memory that is mapped as long as the chain borrows it; the call only
    // reads them.
    match unsafe { tap.send(as_iovecs(segments)) } {
        Ok(()) => {
            counters.sent_bytes.add(bytes);
            counters.sent_frames.add(1);
        }
        Err(error) => {
            tracing::debug!(%error, "the host did not take a frame");
            counters.send_drops.add(1);
        }
    }
    length
}
