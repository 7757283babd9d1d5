//! The network device (section 5.1): frames between a tap and the guest, without a copy.
//!
//! Frames carry a virtio-net header on both sides, so offloads pass through: the guest hands over segments of
//! up to 64 KiB with unfinished checksums, and gets the same from the host.
//!
//! An [`Interface`] is what outlives a guest's resets; [`Net`] is the device over it. Each pair of queues has
//! a queue of the tap and a thread of its own ([`Pair`]), or is served by the kernel ([`vhost`]). How many
//! pairs are in use is the driver's choice ([`Control`]).

mod control;
mod interface;
mod mac;
mod pair;
mod receive;
mod segment;
pub mod tap;
#[cfg(test)]
mod tests;
mod transmit;
pub mod vhost;

use std::io;
use std::sync::Arc;
use std::time::Instant;

use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_CTRL_VQ, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_ECN,
    VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_HOST_ECN, VIRTIO_NET_F_HOST_TSO4,
    VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_F_MAC, VIRTIO_NET_F_MQ, VIRTIO_NET_F_MRG_RXBUF, VIRTIO_NET_F_STATUS,
    VIRTIO_NET_S_LINK_UP,
};

pub use control::Control;
pub use interface::{Error, Interface, MAX_PAIRS};
pub use mac::MacAddress;
pub use pair::Pair;
use pair::Parts;
use tap::{HEADER_SIZE, offload};
use vhost::Service;

use super::worker::Workers;
use super::{Activation, ActiveQueue, DeviceType, VirtioDevice, read_bytes};

const QUEUE_SIZE: u16 = 256;
/// A driver gives one command at a time.
const CONTROL_QUEUE_SIZE: u16 = 64;

/// The largest frame: an Ethernet header with a VLAN tag and 64 KiB of IP packet, behind the virtio-net
/// header.
const MAX_FRAME: usize = HEADER_SIZE + 18 + (64 << 10);
/// The largest frame without segmentation offload: with a VLAN tag, for an MTU of 1500.
const MAX_PLAIN_FRAME: usize = HEADER_SIZE + 18 + 1500;

/// A driver hears of the first frame, and then each time after as many bytes: it works on some while we look
/// at others, and is not interrupted for every small one.
const ANNOUNCE_AFTER: usize = 64 << 10;

/// What a direction waits for before it goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pause {
    /// Something to happen.
    UntilWoken,
    /// Nothing: it has only let others go first.
    ForOthers,
    /// A limit.
    Until(Instant),
}

impl Pause {
    /// When it is over, without anything else happening.
    fn end(self) -> Option<Instant> {
        match self {
            Self::UntilWoken => None,
            Self::ForOthers => Some(Instant::now()),
            Self::Until(time) => Some(time),
        }
    }

    fn is_over(self) -> bool {
        self.end().is_some_and(|end| end <= Instant::now())
    }
}

/// The device.
#[derive(Debug)]
pub struct Net {
    interface: Arc<Interface>,
    queue_sizes: Vec<u16>,
    workers: Workers,
    services: Vec<Service>,
}

impl Net {
    /// A device over `interface`, of which there may be only one at a time.
    pub fn new(interface: Arc<Interface>) -> Self {
        let pairs = interface.pairs();
        let mut queue_sizes = vec![QUEUE_SIZE; 2 * pairs];
        if pairs > 1 {
            // Without VIRTIO_NET_F_MQ the control queue is the third one instead (section 5.1.2). There, it
            // may be larger.
            queue_sizes.push(CONTROL_QUEUE_SIZE);
        }
        Self { interface, queue_sizes, workers: Workers::default(), services: Vec::new() }
    }
}

impl VirtioDevice for Net {
    fn device_type(&self) -> DeviceType {
        DeviceType::Net
    }

    fn features(&self) -> u64 {
        let always = [
            VIRTIO_NET_F_MAC,
            VIRTIO_NET_F_STATUS,
            VIRTIO_NET_F_CSUM,
            VIRTIO_NET_F_HOST_TSO4,
            VIRTIO_NET_F_HOST_TSO6,
            VIRTIO_NET_F_HOST_ECN,
            VIRTIO_NET_F_GUEST_CSUM,
            VIRTIO_NET_F_GUEST_TSO4,
            VIRTIO_NET_F_GUEST_TSO6,
            VIRTIO_NET_F_GUEST_ECN,
            VIRTIO_NET_F_MRG_RXBUF,
        ];
        let with_pairs: &[u32] =
            if self.interface.pairs() > 1 { &[VIRTIO_NET_F_CTRL_VQ, VIRTIO_NET_F_MQ] } else { &[] };
        always.iter().chain(with_pairs).fold(0, |features, bit| features | 1 << bit)
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn read_config(&self, offset: usize, data: &mut [u8]) {
        // Section 5.1.4, as far as the features on offer need it: `mac`, `status`, `max_virtqueue_pairs`.
        let mut config = self.interface.mac().as_bytes().to_vec();
        config.extend((VIRTIO_NET_S_LINK_UP as u16).to_le_bytes());
        config.extend((self.interface.pairs() as u16).to_le_bytes());
        read_bytes(&config, offset, data);
    }

    fn activate(&mut self, activation: Activation) -> io::Result<()> {
        let notifier = Arc::clone(&activation.notifier);
        let memory = Arc::clone(&activation.memory);
        let features = activation.features;
        self.interface.begin(offloads(&activation))?;
        if !self.interface.has_vhost() {
            let (pairs, control) = handlers(&self.interface, activation)?;
            for (index, pair) in pairs.into_iter().enumerate() {
                self.workers.spawn(&format!("net{index}"), Arc::clone(&notifier), pair)?;
            }
            return self.spawn_control(notifier, control);
        }
        let Queues { pairs, control } = Queues::of(&self.interface, activation)?;
        let mut control =
            Control::new(Arc::clone(&memory), Arc::clone(&self.interface), control, pairs.len());
        for (index, queues) in pairs.into_iter().enumerate() {
            let service = Service::start(&self.interface, index, features, &memory, queues)?;
            control.watch(service.failures()?);
            self.services.push(service);
        }
        self.spawn_control(notifier, control)
    }

    fn reset(&mut self) {
        self.workers.stop();
        self.services.clear();
        if let Err(error) = self.interface.quiesce() {
            tracing::debug!(%error, "the tap stays as the driver wanted it");
        }
    }
}

impl Net {
    fn spawn_control(&mut self, notifier: Arc<super::Notifier>, control: Control) -> io::Result<()> {
        if control.is_idle() { Ok(()) } else { self.workers.spawn("net-control", notifier, control) }
    }
}

/// What serves the queues of a driver, if it is not the kernel: each pair, and the control queue.
pub fn handlers(interface: &Arc<Interface>, activation: Activation) -> io::Result<(Vec<Pair>, Control)> {
    let guest_tso = activation.has(VIRTIO_NET_F_GUEST_TSO4) || activation.has(VIRTIO_NET_F_GUEST_TSO6);
    let is_mergeable = activation.has(VIRTIO_NET_F_MRG_RXBUF);
    let largest = if guest_tso { MAX_FRAME } else { MAX_PLAIN_FRAME };
    let memory = Arc::clone(&activation.memory);
    let Queues { pairs, control } = Queues::of(interface, activation)?;
    let control = Control::new(Arc::clone(&memory), Arc::clone(interface), control, pairs.len());
    let pair = |(index, queues)| {
        let (interface, memory) = (Arc::clone(interface), Arc::clone(&memory));
        Pair::new(Parts { index, interface, memory, queues, is_mergeable, largest })
    };
    Ok((pairs.into_iter().enumerate().map(pair).collect(), control))
}

/// The queues of a driver, by what they are for (section 5.1.2).
struct Queues {
    /// To receive and to transmit; at least one pair.
    pairs: Vec<[ActiveQueue; 2]>,
    control: Option<ActiveQueue>,
}

impl Queues {
    fn of(interface: &Interface, activation: Activation) -> io::Result<Self> {
        let count = if activation.has(VIRTIO_NET_F_MQ) { interface.pairs() } else { 1 };
        let has_control = activation.has(VIRTIO_NET_F_CTRL_VQ);
        let mut queues = activation.queues.into_iter();
        let mut next_pair = |_| match [queues.next().flatten(), queues.next().flatten()] {
            [Some(receive), Some(transmit)] => Some([receive, transmit]),
            _ => None,
        };
        let all: Vec<_> = (0..count).map(&mut next_pair).collect();
        // The driver may leave out pairs; but it uses them from the first one on.
        let pairs: Vec<_> = all.into_iter().map_while(|pair| pair).collect();
        let control = queues.next().flatten().filter(|_| has_control);
        if pairs.is_empty() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "the driver has set up only one of two queues",
            ));
        }
        Ok(Self { pairs, control })
    }
}

/// What the driver can take, in the tap's terms.
fn offloads(activation: &Activation) -> u32 {
    let guest = |bit, flag| if activation.has(bit) { flag } else { 0 };
    let checksum = guest(VIRTIO_NET_F_GUEST_CSUM, offload::CHECKSUM);
    let segmentation =
        guest(VIRTIO_NET_F_GUEST_TSO4, offload::TSO4) | guest(VIRTIO_NET_F_GUEST_TSO6, offload::TSO6);
    // Each needs the one before it (section 5.1.3.1).
    match (checksum, segmentation) {
        (0, _) => 0,
        (_, 0) => checksum,
        _ => checksum | segmentation | guest(VIRTIO_NET_F_GUEST_ECN, offload::TSO_ECN),
    }
}
