//! What the tests of a layered volume have in common, and the large ones. The others are with what they test.

mod crash;
mod damage;
mod engine;
mod making;
mod model;
mod recorder;
mod volume;

use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};

use uuid::Uuid;

use super::format::{Header, Slot};
use super::stack::data_size;
use super::storage::Storage;
use super::{Layer, LayerDescription, create_layer};

/// Random numbers that are the same the next time.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn next(&mut self) -> u64 {
        // Xorshift*, by Vigna.
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 11
    }

    /// Below `end`, which is not 0.
    pub fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    /// True once in `times`.
    pub fn once_in(&mut self, times: u64) -> bool {
        self.below(times) == 0
    }
}

/// A number from the environment, for longer runs than usual.
pub fn length(variable: &str, usual: u64) -> u64 {
    std::env::var(variable).map_or(usual, |text| text.parse().unwrap())
}

/// Makes a layer in something that is in the place of files.
pub fn create(data: &dyn Storage, map: &dyn Storage, id: u128, size: u64) {
    let LayerDescription { id, parent, size } = description(id, size);
    let header = Header { generation: 1, size, id, parent, sealed: None };
    data.grow(data_size(size)).unwrap();
    map.write_at(&header.encode(), Slot::First.of_header()).unwrap();
    data.sync().unwrap();
    map.sync().unwrap();
}

/// The paths of a layer's data and map.
pub fn paths(directory: &Path, id: u128) -> [PathBuf; 2] {
    ["data", "map"].map(|kind| directory.join(format!("{id}.{kind}")))
}

/// Opens a layer's files, which are made if need be.
pub fn files(directory: &Path, id: u128) -> Layer {
    let open = |path: PathBuf| -> File {
        OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path).unwrap()
    };
    let [data, map] = paths(directory, id).map(open);
    Layer { data, map }
}

/// A layer on top of the one with the number before.
pub fn description(id: u128, size: u64) -> LayerDescription {
    LayerDescription { id: Uuid::from_u128(id), parent: (id > 1).then(|| Uuid::from_u128(id - 1)), size }
}

/// Makes a layer in files.
pub fn make(directory: &Path, id: u128, size: u64) -> Layer {
    let layer = files(directory, id);
    create_layer(&layer, &description(id, size)).unwrap();
    layer
}
