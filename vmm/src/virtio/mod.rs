//! Virtio 1.2 devices.
//!
//! Three layers, each ignorant of the next: a device ([`block`], [`net`], [`rng`]) knows its requests; the
//! [`queue`] hands it descriptor chains whose every address was checked; the [`transport`] shows both to the
//! guest as a PCI function. When the guest's driver is ready, the transport gives the device everything it
//! needs in one [`Activation`], and the device moves that to a thread of its own ([`worker`]).

pub mod block;
pub mod net;
pub mod queue;
pub mod rng;
pub mod transport;
mod worker;

use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU16, Ordering};
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
    /// Section 5.4.
    Entropy = 4,
}

/// A virtio device, whatever bus it is on.
pub trait VirtioDevice: Send + fmt::Debug {
    /// What it is.
    fn device_type(&self) -> DeviceType;

    /// The features it offers, of its own type.
    fn features(&self) -> u64;

    /// The largest size of each of its queues, a power of two.
    fn queue_sizes(&self) -> &[u16];

    /// Its configuration structure, as bytes.
    fn config(&self) -> &[u8] {
        &[]
    }

    /// Starts working: the driver is ready. Not called again before [`VirtioDevice::reset`].
    fn activate(&mut self, activation: Activation) -> io::Result<()>;

    /// Stops working, and returns only when no thread of the device touches guest memory any more.
    fn reset(&mut self);
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

impl ActiveQueue {
    /// Serves every chain there is, and those that arrive meanwhile. `serve` returns how many bytes it has
    /// written to the chain.
    pub fn drain(
        &mut self,
        memory: &GuestMemory,
        mut serve: impl FnMut(&mut Chain<'_>) -> Result<u32, QueueError>,
    ) -> Result<(), QueueError> {
        loop {
            self.queue.disable_doorbell(memory)?;
            while let Some(mut chain) = self.queue.pop(memory)? {
                let written = serve(&mut chain)?;
                self.queue.push(memory, chain.head, written)?;
            }
            if self.queue.needs_interrupt(memory)? {
                self.interrupt.trigger();
            }
            if !self.queue.enable_doorbell(memory)? {
                return Ok(());
            }
        }
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
}

/// A device's side channel to its driver: the status field and the configuration interrupt.
#[derive(Debug)]
pub struct Notifier {
    /// For logs: the type and slot.
    name: String,
    status: AtomicU8,
    config_vector: AtomicU16,
    vectors: Vec<Arc<MsiVector>>,
    warnings: WarningBudget,
}

impl Notifier {
    fn new(name: String, vectors: Vec<Arc<MsiVector>>) -> Self {
        Self {
            name,
            status: AtomicU8::new(0),
            config_vector: AtomicU16::new(NO_VECTOR),
            vectors,
            warnings: WarningBudget::default(),
        }
    }

    fn vector(&self, index: u16) -> Option<&Arc<MsiVector>> {
        self.vectors.get(usize::from(index))
    }

    /// Gives up on the driver: the device does nothing more before it is reset (section 2.1.2).
    pub fn fail(&self, error: &dyn std::error::Error) {
        if self.warnings.take() {
            tracing::warn!(device = self.name, %error, "the device needs a reset");
        }
        self.status.fetch_or(status::NEEDS_RESET, Ordering::SeqCst);
        if let Some(vector) = self.vector(self.config_vector.load(Ordering::SeqCst)) {
            vector.trigger();
        }
    }
}

/// A guest may cause a warning as often as it likes; the log gets a few a minute.
#[derive(Debug)]
struct WarningBudget(std::sync::Mutex<(Instant, u32)>);

impl Default for WarningBudget {
    fn default() -> Self {
        Self(std::sync::Mutex::new((Instant::now(), 0)))
    }
}

impl WarningBudget {
    const PERIOD: Duration = Duration::from_secs(60);
    const WARNINGS: u32 = 5;

    fn take(&self) -> bool {
        let mut budget = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if budget.0.elapsed() > Self::PERIOD {
            *budget = (Instant::now(), 0);
        }
        budget.1 += 1;
        budget.1 <= Self::WARNINGS
    }
}
