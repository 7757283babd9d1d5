//! The serial port: a 16550A at the address of COM1.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use vm_superio::serial::{self, SerialEvents};
use vm_superio::{Serial, Trigger};
use vmm_sys_util::eventfd::EventFd;

use crate::bus::Registers;
use crate::console::{Console, ConsoleInput, ConsoleWriter};
use crate::event;

/// COM1.
pub const BASE_PORT: u16 = 0x3f8;
/// Ports of a 16550A.
pub const PORT_COUNT: u64 = 8;

/// The port, with the console as what is connected to it.
pub struct SerialPort {
    device: Serial<InterruptLine, Arc<Drain>, ConsoleWriter>,
    drain: Arc<Drain>,
}

impl std::fmt::Debug for SerialPort {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SerialPort").finish_non_exhaustive()
    }
}

/// The interrupt pin.
struct InterruptLine(EventFd);

impl Trigger for InterruptLine {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.write(1)
    }
}

/// Tells whoever feeds the port when the guest has read everything.
#[derive(Debug)]
struct Drain {
    /// Input was refused, so its sender wants to know.
    is_awaited: AtomicBool,
    event: Arc<EventFd>,
}

impl SerialEvents for Drain {
    fn buffer_read(&self) {}

    fn out_byte(&self) {}

    fn tx_lost_byte(&self) {}

    fn in_buffer_empty(&self) {
        if self.is_awaited.swap(false, Ordering::SeqCst) {
            let _ = self.event.write(1);
        }
    }
}

impl SerialPort {
    /// A port whose output goes to `console` and whose interrupt is `interrupt`.
    pub fn new(console: Arc<Console>, interrupt: EventFd) -> io::Result<Self> {
        let event = Arc::new(event::new()?);
        let drain = Arc::new(Drain { is_awaited: AtomicBool::new(false), event });
        let device =
            Serial::with_events(InterruptLine(interrupt), Arc::clone(&drain), ConsoleWriter(console));
        Ok(Self { device, drain })
    }

    /// Becomes readable when input that [`SerialPort::receive`] had no room for can be tried again.
    pub fn drained(&self) -> Arc<EventFd> {
        Arc::clone(&self.drain.event)
    }

    /// Feeds input to the guest, as much as the port's buffer takes; returns how much that was.
    pub fn receive(&mut self, bytes: &[u8]) -> usize {
        let taken = match self.device.enqueue_raw_bytes(bytes) {
            Ok(taken) => taken,
            Err(serial::Error::FullFifo) => 0,
            // The bytes are in the buffer; only the interrupt got lost, and the guest polls too.
            Err(_) => bytes.len().min(self.device.fifo_capacity()),
        };
        if taken < bytes.len() {
            self.drain.is_awaited.store(true, Ordering::SeqCst);
        }
        taken
    }
}

impl ConsoleInput for Mutex<SerialPort> {
    fn receive(&self, bytes: &[u8]) -> usize {
        self.lock().unwrap_or_else(PoisonError::into_inner).receive(bytes)
    }

    fn drained(&self) -> Arc<EventFd> {
        self.lock().unwrap_or_else(PoisonError::into_inner).drained()
    }
}

impl Registers for SerialPort {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        // Registers are a byte wide; a wider access reads one.
        data.fill(0xff);
        if let Some(first) = data.first_mut() {
            *first = self.device.read(offset as u8);
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        if let [value] = data
            && let Err(error) = self.device.write(offset as u8, *value)
        {
            tracing::debug!(%error, "the serial port could not interrupt the guest");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::console::HISTORY;

    const DATA: u64 = 0;
    const MODEM_CONTROL: u64 = 4;
    const LOOPBACK: u8 = 1 << 4;
    /// Bytes that the port's emulation holds.
    const FIFO: usize = 64;

    /// A mistake of Firecracker (issue 2177): what nobody read was kept, however much it became. Here the output is a ring
    /// ([`Console`]), and the input, be it ours or the guest's own, is what a 16550A holds.
    #[test]
    fn a_guest_that_reads_nothing_fills_no_memory() {
        let console = Arc::<Console>::default();
        let mut port = SerialPort::new(Arc::clone(&console), event::new().unwrap()).unwrap();
        for _ in 0..2 * HISTORY {
            port.write(DATA, b"x");
        }
        assert_eq!(console.read(0).bytes.len(), HISTORY);
        let count = |port: &mut SerialPort| {
            let mut count = 0;
            while port.device.fifo_capacity() < FIFO {
                port.read(DATA, &mut [0]);
                count += 1;
            }
            count
        };
        for _ in 0..100 {
            port.receive(&[b'x'; 1000]);
        }
        assert_eq!(count(&mut port), FIFO);
        port.write(MODEM_CONTROL, &[LOOPBACK]);
        for _ in 0..100 {
            (0..1000).for_each(|_| port.write(DATA, b"x"));
            assert_eq!(port.receive(&[b'x'; 1000]), 0, "nobody is connected");
        }
        assert_eq!(count(&mut port), FIFO);
    }

    #[test]
    fn input_that_was_refused_can_be_sent_when_the_guest_has_read() {
        let port = SerialPort::new(Arc::default(), event::new().unwrap()).unwrap();
        let port = Mutex::new(port);
        let input: &dyn ConsoleInput = &port;
        let (drained, bytes) = (input.drained(), [b'x'; 1000]);
        let taken = input.receive(&bytes);
        assert!((1..1000).contains(&taken), "{taken}");
        assert_eq!(input.receive(&bytes), 0);
        for _ in 0..taken {
            assert!(drained.read().is_err());
            let mut byte = [0];
            port.lock().unwrap().read(DATA, &mut byte);
            assert_eq!(byte, *b"x");
        }
        assert_eq!(drained.read().unwrap(), 1);
        assert_eq!(input.receive(b"y"), 1);
    }
}
