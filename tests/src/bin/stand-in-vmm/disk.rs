//! A disk that nobody writes to but the controller's seals: its layers are real.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::ops::Range;
use std::time::Duration;

use innkeeper_block::layered::{self, Layer};
use innkeeper_block::{Backend, Layered};
use innkeeper_protocol::{DiskSource, Failure, FailureCode, LayerFiles};

use crate::control::{Descriptors, failed, invalid};

/// A disk.
pub enum Disk {
    /// Nobody reads it, but others are not to have it meanwhile.
    Raw(File),
    /// Layers, locked and sealed as by any VMM.
    Layered(Box<Layered>),
}

impl Disk {
    /// Takes the files over; `below` came before, and are the lowest layers.
    pub fn open(
        source: DiskSource,
        below: Vec<Layer>,
        is_still: bool,
        descriptors: &mut Descriptors,
    ) -> Result<Self, Failure> {
        match source {
            DiskSource::Raw { file } => Ok(Self::Raw(descriptors.take(file, "the disk")?.into())),
            DiskSource::Layered { layers } => {
                let mut all = below;
                all.extend(take_layers(layers, descriptors)?);
                let opened = if is_still { Layered::open_still(all) } else { Layered::open(all, false) };
                opened.map(|disk| Self::Layered(Box::new(disk))).map_err(|error| {
                    let code = if error.is_locked() { FailureCode::Conflict } else { FailureCode::Invalid };
                    Failure { code, message: error.to_string() }
                })
            }
        }
    }

    /// In bytes.
    pub fn size(&self) -> u64 {
        match self {
            Self::Raw(file) => (&mut &*file).seek(SeekFrom::End(0)).unwrap_or(0),
            Self::Layered(disk) => disk.capacity(),
        }
    }

    pub fn resize(&self, size: u64) -> io::Result<()> {
        match self {
            Self::Raw(file) => file.set_len(size),
            Self::Layered(disk) => disk.resize(size),
        }
    }

    pub fn layered(&self) -> Result<&Layered, Failure> {
        match self {
            Self::Raw(_) => Err(invalid("it has no layers")),
            Self::Layered(disk) => Ok(disk),
        }
    }

    /// Puts a layer in the place of some that it was merged of.
    pub fn replace(&self, layers: Range<usize>, merged: Layer) -> Result<(), Failure> {
        self.layered()?.replace_layers(layers, merged).map_err(failed)
    }
}

/// Puts new tops on disks.
pub fn seal(disks: Vec<(&Layered, Vec<Layer>)>) -> Result<(), Failure> {
    layered::seal_together(disks, Duration::from_secs(1)).map_err(|error| invalid(error.to_string()))
}

/// The files that a message names.
pub fn take_layers(layers: Vec<LayerFiles>, descriptors: &mut Descriptors) -> Result<Vec<Layer>, Failure> {
    let take = |files: LayerFiles| {
        let data = descriptors.take(files.data, "a layer's data")?.into();
        Ok(Layer { data, map: descriptors.take(files.map, "a layer's map")?.into() })
    };
    layers.into_iter().map(take).collect()
}
