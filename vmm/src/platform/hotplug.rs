//! The registers by which PCI devices come and go: our side of what the ACPI code in
//! [`firmware`](crate::firmware::acpi) does when the generic event device interrupts.
//!
//! The firmware reads which slots have something new, and in which a device is to be ejected, and notifies the
//! operating system of each (ACPI 6.5, section 5.6.6: device check and eject request). When the system has let go of
//! a device, it calls the slot's `_EJ0`, which writes here. From then on the slot is empty; what is left to do is the
//! control thread's.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vmm_sys_util::eventfd::EventFd;

use crate::bus::Registers;
use crate::event;
use crate::pci::PciRoot;

/// The first of the registers' ports.
pub const BASE_PORT: u16 = 0x620;
/// Three registers of 32 bits, with one bit for each slot.
pub const PORT_COUNT: u64 = 12;
/// Slots to be looked at. Reading clears it.
pub const CHECK_OFFSET: u64 = 0;
/// Slots to be given up. Reading clears it.
pub const REQUEST_OFFSET: u64 = 4;
/// Slots that are given up: write only.
pub const EJECT_OFFSET: u64 = 8;

/// The slots that devices may come to and go from. Slot 0 is the host bridge, and what every machine has built in is in the
/// last one. What only some have is before that, and [`Slots`] are those that a machine has free.
pub const SLOTS: std::ops::RangeInclusive<u8> = 1..=30;

/// Which of [`SLOTS`] nothing is built into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slots(u32);

impl Slots {
    /// All but those in which something is built in.
    pub fn except(built_in: impl IntoIterator<Item = u8>) -> Self {
        let all = SLOTS.fold(0, |all, slot| all | bit(slot));
        Self(built_in.into_iter().fold(all, |free, slot| free & !bit(slot)))
    }

    /// Whether it is one of them.
    pub fn contains(self, slot: u8) -> bool {
        self.0 & bit(slot) != 0
    }

    /// All of them, from the first.
    pub fn iter(self) -> impl Iterator<Item = u8> {
        SLOTS.filter(move |slot| self.contains(*slot))
    }
}

/// What the control thread and the registers share.
#[derive(Debug)]
pub struct Hotplug {
    root: Arc<PciRoot>,
    slots: Slots,
    pending: Mutex<Pending>,
    /// Interrupts the generic event device.
    interrupt: EventFd,
    /// Becomes readable when the guest has ejected something.
    ejected: EventFd,
}

/// What is pending: slots, one bit each.
#[derive(Debug, Default)]
struct Pending {
    check: u32,
    request: u32,
    ejected: u32,
}

impl Hotplug {
    /// For these slots of `root`, with `interrupt` as the event device's pin.
    pub fn new(root: Arc<PciRoot>, slots: Slots, interrupt: EventFd) -> std::io::Result<Self> {
        Ok(Self { root, slots, pending: Mutex::default(), interrupt, ejected: event::new()? })
    }

    /// Has the guest look whether there is a device in `slot`. What was asked about the one before is not about this one.
    pub fn check(&self, slot: u8) {
        {
            let mut pending = self.lock();
            pending.check |= bit(slot);
            pending.request &= !bit(slot);
        }
        self.notify();
    }

    /// Asks the guest to give up the device in `slot`.
    pub fn request_ejection(&self, slot: u8) {
        self.lock().request |= bit(slot);
        self.notify();
    }

    /// The slots whose devices the guest has given up since the last call.
    pub fn take_ejected(&self) -> Vec<u8> {
        let _ = self.ejected.read();
        let ejected = std::mem::take(&mut self.lock().ejected);
        self.slots.iter().filter(|slot| ejected & bit(*slot) != 0).collect()
    }

    /// Becomes readable when [`Hotplug::take_ejected`] has something to say.
    pub fn event(&self) -> &EventFd {
        &self.ejected
    }

    fn notify(&self) {
        if let Err(error) = self.interrupt.write(1) {
            tracing::warn!(%error, "the guest cannot be told of its devices");
        }
    }

    fn eject(&self, slots: u32) {
        // Held all the time: between a slot becoming empty and its being told, nobody may give it to another device.
        let mut pending = self.lock();
        let given_up = self.slots.iter().filter(|slot| slots & bit(*slot) != 0 && self.root.remove(*slot));
        let ejected = given_up.fold(0, |ejected, slot| ejected | bit(slot));
        if ejected != 0 {
            pending.ejected |= ejected;
            // Fails only if the counter is full, and then it is readable.
            let _ = self.ejected.write(1);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Pending> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn bit(slot: u8) -> u32 {
    1u32.checked_shl(slot.into()).unwrap_or(0)
}

/// The registers.
#[derive(Debug)]
pub struct HotplugRegisters(pub Arc<Hotplug>);

impl Registers for HotplugRegisters {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let Ok(register) = <&mut [u8; 4]>::try_from(data) {
            let mut pending = self.0.lock();
            let slots = match offset {
                CHECK_OFFSET => std::mem::take(&mut pending.check),
                REQUEST_OFFSET => std::mem::take(&mut pending.request),
                _ => 0,
            };
            *register = slots.to_le_bytes();
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        if let (EJECT_OFFSET, &[a, b, c, d]) = (offset, data) {
            self.0.eject(u32::from_le_bytes([a, b, c, d]));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pci::{ConfigSpace, Identity, PciDevice};

    struct Nothing(ConfigSpace);

    impl PciDevice for Nothing {
        fn config(&self) -> &ConfigSpace {
            &self.0
        }

        fn config_mut(&mut self) -> &mut ConfigSpace {
            &mut self.0
        }

        fn read_bar(&mut self, _bar: usize, _offset: u64, _data: &mut [u8]) {}

        fn write_bar(&mut self, _bar: usize, _offset: u64, _data: &[u8]) {}
    }

    const IDENTITY: Identity =
        Identity { vendor: 1, device: 2, revision: 0, class: 0, subsystem_vendor: 0, subsystem: 0 };

    fn device() -> Arc<Mutex<Nothing>> {
        Arc::new(Mutex::new(Nothing(ConfigSpace::new(IDENTITY))))
    }

    fn registers() -> (HotplugRegisters, Arc<PciRoot>) {
        let root = Arc::new(PciRoot::default());
        let slots = Slots::except([29, 31]);
        let hotplug = Hotplug::new(Arc::clone(&root), slots, event::new().unwrap()).unwrap();
        (HotplugRegisters(Arc::new(hotplug)), root)
    }

    fn read(registers: &mut HotplugRegisters, offset: u64) -> u32 {
        let mut data = [0; 4];
        registers.read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    #[test]
    fn what_is_pending_is_told_once() {
        let (mut registers, _root) = registers();
        registers.0.check(3);
        registers.0.check(5);
        registers.0.request_ejection(1);
        assert_eq!(registers.0.interrupt.read().unwrap(), 3);
        assert_eq!(read(&mut registers, CHECK_OFFSET), 1 << 3 | 1 << 5);
        assert_eq!(read(&mut registers, CHECK_OFFSET), 0);
        assert_eq!(read(&mut registers, REQUEST_OFFSET), 1 << 1);
        assert_eq!(read(&mut registers, REQUEST_OFFSET), 0);
    }

    #[test]
    fn a_guest_ejects_what_is_there_and_nothing_else() {
        let (mut registers, root) = registers();
        for slot in [2, 29, 30, 31] {
            root.insert(slot, device()).unwrap();
        }
        registers.write(EJECT_OFFSET, &u32::MAX.to_le_bytes());
        assert_eq!(registers.0.event().read().unwrap(), 1);
        assert_eq!(registers.0.take_ejected(), [2, 30]);
        assert!(registers.0.take_ejected().is_empty());
        assert!(!root.remove(2), "the slot is empty at once");
        assert!(root.remove(29) && root.remove(31), "what is built in stays");
        registers.write(EJECT_OFFSET, &u32::MAX.to_le_bytes());
        assert!(registers.0.event().read().is_err(), "nothing was there to eject");
    }

    /// A guest that was asked for one device, and sees to it late, must not give up the next one in the same slot.
    #[test]
    fn what_was_asked_of_one_device_is_not_asked_of_the_next() {
        let (mut registers, _root) = registers();
        registers.0.request_ejection(4);
        registers.0.request_ejection(5);
        registers.0.check(4);
        assert_eq!(read(&mut registers, REQUEST_OFFSET), 1 << 5);
        assert_eq!(read(&mut registers, CHECK_OFFSET), 1 << 4);
        registers.0.request_ejection(4);
        assert_eq!(read(&mut registers, REQUEST_OFFSET), 1 << 4);
    }

    /// Else the control thread could fill the slot in between, and take the new device for the one that was ejected.
    #[test]
    fn a_slot_is_not_seen_empty_before_its_ejection_is() {
        struct Witness(Nothing, Arc<Hotplug>);

        impl PciDevice for Witness {
            fn config(&self) -> &ConfigSpace {
                &self.0.0
            }

            fn config_mut(&mut self) -> &mut ConfigSpace {
                &mut self.0.0
            }

            fn read_bar(&mut self, _bar: usize, _offset: u64, _data: &mut [u8]) {}

            fn write_bar(&mut self, _bar: usize, _offset: u64, _data: &[u8]) {}
        }

        impl Drop for Witness {
            fn drop(&mut self) {
                assert!(self.1.pending.try_lock().is_err(), "it has left its slot, and nobody was told");
            }
        }

        let (mut registers, root) = registers();
        let device = Witness(Nothing(ConfigSpace::new(IDENTITY)), Arc::clone(&registers.0));
        root.insert(6, Arc::new(Mutex::new(device))).unwrap();
        registers.write(EJECT_OFFSET, &(1u32 << 6).to_le_bytes());
        assert_eq!(registers.0.take_ejected(), [6]);
    }

    #[test]
    fn odd_accesses_do_nothing() {
        let (mut registers, root) = registers();
        root.insert(1, device()).unwrap();
        registers.0.check(1);
        for offset in 0..PORT_COUNT {
            for length in [1, 2, 8] {
                registers.read(offset, &mut vec![0; length]);
                registers.write(offset, &vec![0xff; length]);
            }
        }
        assert_eq!(read(&mut registers, CHECK_OFFSET), 1 << 1);
        assert!(root.remove(1));
    }
}
