//! Bytes that each input finds as they were.

use std::collections::BTreeSet;

const PAGE: usize = 4096;

/// An image that is changed, and restored in no more time than that took.
pub struct Image {
    original: Vec<u8>,
    now: Vec<u8>,
    /// The pages that may differ.
    changed: BTreeSet<usize>,
}

impl Image {
    /// An image that is now as it will be after [`Self::restore`].
    pub fn new(original: Vec<u8>) -> Self {
        Self { now: original.clone(), original, changed: BTreeSet::new() }
    }

    /// What is in it now.
    pub fn bytes(&self) -> &[u8] {
        &self.now
    }

    /// Puts bytes into it. Those that would be outside are left out.
    pub fn write(&mut self, at: usize, bytes: &[u8]) {
        let Some(rest) = self.now.get_mut(at..) else { return };
        let length = bytes.len().min(rest.len());
        if rest[..length] == bytes[..length] {
            return;
        }
        rest[..length].copy_from_slice(&bytes[..length]);
        self.changed.extend(at / PAGE..(at + length).div_ceil(PAGE));
    }

    /// Forgets all changes.
    pub fn restore(&mut self) {
        for page in std::mem::take(&mut self.changed) {
            let range = page * PAGE..((page + 1) * PAGE).min(self.now.len());
            self.now[range.clone()].copy_from_slice(&self.original[range]);
        }
    }
}
