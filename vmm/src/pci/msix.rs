//! MSI-X: a table of interrupt messages in a BAR (PCI Local Bus 3.0, section 6.8.2).

#[cfg(test)]
mod model;

use std::sync::Arc;

use crate::interrupt::{Error, Interrupts, MsiMessage, MsiVector};

/// Bytes of one table entry.
pub const ENTRY_SIZE: usize = 16;
/// Message control: the function's vectors are masked, the function uses MSI-X.
const CONTROL_FUNCTION_MASK: u16 = 1 << 14;
const CONTROL_ENABLE: u16 = 1 << 15;
/// The bits of message control that the guest may change.
pub const CONTROL_WRITABLE: u16 = CONTROL_FUNCTION_MASK | CONTROL_ENABLE;
/// Bit of an entry's vector control.
const VECTOR_MASKED: u32 = 1;

/// The table, the pending bits, and the vectors behind them.
#[derive(Debug)]
pub struct Msix {
    entries: Vec<Entry>,
    control: u16,
}

#[derive(Debug)]
struct Entry {
    /// Message address (low, high), message data, vector control.
    registers: [u32; 4],
    vector: Arc<MsiVector>,
    is_delivering: bool,
}

impl Msix {
    /// A table of `count` vectors, all masked.
    pub fn new(interrupts: &Arc<Interrupts>, count: u16) -> Result<Self, Error> {
        let entry = || {
            Ok(Entry { registers: [0, 0, 0, VECTOR_MASKED], vector: interrupts.msi()?, is_delivering: false })
        };
        Ok(Self { entries: (0..count).map(|_| entry()).collect::<Result<_, Error>>()?, control: 0 })
    }

    /// The capability's body: message control, where the table is, where the pending bits are.
    pub fn capability(count: u16, bar: u32, table: u32, pending: u32) -> [u8; 10] {
        let mut body = [0; 10];
        body[0..2].copy_from_slice(&(count - 1).to_le_bytes());
        body[2..6].copy_from_slice(&(table | bar).to_le_bytes());
        body[6..10].copy_from_slice(&(pending | bar).to_le_bytes());
        body
    }

    /// The vectors in the table's order.
    pub fn vectors(&self) -> Vec<Arc<MsiVector>> {
        self.entries.iter().map(|entry| Arc::clone(&entry.vector)).collect()
    }

    /// Takes over message control from configuration space.
    pub fn set_control(&mut self, control: u16) {
        let control = control & CONTROL_WRITABLE;
        if control != self.control {
            self.control = control;
            (0..self.entries.len()).for_each(|index| self.update(index));
        }
    }

    /// Reads the table at `offset`, aligned, 4 or 8 bytes; anything else reads as all ones.
    pub fn read_table(&self, offset: usize, data: &mut [u8]) {
        data.fill(0xff);
        if let Some((index, register)) = locate(offset, data.len())
            && let Some(entry) = self.entries.get(index)
        {
            for (chunk, value) in data.chunks_exact_mut(4).zip(&entry.registers[register..]) {
                chunk.copy_from_slice(&value.to_le_bytes());
            }
        }
    }

    /// Writes the table at `offset`, aligned, 4 or 8 bytes; anything else is ignored.
    pub fn write_table(&mut self, offset: usize, data: &[u8]) {
        let Some((index, register)) = locate(offset, data.len()) else {
            return;
        };
        let Some(entry) = self.entries.get_mut(index) else {
            return;
        };
        for (chunk, value) in data.chunks_exact(4).zip(&mut entry.registers[register..]) {
            *value = chunk.iter().rev().fold(0, |value, byte| value << 8 | u32::from(*byte));
        }
        self.update(index);
    }

    /// Reads the pending bits at `offset`, one bit per vector.
    pub fn read_pending(&self, offset: usize, data: &mut [u8]) {
        for (position, byte) in data.iter_mut().enumerate() {
            let first = (offset + position) * 8;
            let bits = self.entries.iter().skip(first).take(8).enumerate();
            *byte = bits.fold(0, |byte, (bit, entry)| byte | u8::from(entry.vector.is_pending()) << bit);
        }
    }

    /// Makes a vector deliver, or not, as control and table say.
    fn update(&mut self, index: usize) {
        let Some(entry) = self.entries.get_mut(index) else {
            return;
        };
        let [low, high, data, vector_control] = entry.registers;
        let is_on = self.control & CONTROL_WRITABLE == CONTROL_ENABLE && vector_control & VECTOR_MASKED == 0;
        if is_on {
            let message = MsiMessage { address: u64::from(high) << 32 | u64::from(low), data };
            match entry.vector.unmask(message) {
                Ok(()) => entry.is_delivering = true,
                Err(error) => tracing::debug!(index, %error, "an interrupt vector stays masked"),
            }
        } else if entry.is_delivering {
            entry.vector.mask();
            entry.is_delivering = false;
        }
    }
}

/// The entry and its register at `offset`.
fn locate(offset: usize, length: usize) -> Option<(usize, usize)> {
    let is_valid = matches!(length, 4 | 8) && offset.is_multiple_of(length);
    is_valid.then_some((offset / ENTRY_SIZE, offset % ENTRY_SIZE / 4))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_aligned_registers_are_located() {
        assert_eq!(locate(0, 4), Some((0, 0)));
        assert_eq!(locate(24, 8), Some((1, 2)));
        assert_eq!(locate(28, 4), Some((1, 3)));
        for (offset, length) in [(1, 4), (28, 8), (0, 1), (0, 2), (2, 2)] {
            assert_eq!(locate(offset, length), None, "{offset}+{length}");
        }
    }

    #[test]
    fn the_capability_names_the_last_vector() {
        assert_eq!(Msix::capability(3, 0, 0x4000, 0x5000), [2, 0, 0, 0x40, 0, 0, 0, 0x50, 0, 0]);
    }
}
