//! Making a layer of a raw disk: its data stays where it is, and a map is written that says where there is some.
//!
//! As with a merge, the header is written when all else is durable.

use std::io;
use std::ops::Range;

use uuid::Uuid;

use super::format::{BLOCK_SIZE, Header, Page, REGION_BLOCKS, Slot, State, States};
use super::map::region_of;
use super::stack::data_size;
use super::storage::Storage;

/// Writes the map of a sealed layer whose content is in `data`, which has the size of the layer's. The map has room for a
/// header, and nothing in it.
pub fn write_imported(data: &dyn Storage, map: &dyn Storage, id: Uuid, size: u64) -> io::Result<()> {
    let header = Header { generation: 1, size, id, parent: None, sealed: Some(1) };
    let write = |region: u32, states: States| {
        let page = Page { generation: 1, states };
        map.write_at(&page.encode(id, region), Slot::First.of_page(region))
    };
    data.sync()?;
    let end = data_size(size);
    let mut page: Option<(u32, States)> = None;
    let mut next = 0;
    while let Some(extent) = data.next_extent(next)?.filter(|extent| extent.start < end) {
        next = extent.end;
        for (region, blocks) in by_region(extent.start / BLOCK_SIZE..extent.end.min(end).div_ceil(BLOCK_SIZE))
        {
            if page.as_ref().is_none_or(|(other, _)| *other != region)
                && let Some((other, states)) = page.replace((region, States::default()))
            {
                write(other, states)?;
            }
            if let Some((_, states)) = &mut page {
                blocks.for_each(|block| states.set(block % REGION_BLOCKS, State::Data));
            }
        }
    }
    if let Some((region, states)) = page {
        write(region, states)?;
    }
    map.sync()?;
    map.write_at(&header.encode(), Slot::First.of_header())?;
    map.sync()
}

/// Blocks, and the regions that they are in.
fn by_region(blocks: Range<u64>) -> impl Iterator<Item = (u32, Range<u64>)> {
    let regions = blocks.start / REGION_BLOCKS..blocks.end.div_ceil(REGION_BLOCKS);
    regions.map(move |region| {
        let first = region * REGION_BLOCKS;
        (region_of(first), blocks.start.max(first)..blocks.end.min(first + REGION_BLOCKS))
    })
}
