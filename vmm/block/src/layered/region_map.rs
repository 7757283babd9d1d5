//! Something for some of a volume's regions, found as fast as every request needs it.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

/// Values by the numbers of regions.
pub type RegionMap<T> = HashMap<u32, T, BuildHasherDefault<RegionHasher>>;

/// Spreads numbers. They come from a guest, who could only make its own volume slow: what is in a map is bounded.
#[derive(Default)]
pub struct RegionHasher(u64);

impl Hasher for RegionHasher {
    fn write_u32(&mut self, region: u32) {
        // The upper bits and the lower ones should both be good (Fibonacci hashing).
        let product = u64::from(region).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = product ^ product >> 32;
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.0 = self.0.wrapping_mul(31).wrapping_add(u64::from(*byte)));
    }

    fn finish(&self) -> u64 {
        self.0
    }
}
