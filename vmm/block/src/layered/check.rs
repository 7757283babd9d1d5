//! Finding out what is wrong with layers that nobody is using.

use std::fmt;
use std::io;

use uuid::Uuid;

use super::format::{BLOCK_SIZE, Damage, Header, REGION_BLOCKS, Slot, State, States, regions};
use super::map::{MapError, newest, read_header, read_header_slot, read_slots};
use super::storage::Storage;

/// What was found out about layers, from the bottom.
#[derive(Debug, Default)]
pub struct Report {
    /// What each layer is; none if its header cannot be read.
    pub layers: Vec<Option<Summary>>,
    /// What is remarkable.
    pub findings: Vec<Finding>,
}

/// What a layer is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Summary {
    /// Whose content it is.
    pub id: Uuid,
    /// The layer that it belongs on top of.
    pub parent: Option<Uuid>,
    /// Of the volume, in bytes.
    pub size: u64,
    /// Whether it takes no more writes.
    pub is_sealed: bool,
    /// Bytes that it has data for.
    pub data: u64,
    /// Bytes that it says are zeroes.
    pub zeroes: u64,
}

/// Something remarkable about a layer.
#[derive(Debug, PartialEq, Eq)]
pub struct Finding {
    /// Which, counted from the bottom.
    pub layer: usize,
    /// What.
    pub problem: Problem,
}

/// What can be remarkable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Problem {
    /// It cannot be opened: why.
    Missing(String),
    /// A file cannot be read: which, and why.
    Unreadable(&'static str, String),
    /// The map has no header that can be used: why.
    Header(String),
    /// One of the map's headers cannot be used, and the other is: why.
    SpareHeader(String),
    /// It is on top of another layer than it was made for.
    Parent {
        /// What it was made to be on top of.
        parent: Option<Uuid>,
        /// What it is on top of.
        found: Option<Uuid>,
    },
    /// It is smaller than the layer below it, in bytes.
    Smaller {
        /// Its size.
        size: u64,
        /// That of the other.
        below: u64,
    },
    /// It is not the top, and not sealed.
    NotSealed,
    /// A region's page cannot be used: which, and why.
    Page(u32, String),
    /// One of a region's pages is half written, and the other is used.
    TornPage(u32),
    /// A page says something of a block that is behind the volume's end.
    Behind(u64),
    /// The data file ends before data that the map says is there, in bytes.
    Short {
        /// How much it has.
        size: u64,
        /// Where the data ends.
        needed: u64,
    },
}

impl Problem {
    /// Whether content is lost or cannot be trusted. Else it is what a crash may leave.
    pub fn is_damage(&self) -> bool {
        !matches!(self, Self::SpareHeader(_) | Self::NotSealed | Self::TornPage(_))
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = |id: &Option<Uuid>| id.map_or("nothing".to_owned(), |id| format!("layer {id}"));
        match self {
            Self::Missing(why) => write!(f, "it cannot be opened, and nothing of it can be read: {why}"),
            Self::Unreadable(file, why) => write!(f, "the {file} file cannot be read: {why}"),
            Self::Header(why) => write!(f, "the map cannot be used, and nothing of the layer can be read: {why}"),
            Self::SpareHeader(why) => write!(
                f,
                "one of the map's two headers cannot be used ({why}); the other one is, and nothing is lost if a crash came \
                 while the layer was grown or sealed"
            ),
            Self::Parent { parent, found } => write!(
                f,
                "it belongs on top of {}, and is on top of {}: blocks that it does not have would be the wrong ones",
                name(parent),
                name(found)
            ),
            Self::Smaller { size, below } => {
                write!(f, "it has {size} bytes, and the layer below it {below}: layers only grow")
            }
            Self::NotSealed => f.write_str(
                "it is below another one, and not sealed: a crash came before it was marked, and nothing that was flushed \
                 is lost",
            ),
            Self::Page(region, why) => write!(
                f,
                "it is not known where the 32 MiB of region {region} are, and reading them is an error: {why}"
            ),
            Self::TornPage(region) => write!(
                f,
                "a crash came while the page of region {region} was written; what was flushed before is there"
            ),
            Self::Behind(block) => write!(f, "the map knows of block {block}, which is behind the volume's end"),
            Self::Short { size, needed } => write!(
                f,
                "the data file has {size} bytes, and there should be data up to {needed}: it was cut off, or is another one"
            ),
        }
    }
}

impl Report {
    /// Whether nothing is lost.
    pub fn is_sound(&self) -> bool {
        !self.findings.iter().any(|finding| finding.problem.is_damage())
    }

    pub(super) fn add(&mut self, layer: usize, problem: Problem) {
        self.findings.push(Finding { layer, problem });
    }
}

impl fmt::Display for Report {
    /// A line for each finding, or one that says that there is none.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Finding { layer, problem } in &self.findings {
            let kind = if problem.is_damage() { "damage" } else { "note" };
            writeln!(f, "{kind}: layer {layer}: {problem}")?;
        }
        if self.findings.is_empty() { writeln!(f, "{} layers are sound", self.layers.len()) } else { Ok(()) }
    }
}

/// The data and the map of a layer.
pub type Files = (Box<dyn Storage>, Box<dyn Storage>);

/// Looks at layers, from the bottom. Those that could not be opened are none.
pub fn inspect(files: &[Option<Files>], report: &mut Report) {
    let mut below: Option<Header> = None;
    for (index, files) in files.iter().enumerate() {
        let is_first = report.layers.is_empty();
        let header = files.as_ref().and_then(|files| check_layer(index, files, report));
        if header.is_none() {
            report.layers.push(None);
        }
        if let Some(header) = &header
            && (is_first || below.is_some())
        {
            check_place(index, header, below.as_ref(), report);
        }
        // Whether what is on top of a layer that cannot be read belongs there is not known.
        below = header;
    }
    for index in 0..report.layers.len().saturating_sub(1) {
        if report.layers.get(index).is_some_and(|layer| layer.as_ref().is_some_and(|layer| !layer.is_sealed))
        {
            report.add(index, Problem::NotSealed);
        }
    }
}

fn check_place(index: usize, header: &Header, below: Option<&Header>, report: &mut Report) {
    let found = below.map(|below| below.id);
    if header.parent != found {
        report.add(index, Problem::Parent { parent: header.parent, found });
    }
    if let Some(below) = below.filter(|below| below.size > header.size) {
        report.add(index, Problem::Smaller { size: header.size, below: below.size });
    }
}

/// Looks at a layer by itself. None if it has no header.
fn check_layer(index: usize, (data, map): &Files, report: &mut Report) -> Option<Header> {
    let header = match read_header(&**map) {
        Ok((header, _)) => header,
        Err(MapError::Io(error)) => {
            report.add(index, Problem::Unreadable("map", error.to_string()));
            return None;
        }
        Err(error) => {
            report.add(index, Problem::Header(error.to_string()));
            return None;
        }
    };
    for slot in Slot::BOTH {
        if let Ok(Err(damage)) = read_header_slot(&**map, slot) {
            report.add(index, Problem::SpareHeader(damage.to_string()));
        }
    }
    let mut summary = Summary {
        id: header.id,
        parent: header.parent,
        size: header.size,
        is_sealed: header.sealed.is_some(),
        data: 0,
        zeroes: 0,
    };
    if let Err(error) = check_pages(index, &header, &**data, &**map, &mut summary, report) {
        report.add(index, Problem::Unreadable("map", error.to_string()));
    }
    report.layers.push(Some(summary));
    Some(header)
}

fn check_pages(
    index: usize,
    header: &Header,
    data: &dyn Storage,
    map: &dyn Storage,
    summary: &mut Summary,
    report: &mut Report,
) -> io::Result<()> {
    let mut needed = 0;
    let mut next = 0;
    while let Some(region) = map.next_data(Slot::First.of_page(next))?.and_then(Slot::region_at) {
        if region >= regions(header.size) {
            break;
        }
        next = region + 1;
        let slots = read_slots(map, header, region)?;
        let is_torn = slots.contains(&Err(Damage::Checksum));
        match newest(slots, header) {
            Err(damage) => report.add(index, Problem::Page(region, damage.to_string())),
            Ok((page, _)) => {
                if is_torn {
                    report.add(index, Problem::TornPage(region));
                }
                let states = page.unwrap_or_default().states;
                needed = count(&states, region, summary).unwrap_or(needed);
                let first = u64::from(region) * REGION_BLOCKS;
                let end = header.size.div_ceil(BLOCK_SIZE);
                let behind = (end.max(first)..first + REGION_BLOCKS)
                    .find(|block| states.get(block % REGION_BLOCKS) != State::Absent);
                if let Some(block) = behind {
                    report.add(index, Problem::Behind(block));
                }
            }
        }
    }
    let size = data.size()?;
    if size < needed {
        report.add(index, Problem::Short { size, needed });
    }
    Ok(())
}

/// Adds a region up. Returns where its data ends in the data file.
fn count(states: &States, region: u32, summary: &mut Summary) -> Option<u64> {
    let mut end = None;
    for block in 0..REGION_BLOCKS {
        match states.get(block) {
            State::Absent => {}
            State::Zero => summary.zeroes += BLOCK_SIZE,
            State::Data => {
                summary.data += BLOCK_SIZE;
                end = Some((u64::from(region) * REGION_BLOCKS + block + 1) * BLOCK_SIZE);
            }
        }
    }
    end
}
