//! The 256 bytes of a type 0 configuration header (PCI Local Bus 3.0, chapter 6).
//!
//! Every byte has a mask of the bits that the guest may change. That is all there is to BARs: their low bits
//! cannot be changed, so a guest that writes all ones reads back the size.

const COMMAND: usize = 0x04;
const STATUS: usize = 0x06;
const BAR0: usize = 0x10;
const CAPABILITIES: usize = 0x34;

const COMMAND_MEMORY: u8 = 1 << 1;
const COMMAND_BUS_MASTER: u8 = 1 << 2;
const STATUS_CAPABILITIES: u8 = 1 << 4;
const FIRST_CAPABILITY: usize = 0x40;
const BAR_COUNT: usize = 6;

/// Who a device says it is.
#[derive(Clone, Copy, Debug)]
#[expect(missing_docs, reason = "the names are the specification's")]
pub struct Identity {
    pub vendor: u16,
    pub device: u16,
    pub revision: u8,
    /// Base class, subclass and programming interface.
    pub class: u32,
    pub subsystem_vendor: u16,
    pub subsystem: u16,
}

/// The capabilities that our devices have (PCI Code and ID Assignment 1.15, section 2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum CapabilityId {
    /// Vendor-specific; virtio uses it for its structures.
    Vendor = 0x09,
    /// MSI-X.
    Msix = 0x11,
}

/// A function's configuration registers.
#[derive(Clone, Debug)]
pub struct ConfigSpace {
    bytes: [u8; Self::SIZE],
    writable: [u8; Self::SIZE],
    bar_sizes: [u32; BAR_COUNT],
    /// The `next` field that the next capability goes into.
    last_link: usize,
    /// Where the next capability starts.
    free: usize,
}

impl ConfigSpace {
    /// Bytes of configuration space; there is no extended space.
    pub const SIZE: usize = 256;

    /// A header without BARs or capabilities.
    pub fn new(identity: Identity) -> Self {
        let mut space = Self {
            bytes: [0; Self::SIZE],
            writable: [0; Self::SIZE],
            bar_sizes: [0; BAR_COUNT],
            last_link: CAPABILITIES,
            free: FIRST_CAPABILITY,
        };
        space.bytes[0x00..0x02].copy_from_slice(&identity.vendor.to_le_bytes());
        space.bytes[0x02..0x04].copy_from_slice(&identity.device.to_le_bytes());
        space.bytes[0x08] = identity.revision;
        space.bytes[0x09..0x0c].copy_from_slice(&identity.class.to_le_bytes()[..3]);
        space.bytes[0x2c..0x2e].copy_from_slice(&identity.subsystem_vendor.to_le_bytes());
        space.bytes[0x2e..0x30].copy_from_slice(&identity.subsystem.to_le_bytes());
        space.writable[COMMAND] = COMMAND_MEMORY | COMMAND_BUS_MASTER;
        // The interrupt line is a note that system software leaves to itself.
        space.writable[0x3c] = 0xff;
        space
    }

    /// Adds BAR `index`, memory below 4 GiB that is not prefetchable, of `size` bytes, a power of two of at least 16.
    pub fn add_bar(&mut self, index: usize, size: u32) {
        debug_assert!(index < BAR_COUNT && size.is_power_of_two() && size >= 16);

        self.bar_sizes[index] = size;
        self.writable[BAR0 + 4 * index..][..4].copy_from_slice(&(!(size - 1)).to_le_bytes());
    }

    /// Adds a capability with `body` behind its two-byte head; `writable` are the bits of `body` that the
    /// guest may change, as far as it reaches. Returns the offset of the body.
    pub fn add_capability(&mut self, id: CapabilityId, body: &[u8], writable: &[u8]) -> usize {
        let start = self.free;
        debug_assert!(start + 2 + body.len() <= Self::SIZE);
        self.bytes[self.last_link] = start as u8;
        self.bytes[STATUS] |= STATUS_CAPABILITIES;
        self.bytes[start] = id as u8;
        self.bytes[start + 2..][..body.len()].copy_from_slice(body);
        self.writable[start + 2..][..writable.len()].copy_from_slice(writable);
        self.last_link = start + 1;
        self.free = (start + 2 + body.len()).next_multiple_of(4);
        start + 2
    }

    /// Reads registers; what lies outside reads as all ones.
    pub fn read(&self, offset: usize, data: &mut [u8]) {
        for (index, byte) in data.iter_mut().enumerate() {
            *byte = self.bytes.get(offset + index).copied().unwrap_or(0xff);
        }
    }

    /// Writes the bits that the guest may change.
    pub fn write(&mut self, offset: usize, data: &[u8]) {
        for (index, value) in data.iter().enumerate() {
            if let (Some(byte), Some(mask)) =
                (self.bytes.get_mut(offset + index), self.writable.get(offset + index))
            {
                *byte = *byte & !mask | value & mask;
            }
        }
    }

    /// The two bytes at `offset`.
    pub fn word(&self, offset: usize) -> u16 {
        let mut data = [0; 2];
        self.read(offset, &mut data);
        u16::from_le_bytes(data)
    }

    /// The four bytes at `offset`.
    pub fn dword(&self, offset: usize) -> u32 {
        let mut data = [0; 4];
        self.read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    /// The BARs there are: index and size.
    pub fn bar_sizes(&self) -> Vec<(usize, u64)> {
        let sizes = self.bar_sizes.iter().enumerate();
        sizes.filter(|(_, size)| **size > 0).map(|(bar, size)| (bar, u64::from(*size))).collect()
    }

    /// Places BAR `index`.
    pub fn set_bar(&mut self, index: usize, address: u32) {
        self.write(BAR0 + 4 * index, &address.to_le_bytes());
    }

    /// Lets the BARs answer, as firmware does.
    pub fn enable_memory(&mut self) {
        self.bytes[COMMAND] |= COMMAND_MEMORY;
    }

    /// The BARs that answer at present: index, address and size.
    pub fn mapped_bars(&self) -> Vec<(usize, u64, u64)> {
        if self.bytes[COMMAND] & COMMAND_MEMORY == 0 {
            return Vec::new();
        }
        let address = |bar: usize| u64::from(self.dword(BAR0 + 4 * bar));
        self.bar_sizes().into_iter().map(|(bar, size)| (bar, address(bar), size)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn space() -> ConfigSpace {
        ConfigSpace::new(Identity {
            vendor: 1,
            device: 2,
            revision: 3,
            class: 0x04_0506,
            subsystem_vendor: 7,
            subsystem: 8,
        })
    }

    #[test]
    fn a_guest_changes_only_what_it_may() {
        let mut config = space();
        config.add_bar(0, 0x1000);
        let before = config.clone();
        for offset in 0..ConfigSpace::SIZE {
            config.write(offset, &[0xff]);
        }
        let changed: Vec<usize> =
            (0..ConfigSpace::SIZE).filter(|at| config.bytes[*at] != before.bytes[*at]).collect();
        assert_eq!(changed, [COMMAND, BAR0 + 1, BAR0 + 2, BAR0 + 3, 0x3c]);
        config.write(254, &[1, 2, 3, 4]);
    }

    #[test]
    fn capabilities_form_a_list() {
        let mut config = space();
        assert_eq!(config.dword(CAPABILITIES), 0);
        let first = config.add_capability(CapabilityId::Vendor, &[1, 2, 3], &[]);
        let second = config.add_capability(CapabilityId::Msix, &[0; 10], &[0, 0xc0]);
        assert_eq!(config.dword(CAPABILITIES) as usize, first - 2);
        assert_eq!(config.word(first - 2), ((second - 2) << 8) as u16 | 9);
        assert_eq!(config.word(second - 2), 0x11);
        config.write(second, &[0xff; 2]);
        assert_eq!(config.word(second), 0xc000);
    }
}
