//! The block device (section 5.2): requests to a disk, over any [`Backend`].

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use innkeeper_block::{Backend, Completion, Engine, Operation, SECTOR_SIZE, Segments};
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX,
    VIRTIO_BLK_F_WRITE_ZEROES, VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP,
    VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT,
    VIRTIO_BLK_T_WRITE_ZEROES, VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP, virtio_blk_config,
    virtio_blk_discard_write_zeroes, virtio_blk_outhdr,
};
use vm_memory::ByteValued;

use super::queue::{Buffers, Chain, QueueError};
use super::worker::{Handler, Worker};
use super::{Activation, ActiveQueue, DeviceType, VirtioDevice};
use crate::event::as_fd;
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
    serial: SerialNumber,
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
    pub fn new(backend: Arc<dyn Backend>, serial: SerialNumber) -> Self {
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
        let is_write_through = !activation.has(VIRTIO_BLK_F_FLUSH);
        let Activation { memory, queues, notifier, .. } = activation;
        if let Some(queue) = queues.into_iter().flatten().next() {
            let engine = self.backend.engine(QUEUE_SIZES[0])?;
            let parser =
                Parser { memory: Arc::clone(&memory), serial: self.serial.clone(), is_write_through };
            let requests = Requests { engine, in_progress: HashMap::new(), parser };
            self.worker = Some(Worker::spawn("block", notifier, Disk { memory, queue, requests })?);
        }
        Ok(())
    }

    fn reset(&mut self) {
        self.worker = None;
    }
}

/// The queue's thread: it takes requests in, and gives them back when the engine has carried them out.
struct Disk {
    memory: Arc<GuestMemory>,
    queue: ActiveQueue,
    requests: Requests,
}

const SOURCE_DOORBELL: u64 = 0;
const SOURCE_ENGINE: u64 = 1;

impl Handler for Disk {
    fn sources(&self) -> Vec<(BorrowedFd<'_>, u64)> {
        let doorbell = (as_fd(&self.queue.doorbell), SOURCE_DOORBELL);
        let engine = self.requests.engine.event().map(|event| (event, SOURCE_ENGINE));
        [doorbell].into_iter().chain(engine).collect()
    }

    fn handle(&mut self, source: u64) -> Result<(), QueueError> {
        let Self { memory, queue, requests } = self;
        if source == SOURCE_DOORBELL {
            queue.drain(memory, |chain| requests.begin(chain))?;
            requests.engine.start().map_err(QueueError::Engine)?;
        }
        let mut has_finished = false;
        while let Some((head, written)) = requests.finish() {
            queue.queue.push(memory, head, written)?;
            has_finished = true;
        }
        // One interrupt for all that came in together.
        if has_finished { queue.announce(memory) } else { Ok(()) }
    }
}

/// The requests of one queue.
struct Requests {
    engine: Box<dyn Engine>,
    /// What the engine works on, by the head of its chain.
    in_progress: HashMap<u16, Request>,
    parser: Parser,
}

/// A request that was understood: what is left to do, and what to tell the driver at the end.
struct Request {
    steps: VecDeque<Operation>,
    /// Bytes of data that the driver gets.
    written: u32,
    status: Segments,
}

impl Request {
    /// Writes the status; returns how many bytes were written to the chain.
    fn end(mut self, result: Result<(), RequestError>) -> u32 {
        let (code, written) = match result {
            Ok(()) => (VIRTIO_BLK_S_OK, self.written),
            Err(RequestError::Unsupported) => (VIRTIO_BLK_S_UNSUPP, 0),
            Err(RequestError::Io(error)) => {
                tracing::debug!(%error, "a disk request failed");
                (VIRTIO_BLK_S_IOERR, 0)
            }
        };
        self.status.copy_from(&[code as u8]);
        written + 1
    }
}

/// Why a request fails, in the terms of its status byte.
#[derive(Debug)]
enum RequestError {
    Io(io::Error),
    Unsupported,
}

impl From<io::Error> for RequestError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl Requests {
    /// Takes a request in. Returns how many bytes were written to its chain if it is over already.
    fn begin(&mut self, chain: &mut Chain<'_>) -> Result<Option<u32>, QueueError> {
        let (mut request, problem) = self.parser.parse(chain)?;
        if let Some(problem) = problem {
            return Ok(Some(request.end(Err(problem))));
        }
        // A synchronous engine is done with a step as soon as it has it.
        let is_synchronous = self.engine.event().is_none();
        while let Some(step) = request.steps.pop_front() {
            self.engine.submit(chain.head, step);
            if !is_synchronous {
                self.in_progress.insert(chain.head, request);
                return Ok(None);
            }
            if let Some(Completion { result: Err(error), .. }) = self.engine.complete() {
                return Ok(Some(request.end(Err(error.into()))));
            }
        }
        Ok(Some(request.end(Ok(()))))
    }

    /// The next request that is over: the head of its chain, and how many bytes were written to it.
    fn finish(&mut self) -> Option<(u16, u32)> {
        loop {
            let Completion { slot, result } = self.engine.complete()?;
            let Some(mut request) = self.in_progress.remove(&slot) else { continue };
            match (result, request.steps.pop_front()) {
                (Ok(()), Some(step)) => {
                    self.engine.submit(slot, step);
                    self.in_progress.insert(slot, request);
                    if let Err(error) = self.engine.start() {
                        // It stays submitted, and goes with the next one.
                        tracing::debug!(%error, "the engine is busy");
                    }
                }
                (result, _) => return Some((slot, request.end(result.map_err(RequestError::from)))),
            }
        }
    }
}

/// Turns chains into requests.
struct Parser {
    memory: Arc<GuestMemory>,
    serial: SerialNumber,
    /// The driver cannot flush, so a write that is completed must be durable (section 5.2.6.2).
    is_write_through: bool,
}

impl Parser {
    /// The request in `chain`, and what is wrong with it, if its status is all that can be told.
    ///
    /// The driver may cut header, data and status into descriptors as it likes (section 2.7.4): the header
    /// is the first 16 readable bytes, the status the last writable one.
    fn parse(&self, chain: &mut Chain<'_>) -> Result<(Request, Option<RequestError>), QueueError> {
        let too_short = || QueueError::TooShort(chain.head);
        let Header(header) = chain.readable.read().ok_or_else(too_short)?;
        let data_out = chain.readable.split_off(size_of::<Header>()).ok_or_else(too_short)?;
        let data_in_size = chain.writable.len().checked_sub(1).ok_or_else(too_short)?;
        let status = chain.writable.split_off(data_in_size).ok_or_else(too_short)?;
        let status = status.to_segments(&self.memory).ok_or(QueueError::Address(chain.head))?;
        let mut request = Request { steps: VecDeque::new(), written: 0, status };
        let problem = self.plan(header, &data_out, &chain.writable, &mut request).err();
        Ok((request, problem))
    }

    /// Works out the steps.
    fn plan(
        &self,
        header: virtio_blk_outhdr,
        data_out: &Buffers<'_>,
        data_in: &Buffers<'_>,
        request: &mut Request,
    ) -> Result<(), RequestError> {
        let segments = |buffers: &Buffers<'_>| {
            buffers
                .to_segments(&self.memory)
                .ok_or_else(|| invalid("the buffers are not in the guest's memory"))
        };
        let sector = u64::from_le(header.sector);
        let kind = u32::from_le(header.type_);
        match kind {
            VIRTIO_BLK_T_IN => {
                let offset = offset(sector, data_in.len())?;
                request.steps.push_back(Operation::Read { offset, segments: segments(data_in)? });
                request.written = data_in.len() as u32;
            }
            VIRTIO_BLK_T_OUT => {
                let offset = offset(sector, data_out.len())?;
                request.steps.push_back(Operation::Write { offset, segments: segments(data_out)? });
            }
            VIRTIO_BLK_T_FLUSH => request.steps.push_back(Operation::Flush),
            VIRTIO_BLK_T_GET_ID => request.written = data_in.copy_from(&self.serial.0) as u32,
            VIRTIO_BLK_T_DISCARD => {
                for range in ranges(data_out)? {
                    // A discard has no flags (section 5.2.6.2).
                    if range.flags != 0 {
                        return Err(RequestError::Unsupported);
                    }
                    let (offset, length) = check(&range, DISCARD_SECTORS_MAX)?;
                    request.steps.push_back(Operation::Discard { offset, length });
                }
            }
            VIRTIO_BLK_T_WRITE_ZEROES => {
                for range in ranges(data_out)? {
                    if range.flags & !VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP != 0 {
                        return Err(RequestError::Unsupported);
                    }
                    let (offset, length) = check(&range, ZERO_SECTORS_MAX)?;
                    request.steps.push_back(Operation::WriteZeroes {
                        offset,
                        length,
                        may_free: range.flags != 0,
                    });
                }
            }
            _ => return Err(RequestError::Unsupported),
        }
        if self.is_write_through && matches!(kind, VIRTIO_BLK_T_OUT | VIRTIO_BLK_T_WRITE_ZEROES) {
            request.steps.push_back(Operation::Flush);
        }
        Ok(())
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
    use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

    /// Remembers operations, and completes them when it is told to, or at once.
    #[derive(Default)]
    struct Recorder {
        calls: Arc<Mutex<Vec<String>>>,
        waiting: VecDeque<u16>,
        event: Option<std::fs::File>,
        fails: bool,
    }

    impl Engine for Recorder {
        fn submit(&mut self, slot: u16, operation: Operation) {
            let call = match operation {
                Operation::Read { offset, mut segments } => {
                    let length = segments.copy_from(&vec![0xab; segments.len()]);
                    format!("read {offset} {length}")
                }
                Operation::Write { offset, segments } => format!("write {offset} {}", segments.len()),
                Operation::Flush => "flush".into(),
                Operation::Discard { offset, length } => format!("discard {offset} {length}"),
                Operation::WriteZeroes { offset, length, may_free } => {
                    format!("zero {offset} {length} {may_free}")
                }
            };
            self.calls.lock().unwrap().push(call);
            self.waiting.push_back(slot);
        }

        fn start(&mut self) -> io::Result<()> {
            Ok(())
        }

        fn complete(&mut self) -> Option<Completion> {
            let result = if self.fails { Err(io::ErrorKind::Other.into()) } else { Ok(()) };
            self.waiting.pop_front().map(|slot| Completion { slot, result })
        }

        fn event(&self) -> Option<BorrowedFd<'_>> {
            self.event.as_ref().map(std::os::fd::AsFd::as_fd)
        }
    }

    /// A disk of 64 sectors that is only looked at.
    struct Blank {
        read_only: bool,
    }

    impl Backend for Blank {
        fn capacity(&self) -> u64 {
            64 * SECTOR_SIZE
        }

        fn is_read_only(&self) -> bool {
            self.read_only
        }

        fn engine(&self, _depth: u16) -> io::Result<Box<dyn Engine>> {
            Ok(Box::new(Recorder::default()))
        }
    }

    const OUT: u64 = 0x1000;
    const IN: u64 = 0x8000;

    /// Requests whose parts lie in guest memory, cut into pieces of `piece` bytes.
    struct Bench {
        memory: Arc<GuestMemory>,
        requests: Requests,
        calls: Arc<Mutex<Vec<String>>>,
        piece: usize,
    }

    impl Bench {
        fn new(engine: Recorder) -> Self {
            let memory = Arc::new(GuestMemory::from_ranges(&[(GuestAddress(0), 0x2_0000)]).unwrap());
            let calls = Arc::clone(&engine.calls);
            let serial = "vol0123456789abcdef0".parse().unwrap();
            let parser = Parser { memory: Arc::clone(&memory), serial, is_write_through: false };
            let requests = Requests { engine: Box::new(engine), in_progress: HashMap::new(), parser };
            Self { memory, requests, calls, piece: 4096 }
        }

        fn buffers<'m>(memory: &'m GuestMemory, address: u64, length: usize, piece: usize) -> Buffers<'m> {
            let mut buffers = Buffers::default();
            for start in (0..length).step_by(piece) {
                let size = piece.min(length - start);
                buffers.push(memory.get_slice(GuestAddress(address + start as u64), size).unwrap());
            }
            buffers
        }

        /// Begins a request at `head`; returns the bytes written if it was over at once.
        fn begin(&mut self, head: u16, kind: u32, sector: u64, out: &[u8], in_size: usize) -> Option<u32> {
            let readable = [&kind.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes(), out].concat();
            let memory = Arc::clone(&self.memory);
            memory.write_slice(&readable, GuestAddress(OUT)).unwrap();
            memory.write_slice(&vec![0xee; in_size + 1], GuestAddress(IN)).unwrap();
            let mut chain = Chain {
                head,
                readable: Self::buffers(&memory, OUT, readable.len(), self.piece),
                writable: Self::buffers(&memory, IN, in_size + 1, self.piece),
            };
            self.requests.begin(&mut chain).unwrap()
        }

        fn written(&self, length: usize) -> Vec<u8> {
            let mut data = vec![0; length];
            self.memory.read_slice(&mut data, GuestAddress(IN)).unwrap();
            data
        }

        fn calls(&self) -> Vec<String> {
            std::mem::take(&mut *self.calls.lock().unwrap())
        }
    }

    /// Runs one request synchronously; returns what reached the engine, the status, and the bytes written.
    fn request(kind: u32, sector: u64, out: &[u8], in_size: usize) -> (Vec<String>, u8, u32) {
        let mut bench = Bench::new(Recorder::default());
        let written = bench.begin(0, kind, sector, out, in_size).unwrap();
        (bench.calls(), bench.written(in_size + 1)[in_size], written)
    }

    #[test]
    fn requests_may_be_cut_anywhere() {
        for piece in [1, 7, 16, 512, 4096] {
            let mut bench = Bench::new(Recorder::default());
            bench.piece = piece;
            assert_eq!(bench.begin(0, VIRTIO_BLK_T_IN, 3, &[], 1024), Some(1025), "pieces of {piece}");
            assert_eq!(bench.written(1025), [vec![0xab; 1024], vec![0]].concat());
            assert_eq!(bench.begin(0, VIRTIO_BLK_T_OUT, 2, &[1; 1024], 0), Some(1));
            assert_eq!(bench.calls(), ["read 1536 1024", "write 1024 1024"]);
        }
    }

    /// An asynchronous engine has several requests at a time, and each its own end.
    #[test]
    fn requests_end_when_the_engine_says_so() {
        let event = std::fs::File::open("/dev/null").unwrap();
        let mut bench = Bench::new(Recorder { event: Some(event), ..Default::default() });
        bench.requests.parser.is_write_through = true;
        assert_eq!(bench.begin(5, VIRTIO_BLK_T_OUT, 0, &[0; 512], 0), None);
        assert_eq!(bench.begin(6, VIRTIO_BLK_T_IN, 1, &[], 512), None);
        assert_eq!(bench.begin(7, VIRTIO_BLK_T_GET_ID, 0, &[], 20), Some(21), "this one needs no engine");
        // The write is followed by its flush before it is over.
        assert_eq!(bench.requests.finish(), Some((6, 513)));
        assert_eq!(bench.requests.finish(), Some((5, 1)));
        assert_eq!(bench.requests.finish(), None);
        assert_eq!(bench.calls(), ["write 0 512", "read 512 512", "flush"]);
        assert!(bench.requests.in_progress.is_empty());
    }

    #[test]
    fn a_failed_step_ends_the_request() {
        for event in [None, Some(std::fs::File::open("/dev/null").unwrap())] {
            let is_synchronous = event.is_none();
            let mut bench = Bench::new(Recorder { event, fails: true, ..Default::default() });
            bench.requests.parser.is_write_through = true;
            let at_once = bench.begin(1, VIRTIO_BLK_T_OUT, 0, &[0; 512], 0);
            let written =
                if is_synchronous { at_once } else { bench.requests.finish().map(|(_, written)| written) };
            assert_eq!((written, bench.written(1)), (Some(1), vec![VIRTIO_BLK_S_IOERR as u8]));
            assert_eq!(bench.calls(), ["write 0 512"], "no flush after a failed write");
        }
    }

    #[test]
    fn a_flush_reaches_the_engine() {
        assert_eq!(request(VIRTIO_BLK_T_FLUSH, 0, &[], 0), (vec!["flush".into()], 0, 1));
    }

    #[test]
    fn a_driver_that_cannot_flush_gets_durable_writes() {
        let mut bench = Bench::new(Recorder::default());
        bench.requests.parser.is_write_through = true;
        assert_eq!(bench.begin(0, VIRTIO_BLK_T_OUT, 0, &[0; 512], 0), Some(1));
        assert_eq!(bench.calls(), ["write 0 512", "flush"]);
    }

    #[test]
    fn the_serial_is_given_as_far_as_it_fits() {
        let mut bench = Bench::new(Recorder::default());
        assert_eq!(bench.begin(0, VIRTIO_BLK_T_GET_ID, 0, &[], 20), Some(21));
        assert_eq!(bench.written(20), b"vol0123456789abcdef0");
        assert_eq!(bench.begin(0, VIRTIO_BLK_T_GET_ID, 0, &[], 3), Some(4));
        assert_eq!(bench.written(4), b"vol\0");
    }

    fn range(sector: u64, sectors: u32, flags: u32) -> Vec<u8> {
        [&sector.to_le_bytes()[..], &sectors.to_le_bytes(), &flags.to_le_bytes()].concat()
    }

    #[test]
    fn discard_and_write_zeroes_keep_to_their_limits() {
        let two = [range(1, 2, 0), range(8, 8, 0)].concat();
        let (calls, status, _) = request(VIRTIO_BLK_T_DISCARD, 0, &two, 0);
        assert_eq!((calls, status), (vec!["discard 512 1024".into(), "discard 4096 4096".into()], 0));
        let (calls, status, _) = request(VIRTIO_BLK_T_WRITE_ZEROES, 0, &range(1, 1, 1), 0);
        assert_eq!((calls, status), (vec!["zero 512 512 true".into()], 0));

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
            let (calls, status, _) = request(kind, 0, &out, 0);
            assert_eq!(status, expected, "{kind} {out:?}");
            assert_eq!(calls.is_empty(), expected != ok);
        }
    }

    #[test]
    fn unknown_and_odd_requests_get_a_status() {
        assert_eq!(request(99, 0, &[], 0), (vec![], 2, 1));
        assert_eq!(request(VIRTIO_BLK_T_IN, 0, &[], 100), (vec![], 1, 1), "not whole sectors");
        assert_eq!(request(VIRTIO_BLK_T_OUT, u64::MAX, &[0; 512], 0), (vec![], 1, 1), "the offset overflows");
    }

    #[test]
    fn a_request_without_header_or_status_is_the_drivers_fault() {
        for (readable, writable) in [(15, 1), (16, 0), (0, 0)] {
            let mut bench = Bench::new(Recorder::default());
            let memory = Arc::clone(&bench.memory);
            let mut chain = Chain {
                head: 7,
                readable: Bench::buffers(&memory, OUT, readable, 99),
                writable: Bench::buffers(&memory, IN, writable, 99),
            };
            assert!(matches!(bench.requests.begin(&mut chain), Err(QueueError::TooShort(7))));
        }
    }

    #[test]
    fn a_read_only_disk_says_so() {
        let disk = Block::new(Arc::new(Blank { read_only: true }), SerialNumber::default());
        assert_ne!(disk.features() & 1 << VIRTIO_BLK_F_RO, 0);
        assert_eq!(disk.features() & 1 << VIRTIO_BLK_F_DISCARD, 0);
        assert_eq!(disk.config()[..8], 64u64.to_le_bytes());
    }

    #[test]
    fn serials_fit_or_are_refused() {
        assert!("12345678901234567890".parse::<SerialNumber>().is_ok());
        for bad in ["123456789012345678901", "a b", "a\n", "ä"] {
            assert!(bad.parse::<SerialNumber>().is_err(), "{bad}");
        }
    }
}
