//! vhost-net: the kernel serves a pair of queues itself, between the guest's memory and the tap.
//!
//! A [`VhostNet`] is a descriptor of `/dev/vhost-net` that came from outside; while a driver uses the pair,
//! there is a [`Service`] over it. The kernel checks every descriptor against the memory that it is told of,
//! and only the rings themselves against nothing: they were checked when the driver set them up ([`Queue`]).
//!
//! The `vhost` crate has the calls for any descriptor, and its own type for network devices only for one that
//! it opens itself; so the one call of that type, which sets the tap, is made here.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;

use vhost::vhost_kern::VhostKernBackend;
use vhost::vhost_kern::vhost_binding::vhost_vring_file;
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_net::VIRTIO_NET_F_MRG_RXBUF;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use vm_memory::{Address, GuestMemoryBackend, GuestMemoryRegion};
use vmm_sys_util::eventfd::EventFd;

use super::interface::Interface;
use super::tap::Tap;
use crate::event;
use crate::memory::GuestMemory;
use crate::virtio::ActiveQueue;
use crate::virtio::queue::Queue;

mod ioctl {
    use vhost::vhost_kern::vhost_binding::vhost_vring_file;
    nix::ioctl_write_ptr!(set_backend, 0xaf, 0x30, vhost_vring_file);
}

/// The features that are about rings and headers, which the kernel has to know of. The others are the tap's.
const RING_FEATURES: u64 = 1 << VIRTIO_F_VERSION_1
    | 1 << VIRTIO_RING_F_EVENT_IDX
    | 1 << VIRTIO_RING_F_INDIRECT_DESC
    | 1 << VIRTIO_NET_F_MRG_RXBUF;

/// Why the kernel does not serve.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum Error {
    #[error("it is not a descriptor of /dev/vhost-net")]
    NotVhost,
    #[error("the kernel's vhost-net lacks the features {0:#x}")]
    Features(u64),
}

/// A descriptor of `/dev/vhost-net`.
#[derive(Debug)]
pub struct VhostNet(OwnedFd);

impl VhostNet {
    /// Takes a descriptor that nobody uses yet.
    pub fn new(descriptor: OwnedFd) -> Result<Self, Error> {
        let calls = Calls { fd: descriptor.as_raw_fd(), memory: Arc::default() };
        let offered = calls.get_features().map_err(|_| Error::NotVhost)?;
        let missing = RING_FEATURES & !offered;
        if missing == 0 { Ok(Self(descriptor)) } else { Err(Error::Features(missing)) }
    }
}

/// The calls of the `vhost` crate, for a descriptor that belongs to somebody else.
struct Calls {
    fd: RawFd,
    memory: Arc<GuestMemory>,
}

impl AsRawFd for Calls {
    fn as_raw_fd(&self) -> RawFd {
        self.fd
    }
}

impl VhostKernBackend for Calls {
    type AS = Arc<GuestMemory>;

    fn mem(&self) -> &Self::AS {
        &self.memory
    }

    /// A [`Queue`] is valid. What is here by default refuses rings that end where memory does.
    fn is_valid(&self, _ring: &VringConfigData) -> bool {
        true
    }
}

impl Calls {
    fn set_tap(&self, queue: u32, tap: Option<&Tap>) -> io::Result<()> {
        const NONE: RawFd = -1;
        let fd = tap.map_or(NONE, |tap| tap.as_fd().as_raw_fd());
        let file = vhost_vring_file { index: queue, fd };
        // SAFETY: the call reads the whole structure.
        unsafe { ioctl::set_backend(self.fd, &file) }?;
        Ok(())
    }
}

/// The kernel serving one pair of queues. It has stopped, and touches neither guest memory nor the tap any
/// more, when this is dropped.
pub(super) struct Service {
    interface: Arc<Interface>,
    pair: usize,
    /// It must not be unmapped before the kernel has stopped.
    memory: Arc<GuestMemory>,
    /// For each queue, what becomes readable when the kernel has given up on it.
    failures: [EventFd; 2],
}

impl std::fmt::Debug for Service {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Service").field("pair", &self.pair).finish_non_exhaustive()
    }
}

impl Service {
    /// Lets the kernel serve pair `pair` of `interface`, which has vhost, for a driver that has accepted
    /// `features`.
    pub fn start(
        interface: &Arc<Interface>,
        pair: usize,
        features: u64,
        memory: &Arc<GuestMemory>,
        queues: [ActiveQueue; 2],
    ) -> io::Result<Self> {
        let missing = || io::Error::new(io::ErrorKind::InvalidInput, "there is no such pair of queues");
        let tap = interface.tap(pair).ok_or_else(missing)?;
        let failures = [event::new()?, event::new()?];
        let memory = Arc::clone(memory);
        interface
            .vhost(pair)
            .ok_or_else(missing)?
            .calls(&memory)
            .set_owner()
            .map_err(failed("own vhost-net"))?;
        // From here on, whatever fails, dropping this gives the descriptor back as it was.
        let service = Self { interface: Arc::clone(interface), pair, memory, failures };
        let Some(calls) = service.calls() else {
            return Err(missing());
        };
        calls.set_features(features & RING_FEATURES).map_err(failed("set the features of vhost-net"))?;
        calls
            .set_mem_table(&regions(&service.memory))
            .map_err(failed("tell vhost-net of the guest's memory"))?;
        for ((index, queue), failure) in (0..).zip(&queues).zip(&service.failures) {
            set_up(&calls, index, queue, failure)?;
        }
        for (index, _) in (0..).zip(&queues) {
            calls.set_tap(index, Some(tap))?;
        }
        Ok(service)
    }

    /// What becomes readable when the kernel has given up on a queue.
    pub fn failures(&self) -> io::Result<[EventFd; 2]> {
        let [receive, transmit] = &self.failures;
        Ok([receive.try_clone()?, transmit.try_clone()?])
    }

    fn calls(&self) -> Option<Calls> {
        self.interface.vhost(self.pair).map(|vhost| vhost.calls(&self.memory))
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let Some(calls) = self.calls() else {
            return;
        };
        for index in 0..self.failures.len() as u32 {
            // Returns when the kernel is done with what it has begun.
            if let Err(error) = calls.set_tap(index, None) {
                tracing::debug!(%error, "vhost-net had no tap");
            }
        }
        if let Err(error) = calls.reset_owner() {
            tracing::warn!(%error, "vhost-net cannot be reset, and the interface is lost");
        }
    }
}

impl VhostNet {
    fn calls(&self, memory: &Arc<GuestMemory>) -> Calls {
        Calls { fd: self.0.as_raw_fd(), memory: Arc::clone(memory) }
    }
}

fn set_up(calls: &Calls, index: usize, active: &ActiveQueue, failure: &EventFd) -> io::Result<()> {
    let ActiveQueue { queue, doorbell, interrupt } = active;
    let ring = ring(queue);
    let start = || -> vhost::Result<()> {
        calls.set_vring_num(index, ring.queue_size)?;
        calls.set_vring_base(index, 0)?;
        calls.set_vring_addr(index, &ring)?;
        calls.set_vring_err(index, failure)?;
        calls.set_vring_kick(index, doorbell)
    };
    start().map_err(failed("set up a queue of vhost-net"))?;
    // Without a vector the driver polls, and the kernel has nobody to call.
    if let Some(call) = interrupt.raised_by_kernel()? {
        calls.set_vring_call(index, &call).map_err(failed("connect vhost-net with an interrupt"))?;
    }
    Ok(())
}

fn failed(action: &'static str) -> impl FnOnce(vhost::Error) -> io::Error {
    move |error| io::Error::other(format!("cannot {action}: {error}"))
}

/// Where the kernel finds a ring, in guest addresses.
fn ring(queue: &Queue) -> VringConfigData {
    let layout = queue.layout();
    VringConfigData {
        queue_max_size: layout.size,
        queue_size: layout.size,
        flags: 0,
        desc_table_addr: layout.descriptors,
        used_ring_addr: layout.used,
        avail_ring_addr: layout.available,
        log_addr: None,
    }
}

/// The guest's memory, and where it is mapped here.
fn regions(memory: &GuestMemory) -> Vec<VhostUserMemoryRegionInfo> {
    const NO_FILE: RawFd = -1;
    memory
        .iter()
        .map(|region| VhostUserMemoryRegionInfo {
            guest_phys_addr: region.start_addr().raw_value(),
            memory_size: region.len(),
            userspace_addr: region.as_ptr().addr() as u64,
            mmap_offset: 0,
            mmap_handle: NO_FILE,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::HIGH_RAM_START;
    use crate::virtio::harness;
    use vm_memory::GuestAddress;

    #[test]
    fn other_files_are_refused() {
        let file = std::fs::File::open("/dev/null").unwrap();
        assert!(matches!(VhostNet::new(file.into()), Err(Error::NotVhost)));
    }

    #[test]
    fn the_kernel_finds_the_rings_where_the_driver_put_them() {
        let memory = harness::memory(2);
        let (driver, device) = harness::Driver::new(&memory, 1, 64);
        let ring = ring(&device.queue);
        assert_eq!((ring.queue_size, ring.queue_max_size), (64, 64));
        let addresses = ring.to_vhost_vring_addr(7, &memory).unwrap();
        let host = |address| memory.get_host_address(GuestAddress(address)).unwrap().addr() as u64;
        assert_eq!(addresses.index, 7);
        assert_eq!(addresses.desc_user_addr, host(driver.layout.descriptors));
        assert_eq!(addresses.avail_user_addr, host(driver.layout.available));
        assert_eq!(addresses.used_user_addr, host(driver.layout.used));
    }

    #[test]
    fn the_kernel_is_told_of_all_memory() {
        let ranges = [(GuestAddress(0), 0x10_0000), (GuestAddress(HIGH_RAM_START), 0x20_0000)];
        let memory = GuestMemory::from_ranges(&ranges).unwrap();
        let regions = regions(&memory);
        let found: Vec<_> =
            regions.iter().map(|region| (region.guest_phys_addr, region.memory_size)).collect();
        assert_eq!(found, [(0, 0x10_0000), (HIGH_RAM_START, 0x20_0000)]);
        for region in regions {
            let host = memory.get_host_address(GuestAddress(region.guest_phys_addr)).unwrap();
            assert_eq!(region.userspace_addr, host.addr() as u64);
        }
    }
}
