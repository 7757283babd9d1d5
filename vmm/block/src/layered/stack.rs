//! The layers of a volume, as they are on top of each other at some time, and where they have a block.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use super::format::{BLOCK_SIZE, REGION_BLOCKS, State, States};
use super::index::{Index, IndexCache};
use super::map::{FlushError, LayerMap, MAX_CHANGED, MapError, region_of};
use super::plan::Source;
use super::storage::Storage;

/// A layer with its files open.
pub struct OpenLayer {
    pub data: Box<dyn Storage>,
    pub map: LayerMap,
}

impl OpenLayer {
    pub fn open(data: Box<dyn Storage>, map: Box<dyn Storage>) -> Result<Self, MapError> {
        let map = LayerMap::open(map)?;
        if data.size()? == 0 && map.has_data()? {
            return Err(MapError::NoData);
        }
        Ok(Self { data, map })
    }

    /// Makes durable what was complete when this was called: the data, and then the map.
    pub fn flush(&self) -> Result<(), FlushError> {
        self.map.write_changes(&*self.data)
    }
}

/// What a volume consists of. It is never changed, but another takes its place; so whoever has one can finish.
#[derive(Clone)]
pub struct Stack {
    /// From the bottom.
    pub lower: Vec<Arc<OpenLayer>>,
    /// What takes what is written; none if nothing is.
    pub top: Option<Arc<OpenLayer>>,
    /// Those of `lower` that may not be durable yet.
    pub unsealed: Vec<Arc<OpenLayer>>,
    pub index: Arc<IndexCache>,
}

/// What the layers have of some regions.
pub struct View {
    first: u32,
    /// Most requests are about one region, which is not worth an allocation.
    region: Option<Region>,
    others: Vec<Region>,
}

/// What the top has of a region, if there is one, and the layers below.
type Region = (Option<Arc<States>>, Arc<Index>);

impl View {
    /// Where a block is that is in the regions.
    pub fn source(&self, block: u64) -> Source {
        let region = match region_of(block).checked_sub(self.first) {
            Some(0) => self.region.as_ref(),
            Some(other) => self.others.get(other as usize - 1),
            None => None,
        };
        let Some((top, lower)) = region else { return Source::Nothing };
        let block = block % REGION_BLOCKS;
        match top.as_ref().map_or(State::Absent, |states| states.get(block)) {
            State::Absent => lower.get(block),
            State::Data => Source::Top,
            State::Zero => Source::Zero,
        }
    }
}

impl Stack {
    /// What there is of the regions that `blocks` are in. It is read from the maps if need be.
    pub fn view(&self, blocks: &Range<u64>) -> io::Result<View> {
        let mut regions = regions_of(blocks);
        let first = regions.start;
        let view = |region| {
            let top = self.top.as_ref().map(|top| top.map.states(region)).transpose()?;
            let lower = self
                .index
                .get(region, self.lower.len(), |layer| self.lower(layer)?.map.states_once(region))?;
            io::Result::Ok((top, lower))
        };
        let region = regions.next().map(view).transpose()?;
        Ok(View { first, region, others: regions.map(view).collect::<io::Result<_>>()? })
    }

    /// The same if all of it is in memory.
    pub fn view_in_memory(&self, blocks: &Range<u64>) -> Option<View> {
        let mut regions = regions_of(blocks);
        let first = regions.start;
        let view = |region| {
            let top = match &self.top {
                Some(top) => Some(top.map.states_in_memory(region)?),
                None => None,
            };
            Some((top, self.index.known(region, self.lower.len())?))
        };
        let region = match regions.next() {
            Some(region) => Some(view(region)?),
            None => None,
        };
        Some(View { first, region, others: regions.map(view).collect::<Option<_>>()? })
    }

    /// How many regions of the top may be changed or about to be: of all layers that are written, there is a bound.
    pub fn room(&self) -> usize {
        let taken: usize = self.unsealed.iter().map(|layer| layer.map.pending()).sum();
        MAX_CHANGED.saturating_sub(taken)
    }

    /// Announces changes of the top in the regions of `blocks`, if there is room for them.
    pub fn promise(&self, blocks: &Range<u64>) -> Option<Promise> {
        let (top, regions) = (self.top.as_ref()?, regions_of(blocks));
        top.map.promise(regions.clone(), self.room()).then(|| Promise { layer: Arc::clone(top), regions })
    }

    /// The same, whether there is room or not.
    pub fn promise_anyway(&self, blocks: &Range<u64>) -> io::Result<Promise> {
        let top = self.top.as_ref().ok_or_else(read_only)?;
        let regions = regions_of(blocks);
        let mut promise = Promise { layer: Arc::clone(top), regions: regions.start..regions.start };
        for region in regions {
            // It may be forgotten again at once.
            while !top.map.promise(region..region + 1, usize::MAX) {
                top.map.states(region)?;
            }
            promise.regions.end = region + 1;
        }
        Ok(promise)
    }

    /// A layer below the top.
    pub fn lower(&self, layer: usize) -> io::Result<&OpenLayer> {
        let found = self.lower.get(layer);
        Ok(found.ok_or_else(|| io::Error::other("the map names a layer that does not exist"))?)
    }

    /// Where the data of blocks is that have some.
    pub fn data(&self, source: Source) -> io::Result<Option<&dyn Storage>> {
        match source {
            Source::Nothing | Source::Zero => Ok(None),
            Source::Top => Ok(Some(&*self.writable()?.data)),
            Source::Lower(layer) => Ok(Some(&*self.lower(layer.into())?.data)),
        }
    }

    /// The layer that takes what is written.
    pub fn writable(&self) -> io::Result<&OpenLayer> {
        self.top.as_deref().ok_or_else(read_only)
    }

    /// All layers, from the bottom.
    pub fn all(&self) -> impl DoubleEndedIterator<Item = &Arc<OpenLayer>> {
        self.lower.iter().chain(&self.top)
    }

    /// The layers that are not marked as sealed, from the bottom.
    pub fn written(&self) -> impl Iterator<Item = &Arc<OpenLayer>> {
        self.unsealed.iter().chain(&self.top)
    }
}

fn read_only() -> io::Error {
    io::Error::new(io::ErrorKind::PermissionDenied, "the disk is read-only")
}

/// Changes of a layer that are under way: its map has room for them as long as this exists.
pub struct Promise {
    layer: Arc<OpenLayer>,
    regions: Range<u32>,
}

impl Drop for Promise {
    fn drop(&mut self) {
        self.layer.map.end_promise(self.regions.clone());
    }
}

fn regions_of(blocks: &Range<u64>) -> Range<u32> {
    match blocks.end.checked_sub(1) {
        Some(last) if !blocks.is_empty() => region_of(blocks.start)..region_of(last) + 1,
        _ => 0..0,
    }
}

/// The size of a data file for a volume of `size` bytes: whole blocks.
pub fn data_size(size: u64) -> u64 {
    size.next_multiple_of(BLOCK_SIZE)
}
