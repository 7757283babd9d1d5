//! The bytes of a map file: two slots for its header, then two for each region's page. `docs/volumes.md` has the table.
//!
//! Whatever is in a map file, decoding it yields a header, a page or what is wrong with it; it never panics.

use uuid::Uuid;

/// Bytes that a layer has or has not as a whole.
pub const BLOCK_SIZE: u64 = 4096;
/// Blocks of a region, whose states make a page.
pub const REGION_BLOCKS: u64 = 8192;
/// Bytes of a volume that a page is about: 32 MiB.
pub const REGION_SIZE: u64 = BLOCK_SIZE * REGION_BLOCKS;
/// Bytes of a header and of a page: what reaches a disk as a whole, or is found out not to have.
pub const PAGE_SIZE: usize = 4096;
/// The largest volume, in bytes: 64 TiB, as with EBS.
pub const MAX_SIZE: u64 = 64 << 40;

/// No generation is larger, so that there is always a next one.
const MAX_GENERATION: u64 = 1 << 62;

const VERSION: u32 = 1;
const HEADER_MAGIC: [u8; 8] = *b"INNKLAYR";
const PAGE_MAGIC: [u8; 8] = *b"INNKPAGE";
const FLAG_SEALED: u32 = 1;
const STATES_AT: usize = 64;
const STATES_SIZE: usize = REGION_BLOCKS as usize / 4;
const CHECKSUM_AT: usize = PAGE_SIZE - 4;

/// A header or a page as it is on disk.
pub type PageBytes = [u8; PAGE_SIZE];

/// One of the two places of a header or a page. They are written in turns, so that a write that does not reach the disk,
/// or not as a whole, leaves what was there before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Slot {
    #[default]
    First,
    Second,
}

impl Slot {
    pub const BOTH: [Self; 2] = [Self::First, Self::Second];

    pub fn other(self) -> Self {
        match self {
            Self::First => Self::Second,
            Self::Second => Self::First,
        }
    }

    /// Where a header is in the file.
    pub fn of_header(self) -> u64 {
        self as u64 * PAGE_SIZE as u64
    }

    /// Where the page of `region` is in the file.
    pub fn of_page(self, region: u32) -> u64 {
        (2 + 2 * u64::from(region) + self as u64) * PAGE_SIZE as u64
    }

    /// The region whose page is at a place of the file.
    pub fn region_at(offset: u64) -> Option<u32> {
        u32::try_from((offset / PAGE_SIZE as u64).checked_sub(2)? / 2).ok()
    }
}

/// Where a layer has the content of a block.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum State {
    /// Not here: the layers below have it, or nobody, and then it is zeroes.
    #[default]
    Absent,
    /// In the layer's data file, at the block's own offset.
    Data,
    /// It is zeroes, whatever the layers below have, and the data file.
    Zero,
}

/// The states of a region's blocks.
#[derive(Clone, PartialEq, Eq)]
pub struct States([u8; STATES_SIZE]);

impl Default for States {
    fn default() -> Self {
        Self([0; STATES_SIZE])
    }
}

impl States {
    /// The state of a block, by its number in the region. Behind the region all is absent.
    pub fn get(&self, block: u64) -> State {
        let byte = usize::try_from(block / 4).ok().and_then(|at| self.0.get(at)).copied().unwrap_or(0);
        match byte >> (block % 4 * 2) & 3 {
            1 => State::Data,
            2 => State::Zero,
            _ => State::Absent,
        }
    }

    /// Changes the state of a block that is in the region.
    pub fn set(&mut self, block: u64, state: State) {
        let bits = match state {
            State::Absent => 0,
            State::Data => 1,
            State::Zero => 2,
        };
        let shift = block % 4 * 2;
        if let Some(byte) = usize::try_from(block / 4).ok().and_then(|at| self.0.get_mut(at)) {
            *byte = *byte & !(3 << shift) | bits << shift;
        }
    }

    /// All blocks have the same state.
    pub fn all(state: State) -> Self {
        let mut states = Self::default();
        (0..REGION_BLOCKS).for_each(|block| states.set(block, state));
        states
    }

    /// Whether there is nothing.
    pub fn is_absent(&self) -> bool {
        self.0 == [0; STATES_SIZE]
    }

    /// Whether any block has data.
    pub fn has_data(&self) -> bool {
        self.0.iter().any(|byte| byte & 0x55 != 0)
    }

    fn is_valid(&self) -> bool {
        // No block has both bits.
        self.0.iter().all(|byte| byte & byte >> 1 & 0x55 == 0)
    }
}

/// What a layer is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// Grows with each header that is written.
    pub generation: u64,
    /// Of the volume, in bytes: a multiple of 512, at most [`MAX_SIZE`].
    pub size: u64,
    /// Whose map this is.
    pub id: Uuid,
    /// The layer below, if there is one.
    pub parent: Option<Uuid>,
    /// Once it is, the generation of its newest page: nothing is written after that.
    pub sealed: Option<u64>,
}

/// A region's states, as they were written at some time.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Page {
    /// Grows with each write to any page of the layer; from 1.
    pub generation: u64,
    pub states: States,
}

/// What is wrong with a header or a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Damage {
    #[error("its checksum does not match: it is torn or damaged")]
    Checksum,
    #[error("it does not begin as one")]
    Magic,
    #[error("it has version {0}, and only {VERSION} is known")]
    Version(u32),
    #[error("it has blocks of {0} bytes, and only {BLOCK_SIZE} is known")]
    BlockSize(u32),
    #[error("it holds values that are not possible")]
    Values,
    #[error("it belongs to another layer, {0}")]
    Layer(Uuid),
    #[error("it belongs to another place, region {0}")]
    Region(u32),
    #[error("it is of generation {found}, and the layer was sealed at {sealed}")]
    Generation { found: u64, sealed: u64 },
}

impl Header {
    pub fn encode(&self) -> PageBytes {
        let mut bytes = [0; PAGE_SIZE];
        put(&mut bytes, 0, &HEADER_MAGIC);
        put(&mut bytes, 8, &VERSION.to_le_bytes());
        put(&mut bytes, 12, &(BLOCK_SIZE as u32).to_le_bytes());
        put(&mut bytes, 16, &self.generation.to_le_bytes());
        put(&mut bytes, 24, &self.size.to_le_bytes());
        put(&mut bytes, 32, self.id.as_bytes());
        put(&mut bytes, 48, self.parent.unwrap_or_default().as_bytes());
        put(&mut bytes, 64, &(if self.sealed.is_some() { FLAG_SEALED } else { 0 }).to_le_bytes());
        put(&mut bytes, 72, &self.sealed.unwrap_or(0).to_le_bytes());
        sign(&mut bytes);
        bytes
    }

    /// None if nothing was ever written there.
    pub fn decode(bytes: &PageBytes) -> Result<Option<Self>, Damage> {
        if is_hole(bytes) {
            return Ok(None);
        }
        verify(bytes, HEADER_MAGIC)?;
        let (version, block_size) = (u32::from_le_bytes(get(bytes, 8)), u32::from_le_bytes(get(bytes, 12)));
        if version != VERSION {
            return Err(Damage::Version(version));
        }
        if u64::from(block_size) != BLOCK_SIZE {
            return Err(Damage::BlockSize(block_size));
        }
        let flags = u32::from_le_bytes(get(bytes, 64));
        let sealed = u64::from_le_bytes(get(bytes, 72));
        let parent = Uuid::from_bytes(get(bytes, 48));
        let header = Self {
            generation: u64::from_le_bytes(get(bytes, 16)),
            size: u64::from_le_bytes(get(bytes, 24)),
            id: Uuid::from_bytes(get(bytes, 32)),
            parent: (!parent.is_nil()).then_some(parent),
            sealed: (flags & FLAG_SEALED != 0).then_some(sealed),
        };
        let is_possible = is_size(header.size)
            && header.generation.max(sealed) <= MAX_GENERATION
            && !header.id.is_nil()
            && header.parent != Some(header.id)
            && flags & !FLAG_SEALED == 0
            && (header.sealed.is_some() || sealed == 0);
        if is_possible { Ok(Some(header)) } else { Err(Damage::Values) }
    }
}

impl Page {
    pub fn encode(&self, layer: Uuid, region: u32) -> PageBytes {
        let mut bytes = [0; PAGE_SIZE];
        put(&mut bytes, 0, &PAGE_MAGIC);
        put(&mut bytes, 8, &region.to_le_bytes());
        put(&mut bytes, 16, &self.generation.to_le_bytes());
        put(&mut bytes, 24, layer.as_bytes());
        put(&mut bytes, STATES_AT, &self.states.0);
        sign(&mut bytes);
        bytes
    }

    /// None if nothing was ever written there: all is absent.
    pub fn decode(bytes: &PageBytes, header: &Header, region: u32) -> Result<Option<Self>, Damage> {
        if is_hole(bytes) {
            return Ok(None);
        }
        verify(bytes, PAGE_MAGIC)?;
        let (layer, place) = (Uuid::from_bytes(get(bytes, 24)), u32::from_le_bytes(get(bytes, 8)));
        if layer != header.id {
            return Err(Damage::Layer(layer));
        }
        if place != region {
            return Err(Damage::Region(place));
        }
        let page =
            Self { generation: u64::from_le_bytes(get(bytes, 16)), states: States(get(bytes, STATES_AT)) };
        if page.generation == 0 || page.generation > MAX_GENERATION || !page.states.is_valid() {
            return Err(Damage::Values);
        }
        match header.sealed {
            Some(sealed) if page.generation > sealed => {
                Err(Damage::Generation { found: page.generation, sealed })
            }
            _ => Ok(Some(page)),
        }
    }
}

/// Whether a volume can have this size, in bytes.
pub fn is_size(size: u64) -> bool {
    size > 0 && size.is_multiple_of(crate::SECTOR_SIZE) && size <= MAX_SIZE
}

/// How many regions a volume of this size has.
pub fn regions(size: u64) -> u32 {
    // At most 2^21.
    size.min(MAX_SIZE).div_ceil(REGION_SIZE) as u32
}

fn is_hole(bytes: &PageBytes) -> bool {
    bytes.iter().all(|byte| *byte == 0)
}

fn sign(bytes: &mut PageBytes) {
    let checksum = crc32fast::hash(&bytes[..CHECKSUM_AT]);
    put(bytes, CHECKSUM_AT, &checksum.to_le_bytes());
}

fn verify(bytes: &PageBytes, magic: [u8; 8]) -> Result<(), Damage> {
    if crc32fast::hash(&bytes[..CHECKSUM_AT]) != u32::from_le_bytes(get(bytes, CHECKSUM_AT)) {
        return Err(Damage::Checksum);
    }
    if get(bytes, 0) != magic {
        return Err(Damage::Magic);
    }
    Ok(())
}

/// Fields are where this module says.
fn put(bytes: &mut PageBytes, at: usize, value: &[u8]) {
    bytes[at..at + value.len()].copy_from_slice(value);
}

fn get<const N: usize>(bytes: &PageBytes, at: usize) -> [u8; N] {
    let mut value = [0; N];
    value.copy_from_slice(&bytes[at..at + N]);
    value
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn header() -> Header {
        Header {
            generation: 7,
            size: 100 << 30,
            id: Uuid::from_u128(1),
            parent: Some(Uuid::from_u128(2)),
            sealed: None,
        }
    }

    #[test]
    fn a_header_comes_back() {
        for header in [
            header(),
            Header { parent: None, ..header() },
            Header { sealed: Some(12), ..header() },
            Header { size: MAX_SIZE, ..header() },
        ] {
            assert_eq!(Header::decode(&header.encode()), Ok(Some(header)));
        }
        assert_eq!(Header::decode(&[0; PAGE_SIZE]), Ok(None));
    }

    #[test]
    fn a_header_that_cannot_be_is_refused() {
        for header in [
            Header { size: 0, ..header() },
            Header { size: 1000, ..header() },
            Header { generation: u64::MAX, ..header() },
            Header { sealed: Some(u64::MAX), ..header() },
            Header { size: MAX_SIZE + 512, ..header() },
            Header { id: Uuid::nil(), ..header() },
            Header { parent: Some(Uuid::from_u128(1)), ..header() },
        ] {
            assert_eq!(Header::decode(&header.encode()), Err(Damage::Values), "{header:?}");
        }
        let change = |at: usize, value: u8| {
            let mut bytes = header().encode();
            bytes[at] = value;
            sign(&mut bytes);
            Header::decode(&bytes)
        };
        assert_eq!(change(0, b'X'), Err(Damage::Magic));
        assert_eq!(change(8, 2), Err(Damage::Version(2)));
        assert_eq!(change(13, 0x20), Err(Damage::BlockSize(0x2000)));
        assert_eq!(change(64, 2), Err(Damage::Values));
    }

    #[test]
    fn a_page_comes_back_and_only_where_it_belongs() {
        let mut states = States::default();
        for (block, state) in [(0, State::Data), (1, State::Zero), (8191, State::Data), (8190, State::Zero)] {
            states.set(block, state);
            assert_eq!(states.get(block), state);
        }
        states.set(8191, State::Absent);
        let page = Page { generation: 5, states };
        let bytes = page.encode(header().id, 3);
        assert!(Page::decode(&bytes, &header(), 3).unwrap().unwrap() == page);
        let error = |header: &Header, region| Page::decode(&bytes, header, region).err();
        assert_eq!(error(&header(), 4), Some(Damage::Region(3)));
        let other = Header { id: Uuid::from_u128(9), ..header() };
        assert_eq!(error(&other, 3), Some(Damage::Layer(header().id)));
        let sealed = Header { sealed: Some(4), ..header() };
        assert_eq!(error(&sealed, 3), Some(Damage::Generation { found: 5, sealed: 4 }));
        assert!(Page::decode(&[0; PAGE_SIZE], &header(), 3).unwrap().is_none());
    }

    #[test]
    fn every_torn_page_is_found() {
        let mut states = States::default();
        let old = Page { generation: 5, states: states.clone() }.encode(header().id, 3);
        states.set(100, State::Data);
        let new = Page { generation: 7, states }.encode(header().id, 3);
        // Any of its sectors may have reached the disk.
        for sectors in 1..255u32 {
            let mut torn = old;
            for sector in (0..8).filter(|sector| sectors >> sector & 1 != 0) {
                let range = sector * 512..(sector + 1) * 512;
                torn[range.clone()].copy_from_slice(&new[range]);
            }
            match Page::decode(&torn, &header(), 3) {
                Err(Damage::Checksum) => {}
                Ok(Some(_)) => assert!(torn == old || torn == new),
                _ => panic!("{sectors:#b}"),
            }
        }
    }

    #[test]
    fn slots_do_not_overlap() {
        let headers = Slot::BOTH.map(Slot::of_header);
        let pages = (0..3).flat_map(|region| Slot::BOTH.map(|slot| slot.of_page(region)));
        let places: Vec<u64> = headers.into_iter().chain(pages).collect();
        let places: [u64; 8] = places.try_into().unwrap();
        assert_eq!(places, [0, 1, 2, 3, 4, 5, 6, 7].map(|page| page * 4096));
        assert_eq!(
            places.map(Slot::region_at),
            [None, None, Some(0), Some(0), Some(1), Some(1), Some(2), Some(2)]
        );
        assert_eq!((regions(REGION_SIZE), regions(REGION_SIZE + 1), regions(u64::MAX)), (1, 2, 1 << 21));
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_header_or_an_error(bytes in proptest::collection::vec(any::<u8>(), PAGE_SIZE), signed: bool) {
            let mut bytes: PageBytes = bytes.try_into().unwrap();
            if signed {
                put(&mut bytes, 0, &HEADER_MAGIC);
                put(&mut bytes, 8, &VERSION.to_le_bytes());
                sign(&mut bytes);
            }
            let _ = Header::decode(&bytes);
            if signed {
                put(&mut bytes, 0, &PAGE_MAGIC);
                put(&mut bytes, 24, header().id.as_bytes());
                put(&mut bytes, 8, &3u32.to_le_bytes());
                sign(&mut bytes);
            }
            if let Ok(Some(page)) = Page::decode(&bytes, &header(), 3) {
                assert!((REGION_BLOCKS..REGION_BLOCKS + 9).all(|block| page.states.get(block) == State::Absent));
            }
        }
    }
}
