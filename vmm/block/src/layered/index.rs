//! Which of the immutable layers has a block: their maps merged into one, region by region, as far as they are in use.
//!
//! What is merged is kept within a bound, which grows with the layers as what a region costs to merge does, and may be
//! forgotten at any time. Most regions are in few long runs, so that runs are what is kept. A layer that is put on top of the others is merged into what is there, when it is next used.

use std::collections::VecDeque;
use std::io;
use std::num::NonZeroU16;
use std::sync::{Arc, Mutex, PoisonError};

use super::format::{REGION_BLOCKS, State, States};
use super::plan::Source;
use super::region_map::RegionMap;

/// Bytes of merged regions that are kept, for each layer: of the 256 KiB that a layer may take, the layer itself has the
/// rest. What the regions of a volume take is a bound too.
const KEPT_PER_LAYER: usize = 255 << 10;
/// What the allocator and the counts of a shared value take, in bytes.
const SHARED: usize = 32;

/// A region as the layers below have it.
#[derive(Debug, PartialEq, Eq)]
pub enum Index {
    /// Where each run of blocks begins, and which layer has it. The first begins at 0.
    Runs(Vec<(u16, Place)>),
    /// The layer of each block: where runs are short this is smaller, and faster.
    Blocks(Vec<Place>),
}

/// Nobody, or a layer's number from the bottom and 1.
type Place = Option<NonZeroU16>;

/// With more runs than this, single blocks take less memory.
const MOST_RUNS: usize = REGION_BLOCKS as usize * size_of::<Place>() / size_of::<(u16, Place)>();

impl Index {
    /// Of no layer.
    fn empty() -> Self {
        Self::Runs(vec![(0, None)])
    }

    /// Where a block is, by its number in the region.
    pub fn get(&self, block: u64) -> Source {
        let place = match self {
            Self::Runs(runs) => {
                let after = runs.partition_point(|(start, _)| u64::from(*start) <= block);
                after.checked_sub(1).and_then(|at| runs.get(at)).and_then(|(_, place)| *place)
            }
            Self::Blocks(places) => {
                usize::try_from(block).ok().and_then(|block| places.get(block)).copied().flatten()
            }
        };
        place.map_or(Source::Nothing, |place| Source::Lower(place.get() - 1))
    }

    /// The place of each block.
    fn places(&self) -> Vec<Place> {
        match self {
            Self::Blocks(places) => places.clone(),
            Self::Runs(runs) => {
                let mut places = Vec::with_capacity(REGION_BLOCKS as usize);
                for (at, (_, place)) in runs.iter().enumerate() {
                    let next = runs.get(at + 1);
                    places.resize(next.map_or(REGION_BLOCKS as usize, |(start, _)| (*start).into()), *place);
                }
                places
            }
        }
    }

    /// The same region with layers above these: each comes with its place.
    fn under(&self, layers: &[(NonZeroU16, Arc<States>)]) -> Self {
        let mut places = self.places();
        for (layer, states) in layers.iter().filter(|(_, states)| !states.is_absent()) {
            for (block, place) in (0..).zip(&mut places) {
                match states.get(block) {
                    State::Absent => {}
                    State::Data => *place = Some(*layer),
                    State::Zero => *place = None,
                }
            }
        }
        let mut runs: Vec<(u16, Place)> = Vec::new();
        for (block, place) in (0..).zip(&places) {
            if runs.last().is_none_or(|(_, last)| last != place) {
                if runs.len() == MOST_RUNS {
                    return Self::Blocks(places);
                }
                runs.push((block, *place));
            }
        }
        runs.shrink_to_fit();
        Self::Runs(runs)
    }

    fn bytes(&self) -> usize {
        let places = match self {
            Self::Runs(runs) => size_of_val(runs.as_slice()),
            Self::Blocks(places) => size_of_val(places.as_slice()),
        };
        // With its places in the map and the order, which may be half empty.
        2 * size_of::<(u32, Kept, u32)>() + SHARED + size_of::<Self>() + SHARED / 2 + places
    }
}

/// Merged regions, of one stack of layers and of those that it grows to.
#[derive(Default)]
pub struct IndexCache(Mutex<Inner>);

#[derive(Default)]
struct Inner {
    regions: RegionMap<Kept>,
    order: VecDeque<u32>,
    bytes: usize,
}

struct Kept {
    index: Arc<Index>,
    /// How many layers, from the bottom, it is of.
    layers: usize,
    is_used: bool,
}

impl IndexCache {
    /// How many bytes of memory it takes.
    pub fn memory(&self) -> usize {
        size_of::<Self>() + self.0.lock().unwrap_or_else(PoisonError::into_inner).bytes
    }

    /// The region as the lowest `layers` layers have it, if that is known.
    pub fn known(&self, region: u32, layers: usize) -> Option<Arc<Index>> {
        let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = inner.regions.get_mut(&region).filter(|kept| kept.layers == layers)?;
        kept.is_used = true;
        Some(Arc::clone(&kept.index))
    }

    /// The same. `states` is asked for what is not known: the states that a layer
    /// has in the region.
    pub fn get(
        &self,
        region: u32,
        layers: usize,
        states: impl Fn(usize) -> io::Result<Arc<States>>,
    ) -> io::Result<Arc<Index>> {
        let mut base = (Arc::new(Index::empty()), 0);
        {
            let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(kept) = inner.regions.get_mut(&region) {
                kept.is_used = true;
                // Somebody with more layers may have been here, and would not find them again in ours.
                if kept.layers <= layers {
                    base = (Arc::clone(&kept.index), kept.layers);
                }
            }
        }
        let (index, known) = base;
        if known == layers {
            return Ok(index);
        }
        let place = |layer: usize| {
            let place = u16::try_from(layer + 1).ok().and_then(NonZeroU16::new);
            place.ok_or_else(|| io::Error::other("there are too many layers"))
        };
        let above: Vec<_> =
            (known..layers).map(|layer| Ok((place(layer)?, states(layer)?))).collect::<io::Result<_>>()?;
        let index = Arc::new(index.under(&above));
        self.0.lock().unwrap_or_else(PoisonError::into_inner).keep(region, layers, Arc::clone(&index));
        Ok(index)
    }
}

impl Inner {
    fn keep(&mut self, region: u32, layers: usize, index: Arc<Index>) {
        if self.regions.get(&region).is_some_and(|kept| kept.layers >= layers) {
            return;
        }
        let most = layers.saturating_mul(KEPT_PER_LAYER);
        self.bytes += index.bytes();
        match self.regions.insert(region, Kept { index, layers, is_used: true }) {
            Some(old) => self.bytes -= old.index.bytes(),
            None => self.order.push_back(region),
        }
        // Everything gets a second chance at most.
        for _ in 0..2 * self.order.len() {
            if self.bytes <= most {
                return;
            }
            let Some(oldest) = self.order.pop_front() else { return };
            match self.regions.get_mut(&oldest) {
                Some(kept) if kept.is_used => {
                    kept.is_used = false;
                    self.order.push_back(oldest);
                }
                _ => {
                    let old = self.regions.remove(&oldest);
                    self.bytes -= old.map_or(0, |old| old.index.bytes());
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn states(blocks: &[(u64, State)]) -> Arc<States> {
        let mut states = States::default();
        blocks.iter().for_each(|(block, state)| states.set(*block, *state));
        Arc::new(states)
    }

    #[test]
    fn the_uppermost_layer_that_has_a_block_is_found() {
        let layers = [
            states(&[(0, State::Data), (1, State::Data), (2, State::Data), (8191, State::Data)]),
            states(&[]),
            states(&[(1, State::Data), (2, State::Zero), (5, State::Zero)]),
            states(&[(2, State::Data), (8191, State::Zero)]),
        ];
        let cache = IndexCache::default();
        let get = |count: usize| {
            let index = cache.get(7, count, |layer| Ok(Arc::clone(&layers[layer]))).unwrap();
            [0, 1, 2, 3, 5, 8191].map(|block| index.get(block))
        };
        use Source::{Lower, Nothing};
        let none = [Nothing; 6];
        let one = [Lower(0), Lower(0), Lower(0), Nothing, Nothing, Lower(0)];
        let three = [Lower(0), Lower(2), Nothing, Nothing, Nothing, Lower(0)];
        let four = [Lower(0), Lower(2), Lower(3), Nothing, Nothing, Nothing];
        assert_eq!((get(0), get(1), get(2)), (none, one, one));
        // What is known is not asked for again, and grows.
        let index = cache.get(7, 3, |layer| if layer == 2 { Ok(layers[2].clone()) } else { panic!() });
        assert_eq!(index.unwrap().get(1), Lower(2));
        assert_eq!((get(3), get(4)), (three, four));
        // Whoever still has fewer layers is not told of the others.
        assert_eq!((get(1), get(4)), (one, four));
    }

    #[test]
    fn many_short_runs_are_the_same_as_few_long_ones() {
        for step in [1, 2, 3, 5, 100] {
            let lower = states(&(0..REGION_BLOCKS).map(|block| (block, State::Data)).collect::<Vec<_>>());
            let upper: Vec<_> = (0..REGION_BLOCKS).step_by(step).map(|block| (block, State::Data)).collect();
            let layers = [lower, states(&upper), states(&[(0, State::Zero)])];
            let cache = IndexCache::default();
            for count in 1..=3 {
                let index = cache.get(0, count, |layer| Ok(Arc::clone(&layers[layer]))).unwrap();
                assert_eq!(matches!(*index, Index::Blocks(_)), count > 1 && [2, 3].contains(&step));
                for block in 0..REGION_BLOCKS {
                    let expected = match block {
                        0 if count == 3 => Source::Nothing,
                        _ => Source::Lower((count > 1 && block % step as u64 == 0).into()),
                    };
                    assert_eq!(index.get(block), expected);
                }
            }
        }
    }

    #[test]
    fn what_is_kept_is_bounded() {
        // The worst there is: every block is a run.
        let blocks: Vec<_> = (0..REGION_BLOCKS).step_by(2).map(|block| (block, State::Data)).collect();
        let layer = states(&blocks);
        let cache = IndexCache::default();
        for region in 0..1000 {
            let index = cache.get(region, 1, |_| Ok(Arc::clone(&layer))).unwrap();
            assert_eq!((index.get(4000), index.get(4001)), (Source::Lower(0), Source::Nothing));
            let inner = cache.0.lock().unwrap();
            let bytes: usize = inner.regions.values().map(|kept| kept.index.bytes()).sum();
            assert!(
                bytes == inner.bytes && bytes <= KEPT_PER_LAYER && inner.order.len() == inner.regions.len()
            );
        }
        assert!(cache.get(999, 1, |_| panic!()).is_ok());
        // An error is not kept.
        assert!(cache.get(2000, 1, |_| Err(io::Error::other("damaged"))).is_err());
        assert!(cache.get(2000, 1, |_| Ok(Arc::clone(&layer))).is_ok());
    }
}
