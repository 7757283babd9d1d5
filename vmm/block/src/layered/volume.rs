//! An open volume: what reading, writing, zeroing and flushing do to its layers.
//!
//! What makes a crash harmless, whenever it comes:
//! - A block that the top has not is written as a whole, and only then said to be there.
//! - What is said to be there is written to the map's file only after a sync of the data that began later than the
//!   write was complete. So the map never says more than there is.
//! - A block that becomes zero may lose its data at once. If the crash takes back that it is zero, its old place reads
//!   as zeroes or as the old content, and either is what an unfinished change may leave.
//!
//! No two changes of a block are under way at the same time, because each is planned from what the block is.

use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock};
use std::time::Instant;

use super::flusher::Flusher;
use super::format::{BLOCK_SIZE, REGION_SIZE, State};
use super::in_flight::{Hold, InFlight};
use super::map::FlushError;
use super::plan::{self, CopyUp, Extent, Purpose, ZeroStep};
use super::stack::{OpenLayer, Promise, Stack, View, data_size};
use crate::{Operation, Segments};

/// How often a change waits for a flush to make room for it. Others may take the room each time.
const FLUSHES_FOR_ROOM: usize = 4;

pub struct Volume {
    stack: RwLock<Arc<Stack>>,
    capacity: AtomicU64,
    pub in_flight: Arc<InFlight>,
    flusher: Flusher,
    /// Held while a map is made durable.
    syncing: Mutex<()>,
    /// Held while the stack or the size changes.
    changing: Mutex<()>,
    impairment: OnceLock<String>,
}

impl Volume {
    /// Over a stack that was checked.
    pub fn new(stack: Stack, capacity: u64) -> Self {
        Self {
            stack: RwLock::new(Arc::new(stack)),
            capacity: AtomicU64::new(capacity),
            in_flight: Arc::default(),
            flusher: Flusher::default(),
            syncing: Mutex::default(),
            changing: Mutex::default(),
            impairment: OnceLock::new(),
        }
    }

    /// In bytes.
    pub fn capacity(&self) -> u64 {
        self.capacity.load(Ordering::Acquire)
    }

    pub fn is_read_only(&self) -> bool {
        self.stack().top.is_none()
    }

    pub fn stack(&self) -> Arc<Stack> {
        Arc::clone(&self.stack.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Puts another stack in the place of this one.
    pub fn set_stack(&self, stack: Stack) {
        *self.stack.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(stack);
    }

    /// Nobody else changes the stack or the size meanwhile.
    pub fn change(&self) -> MutexGuard<'_, ()> {
        self.changing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Why nothing can be written any more, if that is so.
    pub fn impairment(&self) -> Option<&str> {
        self.impairment.get().map(String::as_str)
    }

    /// Checks that an operation lies inside the volume and can be tried.
    pub fn check(&self, operation: &Operation) -> io::Result<()> {
        crate::check(operation, self.capacity(), self.is_read_only())?;
        match (operation, self.impairment()) {
            (Operation::Read { .. }, _) | (_, None) => Ok(()),
            (_, Some(reason)) => Err(io::Error::other(reason)),
        }
    }

    /// Checks and carries out an operation, and returns when it is done.
    pub fn run(&self, operation: Operation) -> io::Result<()> {
        self.check(&operation)?;
        match operation {
            Operation::Read { offset, segments } => self.read(offset, segments),
            Operation::Write { offset, segments } => self.write(offset, segments),
            Operation::Flush => self.flush(),
            Operation::Discard { offset, length } => self.zero(offset..offset + length, Purpose::Discard),
            Operation::WriteZeroes { offset, length, may_free } => {
                self.zero(offset..offset + length, if may_free { Purpose::Free } else { Purpose::Keep })
            }
        }
    }

    fn read(&self, offset: u64, mut segments: Segments) -> io::Result<()> {
        let bytes = offset..offset + segments.len() as u64;
        let stack = self.stack();
        let view = stack.view(&plan::blocks(&bytes))?;
        let mut extents = Vec::new();
        plan::read(&bytes, |block| view.source(block), &mut extents);
        for Extent { offset, length, source } in extents {
            let segments = segments.take_front(usize::try_from(length).unwrap_or(usize::MAX));
            match stack.data(source)? {
                None => segments.fill_with_zeroes(),
                Some(data) => data.run(&mut Operation::Read { offset, segments })?,
            }
        }
        Ok(())
    }

    /// Fills `buffer` from `offset` on.
    pub fn read_at(&self, mut buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let length = buffer.len() as u64;
        let end = offset.checked_add(length).filter(|end| *end <= self.capacity());
        let bytes = offset..end.ok_or_else(|| crate::out_of_range(offset, length, self.capacity()))?;
        let stack = self.stack();
        let view = stack.view(&plan::blocks(&bytes))?;
        let mut extents = Vec::new();
        plan::read(&bytes, |block| view.source(block), &mut extents);
        for Extent { offset, length, source } in extents {
            let length = usize::try_from(length).unwrap_or(usize::MAX);
            let Some((part, rest)) = buffer.split_at_mut_checked(length) else { break };
            match stack.data(source)? {
                None => part.fill(0),
                Some(data) if data.read_at(part, offset)? < part.len() => return Err(crate::raw::too_short()),
                Some(_) => {}
            }
            buffer = rest;
        }
        Ok(())
    }

    fn write(&self, offset: u64, mut segments: Segments) -> io::Result<()> {
        let bytes = offset..offset + segments.len() as u64;
        let blocks = plan::blocks(&bytes);
        if blocks.is_empty() {
            return Ok(());
        }
        let Change { _hold, _promise, view, stack } = self.begin_change(&blocks)?;
        let top = stack.writable()?;
        let plan = plan::write(&bytes, |block| view.source(block));
        if let Some(copy_up) = &plan.head {
            self.copy_up(&stack, copy_up, Some(&mut segments))?;
        }
        if !plan.direct.is_empty() {
            let length = plan.direct.end - plan.direct.start;
            let segments = segments.take_front(usize::try_from(length).unwrap_or(usize::MAX));
            top.data.run(&mut Operation::Write { offset: plan.direct.start, segments })?;
        }
        if let Some(copy_up) = &plan.tail {
            self.copy_up(&stack, copy_up, Some(&mut segments))?;
        }
        let copied = [plan.head, plan.tail].into_iter().flatten();
        for blocks in plan.gained.into_iter().chain(copied.map(|copy| copy.block..copy.block + 1)) {
            top.map.set(blocks, State::Data)?;
        }
        Ok(())
    }

    /// Writes a block to the top that it has not, with a part of it from the front of `content`, or zeroed. The map is
    /// left to the caller.
    fn copy_up(&self, stack: &Stack, copy: &CopyUp, content: Option<&mut Segments>) -> io::Result<()> {
        let start = copy.block * BLOCK_SIZE;
        let mut block = [0; BLOCK_SIZE as usize];
        if let Some(data) = stack.data(copy.source)?
            && data.read_at(&mut block, start)? < block.len()
        {
            return Err(crate::raw::too_short());
        }
        let part = block.get_mut((copy.start - start) as usize..(copy.end - start) as usize);
        let part = part.ok_or(io::ErrorKind::InvalidInput)?;
        match content {
            None => part.fill(0),
            Some(content) => drop(content.take_front(part.len()).copy_to(part)),
        }
        stack.writable()?.data.write_at(&block, start)
    }

    /// Zeroes bytes, region by region, so that no change of the map is too large.
    fn zero(&self, bytes: Range<u64>, purpose: Purpose) -> io::Result<()> {
        let mut next = bytes.start;
        while next < bytes.end {
            let end = bytes.end.min((next / REGION_SIZE + 1) * REGION_SIZE);
            self.zero_region(&(next..end), purpose)?;
            next = end;
        }
        Ok(())
    }

    fn zero_region(&self, bytes: &Range<u64>, purpose: Purpose) -> io::Result<()> {
        let blocks = plan::blocks(bytes);
        let Change { _hold, _promise, view, stack } = self.begin_change(&blocks)?;
        let top = stack.writable()?;
        for step in plan::zero(bytes, purpose, |block| view.source(block)) {
            match step {
                ZeroStep::Drop { first, end } => {
                    top.map.set(first..end, State::Zero)?;
                    let (offset, length) = (first * BLOCK_SIZE, (end - first) * BLOCK_SIZE);
                    if let Err(error) = top.data.run(&mut Operation::Discard { offset, length }) {
                        tracing::debug!(%error, offset, length, "space is not given back");
                    }
                }
                ZeroStep::Hide { first, end } => top.map.set(first..end, State::Zero)?,
                ZeroStep::Zero { offset, length } => {
                    top.data.run(&mut Operation::WriteZeroes { offset, length, may_free: false })?;
                }
                ZeroStep::CopyUp(copy_up) => {
                    self.copy_up(&stack, &copy_up, None)?;
                    top.map.set(copy_up.block..copy_up.block + 1, State::Data)?;
                }
            }
        }
        Ok(())
    }

    /// Waits until nobody else changes any of `blocks`, and until the map has room for changes of them.
    fn begin_change(&self, blocks: &Range<u64>) -> io::Result<Change> {
        let mut flushes = 0;
        loop {
            let hold = self.in_flight.hold(blocks.clone());
            let stack = self.stack();
            let view = stack.view(blocks)?;
            let promise = match stack.promise(blocks) {
                None if flushes < FLUSHES_FOR_ROOM => None,
                // What was read a moment ago was forgotten, or more regions change at once than there is room for.
                None => Some(stack.promise_anyway(blocks)?),
                some => some,
            };
            if let Some(promise) = promise {
                return Ok(Change { stack, view, _promise: promise, _hold: hold });
            }
            // Nobody waits for a change that waits for a disk.
            drop((hold, view));
            flushes += 1;
            self.flush()?;
        }
    }

    /// Makes all durable that was complete when this was called.
    pub fn flush(&self) -> io::Result<()> {
        self.flusher.flush(|| {
            self.sync(|| {
                // Layers from below first: each is a part of what those above it change.
                let stack = self.stack();
                stack.written().try_for_each(|layer| layer.flush())?;
                // They change no more, and have nothing to remember.
                stack.unsealed.iter().for_each(|layer| layer.map.shrink());
                Ok(())
            })
        })
    }

    /// Makes something durable, or the volume impaired.
    pub fn sync(&self, sync: impl FnOnce() -> Result<(), FlushError>) -> io::Result<()> {
        let _one_at_a_time = self.syncing.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(reason) = self.impairment() {
            return Err(io::Error::other(reason));
        }
        match sync() {
            Ok(()) => Ok(()),
            Err(FlushError::Write(error)) => Err(error),
            Err(FlushError::Sync(error)) => {
                tracing::error!(%error, "the volume is impaired: nobody knows what of it is durable");
                let reason = format!("the volume is impaired: making it durable failed once ({error})");
                Err(io::Error::other(self.impairment.get_or_init(|| reason).as_str()))
            }
        }
    }

    /// Makes the volume larger: see [`crate::Backend::resize`].
    pub fn resize(&self, size: u64) -> io::Result<()> {
        let _one_at_a_time = self.change();
        let capacity = self.capacity();
        let invalid = |message| Err(io::Error::new(io::ErrorKind::InvalidInput, message));
        if !super::format::is_size(size) {
            return invalid(format!(
                "a volume cannot have {size} bytes: it is a multiple of 512, up to 64 TiB"
            ));
        }
        if size < capacity {
            return invalid(format!("a volume cannot become smaller: it has {capacity} bytes, not {size}"));
        }
        let stack = self.stack();
        let top = stack.writable()?;
        // Whoever asks for it has other things to do than to wait for gigabytes that are being made durable.
        if self.syncing.try_lock().is_err() {
            let message = "the volume is being made durable: try again when that is done";
            return Err(io::Error::new(io::ErrorKind::WouldBlock, message));
        }
        if size == capacity {
            // It may be so because a process that was killed had come this far.
            return self.sync(|| top.map.settle());
        }
        top.data.grow(data_size(size))?;
        self.sync(|| top.map.grow(size))?;
        // Whoever sees the new size also sees the files that have it.
        self.capacity.store(size, Ordering::Release);
        Ok(())
    }

    /// Checks that new, empty layers belong on top of the volume, from the lowest of them, and of each other.
    pub fn prepare_seal(&self, tops: Vec<OpenLayer>) -> io::Result<Seal<'_>> {
        let change = self.change();
        let mut stack = Stack::clone(&self.stack());
        let invalid = |message: &str| Err(io::Error::new(io::ErrorKind::InvalidInput, message));
        for top in tops {
            let (old, new) = (stack.writable()?.map.header(), top.map.header());
            if new.parent != Some(old.id) || new.sealed.is_some() || new.size != self.capacity() {
                return invalid("the new layer was not made to be on top of this volume");
            }
            if top.map.next_region(0)?.is_some() {
                return invalid("the new layer is not empty");
            }
            let old = stack.top.replace(Arc::new(top));
            stack.lower.extend(old.clone());
            stack.unsealed.extend(old);
        }
        if stack.lower.len() >= usize::from(u16::MAX) {
            return invalid("the volume has as many layers as it can have");
        }
        Ok(Seal { volume: self, stack, _change: change })
    }

    /// Makes layers durable that change no more, and marks them as such.
    pub fn finish_seal(&self) -> io::Result<()> {
        let unsealed = self.stack().unsealed.clone();
        for layer in unsealed {
            self.sync(|| layer.map.seal(&*layer.data))?;
            layer.data.share()?;
            layer.map.share()?;
            let _one_at_a_time = self.change();
            let mut stack = Stack::clone(&self.stack());
            stack.unsealed.retain(|other| !Arc::ptr_eq(other, &layer));
            self.set_stack(stack);
        }
        Ok(())
    }

    /// Puts a layer in the place of some below the top that it was merged of: `layers` are counted from the bottom.
    pub fn replace_layers(&self, layers: Range<usize>, merged: OpenLayer) -> io::Result<()> {
        let _one_at_a_time = self.change();
        let mut stack = Stack::clone(&self.stack());
        let invalid = |message: &str| Err(io::Error::new(io::ErrorKind::InvalidInput, message));
        let header = merged.map.header();
        let old = stack.lower.get(layers.clone()).unwrap_or_default();
        let (Some(lowest), Some(topmost)) = (old.first(), old.last()) else {
            return invalid("the volume has no such layers below its top");
        };
        let expected = (topmost.map.header().id, lowest.map.header().parent, topmost.map.header().size);
        if (header.id, header.parent, header.size) != expected || header.sealed.is_none() {
            return invalid("the layer was not merged of these");
        }
        if old.iter().any(|layer| layer.map.header().sealed.is_none()) {
            return invalid("one of the layers is not sealed yet");
        }
        stack.lower.splice(layers, [Arc::new(merged)]);
        // All above it are counted anew.
        stack.index = Arc::default();
        self.set_stack(stack);
        Ok(())
    }

    /// How many bytes of memory it takes, besides what engines and their threads do.
    pub fn memory(&self) -> usize {
        let stack = self.stack();
        let files = 2 * size_of::<crate::raw::Disk>();
        let layers = stack.all().map(|layer| size_of::<OpenLayer>() + files + layer.map.memory());
        size_of::<Self>() + stack.index.memory() + layers.sum::<usize>()
    }

    /// The volume is as if its process had been killed: what was not flushed is gone.
    #[cfg(test)]
    pub fn abandon(&self) {
        self.impairment.get_or_init(|| "the process was killed".to_owned());
    }
}

impl Drop for Volume {
    /// Of a raw file, whatever was written stays when it is closed. So does what the map says only in memory so far.
    fn drop(&mut self) {
        let has_changes = self.stack().written().any(|layer| layer.map.pending() > 0);
        if has_changes
            && self.impairment().is_none()
            && let Err(error) = self.flush()
        {
            tracing::error!(%error, "a volume is closed without what was written to it since its last flush");
        }
    }
}

/// A change that may begin: what the blocks are so far, and the right to change them.
struct Change {
    stack: Arc<Stack>,
    view: View,
    // Given back in this order.
    _promise: Promise,
    _hold: Hold,
}

/// What a volume is to become: nobody else changes its stack or its size meanwhile.
pub struct Seal<'a> {
    volume: &'a Volume,
    stack: Stack,
    _change: MutexGuard<'a, ()>,
}

/// Puts new tops on volumes, each of which is there once. The old ones change no more from then on.
///
/// Only changes that are under way are waited for, but not longer than until `deadline`; then nothing is done, and the
/// volume that kept all waiting is told. From when the last of these changes is over until all volumes have their tops, no
/// other begins anywhere: so a change that somebody has seen the end of is below the new tops, on whichever volume, and one
/// that was begun after that is not.
pub fn seal(seals: Vec<Seal<'_>>, deadline: Instant) -> Result<(), usize> {
    let pauses = seals.iter().map(|seal| seal.volume).enumerate();
    let pauses = pauses.map(|(index, volume)| volume.in_flight.pause(deadline).ok_or(index));
    let pauses = pauses.collect::<Result<Vec<_>, usize>>()?;
    for Seal { volume, stack, _change } in seals {
        let olds = stack.unsealed.clone();
        volume.set_stack(stack);
        olds.iter().for_each(|old| old.map.shrink());
    }
    drop(pauses);
    Ok(())
}
