//! Making one layer of several that are on top of each other, so that a stack does not grow without end.
//!
//! What comes out is a layer like the topmost of them, with its id, on what was below the lowest. Those that were merged
//! are only read. The new one has no header before all else of it is durable: whatever ends this leaves something that
//! nobody takes for a layer.

use std::io;
use std::sync::Arc;

use super::format::{BLOCK_SIZE, Header, Page, REGION_BLOCKS, Slot, State, States};
use super::stack::{OpenLayer, data_size};
use super::storage::Storage;

/// Blocks that are copied at once.
const CHUNK: u64 = 256;

/// Merges sealed `layers`, from the bottom, into two empty files. What is on top of each other was checked.
///
/// `go_on` is told how many bytes were copied since it was last asked, and says whether to go on.
pub fn write_merged(
    layers: &[OpenLayer],
    data: &dyn Storage,
    map: &dyn Storage,
    go_on: &mut dyn FnMut(u64) -> bool,
) -> io::Result<Header> {
    let (Some(lowest), Some(topmost)) = (layers.first(), layers.last()) else {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "there are no layers to be merged"));
    };
    let header = Header { generation: 1, parent: lowest.map.header().parent, ..topmost.map.header() };
    let header = Header { sealed: Some(1), ..header };
    data.grow(data_size(header.size))?;
    let mut next = 0;
    while let Some(region) = next_region(layers, next)? {
        next = region + 1;
        let states =
            layers.iter().map(|layer| layer.map.states_once(region)).collect::<io::Result<Vec<_>>>()?;
        let merged = merge_states(&states, header.parent.is_none());
        ask(go_on, 0)?;
        copy(layers, &states, data, u64::from(region) * REGION_BLOCKS, go_on)?;
        if !merged.is_absent() {
            let page = Page { generation: 1, states: merged };
            map.write_at(&page.encode(header.id, region), Slot::First.of_page(region))?;
        }
    }
    data.sync()?;
    map.sync()?;
    map.write_at(&header.encode(), Slot::First.of_header())?;
    map.sync()?;
    Ok(header)
}

/// The first region, from `region` on, of which any layer has something.
fn next_region(layers: &[OpenLayer], region: u32) -> io::Result<Option<u32>> {
    let next = layers.iter().map(|layer| layer.map.next_region(region)).collect::<io::Result<Vec<_>>>()?;
    Ok(next.into_iter().flatten().min())
}

/// The layer that has a block, and how.
fn place(layers: &[Arc<States>], block: u64) -> Option<(usize, State)> {
    let found = layers.iter().map(|states| states.get(block)).enumerate();
    found.rev().find(|(_, state)| *state != State::Absent)
}

fn merge_states(layers: &[Arc<States>], is_lowest: bool) -> States {
    let mut merged = States::default();
    for block in 0..REGION_BLOCKS {
        match place(layers, block) {
            None => {}
            // There is nothing below that would have to be hidden.
            Some((_, State::Zero)) if is_lowest => {}
            Some((_, state)) => merged.set(block, state),
        }
    }
    merged
}

fn ask(go_on: &mut dyn FnMut(u64) -> bool, copied: u64) -> io::Result<()> {
    let stopped = || io::Error::new(io::ErrorKind::Interrupted, "the merge was stopped");
    go_on(copied).then_some(()).ok_or_else(stopped)
}

/// Copies the data of a region, which begins with block `start`.
fn copy(
    layers: &[OpenLayer],
    states: &[Arc<States>],
    to: &dyn Storage,
    start: u64,
    go_on: &mut dyn FnMut(u64) -> bool,
) -> io::Result<()> {
    let source = |block| match place(states, block) {
        Some((layer, State::Data)) => Some(layer),
        _ => None,
    };
    let mut buffer = Vec::new();
    let mut next = 0;
    while next < REGION_BLOCKS {
        let from = source(next);
        let most = REGION_BLOCKS.min(next + CHUNK);
        let end = (next + 1..most).find(|block| source(*block) != from).unwrap_or(most);
        if let Some(layer) = from.and_then(|layer| layers.get(layer)) {
            let offset = (start + next) * BLOCK_SIZE;
            // At most a mebibyte.
            buffer.resize(((end - next) * BLOCK_SIZE) as usize, 0);
            if layer.data.read_at(&mut buffer, offset)? < buffer.len() {
                return Err(crate::raw::too_short());
            }
            to.write_at(&buffer, offset)?;
            ask(go_on, buffer.len() as u64)?;
        }
        next = end;
    }
    Ok(())
}
