//! The work on one queue: it takes requests in, and gives them back when the engine has carried them out.
//!
//! Whatever wakes it, a handler does the same: it takes in what the driver has added, as far as the limits allow, sets
//! all of it going at once, and gives back all that is over with one interrupt. A queue that waits for its limits
//! leaves new requests where they are, and its doorbell off; what it has begun goes on.

use std::fmt;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Instant;

use innkeeper_block::{Completion, Engine};

use super::QUEUE_SIZE;
use super::counters::Counters;
use super::disk::Disk;
use super::request::{Parser, Request, RequestError};
use crate::event::as_fd;
use crate::memory::GuestMemory;
use crate::virtio::queue::{Chain, MemoryHold, QueueError};
use crate::virtio::worker::Handler;
use crate::virtio::{ActiveQueue, BATCH};

/// The driver has added requests, or somebody wants the handler to look again.
pub(super) const SOURCE_DOORBELL: u64 = 0;
/// The engine has completed something.
pub(super) const SOURCE_ENGINE: u64 = 1;

/// What serves one queue of a disk, in one thread.
pub struct QueueHandler {
    index: usize,
    memory: Arc<GuestMemory>,
    queue: ActiveQueue,
    requests: Requests,
    /// When to go on, if there is more to take in.
    resume: Option<Instant>,
    /// The driver has not been told yet of what it got back.
    has_given_back: bool,
}

impl fmt::Debug for QueueHandler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QueueHandler").field("index", &self.index).finish_non_exhaustive()
    }
}

/// Why a handler stopped taking requests in.
enum Pause {
    /// There are no more; the doorbell rings when there are.
    Empty,
    /// It has enough for now.
    Full,
    /// The disk's limits allow more at this time.
    Limited(Instant),
}

impl QueueHandler {
    /// Takes queue `index` of `disk` into service.
    pub(super) fn new(
        disk: &Arc<Disk>,
        index: usize,
        memory: &Arc<GuestMemory>,
        queue: ActiveQueue,
        is_write_through: bool,
    ) -> io::Result<Self> {
        let engine = disk.backend().engine(QUEUE_SIZE)?;
        let parser = Parser {
            memory: MemoryHold::new(Arc::clone(memory)),
            serial: disk.serial().clone(),
            is_write_through,
        };
        let requests = Requests {
            counters: disk.counters(index),
            disk: Arc::clone(disk),
            engine,
            in_progress: (0..QUEUE_SIZE).map(|_| None).collect(),
            parser,
        };
        Ok(Self { index, memory: Arc::clone(memory), queue, requests, resume: None, has_given_back: false })
    }

    /// Which queue it serves.
    pub fn index(&self) -> usize {
        self.index
    }

    /// Takes up to `limit` requests in.
    fn take_in(&mut self, limit: usize) -> Result<Pause, QueueError> {
        let Self { memory, queue, requests, has_given_back, .. } = self;
        queue.queue.disable_doorbell(memory)?;
        let mut now = None;
        for _ in 0..limit {
            if let Some(time) = requests.disk.limiter().wait()
                && !queue.queue.is_empty(memory)?
            {
                return Ok(Pause::Limited(time));
            }
            let Some(chain) = queue.queue.pop(memory)? else {
                if queue.queue.enable_doorbell(memory)? {
                    continue;
                }
                return Ok(Pause::Empty);
            };
            // One look at the clock is enough for all that are taken together.
            let now = *now.get_or_insert_with(Instant::now);
            if let Some(written) = requests.begin(&chain, now)? {
                *has_given_back = true;
                queue.queue.push(memory, chain.head, written)?;
            }
        }
        Ok(Pause::Full)
    }

    /// Gives back what is over. One interrupt is enough for all of it.
    fn give_back(&mut self) -> Result<(), QueueError> {
        let Self { memory, queue, requests, has_given_back, .. } = self;
        requests.finish(|head, written| {
            *has_given_back = true;
            queue.queue.push(memory, head, written)
        })?;
        if std::mem::take(has_given_back) { queue.announce(memory) } else { Ok(()) }
    }
}

impl Handler for QueueHandler {
    fn sources(&self) -> Vec<(BorrowedFd<'_>, u64)> {
        let doorbell = (as_fd(&self.queue.doorbell), SOURCE_DOORBELL);
        let engine = self.requests.engine.event().map(|event| (event, SOURCE_ENGINE));
        [doorbell].into_iter().chain(engine).collect()
    }

    fn deadline(&self) -> Option<Instant> {
        self.resume
    }

    fn handle(&mut self, source: u64) -> Result<(), QueueError> {
        if source == SOURCE_DOORBELL {
            self.requests.counters.kicks.add(1);
        }
        // A synchronous engine takes its time for each request, so that each is given back at once. In either case
        // others want to be heard after a while: the engine, or whoever stops the thread.
        let is_synchronous = self.requests.engine.event().is_none();
        let (rounds, limit) = if is_synchronous { (BATCH, 1) } else { (1, BATCH) };
        let mut pause = Pause::Full;
        for _ in 0..rounds {
            pause = self.take_in(limit)?;
            self.requests.engine.start().map_err(QueueError::Engine)?;
            self.give_back()?;
            if !matches!(pause, Pause::Full) {
                break;
            }
        }
        self.resume = match pause {
            Pause::Empty => None,
            Pause::Full => Some(Instant::now()),
            Pause::Limited(time) => {
                // It may be woken several times while it waits once.
                if self.resume.is_none_or(|resume| resume <= Instant::now()) {
                    self.requests.counters.throttled.add(1);
                }
                Some(time)
            }
        };
        Ok(())
    }
}

/// The requests of one queue.
struct Requests {
    disk: Arc<Disk>,
    counters: Arc<Counters>,
    engine: Box<dyn Engine>,
    /// What the engine works on, by the head of its chain, and when it was taken from the queue.
    in_progress: Vec<Option<(Request, Instant)>>,
    parser: Parser,
}

impl Requests {
    /// Takes a request in at `now`. Returns how many bytes were written to its chain if it is over already.
    fn begin(&mut self, chain: &Chain<'_>, now: Instant) -> Result<Option<u32>, QueueError> {
        let (mut request, result) = self.parser.parse(chain)?;
        self.disk.limiter().take(request.length as u64);
        if let Err(error) = result {
            return Ok(Some(self.end(request, Err(error))));
        }
        let Some(step) = request.next_step() else {
            return Ok(Some(self.end(request, Ok(()))));
        };
        let place = self.in_progress.get_mut(usize::from(chain.head));
        // The queue is no larger than there are places, and gives no chain out twice.
        *place.ok_or(QueueError::Chain(chain.head))? = Some((request, now));
        self.engine.submit(chain.head, step);
        Ok(None)
    }

    /// Ends the requests that are over: `give_back` gets the heads of their chains, and how many bytes were written to
    /// them.
    fn finish(
        &mut self,
        mut give_back: impl FnMut(u16, u32) -> Result<(), QueueError>,
    ) -> Result<(), QueueError> {
        let mut now = None;
        let mut has_next_steps = true;
        while std::mem::take(&mut has_next_steps) {
            while let Some(Completion { slot, result }) = self.engine.complete() {
                let Some(place) = self.in_progress.get_mut(usize::from(slot)) else { continue };
                let Some((request, begun)) = place else { continue };
                if result.is_ok()
                    && let Some(step) = request.next_step()
                {
                    self.engine.submit(slot, step);
                    has_next_steps = true;
                    continue;
                }
                let now = *now.get_or_insert_with(Instant::now);
                let time = now.saturating_duration_since(*begun);
                self.counters.record(request.kind, request.length, result.is_ok(), time);
                let Some((request, _)) = place.take() else { continue };
                give_back(slot, self.end(request, result.map_err(RequestError::from)))?;
            }
            if has_next_steps {
                self.engine.start().map_err(QueueError::Engine)?;
            }
        }
        Ok(())
    }

    fn end(&self, request: Request, result: Result<(), RequestError>) -> u32 {
        if result.is_err() {
            self.counters.record_error();
        }
        request.end(result)
    }
}

#[cfg(test)]
mod tests {
    use super::super::recorder::Recorder;
    use super::super::{Block, SerialNumber};
    use super::*;
    use innkeeper_protocol::{Limit, Limits};
    use std::time::Duration;
    use virtio_bindings::virtio_blk::{
        VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT,
    };

    use crate::virtio::harness::{self, Driver};
    use crate::virtio::worker::SOURCE_DEADLINE;

    /// A driver, and the handler of its queue over a disk of 64 sectors.
    struct Bench {
        driver: Driver,
        disk: Arc<Disk>,
        recorder: Recorder,
        handler: QueueHandler,
    }

    impl Bench {
        fn new(recorder: Recorder, features: u64, limits: Limits) -> Self {
            let memory = harness::memory(1);
            let backend = Arc::new(recorder.clone());
            let disk = Arc::new(Disk::new(backend, SerialNumber::default(), 1, limits).unwrap());
            let (driver, device) = Driver::new(&memory, 0, QUEUE_SIZE);
            let activation = harness::activation(&memory, features, vec![Some(device)]);
            let handler = Block::handlers(&disk, activation).unwrap().remove(0);
            Self { driver, disk, recorder, handler }
        }

        fn asynchronous() -> Self {
            Self::new(Recorder::new(64).asynchronous(), 1 << VIRTIO_BLK_F_FLUSH, Limits::default())
        }

        fn synchronous() -> Self {
            Self::new(Recorder::new(64), 1 << VIRTIO_BLK_F_FLUSH, Limits::default())
        }

        /// Submits a request; returns its head, and where its status will be.
        fn submit(&mut self, kind: u32, sector: u64, out: &[u8], in_size: usize) -> (u16, u64) {
            let header = [&kind.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()].concat();
            let readable: &[&[u8]] = if out.is_empty() { &[&header] } else { &[&header, out] };
            let writable: &[usize] = if in_size == 0 { &[1] } else { &[in_size, 1] };
            let (head, buffers) = self.driver.request(readable, writable);
            (head, *buffers.last().unwrap())
        }

        fn used(&mut self) -> Vec<(u16, u32)> {
            std::iter::from_fn(|| self.driver.used()).collect()
        }
    }

    /// An asynchronous engine has several requests at a time, and each its own end.
    #[test]
    fn requests_end_when_the_engine_says_so() {
        let mut bench = Bench::asynchronous();
        let (write, _) = bench.submit(VIRTIO_BLK_T_OUT, 0, &[0; 512], 0);
        let (read, _) = bench.submit(VIRTIO_BLK_T_IN, 1, &[], 512);
        let (identify, _) = bench.submit(VIRTIO_BLK_T_GET_ID, 0, &[], 20);
        bench.handler.handle(SOURCE_DOORBELL).unwrap();
        assert_eq!(bench.used(), [(identify, 21)], "this one needs no engine");
        assert_eq!(bench.recorder.calls(), ["write 0 512", "read 512 512"]);
        assert_eq!(bench.recorder.starts(), 1, "both are set going at once");
        bench.handler.handle(SOURCE_ENGINE).unwrap();
        assert_eq!(bench.used(), []);
        bench.recorder.complete(2);
        bench.handler.handle(SOURCE_ENGINE).unwrap();
        assert_eq!(bench.used(), [(write, 1), (read, 513)]);
        assert!(bench.handler.requests.in_progress.iter().all(Option::is_none));
        assert_eq!(bench.handler.deadline(), None);
    }

    #[test]
    fn a_write_is_over_after_its_flush_if_the_driver_cannot_flush() {
        let mut bench = Bench::new(Recorder::new(64).asynchronous(), 0, Limits::default());
        let (head, _) = bench.submit(VIRTIO_BLK_T_OUT, 0, &[0; 512], 0);
        bench.handler.handle(SOURCE_DOORBELL).unwrap();
        bench.recorder.complete(1);
        bench.handler.handle(SOURCE_ENGINE).unwrap();
        assert_eq!(bench.used(), []);
        assert_eq!(bench.recorder.calls(), ["write 0 512", "flush"]);
        assert_eq!(bench.recorder.starts(), 3, "the flush is set going too");
        bench.recorder.complete(1);
        bench.handler.handle(SOURCE_ENGINE).unwrap();
        assert_eq!(bench.used(), [(head, 1)]);
    }

    #[test]
    fn a_failed_step_ends_the_request() {
        for recorder in [Recorder::new(64), Recorder::new(64).asynchronous()] {
            let mut bench = Bench::new(recorder.failing(), 0, Limits::default());
            let (head, status) = bench.submit(VIRTIO_BLK_T_OUT, 0, &[0; 512], 0);
            bench.handler.handle(SOURCE_DOORBELL).unwrap();
            bench.recorder.complete(1);
            bench.handler.handle(SOURCE_ENGINE).unwrap();
            assert_eq!((bench.used(), bench.driver.read(status, 1)), (vec![(head, 1)], vec![1]));
            assert_eq!(bench.recorder.calls(), ["write 0 512"], "no flush after a failed write");
            let metrics = bench.disk.metrics();
            assert_eq!((metrics.errors, metrics.written_bytes, metrics.writes.count), (1, 0, 1));
        }
    }

    #[test]
    fn a_synchronous_engine_serves_one_after_the_other() {
        let mut bench = Bench::synchronous();
        let heads: Vec<_> = (0..3).map(|sector| bench.submit(VIRTIO_BLK_T_IN, sector, &[], 512).0).collect();
        bench.handler.handle(SOURCE_DOORBELL).unwrap();
        assert_eq!(bench.used(), heads.iter().map(|head| (*head, 513)).collect::<Vec<_>>());
        assert!(bench.recorder.starts() >= 3);
    }

    /// A driver may add requests for ever; somebody may want to stop the thread.
    #[test]
    fn a_handler_comes_back_for_what_is_too_much() {
        for mut bench in [Bench::synchronous(), Bench::asynchronous()] {
            for _ in 0..BATCH + 1 {
                bench.submit(VIRTIO_BLK_T_GET_ID, 0, &[], 1);
            }
            bench.handler.handle(SOURCE_DOORBELL).unwrap();
            assert_eq!(bench.used().len(), BATCH);
            assert!(bench.handler.deadline().unwrap() <= Instant::now());
            bench.handler.handle(SOURCE_DEADLINE).unwrap();
            assert_eq!(bench.used().len(), 1);
            assert_eq!(bench.handler.deadline(), None);
            assert_eq!(bench.disk.metrics().kicks, [1]);
        }
    }

    fn operations(per_second: u64, burst: u64) -> Limits {
        Limits { bytes: None, operations: Some(Limit { per_second, burst: Some(burst) }) }
    }

    fn bytes(per_second: u64, burst: u64) -> Limits {
        Limits { bytes: Some(Limit { per_second, burst: Some(burst) }), operations: None }
    }

    #[test]
    fn a_limited_queue_waits_and_loses_nothing() {
        let recorder = Recorder::new(64).asynchronous();
        let mut bench = Bench::new(recorder, 1 << VIRTIO_BLK_F_FLUSH, operations(100, 2));
        for sector in 0..4 {
            bench.submit(VIRTIO_BLK_T_IN, sector, &[], 512);
        }
        bench.handler.handle(SOURCE_DOORBELL).unwrap();
        assert_eq!(bench.recorder.calls().len(), 2);
        let resume = bench.handler.deadline().unwrap();
        let wait = resume.saturating_duration_since(Instant::now());
        assert!(wait <= Duration::from_millis(10), "{wait:?}");
        // What was begun is given back meanwhile, and it is still the same wait.
        bench.recorder.complete(2);
        bench.handler.handle(SOURCE_ENGINE).unwrap();
        assert_eq!(bench.used().len(), 2);
        assert!(bench.disk.metrics().throttled <= 2);
        let start = Instant::now();
        let mut begun = 0;
        while begun < 2 {
            assert!(start.elapsed() < Duration::from_secs(10));
            if let Some(resume) = bench.handler.deadline() {
                std::thread::sleep(resume.saturating_duration_since(Instant::now()));
            }
            bench.handler.handle(SOURCE_DEADLINE).unwrap();
            begun += bench.recorder.calls().len();
        }
        bench.recorder.complete(2);
        bench.handler.handle(SOURCE_ENGINE).unwrap();
        assert_eq!(bench.used().len(), 2);
        assert_eq!(bench.handler.deadline(), None, "an empty queue waits for nothing");
        assert!(bench.disk.metrics().throttled >= 1);
    }

    #[test]
    fn limits_that_change_count_at_once() {
        let mut bench =
            Bench::new(Recorder::new(64).asynchronous(), 1 << VIRTIO_BLK_F_FLUSH, operations(1, 1));
        for sector in 0..3 {
            bench.submit(VIRTIO_BLK_T_IN, sector, &[], 512);
        }
        for _ in 0..3 {
            bench.handler.handle(SOURCE_DOORBELL).unwrap();
            assert!(bench.handler.deadline().is_some());
        }
        assert_eq!(bench.recorder.calls().len(), 1);
        assert_eq!(bench.disk.metrics().throttled, 1, "one wait, however often somebody looks");
        bench.disk.set_limits(Limits::default()).unwrap();
        bench.handler.handle(SOURCE_DOORBELL).unwrap();
        assert_eq!(bench.recorder.calls().len(), 2);
        assert_eq!(bench.handler.deadline(), None);
    }

    #[test]
    fn bytes_are_those_of_reads_and_writes() {
        let recorder = Recorder::new(64).asynchronous();
        let mut bench = Bench::new(recorder, 1 << VIRTIO_BLK_F_FLUSH, bytes(1, 1000));
        for _ in 0..5 {
            bench.submit(VIRTIO_BLK_T_FLUSH, 0, &[], 0);
        }
        bench.submit(VIRTIO_BLK_T_IN, 0, &[], 512);
        bench.submit(VIRTIO_BLK_T_OUT, 0, &[0; 512], 0);
        bench.submit(VIRTIO_BLK_T_FLUSH, 0, &[], 0);
        bench.handler.handle(SOURCE_DOORBELL).unwrap();
        assert_eq!(bench.recorder.calls().len(), 7, "the last flush waits for the debt of the write");
        assert!(bench.handler.deadline().is_some());
    }

    #[test]
    fn what_a_driver_must_not_do_ends_the_handler() {
        let mut bench = Bench::asynchronous();
        let (head, _) = bench.submit(VIRTIO_BLK_T_IN, 0, &[], 512);
        bench.driver.submit(head);
        assert!(matches!(bench.handler.handle(SOURCE_DOORBELL), Err(QueueError::InFlight(_))));

        let mut bench = Bench::asynchronous();
        bench.driver.request(&[&[0; 15]], &[1]);
        assert!(matches!(bench.handler.handle(SOURCE_DOORBELL), Err(QueueError::TooShort(_))));
    }

    /// An answer for a slot that has no request is the engine's mistake, and harms nobody.
    #[test]
    fn foreign_completions_are_ignored() {
        let mut bench = Bench::asynchronous();
        let (head, _) = bench.submit(VIRTIO_BLK_T_IN, 0, &[], 512);
        bench.handler.handle(SOURCE_DOORBELL).unwrap();
        bench.recorder.complete_slot(255);
        bench.recorder.complete_slot(u16::MAX);
        bench.recorder.complete(1);
        bench.handler.handle(SOURCE_ENGINE).unwrap();
        assert_eq!(bench.used(), [(head, 513)]);
    }
}
