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
//! - `merge`: several layers made one, `import`: a layer of a raw disk, `check`: what is wrong with layers
//! - `storage`: the files

mod check;
mod engine;
mod flusher;
mod format;
mod import;
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

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use uuid::Uuid;

pub use self::check::{Finding, Problem, Report, Summary};
use self::engine::LayeredEngine;
use self::format::{Header, Slot};
use self::index::IndexCache;
use self::map::{MapError, read_header_with};
use self::stack::{OpenLayer, Stack, data_size};
use self::storage::Storage;
use self::volume::Volume;
use self::workers::Workers;
use crate::raw::{Disk, SynchronousEngine};
use crate::{Backend, Engine, EngineKind, FileIdentity, FileUse, OpenError, Operation, Segments};

/// How long sealing waits for changes that are under way.
const SEAL_PATIENCE: Duration = Duration::from_secs(60);

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
    /// A layer below the top has to be marked as sealed first, and cannot be.
    #[error(
        "layer {0} is not marked as sealed; its files have to be opened for reading and writing for that"
    )]
    Unsealed(usize),
    /// Whoever writes to one layer would write to another.
    #[error("a file of layer {0} is there twice")]
    Twice(usize),
    /// A layer that was sealed takes no writes.
    #[error("the top layer is sealed: it takes no writes")]
    Sealed,
}

impl LayerError {
    /// Whether somebody else has a file of a layer.
    pub fn is_locked(&self) -> bool {
        matches!(self, Self::Data(_, OpenError::Locked) | Self::MapFile(_, OpenError::Locked))
    }
}

/// The most bytes that the map file of a layer has, of a volume of `size` bytes.
pub fn map_size(size: u64) -> u64 {
    let regions = size.div_ceil(format::REGION_SIZE);
    Slot::First.of_page(u32::try_from(regions).unwrap_or(u32::MAX))
}

/// Why volumes got no new tops: nothing has changed.
#[derive(Debug, thiserror::Error)]
#[error("{error}")]
pub struct SealError {
    /// Which of the volumes is to blame.
    pub volume: usize,
    /// What is wrong. [`io::ErrorKind::TimedOut`] may be tried again.
    pub error: io::Error,
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
    // Nothing is in it that could be lost: opening makes a data file as long as it has to be.
    layer.data.set_len(data_size(size))?;
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
    /// Files are locked: those of the top exclusively, all others shared. A layer below that a crash has left without the mark
    /// of a sealed one is locked exclusively too, and has to be opened for writing: [`Layered::finish_seal`] marks it.
    pub fn open(layers: Vec<Layer>, read_only: bool) -> Result<Self, LayerError> {
        let count = layers.len();
        Self::open_with(layers, read_only, |index, layer| {
            let is_written = !read_only && (index + 1 == count || !is_sealed(&layer.map));
            open_files(layer, if is_written { Access::Write } else { Access::Read })
        })
    }

    /// Opens a volume of `layers`, from the bottom, to be read only, whoever has locked them: the caller knows that nobody
    /// writes to them as long as this is open. What a volume that is open elsewhere has not flushed is not there.
    pub fn open_still(layers: Vec<Layer>) -> Result<Self, LayerError> {
        Self::open_with(layers, true, |_, layer| open_files(layer, Access::Still))
    }

    fn open_with(
        layers: Vec<Layer>,
        read_only: bool,
        open: impl Fn(usize, Layer) -> Result<check::Files, (LayerFile, OpenError)>,
    ) -> Result<Self, LayerError> {
        let count = layers.len();
        let mut identities = BTreeMap::new();
        let mut open = |(index, layer): (usize, Layer)| {
            for (which, file) in [(LayerFile::Data, &layer.data), (LayerFile::Map, &layer.map)] {
                let identity = FileIdentity::of(file).map_err(|error| which.cannot(index, error.into()))?;
                if identities.insert(identity, index).is_some() {
                    return Err(LayerError::Twice(index));
                }
            }
            open(index, layer).map_err(|(file, error)| match error {
                // Nobody would want to write to it otherwise.
                OpenError::Access { read_only: false } if index + 1 < count => LayerError::Unsealed(index),
                error => file.cannot(index, error),
            })
        };
        let files = layers.into_iter().enumerate().map(&mut open).collect::<Result<Vec<_>, LayerError>>()?;
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
        // A crash may have come before a layer below was marked as sealed.
        let unsealed = lower.iter().filter(|layer| layer.map.header().sealed.is_none()).cloned().collect();
        let unsealed: Vec<_> = if read_only { Vec::new() } else { unsealed };
        if let Some(top) = &top {
            if headers.last().is_some_and(|header| header.sealed.is_some()) {
                return Err(LayerError::Sealed);
            }
            // A crash may have come between growing the map and the data.
            let grown = top.data.grow(data_size(capacity));
            grown.map_err(|error| LayerError::Data(lower.len(), OpenError::Io(error)))?;
        }
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
        let seal = self.volume.prepare_seal(vec![self.open_new(top, Access::Write)?])?;
        volume::seal(vec![seal], Instant::now() + SEAL_PATIENCE).map_err(|_| is_busy())
    }

    #[cfg(test)]
    fn seal_over(&self, data: Box<dyn Storage>, map: Box<dyn Storage>) -> io::Result<()> {
        let seal = self.volume.prepare_seal(vec![OpenLayer::open(data, map).map_err(io::Error::other)?])?;
        volume::seal(vec![seal], Instant::now() + SEAL_PATIENCE).map_err(|_| is_busy())
    }

    /// Opens a layer that is to become one of the volume's.
    fn open_new(&self, layer: Layer, access: Access) -> io::Result<OpenLayer> {
        let there = self.files();
        for file in [&layer.data, &layer.map] {
            let identity = FileIdentity::of(file)?;
            if there.iter().any(|other| other.file == identity) {
                return Err(io::Error::other("its file is in use: it is one of the volume's already"));
            }
        }
        let name = |(file, error): (LayerFile, OpenError)| {
            io::Error::other(format!("the new layer's {} file cannot be used: {error}", file.name()))
        };
        let (data, map) = open_files(layer, access).map_err(name)?;
        let opened = OpenLayer::open(data, map).map_err(io::Error::other)?;
        if matches!(access, Access::Write) {
            // It may be one that was made before a crash.
            opened.data.grow(data_size(opened.map.header().size))?;
        }
        Ok(opened)
    }

    /// The top layer: who it is.
    pub fn top(&self) -> Uuid {
        let stack = self.volume.stack();
        stack.all().next_back().map_or(Uuid::nil(), |layer| layer.map.id())
    }

    /// How many layers there are.
    pub fn layers(&self) -> usize {
        self.volume.stack().all().count()
    }

    /// Their names, from the bottom.
    pub fn layer_ids(&self) -> Vec<Uuid> {
        self.volume.stack().all().map(|layer| layer.map.id()).collect()
    }

    /// How many layers below the top are not marked as sealed: [`Layered::finish_seal`] does that.
    pub fn unsealed(&self) -> usize {
        self.volume.stack().unsealed.len()
    }

    /// Fills `buffer` from `offset` on.
    pub fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.volume.read_at(buffer, offset)
    }

    /// How many bytes of memory the volume takes for what is where, besides what engines and their threads do.
    pub fn memory(&self) -> usize {
        self.volume.memory()
    }

    /// Makes everything durable that was complete when this was called.
    pub fn flush(&self) -> io::Result<()> {
        self.volume.run(Operation::Flush)
    }

    /// Makes what was sealed durable, and marks it as sealed: others may use it when this returns. The volume goes on
    /// working meanwhile, and a flush covers what is sealed and what is on top of it.
    pub fn finish_seal(&self) -> io::Result<()> {
        self.volume.finish_seal()
    }

    /// Puts `merged`, which [`merge`] made of some of the volume's layers, in their place: `layers` are counted from the
    /// bottom. Operations that are under way finish with the old ones, which are closed when the last of them has.
    pub fn replace_layers(&self, layers: Range<usize>, merged: Layer) -> io::Result<()> {
        self.volume.replace_layers(layers, self.open_new(merged, Access::Read)?)
    }

    /// Writes `data` from `offset` on. For who writes a little and has no queue.
    pub fn write_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        let mut data = data.to_vec();
        let piece = libc::iovec { iov_base: data.as_mut_ptr().cast(), iov_len: data.len() };
        // SAFETY: the copy is there until this returns, and the operation is over then: nobody keeps the segments.
        let segments = unsafe { Segments::new([piece], Arc::new(())) };
        self.volume.run(Operation::Write { offset, segments })
    }

    /// Why the volume takes no more writes, if that is so: once something could not be made durable, nobody knows what
    /// is. The layers have to be checked, and the volume opened anew.
    pub fn impairment(&self) -> Option<&str> {
        self.volume.impairment()
    }
}

/// Puts new, empty tops on volumes, from the lowest, at one point of time for all of them: nothing that anybody has seen
/// complete before is above them, and nothing that was begun after that is below. Tops that a volume has already are skipped,
/// so that the same can be asked for again. Each volume is there once.
///
/// Nothing is copied or synced. Changes wait for those that are under way on all of the volumes, but not longer than
/// `patience`. All or nothing is done.
pub fn seal_together(volumes: Vec<(&Layered, Vec<Layer>)>, patience: Duration) -> Result<(), SealError> {
    let mut seals = Vec::new();
    let mut indexes = Vec::new();
    for (index, (layered, tops)) in volumes.into_iter().enumerate() {
        let prepare = || {
            let tops = new_tops(layered.top(), tops)?;
            let open = |top| layered.open_new(top, Access::Write);
            let tops = tops.into_iter().map(open).collect::<io::Result<Vec<_>>>()?;
            if tops.is_empty() { Ok(None) } else { layered.volume.prepare_seal(tops).map(Some) }
        };
        if let Some(seal) = prepare().map_err(|error| SealError { volume: index, error })? {
            seals.push(seal);
            indexes.push(index);
        }
    }
    volume::seal(seals, Instant::now() + patience).map_err(|at| {
        let volume = indexes.get(at).copied().unwrap_or_default();
        SealError { volume, error: is_busy() }
    })
}

/// Those of `tops` that are not on the volume whose top is `present`.
fn new_tops(present: Uuid, mut tops: Vec<Layer>) -> io::Result<Vec<Layer>> {
    for at in (0..tops.len()).rev() {
        if let Some(top) = tops.get(at)
            && description(&top.map)?.0.id == present
        {
            tops.drain(..=at);
            break;
        }
    }
    Ok(tops)
}

fn is_busy() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, "a request that is under way takes too long; try again")
}

/// What the layer is whose map this is, and whether it is sealed. Only the header is read, and nothing is locked.
pub fn description(map: &File) -> io::Result<(LayerDescription, bool)> {
    let (Header { id, parent, size, sealed, .. }, _) = read_header_with(|slot| {
        let mut bytes = [0; format::PAGE_SIZE];
        storage::read_file(map, &mut bytes, slot.of_header())?;
        Ok(Header::decode(&bytes))
    })
    .map_err(|error| match error {
        MapError::Io(error) => error,
        error => io::Error::new(io::ErrorKind::InvalidData, error.to_string()),
    })?;
    Ok((LayerDescription { id, parent, size }, sealed.is_some()))
}

/// Whether a layer is marked as sealed, as far as can be told.
fn is_sealed(map: &File) -> bool {
    // What cannot be read is an error elsewhere.
    description(map).map_or(true, |(_, is_sealed)| is_sealed)
}

/// Makes a sealed layer of a data file that has its content already, as a raw disk: it may be shorter than the volume, and
/// what is missing, or a hole, is zeroes. The map file is empty. Such a layer is on top of nothing.
///
/// The data is not read; the file system is asked where there is some. The layer is durable when this returns, as far as the
/// files are; if this does not return, they are no layer.
pub fn import(layer: Layer, description: &LayerDescription) -> io::Result<()> {
    let LayerDescription { id, parent, size } = *description;
    let invalid = |message: String| Err(io::Error::new(io::ErrorKind::InvalidInput, message));
    if !format::is_size(size) || id.is_nil() || parent.is_some() {
        return invalid(format!("there can be no layer {id} of {size} bytes that is on top of nothing"));
    }
    if layer.map.metadata()?.len() != 0 {
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, "the map file of a new layer is not empty"));
    }
    let metadata = layer.data.metadata()?;
    if !metadata.is_file() {
        return invalid("the data of a layer is a file".to_owned());
    }
    if metadata.len() > data_size(size) {
        return invalid(format!(
            "{} bytes of data are more than a volume of {size} bytes has",
            metadata.len()
        ));
    }
    // Until there is something in it, it is not taken for a map.
    layer.map.set_len(Slot::First.of_page(0))?;
    // What is behind the volume's end is zeroes.
    layer.data.set_len(metadata.len().min(size))?;
    layer.data.set_len(data_size(size))?;
    let (data, map) = open_files(layer, Access::Write).map_err(|(_, error)| io::Error::other(error))?;
    import::write_imported(&*data, &*map, id, size)
}

/// Makes one layer of sealed `layers` that are on top of each other, from the bottom, in two empty files. It has the id of
/// the topmost of them, and takes their place in any stack. It is durable when this returns, as far as the files are; if
/// this does not return, they are no layer.
///
/// `go_on` is told again and again how many bytes were copied since it was last asked, and says whether to go on. It may
/// take its time, to bound how fast that is.
pub fn merge(
    layers: Vec<Layer>,
    into: Layer,
    mut go_on: impl FnMut(u64) -> bool,
) -> io::Result<LayerDescription> {
    let invalid = |message: String| io::Error::new(io::ErrorKind::InvalidInput, message);
    let open = |layer| {
        let (data, map) = open_files(layer, Access::Read).map_err(|(_, error)| io::Error::other(error))?;
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
    let (data, map) = open_files(into, Access::Write).map_err(|(_, error)| io::Error::other(error))?;
    let Header { id, parent, size, .. } = merge::write_merged(&layers, &*data, &*map, &mut go_on)?;
    Ok(LayerDescription { id, parent, size })
}

/// Finds out what is wrong with layers, from the bottom, that nobody writes to meanwhile.
pub fn check(layers: Vec<Layer>) -> Report {
    check_opened(layers.into_iter().map(Ok).collect())
}

/// The same for layers of which some may not be there, for these reasons.
pub fn check_opened(layers: Vec<io::Result<Layer>>) -> Report {
    let mut report = Report::default();
    let mut open = |(index, layer): (usize, io::Result<Layer>)| {
        let problem = match layer {
            Ok(layer) => match open_files(layer, Access::Read) {
                Ok(files) => return Some(files),
                Err((file, error)) => Problem::Unreadable(file.name(), error.to_string()),
            },
            Err(error) => Problem::Missing(error.to_string()),
        };
        report.add(index, problem);
        None
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

impl LayerFile {
    fn name(self) -> &'static str {
        match self {
            Self::Data => "data",
            Self::Map => "map",
        }
    }

    fn cannot(self, layer: usize, error: OpenError) -> LayerError {
        match self {
            Self::Data => LayerError::Data(layer, error),
            Self::Map => LayerError::MapFile(layer, error),
        }
    }
}

/// What files are opened for.
#[derive(Clone, Copy, Debug)]
enum Access {
    /// To be read, while nobody writes to them.
    Read,
    /// To be written, by nobody else.
    Write,
    /// To be read, whoever has them.
    Still,
}

/// Takes a layer's files over, and locks them. The error says which of them cannot be used.
fn open_files(layer: Layer, access: Access) -> Result<check::Files, (LayerFile, OpenError)> {
    let take = |file| match access {
        Access::Read => Disk::from_file(file, true),
        Access::Write => Disk::from_file(file, false),
        Access::Still => Disk::from_still_file(file),
    };
    let open = |which, file| take(file).map_err(|error| (which, error));
    // A crash may have taken the length of a data file that nothing was ever written to. What the map says of it is looked
    // at when there is one.
    let has_map = layer.map.metadata().is_ok_and(|metadata| metadata.len() > 0);
    let data = open(LayerFile::Data, layer.data)?;
    if !has_map {
        data.expect_content().map_err(|error| (LayerFile::Data, error))?;
    }
    let map = open(LayerFile::Map, layer.map)?;
    map.expect_content().map_err(|error| (LayerFile::Map, error))?;
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

    fn files(&self) -> Vec<FileUse> {
        let stack = self.volume.stack();
        let mut files = Vec::new();
        for layer in stack.all() {
            let is_written = stack.written().any(|written| Arc::ptr_eq(written, layer));
            let disks = [layer.data.disk(), layer.map.disk()].into_iter().flatten();
            files.extend(disks.map(|disk| FileUse { file: disk.identity(), is_written }));
        }
        files
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
