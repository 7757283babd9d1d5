//! A disk that is a stack of layers: immutable ones that volumes share, and one of its own on top.
//!
//! A layer has two files. Its *data* file is sparse: byte N of it is byte N of the volume. Its *map* says which blocks of
//! the data file count, which are zeroes, and which are looked for below; `docs/volumes.md` has its format, what is
//! promised when the host crashes, and what was measured. What is written goes to the top. [`Layered::seal`] puts a new
//! top on the old one, which is a snapshot from then on.
//!
//! - `format`: the bytes of a map file, `map`: a map in memory and on disk
//! - `index`: all maps below the top, merged; `region_map`: what both are kept in
//! - `plan`: what a request comes down to, without doing any of it
//! - `in_flight`: who changes which blocks
//! - `flusher`: one flush for all who want one
//! - `stack`, `volume`: the layers, and what is done to them
//! - `engine`, `workers`: the asynchronous engine, and threads for what it does not do itself
//! - `merge`: several layers made one, `check`: what is wrong with layers
//! - `storage`: the files

mod check;
mod engine;
mod flusher;
mod format;
mod in_flight;
mod index;
mod map;
mod merge;
mod plan;
mod region_map;
mod stack;
mod storage;
#[cfg(test)]
mod tests;
mod volume;
mod workers;

use std::fmt;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, PoisonError};

use uuid::Uuid;

pub use self::check::{Finding, Problem, Report, Summary};
use self::engine::LayeredEngine;
use self::format::{Header, Slot};
use self::index::IndexCache;
use self::map::MapError;
use self::stack::{OpenLayer, Stack, data_size};
use self::storage::Storage;
use self::volume::Volume;
use self::workers::Workers;
use crate::raw::{Disk, SynchronousEngine};
use crate::{Backend, Engine, EngineKind, OpenError};

/// The files of a layer, open.
#[derive(Debug)]
pub struct Layer {
    /// What is in it.
    pub data: File,
    /// Where in it that is.
    pub map: File,
}

/// What a layer is made to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayerDescription {
    /// Whose content it is.
    pub id: Uuid,
    /// The layer that it is on top of, if there is one.
    pub parent: Option<Uuid>,
    /// Of the volume, in bytes: a multiple of 512, up to 64 TiB, and not less than the parent's.
    pub size: u64,
}

/// Why layers are no volume. Layers are counted from the bottom, from 0.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    /// A volume has at least one.
    #[error("there are no layers")]
    None,
    /// More than can be counted.
    #[error("there are {0} layers, which is too many")]
    TooMany(usize),
    /// A file cannot be used as a layer's data.
    #[error("the data file of layer {0} cannot be used: {1}")]
    Data(usize, #[source] OpenError),
    /// A file cannot be used as a layer's map.
    #[error("the map file of layer {0} cannot be used: {1}")]
    MapFile(usize, #[source] OpenError),
    /// What is in a map is not a map.
    #[error("the map of layer {0} cannot be used: {1}")]
    Map(usize, String),
    /// A layer was made to be on top of another one.
    #[error("layer {index} ({id}) belongs on top of {}, and is on top of {}", name(*.parent), name(*.found))]
    Parent {
        /// Which.
        index: usize,
        /// What it is.
        id: Uuid,
        /// What it belongs on top of.
        parent: Option<Uuid>,
        /// What is there.
        found: Option<Uuid>,
    },
    /// A layer is smaller than the one below it.
    #[error("layer {0} is smaller than the one below it")]
    Size(usize),
    /// A layer that was sealed takes no writes.
    #[error("the top layer is sealed: it takes no writes")]
    Sealed,
}

fn name(layer: Option<Uuid>) -> String {
    layer.map_or("nothing".to_owned(), |id| id.to_string())
}

/// Makes a layer of two empty files. It is durable when this returns, as far as the files are: their names are not.
pub fn create_layer(layer: &Layer, description: &LayerDescription) -> io::Result<()> {
    let LayerDescription { id, parent, size } = *description;
    if !format::is_size(size) || id.is_nil() || parent == Some(id) {
        let message = format!("there can be no layer {id} of {size} bytes on top of {}", name(parent));
        return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
    }
    check_is_empty(layer)?;
    layer.data.set_len(data_size(size))?;
    layer.data.sync_all()?;
    let header = Header { generation: 1, size, id, parent, sealed: None };
    layer.map.write_all_at(&header.encode(), Slot::First.of_header())?;
    layer.map.sync_all()
}

/// A disk over layers.
#[derive(Clone)]
pub struct Layered {
    volume: Arc<Volume>,
    /// There are none before there is an asynchronous engine.
    workers: Arc<Mutex<Option<Arc<Workers>>>>,
    engine: EngineKind,
}

impl fmt::Debug for Layered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Layered").field("capacity", &self.volume.capacity()).finish_non_exhaustive()
    }
}

impl Layered {
    /// Opens a volume of `layers`, from the bottom. The last one takes what is written, unless the volume is `read_only`.
    ///
    /// Files are locked: those of the top exclusively, all others shared.
    pub fn open(layers: Vec<Layer>, read_only: bool) -> Result<Self, LayerError> {
        let count = layers.len();
        let open = |(index, layer)| {
            open_files(layer, read_only || index + 1 < count).map_err(|(file, error)| match file {
                LayerFile::Data => LayerError::Data(index, error),
                LayerFile::Map => LayerError::MapFile(index, error),
            })
        };
        let files = layers.into_iter().enumerate().map(open).collect::<Result<Vec<_>, LayerError>>()?;
        Self::over(files, read_only)
    }

    /// The same over anything that can be in the place of files: data and map of each layer.
    fn over(files: Vec<(Box<dyn Storage>, Box<dyn Storage>)>, read_only: bool) -> Result<Self, LayerError> {
        if files.len() >= usize::from(u16::MAX) {
            return Err(LayerError::TooMany(files.len()));
        }
        let open = |(index, (data, map))| {
            let layer = OpenLayer::open(data, map);
            layer.map(Arc::new).map_err(|error: MapError| LayerError::Map(index, error.to_string()))
        };
        let mut lower = files.into_iter().enumerate().map(open).collect::<Result<Vec<_>, LayerError>>()?;
        let headers: Vec<Header> = lower.iter().map(|layer| layer.map.header()).collect();
        check_chain(&headers, None)?;
        let capacity = headers.last().map_or(0, |header| header.size);
        let top = if read_only { None } else { lower.pop() };
        if let Some(top) = &top {
            if headers.last().is_some_and(|header| header.sealed.is_some()) {
                return Err(LayerError::Sealed);
            }
            // A crash may have come between growing the map and the data.
            let grown = top.data.grow(data_size(capacity));
            grown.map_err(|error| LayerError::Data(lower.len(), OpenError::Io(error)))?;
        }
        // A crash may have come before a layer below was marked as sealed.
        let unsealed = lower.iter().filter(|layer| layer.map.header().sealed.is_none()).cloned().collect();
        let unsealed = if read_only { Vec::new() } else { unsealed };
        let stack = Stack { lower, top, unsealed, index: Arc::new(IndexCache::default()) };
        let volume = Arc::new(Volume::new(stack, capacity));
        Ok(Self { volume, workers: Arc::default(), engine: EngineKind::default() })
    }

    /// The same volume, served by engines of this kind. Of the asynchronous kind, they have a few threads in common.
    pub fn with_engine(self, engine: EngineKind) -> Self {
        Self { engine, ..self }
    }

    fn asynchronous(&self, depth: u16) -> io::Result<LayeredEngine> {
        let mut workers = self.workers.lock().unwrap_or_else(PoisonError::into_inner);
        let workers = match &mut *workers {
            Some(workers) => Arc::clone(workers),
            none => Arc::clone(none.insert(Arc::new(Workers::start()?))),
        };
        LayeredEngine::new(Arc::clone(&self.volume), workers, depth)
    }

    /// Puts `top` on the volume's layers: an empty one, made with the volume's size and its top layer as the parent. What
    /// was written so far is a snapshot, which [`Layered::finish_seal`] makes durable.
    ///
    /// Nothing is copied or synced. Operations that change something wait for those that are under way, and no longer.
    pub fn seal(&self, top: Layer) -> io::Result<()> {
        let (data, map) = open_files(top, false).map_err(|(_, error)| io::Error::other(error))?;
        self.seal_over(data, map)
    }

    fn seal_over(&self, data: Box<dyn Storage>, map: Box<dyn Storage>) -> io::Result<()> {
        self.volume.seal(OpenLayer::open(data, map).map_err(io::Error::other)?)
    }

    /// Makes what was sealed durable, and marks it as sealed: others may use it when this returns. The volume goes on
    /// working meanwhile, and a flush covers what is sealed and what is on top of it.
    pub fn finish_seal(&self) -> io::Result<()> {
        self.volume.finish_seal()
    }

    /// Puts `merged`, which [`merge`] made of some of the volume's layers, in their place: `layers` are counted from the
    /// bottom. Operations that are under way finish with the old ones, which are closed when the last of them has.
    pub fn replace_layers(&self, layers: Range<usize>, merged: Layer) -> io::Result<()> {
        let (data, map) = open_files(merged, true).map_err(|(_, error)| io::Error::other(error))?;
        let merged = OpenLayer::open(data, map).map_err(io::Error::other)?;
        self.volume.replace_layers(layers, merged)
    }

    /// Why the volume takes no more writes, if that is so: once something could not be made durable, nobody knows what
    /// is. The layers have to be checked, and the volume opened anew.
    pub fn impairment(&self) -> Option<&str> {
        self.volume.impairment()
    }
}

/// Makes one layer of sealed `layers` that are on top of each other, from the bottom, in two empty files. It has the id of
/// the topmost of them, and takes their place in any stack. It is durable when this returns, as far as the files are; if
/// this does not return, they are no layer.
pub fn merge(layers: Vec<Layer>, into: Layer) -> io::Result<LayerDescription> {
    let invalid = |message: String| io::Error::new(io::ErrorKind::InvalidInput, message);
    let open = |layer| {
        let (data, map) = open_files(layer, true).map_err(|(_, error)| io::Error::other(error))?;
        OpenLayer::open(data, map).map_err(io::Error::other)
    };
    let layers = layers.into_iter().map(open).collect::<io::Result<Vec<_>>>()?;
    let headers: Vec<Header> = layers.iter().map(|layer| layer.map.header()).collect();
    let parent = headers.first().and_then(|lowest| lowest.parent);
    check_chain(&headers, parent).map_err(|error| invalid(error.to_string()))?;
    if headers.iter().any(|header| header.sealed.is_none()) {
        return Err(invalid("only sealed layers can be merged".to_owned()));
    }
    check_is_empty(&into)?;
    // Until there is something in them, they are not taken for files of a layer.
    into.data.set_len(data_size(headers.last().map_or(0, |header| header.size)))?;
    into.map.set_len(Slot::First.of_page(0))?;
    let (data, map) = open_files(into, false).map_err(|(_, error)| io::Error::other(error))?;
    let Header { id, parent, size, .. } = merge::write_merged(&layers, &*data, &*map)?;
    Ok(LayerDescription { id, parent, size })
}

/// Finds out what is wrong with layers, from the bottom, that nobody writes to meanwhile.
pub fn check(layers: Vec<Layer>) -> Report {
    let mut report = Report::default();
    let mut open = |(index, layer)| match open_files(layer, true) {
        Ok(files) => Some(files),
        Err((file, error)) => {
            let name = if file == LayerFile::Data { "data" } else { "map" };
            report.add(index, Problem::Unreadable(name, error.to_string()));
            None
        }
    };
    let files: Vec<_> = layers.into_iter().enumerate().map(&mut open).collect();
    check::inspect(&files, &mut report);
    report
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum LayerFile {
    Data,
    Map,
}

/// Takes a layer's files over, and locks them. The error says which of them cannot be used.
fn open_files(layer: Layer, read_only: bool) -> Result<check::Files, (LayerFile, OpenError)> {
    let open = |which, file| Disk::from_file(file, read_only).map_err(|error| (which, error));
    let (data, map) = (open(LayerFile::Data, layer.data)?, open(LayerFile::Map, layer.map)?);
    Ok((Box::new(Arc::new(data)), Box::new(Arc::new(map))))
}

fn check_is_empty(layer: &Layer) -> io::Result<()> {
    for file in [&layer.data, &layer.map] {
        if file.metadata()?.len() != 0 {
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, "the file of a new layer is not empty"));
        }
    }
    Ok(())
}

/// Checks that each layer belongs on top of the one below it, and the lowest on top of `parent`.
fn check_chain(headers: &[Header], parent: Option<Uuid>) -> Result<(), LayerError> {
    if headers.is_empty() {
        return Err(LayerError::None);
    }
    let mut below: Option<&Header> = None;
    for (index, header) in headers.iter().enumerate() {
        let found = below.map_or(parent, |below| Some(below.id));
        if header.parent != found {
            return Err(LayerError::Parent { index, id: header.id, parent: header.parent, found });
        }
        if below.is_some_and(|below| below.size > header.size) {
            return Err(LayerError::Size(index));
        }
        below = Some(header);
    }
    Ok(())
}

impl Backend for Layered {
    fn capacity(&self) -> u64 {
        self.volume.capacity()
    }

    fn is_read_only(&self) -> bool {
        self.volume.is_read_only()
    }

    fn resize(&self, size: u64) -> io::Result<()> {
        self.volume.resize(size)
    }

    fn engine(&self, depth: u16) -> io::Result<Box<dyn Engine>> {
        let synchronous = || {
            let volume = Arc::clone(&self.volume);
            Box::new(SynchronousEngine::new(move |operation| volume.run(operation)))
        };
        if self.engine == EngineKind::Synchronous {
            return Ok(synchronous());
        }
        match self.asynchronous(depth) {
            Ok(engine) => Ok(Box::new(engine)),
            Err(error) if self.engine == EngineKind::Auto => {
                tracing::debug!(%error, "no io_uring; requests to the volume are served one by one");
                Ok(synchronous())
            }
            Err(error) => Err(error),
        }
    }
}
