//! Virtio 1.2 devices.
//!
//! Three layers, each ignorant of the next: a device ([`block`], [`net`], [`rng`]) knows its requests; the
//! [`queue`] hands it descriptor chains whose every address was checked; the [`transport`] shows both to the
//! guest as a PCI function. When the guest's driver is ready, the transport gives the device everything it
//! needs in one [`Activation`], and the device moves that to a thread of its own ([`worker`]).

pub mod balloon;
pub mod block;
pub mod console;
#[cfg(any(test, fuzzing))]
pub mod harness;
pub mod net;
pub mod queue;
pub mod rng;
pub mod transport;
pub mod vsock;
pub mod worker;

use std::fmt;
use std::io;
use std::sync::atomic::{AtomicU8, AtomicU16, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use vmm_sys_util::eventfd::EventFd;

use crate::interrupt::MsiVector;
use crate::memory::GuestMemory;
use queue::{Chain, Queue, QueueError};

/// What every device offers besides its own features.
const COMMON_FEATURES: u64 =
    1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_RING_F_EVENT_IDX | 1 << VIRTIO_RING_F_INDIRECT_DESC;

/// What the driver writes to mean "no vector" (section 4.1.4.3).
const NO_VECTOR: u16 = 0xffff;

/// Bits of the device status field (section 2.1).
mod status {
    pub const DRIVER: u8 = 2;
    pub const DRIVER_OK: u8 = 4;
    pub const FEATURES_OK: u8 = 8;
    pub const NEEDS_RESET: u8 = 64;
    pub const FAILED: u8 = 128;
}

/// The device types we have (section 5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum DeviceType {
    /// Section 5.1.
    Net = 1,
    /// Section 5.2.
    Block = 2,
    /// Section 5.3.
    Console = 3,
    /// Section 5.4.
    Entropy = 4,
    /// Section 5.5.
    Balloon = 5,
    /// Section 5.10.
    Vsock = 19,
}

/// A virtio device, whatever bus it is on.
pub trait VirtioDevice: Send + fmt::Debug {
    /// What it is.
    fn device_type(&self) -> DeviceType;

    /// The features it offers, of its own type.
    fn features(&self) -> u64;

    /// The largest size of each of its queues, a power of two.
    fn queue_sizes(&self) -> &[u16];

    /// Reads its configuration structure at `offset`; what lies behind its end reads as zero.
    fn read_config(&self, _offset: usize, data: &mut [u8]) {
        data.fill(0);
    }

    /// Writes its configuration structure at `offset`, as far as the driver may.
    fn write_config(&mut self, _offset: usize, _data: &[u8]) {}

    /// Starts working: the driver is ready. Not called again before [`VirtioDevice::reset`].
    fn activate(&mut self, activation: Activation) -> io::Result<()>;

    /// Stops working, and returns only when no thread of the device touches guest memory any more.
    fn reset(&mut self);
}

/// Copies `source` from `offset` on; behind its end there are zeroes.
fn read_bytes(source: &[u8], offset: usize, data: &mut [u8]) {
    for (index, byte) in data.iter_mut().enumerate() {
        *byte = source.get(offset + index).copied().unwrap_or(0);
    }
}

/// All that a device needs to run.
#[derive(Debug)]
pub struct Activation {
    /// The guest's RAM.
    pub memory: Arc<GuestMemory>,
    /// What the driver has accepted of the features on offer.
    pub features: u64,
    /// One for each of the device's queues; none where the driver did not set it up.
    pub queues: Vec<Option<ActiveQueue>>,
    /// For what is not about a single queue.
    pub notifier: Arc<Notifier>,
}

impl Activation {
    /// Whether the driver has accepted feature bit `bit`.
    pub fn has(&self, bit: u32) -> bool {
        self.features >> bit & 1 == 1
    }
}

/// A queue that the driver has set up.
#[derive(Debug)]
pub struct ActiveQueue {
    /// The ring.
    pub queue: Queue,
    /// Becomes readable when the driver has added buffers.
    pub doorbell: EventFd,
    /// Interrupts the driver when it is to look at the used buffers.
    pub interrupt: QueueInterrupt,
}

/// A worker serves this many chains, or receives this many frames, before it looks for something else to do: the
/// other direction, or the request to stop. A driver may add chains as fast as they are served.
const BATCH: usize = 64;

impl ActiveQueue {
    /// Serves the chains there are, and some of those that arrive meanwhile; then rings its own doorbell if
    /// there are more. `serve` returns how many bytes it has written to the chain, or none if it keeps the chain
    /// and pushes it later.
    pub fn drain(
        &mut self,
        memory: &GuestMemory,
        mut serve: impl FnMut(&mut Chain<'_>) -> Result<Option<u32>, QueueError>,
    ) -> Result<(), QueueError> {
        self.queue.disable_doorbell(memory)?;
        for _ in 0..BATCH {
            let Some(mut chain) = self.queue.pop(memory)? else {
                if self.queue.enable_doorbell(memory)? {
                    continue;
                }
                return Ok(());
            };
            // At once, with its interrupt: the next chain may take its time.
            if let Some(written) = serve(&mut chain)? {
                self.give_back(memory, chain.head, written)?;
            }
        }
        self.wake_again();
        Ok(())
    }

    /// Gives the chain at `head` back, with `written` bytes written to it.
    fn give_back(&mut self, memory: &GuestMemory, head: u16, written: u32) -> Result<(), QueueError> {
        self.queue.push(memory, head, written)?;
        self.announce(memory)
    }

    /// Interrupts the driver, if it wants to hear of what was pushed since the last time.
    pub fn announce(&mut self, memory: &GuestMemory) -> Result<(), QueueError> {
        if self.queue.needs_interrupt(memory)? {
            self.interrupt.trigger();
        }
        Ok(())
    }

    /// Has the worker come back to this queue after the others.
    fn wake_again(&self) {
        // Can only fail if the counter is full, and then the bell is ringing already.
        let _ = self.doorbell.write(1);
    }
}

/// Interrupts the driver about one queue.
#[derive(Clone, Debug)]
pub struct QueueInterrupt(Option<Arc<MsiVector>>);

impl QueueInterrupt {
    /// Says that buffers were used. A driver without a vector polls.
    pub fn trigger(&self) {
        if let Some(vector) = &self.0 {
            vector.trigger();
        }
    }

    /// An eventfd for the kernel, which then says it in our place. None for a driver without a vector.
    fn raised_by_kernel(&self) -> io::Result<Option<EventFd>> {
        self.0.as_ref().map(|vector| vector.raised_by_kernel()).transpose().map_err(io::Error::other)
    }
}

/// A device's side channel to its driver: the status field and the configuration interrupt.
#[derive(Debug)]
pub struct Notifier {
    /// For logs.
    name: String,
    status: AtomicU8,
    config_vector: AtomicU16,
    /// Changes with the configuration structure, so that a driver sees whether what it read goes together.
    config_generation: AtomicU8,
    vectors: Vec<Arc<MsiVector>>,
}

impl Notifier {
    fn new(name: String, vectors: Vec<Arc<MsiVector>>) -> Self {
        Self {
            name,
            status: AtomicU8::new(0),
            config_vector: AtomicU16::new(NO_VECTOR),
            config_generation: AtomicU8::new(0),
            vectors,
        }
    }

    fn vector(&self, index: u16) -> Option<&Arc<MsiVector>> {
        self.vectors.get(usize::from(index))
    }

    /// Gives up on the driver: the device does nothing more before it is reset (section 2.1.2).
    pub fn fail(&self, error: &dyn std::error::Error) {
        if WARNINGS.take() {
            tracing::warn!(device = self.name, %error, "the device needs a reset");
        }
        self.status.fetch_or(status::NEEDS_RESET, Ordering::SeqCst);
        self.interrupt();
    }

    /// Says that the configuration structure is another one from here on.
    fn config_changes(&self) {
        self.config_generation.fetch_add(1, Ordering::SeqCst);
    }

    /// Tells the driver that the configuration structure has changed.
    fn config_changed(&self) {
        self.config_changes();
        if self.status.load(Ordering::SeqCst) & status::DRIVER_OK != 0 {
            self.interrupt();
        }
    }

    fn interrupt(&self) {
        if let Some(vector) = self.vector(self.config_vector.load(Ordering::SeqCst)) {
            vector.trigger();
        }
    }
}

/// A guest may cause a warning as often as it likes, over all its resets; the log gets a few a minute.
static WARNINGS: WarningBudget = WarningBudget(Mutex::new(None));

/// The period that is running, and how many warnings there were in it.
#[derive(Debug)]
struct WarningBudget(Mutex<Option<(Instant, u32)>>);

impl WarningBudget {
    const PERIOD: Duration = Duration::from_secs(60);
    const WARNINGS: u32 = 5;

    /// Whether there may be another warning.
    fn take(&self) -> bool {
        let mut period = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (start, count) = period.get_or_insert_with(|| (Instant::now(), 0));
        if start.elapsed() > Self::PERIOD {
            (*start, *count) = (Instant::now(), 0);
        }
        *count += 1;
        *count <= Self::WARNINGS
    }
}
