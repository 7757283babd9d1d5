//! Files in memory that know what a crash could leave of them.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex};

use super::Random;
use crate::layered::storage::Storage;
use crate::{Operation, SECTOR_SIZE};

const PAGE: u64 = 4096;
const SECTORS: u64 = PAGE / SECTOR_SIZE;

/// What is in a file, without holes.
#[derive(Clone, Default)]
pub struct Content {
    pages: BTreeMap<u64, Arc<[u8; PAGE as usize]>>,
    size: u64,
}

/// Something that happens to a file, no larger than a page.
#[derive(Clone)]
pub enum Change {
    Write { page: u64, at: usize, bytes: Vec<u8> },
    Punch { page: u64 },
    Grow { size: u64 },
}

pub enum Event {
    Change(Change),
    Sync,
    /// Something that whoever writes wants to be remembered.
    Mark(usize),
}

/// All that happens, in order, and to which file.
pub type Log = Arc<Mutex<Vec<(usize, Event)>>>;

/// A file in memory.
#[derive(Clone)]
pub struct Recorder {
    file: usize,
    log: Log,
    content: Arc<Mutex<Content>>,
    /// The next sync fails.
    pub fails: Arc<Mutex<bool>>,
    /// Something happens during the next sync, which does not cover it.
    pub meanwhile: Arc<Mutex<Option<Meanwhile>>>,
}

pub type Meanwhile = Box<dyn FnOnce() + Send>;

impl Content {
    pub fn apply(&mut self, change: &Change) {
        match change {
            Change::Write { page, at, bytes } => {
                let content = Arc::make_mut(self.pages.entry(*page).or_insert_with(|| Arc::new([0; 4096])));
                content[*at..at + bytes.len()].copy_from_slice(bytes);
                self.size = self.size.max(page * PAGE + (at + bytes.len()) as u64);
            }
            Change::Punch { page } => drop(self.pages.remove(page)),
            Change::Grow { size } => self.size = self.size.max(*size),
        }
    }

    /// Applies only some of a change's sectors.
    pub fn tear(&mut self, change: &Change, random: &mut Random) {
        let Change::Write { page, at, bytes } = change else { return };
        for (index, sector) in bytes.chunks(SECTOR_SIZE as usize).enumerate() {
            if random.once_in(2) {
                let at = at + index * SECTOR_SIZE as usize;
                self.apply(&Change::Write { page: *page, at, bytes: sector.to_vec() });
            }
        }
    }
}

impl Recorder {
    pub fn new(file: usize, log: &Log, content: Content) -> Self {
        let content = Arc::new(Mutex::new(content));
        Self { file, log: Arc::clone(log), content, fails: Arc::default(), meanwhile: Arc::default() }
    }

    /// Which file it is.
    pub fn number(&self) -> usize {
        self.file
    }

    pub fn content(&self) -> Content {
        self.content.lock().unwrap().clone()
    }

    fn change(&self, change: Change) {
        self.content.lock().unwrap().apply(&change);
        self.log.lock().unwrap().push((self.file, Event::Change(change)));
    }

    fn write(&self, data: &[u8], mut offset: u64) {
        let mut rest = data;
        while !rest.is_empty() {
            let at = (offset % PAGE) as usize;
            let (part, more) = rest.split_at(rest.len().min(PAGE as usize - at));
            self.change(Change::Write { page: offset / PAGE, at, bytes: part.to_vec() });
            offset += part.len() as u64;
            rest = more;
        }
    }
}

impl Storage for Recorder {
    fn grow(&self, size: u64) -> io::Result<()> {
        if size > self.content.lock().unwrap().size {
            self.change(Change::Grow { size });
        }
        Ok(())
    }

    fn size(&self) -> io::Result<u64> {
        Ok(self.content.lock().unwrap().size)
    }

    fn run(&self, operation: &mut Operation) -> io::Result<()> {
        match operation {
            Operation::Read { offset, segments } => {
                let mut bytes = vec![0; segments.len()];
                let there = self.read_at(&mut bytes, *offset)?;
                assert_eq!(there, bytes.len(), "nothing is read from behind the end of a data file");
                segments.copy_from(&bytes);
            }
            Operation::Write { offset, segments } => {
                let mut bytes = vec![0; segments.len()];
                segments.copy_to(&mut bytes);
                self.write(&bytes, *offset);
            }
            Operation::Flush => self.sync()?,
            Operation::Discard { offset, length } => {
                assert!(offset.is_multiple_of(PAGE) && length.is_multiple_of(PAGE));
                let pages = *offset / PAGE..(*offset + *length) / PAGE;
                pages.for_each(|page| self.change(Change::Punch { page }));
            }
            Operation::WriteZeroes { offset, length, .. } => {
                self.write(&vec![0; *length as usize], *offset);
            }
        }
        Ok(())
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let content = self.content.lock().unwrap();
        let sectors = buffer.chunks_mut(SECTOR_SIZE as usize).enumerate();
        for (index, sector) in sectors {
            let at = offset / SECTOR_SIZE + index as u64;
            match content.pages.get(&(at / SECTORS)) {
                Some(page) => {
                    let start = (at % SECTORS * SECTOR_SIZE) as usize;
                    sector.copy_from_slice(&page[start..start + sector.len()]);
                }
                None => sector.fill(0),
            }
        }
        Ok(content.size.saturating_sub(offset).min(buffer.len() as u64) as usize)
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<u64>> {
        let content = self.content.lock().unwrap();
        let next = content.pages.range(offset / PAGE..).next();
        Ok(next.map(|(page, _)| offset.max(page * PAGE)))
    }

    fn write_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        self.write(data, offset);
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        if std::mem::take(&mut *self.fails.lock().unwrap()) {
            return Err(io::Error::other("the medium is gone"));
        }
        self.log.lock().unwrap().push((self.file, Event::Sync));
        let meanwhile = self.meanwhile.lock().unwrap().take();
        if let Some(happens) = meanwhile {
            happens();
        }
        Ok(())
    }
}
