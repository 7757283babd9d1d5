//! The ACPI sleep and reset registers of a hardware-reduced platform (ACPI 6.5, section 4.8.3.7).

use std::sync::Arc;

use innkeeper_protocol::ResetCause;

use crate::bus::Registers;
use crate::exit::{Exit, ExitSignal};

/// The first of the registers' ports.
pub const BASE_PORT: u16 = 0x600;
/// How many ports the registers take.
pub const PORT_COUNT: u64 = 3;
/// Where to write the sleep type, and the bit that starts it.
pub const SLEEP_CONTROL_PORT: u16 = BASE_PORT;
/// Says whether the machine has woken up. It never slept.
pub const SLEEP_STATUS_PORT: u16 = BASE_PORT + 1;
/// Writing [`RESET_VALUE`] here resets the machine.
pub const RESET_PORT: u16 = BASE_PORT + 2;
/// What to write to [`RESET_PORT`].
pub const RESET_VALUE: u8 = 1;
/// The sleep type of soft-off, as `\_S5` tells the guest.
pub const SLEEP_TYPE_SOFT_OFF: u8 = 5;

const SLEEP_TYPE_SHIFT: u8 = 2;
const SLEEP_TYPE_MASK: u8 = 0b111;
const SLEEP_ENABLE: u8 = 1 << 5;

/// The registers.
#[derive(Debug)]
pub struct PowerRegisters {
    exit: Arc<ExitSignal>,
}

impl PowerRegisters {
    /// Reports what the guest asks for to `exit`.
    pub fn new(exit: Arc<ExitSignal>) -> Self {
        Self { exit }
    }
}

impl Registers for PowerRegisters {
    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        let Ok(port) = u16::try_from(u64::from(BASE_PORT) + offset) else {
            return;
        };
        match (port, data) {
            (SLEEP_CONTROL_PORT, [value])
                if value & SLEEP_ENABLE != 0
                    && value >> SLEEP_TYPE_SHIFT & SLEEP_TYPE_MASK == SLEEP_TYPE_SOFT_OFF =>
            {
                self.exit.set(Exit::PowerOff);
            }
            (RESET_PORT, [RESET_VALUE]) => self.exit.set(Exit::Reset(ResetCause::Guest)),
            _ => {}
        }
    }
}
