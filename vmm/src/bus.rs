//! Port and memory-mapped I/O: which device answers at an address.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

/// What answers at a range of addresses, to several CPUs at once. Offsets count from the start of the range,
/// and an access lies in it whole.
pub trait BusDevice: Send + Sync {
    /// Fills `data`.
    fn read(&self, offset: u64, data: &mut [u8]);

    /// Takes `data`.
    fn write(&self, offset: u64, data: &[u8]);
}

/// A device that deals with one access at a time; in a [`Mutex`] it is a [`BusDevice`].
pub trait Registers: Send {
    /// As [`BusDevice::read`].
    fn read(&mut self, offset: u64, data: &mut [u8]);

    /// As [`BusDevice::write`].
    fn write(&mut self, offset: u64, data: &[u8]);
}

impl<T: Registers> BusDevice for Mutex<T> {
    fn read(&self, offset: u64, data: &mut [u8]) {
        // A device that panicked on another CPU thread leaves registers behind that are still registers.
        self.lock().unwrap_or_else(PoisonError::into_inner).read(offset, data);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        self.lock().unwrap_or_else(PoisonError::into_inner).write(offset, data);
    }
}

/// Devices by address. Fixed once the machine is built: what moves at run time (PCI BARs) moves behind one
/// entry.
#[derive(Default)]
pub struct Bus {
    entries: Vec<Entry>,
}

struct Entry {
    start: u64,
    size: u64,
    device: Arc<dyn BusDevice>,
}

impl fmt::Debug for Bus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list()
            .entries(self.entries.iter().map(|entry| entry.start..entry.start + entry.size))
            .finish()
    }
}

impl Bus {
    /// Lets `device` answer at `size` addresses from `start`, which nobody else may have.
    pub fn insert(&mut self, start: u64, size: u64, device: Arc<dyn BusDevice>) {
        debug_assert!(
            self.entries.iter().all(|entry| start + size <= entry.start || entry.start + entry.size <= start)
        );
        self.entries.push(Entry { start, size, device });
    }

    /// Reads from the device at `address`; where there is none, all bits are set, as on a real bus.
    pub fn read(&self, address: u64, data: &mut [u8]) {
        match self.find(address, data.len()) {
            Some((entry, offset)) => entry.device.read(offset, data),
            None => data.fill(0xff),
        }
    }

    /// Writes to the device at `address`, if there is one.
    pub fn write(&self, address: u64, data: &[u8]) {
        if let Some((entry, offset)) = self.find(address, data.len()) {
            entry.device.write(offset, data);
        }
    }

    fn find(&self, address: u64, length: usize) -> Option<(&Entry, u64)> {
        self.entries.iter().find_map(|entry| {
            let offset = address.checked_sub(entry.start)?;
            let end = offset.checked_add(length as u64)?;
            (end <= entry.size).then_some((entry, offset))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Recorder(Vec<(u64, Vec<u8>)>);

    impl Registers for Recorder {
        fn read(&mut self, offset: u64, data: &mut [u8]) {
            data.fill(offset as u8);
        }

        fn write(&mut self, offset: u64, data: &[u8]) {
            self.0.push((offset, data.to_vec()));
        }
    }

    #[test]
    fn finds_the_device_and_ignores_what_crosses_its_end() {
        let device = Arc::new(Mutex::new(Recorder(Vec::new())));
        let mut bus = Bus::default();
        bus.insert(0x100, 8, device.clone());
        let mut data = [0u8; 2];
        bus.read(0x106, &mut data);
        assert_eq!(data, [6, 6]);
        for outside in [0xff, 0x107, 0x108, u64::MAX] {
            bus.read(outside, &mut data);
            assert_eq!(data, [0xff, 0xff], "{outside:#x}");
            bus.write(outside, &data);
        }
        bus.write(0x100, &[1, 2, 3, 4]);
        assert_eq!(device.lock().unwrap().0, [(0, vec![1, 2, 3, 4])]);
    }
}
