//! Port and memory-mapped I/O: which device answers at an address.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

/// What answers at a range of addresses. Offsets count from the start of the range, and an access lies in
/// it whole.
pub trait BusDevice: Send {
    /// Fills `data`, of 1 to 8 bytes.
    fn read(&mut self, offset: u64, data: &mut [u8]);

    /// Takes `data`, of 1 to 8 bytes.
    fn write(&mut self, offset: u64, data: &[u8]);
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
    device: Arc<Mutex<dyn BusDevice>>,
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
    pub fn insert(&mut self, start: u64, size: u64, device: Arc<Mutex<dyn BusDevice>>) {
        debug_assert!(
            self.entries.iter().all(|entry| start + size <= entry.start || entry.start + entry.size <= start)
        );
        self.entries.push(Entry { start, size, device });
    }

    /// Reads from the device at `address`; where there is none, all bits are set, as on a real bus.
    pub fn read(&self, address: u64, data: &mut [u8]) {
        match self.find(address, data.len()) {
            Some((entry, offset)) => lock(entry).read(offset, data),
            None => data.fill(0xff),
        }
    }

    /// Writes to the device at `address`, if there is one.
    pub fn write(&self, address: u64, data: &[u8]) {
        if let Some((entry, offset)) = self.find(address, data.len()) {
            lock(entry).write(offset, data);
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

fn lock(entry: &Entry) -> std::sync::MutexGuard<'_, dyn BusDevice + 'static> {
    // A device that panicked on another CPU thread leaves registers behind that are still registers.
    entry.device.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Recorder(Vec<(u64, Vec<u8>)>);

    impl BusDevice for Recorder {
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
