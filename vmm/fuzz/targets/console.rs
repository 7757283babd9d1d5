//! A console whose driver is hostile, and whose reader types at any time.

#![no_main]

use std::collections::VecDeque;
use std::sync::Arc;

use arbitrary::Arbitrary;
use innkeeper_fuzz::{Act, Bytes, Device, Guest, Length, List, Setup, Steps, Timed};
use innkeeper_vmm::console::{Console, ConsoleInput, HISTORY};
use innkeeper_vmm::virtio::VirtioDevice;
use innkeeper_vmm::virtio::console::{ConsolePort, VirtioConsole};
use libfuzzer_sys::fuzz_target;

const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;

#[derive(Arbitrary, Debug)]
enum Step {
    Act(Act),
    /// The guest prints.
    Print {
        text: List<Bytes>,
        writable: Option<u8>,
        is_indirect: bool,
    },
    /// The guest prints more than anybody keeps.
    PrintMuch {
        lengths: List<u16>,
        byte: u8,
    },
    /// The guest gives buffers for input.
    Supply {
        lengths: List<Length>,
        is_indirect: bool,
    },
    /// Somebody types.
    Type(Bytes),
    /// Somebody types a lot.
    TypeMuch {
        byte: u8,
        count: u16,
    },
    Ring(bool),
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
    console: Arc<Console>,
    port: Arc<ConsolePort>,
    device: Option<Device>,
    /// What was printed, by chain, as long as that is known; and what has come out.
    submitted: VecDeque<Vec<u8>>,
    printed: u64,
    /// What the port has taken and the guest has not got.
    typed: VecDeque<u8>,
    is_known: bool,
}

impl Bench {
    fn activate(&mut self, setup: &Setup) {
        // First of all the old one ends.
        self.device = None;
        // What it has thrown away nobody knows.
        let is_whole = self.guest.is_content_known();
        self.is_known &= is_whole;
        self.submitted.clear();
        let console = VirtioConsole::new(Arc::clone(&self.port));
        let activation = self.guest.activate(setup, console.features(), console.queue_sizes());
        let handler = activation.and_then(|activation| console.handler(activation).ok());
        self.device = handler.map(Device::new);
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
        let Self { guest, device, .. } = self;
        match step {
            Step::Act(act) => guest.act(act),
            Step::Print { text, writable, is_indirect } => {
                let pieces: Vec<&[u8]> = text.iter().map(|piece| &piece[..]).collect();
                let writable: Vec<usize> = writable.into_iter().map(usize::from).collect();
                if guest.submit(TRANSMIT, &pieces, &writable, is_indirect).is_some() {
                    self.submitted.push_back(pieces.concat());
                }
            }
            Step::PrintMuch { lengths, byte } => {
                let text: Vec<_> =
                    lengths.into_iter().map(|length| vec![byte; usize::from(length)]).collect();
                let pieces: Vec<&[u8]> = text.iter().map(|piece| &piece[..]).collect();
                if guest.submit(TRANSMIT, &pieces, &[], false).is_some() {
                    self.submitted.push_back(pieces.concat());
                }
            }
            Step::Supply { lengths, is_indirect } => {
                let lengths: Vec<_> = lengths.into_iter().map(Length::fitting).collect();
                guest.submit(RECEIVE, &[], &lengths, is_indirect);
            }
            Step::Type(bytes) => self.receive(&bytes),
            Step::TypeMuch { byte, count } => self.receive(&vec![byte; usize::from(count)]),
            Step::Ring(is_transmit) => guest.ring(usize::from(is_transmit)),
            Step::Handle(source) => {
                if let Some(device) = device {
                    device.handle(guest, source % 5);
                }
            }
            Step::Run => {
                if let Some(device) = device {
                    device.run(guest);
                }
            }
            Step::Activate(setup) => self.activate(&setup),
        }
        self.check();
    }

    fn receive(&mut self, bytes: &[u8]) {
        let taken = self.port.receive(bytes);
        self.typed.extend(&bytes[..taken]);
        assert!(self.typed.len() <= 4096 || !self.is_known, "no more waits than there is room for");
    }

    fn check(&mut self) {
        self.is_known &= self.guest.is_content_known();
        if !self.is_known {
            return;
        }
        let Self { guest, submitted, printed, typed, .. } = self;
        if let Some(driver) = guest.driver(TRANSMIT) {
            for returned in driver.returned.drain(..) {
                assert_eq!(returned.written, 0, "nothing is written to what the guest prints");
                let text = submitted.pop_front().expect("it was submitted");
                *printed += text.len() as u64;
                let seen = &text[text.len().saturating_sub(HISTORY)..];
                let from = printed.saturating_sub(seen.len() as u64);
                let output = self.console.read(from);
                // Others may have come behind it, and have pushed it out.
                assert!(
                    output.lost > 0 || output.bytes.starts_with(seen),
                    "what was printed is not what came out"
                );
            }
        }
        assert_eq!(self.console.printed(), *printed);
        let Some(driver) = guest.driver(RECEIVE) else { return };
        for returned in std::mem::take(&mut driver.returned) {
            let pieces = returned.chain.map(|chain| chain.writable).unwrap_or_default();
            let received: Vec<u8> = pieces
                .iter()
                .flat_map(|piece| guest.memory.read(piece.address, piece.length.into()))
                .take(returned.written as usize)
                .collect();
            let expected: Vec<u8> = typed.drain(..received.len().min(typed.len())).collect();
            assert!(received == expected, "what was typed is not what came in");
        }
    }
}

fuzz_target!(|input: Input| {
    let console = Arc::new(Console::default());
    let port = Arc::new(ConsolePort::new(Arc::clone(&console)).unwrap());
    let mut bench = Bench {
        guest: Guest::default(),
        console,
        port,
        device: None,
        submitted: VecDeque::new(),
        printed: 0,
        typed: VecDeque::new(),
        is_known: true,
    };
    bench.activate(&input.setup);
    input.steps.into_iter().for_each(|step| bench.timed(step));
    let kept = bench.console.read(0);
    assert!(kept.bytes.len() <= HISTORY);
    assert_eq!(kept.lost + kept.bytes.len() as u64, bench.console.printed());
});
