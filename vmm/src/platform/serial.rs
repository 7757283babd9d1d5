//! The serial port: a 16550A at the address of COM1.

use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;

use vm_superio::serial::{self, SerialEvents};
use vm_superio::{Serial, Trigger};
use vmm_sys_util::eventfd::EventFd;

use crate::bus::Registers;
use crate::console::{Console, ConsoleWriter};
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
    event: EventFd,
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
        let event = event::new()?;
        let drain = Arc::new(Drain { is_awaited: AtomicBool::new(false), event });
        let device =
            Serial::with_events(InterruptLine(interrupt), Arc::clone(&drain), ConsoleWriter(console));
        Ok(Self { device, drain })
    }

    /// Becomes readable when input that [`SerialPort::receive`] had no room for can be tried again.
    pub fn drained(&self) -> io::Result<EventFd> {
        self.drain.event.try_clone()
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
