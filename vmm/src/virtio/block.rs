//! The block device (section 5.2): requests to a disk, over any [`Backend`].

use std::fmt;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use innkeeper_block::{Backend, SECTOR_SIZE};
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX,
    VIRTIO_BLK_F_WRITE_ZEROES, VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP,
    VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT,
    VIRTIO_BLK_T_WRITE_ZEROES, VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP, virtio_blk_config,
    virtio_blk_discard_write_zeroes, virtio_blk_outhdr,
};
use vm_memory::ByteValued;

use super::queue::{Buffers, Chain, QueueError};
use super::worker::{Handler, Worker, as_fd};
use super::{Activation, ActiveQueue, DeviceType, VirtioDevice};
use crate::memory::GuestMemory;

const QUEUE_SIZES: [u16; 1] = [256];

/// Data segments of a request: the queue's size, less one descriptor each for the header and the status.
const SEGMENTS_MAX: u32 = QUEUE_SIZES[0] as u32 - 2;
/// Ranges in one discard or write-zeroes request.
const RANGES_MAX: u32 = 8;
/// Sectors in a range to discard (1 GiB), and in one to zero (16 MiB): zeroes may have to be written.
const DISCARD_SECTORS_MAX: u32 = 1 << 21;
const ZERO_SECTORS_MAX: u32 = 1 << 15;
/// Bytes in one read or write. Drivers ask for a few MiB at most; a chain could name 4 GiB.
const TRANSFER_MAX: usize = 64 << 20;
/// Discards are cheapest in whole pages of the host's file system.
const DISCARD_ALIGNMENT_SECTORS: u32 = 8;

/// Bytes that virtio has for a disk's serial number.
pub const SERIAL_SIZE: usize = 20;

/// A disk's serial number: up to 20 printable ASCII characters.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Serial([u8; SERIAL_SIZE]);

/// Why a text is not a serial number.
#[derive(Debug, thiserror::Error)]
#[error("a disk's serial number is at most {SERIAL_SIZE} printable ASCII characters")]
pub struct InvalidSerial;

impl std::str::FromStr for Serial {
    type Err = InvalidSerial;

    fn from_str(text: &str) -> Result<Self, InvalidSerial> {
        let mut serial = Self::default();
        let room = serial.0.get_mut(..text.len()).ok_or(InvalidSerial)?;
        room.copy_from_slice(text.as_bytes());
        if text.bytes().all(|byte| byte.is_ascii_graphic()) { Ok(serial) } else { Err(InvalidSerial) }
    }
}

#[derive(Clone, Copy, Default)]
#[repr(transparent)]
struct Config(virtio_blk_config);

// SAFETY: a packed C structure of integers: no padding, and every bit pattern is a value.
unsafe impl ByteValued for Config {}

#[derive(Clone, Copy, Default)]
#[repr(transparent)]
struct Header(virtio_blk_outhdr);

// SAFETY: 4 + 4 + 8 bytes of integers without padding.
unsafe impl ByteValued for Header {}

#[derive(Clone, Copy, Default)]
#[repr(transparent)]
struct Range(virtio_blk_discard_write_zeroes);

// SAFETY: 8 + 4 + 4 bytes of integers without padding.
unsafe impl ByteValued for Range {}

/// The device.
pub struct Block {
    backend: Arc<dyn Backend>,
    serial: Serial,
    config: Config,
    worker: Option<Worker>,
}

impl fmt::Debug for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Block").field("serial", &self.serial).finish_non_exhaustive()
    }
}

impl Block {
    /// A disk over `backend`.
    pub fn new(backend: Arc<dyn Backend>, serial: Serial) -> Self {
        let config = virtio_blk_config {
            capacity: (backend.capacity() / SECTOR_SIZE).to_le(),
            seg_max: SEGMENTS_MAX.to_le(),
            blk_size: (SECTOR_SIZE as u32).to_le(),
            max_discard_sectors: DISCARD_SECTORS_MAX.to_le(),
            max_discard_seg: RANGES_MAX.to_le(),
            discard_sector_alignment: DISCARD_ALIGNMENT_SECTORS.to_le(),
            max_write_zeroes_sectors: ZERO_SECTORS_MAX.to_le(),
            max_write_zeroes_seg: RANGES_MAX.to_le(),
            write_zeroes_may_unmap: 1,
            ..Default::default()
        };
        Self { backend, serial, config: Config(config), worker: None }
    }
}

impl VirtioDevice for Block {
    fn device_type(&self) -> DeviceType {
        DeviceType::Block
    }

    fn features(&self) -> u64 {
        let common = 1 << VIRTIO_BLK_F_SEG_MAX | 1 << VIRTIO_BLK_F_BLK_SIZE | 1 << VIRTIO_BLK_F_FLUSH;
        let changing = if self.backend.is_read_only() {
            1 << VIRTIO_BLK_F_RO
        } else {
            1 << VIRTIO_BLK_F_DISCARD | 1 << VIRTIO_BLK_F_WRITE_ZEROES
        };
        common | changing
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn config(&self) -> &[u8] {
        self.config.as_slice()
    }

    fn activate(&mut self, activation: Activation) -> io::Result<()> {
        let can_flush = activation.has(VIRTIO_BLK_F_FLUSH);
        let Activation { memory, queues, notifier, .. } = activation;
        if let Some(queue) = queues.into_iter().flatten().next() {
            let disk = Disk {
                backend: Arc::clone(&self.backend),
                serial: self.serial.clone(),
                is_write_through: !can_flush,
            };
            self.worker = Some(Worker::spawn("block", notifier, Requests { memory, queue, disk })?);
        }
        Ok(())
    }

    fn reset(&mut self) {
        self.worker = None;
    }
}

struct Requests {
    memory: Arc<GuestMemory>,
    queue: ActiveQueue,
    disk: Disk,
}

impl Handler for Requests {
    fn sources(&self) -> Vec<(BorrowedFd<'_>, u64)> {
        vec![(as_fd(&self.queue.doorbell), 0)]
    }

    fn handle(&mut self, _source: u64) -> Result<(), QueueError> {
        self.queue.drain(&self.memory, |chain| self.disk.serve(chain))
    }
}

struct Disk {
    backend: Arc<dyn Backend>,
    serial: Serial,
    /// The driver cannot flush, so a write that is completed must be durable (section 5.2.6.2).
    is_write_through: bool,
}

/// Why a request fails, in the terms of its status byte.
enum RequestError {
    Io(io::Error),
    Unsupported,
}

impl From<io::Error> for RequestError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl Disk {
    /// Carries out one request and writes its status; returns how many bytes were written to the chain.
    ///
    /// The driver may cut header, data and status into descriptors as it likes (section 2.7.4): the header
    /// is the first 16 readable bytes, the status the last writable one.
    fn serve(&self, chain: &mut Chain<'_>) -> Result<u32, QueueError> {
        let too_short = QueueError::TooShort(chain.head);
        let Some(Header(header)) = chain.readable.read() else {
            return Err(too_short);
        };
        let Some(data_out) = chain.readable.split_off(size_of::<Header>()) else {
            return Err(too_short);
        };
        let Some(data_in_size) = chain.writable.len().checked_sub(1) else {
            return Err(too_short);
        };
        let Some(status) = chain.writable.split_off(data_in_size) else {
            return Err(too_short);
        };
        let (code, written) = match self.execute(header, &data_out, &chain.writable) {
            Ok(written) => (VIRTIO_BLK_S_OK, written),
            Err(RequestError::Unsupported) => (VIRTIO_BLK_S_UNSUPP, 0),
            Err(RequestError::Io(error)) => {
                tracing::debug!(kind = header.type_, sector = header.sector, %error, "a disk request failed");
                (VIRTIO_BLK_S_IOERR, 0)
            }
        };
        status.copy_from(&[code as u8]);
        Ok(written + 1)
    }

    fn execute(
        &self,
        header: virtio_blk_outhdr,
        data_out: &Buffers<'_>,
        data_in: &Buffers<'_>,
    ) -> Result<u32, RequestError> {
        let sector = u64::from_le(header.sector);
        match u32::from_le(header.type_) {
            VIRTIO_BLK_T_IN => {
                self.backend.read(offset(sector, data_in.len())?, data_in.slices())?;
                Ok(data_in.len() as u32)
            }
            VIRTIO_BLK_T_OUT => {
                self.backend.write(offset(sector, data_out.len())?, data_out.slices())?;
                self.settle()
            }
            VIRTIO_BLK_T_FLUSH => {
                self.backend.flush()?;
                Ok(0)
            }
            VIRTIO_BLK_T_GET_ID => Ok(data_in.copy_from(&self.serial.0) as u32),
            VIRTIO_BLK_T_DISCARD => {
                for range in ranges(data_out)? {
                    // A discard has no flags (section 5.2.6.2).
                    if range.flags != 0 {
                        return Err(RequestError::Unsupported);
                    }
                    let (offset, length) = check(&range, DISCARD_SECTORS_MAX)?;
                    self.backend.discard(offset, length)?;
                }
                Ok(0)
            }
            VIRTIO_BLK_T_WRITE_ZEROES => {
                for range in ranges(data_out)? {
                    if range.flags & !VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP != 0 {
                        return Err(RequestError::Unsupported);
                    }
                    let (offset, length) = check(&range, ZERO_SECTORS_MAX)?;
                    self.backend.write_zeroes(offset, length, range.flags != 0)?;
                }
                self.settle()
            }
            _ => Err(RequestError::Unsupported),
        }
    }

    /// Completes a request that has changed the disk; it has nothing to say to the driver.
    fn settle(&self) -> Result<u32, RequestError> {
        if self.is_write_through {
            self.backend.flush()?;
        }
        Ok(0)
    }
}

/// The bytes of a range, if it keeps to the limit that the device has named.
fn check(range: &virtio_blk_discard_write_zeroes, sectors_max: u32) -> io::Result<(u64, u64)> {
    if range.num_sectors > sectors_max {
        return Err(invalid("the range is longer than the device allows"));
    }
    let length = u64::from(range.num_sectors) * SECTOR_SIZE;
    let offset = range.sector.checked_mul(SECTOR_SIZE).ok_or_else(|| invalid("the sector does not exist"))?;
    Ok((offset, length))
}

fn invalid(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, what)
}

/// The byte offset of a request for `length` bytes from `sector` on.
fn offset(sector: u64, length: usize) -> io::Result<u64> {
    if !(length as u64).is_multiple_of(SECTOR_SIZE) || length > TRANSFER_MAX {
        return Err(invalid("the request is not for whole sectors, or for too many"));
    }
    sector.checked_mul(SECTOR_SIZE).ok_or_else(|| invalid("the sector does not exist"))
}

/// The ranges of a discard or write-zeroes request.
fn ranges(data: &Buffers<'_>) -> io::Result<Vec<virtio_blk_discard_write_zeroes>> {
    let size = size_of::<Range>();
    let count = data.len() / size;
    if !data.len().is_multiple_of(size) || count == 0 || count > RANGES_MAX as usize {
        return Err(invalid("the number of ranges is not one that the device allows"));
    }
    let mut bytes = vec![0; count * size];
    data.copy_to(&mut bytes);
    let decode = |bytes: &[u8]| {
        let mut range = Range::default();
        range.as_mut_slice().copy_from_slice(bytes);
        let Range(virtio_blk_discard_write_zeroes { sector, num_sectors, flags }) = range;
        virtio_blk_discard_write_zeroes {
            sector: u64::from_le(sector),
            num_sectors: u32::from_le(num_sectors),
            flags: u32::from_le(flags),
        }
    };
    Ok(bytes.chunks_exact(size).map(decode).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;
    use vm_memory::VolatileSlice;

    const CAPACITY: u64 = 64 * SECTOR_SIZE;

    /// Counts calls and remembers the last one.
    #[derive(Default)]
    struct Recorder {
        calls: Mutex<Vec<String>>,
        read_only: bool,
    }

    impl Recorder {
        fn record(&self, call: String) -> io::Result<()> {
            self.calls.lock().unwrap().push(call);
            Ok(())
        }
    }

    impl Backend for Recorder {
        fn capacity(&self) -> u64 {
            CAPACITY
        }

        fn is_read_only(&self) -> bool {
            self.read_only
        }

        fn read(&self, offset: u64, buffers: &[VolatileSlice<'_>]) -> io::Result<()> {
            buffers.iter().for_each(|buffer| buffer.copy_from(&vec![0xabu8; buffer.len()][..]));
            self.record(format!("read {offset}"))
        }

        fn write(&self, offset: u64, buffers: &[VolatileSlice<'_>]) -> io::Result<()> {
            self.record(format!("write {offset} {}", buffers.iter().map(VolatileSlice::len).sum::<usize>()))
        }

        fn flush(&self) -> io::Result<()> {
            self.record("flush".into())
        }

        fn discard(&self, offset: u64, length: u64) -> io::Result<()> {
            self.record(format!("discard {offset} {length}"))
        }

        fn write_zeroes(&self, offset: u64, length: u64, may_free: bool) -> io::Result<()> {
            self.record(format!("zero {offset} {length} {may_free}"))
        }
    }

    /// Runs one request whose parts are cut into pieces of `piece` bytes; returns status and written bytes.
    fn request(
        kind: u32,
        sector: u64,
        out: &[u8],
        in_size: usize,
        piece: usize,
    ) -> (Vec<String>, Vec<u8>, u32) {
        let recorder = Arc::new(Recorder::default());
        let disk = Disk {
            backend: recorder.clone(),
            serial: "vol0123456789abcdef0".parse().unwrap(),
            is_write_through: false,
        };
        let mut readable = [&kind.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes(), out].concat();
        let mut writable = vec![0xee; in_size + 1];
        let mut chain =
            Chain { head: 0, readable: cut(&mut readable, piece), writable: cut(&mut writable, piece) };
        let written = disk.serve(&mut chain).unwrap();
        let calls = recorder.calls.lock().unwrap().clone();
        (calls, writable, written)
    }

    fn cut(bytes: &mut [u8], piece: usize) -> Buffers<'_> {
        let mut buffers = Buffers::default();
        for part in bytes.chunks_mut(piece) {
            buffers.push(VolatileSlice::from(part));
        }
        buffers
    }

    #[test]
    fn requests_may_be_cut_anywhere() {
        for piece in [1, 7, 16, 512, 4096] {
            let (calls, data, written) = request(VIRTIO_BLK_T_IN, 3, &[], 1024, piece);
            assert_eq!(calls, ["read 1536"]);
            assert_eq!(
                (data[0], data[1023], data[1024], written),
                (0xab, 0xab, 0, 1025),
                "pieces of {piece}"
            );
            let (calls, data, written) = request(VIRTIO_BLK_T_OUT, 2, &[1; 1024], 0, piece);
            assert_eq!(calls, ["write 1024 1024"]);
            assert_eq!((data[0], written), (0, 1));
        }
    }

    #[test]
    fn a_flush_reaches_the_backend() {
        let (calls, data, _) = request(VIRTIO_BLK_T_FLUSH, 0, &[], 0, 4096);
        assert_eq!((calls, data), (vec!["flush".to_string()], vec![0]));
    }

    #[test]
    fn a_driver_that_cannot_flush_gets_durable_writes() {
        let recorder = Arc::new(Recorder::default());
        let disk = Disk { backend: recorder.clone(), serial: Serial::default(), is_write_through: true };
        let mut readable = [&VIRTIO_BLK_T_OUT.to_le_bytes()[..], &[0; 12], &[0; 512]].concat();
        let mut status = [0xff];
        disk.serve(&mut Chain { head: 0, readable: cut(&mut readable, 99), writable: cut(&mut status, 1) })
            .unwrap();
        assert_eq!((recorder.calls.lock().unwrap().join(", "), status), ("write 0 512, flush".into(), [0]));
    }

    #[test]
    fn the_serial_is_given_as_far_as_it_fits() {
        let (_, data, written) = request(VIRTIO_BLK_T_GET_ID, 0, &[], 20, 4096);
        assert_eq!((&data[..20], written), (&b"vol0123456789abcdef0"[..], 21));
        let (_, data, written) = request(VIRTIO_BLK_T_GET_ID, 0, &[], 3, 4096);
        assert_eq!((&data[..], written), (&b"vol\0"[..], 4));
    }

    fn range(sector: u64, sectors: u32, flags: u32) -> Vec<u8> {
        [&sector.to_le_bytes()[..], &sectors.to_le_bytes(), &flags.to_le_bytes()].concat()
    }

    #[test]
    fn discard_and_write_zeroes_keep_to_their_limits() {
        let two = [range(1, 2, 0), range(8, 8, 0)].concat();
        let (calls, data, _) = request(VIRTIO_BLK_T_DISCARD, 0, &two, 0, 5);
        assert_eq!(
            (calls, data),
            (vec!["discard 512 1024".into(), "discard 4096 4096".to_string()], vec![0])
        );
        let (calls, data, _) = request(VIRTIO_BLK_T_WRITE_ZEROES, 0, &range(1, 1, 1), 0, 4096);
        assert_eq!((calls, data), (vec!["zero 512 512 true".to_string()], vec![0]));

        let (ok, ioerr, unsupp) = (0, 1, 2);
        let cases: [(u32, Vec<u8>, u8); 8] = [
            (VIRTIO_BLK_T_DISCARD, vec![], ioerr),
            (VIRTIO_BLK_T_DISCARD, vec![0; 15], ioerr),
            (VIRTIO_BLK_T_DISCARD, vec![0; 16 * 33], ioerr),
            (VIRTIO_BLK_T_DISCARD, range(0, 1, 1), unsupp),
            (VIRTIO_BLK_T_DISCARD, range(0, u32::MAX, 0), ioerr),
            (VIRTIO_BLK_T_WRITE_ZEROES, range(u64::MAX, 1, 0), ioerr),
            (VIRTIO_BLK_T_WRITE_ZEROES, range(0, 1, 2), unsupp),
            (VIRTIO_BLK_T_WRITE_ZEROES, range(0, 1, 0), ok),
        ];
        for (kind, out, expected) in cases {
            let (calls, data, _) = request(kind, 0, &out, 0, 4096);
            assert_eq!(data, [expected], "{kind} {out:?}");
            assert_eq!(calls.is_empty(), expected != ok);
        }
    }

    #[test]
    fn unknown_and_odd_requests_get_a_status() {
        assert_eq!(request(99, 0, &[], 0, 16).1, [2]);
        assert_eq!(request(VIRTIO_BLK_T_IN, 0, &[], 100, 4096).1[100], 1, "not whole sectors");
        assert_eq!(request(VIRTIO_BLK_T_OUT, u64::MAX, &[0; 512], 0, 4096).1, [1], "the offset overflows");
    }

    #[test]
    fn a_request_without_header_or_status_is_the_drivers_fault() {
        let disk = Disk {
            backend: Arc::new(Recorder::default()),
            serial: Serial::default(),
            is_write_through: false,
        };
        for (readable, writable) in [(15, 1), (16, 0), (0, 0)] {
            let (mut readable, mut writable) = (vec![0; readable], vec![0; writable]);
            let mut chain =
                Chain { head: 7, readable: cut(&mut readable, 99), writable: cut(&mut writable, 99) };
            assert!(matches!(disk.serve(&mut chain), Err(QueueError::TooShort(7))));
        }
    }

    #[test]
    fn a_read_only_disk_says_so() {
        let disk =
            Block::new(Arc::new(Recorder { read_only: true, ..Default::default() }), Serial::default());
        assert_ne!(disk.features() & 1 << VIRTIO_BLK_F_RO, 0);
        assert_eq!(disk.features() & 1 << VIRTIO_BLK_F_DISCARD, 0);
        assert_eq!(disk.config()[..8], 64u64.to_le_bytes());
    }

    #[test]
    fn serials_fit_or_are_refused() {
        assert!("12345678901234567890".parse::<Serial>().is_ok());
        for bad in ["123456789012345678901", "a b", "a\n", "ä"] {
            assert!(bad.parse::<Serial>().is_err(), "{bad}");
        }
    }
}
