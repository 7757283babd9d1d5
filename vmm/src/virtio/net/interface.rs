//! A network interface as it outlives a guest's resets: its descriptors, its address, its limits and its
//! counters.
//!
//! Frames go through one tap queue for each pair of virtqueues. The host spreads what it has for the guest
//! over the tap queues that are enabled, so those are the pairs that the driver uses: the first one, until it
//! asks for more (section 5.1.6.5.5).

use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Mutex, PoisonError};

use innkeeper_protocol::{InterfaceMetrics, Limits};

use super::MacAddress;
use super::tap::{self, Tap};
use super::vhost::{self, VhostNet};
use crate::metrics::Counter;
use crate::rate_limit::{InvalidLimit, RateLimiter};

/// The most pairs of queues that an interface can have.
pub const MAX_PAIRS: usize = 8;

/// Why there is no such interface.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum Error {
    #[error("an interface has 1 to {MAX_PAIRS} taps, one for each pair of queues, not {0}")]
    TapCount(usize),
    #[error("tap {index} cannot be used")]
    Tap { index: usize, source: tap::Error },
    #[error("tap {0} is a queue of another interface than tap 0")]
    OtherInterface(usize),
    #[error("several taps are queues of one interface that has IFF_MULTI_QUEUE")]
    NotMultiQueue,
    #[error("there are as many vhost descriptors as taps, or none: not {vhost} for {taps}")]
    VhostCount { taps: usize, vhost: usize },
    #[error("vhost {index} cannot be used")]
    Vhost { index: usize, source: vhost::Error },
    #[error("with vhost, the kernel moves the frames and knows no limits")]
    LimitsWithVhost,
    #[error(transparent)]
    Limit(#[from] InvalidLimit),
    #[error("cannot {action}")]
    Host { action: &'static str, source: io::Error },
}

/// A network interface.
#[derive(Debug)]
pub struct Interface {
    taps: Vec<Tap>,
    vhost: Vec<VhostNet>,
    mac: MacAddress,
    /// How many tap queues, from the first on, are enabled.
    enabled: Mutex<usize>,
    pub(super) receive_limit: RateLimiter,
    pub(super) transmit_limit: RateLimiter,
    pub(super) counters: Counters,
}

/// What the interface has done.
#[derive(Debug, Default)]
pub(super) struct Counters {
    /// By queue.
    pub kicks: Vec<Counter>,
    pub received_bytes: Counter,
    pub received_frames: Counter,
    pub receive_drops: Counter,
    pub sent_bytes: Counter,
    pub sent_frames: Counter,
    pub send_drops: Counter,
    pub throttled: Counter,
}

impl Interface {
    /// An interface with address `mac` over `taps`: 1 to [`MAX_PAIRS`] queues of one tap that are attached to
    /// it, one for each pair of queues. With `vhost`, which is empty or has as many descriptors of
    /// `/dev/vhost-net`, the kernel moves the frames, and there can be no limits.
    ///
    /// All queues but the first are disabled until the guest asks for them, and each time it does not use
    /// them any more: the tap has to allow that, by belonging to the VMM's user or to nobody.
    pub fn new(
        taps: Vec<OwnedFd>,
        vhost: Vec<OwnedFd>,
        mac: MacAddress,
        receive: Limits,
        transmit: Limits,
    ) -> Result<Self, Error> {
        if !vhost.is_empty() && vhost.len() != taps.len() {
            return Err(Error::VhostCount { taps: taps.len(), vhost: vhost.len() });
        }
        if !(1..=MAX_PAIRS).contains(&taps.len()) {
            return Err(Error::TapCount(taps.len()));
        }
        let open = |(index, tap)| Tap::new(tap).map_err(|source| Error::Tap { index, source });
        let taps: Vec<Tap> = taps.into_iter().enumerate().map(open).collect::<Result<_, _>>()?;
        if let [first, others @ ..] = &taps[..] {
            if let Some(other) = others.iter().position(|other| !first.is_same_interface(other)) {
                return Err(Error::OtherInterface(other + 1));
            }
            if !others.is_empty() && !first.is_multi_queue() {
                return Err(Error::NotMultiQueue);
            }
        }
        let open = |(index, fd)| VhostNet::new(fd).map_err(|source| Error::Vhost { index, source });
        let vhost = vhost.into_iter().enumerate().map(open).collect::<Result<_, _>>()?;
        Self::with(taps, vhost, mac, receive, transmit)
    }

    fn with(
        taps: Vec<Tap>,
        vhost: Vec<VhostNet>,
        mac: MacAddress,
        receive: Limits,
        transmit: Limits,
    ) -> Result<Self, Error> {
        let kicks = (0..2 * taps.len()).map(|_| Counter::default()).collect();
        let counters = Counters { kicks, ..Default::default() };
        let interface = Self {
            enabled: Mutex::new(taps.len()),
            taps,
            vhost,
            mac,
            receive_limit: RateLimiter::default(),
            transmit_limit: RateLimiter::default(),
            counters,
        };
        interface.set_limits(receive, transmit)?;
        interface.quiesce().map_err(|source| Error::Host { action: "prepare the tap", source })?;
        Ok(interface)
    }

    /// An interface over something else than taps; see [`Tap::stand_in`].
    #[cfg(any(test, fuzzing))]
    pub fn stand_in(
        ends: Vec<OwnedFd>,
        mac: MacAddress,
        receive: Limits,
        transmit: Limits,
    ) -> Result<Self, Error> {
        Self::with(ends.into_iter().map(Tap::stand_in).collect(), Vec::new(), mac, receive, transmit)
    }

    /// The guest's address.
    pub fn mac(&self) -> MacAddress {
        self.mac
    }

    /// Replaces the limits for what the guest receives and what it sends. The device's threads are to be
    /// woken after that. Fails, and changes nothing, where a limit is not valid, or with vhost.
    pub fn set_limits(&self, receive: Limits, transmit: Limits) -> Result<(), Error> {
        if self.has_vhost() && [receive, transmit] != [Limits::default(); 2] {
            return Err(Error::LimitsWithVhost);
        }
        // Both are tried before either is set.
        RateLimiter::new(transmit)?;
        self.receive_limit.set(receive)?;
        self.transmit_limit.set(transmit)?;
        Ok(())
    }

    /// What was counted since the interface was made.
    pub fn metrics(&self) -> InterfaceMetrics {
        let counters = &self.counters;
        InterfaceMetrics {
            kicks: counters.kicks.iter().map(Counter::get).collect(),
            received_bytes: counters.received_bytes.get(),
            received_frames: counters.received_frames.get(),
            receive_drops: counters.receive_drops.get(),
            sent_bytes: counters.sent_bytes.get(),
            sent_frames: counters.sent_frames.get(),
            send_drops: counters.send_drops.get(),
            throttled: counters.throttled.get(),
        }
    }

    /// How many pairs of queues there are.
    pub(super) fn pairs(&self) -> usize {
        self.taps.len()
    }

    pub(super) fn tap(&self, pair: usize) -> Option<&Tap> {
        self.taps.get(pair)
    }

    pub(super) fn has_vhost(&self) -> bool {
        !self.vhost.is_empty()
    }

    pub(super) fn vhost(&self, pair: usize) -> Option<&VhostNet> {
        self.vhost.get(pair)
    }

    /// Lets the host know what the next driver can take, and that it begins with one pair.
    pub(super) fn begin(&self, offloads: u32) -> io::Result<()> {
        self.set_enabled_pairs(1)?;
        if let Some(tap) = self.taps.first() {
            // What came while nobody listened may use offloads that this driver does not know.
            tap.discard_pending();
            tap.set_offloads(offloads)?;
        }
        Ok(())
    }

    /// Back to how it is without a driver: one pair, no offloads.
    pub(super) fn quiesce(&self) -> io::Result<()> {
        self.set_enabled_pairs(1)?;
        self.taps.first().map_or(Ok(()), |tap| tap.set_offloads(0))
    }

    /// Enables the first `pairs` tap queues, 1 or more, and disables the others.
    pub(super) fn set_enabled_pairs(&self, pairs: usize) -> io::Result<()> {
        let mut enabled = self.enabled.lock().unwrap_or_else(PoisonError::into_inner);
        // One by one: where it fails, it is known what is enabled.
        while let Some(tap) = self.taps.get(*enabled).filter(|_| *enabled < pairs) {
            tap.set_enabled(true)?;
            *enabled += 1;
        }
        while let Some(tap) = self.taps.get(enabled.wrapping_sub(1)).filter(|_| *enabled > pairs) {
            tap.set_enabled(false)?;
            *enabled -= 1;
        }
        Ok(())
    }

    #[cfg(test)]
    pub(super) fn enabled_pairs(&self) -> usize {
        *self.enabled.lock().unwrap()
    }
}
