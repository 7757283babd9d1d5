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

use super::flusher::Flusher;
use super::format::{BLOCK_SIZE, REGION_SIZE, State};
use super::in_flight::InFlight;
use super::map::FlushError;
use super::plan::{self, CopyUp, Extent, Purpose, ZeroStep};
use super::stack::{OpenLayer, Stack, data_size};
use crate::{Operation, Segments};

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

    fn write(&self, offset: u64, mut segments: Segments) -> io::Result<()> {
        let bytes = offset..offset + segments.len() as u64;
        let blocks = plan::blocks(&bytes);
        if blocks.is_empty() {
            return Ok(());
        }
        self.make_room()?;
        let _hold = self.in_flight.hold(blocks.clone());
        let stack = self.stack();
        let top = stack.writable()?;
        let view = stack.view(&blocks)?;
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
        self.make_room()?;
        let _hold = self.in_flight.hold(blocks.clone());
        let stack = self.stack();
        let top = stack.writable()?;
        let view = stack.view(&blocks)?;
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

    /// Has the map take a change. What it has of them in memory is bounded.
    fn make_room(&self) -> io::Result<()> {
        if self.stack().writable()?.map.is_full() { self.flush() } else { Ok(()) }
    }

    /// Makes all durable that was complete when this was called.
    pub fn flush(&self) -> io::Result<()> {
        self.flusher.flush(|| {
            self.sync(|| {
                // Layers from below first: each is a part of what those above it change.
                let stack = self.stack();
                stack.unsealed.iter().chain(&stack.top).try_for_each(|layer| layer.flush())
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

    /// Puts a new, empty top on the old one, which changes no more from then on. Only changes that are under way are waited
    /// for.
    pub fn seal(&self, top: OpenLayer) -> io::Result<()> {
        let _one_at_a_time = self.change();
        let mut stack = Stack::clone(&self.stack());
        let invalid = |message: &str| Err(io::Error::new(io::ErrorKind::InvalidInput, message));
        let (old, new) = (stack.writable()?.map.header(), top.map.header());
        if new.parent != Some(old.id) || new.sealed.is_some() || new.size != self.capacity() {
            return invalid("the new layer was not made to be on top of this volume");
        }
        if top.map.next_region(0)?.is_some() {
            return invalid("the new layer is not empty");
        }
        if !stack.unsealed.is_empty() {
            return invalid("the layer that was sealed before is not durable yet");
        }
        let _pause = self.in_flight.pause();
        let old = stack.top.replace(Arc::new(top));
        stack.lower.extend(old.clone());
        stack.unsealed.extend(old);
        self.set_stack(stack);
        Ok(())
    }

    /// Makes layers durable that changes no more, and marks them as such.
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
}
