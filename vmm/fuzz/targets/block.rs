//! A disk whose driver is hostile, over media that complete requests in any order, or fail.

#![no_main]

use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use arbitrary::Arbitrary;
use innkeeper_block::{Backend, Completion, Engine, EngineKind, Operation, RawFile, SECTOR_SIZE, Segments};
use innkeeper_fuzz::{Act, Bytes, Chain, Device, Guest, Length, List, Memory, Setup, Steps, Timed};
use innkeeper_protocol::{Limit, Limits};
use innkeeper_vmm::event;
use innkeeper_vmm::virtio::VirtioDevice;
use innkeeper_vmm::virtio::block::{Block, Disk};
use libfuzzer_sys::fuzz_target;
use nix::sys::memfd::{MFdFlags, memfd_create};
use vmm_sys_util::eventfd::EventFd;

/// What a disk has at first, in sectors, and what it can grow to.
const SECTORS: u64 = 64;
const MOST_SECTORS: u64 = 256;
/// Bytes of a file behind its last whole sector, which are not the disk's.
const REST: u64 = 100;

const OK: u8 = 0;
const STATUSES: std::ops::RangeInclusive<u8> = 0..=2;

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Medium {
    /// In memory, at once.
    Synchronous,
    /// In memory, when a step says so.
    Asynchronous,
    /// A file, one request after the other.
    File,
    SameFile,
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Sector {
    Near(u8),
    AboutTheEnd(i8),
    Any(u64),
}

impl Sector {
    fn resolve(self) -> u64 {
        match self {
            Self::Near(sector) => sector.into(),
            Self::AboutTheEnd(by) => SECTORS.wrapping_add_signed(by.into()),
            Self::Any(sector) => sector,
        }
    }
}

/// Sectors of a range.
#[derive(Arbitrary, Clone, Copy, Debug)]
enum Count {
    Few(u8),
    Many(u16),
    Any(u32),
}

impl Count {
    fn resolve(self) -> u32 {
        match self {
            Self::Few(count) => u32::from(count % 16),
            Self::Many(count) => count.into(),
            Self::Any(count) => count,
        }
    }
}

/// Flags of a range, of which there is one.
#[derive(Arbitrary, Clone, Copy, Debug)]
enum Flags {
    None,
    Unmap,
    Any(u32),
}

impl Flags {
    fn resolve(self) -> u32 {
        match self {
            Self::None => 0,
            Self::Unmap => 1,
            Self::Any(flags) => flags,
        }
    }
}

/// What is wrong with how a request is put.
#[derive(Arbitrary, Clone, Copy, Debug, PartialEq, Eq)]
enum Flaw {
    None,
    NoneEither,
    NorHere,
    /// There is no room for a status.
    NoStatus,
    /// There is no whole header.
    NoHeader,
}

#[derive(Arbitrary, Clone, Debug)]
enum Kind {
    Read { room: List<Length> },
    Write { data: List<Length>, byte: u8 },
    Flush,
    GetId { room: u8 },
    Discard(List<(Sector, Count, Flags)>),
    WriteZeroes(List<(Sector, Count, Flags)>),
    Other { kind: u32, data: Bytes, room: Length },
}

#[derive(Arbitrary, Debug)]
struct Request {
    queue: u8,
    kind: Kind,
    sector: Sector,
    /// Where the header is cut in two.
    cut: u8,
    /// Whether the status is the end of the last buffer, and not a buffer of its own.
    has_joined_status: bool,
    flaw: Flaw,
    is_indirect: bool,
}

#[derive(Arbitrary, Clone, Copy, Debug)]
struct Burst(Option<u8>);

impl Burst {
    fn limit(self) -> Option<Limit> {
        // What is used up does not come back in the time that a run takes.
        self.0.map(|burst| Limit { per_second: 1, burst: Some(u64::from(burst) * 64 + 1) })
    }
}

#[derive(Arbitrary, Debug)]
enum Step {
    Act(Act),
    Request(Request),
    Ring(u8),
    Handle { queue: u8, source: u64 },
    Run,
    Complete { queue: u8, count: u8, first: u8, fails: bool },
    Grow(u16),
    Limit { bytes: Burst, operations: Burst },
    Activate(Setup),
}

#[derive(Arbitrary, Debug)]
struct Input {
    medium: Medium,
    is_read_only: bool,
    queues: u8,
    setup: Setup,
    steps: Steps<Timed<Step>>,
}

/// A disk in memory. It holds the device to the rules of [`Engine`].
struct Store {
    is_asynchronous: bool,
    is_read_only: bool,
    capacity: AtomicU64,
    content: Mutex<Vec<u8>>,
    fails: AtomicBool,
    /// By queue, in the order in which engines were made since the last time that this was emptied.
    engines: Mutex<Vec<Arc<Mutex<InFlight>>>>,
}

#[derive(Default)]
struct InFlight {
    submitted: VecDeque<(u16, Operation)>,
    done: VecDeque<Completion>,
    event: Option<EventFd>,
}

impl Store {
    fn carry_out(&self, mut operation: Operation) -> io::Result<()> {
        if self.fails.load(Ordering::Relaxed) {
            return Err(io::ErrorKind::Other.into());
        }
        let (offset, length, changes) = match &operation {
            Operation::Read { offset, segments } => (*offset, segments.len() as u64, false),
            Operation::Write { offset, segments } => (*offset, segments.len() as u64, true),
            Operation::Flush => return Ok(()),
            Operation::Discard { offset, length } | Operation::WriteZeroes { offset, length, .. } => {
                (*offset, *length, true)
            }
        };
        assert!(offset % SECTOR_SIZE == 0 && length % SECTOR_SIZE == 0, "a disk has whole sectors");
        assert!(length <= 1 << 30, "{length} bytes are more than the device has allowed");
        if changes && self.is_read_only {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        if offset.checked_add(length).is_none_or(|end| end > self.capacity.load(Ordering::Relaxed)) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let mut content = self.content.lock().unwrap();
        let range = &mut content[offset as usize..(offset + length) as usize];
        match &mut operation {
            Operation::Read { segments, .. } => assert_eq!(segments.copy_from(range), range.len()),
            Operation::Write { segments, .. } => copy_out(segments, range),
            Operation::Flush => {}
            Operation::Discard { .. } | Operation::WriteZeroes { .. } => range.fill(0),
        }
        Ok(())
    }
}

fn copy_out(segments: &Segments, mut to: &mut [u8]) {
    for piece in segments.as_iovecs() {
        let (head, tail) = std::mem::take(&mut to).split_at_mut(piece.iov_len);
        // SAFETY: the piece is valid, as `Segments` promises, and `head` is as long.
        unsafe { std::ptr::copy(piece.iov_base.cast(), head.as_mut_ptr(), head.len()) };
        to = tail;
    }
}

#[derive(Clone)]
struct Shared(Arc<Store>);

impl Backend for Shared {
    fn capacity(&self) -> u64 {
        self.0.capacity.load(Ordering::Relaxed)
    }

    fn is_read_only(&self) -> bool {
        self.0.is_read_only
    }

    fn resize(&self, size: u64) -> io::Result<()> {
        if size < self.capacity() || !size.is_multiple_of(SECTOR_SIZE) || size > MOST_SECTORS * SECTOR_SIZE {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        self.0.content.lock().unwrap().resize(size as usize, 0);
        self.0.capacity.store(size, Ordering::Relaxed);
        Ok(())
    }

    fn engine(&self, depth: u16) -> io::Result<Box<dyn Engine>> {
        let event = if self.0.is_asynchronous { Some(event::new()?) } else { None };
        let own = event.as_ref().map(EventFd::try_clone).transpose()?;
        let in_flight = Arc::new(Mutex::new(InFlight { event: own, ..Default::default() }));
        self.0.engines.lock().unwrap().push(Arc::clone(&in_flight));
        Ok(Box::new(StoreEngine { store: Arc::clone(&self.0), depth, in_flight, event }))
    }
}

struct StoreEngine {
    store: Arc<Store>,
    depth: u16,
    in_flight: Arc<Mutex<InFlight>>,
    event: Option<EventFd>,
}

impl Engine for StoreEngine {
    fn submit(&mut self, slot: u16, operation: Operation) {
        assert!(slot < self.depth, "slot {slot} does not exist");
        let mut in_flight = self.in_flight.lock().unwrap();
        let is_free = in_flight.submitted.iter().all(|(other, _)| *other != slot)
            && in_flight.done.iter().all(|completion| completion.slot != slot);
        assert!(is_free, "slot {slot} is in flight already");
        if self.store.is_asynchronous {
            in_flight.submitted.push_back((slot, operation));
        } else {
            let result = self.store.carry_out(operation);
            in_flight.done.push_back(Completion { slot, result });
        }
    }

    fn start(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn complete(&mut self) -> Option<Completion> {
        self.in_flight.lock().unwrap().done.pop_front()
    }

    fn event(&self) -> Option<BorrowedFd<'_>> {
        self.event.as_ref().map(event::as_fd)
    }
}

impl Drop for StoreEngine {
    fn drop(&mut self) {
        // What is in flight ends before the engine does.
        self.in_flight.lock().unwrap().submitted.clear();
    }
}

struct Bench {
    guest: Guest,
    disk: Arc<Disk>,
    store: Option<Arc<Store>>,
    file: Option<File>,
    devices: Vec<Device>,
    /// Whether the driver has said a header that goes with its chain, by queue and head.
    kinds: HashMap<(usize, u16), u32>,
    is_resized: bool,
}

impl Bench {
    fn new(medium: Medium, is_read_only: bool, queues: u16) -> Self {
        let content = original();
        let (mut store, mut file) = (None, None);
        let backend: Arc<dyn Backend> = match medium {
            Medium::File | Medium::SameFile => {
                let disk = File::from(memfd_create(c"disk", MFdFlags::MFD_CLOEXEC).unwrap());
                disk.write_all_at(&content, 0).unwrap();
                disk.write_all_at(&[0xee; REST as usize], SECTORS * SECTOR_SIZE).unwrap();
                file = Some(disk.try_clone().unwrap());
                let raw = RawFile::from_file(disk, is_read_only).unwrap();
                Arc::new(raw.with_engine(EngineKind::Synchronous))
            }
            Medium::Synchronous | Medium::Asynchronous => {
                let shared = Arc::new(Store {
                    is_asynchronous: matches!(medium, Medium::Asynchronous),
                    is_read_only,
                    capacity: AtomicU64::new(content.len() as u64),
                    content: Mutex::new(content),
                    fails: AtomicBool::new(false),
                    engines: Mutex::default(),
                });
                store = Some(Arc::clone(&shared));
                Arc::new(Shared(shared))
            }
        };
        let serial = "serial-number".parse().unwrap();
        let disk = Arc::new(Disk::new(backend, serial, queues, Limits::default()).unwrap());
        Self {
            guest: Guest::default(),
            disk,
            store,
            file,
            devices: Vec::new(),
            kinds: HashMap::new(),
            is_resized: false,
        }
    }

    fn activate(&mut self, setup: &Setup) {
        self.devices.clear();
        self.kinds.clear();
        if let Some(store) = &self.store {
            store.engines.lock().unwrap().clear();
        }
        let block = Block::new(Arc::clone(&self.disk));
        let Some(activation) = self.guest.activate(setup, block.features(), block.queue_sizes()) else {
            return;
        };
        let handlers = Block::handlers(&self.disk, activation).unwrap();
        self.devices.extend(handlers.into_iter().map(Device::new));
    }

    fn request(&mut self, request: Request) {
        let Request { queue, kind, sector, cut, has_joined_status, flaw, is_indirect } = request;
        let (number, mut data, mut room) = match kind {
            Kind::Read { room } => (0, vec![], room.into_iter().map(Length::fitting).collect()),
            Kind::Write { data, byte } => {
                let data = data.into_iter().map(|length| vec![byte; length.fitting()]);
                (1, data.collect(), vec![])
            }
            Kind::Flush => (4, vec![], vec![]),
            Kind::GetId { room } => (8, vec![], vec![usize::from(room)]),
            Kind::Discard(ranges) => (11, vec![ranges.into_iter().flat_map(range).collect()], vec![]),
            Kind::WriteZeroes(ranges) => (13, vec![ranges.into_iter().flat_map(range).collect()], vec![]),
            Kind::Other { kind, data, room } => (kind, vec![data.to_vec()], vec![room.fitting()]),
        };
        let header = [&number.to_le_bytes()[..], &[0; 4], &sector.resolve().to_le_bytes()].concat();
        let cut = usize::from(cut) % (header.len() + 1);
        match room.last_mut() {
            Some(last) if has_joined_status => *last += 1,
            _ => room.push(1),
        }
        match flaw {
            Flaw::NoStatus => room.clear(),
            Flaw::NoHeader => data.clear(),
            _ => {}
        }
        let is_flawed = matches!(flaw, Flaw::NoStatus | Flaw::NoHeader);
        let header = if flaw == Flaw::NoHeader { &header[..cut.min(15)] } else { &header[..] };
        let cut = cut.min(header.len());
        let mut readable: Vec<&[u8]> = vec![&header[..cut], &header[cut..]];
        readable.extend(data.iter().map(|piece| &piece[..]));
        if is_flawed {
            self.guest.may_be_given_up();
        }
        let queue = usize::from(queue) % usize::from(self.disk.queues());
        let Some(head) = self.guest.submit(queue, &readable, &room, is_indirect) else { return };
        if !is_flawed {
            self.kinds.insert((queue, head), number);
        } else {
            self.kinds.remove(&(queue, head));
        }
        if let Some(status) = self.status_place(queue, head) {
            self.guest.memory.write(status, &[0xff]);
        }
    }

    /// Where the status of a request that is in flight will be.
    fn status_place(&mut self, queue: usize, head: u16) -> Option<u64> {
        let chain = self.guest.driver(queue)?.chain(head)?;
        let last = chain.writable.iter().rfind(|piece| piece.length > 0)?;
        Some(last.address + u64::from(last.length) - 1)
    }

    fn timed(&mut self, step: Timed<Step>) {
        let (step, works) = step.take();
        self.step(step);
        if works {
            self.guest.ring_all();
            self.step(Step::Run);
        }
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Act(act) => {
                if let Act::Poke { .. }
                | Act::Describe { .. }
                | Act::Submit { .. }
                | Act::Skip { .. }
                | Act::Offer { .. } = &act
                {
                    // Nobody knows what the driver says from here on.
                    self.kinds.clear();
                }
                self.guest.act(act);
            }
            Step::Request(request) => self.request(request),
            Step::Ring(queue) => self.guest.ring(usize::from(queue) % usize::from(self.disk.queues())),
            Step::Handle { queue, source } => {
                let count = self.devices.len().max(1);
                if let Some(device) = self.devices.get_mut(usize::from(queue) % count) {
                    device.handle(&mut self.guest, source % 4);
                }
            }
            Step::Run => self.devices.iter_mut().for_each(|device| device.run(&mut self.guest)),
            Step::Complete { queue, count, first, fails } => self.complete(queue, count, first, fails),
            Step::Grow(sectors) => {
                let before = self.disk.capacity();
                let size = u64::from(sectors) % (MOST_SECTORS + 1) * SECTOR_SIZE;
                let is_done = self.disk.resize(size).is_ok();
                assert!(self.disk.capacity() >= before, "a disk does not become smaller");
                assert_eq!(is_done, self.disk.capacity() == size);
                self.is_resized |= self.disk.capacity() > before;
            }
            Step::Limit { bytes, operations } => {
                let limits = Limits { bytes: bytes.limit(), operations: operations.limit() };
                self.disk.set_limits(limits).unwrap();
            }
            Step::Activate(setup) => self.activate(&setup),
        }
        self.check();
    }

    /// Some of what is in flight ends.
    fn complete(&mut self, queue: u8, count: u8, first: u8, fails: bool) {
        let Some(store) = self.store.as_ref().filter(|store| store.is_asynchronous) else { return };
        // It is the disk that writes now, to the buffers that it was given before.
        self.guest.may_change();
        let engines = store.engines.lock().unwrap();
        let Some(engine) = engines.get(usize::from(queue) % engines.len().max(1)) else { return };
        let mut engine = engine.lock().unwrap();
        store.fails.store(fails, Ordering::Relaxed);
        for _ in 0..count {
            let length = engine.submitted.len();
            if length == 0 {
                break;
            }
            let Some((slot, operation)) = engine.submitted.remove(usize::from(first) % length) else { break };
            let result = store.carry_out(operation);
            engine.done.push_back(Completion { slot, result });
        }
        store.fails.store(false, Ordering::Relaxed);
        if let Some(event) = &engine.event {
            let _ = event.write(1);
        }
        drop(engine);
        drop(engines);
        self.guest.has_changed();
    }

    fn check(&mut self) {
        let is_known = self.guest.is_content_known();
        let Self { guest: Guest { memory, drivers, .. }, kinds, .. } = self;
        for (queue, driver) in drivers.iter_mut().enumerate() {
            let Some(driver) = driver else { continue };
            for returned in driver.returned.drain(..) {
                let kind = kinds.remove(&(queue, returned.head));
                if let (Some(kind), Some(chain)) = (kind, &returned.chain)
                    && is_known
                {
                    check_answer(memory, kind, chain, returned.written);
                }
            }
        }
    }

    /// What must never have happened.
    fn finish(&mut self) {
        self.devices.clear();
        self.guest.has_changed();
        if self.disk.is_read_only() {
            let content = match (&self.store, &self.file) {
                (Some(store), _) => store.content.lock().unwrap().clone(),
                (None, Some(file)) => {
                    let mut content = vec![0; (SECTORS * SECTOR_SIZE) as usize];
                    file.read_exact_at(&mut content, 0).unwrap();
                    content
                }
                _ => return,
            };
            assert!(
                content[..(SECTORS * SECTOR_SIZE) as usize] == original(),
                "a read-only disk has changed"
            );
        }
        if let Some(file) = self.file.as_ref().filter(|_| !self.is_resized) {
            let size = file.metadata().unwrap().len();
            assert_eq!(size, SECTORS * SECTOR_SIZE + REST, "the file has another size");
            let mut rest = [0; REST as usize];
            file.read_exact_at(&mut rest, SECTORS * SECTOR_SIZE).unwrap();
            assert_eq!(rest, [0xee; REST as usize], "what is not the disk's has changed");
        }
    }
}

/// What is on a disk at first: in each sector, something else.
fn original() -> Vec<u8> {
    (0..SECTORS).flat_map(|sector| [sector as u8 ^ 0x80; SECTOR_SIZE as usize]).collect()
}

fn range((sector, count, flags): (Sector, Count, Flags)) -> Vec<u8> {
    let sector = sector.resolve().to_le_bytes();
    [&sector[..], &count.resolve().to_le_bytes(), &flags.resolve().to_le_bytes()].concat()
}

fn check_answer(memory: &Memory, kind: u32, chain: &Chain, written: u32) {
    const READ: u32 = 0;
    const GET_ID: u32 = 8;
    assert!(written > 0, "a request that comes back has a status");
    let Some(last) = chain.writable.iter().rfind(|piece| piece.length > 0) else { return };
    let status = memory.read(last.address + u64::from(last.length) - 1, 1)[0];
    assert!(STATUSES.contains(&status), "{status} is not a status");
    let expected = match (kind, status) {
        (READ, OK) => chain.room(),
        (GET_ID, OK) => (chain.room() - 1).min(20) + 1,
        _ => 1,
    };
    assert_eq!(u64::from(written), expected, "of request {kind} with status {status}");
}

fuzz_target!(|input: Input| {
    let mut bench = Bench::new(input.medium, input.is_read_only, u16::from(input.queues % 4) + 1);
    bench.activate(&input.setup);
    input.steps.into_iter().for_each(|step| bench.timed(step));
    bench.finish();
});
