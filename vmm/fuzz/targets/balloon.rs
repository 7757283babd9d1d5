//! A balloon whose driver is hostile, and whose controller changes its mind.

#![no_main]

use std::collections::BTreeSet;
use std::sync::Arc;

use arbitrary::Arbitrary;
use innkeeper_fuzz::{Act, BUFFERS, Bytes, Device, Guest, Length, List, PAGE, Setup, Steps, Timed};
use innkeeper_vmm::virtio::VirtioDevice;
use innkeeper_vmm::virtio::balloon::{Balloon, BalloonControl};
use libfuzzer_sys::fuzz_target;

/// Feature bits.
const PAGE_POISON: u32 = 4;
const REPORTING: u32 = 5;

const INFLATE: usize = 0;
const DEFLATE: usize = 1;

/// The first page behind all memory below the hole.
const PAGES: u32 = 0x20;

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Page {
    /// A page that buffers are in.
    Buffer(u8),
    /// A page that exists, or one close to it.
    Near(u8),
    High(u8),
    Any(u32),
}

impl Page {
    fn number(self) -> u32 {
        let first = (BUFFERS.start / PAGE) as u32;
        match self {
            Self::Buffer(page) => first + u32::from(page) % ((BUFFERS.end / PAGE) as u32 - first),
            Self::Near(page) => u32::from(page) % (PAGES + 2),
            Self::High(page) => 0x10_0000 + u32::from(page % 6),
            Self::Any(page) => page,
        }
    }
}

#[derive(Arbitrary, Debug)]
enum Step {
    Act(Act),
    /// The guest gives pages away, or wants them back.
    Move {
        deflates: bool,
        pages: List<Page>,
        first: Page,
        count: u16,
        cut: u8,
        rest: u8,
        is_indirect: bool,
    },
    /// The guest reports free memory on one of the other queues.
    Report {
        queue: u8,
        lengths: List<Length>,
        is_indirect: bool,
    },
    /// The guest fills pages with something.
    Fill {
        page: u8,
        byte: u8,
    },
    Target(u64),
    WriteConfig {
        field: u8,
        value: u32,
    },
    WriteOddly {
        offset: u8,
        data: Bytes,
    },
    ReadConfig {
        offset: u16,
        length: u8,
    },
    Ring(u8),
    Handle(u64),
    Run,
    Activate(Setup),
}

#[derive(Arbitrary, Debug)]
struct Input {
    setup: Setup,
    steps: Steps<Timed<Step>>,
}

struct Bench {
    guest: Guest,
    control: Arc<BalloonControl>,
    balloon: Balloon,
    device: Option<Device>,
    /// Pages that the driver has named in what it gave away, since it set the device up.
    given: BTreeSet<u64>,
    /// Whether there is something that may be anywhere in what was given away.
    is_known: bool,
    reports: bool,
    keeps_reported: bool,
}

impl Bench {
    fn activate(&mut self, setup: &Setup) {
        self.device = None;
        self.balloon.reset();
        self.given.clear();
        self.is_known = true;
        assert_eq!(self.control.status().actual, 0, "a new driver has done nothing");
        let has = |bit: u32| setup.features >> bit & 1 == 1;
        self.reports = has(REPORTING);
        self.keeps_reported = has(PAGE_POISON);
        let activation = self.guest.activate(setup, self.balloon.features(), self.balloon.queue_sizes());
        self.device = activation.map(|activation| Device::new(self.balloon.handler(activation)));
    }

    /// Lets the device work, and sees that it discards what the driver has named and nothing else.
    fn work(&mut self, work: impl FnOnce(&mut Device, &mut Guest)) {
        let Some(device) = &mut self.device else { return };
        let Guest { memory, drivers, .. } = &mut self.guest;
        let is_given = |address: u64| self.given.contains(&(address / PAGE * PAGE));
        let mut said = drivers.iter().take(2).flatten().flat_map(|driver| driver.pieces_in_flight());
        // What is discarded before it was read says something else.
        self.is_known &= !said.any(|piece| piece.pages().any(is_given));
        drop(said);
        if self.is_known {
            self.given.iter().for_each(|page| memory.allow(*page..page.saturating_add(PAGE)));
        } else {
            memory.go_blind();
        }
        let keeps = self.keeps_reported && poison(&self.balloon) != 0 || !self.reports;
        memory.take_changed();
        work(device, &mut self.guest);
        self.is_known &= self.guest.is_content_known();
        let Guest { memory, drivers, .. } = &mut self.guest;
        for page in memory.take_changed() {
            let mut used = drivers.iter().flatten().map(|driver| driver.used_range());
            if used.any(|range| range.start < page + PAGE && page < range.end) {
                continue;
            }
            let after = memory.read(page, PAGE);
            let is_empty = after.iter().all(|byte| *byte == 0);
            assert!(is_empty, "page {page:#x} was changed, and not discarded");
            let was_given = self.given.contains(&page);
            assert!(!keeps || was_given || !self.is_known, "page {page:#x} was to keep its content");
        }
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
                if !matches!(act, Act::Suppress { .. }) {
                    // Anything may be the number of a page.
                    self.is_known = false;
                }
                self.guest.act(act);
            }
            Step::Move { deflates, pages, first, count, cut, rest, is_indirect } => {
                let mut numbers: Vec<u32> = pages.into_iter().map(Page::number).collect();
                let first = first.number();
                numbers.extend((0..u32::from(count % 1100)).map(|index| first.wrapping_add(index)));
                let mut bytes: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
                bytes.extend(vec![0; usize::from(rest % 4)]);
                let (head, tail) = bytes.split_at(usize::from(cut).min(bytes.len()));
                let queue = if deflates { DEFLATE } else { INFLATE };
                let is_submitted = self.guest.submit(queue, &[head, tail], &[], is_indirect).is_some();
                // A page that does not exist, or half a number, is the driver's fault.
                if rest % 4 != 0 || numbers.iter().any(|number| !exists(*number)) {
                    self.guest.may_be_given_up();
                }
                // There may be rings in them.
                let keeps_all = numbers.iter().all(|number| (u64::from(*number) * PAGE) >= BUFFERS.start);
                if is_submitted && !deflates {
                    self.given.extend(numbers.iter().map(|number| u64::from(*number) * PAGE));
                    self.is_known &= keeps_all;
                }
            }
            Step::Report { queue, lengths, is_indirect } => {
                let lengths: Vec<_> = lengths.into_iter().map(Length::fitting).collect();
                let queue = 2 + usize::from(queue % 3);
                self.guest.submit(queue, &[], &lengths, is_indirect);
            }
            Step::Fill { page, byte } => {
                let page = BUFFERS.start + u64::from(page % 20) * PAGE;
                self.is_known = false;
                self.guest.memory.write(page, &[byte; PAGE as usize]);
            }
            Step::Target(bytes) => {
                self.control.set_target(bytes);
                assert_eq!(self.control.status().target, (bytes / PAGE).min(u32::MAX.into()) * PAGE);
            }
            Step::WriteConfig { field, value } => {
                self.balloon.write_config(usize::from(field % 5) * 4, &value.to_le_bytes());
            }
            Step::WriteOddly { offset, data } => self.balloon.write_config(offset.into(), &data),
            Step::ReadConfig { offset, length } => {
                let mut data = vec![0xff; usize::from(length)];
                self.balloon.read_config(offset.into(), &mut data);
                let behind = data.iter().skip(16usize.saturating_sub(offset.into()));
                assert!(behind.copied().all(|byte| byte == 0), "there is nothing behind its end");
            }
            Step::Ring(queue) => self.guest.ring(usize::from(queue % 5)),
            Step::Handle(source) => self.work(|device, guest| device.handle(guest, source % 4)),
            Step::Run => self.work(Device::run),
            Step::Activate(setup) => self.activate(&setup),
        }
        for driver in self.guest.drivers.iter_mut().flatten() {
            for returned in driver.returned.drain(..) {
                assert_eq!(returned.written, 0, "a balloon writes nothing");
            }
        }
    }
}

fn exists(page: u32) -> bool {
    page < PAGES || (0x10_0000..0x10_0004).contains(&page)
}

fn poison(balloon: &Balloon) -> u32 {
    let mut data = [0; 4];
    balloon.read_config(12, &mut data);
    u32::from_le_bytes(data)
}

fuzz_target!(|input: Input| {
    let control = Arc::new(BalloonControl::new());
    let mut bench = Bench {
        guest: Guest::default(),
        balloon: Balloon::new(Arc::clone(&control)),
        control,
        device: None,
        given: BTreeSet::new(),
        is_known: true,
        reports: false,
        keeps_reported: false,
    };
    bench.activate(&input.setup);
    input.steps.into_iter().for_each(|step| bench.timed(step));
});
