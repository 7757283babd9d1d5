//! PCI: one root bus whose configuration space is memory-mapped (ECAM).
//!
//! Devices sit in slots of bus 0. The VMM does what firmware would: it sizes and places the memory BARs, so
//! that a guest finds a working bus and needs to change nothing. If it does move a BAR, accesses follow.
//!
//! There is no access through ports 0xcf8 and 0xcfc: every guest with ACPI finds the ECAM, and one exit per
//! access is half of two.

mod config_space;
#[cfg(test)]
mod model;
pub mod msix;

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

pub use config_space::{CapabilityId, ConfigSpace, Identity};

use crate::bus::BusDevice;
use crate::memory::{ECAM_START, PCI_WINDOW_SIZE, PCI_WINDOW_START};

/// Slots of the bus; slot 0 is the host bridge.
pub const SLOT_COUNT: usize = 32;
/// A device's BARs may take this much of the window, so that slots cannot run into each other.
const WINDOW_PER_SLOT: u64 = PCI_WINDOW_SIZE / SLOT_COUNT as u64;

/// What sits in a slot.
pub trait PciDevice: Send {
    /// Its configuration space.
    fn config(&self) -> &ConfigSpace;

    /// Its configuration space, to place it.
    fn config_mut(&mut self) -> &mut ConfigSpace;

    /// Reads configuration space at `offset`; `data` lies inside one 4-byte register.
    fn read_config(&mut self, offset: usize, data: &mut [u8]) {
        self.config().read(offset, data);
    }

    /// Writes configuration space at `offset`; `data` lies inside one 4-byte register.
    fn write_config(&mut self, offset: usize, data: &[u8]) {
        self.config_mut().write(offset, data);
    }

    /// Reads from the memory behind BAR `bar`; the access lies inside it.
    fn read_bar(&mut self, bar: usize, offset: u64, data: &mut [u8]);

    /// Writes to the memory behind BAR `bar`; the access lies inside it.
    fn write_bar(&mut self, bar: usize, offset: u64, data: &[u8]);
}

/// Why a device has no place on the bus.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Somebody sits there, or the slot does not exist.
    #[error("slot {0} of the PCI bus is in use, or does not exist")]
    Slot(u8),
    /// The device asks for more address space than a slot has.
    #[error("the device's memory does not fit in its part of the PCI window")]
    NoWindow,
}

type Slot = Arc<Mutex<dyn PciDevice>>;

/// The bus.
pub struct PciRoot {
    /// Held for moments only, and never by somebody who then waits for a device: that may take as long as a disk does.
    state: RwLock<State>,
}

struct State {
    slots: [Option<Slot>; SLOT_COUNT],
    /// The memory BARs that answer at present.
    mappings: Vec<Mapping>,
}

#[derive(Clone, Copy, Debug)]
struct Mapping {
    start: u64,
    size: u64,
    slot: usize,
    bar: usize,
}

impl fmt::Debug for PciRoot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PciRoot").field("mappings", &self.read().mappings).finish_non_exhaustive()
    }
}

impl Default for PciRoot {
    fn default() -> Self {
        let mut slots = [const { None }; SLOT_COUNT];
        slots[0] = Some(Arc::new(Mutex::new(HostBridge::new())) as Slot);
        Self { state: RwLock::new(State { slots, mappings: Vec::new() }) }
    }
}

impl PciRoot {
    /// Puts `device` into `slot`, which must be free, and places its BARs.
    pub fn insert(&self, slot: u8, device: Arc<Mutex<dyn PciDevice>>) -> Result<(), Error> {
        let index = usize::from(slot);
        let window = PCI_WINDOW_START + u64::from(slot) * WINDOW_PER_SLOT;
        let bars = {
            let mut device = lock(&device);
            place(device.config_mut(), window)?;
            device.config().mapped_bars()
        };
        let mut state = self.write();
        let Some(free @ None) = state.slots.get_mut(index) else {
            return Err(Error::Slot(slot));
        };
        *free = Some(device);
        state.map(index, bars);
        Ok(())
    }

    /// Empties `slot`; the host bridge stays where it is. Says whether there was a device.
    pub fn remove(&self, slot: u8) -> bool {
        let removed = {
            let mut state = self.write();
            state.map(slot.into(), Vec::new());
            state.slots.get_mut(usize::from(slot)).filter(|_| slot > 0).and_then(Option::take)
        };
        removed.is_some()
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn slot(&self, slot: usize) -> Option<Slot> {
        self.read().slots.get(slot)?.clone()
    }

    /// The device and BAR behind an access to the PCI window.
    fn resolve(&self, address: u64, length: usize) -> Option<(Slot, usize, u64)> {
        let state = self.read();
        let mapping = state.mappings.iter().find(|mapping| {
            address.checked_sub(mapping.start).is_some_and(|offset| offset + length as u64 <= mapping.size)
        })?;
        Some((state.slots.get(mapping.slot)?.clone()?, mapping.bar, address - mapping.start))
    }

    fn read_config(&self, address: ConfigAddress, data: &mut [u8]) {
        match self.slot(address.slot).filter(|_| address.is_implemented(data.len())) {
            Some(device) => lock(&device).read_config(address.offset, data),
            // Function 0 of an empty slot reads as all ones; so do the functions that no device has.
            None => data.fill(if address.is_beyond_config(data.len()) && self.slot(address.slot).is_some() {
                0
            } else {
                0xff
            }),
        }
    }

    fn write_config(&self, address: ConfigAddress, data: &[u8]) {
        let Some(slot) = self.slot(address.slot).filter(|_| address.is_implemented(data.len())) else {
            return;
        };
        let mut device = lock(&slot);
        let before = device.config().mapped_bars();
        device.write_config(address.offset, data);
        let bars = device.config().mapped_bars();
        if bars != before {
            let mut state = self.write();
            let occupant = state.slots.get(address.slot).and_then(Option::as_ref);
            // It may have been taken out of its slot in the meantime.
            if occupant.is_some_and(|occupant| Arc::ptr_eq(occupant, &slot)) {
                state.map(address.slot, bars);
            }
        }
    }
}

impl State {
    /// Lets `bars`, each with its index, address and size, be where the device in `slot` answers.
    fn map(&mut self, slot: usize, bars: Vec<(usize, u64, u64)>) {
        self.mappings.retain(|mapping| mapping.slot != slot);
        self.mappings.extend(bars.into_iter().map(|(bar, start, size)| Mapping { start, size, slot, bar }));
    }
}

fn lock(device: &Slot) -> MutexGuard<'_, dyn PciDevice + 'static> {
    // As on the other buses: registers are registers, even after a panic elsewhere.
    device.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Gives each BAR an address in the slot's window and switches memory decoding on.
fn place(config: &mut ConfigSpace, window: u64) -> Result<(), Error> {
    let mut next = window;
    for (bar, size) in config.bar_sizes() {
        let start = next.next_multiple_of(size);
        next = start + size;
        if next > window + WINDOW_PER_SLOT {
            return Err(Error::NoWindow);
        }
        config.set_bar(bar, start as u32);
    }
    config.enable_memory();
    Ok(())
}

/// An address in the ECAM: slot, function and offset (PCI Express 6.0, section 7.2.2).
#[derive(Clone, Copy, Debug)]
struct ConfigAddress {
    slot: usize,
    function: u8,
    offset: usize,
}

impl ConfigAddress {
    fn new(offset: u64) -> Self {
        Self {
            slot: (offset >> 15) as usize & (SLOT_COUNT - 1),
            function: (offset >> 12) as u8 & 0b111,
            offset: offset as usize & 0xfff,
        }
    }

    /// Devices have one function and 256 bytes, and answer accesses inside one register.
    fn is_implemented(self, length: usize) -> bool {
        self.function == 0 && self.offset % 4 + length <= 4 && self.offset + length <= ConfigSpace::SIZE
    }

    /// The extended space of a device that has none reads as zero: an empty capability list.
    fn is_beyond_config(self, length: usize) -> bool {
        self.function == 0 && self.offset + length > ConfigSpace::SIZE
    }
}

/// The root's configuration space as a device on the memory bus.
#[derive(Debug)]
pub struct Ecam(pub Arc<PciRoot>);

impl BusDevice for Ecam {
    fn read(&self, offset: u64, data: &mut [u8]) {
        self.0.read_config(ConfigAddress::new(offset), data);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        self.0.write_config(ConfigAddress::new(offset), data);
    }
}

/// The root's memory window as a device on the memory bus.
#[derive(Debug)]
pub struct Window(pub Arc<PciRoot>);

impl BusDevice for Window {
    fn read(&self, offset: u64, data: &mut [u8]) {
        match self.0.resolve(PCI_WINDOW_START + offset, data.len()) {
            Some((device, bar, offset)) => lock(&device).read_bar(bar, offset, data),
            None => data.fill(0xff),
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let Some((device, bar, offset)) = self.0.resolve(PCI_WINDOW_START + offset, data.len()) {
            lock(&device).write_bar(bar, offset, data);
        }
    }
}

const _: () = assert!(ECAM_START == PCI_WINDOW_START + PCI_WINDOW_SIZE);

/// The device in slot 0, which stands for the root itself.
struct HostBridge(ConfigSpace);

impl HostBridge {
    fn new() -> Self {
        Self(ConfigSpace::new(Identity {
            vendor: 0x8086,
            device: 0x0d57,
            revision: 0,
            class: 0x06_0000,
            subsystem_vendor: 0,
            subsystem: 0,
        }))
    }
}

impl PciDevice for HostBridge {
    fn config(&self) -> &ConfigSpace {
        &self.0
    }

    fn config_mut(&mut self) -> &mut ConfigSpace {
        &mut self.0
    }

    fn read_bar(&mut self, _bar: usize, _offset: u64, data: &mut [u8]) {
        data.fill(0xff);
    }

    fn write_bar(&mut self, _bar: usize, _offset: u64, _data: &[u8]) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    const BAR_SIZE: u64 = 0x8000;

    struct Scratch {
        config: ConfigSpace,
        memory: [u8; 16],
    }

    impl Scratch {
        fn new() -> Self {
            let mut config = ConfigSpace::new(Identity {
                vendor: 0x1af4,
                device: 0x1042,
                revision: 1,
                class: 0x01_8000,
                subsystem_vendor: 0x1af4,
                subsystem: 2,
            });
            config.add_bar(0, BAR_SIZE as u32);
            Self { config, memory: [0; 16] }
        }
    }

    impl PciDevice for Scratch {
        fn config(&self) -> &ConfigSpace {
            &self.config
        }

        fn config_mut(&mut self) -> &mut ConfigSpace {
            &mut self.config
        }

        fn read_bar(&mut self, _bar: usize, offset: u64, data: &mut [u8]) {
            data.copy_from_slice(&self.memory[offset as usize..][..data.len()]);
        }

        fn write_bar(&mut self, _bar: usize, offset: u64, data: &[u8]) {
            self.memory[offset as usize..][..data.len()].copy_from_slice(data);
        }
    }

    struct Guest {
        ecam: Ecam,
        window: Window,
    }

    impl Guest {
        fn new() -> Self {
            let root = Arc::new(PciRoot::default());
            root.insert(1, Arc::new(Mutex::new(Scratch::new()))).unwrap();
            Self { ecam: Ecam(Arc::clone(&root)), window: Window(root) }
        }

        fn config(&mut self, offset: u64) -> u32 {
            let mut data = [0; 4];
            self.ecam.read(offset, &mut data);
            u32::from_le_bytes(data)
        }

        fn set_config(&mut self, offset: u64, value: u32) {
            self.ecam.write(offset, &value.to_le_bytes());
        }

        fn memory(&mut self, address: u64) -> u32 {
            let mut data = [0; 4];
            self.window.read(address - PCI_WINDOW_START, &mut data);
            u32::from_le_bytes(data)
        }
    }

    const DEVICE: u64 = 1 << 15;
    const COMMAND: u64 = DEVICE + 4;
    const BAR0: u64 = DEVICE + 0x10;

    #[test]
    fn a_guest_enumerates_the_bus() {
        let mut guest = Guest::new();
        assert_eq!(guest.config(0), 0x0d57_8086);
        assert_eq!(guest.config(DEVICE), 0x1042_1af4);
        assert_eq!(guest.config(DEVICE | 1 << 12), u32::MAX, "function 1");
        assert_eq!(guest.config(2 << 15), u32::MAX, "an empty slot");
        assert_eq!(guest.config(DEVICE + 0x100), 0, "no extended capabilities");
    }

    #[test]
    fn a_bar_is_sized_and_moved() {
        let mut guest = Guest::new();
        let placed = u64::from(guest.config(BAR0));
        assert!(placed >= PCI_WINDOW_START);
        guest.window.write(placed - PCI_WINDOW_START, &0x1234_5678u32.to_le_bytes());
        assert_eq!(guest.memory(placed), 0x1234_5678);

        guest.set_config(COMMAND, 0);
        assert_eq!(guest.memory(placed), u32::MAX, "decoding is off");
        guest.set_config(BAR0, u32::MAX);
        assert_eq!(guest.config(BAR0), !(BAR_SIZE as u32 - 1));
        let moved = PCI_WINDOW_START + 0x10_0000;
        guest.set_config(BAR0, moved as u32);
        guest.set_config(COMMAND, 2);
        assert_eq!(guest.memory(moved), 0x1234_5678);
        assert_eq!(guest.memory(placed), u32::MAX);
        // An access that only begins inside the BAR goes nowhere.
        guest.window.write(moved + BAR_SIZE - 2 - PCI_WINDOW_START, &[0; 4]);
    }

    #[test]
    fn a_slot_holds_one_device_and_can_be_emptied() {
        let guest = Guest::new();
        let root = &guest.ecam.0;
        let device = || Arc::new(Mutex::new(Scratch::new()));
        for slot in [0, 1, SLOT_COUNT as u8, u8::MAX] {
            assert!(matches!(root.insert(slot, device()), Err(Error::Slot(_))), "{slot}");
        }
        assert!(!root.remove(0), "the host bridge was removed");
        assert!(!root.remove(u8::MAX));
        assert!(root.remove(1));
        assert!(!root.remove(1));
        let mut guest = Guest { window: Window(Arc::clone(root)), ecam: Ecam(Arc::clone(root)) };
        assert_eq!(guest.config(DEVICE), u32::MAX);
        assert_eq!(guest.memory(PCI_WINDOW_START + WINDOW_PER_SLOT), u32::MAX);
        root.insert(1, device()).unwrap();
        assert_eq!(guest.config(DEVICE), 0x1042_1af4);
        assert_eq!(guest.memory(PCI_WINDOW_START + WINDOW_PER_SLOT), 0);
    }

    /// A device may take as long as its disk; who waits for it must not have the bus meanwhile, or everybody waits.
    #[test]
    fn nobody_waits_for_a_device_with_the_bus_in_hand() {
        struct Watch {
            config: ConfigSpace,
            root: Arc<PciRoot>,
        }

        impl PciDevice for Watch {
            fn config(&self) -> &ConfigSpace {
                assert!(self.root.state.try_write().is_ok());
                &self.config
            }

            fn config_mut(&mut self) -> &mut ConfigSpace {
                assert!(self.root.state.try_write().is_ok());
                &mut self.config
            }

            fn read_bar(&mut self, _bar: usize, _offset: u64, _data: &mut [u8]) {
                assert!(self.root.state.try_write().is_ok());
            }

            fn write_bar(&mut self, _bar: usize, _offset: u64, _data: &[u8]) {
                assert!(self.root.state.try_write().is_ok());
            }
        }

        impl Drop for Watch {
            fn drop(&mut self) {
                assert!(self.root.state.try_write().is_ok());
            }
        }

        let root = Arc::new(PciRoot::default());
        let watch = Watch { config: Scratch::new().config, root: Arc::clone(&root) };
        root.insert(1, Arc::new(Mutex::new(watch))).unwrap();
        let mut guest = Guest { ecam: Ecam(Arc::clone(&root)), window: Window(Arc::clone(&root)) };
        let address = guest.config(BAR0);
        for (register, value) in [(BAR0, address + 0x8000), (COMMAND, 0), (BAR0, address), (COMMAND, 2)] {
            guest.set_config(register, value);
        }
        guest.memory(address.into());
        assert!(root.remove(1));
    }

    #[test]
    fn odd_accesses_do_no_harm() {
        let guest = Guest::new();
        for offset in [0xffeu64, 0xfff, 0x3f, 0xfe, 0x101, DEVICE + 0x11] {
            for length in [1, 2, 4, 8] {
                guest.ecam.write(offset, &vec![0xff; length]);
                guest.ecam.read(offset, &mut vec![0; length]);
            }
        }
    }
}
