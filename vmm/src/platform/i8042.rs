//! The keyboard controller, reduced to the command that pulses the CPU's reset line.

use std::sync::Arc;

use innkeeper_protocol::ResetCause;

use crate::bus::Registers;
use crate::exit::{Exit, ExitSignal};

/// The first port.
pub const BASE_PORT: u16 = 0x60;
/// Data at the first, command and status at the fifth.
pub const PORT_COUNT: u64 = 5;

const COMMAND_OFFSET: u64 = 4;
const COMMAND_PULSE_RESET: u8 = 0xfe;

/// The controller. Its status is always "nothing to read, ready for a command".
#[derive(Debug)]
pub struct KeyboardController {
    exit: Arc<ExitSignal>,
}

impl KeyboardController {
    /// Reports a reset to `exit`.
    pub fn new(exit: Arc<ExitSignal>) -> Self {
        Self { exit }
    }
}

impl Registers for KeyboardController {
    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        if offset == COMMAND_OFFSET && data == [COMMAND_PULSE_RESET] {
            self.exit.set(Exit::Reset(ResetCause::Guest));
        }
    }
}
