//! The console device (section 5.3): one port, without a size and without a control queue.
//!
//! What the guest prints goes to a [`Console`], which never makes it wait. Input comes through a
//! [`ConsolePort`], which holds as much as fits until a driver has room for it.

use std::collections::VecDeque;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vmm_sys_util::eventfd::EventFd;

use super::queue::QueueError;
use super::worker::{Handler, Workers};
use super::{Activation, ActiveQueue, BATCH, DeviceType, VirtioDevice};
use crate::console::{Console, ConsoleInput, HISTORY};
use crate::event::{self, as_fd};
use crate::memory::GuestMemory;

/// Queue 0 is for what the guest receives, queue 1 for what it transmits.
const QUEUE_SIZES: [u16; 2] = [64, 64];

/// Bytes of input that wait for the guest.
const INPUT_SIZE: usize = 4096;

/// The port as those outside the guest have it: over all resets, and whether a driver listens or not.
#[derive(Debug)]
pub struct ConsolePort {
    output: Arc<Console>,
    input: Mutex<Input>,
    /// Wakes the device when there is input. Nobody ever resets it: each write wakes who watches its edges,
    /// and a device that is new learns that there may be something.
    arrived: EventFd,
    drained: Arc<EventFd>,
}

#[derive(Debug, Default)]
struct Input {
    bytes: VecDeque<u8>,
    /// Input was refused, so its sender wants to know when there is room.
    is_refused: bool,
}

impl ConsolePort {
    /// A port whose output goes to `output`.
    pub fn new(output: Arc<Console>) -> io::Result<Self> {
        let drained = Arc::new(event::new()?);
        Ok(Self { output, input: Mutex::default(), arrived: event::new()?, drained })
    }

    fn lock(&self) -> MutexGuard<'_, Input> {
        self.input.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn has_input(&self) -> bool {
        !self.lock().bytes.is_empty()
    }

    /// Takes at most `count` bytes of the input.
    fn take(&self, count: usize) -> Vec<u8> {
        let mut input = self.lock();
        let count = count.min(input.bytes.len());
        let taken = input.bytes.drain(..count).collect();
        if input.bytes.is_empty() && std::mem::take(&mut input.is_refused) {
            // Can only fail if it is readable already.
            let _ = self.drained.write(1);
        }
        taken
    }
}

impl ConsolePort {
    /// What the guest prints.
    pub fn output(&self) -> &Arc<Console> {
        &self.output
    }
}

impl ConsoleInput for ConsolePort {
    fn receive(&self, bytes: &[u8]) -> usize {
        let taken = {
            let mut input = self.lock();
            let taken = bytes.len().min(INPUT_SIZE.saturating_sub(input.bytes.len()));
            input.bytes.extend(&bytes[..taken]);
            input.is_refused |= taken < bytes.len();
            taken
        };
        if taken > 0 {
            // Can only fail if it is readable already, after more writes than there ever are.
            let _ = self.arrived.write(1);
        }
        taken
    }

    fn drained(&self) -> Arc<EventFd> {
        Arc::clone(&self.drained)
    }
}

/// The device.
#[derive(Debug)]
pub struct VirtioConsole {
    port: Arc<ConsolePort>,
    workers: Workers,
}

impl VirtioConsole {
    /// A console that is connected to `port`.
    pub fn new(port: Arc<ConsolePort>) -> Self {
        Self { port, workers: Workers::default() }
    }

    /// What serves the queues, for whoever wants to do that in a thread of their own.
    #[cfg(any(test, fuzzing))]
    pub fn handler(&self, activation: Activation) -> io::Result<impl Handler + use<>> {
        self.characters(activation)
    }

    fn characters(&self, activation: Activation) -> io::Result<Characters> {
        let Activation { memory, queues, .. } = activation;
        let mut queues = queues.into_iter();
        let (Some(Some(receive)), Some(Some(transmit))) = (queues.next(), queues.next()) else {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "the driver has set up only one of two queues",
            ));
        };
        let port = Arc::clone(&self.port);
        Ok(Characters { memory, port, receive, transmit, printed: Vec::new() })
    }
}

impl VirtioDevice for VirtioConsole {
    fn device_type(&self) -> DeviceType {
        DeviceType::Console
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn activate(&mut self, activation: Activation) -> io::Result<()> {
        let notifier = Arc::clone(&activation.notifier);
        let characters = self.characters(activation)?;
        self.workers.spawn("virtio-console", notifier, characters)
    }

    fn reset(&mut self) {
        self.workers.stop();
    }
}

struct Characters {
    memory: Arc<GuestMemory>,
    port: Arc<ConsolePort>,
    receive: ActiveQueue,
    transmit: ActiveQueue,
    /// What a chain holds, on its way to the console.
    printed: Vec<u8>,
}

const SOURCE_RECEIVE: u64 = 0;
const SOURCE_TRANSMIT: u64 = 1;
const SOURCE_INPUT: u64 = 2;

impl Handler for Characters {
    fn sources(&self) -> Vec<(BorrowedFd<'_>, u64)> {
        vec![
            (as_fd(&self.receive.doorbell), SOURCE_RECEIVE),
            (as_fd(&self.transmit.doorbell), SOURCE_TRANSMIT),
            (as_fd(&self.port.arrived), SOURCE_INPUT),
        ]
    }

    fn handle(&mut self, source: u64) -> Result<(), QueueError> {
        match source {
            SOURCE_TRANSMIT => self.print(),
            _ => self.pass_on(),
        }
    }
}

impl Characters {
    /// Takes what the guest prints. A chain may be 4 GiB long, of which only the end would be kept: so only
    /// that is looked at.
    fn print(&mut self) -> Result<(), QueueError> {
        let Self { memory, port, transmit, printed, .. } = self;
        transmit.drain(memory, |chain| {
            let lost = chain.readable.len().saturating_sub(HISTORY);
            let kept = chain.readable.split_off(lost).ok_or(QueueError::Chain(chain.head))?;
            printed.resize(kept.len(), 0);
            kept.copy_to(printed);
            port.output.append_behind(lost as u64, printed);
            Ok(Some(0))
        })
    }

    /// Passes input on until there is no more or the guest has no more room for it.
    fn pass_on(&mut self) -> Result<(), QueueError> {
        let Self { memory, port, receive, .. } = self;
        for _ in 0..BATCH {
            // Without input, the guest's buffers wait where they are.
            if !port.has_input() {
                return Ok(());
            }
            let Some(chain) = receive.queue.pop(memory)? else {
                if receive.queue.enable_doorbell(memory)? {
                    continue;
                }
                return Ok(());
            };
            let written = chain.writable.copy_from(&port.take(chain.writable.len()));
            receive.give_back(memory, chain.head, written as u32)?;
        }
        receive.wake_again();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::virtio::harness::{self, Driver, QUEUE_SPACE};
    use virtio_bindings::virtio_ring::{VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};

    const WRITE: u16 = VRING_DESC_F_WRITE as u16;

    struct Bench {
        console: Arc<Console>,
        port: Arc<ConsolePort>,
        characters: Characters,
        receive: Driver,
        transmit: Driver,
    }

    impl Bench {
        fn new() -> Self {
            let console = Arc::new(Console::default());
            let port = Arc::new(ConsolePort::new(Arc::clone(&console)).unwrap());
            Self::with(console, port)
        }

        /// A machine of its own on an existing port.
        fn with(console: Arc<Console>, port: Arc<ConsolePort>) -> Self {
            let memory = harness::memory(3);
            let (receive, receive_queue) = Driver::new(&memory, 0, QUEUE_SIZES[0]);
            let (transmit, transmit_queue) = Driver::new(&memory, 1, QUEUE_SIZES[1]);
            let queues = vec![Some(receive_queue), Some(transmit_queue)];
            let device = VirtioConsole::new(Arc::clone(&port));
            let characters = device.characters(harness::activation(&memory, 0, queues)).unwrap();
            Self { console, port, characters, receive, transmit }
        }

        /// What is next in the guest's buffers, of which there is one at `address`.
        fn received(&mut self, address: u64) -> Option<Vec<u8>> {
            let (_, length) = self.receive.used()?;
            Some(self.receive.read(address, length as usize))
        }
    }

    fn pattern(length: usize) -> Vec<u8> {
        (0..length).map(|index| (index % 251) as u8).collect()
    }

    #[test]
    fn the_guest_prints_on_the_console() {
        let mut bench = Bench::new();
        let (first, _) = bench.transmit.request(&[b"Hello, ", b"world"], &[]);
        let (second, _) = bench.transmit.request(&[b"!"], &[16]);
        bench.characters.handle(SOURCE_TRANSMIT).unwrap();
        assert_eq!(bench.console.read(0).bytes, b"Hello, world!");
        assert_eq!(bench.transmit.used(), Some((first, 0)));
        assert_eq!(bench.transmit.used(), Some((second, 0)));
        // A chain after a longer one, and one that says nothing.
        bench.transmit.request(&[b"\n"], &[]);
        bench.transmit.request(&[], &[4]);
        bench.characters.handle(SOURCE_TRANSMIT).unwrap();
        assert_eq!(bench.console.read(13).bytes, b"\n");
        assert!(bench.transmit.used().is_some() && bench.transmit.used().is_some());
    }

    #[test]
    fn only_the_end_of_a_huge_chain_is_looked_at() {
        const TURNS: u16 = 16;
        let mut bench = Bench::new();
        // The same 256 KiB over and over.
        for index in 0..TURNS {
            let (flags, next) =
                if index + 1 == TURNS { (0, 0) } else { (VRING_DESC_F_NEXT as u16, index + 1) };
            bench.transmit.descriptor(index, 2 * QUEUE_SPACE, QUEUE_SPACE as u32, flags, next);
        }
        bench.transmit.submit(0);
        bench.characters.handle(SOURCE_TRANSMIT).unwrap();
        assert_eq!(bench.transmit.used(), Some((0, 0)));
        let output = bench.console.read(0);
        let printed = u64::from(TURNS) * QUEUE_SPACE;
        assert_eq!((output.bytes.len(), output.next), (HISTORY, printed));
        assert_eq!(output.lost, printed - HISTORY as u64);
    }

    #[test]
    fn a_full_history_is_printed_whole() {
        let mut bench = Bench::new();
        bench.console.append(b"old");
        let text = pattern(HISTORY);
        bench.transmit.request(&[&text[..100], &text[100..]], &[]);
        bench.characters.handle(SOURCE_TRANSMIT).unwrap();
        assert!(bench.console.read(3).bytes == text);
    }

    #[test]
    fn memory_that_does_not_exist_is_an_error() {
        let mut bench = Bench::new();
        bench.transmit.descriptor(0, 3 * QUEUE_SPACE - 1, u32::MAX, 0, 0);
        bench.transmit.submit(0);
        assert!(matches!(bench.characters.handle(SOURCE_TRANSMIT), Err(QueueError::Address(0))));
        bench.port.receive(b"x");
        bench.receive.descriptor(0, u64::MAX, 2, WRITE, 0);
        bench.receive.submit(0);
        assert!(matches!(bench.characters.handle(SOURCE_INPUT), Err(QueueError::Address(0))));
        assert_eq!(bench.console.printed(), 0);
    }

    #[test]
    fn input_fills_the_guests_buffers() {
        let mut bench = Bench::new();
        let (_, first) = bench.receive.request(&[], &[2, 2]);
        let (_, second) = bench.receive.request(&[], &[100]);
        bench.characters.handle(SOURCE_RECEIVE).unwrap();
        assert_eq!(bench.receive.used(), None);
        assert_eq!(bench.port.receive(b"typed"), 5);
        bench.characters.handle(SOURCE_INPUT).unwrap();
        assert_eq!(bench.receive.used().unwrap().1, 4);
        assert_eq!([bench.receive.read(first[0], 2), bench.receive.read(first[1], 2)].concat(), b"type");
        assert_eq!(bench.received(second[0]).unwrap(), b"d");
        assert_eq!(bench.receive.used(), None);
    }

    #[test]
    fn input_waits_for_a_buffer() {
        let mut bench = Bench::new();
        assert_eq!(bench.port.receive(b"early"), 5);
        bench.characters.handle(SOURCE_INPUT).unwrap();
        let (_, buffers) = bench.receive.request(&[], &[10]);
        bench.characters.handle(SOURCE_RECEIVE).unwrap();
        assert_eq!(bench.received(buffers[0]).unwrap(), b"early");
    }

    #[test]
    fn input_waits_for_the_next_machine() {
        let bench = Bench::new();
        bench.port.receive(b"for whoever comes");
        let Bench { console, port, .. } = bench;
        let mut next = Bench::with(console, port);
        let (_, buffers) = next.receive.request(&[], &[100]);
        next.characters.handle(SOURCE_INPUT).unwrap();
        assert_eq!(next.received(buffers[0]).unwrap(), b"for whoever comes");
    }

    #[test]
    fn input_that_was_refused_can_be_sent_when_the_guest_has_read() {
        let mut bench = Bench::new();
        let (drained, text) = (bench.port.drained(), pattern(INPUT_SIZE + 100));
        assert_eq!(bench.port.receive(&text), INPUT_SIZE);
        assert_eq!(bench.port.receive(&text[INPUT_SIZE..]), 0);
        let (_, half) = bench.receive.request(&[], &[INPUT_SIZE / 2]);
        bench.characters.handle(SOURCE_INPUT).unwrap();
        assert!(bench.received(half[0]).unwrap() == text[..INPUT_SIZE / 2]);
        assert!(drained.read().is_err());
        let (_, rest) = bench.receive.request(&[], &[INPUT_SIZE]);
        bench.characters.handle(SOURCE_RECEIVE).unwrap();
        assert!(bench.received(rest[0]).unwrap() == text[INPUT_SIZE / 2..INPUT_SIZE]);
        assert_eq!(drained.read().unwrap(), 1);
        assert_eq!(bench.port.receive(&text[INPUT_SIZE..]), 100);
        // Nothing was refused this time.
        bench.receive.request(&[], &[INPUT_SIZE]);
        bench.characters.handle(SOURCE_INPUT).unwrap();
        assert!(drained.read().is_err());
    }

    #[test]
    fn buffers_that_hold_nothing_lose_nothing_and_are_not_served_forever() {
        let mut bench = Bench::new();
        bench.port.receive(b"x");
        for _ in 0..QUEUE_SIZES[0] {
            bench.receive.request(&[b"?"], &[]);
        }
        bench.characters.handle(SOURCE_INPUT).unwrap();
        for _ in 0..QUEUE_SIZES[0] {
            assert_eq!(bench.receive.used().unwrap().1, 0);
        }
        // There may be more: it looks again after the other queue.
        assert_eq!(bench.characters.receive.doorbell.read().unwrap(), 1);
        let (_, buffers) = bench.receive.request(&[], &[1]);
        bench.characters.handle(SOURCE_RECEIVE).unwrap();
        assert_eq!(bench.received(buffers[0]).unwrap(), b"x");
    }

    #[test]
    fn a_driver_needs_both_queues() {
        let mut device = VirtioConsole::new(Arc::new(ConsolePort::new(Arc::default()).unwrap()));
        for missing in 0..2 {
            let memory = harness::memory(2);
            let mut queues: Vec<_> = (0..2).map(|index| Some(Driver::new(&memory, index, 8).1)).collect();
            queues[missing] = None;
            assert!(device.activate(harness::activation(&memory, 0, queues)).is_err());
        }
        assert!(device.activate(harness::activation(&harness::memory(1), 0, vec![])).is_err());
    }

    #[test]
    fn a_thread_serves_a_driver_until_the_reset() {
        let console = Arc::new(Console::default());
        let port = Arc::new(ConsolePort::new(Arc::clone(&console)).unwrap());
        let mut device = VirtioConsole::new(Arc::clone(&port));
        for turn in 1..=2u64 {
            // Before there is a driver to read it.
            port.receive(b"in");
            let memory = harness::memory(2);
            let (mut receive, receive_queue) = Driver::new(&memory, 0, 8);
            let (mut transmit, transmit_queue) = Driver::new(&memory, 1, 8);
            let (_, buffers) = receive.request(&[], &[8]);
            transmit.request(&[b"out"], &[]);
            transmit_queue.doorbell.write(1).unwrap();
            let queues = vec![Some(receive_queue), Some(transmit_queue)];
            device.activate(harness::activation(&memory, 0, queues)).unwrap();
            while console.printed() < 3 * turn {
                std::thread::yield_now();
            }
            let length = loop {
                if let Some((_, length)) = receive.used() {
                    break length as usize;
                }
                std::thread::yield_now();
            };
            device.reset();
            assert_eq!(receive.read(buffers[0], length), b"in");
        }
    }
}
