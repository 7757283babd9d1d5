//! Guest memory, and what a device may change in it.
//!
//! There is a copy of all of it, which the driver's writes go to, too. What differs after a device was called was
//! changed by the device: it must be inside a range that was allowed before.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;

use innkeeper_vmm::memory::GuestMemory;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

/// Bytes of a page.
pub const PAGE: u64 = 0x1000;

/// The regions: two next to each other, which buffers may cross, and one far behind a hole.
const REGIONS: [Range<u64>; 3] = [0..0x1_8000, 0x1_8000..0x2_0000, 0x1_0000_0000..0x1_0000_4000];

/// Where a driver that works by the book has its rings, by queue.
pub(crate) const RINGS: Range<u64> = 0..0xa000;
/// Where it has its buffers.
pub const BUFFERS: Range<u64> = 0xa000..0x1_e000;
/// What it never uses.
pub const CANARY: Range<u64> = 0x1_e000..0x2_0000;

/// What untouched memory is full of, outside of [`RINGS`].
const FILL: u8 = 0xc5;

/// Guest memory.
pub struct Memory {
    shared: Arc<GuestMemory>,
    copies: Vec<Region>,
    /// What a device may change.
    allowed: BTreeSet<(u64, u64)>,
    /// The pages that devices have changed.
    changed: BTreeSet<u64>,
    /// A device may change what says what it may change.
    is_blind: bool,
}

struct Region {
    start: u64,
    bytes: Vec<u8>,
    /// Where the guest has it.
    shared: *mut u8,
}

impl Region {
    /// What is there now.
    fn shared(&self) -> &[u8] {
        // SAFETY: the region is mapped for as long as `Memory` has it; and devices touch it only when they are called.
        unsafe { std::slice::from_raw_parts(self.shared, self.bytes.len()) }
    }

    /// The part of `range` that is in here, as indices.
    fn part(&self, range: &Range<u64>) -> Range<usize> {
        let length = self.bytes.len() as u64;
        let index = |address: u64| address.saturating_sub(self.start).min(length) as usize;
        index(range.start)..index(range.end).max(index(range.start))
    }
}

impl Default for Memory {
    fn default() -> Self {
        let ranges: Vec<_> = REGIONS
            .iter()
            .map(|range| (GuestAddress(range.start), (range.end - range.start) as usize))
            .collect();
        let shared = Arc::new(GuestMemory::from_ranges(&ranges).unwrap());
        let copies = shared
            .iter()
            .map(|region| Region {
                start: region.start_addr().0,
                bytes: vec![0; region.len() as usize],
                shared: region.as_ptr(),
            })
            .collect();
        let mut memory =
            Self { shared, copies, allowed: BTreeSet::new(), changed: BTreeSet::new(), is_blind: false };
        for range in [BUFFERS, CANARY, REGIONS[2].clone()] {
            memory.write(range.start, &vec![FILL; (range.end - range.start) as usize]);
        }
        memory
    }
}

impl Memory {
    /// As devices have it.
    pub fn shared(&self) -> &Arc<GuestMemory> {
        &self.shared
    }

    /// Writes as the driver, as far as there is memory.
    pub fn write(&mut self, address: u64, bytes: &[u8]) {
        let range = address..address.saturating_add(bytes.len() as u64);
        for region in &mut self.copies {
            let part = region.part(&range);
            if part.is_empty() {
                continue;
            }
            let from = (region.start + part.start as u64 - address) as usize;
            let piece = &bytes[from..from + part.len()];
            let at = GuestAddress(region.start + part.start as u64);
            self.shared.write_slice(piece, at).unwrap();
            region.bytes[part].copy_from_slice(piece);
        }
    }

    /// Reads as the driver; what does not exist is left out.
    pub fn read(&self, address: u64, length: u64) -> Vec<u8> {
        let range = address..address.saturating_add(length);
        self.copies.iter().flat_map(|region| &region.bytes[region.part(&range)]).copied().collect()
    }

    /// What is in `range`, if that is inside one region.
    pub(crate) fn slice(&self, range: &Range<u64>) -> Option<&[u8]> {
        let length = usize::try_from(range.end.checked_sub(range.start)?).ok()?;
        let found = |region: &&Region| region.part(range).len() == length;
        self.copies.iter().find(found).map(|region| &region.bytes[region.part(range)])
    }

    /// Reads `SIZE` bytes, if they exist.
    pub fn array<const SIZE: usize>(&self, address: u64) -> Option<[u8; SIZE]> {
        let range = address..address.checked_add(SIZE as u64)?;
        match self.slice(&range) {
            Some(bytes) => bytes.try_into().ok(),
            None => self.read(address, SIZE as u64).try_into().ok(),
        }
    }

    /// The two bytes at `address`; 0 if they do not exist.
    pub fn word(&self, address: u64) -> u16 {
        self.array(address).map_or(0, u16::from_le_bytes)
    }

    /// From now on, devices may change `range`.
    pub fn allow(&mut self, range: Range<u64>) {
        if !range.is_empty() {
            self.allowed.insert((range.start, range.end));
        }
    }

    /// Whether a device may change something in `range`.
    pub fn may_change(&self, range: &Range<u64>) -> bool {
        self.allowed.iter().any(|(start, end)| *start < range.end && range.start < *end)
    }

    /// All that devices may change.
    pub fn allowed(&self) -> impl Iterator<Item = Range<u64>> {
        self.allowed.iter().map(|(start, end)| *start..*end)
    }

    /// From now on, nobody knows what devices may change.
    pub fn go_blind(&mut self) {
        self.is_blind = true;
    }

    /// Whether nobody knows what devices may change.
    pub fn is_blind(&self) -> bool {
        self.is_blind
    }

    /// Devices may not change anything any more.
    pub fn forbid(&mut self) {
        self.allowed.clear();
        self.is_blind = false;
    }

    /// The pages that devices have changed since the last time.
    pub fn take_changed(&mut self) -> BTreeSet<u64> {
        std::mem::take(&mut self.changed)
    }

    /// Learns what a device has changed, and complains if it may not.
    pub(crate) fn compare(&mut self) {
        for region in &mut self.copies {
            if region.shared() == region.bytes {
                continue;
            }
            for first in (0..region.bytes.len()).step_by(PAGE as usize) {
                let page = first..first + PAGE as usize;
                if region.shared()[page.clone()] == region.bytes[page.clone()] {
                    continue;
                }
                let start = region.start + first as u64;
                self.changed.insert(start);
                if !self.is_blind {
                    let differs = |index: &usize| region.shared()[*index] != region.bytes[*index];
                    let mut may_change = [false; PAGE as usize];
                    for (from, to) in &self.allowed {
                        let index = |address: u64| address.saturating_sub(start).min(PAGE) as usize;
                        may_change[index(*from)..index(*to)].fill(true);
                    }
                    let wrong = page.clone().filter(differs).find(|index| !may_change[index - first]);
                    if let Some(index) = wrong {
                        let address = region.start + index as u64;
                        panic!("the device has written to {address:#x}, which nobody has offered to it");
                    }
                }
                let now = region.shared()[page.clone()].to_vec();
                region.bytes[page].copy_from_slice(&now);
            }
        }
    }
}
