//! A layer's map: what of it is in memory, and how it gets to its file and back.
//!
//! States are read when they are first asked for. What is changed stays in memory until [`LayerMap::write_changes`] has
//! made it durable; the rest may be forgotten at any time.

use std::cmp::Ordering;
use std::collections::VecDeque;
use std::io;
use std::ops::Range;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};

use uuid::Uuid;

use super::format::{
    Damage, Header, PAGE_SIZE, Page, PageBytes, REGION_BLOCKS, Slot, State, States, regions,
};
use super::region_map::RegionMap;
use super::storage::Storage;

/// How many regions may be changed in memory, and not on disk: 384 KiB, and as much again while that is being written.
/// Whoever is about to change more flushes first.
pub const MAX_CHANGED: usize = 192;
/// Bytes of regions that are kept and could be forgotten.
pub const MAX_KEPT: usize = 2 << 20;

/// Most of a large volume is regions of which there is nothing, or all. They have their states in common.
static UNIFORM: LazyLock<[Arc<States>; 2]> =
    LazyLock::new(|| [State::Absent, State::Data].map(|state| Arc::new(States::all(state))));

pub struct LayerMap {
    file: Box<dyn Storage>,
    id: Uuid,
    inner: Mutex<Inner>,
    /// Held while a region is read that is not in memory, so that nobody who finds its region there waits for that. What is
    /// not in memory does not change on disk.
    loading: Mutex<()>,
}

struct Inner {
    header: Header,
    header_slot: Slot,
    /// Of the newest page that was seen.
    generation: u64,
    regions: RegionMap<Region>,
    /// What may be forgotten, and some of what may not, in the order of its coming.
    order: VecDeque<u32>,
    /// How much memory the regions take.
    bytes: usize,
    changed: usize,
    /// What is in the file was durable at some time since it was opened. Else the newest page of a region may be one that
    /// an earlier process wrote and nobody synced, and the other slot is all that a crash would leave.
    is_settled: bool,
}

/// A region's states in memory.
struct Region {
    states: Arc<States>,
    /// Where the newest page is that is known to be durable, or could be.
    slot: Slot,
    /// They are not as in the file.
    is_changed: bool,
    /// They are being written.
    is_written: bool,
    /// They were asked for since it was last to be forgotten.
    is_used: bool,
}

impl Region {
    /// How much memory it takes.
    fn bytes(&self) -> usize {
        let is_shared = UNIFORM.iter().any(|uniform| Arc::ptr_eq(uniform, &self.states));
        2 * size_of::<Self>() + if is_shared { 0 } else { size_of::<States>() }
    }
}

/// What the file has of a region.
struct Found {
    page: Option<Page>,
    slot: Slot,
    /// The other slot holds half a page.
    is_torn: bool,
}

/// Changes on their way to the disk.
struct Changes {
    generation: u64,
    pages: Vec<(u32, Slot, Arc<States>)>,
    needs_settling: bool,
}

/// Why a map's file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum MapError {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("the file holds no map: it has no header")]
    Empty,
    #[error("neither of its headers can be used: {0}")]
    Header(Damage),
}

/// How far a flush came.
#[derive(Debug)]
pub enum FlushError {
    /// Something could not be written; it may be tried again.
    Write(io::Error),
    /// Nobody knows what is durable, and trying again would not tell.
    Sync(io::Error),
}

impl LayerMap {
    /// Reads the header, and nothing else.
    pub fn open(file: Box<dyn Storage>) -> Result<Self, MapError> {
        let (header, header_slot) = read_header(&*file)?;
        let inner = Inner {
            generation: header.sealed.unwrap_or(0),
            header_slot,
            regions: RegionMap::default(),
            order: VecDeque::new(),
            bytes: 0,
            changed: 0,
            is_settled: false,
            header: header.clone(),
        };
        Ok(Self { file, id: header.id, inner: Mutex::new(inner), loading: Mutex::default() })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn header(&self) -> Header {
        self.lock().header.clone()
    }

    /// Whether so much is changed that a flush has to come before more is.
    pub fn is_full(&self) -> bool {
        self.lock().changed >= MAX_CHANGED
    }

    /// The states of a region's blocks if they are in memory.
    pub fn states_in_memory(&self, region: u32) -> Option<Arc<States>> {
        self.lock().known(region)
    }

    /// The states of a region's blocks, which are kept in memory.
    pub fn states(&self, region: u32) -> io::Result<Arc<States>> {
        if let Some(states) = self.states_in_memory(region) {
            return Ok(states);
        }
        let _one_at_a_time = self.loading.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(states) = self.states_in_memory(region) {
            return Ok(states);
        }
        let found = self.find(region)?;
        Ok(self.lock().keep(region, found))
    }

    /// The states of a region's blocks, for somebody who will not ask again.
    pub fn states_once(&self, region: u32) -> io::Result<Arc<States>> {
        match self.states_in_memory(region) {
            Some(states) => Ok(states),
            None => Ok(Arc::new(self.find(region)?.page.unwrap_or_default().states)),
        }
    }

    /// Reads what the file has of a region.
    fn find(&self, region: u32) -> io::Result<Found> {
        let header = self.header();
        if region >= regions(header.size) {
            return Ok(Found { page: None, slot: Slot::Second, is_torn: false });
        }
        let slots = read_slots(&*self.file, &header, region)?;
        let is_torn = slots.iter().any(Result::is_err);
        let (page, slot) = newest(slots, &header).map_err(|damage| {
            let message = format!("layer {}, region {region}: its page cannot be used: {damage}", header.id);
            io::Error::new(io::ErrorKind::InvalidData, message)
        })?;
        Ok(Found { page, slot, is_torn })
    }

    /// Changes the states of blocks.
    pub fn set(&self, blocks: Range<u64>, state: State) -> io::Result<()> {
        let mut next = blocks.start;
        while next < blocks.end {
            let region = region_of(next);
            let end = blocks.end.min((u64::from(region) + 1) * REGION_BLOCKS);
            let change = |states: &mut States| {
                (next..end).for_each(|block| states.set(block % REGION_BLOCKS, state));
            };
            // Most regions are still there from the planning.
            while !self.lock().change(region, change) {
                self.states(region)?;
            }
            next = end;
        }
        Ok(())
    }

    /// Makes `data` durable, and then all changes that were made before this was called.
    pub fn write_changes(&self, data: &dyn Storage) -> Result<(), FlushError> {
        // Only what was complete before the data is synced may be said to be there.
        let changes = self.lock().begin_writing();
        let result = self.write(data, &changes);
        self.lock().end_writing(&changes, result.is_ok());
        result
    }

    fn write(&self, data: &dyn Storage, changes: &Changes) -> Result<(), FlushError> {
        data.sync().map_err(FlushError::Sync)?;
        if changes.needs_settling {
            self.file.sync().map_err(FlushError::Sync)?;
        }
        if changes.pages.is_empty() {
            return Ok(());
        }
        for (region, slot, states) in &changes.pages {
            let page = Page { generation: changes.generation, states: States::clone(states) };
            let bytes = page.encode(self.id, *region);
            self.file.write_at(&bytes, slot.other().of_page(*region)).map_err(FlushError::Write)?;
        }
        self.file.sync().map_err(FlushError::Sync)
    }

    /// Makes durable what is in the file.
    pub fn settle(&self) -> Result<(), FlushError> {
        self.file.sync().map_err(FlushError::Sync)
    }

    /// Makes the volume `size` bytes large, durably.
    pub fn grow(&self, size: u64) -> Result<(), FlushError> {
        self.write_header(|header| header.size = size)
    }

    /// Marks the layer as one that does not change any more. All of it has to be durable.
    ///
    /// Pages that a crash tore are written anew first, so that every page of a sealed layer is whole.
    pub fn seal(&self, data: &dyn Storage) -> Result<(), FlushError> {
        let mut next = 0;
        while let Some(region) = self.next_region(next).map_err(FlushError::Write)? {
            next = region + 1;
            if self.lock().regions.contains_key(&region) {
                continue;
            }
            let found = self.find(region).map_err(FlushError::Write)?;
            if found.is_torn {
                self.states(region).map_err(FlushError::Write)?;
            }
            self.lock().see(&found);
            if self.is_full() {
                self.write_changes(data)?;
            }
        }
        self.write_changes(data)?;
        let generation = self.lock().generation;
        self.write_header(|header| header.sealed = Some(generation))?;
        let mut inner = self.lock();
        (inner.regions, inner.order, inner.bytes) = Default::default();
        Ok(())
    }

    /// The first region from `region` on of which the file has something.
    pub fn next_region(&self, region: u32) -> io::Result<Option<u32>> {
        let count = regions(self.header().size);
        let Some(offset) = self.file.next_data(Slot::First.of_page(region))? else { return Ok(None) };
        Ok(Slot::region_at(offset).filter(|region| *region < count))
    }

    fn write_header(&self, change: impl FnOnce(&mut Header)) -> Result<(), FlushError> {
        // One of the two that are there has to survive.
        self.file.sync().map_err(FlushError::Sync)?;
        let (mut header, slot) = {
            let inner = self.lock();
            (inner.header.clone(), inner.header_slot.other())
        };
        header.generation += 1;
        change(&mut header);
        self.file.write_at(&header.encode(), slot.of_header()).map_err(FlushError::Write)?;
        self.file.sync().map_err(FlushError::Sync)?;
        let mut inner = self.lock();
        (inner.header, inner.header_slot) = (header, slot);
        Ok(())
    }

    /// How many bytes of regions are in memory, and how many of them cannot be forgotten.
    #[cfg(test)]
    pub fn in_memory(&self) -> (usize, usize) {
        let inner = self.lock();
        let bytes = |region: &&Region| region.bytes();
        let all: usize = inner.regions.values().map(|region| region.bytes()).sum();
        assert_eq!(all, inner.bytes);
        let fixed = inner.regions.values().filter(|region| region.is_changed || region.is_written);
        (all, fixed.map(|region| bytes(&region)).sum())
    }

    /// Lets others read the layer too.
    pub fn share(&self) -> io::Result<()> {
        self.file.share()
    }
}

impl Inner {
    fn known(&mut self, region: u32) -> Option<Arc<States>> {
        let region = self.regions.get_mut(&region)?;
        region.is_used = true;
        Some(Arc::clone(&region.states))
    }

    fn see(&mut self, found: &Found) {
        self.generation = self.generation.max(found.page.as_ref().map_or(0, |page| page.generation));
    }

    /// Keeps what the file has of a region.
    fn keep(&mut self, region: u32, found: Found) -> Arc<States> {
        self.see(&found);
        self.forget();
        let Found { page, slot, is_torn } = found;
        let states = page.unwrap_or_default().states;
        let uniform = UNIFORM.iter().find(|uniform| ***uniform == states);
        let states = uniform.map_or_else(|| Arc::new(states), Arc::clone);
        let kept = Region {
            states: Arc::clone(&states),
            slot,
            is_changed: is_torn,
            is_written: false,
            is_used: true,
        };
        self.changed += usize::from(is_torn);
        self.bytes += kept.bytes();
        self.regions.insert(region, kept);
        self.order.push_back(region);
        states
    }

    /// Changes the states of a region. False if it is not in memory.
    fn change(&mut self, region: u32, change: impl FnOnce(&mut States)) -> bool {
        let Some(region) = self.regions.get_mut(&region) else { return false };
        self.bytes -= region.bytes();
        change(Arc::make_mut(&mut region.states));
        self.bytes += region.bytes();
        self.changed += usize::from(!region.is_changed);
        (region.is_changed, region.is_used) = (true, true);
        true
    }

    /// Makes room for one more region.
    fn forget(&mut self) {
        // Everything gets a second chance at most.
        for _ in 0..2 * self.order.len() {
            if self.bytes < MAX_KEPT {
                return;
            }
            let Some(oldest) = self.order.pop_front() else { return };
            match self.regions.get_mut(&oldest) {
                None => {}
                Some(region) if region.is_changed || region.is_written || region.is_used => {
                    region.is_used = false;
                    self.order.push_back(oldest);
                }
                Some(region) => {
                    self.bytes -= region.bytes();
                    self.regions.remove(&oldest);
                }
            }
        }
    }

    fn begin_writing(&mut self) -> Changes {
        let mut pages = Vec::with_capacity(self.changed);
        for (number, region) in &mut self.regions {
            if std::mem::take(&mut region.is_changed) {
                region.is_written = true;
                pages.push((*number, region.slot, Arc::clone(&region.states)));
            }
        }
        self.changed = 0;
        self.generation += u64::from(!pages.is_empty());
        Changes { generation: self.generation, pages, needs_settling: !self.is_settled }
    }

    fn end_writing(&mut self, changes: &Changes, is_done: bool) {
        self.is_settled |= is_done;
        for (region, ..) in &changes.pages {
            let Some(region) = self.regions.get_mut(region) else { continue };
            region.is_written = false;
            if is_done {
                region.slot = region.slot.other();
            } else if !std::mem::replace(&mut region.is_changed, true) {
                self.changed += 1;
            }
        }
    }
}

/// The region that a block is in.
pub fn region_of(block: u64) -> u32 {
    // No volume has more than 2^21 regions.
    (block / REGION_BLOCKS) as u32
}

/// The header in a slot. None if nothing was ever written there.
pub fn read_header_slot(file: &dyn Storage, slot: Slot) -> io::Result<Result<Option<Header>, Damage>> {
    Ok(Header::decode(&read_page(file, slot.of_header())?))
}

/// The header that counts, and its slot.
pub fn read_header(file: &dyn Storage) -> Result<(Header, Slot), MapError> {
    let mut found: Option<(Header, Slot)> = None;
    let mut wrong = None;
    for slot in Slot::BOTH {
        match read_header_slot(file, slot)? {
            Ok(Some(header)) => {
                if found.as_ref().is_none_or(|(other, _)| header.generation > other.generation) {
                    found = Some((header, slot));
                }
            }
            Ok(None) => {}
            Err(damage) => wrong = Some(damage),
        }
    }
    match (found, wrong) {
        // A newer version's header is not half a write.
        (_, Some(damage)) if damage != Damage::Checksum => Err(MapError::Header(damage)),
        (Some(found), _) => Ok(found),
        (None, Some(damage)) => Err(MapError::Header(damage)),
        (None, None) => Err(MapError::Empty),
    }
}

/// What is in a slot of a region: none if nothing was ever written there.
type SlotPage = Result<Option<Page>, Damage>;

/// What is in both slots of a region.
pub fn read_slots(file: &dyn Storage, header: &Header, region: u32) -> io::Result<[SlotPage; 2]> {
    let read = |slot: Slot| {
        let bytes = read_page(file, slot.of_page(region))?;
        io::Result::Ok(Page::decode(&bytes, header, region))
    };
    Ok([read(Slot::First)?, read(Slot::Second)?])
}

/// The page that counts, of those in both slots, and its slot.
///
/// A layer that is written to may have been torn by a crash, in one of the slots, and then it is the other that counts. A
/// sealed one has only whole pages.
pub fn newest(slots: [SlotPage; 2], header: &Header) -> Result<(Option<Page>, Slot), Damage> {
    match slots {
        [Ok(None), Ok(None)] => Ok((None, Slot::Second)),
        [Ok(first), Ok(second)] => {
            let generation = |page: &Option<Page>| page.as_ref().map_or(0, |page| page.generation);
            match generation(&first).cmp(&generation(&second)) {
                Ordering::Greater => Ok((first, Slot::First)),
                Ordering::Less => Ok((second, Slot::Second)),
                Ordering::Equal => Err(Damage::Values),
            }
        }
        [Err(Damage::Checksum), Ok(page)] if header.sealed.is_none() => Ok((page, Slot::Second)),
        [Ok(page), Err(Damage::Checksum)] if header.sealed.is_none() => Ok((page, Slot::First)),
        [Err(damage), _] | [_, Err(damage)] => Err(damage),
    }
}

fn read_page(file: &dyn Storage, offset: u64) -> io::Result<PageBytes> {
    let mut bytes = [0; PAGE_SIZE];
    // Behind the end nothing was ever written.
    let _ = file.read_at(&mut bytes, offset)?;
    Ok(bytes)
}
