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
use crate::raw::Disk;

/// How many regions of a volume may be changed in memory, and not on disk, or are about to be: 400 KiB, and as much again
/// while others are being written. Whoever is about to change more flushes first.
pub const MAX_CHANGED: usize = 192;
/// Bytes of regions that are kept and could be forgotten.
pub const MAX_KEPT: usize = 384 << 10;
/// What the allocator and the counts of a shared value take, in bytes.
const SHARED: usize = 32;

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
    /// How many of them are changed, or about to be.
    pending: usize,
    /// What is being written, which may have changed since.
    writing: Option<Arc<Vec<Written>>>,
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
    /// How many requests are under way that are going to change them.
    promised: u32,
}

impl Region {
    /// How much memory it takes, with its places in the map and the order, which may be half empty.
    fn bytes(&self) -> usize {
        let is_shared = UNIFORM.iter().any(|uniform| Arc::ptr_eq(uniform, &self.states));
        2 * size_of::<(u32, Self, u32)>() + if is_shared { 0 } else { size_of::<States>() + SHARED }
    }

    /// Whether it is changed, or about to be.
    fn is_pending(&self) -> bool {
        self.is_changed || self.promised > 0
    }

    /// Whether the file has all that is known of it, and will.
    fn is_clean(&self) -> bool {
        !self.is_pending() && !self.is_written
    }
}

/// A region on its way to the disk: where it was so far, and what it is.
type Written = (u32, Slot, Arc<States>);

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
    pages: Arc<Vec<Written>>,
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
    #[error("it says that there is data, and the data file is empty: that was cut off, or is another one")]
    NoData,
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
            pending: 0,
            writing: None,
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

    /// Whose map it is.
    pub fn id(&self) -> Uuid {
        self.id
    }

    /// The file itself, if it is one.
    pub fn disk(&self) -> Option<&Arc<Disk>> {
        self.file.disk()
    }

    /// How many regions are changed, or about to be.
    pub fn pending(&self) -> usize {
        self.lock().pending
    }

    /// Announces a change of `regions`, which stay in memory until [`LayerMap::end_promise`]. False, and nothing is
    /// announced, if more than `room` would be pending then, or if they are not in memory.
    pub fn promise(&self, regions: Range<u32>, room: usize) -> bool {
        let mut inner = self.lock();
        let mut more = 0;
        for region in regions.clone() {
            match inner.regions.get(&region) {
                Some(region) => more += usize::from(!region.is_pending()),
                None => return false,
            }
        }
        if more > 0 && inner.pending + more > room {
            return false;
        }
        for region in regions {
            inner.update(region, |region| region.promised = region.promised.saturating_add(1));
        }
        true
    }

    /// The change is made, or never will be.
    pub fn end_promise(&self, regions: Range<u32>) {
        let mut inner = self.lock();
        for region in regions {
            inner.update(region, |region| region.promised = region.promised.saturating_sub(1));
        }
    }

    /// Forgets all that the file has. The layer is not the top any more.
    pub fn shrink(&self) {
        let mut inner = self.lock();
        let Inner { regions, order, bytes, .. } = &mut *inner;
        regions.retain(|_, region| !region.is_clean());
        order.retain(|region| regions.contains_key(region));
        regions.shrink_to_fit();
        order.shrink_to_fit();
        *bytes = regions.values().map(Region::bytes).sum();
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
        for (region, slot, states) in &*changes.pages {
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
            if self.pending() >= MAX_CHANGED {
                self.write_changes(data)?;
            }
        }
        self.write_changes(data)?;
        let generation = self.lock().generation;
        self.write_header(|header| header.sealed = Some(generation))?;
        let mut inner = self.lock();
        (inner.regions, inner.order, inner.bytes, inner.pending) = Default::default();
        Ok(())
    }

    /// The first region from `region` on of which the file has something.
    pub fn next_region(&self, region: u32) -> io::Result<Option<u32>> {
        let count = regions(self.header().size);
        let Some(offset) = self.file.next_data(Slot::First.of_page(region))? else { return Ok(None) };
        Ok(Slot::region_at(offset).filter(|region| *region < count))
    }

    /// Whether any block has data.
    pub fn has_data(&self) -> io::Result<bool> {
        let mut next = 0;
        while let Some(region) = self.next_region(next)? {
            if self.states_once(region)?.has_data() {
                return Ok(true);
            }
            next = region + 1;
        }
        Ok(false)
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

    /// How many bytes of memory it takes.
    pub fn memory(&self) -> usize {
        let inner = self.lock();
        let writing = inner.writing.iter().flat_map(|pages| pages.iter());
        let writing = writing.map(|(region, _, states)| {
            let known = inner.regions.get(region).map(|region| &region.states);
            // What has changed meanwhile is there twice.
            let is_new = known.is_none_or(|known| !Arc::ptr_eq(known, states));
            size_of::<Written>() + if is_new { size_of::<States>() + SHARED } else { 0 }
        });
        size_of::<Self>() + inner.bytes + writing.sum::<usize>()
    }

    /// Whether what is counted is what there is.
    #[cfg(test)]
    pub fn is_counted(&self) -> bool {
        let inner = self.lock();
        let bytes: usize = inner.regions.values().map(Region::bytes).sum();
        let pending = inner.regions.values().filter(|region| region.is_pending()).count();
        inner.bytes == bytes && inner.pending == pending && inner.order.len() == inner.regions.len()
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
            promised: 0,
        };
        self.pending += usize::from(is_torn);
        self.bytes += kept.bytes();
        self.regions.insert(region, kept);
        self.order.push_back(region);
        states
    }

    /// Changes the states of a region. False if it is not in memory.
    fn change(&mut self, region: u32, change: impl FnOnce(&mut States)) -> bool {
        self.update(region, |region| {
            change(Arc::make_mut(&mut region.states));
            (region.is_changed, region.is_used) = (true, true);
        })
    }

    /// Does something to a region, and counts anew what it is. False if it is not in memory.
    fn update(&mut self, region: u32, update: impl FnOnce(&mut Region)) -> bool {
        let Some(region) = self.regions.get_mut(&region) else { return false };
        let (bytes, was_pending) = (region.bytes(), region.is_pending());
        update(region);
        self.bytes = self.bytes - bytes + region.bytes();
        self.pending = self.pending - usize::from(was_pending) + usize::from(region.is_pending());
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
                Some(region) if !region.is_clean() || region.is_used => {
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
        let mut pages = Vec::with_capacity(self.pending);
        for (number, region) in &mut self.regions {
            if std::mem::take(&mut region.is_changed) {
                region.is_written = true;
                pages.push((*number, region.slot, Arc::clone(&region.states)));
                self.pending -= usize::from(region.promised == 0);
            }
        }
        self.generation += u64::from(!pages.is_empty());
        let pages = Arc::new(pages);
        self.writing = Some(Arc::clone(&pages));
        Changes { generation: self.generation, pages, needs_settling: !self.is_settled }
    }

    fn end_writing(&mut self, changes: &Changes, is_done: bool) {
        self.is_settled |= is_done;
        self.writing = None;
        for (region, ..) in &*changes.pages {
            self.update(*region, |region| {
                region.is_written = false;
                if is_done {
                    region.slot = region.slot.other();
                } else {
                    region.is_changed = true;
                }
            });
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
    read_header_with(|slot| read_header_slot(file, slot))
}

/// The same of anything that can be read: `read` is asked for the header in a slot.
pub fn read_header_with(
    read: impl Fn(Slot) -> io::Result<Result<Option<Header>, Damage>>,
) -> Result<(Header, Slot), MapError> {
    let mut found: Option<(Header, Slot)> = None;
    let mut wrong = None;
    for slot in Slot::BOTH {
        match read(slot)? {
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
