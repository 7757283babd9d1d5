//! A disk as it was attached: what outlives the guest's resets.

use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use innkeeper_block::{Backend, FileUse, Layered};
use innkeeper_protocol::{DiskMetrics, Limits};

use super::counters::Counters;
use super::revocable::Revocable;
use crate::rate_limit::{InvalidLimit, RateLimiter};

/// The most queues that a disk can have.
pub const MAX_QUEUES: u16 = 16;

/// Bytes that virtio has for a disk's serial number.
pub const SERIAL_SIZE: usize = 20;

/// A disk's serial number: up to 20 printable ASCII characters.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SerialNumber([u8; SERIAL_SIZE]);

/// Why a text is not a serial number.
#[derive(Debug, thiserror::Error)]
#[error("a disk's serial number is at most {SERIAL_SIZE} printable ASCII characters")]
pub struct InvalidSerial;

impl std::str::FromStr for SerialNumber {
    type Err = InvalidSerial;

    fn from_str(text: &str) -> Result<Self, InvalidSerial> {
        let mut serial = Self::default();
        let room = serial.0.get_mut(..text.len()).ok_or(InvalidSerial)?;
        room.copy_from_slice(text.as_bytes());
        if text.bytes().all(|byte| byte.is_ascii_graphic()) { Ok(serial) } else { Err(InvalidSerial) }
    }
}

impl SerialNumber {
    /// The text, and zeroes behind it if it is shorter.
    pub fn as_bytes(&self) -> &[u8; SERIAL_SIZE] {
        &self.0
    }
}

/// Why there is no such disk.
#[derive(Debug, thiserror::Error)]
pub enum InvalidDisk {
    /// Too many queues, or none.
    #[error("a disk has 1 to {MAX_QUEUES} queues, not {0}")]
    Queues(u16),
    /// A limit of nothing.
    #[error(transparent)]
    Limit(#[from] InvalidLimit),
}

/// What a disk was on.
pub struct Revoked {
    _backend: Option<Arc<dyn Backend>>,
    layered: Option<Layered>,
}

/// A disk: what it reads from and writes to, how fast that may be, and what was done so far.
pub struct Disk {
    backend: Revocable,
    /// What the backend is, if it is layers, and was not taken away.
    layered: Mutex<Option<Layered>>,
    /// Why not all of it could be made durable when that was tried last, if that is so.
    loss: Mutex<Option<String>>,
    serial: SerialNumber,
    limiter: RateLimiter,
    /// By queue.
    counters: Vec<Arc<Counters>>,
    queues: u16,
}

impl fmt::Debug for Disk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { serial, limiter, queues, .. } = self;
        f.debug_struct("Disk")
            .field("serial", serial)
            .field("limiter", limiter)
            .field("queues", queues)
            .finish_non_exhaustive()
    }
}

impl Disk {
    /// A disk over `backend` with 1 to [`MAX_QUEUES`] queues, which share `limits`.
    pub fn new(
        backend: Arc<dyn Backend>,
        serial: SerialNumber,
        queues: u16,
        limits: Limits,
    ) -> Result<Self, InvalidDisk> {
        if !(1..=MAX_QUEUES).contains(&queues) {
            return Err(InvalidDisk::Queues(queues));
        }
        let limiter = RateLimiter::new(limits)?;
        let counters = (0..queues).map(|_| Arc::default()).collect();
        let backend = Revocable::new(backend);
        Ok(Self {
            backend,
            layered: Mutex::default(),
            loss: Mutex::default(),
            serial,
            limiter,
            counters,
            queues,
        })
    }

    /// The same over layers.
    pub fn of_layers(
        layered: Layered,
        serial: SerialNumber,
        queues: u16,
        limits: Limits,
    ) -> Result<Self, InvalidDisk> {
        let disk = Self::new(Arc::new(layered.clone()), serial, queues, limits)?;
        Ok(Self { layered: Mutex::new(Some(layered)), ..disk })
    }

    /// The layers that it is on, if it is, and they were not taken away.
    pub fn layered(&self) -> Option<Layered> {
        self.layered.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Makes what a layered disk knows only in memory durable, with all that it is about. Others know nothing like that.
    pub fn settle(&self) {
        if let Some(layered) = self.layered() {
            self.settle_layers(&layered);
        }
    }

    fn settle_layers(&self, layered: &Layered) {
        if layered.is_read_only() {
            return;
        }
        let loss = match layered.impairment() {
            Some(why) => Some(why.to_owned()),
            None => layered.flush().err().map(|error| {
                tracing::error!(%error, "a disk cannot be made durable");
                error.to_string()
            }),
        };
        *self.loss.lock().unwrap_or_else(PoisonError::into_inner) = loss;
    }

    /// Why not all of it is durable, if that is so, once it was settled or closed for good.
    pub fn loss(&self) -> Option<String> {
        self.loss.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The files that it is on.
    pub fn files(&self) -> Vec<FileUse> {
        self.backend.files()
    }

    /// The size in bytes.
    pub fn capacity(&self) -> u64 {
        self.backend.capacity()
    }

    /// Whether the guest can only read.
    pub fn is_read_only(&self) -> bool {
        self.backend.is_read_only()
    }

    /// How many queues there are, 1 to [`MAX_QUEUES`].
    pub fn queues(&self) -> u16 {
        self.queues
    }

    /// Makes the disk `size` bytes large, and with it a file that it is on. The guest sees it when it reads the
    /// device's configuration again, and is to be told to.
    ///
    /// Fails, and changes nothing, if `size` is not a multiple of 512, is less than the capacity, or is more than what
    /// the disk is on has or can be given.
    pub fn resize(&self, size: u64) -> io::Result<()> {
        self.backend.resize(size)
    }

    /// Replaces the limits. Queues that wait for the old ones go on when their doorbells are rung.
    pub fn set_limits(&self, limits: Limits) -> Result<(), InvalidLimit> {
        self.limiter.set(limits)
    }

    /// What was done since the disk was attached.
    pub fn metrics(&self) -> DiskMetrics {
        let mut metrics = DiskMetrics::default();
        self.counters.iter().for_each(|counters| counters.add_to(&mut metrics));
        metrics
    }

    /// Takes away what the disk is on: all requests fail from now on. Queues let go of it when their doorbells are rung
    /// and what they have begun is over. What is returned is for [`Disk::close`].
    pub fn revoke(&self) -> Revoked {
        let layered = self.layered.lock().unwrap_or_else(PoisonError::into_inner).take();
        Revoked { _backend: self.backend.revoke(), layered }
    }

    /// Waits until nobody uses what the disk was on, makes it durable, and closes it. Takes as long as the disk likes.
    pub fn close(&self, revoked: Revoked) {
        self.backend.wait_until_released();
        revoked.layered.iter().for_each(|layered| self.settle_layers(layered));
    }

    pub(super) fn backend(&self) -> &dyn Backend {
        &self.backend
    }

    pub(super) fn serial(&self) -> &SerialNumber {
        &self.serial
    }

    pub(super) fn limiter(&self) -> &RateLimiter {
        &self.limiter
    }

    /// The counters of queue `index`.
    pub(super) fn counters(&self, index: usize) -> Arc<Counters> {
        self.counters.get(index).cloned().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::super::recorder::Recorder;
    use super::*;
    use innkeeper_protocol::Limit;

    #[test]
    fn serials_fit_or_are_refused() {
        assert!("12345678901234567890".parse::<SerialNumber>().is_ok());
        for bad in ["123456789012345678901", "a b", "a\n", "ä"] {
            assert!(bad.parse::<SerialNumber>().is_err(), "{bad}");
        }
    }

    #[test]
    fn queues_and_limits_are_checked() {
        let disk =
            |queues, limits| Disk::new(Arc::new(Recorder::new(1)), SerialNumber::default(), queues, limits);
        for queues in [0, 17, u16::MAX] {
            assert!(matches!(disk(queues, Limits::default()), Err(InvalidDisk::Queues(_))));
        }
        let nothing = Limits { bytes: Some(Limit { per_second: 0, burst: None }), operations: None };
        assert!(matches!(disk(1, nothing), Err(InvalidDisk::Limit(_))));
        let disk = disk(16, Limits::default()).unwrap();
        assert!(disk.set_limits(nothing).is_err());
        assert_eq!(disk.metrics().kicks, [0; 16]);
    }
}
