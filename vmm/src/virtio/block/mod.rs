//! The block device (section 5.2): a disk's requests, over any [`Backend`](innkeeper_block::Backend).
//!
//! A [`Disk`] is what was attached: the backend, its limits and its counters. It outlives the guest's resets, and each
//! machine gets a [`Block`] device made from it. Every queue that the driver sets up has a thread and an engine of its
//! own: a [`QueueHandler`] takes chains from the queue, has them understood (`request`), hands their steps to the
//! engine, and gives them back when the engine is done.

mod counters;
mod disk;
mod handler;
#[cfg(test)]
mod recorder;
mod request;
mod revocable;

use std::io;
use std::sync::Arc;

use innkeeper_block::SECTOR_SIZE;
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_MQ, VIRTIO_BLK_F_RO,
    VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_WRITE_ZEROES, virtio_blk_config,
};
use vm_memory::ByteValued;

use super::worker::Workers;
use super::{Activation, DeviceType, VirtioDevice, read_bytes};

pub use disk::{Disk, InvalidDisk, InvalidSerial, MAX_QUEUES, Revoked, SERIAL_SIZE, SerialNumber};
pub use handler::QueueHandler;

/// Entries of each queue.
const QUEUE_SIZE: u16 = 256;

/// Data segments of a request: the queue's size, less one descriptor each for the header and the status.
const SEGMENTS_MAX: u32 = QUEUE_SIZE as u32 - 2;
/// Ranges in one discard or write-zeroes request.
const RANGES_MAX: u32 = 8;
/// Sectors in a range to discard (1 GiB), and in one to zero (16 MiB): zeroes may have to be written.
const DISCARD_SECTORS_MAX: u32 = 1 << 21;
const ZERO_SECTORS_MAX: u32 = 1 << 15;
/// Discards are cheapest in whole pages of the host's file system.
const DISCARD_ALIGNMENT_SECTORS: u32 = 8;

/// The configuration structure (section 5.2.4).
#[derive(Clone, Copy, Default)]
#[repr(transparent)]
struct Config(virtio_blk_config);

// SAFETY: a packed C structure of integers: no padding, and every bit pattern is a value.
unsafe impl ByteValued for Config {}

/// The device.
#[derive(Debug)]
pub struct Block {
    disk: Arc<Disk>,
    queue_sizes: Vec<u16>,
    workers: Workers,
}

impl Block {
    /// A device for `disk`, which has no other at the same time.
    pub fn new(disk: Arc<Disk>) -> Self {
        let queue_sizes = vec![QUEUE_SIZE; usize::from(disk.queues())];
        Self { disk, queue_sizes, workers: Workers::default() }
    }

    /// The handlers of the queues that the driver has set up, in their order: what the device's threads run, and what
    /// a fuzzer calls without any.
    pub fn handlers(disk: &Arc<Disk>, activation: Activation) -> io::Result<Vec<QueueHandler>> {
        // A driver that does not know of more uses the first queue (section 5.2.5).
        let count = if activation.has(VIRTIO_BLK_F_MQ) { disk.queues() } else { 1 };
        let is_write_through = !activation.has(VIRTIO_BLK_F_FLUSH);
        let Activation { memory, queues, .. } = activation;
        queues
            .into_iter()
            .take(count.into())
            .enumerate()
            .filter_map(|(index, queue)| Some((index, queue?)))
            .map(|(index, queue)| QueueHandler::new(disk, index, &memory, queue, is_write_through))
            .collect()
    }
}

impl VirtioDevice for Block {
    fn device_type(&self) -> DeviceType {
        DeviceType::Block
    }

    fn features(&self) -> u64 {
        let common = 1 << VIRTIO_BLK_F_SEG_MAX | 1 << VIRTIO_BLK_F_BLK_SIZE | 1 << VIRTIO_BLK_F_FLUSH;
        let queues = if self.disk.queues() > 1 { 1 << VIRTIO_BLK_F_MQ } else { 0 };
        let changing = if self.disk.is_read_only() {
            1 << VIRTIO_BLK_F_RO
        } else {
            1 << VIRTIO_BLK_F_DISCARD | 1 << VIRTIO_BLK_F_WRITE_ZEROES
        };
        common | queues | changing
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn read_config(&self, offset: usize, data: &mut [u8]) {
        let config = virtio_blk_config {
            // Made anew each time: a disk may have become larger.
            capacity: (self.disk.capacity() / SECTOR_SIZE).to_le(),
            seg_max: SEGMENTS_MAX.to_le(),
            blk_size: (SECTOR_SIZE as u32).to_le(),
            num_queues: self.disk.queues().to_le(),
            max_discard_sectors: DISCARD_SECTORS_MAX.to_le(),
            max_discard_seg: RANGES_MAX.to_le(),
            discard_sector_alignment: DISCARD_ALIGNMENT_SECTORS.to_le(),
            max_write_zeroes_sectors: ZERO_SECTORS_MAX.to_le(),
            max_write_zeroes_seg: RANGES_MAX.to_le(),
            write_zeroes_may_unmap: 1,
            ..Default::default()
        };
        read_bytes(Config(config).as_slice(), offset, data);
    }

    fn activate(&mut self, activation: Activation) -> io::Result<()> {
        let notifier = Arc::clone(&activation.notifier);
        for handler in Self::handlers(&self.disk, activation)? {
            let name = format!("block{}", handler.index());
            self.workers.spawn(&name, Arc::clone(&notifier), handler)?;
        }
        Ok(())
    }

    fn reset(&mut self) {
        self.workers.stop();
    }
}

#[cfg(test)]
mod tests {
    use super::recorder::Recorder;
    use super::*;
    use innkeeper_protocol::Limits;
    use virtio_bindings::virtio_blk::VIRTIO_BLK_T_IN;

    use crate::virtio::harness::{self, Driver};
    use crate::virtio::worker::Handler;

    fn disk(backend: &Recorder, queues: u16) -> Arc<Disk> {
        let backend = Arc::new(backend.clone());
        Arc::new(Disk::new(backend, SerialNumber::default(), queues, Limits::default()).unwrap())
    }

    fn config<const SIZE: usize>(block: &Block, offset: usize) -> [u8; SIZE] {
        let mut field = [0; SIZE];
        block.read_config(offset, &mut field);
        field
    }

    #[test]
    fn a_read_only_disk_says_so() {
        let block = Block::new(disk(&Recorder::new(64).read_only(), 1));
        assert_ne!(block.features() & 1 << VIRTIO_BLK_F_RO, 0);
        assert_eq!(block.features() & 1 << VIRTIO_BLK_F_DISCARD, 0);
    }

    /// A mistake of Firecracker (issue 2172): a disk that could not be flushed, unless somebody asked for it. And one of
    /// QEMU (CVE-2026-48914): a disk that takes SCSI commands.
    #[test]
    fn every_disk_can_be_flushed_and_none_takes_scsi_commands() {
        const VIRTIO_BLK_F_SCSI: u32 = 7;
        for recorder in [Recorder::new(64), Recorder::new(64).asynchronous(), Recorder::new(64).read_only()] {
            let features = Block::new(disk(&recorder, 1)).features();
            assert_eq!(features >> VIRTIO_BLK_F_FLUSH & 1, 1);
            assert_eq!(features >> VIRTIO_BLK_F_SCSI & 1, 0);
        }
    }

    #[test]
    fn the_capacity_is_that_of_now() {
        const CAPACITY: usize = 0;
        let disk = disk(&Recorder::new(64), 1);
        let block = Block::new(Arc::clone(&disk));
        assert_eq!(config(&block, CAPACITY), 64u64.to_le_bytes());
        disk.resize(100 * SECTOR_SIZE).unwrap();
        assert_eq!(config(&block, CAPACITY), 100u64.to_le_bytes());
        assert!(disk.resize(64 * SECTOR_SIZE).is_err());
    }

    #[test]
    fn queues_are_offered_and_used_as_far_as_the_driver_likes() {
        const NUM_QUEUES: usize = 34;
        let memory = harness::memory(4);
        let cases = [
            // Queues, whether the driver knows of them, those it sets up, those that are served.
            (1, false, vec![0], vec![0]),
            (4, true, vec![0, 1, 2, 3], vec![0, 1, 2, 3]),
            (4, true, vec![1, 3], vec![1, 3]),
            (4, false, vec![0, 1], vec![0]),
            (4, true, vec![], vec![]),
        ];
        for (queues, knows, set_up, expected) in cases {
            let disk = disk(&Recorder::new(64), queues);
            let block = Block::new(Arc::clone(&disk));
            assert_eq!(block.queue_sizes(), vec![256; queues.into()]);
            assert_eq!(block.features() >> VIRTIO_BLK_F_MQ & 1 == 1, queues > 1);
            assert_eq!(config(&block, NUM_QUEUES), queues.to_le_bytes());
            let devices = (0..u64::from(queues))
                .map(|index| set_up.contains(&index).then(|| Driver::new(&memory, index, QUEUE_SIZE).1))
                .collect();
            let features = u64::from(knows) << VIRTIO_BLK_F_MQ;
            let handlers = Block::handlers(&disk, harness::activation(&memory, features, devices)).unwrap();
            let served: Vec<usize> = handlers.iter().map(QueueHandler::index).collect();
            assert_eq!(served, expected);
        }
    }

    /// What a disk has counted is there after a reset, and is told by queue.
    #[test]
    fn counters_outlive_a_device() {
        let memory = harness::memory(2);
        let disk = disk(&Recorder::new(64), 2);
        for round in 1..=2 {
            let (mut first, first_device) = Driver::new(&memory, 0, QUEUE_SIZE);
            let (mut second, second_device) = Driver::new(&memory, 1, QUEUE_SIZE);
            let activation = harness::activation(
                &memory,
                1 << VIRTIO_BLK_F_MQ,
                vec![Some(first_device), Some(second_device)],
            );
            let mut handlers = Block::handlers(&disk, activation).unwrap();
            let header = [VIRTIO_BLK_T_IN.to_le_bytes(), [0; 4], [0; 4], [0; 4]].concat();
            first.request(&[&header], &[512, 1]);
            second.request(&[&header], &[1024, 1]);
            for (handler, times) in handlers.iter_mut().zip([1, 2]) {
                (0..times).for_each(|_| handler.handle(handler::SOURCE_DOORBELL).unwrap());
            }
            assert!(first.used().is_some() && second.used().is_some());
            let metrics = disk.metrics();
            assert_eq!(metrics.kicks, [round, 2 * round]);
            assert_eq!((metrics.read_bytes, metrics.reads.count), (1536 * round, 2 * round));
        }
    }

    /// The whole of it, with threads: the last step before the transport.
    #[test]
    fn threads_serve_the_queues_until_the_reset() {
        let memory = harness::memory(2);
        let mut block = Block::new(disk(&Recorder::new(64), 2));
        let (mut drivers, devices): (Vec<_>, Vec<_>) =
            (0..2).map(|index| Driver::new(&memory, index, QUEUE_SIZE)).unzip();
        let doorbells: Vec<_> = devices.iter().map(|device| device.doorbell.try_clone().unwrap()).collect();
        let queues = devices.into_iter().map(Some).collect();
        block.activate(harness::activation(&memory, 1 << VIRTIO_BLK_F_MQ, queues)).unwrap();
        let header = [VIRTIO_BLK_T_IN.to_le_bytes(), [0; 4], [0; 4], [0; 4]].concat();
        for (driver, doorbell) in drivers.iter_mut().zip(&doorbells) {
            let (head, _) = driver.request(&[&header], &[512, 1]);
            doorbell.write(1).unwrap();
            let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
            let used = loop {
                if let Some(used) = driver.used() {
                    break used;
                }
                assert!(std::time::Instant::now() < deadline);
                std::thread::yield_now();
            };
            assert_eq!(used, (head, 513));
        }
        block.reset();
    }
}
