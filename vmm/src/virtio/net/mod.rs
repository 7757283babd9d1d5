//! The network device (section 5.1): frames between a [`Tap`] and the guest, without a copy.
//!
//! Frames carry a virtio-net header on both sides, so offloads pass through: the guest hands over segments of
//! up to 64 KiB with unfinished checksums, and gets the same from the host.

mod mac;
mod receive;
pub mod tap;

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6,
    VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_F_MAC, VIRTIO_NET_F_MRG_RXBUF,
};

pub use mac::MacAddress;
use receive::Receiver;
use tap::{HEADER_SIZE, Tap, offload};

use super::queue::{Chain, QueueError};
use super::worker::{Handler, Worker};
use super::{Activation, ActiveQueue, DeviceType, VirtioDevice};
use crate::event::as_fd;
use crate::memory::GuestMemory;

const QUEUE_SIZES: [u16; 2] = [256, 256];

/// The largest frame: an Ethernet header with a VLAN tag and 64 KiB of IP packet, behind the virtio-net header.
const MAX_FRAME: usize = HEADER_SIZE + 18 + (64 << 10);
/// The largest frame without segmentation offload: with a VLAN tag, for an MTU of 1500.
const MAX_PLAIN_FRAME: usize = HEADER_SIZE + 18 + 1500;
/// More segments than this cannot be handed to the host in one call (`IOV_MAX`).
const MAX_SEGMENTS: usize = 1024;

/// The device.
#[derive(Debug)]
pub struct Net {
    tap: Arc<Tap>,
    mac: MacAddress,
    worker: Option<Worker>,
}

impl Net {
    /// An interface with address `mac` over `tap`.
    pub fn new(tap: Arc<Tap>, mac: MacAddress) -> Self {
        Self { tap, mac, worker: None }
    }
}

impl VirtioDevice for Net {
    fn device_type(&self) -> DeviceType {
        DeviceType::Net
    }

    fn features(&self) -> u64 {
        [
            VIRTIO_NET_F_MAC,
            VIRTIO_NET_F_CSUM,
            VIRTIO_NET_F_HOST_TSO4,
            VIRTIO_NET_F_HOST_TSO6,
            VIRTIO_NET_F_GUEST_CSUM,
            VIRTIO_NET_F_GUEST_TSO4,
            VIRTIO_NET_F_GUEST_TSO6,
            VIRTIO_NET_F_MRG_RXBUF,
        ]
        .iter()
        .fold(0, |features, bit| features | 1 << bit)
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn config(&self) -> &[u8] {
        // The structure begins with the address, and no feature is on offer that would need more of it.
        self.mac.as_bytes()
    }

    fn activate(&mut self, activation: Activation) -> io::Result<()> {
        let guest_tso = activation.has(VIRTIO_NET_F_GUEST_TSO4) || activation.has(VIRTIO_NET_F_GUEST_TSO6);
        let is_mergeable = activation.has(VIRTIO_NET_F_MRG_RXBUF);
        // What came while nobody listened may use offloads that this driver does not know.
        self.tap.discard_pending();
        self.tap.set_offloads(offloads(&activation))?;
        let Activation { memory, queues, notifier, .. } = activation;
        let mut queues = queues.into_iter();
        let (Some(Some(receive)), Some(Some(transmit))) = (queues.next(), queues.next()) else {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "the driver has set up only one of two queues",
            ));
        };
        let largest = if guest_tso { MAX_FRAME } else { MAX_PLAIN_FRAME };
        let receiver = Receiver::new(receive, is_mergeable, largest);
        let frames = Frames { memory, tap: Arc::clone(&self.tap), receiver, transmit };
        self.worker = Some(Worker::spawn("net", notifier, frames)?);
        Ok(())
    }

    fn reset(&mut self) {
        self.worker = None;
        if let Err(error) = self.tap.set_offloads(0) {
            tracing::debug!(%error, "the tap keeps its offloads");
        }
    }
}

/// What the driver can take, in the tap's terms.
fn offloads(activation: &Activation) -> u32 {
    let guest = |bit, flag| if activation.has(bit) { flag } else { 0 };
    match guest(VIRTIO_NET_F_GUEST_CSUM, offload::CHECKSUM) {
        // Segmentation needs checksum offload (section 5.1.3.1).
        0 => 0,
        checksum => {
            checksum
                | guest(VIRTIO_NET_F_GUEST_TSO4, offload::TSO4)
                | guest(VIRTIO_NET_F_GUEST_TSO6, offload::TSO6)
        }
    }
}

struct Frames {
    memory: Arc<GuestMemory>,
    tap: Arc<Tap>,
    receiver: Receiver,
    transmit: ActiveQueue,
}

const SOURCE_TAP: u64 = 0;
const SOURCE_RECEIVE: u64 = 1;
const SOURCE_TRANSMIT: u64 = 2;

impl Handler for Frames {
    fn sources(&self) -> Vec<(BorrowedFd<'_>, u64)> {
        vec![
            (self.tap.as_fd(), SOURCE_TAP),
            (as_fd(self.receiver.doorbell()), SOURCE_RECEIVE),
            (as_fd(&self.transmit.doorbell), SOURCE_TRANSMIT),
        ]
    }

    fn handle(&mut self, source: u64) -> Result<(), QueueError> {
        match source {
            SOURCE_TRANSMIT => self.transmit.drain(&self.memory, |chain| {
                send(&self.tap, chain);
                Ok(Some(0))
            }),
            _ => self.receiver.receive(&self.memory, &self.tap),
        }
    }
}

/// Sends one frame. What the host does not take (a header it finds wrong, an interface that is down, a full
/// queue) is lost, as on any network.
fn send(tap: &Tap, chain: &Chain<'_>) {
    let length = chain.readable.len();
    let slices = chain.readable.slices();
    if !(HEADER_SIZE..=MAX_FRAME).contains(&length) || slices.len() > MAX_SEGMENTS {
        tracing::debug!(length, segments = slices.len(), "dropped a frame of impossible size");
        return;
    }
    let guards: Vec<_> = slices.iter().map(|slice| slice.ptr_guard()).collect();
    let segments: Vec<libc::iovec> = guards
        .iter()
        .map(|guard| libc::iovec { iov_base: guard.as_ptr().cast_mut().cast(), iov_len: guard.len() })
        .collect();
    // SAFETY: the segments are guest memory that the guards keep mapped; the call only reads them.
    if let Err(error) = unsafe { tap.send(&segments) } {
        tracing::debug!(%error, "the host did not take a frame");
    }
}
