//! Requests (section 5.2.6): from a chain of buffers to the steps that the disk's engine is to take.

use std::collections::VecDeque;
use std::io;

use innkeeper_block::{Operation, SECTOR_SIZE, Segments};
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH,
    VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES,
    VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP, virtio_blk_discard_write_zeroes, virtio_blk_outhdr,
};
use vm_memory::ByteValued;

use super::{DISCARD_SECTORS_MAX, RANGES_MAX, SerialNumber, ZERO_SECTORS_MAX};
use crate::virtio::queue::{Chain, MemoryHold, QueueError};

/// Bytes in one read or write. Drivers ask for a few MiB at most; a chain could name 4 GiB.
const TRANSFER_MAX: usize = 64 << 20;

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

const HEADER_SIZE: usize = size_of::<Header>();
const RANGE_SIZE: usize = size_of::<Range>();

/// What a request is counted as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Read,
    Write,
    Flush,
    /// And write-zeroes.
    Discard,
    /// What does not get to the disk.
    Other,
}

/// A request that was understood: what is left to do, and what to tell the driver at the end.
#[derive(Debug)]
pub(super) struct Request {
    pub kind: Kind,
    /// Bytes of data that are read or written.
    pub length: usize,
    /// The step to take next. Most requests have only the one.
    next: Option<Operation>,
    later: VecDeque<Operation>,
    /// Bytes of data that the driver gets.
    written: u32,
    status: Segments,
}

impl Request {
    /// The next step, which is to be taken when the one before was completed.
    pub fn next_step(&mut self) -> Option<Operation> {
        self.next.take().or_else(|| self.later.pop_front())
    }

    fn then(&mut self, operation: Operation) {
        match &self.next {
            None => self.next = Some(operation),
            Some(_) => self.later.push_back(operation),
        }
    }

    /// Writes the status; returns how many bytes were written to the chain.
    pub fn end(mut self, result: Result<(), RequestError>) -> u32 {
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
pub(super) enum RequestError {
    Io(io::Error),
    Unsupported,
}

impl From<io::Error> for RequestError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// Turns chains into requests.
#[derive(Debug)]
pub(super) struct Parser {
    pub memory: MemoryHold,
    pub serial: SerialNumber,
    /// The driver cannot flush, so a write that is completed must be durable (section 5.2.6.2).
    pub is_write_through: bool,
}

impl Parser {
    /// The request in `chain`, and what is wrong with it, if its status is all that can be told.
    ///
    /// The driver may cut header, data and status into descriptors as it likes (section 2.7.4): the header
    /// is the first 16 readable bytes, the status the last writable one.
    pub fn parse(&self, chain: &Chain<'_>) -> Result<(Request, Result<(), RequestError>), QueueError> {
        let too_short = || QueueError::TooShort(chain.head);
        let Header(header) = chain.readable.read().ok_or_else(too_short)?;
        let status_at = chain.writable.len().checked_sub(1).ok_or_else(too_short)?;
        let status = chain.writable.to_segments(status_at..status_at + 1, &self.memory);
        let mut request = Request {
            kind: Kind::Other,
            length: 0,
            next: None,
            later: VecDeque::new(),
            written: 0,
            status: status.ok_or(QueueError::Address(chain.head))?,
        };
        let result = self.plan(header, chain, &mut request);
        Ok((request, result))
    }

    /// Works out the steps.
    fn plan(
        &self,
        header: virtio_blk_outhdr,
        chain: &Chain<'_>,
        request: &mut Request,
    ) -> Result<(), RequestError> {
        let foreign = || invalid("the buffers are not in the guest's memory");
        let sector = u64::from_le(header.sector);
        let kind = u32::from_le(header.type_);
        match kind {
            VIRTIO_BLK_T_IN => {
                let length = chain.writable.len().saturating_sub(1);
                let offset = offset(sector, length)?;
                let segments = chain.writable.to_segments(0..length, &self.memory).ok_or_else(foreign)?;
                (request.kind, request.length, request.written) = (Kind::Read, length, length as u32);
                request.then(Operation::Read { offset, segments });
            }
            VIRTIO_BLK_T_OUT => {
                let end = chain.readable.len();
                let length = end.saturating_sub(HEADER_SIZE);
                let offset = offset(sector, length)?;
                let segments = chain.readable.to_segments(HEADER_SIZE..end, &self.memory);
                (request.kind, request.length) = (Kind::Write, length);
                request.then(Operation::Write { offset, segments: segments.ok_or_else(foreign)? });
            }
            VIRTIO_BLK_T_FLUSH => {
                request.kind = Kind::Flush;
                request.then(Operation::Flush);
            }
            VIRTIO_BLK_T_GET_ID => {
                let serial = self.serial.as_bytes();
                let room = chain.writable.len().saturating_sub(1).min(serial.len());
                request.written = chain.writable.copy_from(&serial[..room]) as u32;
            }
            VIRTIO_BLK_T_DISCARD => {
                request.kind = Kind::Discard;
                for range in ranges(chain)? {
                    // A discard has no flags (section 5.2.6.2).
                    if range.flags != 0 {
                        return Err(RequestError::Unsupported);
                    }
                    let (offset, length) = check(&range, DISCARD_SECTORS_MAX)?;
                    request.then(Operation::Discard { offset, length });
                }
            }
            VIRTIO_BLK_T_WRITE_ZEROES => {
                request.kind = Kind::Discard;
                for range in ranges(chain)? {
                    if range.flags & !VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP != 0 {
                        return Err(RequestError::Unsupported);
                    }
                    let (offset, length) = check(&range, ZERO_SECTORS_MAX)?;
                    request.then(Operation::WriteZeroes { offset, length, may_free: range.flags != 0 });
                }
            }
            _ => return Err(RequestError::Unsupported),
        }
        if self.is_write_through && matches!(kind, VIRTIO_BLK_T_OUT | VIRTIO_BLK_T_WRITE_ZEROES) {
            request.then(Operation::Flush);
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
fn ranges(chain: &Chain<'_>) -> io::Result<Vec<virtio_blk_discard_write_zeroes>> {
    let length = chain.readable.len().saturating_sub(HEADER_SIZE);
    let count = length / RANGE_SIZE;
    if !length.is_multiple_of(RANGE_SIZE) || count == 0 || count > RANGES_MAX as usize {
        return Err(invalid("the number of ranges is not one that the device allows"));
    }
    let mut bytes = [0; HEADER_SIZE + RANGES_MAX as usize * RANGE_SIZE];
    let end = chain.readable.copy_to(&mut bytes);
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
    Ok(bytes[HEADER_SIZE..end].chunks_exact(RANGE_SIZE).map(decode).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

    use super::super::recorder::describe;
    use crate::memory::GuestMemory;
    use crate::virtio::queue::Buffers;

    const OUT: u64 = 0x1000;
    const IN: u64 = 0x8000;

    /// Requests whose parts lie in guest memory, cut into pieces of `piece` bytes.
    struct Bench {
        memory: Arc<GuestMemory>,
        parser: Parser,
        piece: usize,
    }

    impl Bench {
        fn new() -> Self {
            let memory = Arc::new(GuestMemory::from_ranges(&[(GuestAddress(0), 0x2_0000)]).unwrap());
            let parser = Parser {
                memory: MemoryHold::new(Arc::clone(&memory)),
                serial: "vol0123456789abcdef0".parse().unwrap(),
                is_write_through: false,
            };
            Self { memory, parser, piece: 4096 }
        }

        fn buffers(&self, address: u64, length: usize) -> Buffers<'_> {
            let mut buffers = Buffers::default();
            for start in (0..length).step_by(self.piece) {
                let size = self.piece.min(length - start);
                buffers.push(self.memory.get_slice(GuestAddress(address + start as u64), size).unwrap());
            }
            buffers
        }

        fn chain(&self, readable: usize, writable: usize) -> Chain<'_> {
            Chain { head: 7, readable: self.buffers(OUT, readable), writable: self.buffers(IN, writable) }
        }

        /// The steps of a request; then its status and the bytes written, if each goes well.
        fn request(&self, kind: u32, sector: u64, out: &[u8], in_size: usize) -> (Vec<String>, u8, u32) {
            let readable = [&kind.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes(), out].concat();
            self.memory.write_slice(&readable, GuestAddress(OUT)).unwrap();
            self.memory.write_slice(&vec![0xee; in_size + 1], GuestAddress(IN)).unwrap();
            let chain = self.chain(readable.len(), in_size + 1);
            let (mut request, result) = self.parser.parse(&chain).unwrap();
            let mut steps = Vec::new();
            if result.is_ok() {
                steps.extend(std::iter::from_fn(|| request.next_step()).map(|mut step| describe(&mut step)));
            }
            let written = request.end(result);
            (steps, self.memory.read_obj(GuestAddress(IN + in_size as u64)).unwrap(), written)
        }

        fn written(&self, length: usize) -> Vec<u8> {
            let mut data = vec![0; length];
            self.memory.read_slice(&mut data, GuestAddress(IN)).unwrap();
            data
        }
    }

    #[test]
    fn requests_may_be_cut_anywhere() {
        for piece in [1, 7, 16, 512, 4096] {
            let bench = Bench { piece, ..Bench::new() };
            let expected = (vec!["read 1536 1024".into()], 0, 1025);
            assert_eq!(bench.request(VIRTIO_BLK_T_IN, 3, &[], 1024), expected, "pieces of {piece}");
            assert_eq!(bench.written(1025), [vec![0xab; 1024], vec![0]].concat());
            let expected = (vec!["write 1024 1024".into()], 0, 1);
            assert_eq!(bench.request(VIRTIO_BLK_T_OUT, 2, &[1; 1024], 0), expected);
        }
    }

    #[test]
    fn a_flush_reaches_the_engine() {
        assert_eq!(Bench::new().request(VIRTIO_BLK_T_FLUSH, 0, &[], 0), (vec!["flush".into()], 0, 1));
    }

    /// A mistake of Firecracker (issue 2172) was to keep what a guest took for written in the host's memory.
    #[test]
    fn a_driver_that_cannot_flush_gets_durable_writes() {
        let mut bench = Bench::new();
        bench.parser.is_write_through = true;
        let (steps, ..) = bench.request(VIRTIO_BLK_T_OUT, 0, &[0; 512], 0);
        assert_eq!(steps, ["write 0 512", "flush"]);
        let (steps, ..) = bench.request(VIRTIO_BLK_T_WRITE_ZEROES, 0, &range(0, 1, 0), 0);
        assert_eq!(steps, ["zero 0 512 false", "flush"]);
    }

    #[test]
    fn the_serial_is_given_as_far_as_it_fits() {
        let bench = Bench::new();
        assert_eq!(bench.request(VIRTIO_BLK_T_GET_ID, 0, &[], 20), (vec![], 0, 21));
        assert_eq!(bench.written(20), b"vol0123456789abcdef0");
        assert_eq!(bench.request(VIRTIO_BLK_T_GET_ID, 0, &[], 3), (vec![], 0, 4));
        assert_eq!(bench.written(4), b"vol\0");
        assert_eq!(bench.request(VIRTIO_BLK_T_GET_ID, 0, &[], 100), (vec![], 0, 21));
        assert_eq!(bench.written(21), b"vol0123456789abcdef0\xee");
    }

    fn range(sector: u64, sectors: u32, flags: u32) -> Vec<u8> {
        [&sector.to_le_bytes()[..], &sectors.to_le_bytes(), &flags.to_le_bytes()].concat()
    }

    #[test]
    fn discard_and_write_zeroes_keep_to_their_limits() {
        let bench = Bench::new();
        let two = [range(1, 2, 0), range(8, 8, 0)].concat();
        let (steps, status, _) = bench.request(VIRTIO_BLK_T_DISCARD, 0, &two, 0);
        assert_eq!((steps, status), (vec!["discard 512 1024".into(), "discard 4096 4096".into()], 0));
        let (steps, status, _) = bench.request(VIRTIO_BLK_T_WRITE_ZEROES, 0, &range(1, 1, 1), 0);
        assert_eq!((steps, status), (vec!["zero 512 512 true".into()], 0));

        let (ok, ioerr, unsupp) = (0, 1, 2);
        let cases: [(u32, Vec<u8>, u8); 10] = [
            (VIRTIO_BLK_T_DISCARD, vec![], ioerr),
            (VIRTIO_BLK_T_DISCARD, vec![0; 15], ioerr),
            (VIRTIO_BLK_T_DISCARD, vec![0; 16 * 9], ioerr),
            (VIRTIO_BLK_T_DISCARD, range(0, 1, 1), unsupp),
            (VIRTIO_BLK_T_DISCARD, range(0, u32::MAX, 0), ioerr),
            (VIRTIO_BLK_T_WRITE_ZEROES, range(u64::MAX, 1, 0), ioerr),
            (VIRTIO_BLK_T_WRITE_ZEROES, range(0, ZERO_SECTORS_MAX + 1, 0), ioerr),
            (VIRTIO_BLK_T_WRITE_ZEROES, range(0, 1, 2), unsupp),
            (VIRTIO_BLK_T_WRITE_ZEROES, range(0, 1, 0), ok),
            (VIRTIO_BLK_T_WRITE_ZEROES, range(0, 1, 0).repeat(8), ok),
        ];
        for (kind, out, expected) in cases {
            let (steps, status, _) = bench.request(kind, 0, &out, 0);
            assert_eq!(status, expected, "{kind} {out:?}");
            assert_eq!(steps.is_empty(), expected != ok);
        }
    }

    #[test]
    fn unknown_and_odd_requests_get_a_status() {
        let bench = Bench::new();
        assert_eq!(bench.request(99, 0, &[], 0), (vec![], 2, 1));
        assert_eq!(bench.request(VIRTIO_BLK_T_IN, 0, &[], 100), (vec![], 1, 1), "not whole sectors");
        assert_eq!(
            bench.request(VIRTIO_BLK_T_OUT, u64::MAX, &[0; 512], 0),
            (vec![], 1, 1),
            "the offset overflows"
        );
    }

    /// A mistake of QEMU (CVE-2026-48914): SCSI commands of a guest went on to the host's disk.
    #[test]
    fn scsi_commands_are_not_passed_on() {
        // `VIRTIO_BLK_T_SCSI_CMD` and its kin of old, and the bit that once asked for a barrier.
        for kind in [2, 3, 2 | 1 << 31, 3 | 1 << 31] {
            let (steps, status, written) = Bench::new().request(kind, 0, &[0x12; 64], 512 + 16);
            assert_eq!((steps, status, written), (vec![], 2, 1), "{kind:#x} is not VIRTIO_BLK_S_UNSUPP");
        }
    }

    /// The same piece of memory a thousand times is a transfer of any size; it must not keep the disk busy for all.
    #[test]
    fn a_transfer_of_unreasonable_length_is_refused() {
        const PIECE: usize = 0x1_0000;
        let bench = Bench::new();
        for (pieces, expected) in [(TRANSFER_MAX / PIECE, true), (TRANSFER_MAX / PIECE + 1, false)] {
            bench.memory.write_slice(&[0; HEADER_SIZE], GuestAddress(OUT)).unwrap();
            let mut chain = bench.chain(HEADER_SIZE, 0);
            let slice = |length| bench.memory.get_slice(GuestAddress(IN), length).unwrap();
            (0..pieces).for_each(|_| chain.writable.push(slice(PIECE)));
            chain.writable.push(slice(1));
            let (mut request, result) = bench.parser.parse(&chain).unwrap();
            assert_eq!((result.is_ok(), request.next_step().is_some()), (expected, expected), "{pieces}");
        }
    }

    #[test]
    fn a_request_without_header_or_status_is_the_drivers_fault() {
        for (readable, writable) in [(15, 1), (16, 0), (0, 0)] {
            let bench = Bench::new();
            let result = bench.parser.parse(&bench.chain(readable, writable));
            assert!(matches!(result, Err(QueueError::TooShort(7))));
        }
    }

    #[test]
    fn requests_are_counted_by_what_they_do() {
        let bench = Bench::new();
        for (kind, out, in_size, expected) in [
            (VIRTIO_BLK_T_IN, vec![], 512, (Kind::Read, 512)),
            (VIRTIO_BLK_T_OUT, vec![0; 1024], 0, (Kind::Write, 1024)),
            (VIRTIO_BLK_T_FLUSH, vec![], 0, (Kind::Flush, 0)),
            (VIRTIO_BLK_T_DISCARD, range(0, 1, 0), 0, (Kind::Discard, 0)),
            (VIRTIO_BLK_T_WRITE_ZEROES, range(0, 1, 0), 0, (Kind::Discard, 0)),
            (VIRTIO_BLK_T_GET_ID, vec![], 20, (Kind::Other, 0)),
        ] {
            let readable = [&kind.to_le_bytes()[..], &[0; 12], &out].concat();
            bench.memory.write_slice(&readable, GuestAddress(OUT)).unwrap();
            let (request, _) = bench.parser.parse(&bench.chain(readable.len(), in_size + 1)).unwrap();
            assert_eq!((request.kind, request.length), expected);
        }
    }
}
