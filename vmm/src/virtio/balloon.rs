//! The traditional memory balloon (section 5.5): memory that the guest can do without goes back to the host.
//!
//! It goes in two ways. A controller sets a target, and the driver *inflates* its balloon with as many pages
//! as it can spare; they are its own again when it deflates. And, without anybody asking, a driver *reports*
//! memory that happens to be free. Either way the pages lose their content, and the host gives new ones, full
//! of zeroes, when the guest touches them again: so it need not say that it deflates, and the device only
//! counts it.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use innkeeper_protocol::{BalloonMetrics, BalloonStatus};
use vm_memory::{GuestAddress, GuestMemoryBackend, VolatileSlice};

use super::queue::{Chain, QueueError};
use super::worker::{Handler, Workers};
use super::{Activation, ActiveQueue, DeviceType, VirtioDevice, read_bytes};
use crate::event::as_fd;
use crate::memory::GuestMemory;
use crate::metrics::Counter;

/// Feature bits (section 5.5.3).
mod feature {
    pub const DEFLATE_ON_OOM: u32 = 2;
    pub const PAGE_POISON: u32 = 4;
    pub const REPORTING: u32 = 5;
}

/// Fields of the configuration structure (section 5.5.4), 32 bits each.
mod config {
    pub const ACTUAL: usize = 4;
    pub const POISON_VAL: usize = 12;
}

/// The specification has five queues: to inflate, to deflate, and the last one to report. What is between
/// them belongs to features that are not on offer here, and drivers disagree about whether it counts: Linux
/// gives numbers only to the queues it uses, so that it reports on queue 2. Linux also insists on 32 entries
/// there.
const QUEUE_SIZES: [u16; 5] = [128; 5];

/// A page of the balloon, in bytes, whatever pages the guest or the host use.
const PAGE_SIZE: usize = 4096;

/// A request frees at most this many pages or ranges, whatever it asks for: the host's time is shared, and so
/// is the lock on the address space. What is behind them stays where it is, which does no harm. Linux
/// inflates with 256 pages at a time, and reports 32 ranges.
const MAX_RANGES: usize = 1024;

/// What a controller has of a balloon: what it asks for and what it gets to know, over all resets of the
/// guest.
#[derive(Debug, Default)]
pub struct BalloonControl {
    /// In pages, as the driver sees it (`num_pages`).
    target: AtomicU32,
    /// What the driver says that it has done (`actual`), in pages.
    actual: AtomicU32,
    /// What free pages are filled with in this guest (`poison_val`).
    poison: AtomicU32,
    inflated: Counter,
    deflated: Counter,
    reported: Counter,
}

impl BalloonControl {
    /// A balloon that asks for nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Asks the guest to do without `bytes` bytes, rounded down to pages of 4 KiB; at most 16 TiB less a page.
    /// A driver learns of it by a change of the configuration, which is the transport's to announce.
    pub fn set_target(&self, bytes: u64) {
        let pages = u32::try_from(bytes / PAGE_SIZE as u64).unwrap_or(u32::MAX);
        self.target.store(pages, Ordering::SeqCst);
    }

    /// What was asked for, and how far the driver says it is. A guest may say what it likes.
    pub fn status(&self) -> BalloonStatus {
        let bytes = |pages: &AtomicU32| u64::from(pages.load(Ordering::SeqCst)) * PAGE_SIZE as u64;
        BalloonStatus { target: bytes(&self.target), actual: bytes(&self.actual) }
    }

    /// What was done so far.
    pub fn metrics(&self) -> BalloonMetrics {
        BalloonMetrics {
            inflated_bytes: self.inflated.get(),
            deflated_bytes: self.deflated.get(),
            reported_bytes: self.reported.get(),
        }
    }

    /// Forgets the driver, but not the target: the next driver is to reach it, too.
    fn forget_driver(&self) {
        self.actual.store(0, Ordering::SeqCst);
        self.poison.store(0, Ordering::SeqCst);
    }
}

/// The device.
#[derive(Debug)]
pub struct Balloon {
    control: Arc<BalloonControl>,
    workers: Workers,
}

impl Balloon {
    /// A balloon that does what `control` says, in a machine that has just been made.
    pub fn new(control: Arc<BalloonControl>) -> Self {
        control.forget_driver();
        Self { control, workers: Workers::default() }
    }

    /// What serves the queues, for whoever wants to do that in a thread of their own.
    #[cfg(any(test, fuzzing))]
    pub fn handler(&self, activation: Activation) -> impl Handler + use<> {
        self.requests(activation)
    }

    fn requests(&self, activation: Activation) -> Requests {
        let has_poison = activation.has(feature::PAGE_POISON);
        let reports = activation.has(feature::REPORTING);
        let Activation { memory, queues, .. } = activation;
        let mut queues = queues.into_iter();
        let inflate = queues.next().flatten().map(|queue| (Purpose::Inflate, queue));
        let deflate = queues.next().flatten().map(|queue| (Purpose::Deflate, queue));
        // Whichever of the others it is that the driver has set up (see `QUEUE_SIZES`).
        let report = queues.flatten().next().filter(|_| reports).map(|queue| (Purpose::Report, queue));
        let queues = [inflate, deflate, report].into_iter().flatten().collect();
        Requests { memory, control: Arc::clone(&self.control), queues, has_poison }
    }
}

impl VirtioDevice for Balloon {
    fn device_type(&self) -> DeviceType {
        DeviceType::Balloon
    }

    fn features(&self) -> u64 {
        // A guest that fills free pages with something does not report them to a device without PAGE_POISON.
        1 << feature::DEFLATE_ON_OOM | 1 << feature::PAGE_POISON | 1 << feature::REPORTING
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn read_config(&self, offset: usize, data: &mut [u8]) {
        let field = |field: &AtomicU32| field.load(Ordering::SeqCst).to_le_bytes();
        let free_page_hint_cmd_id = [0; 4];
        let Self { control, .. } = self;
        let fields =
            [field(&control.target), field(&control.actual), free_page_hint_cmd_id, field(&control.poison)];
        read_bytes(fields.as_flattened(), offset, data);
    }

    fn write_config(&mut self, offset: usize, data: &[u8]) {
        // A driver accesses a field as what it is (section 4.1.3.1).
        let Ok(value) = data.try_into().map(u32::from_le_bytes) else {
            return;
        };
        match offset {
            config::ACTUAL => self.control.actual.store(value, Ordering::SeqCst),
            config::POISON_VAL => self.control.poison.store(value, Ordering::SeqCst),
            _ => {}
        }
    }

    fn activate(&mut self, activation: Activation) -> io::Result<()> {
        let notifier = Arc::clone(&activation.notifier);
        let requests = self.requests(activation);
        self.workers.spawn("balloon", notifier, requests)
    }

    fn reset(&mut self) {
        self.workers.stop();
        self.control.forget_driver();
    }
}

/// What a queue is for.
#[derive(Clone, Copy, Debug)]
enum Purpose {
    Inflate,
    Deflate,
    Report,
}

struct Requests {
    memory: Arc<GuestMemory>,
    control: Arc<BalloonControl>,
    /// Those that the driver has set up; their sources are their places here.
    queues: Vec<(Purpose, ActiveQueue)>,
    /// Whether the driver has said what its free pages are filled with.
    has_poison: bool,
}

impl Handler for Requests {
    fn sources(&self) -> Vec<(BorrowedFd<'_>, u64)> {
        self.queues.iter().zip(0..).map(|((_, queue), source)| (as_fd(&queue.doorbell), source)).collect()
    }

    fn handle(&mut self, source: u64) -> Result<(), QueueError> {
        let index = usize::try_from(source).unwrap_or(usize::MAX);
        let Some((purpose, queue)) = self.queues.get_mut(index) else {
            return Ok(());
        };
        let (memory, control) = (&self.memory, &self.control);
        // Such pages must keep their content (section 5.5.6.7.2): there is nothing to be had.
        let keeps_content = self.has_poison && control.poison.load(Ordering::SeqCst) != 0;
        queue.drain(memory, |chain| {
            match purpose {
                Purpose::Inflate => visit_pages(memory, chain, |pages| control.inflated.add(discard(pages)))?,
                Purpose::Deflate => {
                    visit_pages(memory, chain, |pages| control.deflated.add(pages.len() as u64))?
                }
                Purpose::Report if keeps_content => {}
                Purpose::Report => {
                    let ranges = chain.writable.slices().iter().take(MAX_RANGES);
                    ranges.for_each(|range| control.reported.add(discard(range)));
                }
            }
            Ok(Some(0))
        })
    }
}

/// Visits the pages whose numbers are in `chain`, once each: in ascending order, and as many at a time as lie
/// behind each other.
fn visit_pages(
    memory: &GuestMemory,
    chain: &Chain<'_>,
    mut visit: impl FnMut(&VolatileSlice<'_>),
) -> Result<(), QueueError> {
    const NUMBER_SIZE: usize = size_of::<u32>();
    let length = chain.readable.len();
    if !length.is_multiple_of(NUMBER_SIZE) {
        return Err(QueueError::TooShort(chain.head));
    }
    let mut bytes = vec![0; length.min(MAX_RANGES * NUMBER_SIZE)];
    chain.readable.copy_to(&mut bytes);
    let (numbers, _) = bytes.as_chunks();
    let mut pages: Vec<u32> = numbers.iter().map(|number| u32::from_le_bytes(*number)).collect();
    pages.sort_unstable();
    pages.dedup();
    for run in pages.chunk_by(|page, next| next - page == 1) {
        let first = run.first().copied().unwrap_or_default();
        let start = GuestAddress(u64::from(first) * PAGE_SIZE as u64);
        for slice in memory.get_slices(start, run.len() * PAGE_SIZE) {
            visit(&slice.map_err(|_| QueueError::Address(chain.head))?);
        }
    }
    Ok(())
}

/// Gives the host what lies in `range` in whole pages; returns how many bytes that were. They read as zeroes
/// then.
fn discard(range: &VolatileSlice<'_>) -> u64 {
    let guard = range.ptr_guard_mut();
    let start = guard.as_ptr();
    // The host would take a part of a page for all of it.
    let skipped = start.addr().next_multiple_of(PAGE_SIZE) - start.addr();
    let length = range.len().saturating_sub(skipped) / PAGE_SIZE * PAGE_SIZE;
    if length == 0 {
        return 0;
    }
    // SAFETY: what is discarded lies in `range`, which is mapped guest memory: private and anonymous, so it
    // stays mapped and only its content changes, as it does when the guest writes to it.
    let result = unsafe { libc::madvise(start.add(skipped).cast(), length, libc::MADV_DONTNEED) };
    if result != 0 {
        tracing::debug!(error = %io::Error::last_os_error(), "the host did not take memory back");
        return 0;
    }
    length as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::virtio::harness::{self, Driver, QUEUE_SPACE};
    use proptest::prelude::*;
    use virtio_bindings::virtio_ring::VRING_DESC_F_WRITE;
    use vm_memory::Bytes;

    const PAGE: u64 = PAGE_SIZE as u64;
    /// Memory behind the queues', filled with [`FILL`].
    const SPARE: u64 = 5 * QUEUE_SPACE;
    const SPARE_PAGES: u64 = QUEUE_SPACE / PAGE;
    const END: u64 = SPARE + QUEUE_SPACE;
    const FILL: u8 = 0xa5;

    /// A driver that uses all features on offer, and reports on the queue with a certain number.
    struct Bench {
        memory: Arc<GuestMemory>,
        device: Balloon,
        requests: Requests,
        inflate: Driver,
        deflate: Driver,
        report: Driver,
    }

    impl Bench {
        fn new() -> Self {
            Self::with(Balloon::new(Arc::default()).features(), 2)
        }

        fn with(features: u64, reporting_queue: usize) -> Self {
            let memory = harness::memory(6);
            memory.write_slice(&vec![FILL; QUEUE_SPACE as usize], GuestAddress(SPARE)).unwrap();
            let device = Balloon::new(Arc::new(BalloonControl::new()));
            let mut queues: Vec<Option<ActiveQueue>> = (0..5).map(|_| None).collect();
            let mut driver = |index: usize| {
                let (driver, queue) = Driver::new(&memory, index as u64, QUEUE_SIZES[index]);
                queues[index] = Some(queue);
                driver
            };
            let (inflate, deflate, report) = (driver(0), driver(1), driver(reporting_queue));
            let requests = device.requests(harness::activation(&memory, features, queues));
            Self { memory, device, requests, inflate, deflate, report }
        }

        fn work(&mut self) -> Result<(), QueueError> {
            let sources: Vec<u64> = self.requests.sources().into_iter().map(|(_, source)| source).collect();
            sources.into_iter().try_for_each(|source| self.requests.handle(source))
        }

        fn report(&mut self, address: u64, length: u64) -> Result<(), QueueError> {
            self.report.descriptor(0, address, length as u32, VRING_DESC_F_WRITE as u16, 0);
            self.report.submit(0);
            self.work()
        }

        /// The numbers of the spare pages that are full of zeroes. No page may be anything between.
        fn freed(&self) -> Vec<u64> {
            let is_zero = |page: &u64| {
                let mut content = vec![0; PAGE_SIZE];
                self.memory.read_slice(&mut content, GuestAddress(page * PAGE)).unwrap();
                let is_zero = content[0] == 0;
                assert!(content.iter().all(|byte| *byte == if is_zero { 0 } else { FILL }), "{page}");
                is_zero
            };
            (SPARE / PAGE..END / PAGE).filter(is_zero).collect()
        }

        fn metrics(&self) -> BalloonMetrics {
            self.device.control.metrics()
        }
    }

    fn numbers(pages: &[u64]) -> Vec<u8> {
        pages.iter().flat_map(|page| (*page as u32).to_le_bytes()).collect()
    }

    fn config<const N: usize>(device: &Balloon, offset: usize) -> [u8; N] {
        let mut data = [0xff; N];
        device.read_config(offset, &mut data);
        data
    }

    #[test]
    fn a_target_is_whole_pages_and_no_more_than_can_be_said() {
        let control = BalloonControl::new();
        let largest = u64::from(u32::MAX) * PAGE;
        let cases = [
            (0, 0),
            (1, 0),
            (4095, 0),
            (4096, 4096),
            (10_000, 8192),
            (1 << 50, largest),
            (u64::MAX, largest),
        ];
        for (bytes, expected) in cases {
            control.set_target(bytes);
            assert_eq!(control.status(), BalloonStatus { target: expected, actual: 0 }, "{bytes}");
        }
    }

    #[test]
    fn the_driver_sees_the_target_and_says_how_far_it_is() {
        let control = Arc::new(BalloonControl::new());
        let mut device = Balloon::new(Arc::clone(&control));
        control.set_target(0x0102_0304 * PAGE);
        device.write_config(4, &7u32.to_le_bytes());
        device.write_config(12, &0xaaaa_aaaau32.to_le_bytes());
        assert_eq!(config(&device, 0), [4, 3, 2, 1, 7, 0, 0, 0, 0, 0, 0, 0, 0xaa, 0xaa, 0xaa, 0xaa, 0, 0]);
        assert_eq!(config(&device, 3), [1, 7]);
        assert_eq!(config(&device, usize::MAX - 4), [0; 4]);
        assert_eq!(control.status().actual, 7 * PAGE);
        // Fields that are not the driver's, and pieces of fields.
        for (offset, data) in
            [(0, &[9; 4][..]), (8, &[9; 4]), (4, &[9; 2]), (5, &[9; 4]), (16, &[9; 4]), (4, &[])]
        {
            device.write_config(offset, data);
        }
        assert_eq!(config(&device, 0), [4, 3, 2, 1, 7, 0, 0, 0]);
    }

    #[test]
    fn the_target_outlives_the_driver() {
        let control = Arc::new(BalloonControl::new());
        control.set_target(8 * PAGE);
        let mut device = Balloon::new(Arc::clone(&control));
        device.write_config(4, &8u32.to_le_bytes());
        device.write_config(12, &1u32.to_le_bytes());
        device.reset();
        assert_eq!(control.status(), BalloonStatus { target: 8 * PAGE, actual: 0 });
        assert_eq!(config(&device, 12), [0; 4]);
        device.write_config(4, &8u32.to_le_bytes());
        drop(device);
        let _next = Balloon::new(Arc::clone(&control));
        assert_eq!(control.status(), BalloonStatus { target: 8 * PAGE, actual: 0 });
    }

    #[test]
    fn inflating_frees_pages_and_deflating_is_counted() {
        let mut bench = Bench::new();
        let first = SPARE / PAGE;
        let pages = [first + 3, first + 2, first + 1, first + 9, first + 2];
        let (head, _) = bench.inflate.request(&[&numbers(&pages)], &[]);
        bench.work().unwrap();
        assert_eq!(bench.inflate.used(), Some((head, 0)));
        assert_eq!(bench.freed(), [first + 1, first + 2, first + 3, first + 9]);
        // Numbers in two buffers, cut anywhere.
        let bytes = numbers(&[first + 1, first + 9]);
        let (head, _) = bench.deflate.request(&[&bytes[..3], &bytes[3..]], &[]);
        bench.work().unwrap();
        assert_eq!(bench.deflate.used(), Some((head, 0)));
        let expected =
            BalloonMetrics { inflated_bytes: 4 * PAGE, deflated_bytes: 2 * PAGE, reported_bytes: 0 };
        assert_eq!(bench.metrics(), expected);
    }

    #[test]
    fn pages_that_do_not_exist_are_errors() {
        let last = END / PAGE - 1;
        for number in [last + 1, 0xf_ffff, u64::from(u32::MAX)] {
            for is_inflate in [true, false] {
                let mut bench = Bench::new();
                let driver = if is_inflate { &mut bench.inflate } else { &mut bench.deflate };
                driver.request(&[&numbers(&[last, number])], &[]);
                assert!(matches!(bench.work(), Err(QueueError::Address(_))), "{number}");
            }
        }
    }

    #[test]
    fn half_a_number_is_an_error() {
        for length in [1, 3, 5, 4095] {
            let mut bench = Bench::new();
            bench.inflate.request(&[&vec![0; length]], &[]);
            assert!(matches!(bench.work(), Err(QueueError::TooShort(_))), "{length}");
        }
    }

    #[test]
    fn requests_without_numbers_are_harmless() {
        let mut bench = Bench::new();
        bench.inflate.request(&[], &[8]);
        bench.deflate.request(&[], &[8]);
        bench.report.request(&[&[0; 8]], &[]);
        bench.work().unwrap();
        assert!(
            bench.inflate.used().is_some() && bench.deflate.used().is_some() && bench.report.used().is_some()
        );
        assert!(bench.freed().is_empty());
    }

    /// A mistake of Firecracker (issue 5794): a request took as long as the guest made it.
    #[test]
    fn a_request_is_looked_at_as_far_as_it_is_fair() {
        let mut bench = Bench::new();
        let first = SPARE / PAGE;
        let mut pages = vec![first; MAX_RANGES];
        // These would be an error.
        pages.resize(2 * MAX_RANGES, u64::from(u32::MAX));
        bench.inflate.request(&[&numbers(&pages)], &[]);
        bench.work().unwrap();
        assert_eq!(bench.freed(), [first]);
        assert_eq!(bench.metrics().inflated_bytes, PAGE);
    }

    #[test]
    fn reports_are_understood_on_the_queue_of_linux_and_on_that_of_the_specification() {
        for queue in [2, 4] {
            let mut bench = Bench::with(1 << feature::REPORTING, queue);
            bench.report(SPARE + 2 * PAGE, 3 * PAGE).unwrap();
            assert_eq!(bench.report.used(), Some((0, 0)));
            let first = SPARE / PAGE;
            assert_eq!(bench.freed(), [first + 2, first + 3, first + 4]);
            assert_eq!(bench.metrics().reported_bytes, 3 * PAGE);
        }
    }

    #[test]
    fn reports_from_a_driver_that_does_not_report_are_ignored() {
        let mut bench = Bench::with(0, 2);
        bench.report(SPARE, PAGE).unwrap();
        assert_eq!((bench.report.used(), bench.freed()), (None, vec![]));
    }

    #[test]
    fn only_whole_pages_of_a_report_are_freed() {
        let first = SPARE / PAGE;
        let cases = [
            (SPARE + 1, PAGE, vec![]),
            (SPARE + 1, 2 * PAGE, vec![first + 1]),
            (SPARE, PAGE - 1, vec![]),
            (SPARE, 2 * PAGE - 1, vec![first]),
            (SPARE + PAGE - 1, PAGE + 1, vec![first + 1]),
            (SPARE + 10, 10, vec![]),
            (END - PAGE, PAGE, vec![END / PAGE - 1]),
        ];
        for (address, length, expected) in cases {
            let mut bench = Bench::new();
            bench.report(address, length).unwrap();
            assert_eq!(bench.freed(), expected, "{address:x} {length}");
            assert_eq!(bench.metrics().reported_bytes, expected.len() as u64 * PAGE);
        }
    }

    #[test]
    fn a_report_of_memory_that_does_not_exist_is_an_error() {
        for (address, length) in [(END - PAGE, 2 * PAGE), (END, PAGE), (u64::MAX - PAGE, PAGE)] {
            let mut bench = Bench::new();
            assert!(matches!(bench.report(address, length), Err(QueueError::Address(0))));
            assert!(bench.freed().is_empty());
        }
    }

    #[test]
    fn pages_that_are_filled_with_something_keep_it() {
        let all = Balloon::new(Arc::default()).features();
        let cases = [(all, 0u32, 1), (all, 0xaaaa_aaaa, 0), (1 << feature::REPORTING, 0xaaaa_aaaa, 1)];
        for (features, poison, freed) in cases {
            let mut bench = Bench::with(features, 2);
            bench.device.write_config(config::POISON_VAL, &poison.to_le_bytes());
            bench.report(SPARE, PAGE).unwrap();
            assert!(bench.report.used().is_some());
            assert_eq!(bench.freed().len(), freed, "{features:x} {poison:x}");
        }
    }

    /// The rings are gone in the middle of the work, and that is nobody's problem but the guest's.
    #[test]
    fn a_guest_may_report_all_of_its_memory() {
        let mut bench = Bench::new();
        let _ = bench.report(0, END);
        assert_eq!(bench.freed().len() as u64, SPARE_PAGES);
        let _ = bench.work();
    }

    #[test]
    fn unknown_sources_are_ignored() {
        let mut bench = Bench::new();
        bench.requests.handle(3).unwrap();
        bench.requests.handle(u64::MAX).unwrap();
    }

    #[test]
    fn a_thread_serves_a_driver_until_the_reset() {
        let memory = harness::memory(2);
        let mut device = Balloon::new(Arc::default());
        let (mut driver, queue) = Driver::new(&memory, 0, 8);
        driver.request(&[&numbers(&[QUEUE_SPACE / PAGE])], &[]);
        queue.doorbell.write(1).unwrap();
        let queues = vec![Some(queue), None, None, None, None];
        device.activate(harness::activation(&memory, device.features(), queues)).unwrap();
        while driver.used().is_none() {
            std::thread::yield_now();
        }
        device.reset();
        assert_eq!(device.control.metrics().inflated_bytes, PAGE);
    }

    proptest! {
        /// Whatever pages are named: those are freed, and no other.
        #[test]
        fn what_is_freed_is_what_was_named(offsets in prop::collection::vec(0..SPARE_PAGES, 0..100)) {
            let mut bench = Bench::new();
            let mut pages: Vec<u64> = offsets.iter().map(|offset| SPARE / PAGE + offset).collect();
            bench.inflate.request(&[&numbers(&pages)], &[4]);
            bench.work().unwrap();
            pages.sort_unstable();
            pages.dedup();
            prop_assert_eq!(bench.metrics().inflated_bytes, pages.len() as u64 * PAGE);
            prop_assert_eq!(bench.freed(), pages);
        }
    }
}
