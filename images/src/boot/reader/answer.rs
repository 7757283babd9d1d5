//! What the guest writes on its second disk.
//!
//! Everything is little-endian and at a place of its own; between them the disk, which begins empty, stays zero.
//!
//! | at byte | | |
//! | --- | --- | --- |
//! | 0 | header | see below |
//! | 512 | text | at most [`MAX_TEXT`] bytes |
//! | 1 MiB | kernel | at most [`MAX_KERNEL`] bytes |
//! | 513 MiB | initial RAM file systems, put together | at most [`MAX_INITRD`] bytes |
//! | 1025 MiB | the store for what is written to the disk | 1 GiB, nothing that the host reads |
//!
//! | at byte | header | |
//! | --- | --- | --- |
//! | 0 | magic | `INKPBOOT` |
//! | 8 | version | 4 bytes, [`VERSION`] |
//! | 12 | state | 4 bytes: 1 begun, 2 there is nothing to boot, 3 found |
//! | 16 | length of the text | 8 bytes, in bytes, as all lengths |
//! | 24 | length of the kernel | 8 bytes |
//! | 32 | length of the initial RAM file system | 8 bytes, 0 if there is none |
//!
//! The text of state 2 says why, in UTF-8. That of state 3 is the number of the partition (4 bytes, 0 for a disk without
//! any), the paths of the configuration (empty if there is none) and of the kernel, the entry's title and arguments, and
//! the paths of the initial RAM file systems. Each of these strings has its length in front, in 4 bytes, as that list has
//! its count.
//!
//! There is no checksum: the header is written when all the rest is on the disk, and more would prove nothing.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

use nix::errno::Errno;
use nix::libc;

use crate::boot::disk::{BUDGET, Disk, ReadError, Region, SECTOR, field, le32, le64};
use crate::boot::entry::MAX_INITRDS;
use crate::boot::error::{cut, shown};
use crate::boot::load::{MAX_INITRD, MAX_KERNEL, bootable};
use crate::boot::menu::Found;
use crate::boot::{self, BootSource, Origin, Place, memory};

const MAGIC: &[u8; 8] = b"INKPBOOT";

/// The version of this format.
const VERSION: u32 = 1;

const BEGUN: u32 = 1;
const NOTHING: u32 = 2;
const FOUND: u32 = 3;

const TEXT_AT: u64 = SECTOR;
const KERNEL_AT: u64 = 1 << 20;
const INITRD_AT: u64 = KERNEL_AT + MAX_KERNEL;

/// The longest text, in bytes.
const MAX_TEXT: u64 = KERNEL_AT - TEXT_AT;

/// Where the store begins, in bytes.
pub const STORE_AT: u64 = INITRD_AT + MAX_INITRD;

/// How large the second disk has to be, in bytes: 2 GiB and 1 MiB. It begins empty, as a sparse file, and takes as much
/// room as kernel, initial RAM file system and replayed log do, which is some 100 MiB.
pub const ANSWER_DISK: u64 = STORE_AT + (1 << 30);

/// How much is read at once, in bytes.
const PIECE: u64 = 1 << 20;

/// What a guest says that finds that it began before.
const CRASHED: &str = "Linux crashed when it was to read the disk, which may be corrupt";

/// How long a reason may be that the guest gives, in characters.
const MAX_REASON: usize = 1000;

/// Why an answer says nothing to boot.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The guest has written nothing.
    #[error("the guest that was to read the disk has not come so far (its console may say why)")]
    NotBegun,
    /// The guest has begun, and was ended.
    #[error("the guest that was to read the disk was ended before it had an answer")]
    NotEnded,
    /// What the guest says.
    #[error("{}", cut(.0, MAX_REASON))]
    Nothing(String),
    /// Another program's.
    #[error(
        "the guest that was to read the disk answers in version {0}, not {VERSION}: build the image boot-reader anew"
    )]
    Version(u32),
    /// Something else is wrong with it.
    #[error("the guest that was to read the disk gives an answer that makes no sense: {0}")]
    Malformed(&'static str),
    /// It cannot be read.
    #[error("the answer of the guest that was to read the disk cannot be read")]
    Read(#[from] ReadError),
}

/// Reads the answer of a guest, which has ended. The kernel and the initial RAM file system are copied into memory.
///
/// # Errors
/// The guest has found nothing to boot, has not come to an answer, or gives one that is not accepted.
pub fn answer(disk: &dyn Disk) -> Result<BootSource, boot::Error> {
    let budget = std::cell::Cell::new(BUDGET);
    let header = Header::read(disk, &budget).map_err(boot::Error::Reader)?;
    let (origin, arguments) = header.origin().map_err(boot::Error::Reader)?;
    let kernel = header.copy(c"kernel", KERNEL_AT, header.kernel)?;
    let kernel = bootable(kernel, origin.place, &origin.kernel)?;
    let mut initrd = None;
    if header.initrd > 0 {
        let copy = header.copy(c"initrd", INITRD_AT, header.initrd)?;
        memory::seal(&copy).map_err(boot::Error::Memory)?;
        initrd = Some(copy);
    }
    BootSource::new(kernel, initrd, &arguments, origin)
}

/// The header of an answer that has found something, with its lengths checked.
struct Header<'a> {
    disk: Region<'a>,
    text: Vec<u8>,
    kernel: u64,
    initrd: u64,
}

impl<'a> Header<'a> {
    fn read(disk: &'a dyn Disk, budget: &'a std::cell::Cell<u64>) -> Result<Self, Error> {
        let disk = Region::whole(disk, budget)?;
        let header: [u8; SECTOR as usize] = disk.bytes(0)?;
        if &field::<8>(&header, 0) != MAGIC {
            return Err(Error::NotBegun);
        }
        match le32(&header, 8) {
            VERSION => {}
            other => return Err(Error::Version(other)),
        }
        let (length, kernel, initrd) = (le64(&header, 16), le64(&header, 24), le64(&header, 32));
        if length > MAX_TEXT {
            return Err(Error::Malformed("its text is too long"));
        }
        let read_text = || {
            let mut text = vec![0; usize::try_from(length).unwrap_or(0)];
            disk.read(TEXT_AT, &mut text).map(|()| text)
        };
        match le32(&header, 12) {
            BEGUN => return Err(Error::NotEnded),
            NOTHING => {
                let reason = String::from_utf8_lossy(&read_text()?).trim().to_owned();
                if reason.is_empty() {
                    return Err(Error::Malformed("there is nothing to boot, for no reason"));
                }
                return Err(Error::Nothing(reason));
            }
            FOUND => {}
            _ => return Err(Error::Malformed("its state is none")),
        }
        if kernel == 0 || kernel > MAX_KERNEL {
            return Err(Error::Malformed("its kernel is empty or too large"));
        }
        if initrd > MAX_INITRD {
            return Err(Error::Malformed("its initial RAM file system is too large"));
        }
        Ok(Self { disk, text: read_text()?, kernel, initrd })
    }

    /// Where the boot source is from, and the entry's arguments.
    fn origin(&self) -> Result<(Origin, String), Error> {
        let mut text = Text(&self.text);
        let place = match text.number()? {
            0 => Place::Disk,
            number => Place::Partition(number),
        };
        let configuration = Some(text.string()?).filter(|path| !path.is_empty());
        let (kernel, title, arguments) = (text.string()?, text.string()?, text.string()?);
        let count = text.number()?;
        if usize::try_from(count).is_ok_and(|count| count > MAX_INITRDS) {
            return Err(Error::Malformed("it has too many initial RAM file systems"));
        }
        let initrds = (0..count).map(|_| text.string()).collect::<Result<Vec<_>, _>>()?;
        if !text.0.is_empty() {
            return Err(Error::Malformed("there is something behind its text"));
        }
        if initrds.is_empty() != (self.initrd == 0) {
            return Err(Error::Malformed(
                "its initial RAM file system has no name, or a name and no contents",
            ));
        }
        Ok((Origin { place, configuration, title, kernel, initrds }, arguments))
    }

    /// Copies something of this length into memory. What is zero stays a hole.
    fn copy(&self, name: &std::ffi::CStr, at: u64, length: u64) -> Result<File, boot::Error> {
        let file = memory::create(name).map_err(boot::Error::Memory)?;
        file.set_len(length).map_err(boot::Error::Memory)?;
        let mut buffer = Vec::new();
        let mut offset = 0;
        while offset < length {
            let count = (length - offset).min(PIECE);
            buffer.resize(usize::try_from(count).unwrap_or(0), 0);
            let read = self.disk.read_contents(at.saturating_add(offset), &mut buffer);
            read.map_err(|error| boot::Error::Reader(error.into()))?;
            if buffer.iter().any(|byte| *byte != 0) {
                file.write_all_at(&buffer, offset).map_err(boot::Error::Memory)?;
            }
            offset += count;
        }
        Ok(file)
    }
}

/// What is left of a text.
struct Text<'t>(&'t [u8]);

impl<'t> Text<'t> {
    fn take(&mut self, length: usize) -> Result<&'t [u8], Error> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or(Error::Malformed("its text is cut off"))?;
        self.0 = rest;
        Ok(taken)
    }

    fn number(&mut self) -> Result<u32, Error> {
        Ok(le32(self.take(4)?, 0))
    }

    fn string(&mut self) -> Result<String, Error> {
        let length = self.number()?;
        let bytes = self.take(usize::try_from(length).unwrap_or(usize::MAX))?;
        String::from_utf8(bytes.to_vec()).map_err(|_| Error::Malformed("its text is no UTF-8"))
    }
}

/// The guest's side: the second disk, to be written to.
pub struct Answer<'d>(&'d File);

impl<'d> Answer<'d> {
    /// Notes that a guest has begun. `None` if it did before and was reset: then there is an answer, or that it crashed is
    /// the answer.
    ///
    /// # Errors
    /// The disk cannot be read or written.
    pub fn begin(disk: &'d File) -> io::Result<Option<Self>> {
        let answer = Self(disk);
        let mut header = [0; SECTOR as usize];
        disk.read_exact_at(&mut header, 0)?;
        if &field::<8>(&header, 0) == MAGIC {
            if le32(&header, 12) == BEGUN {
                Self::refuse(disk, CRASHED)?;
            }
            return Ok(None);
        }
        answer.finish(BEGUN, b"", 0, 0)?;
        Ok(Some(answer))
    }

    /// Says why there is nothing to boot.
    ///
    /// # Errors
    /// The disk cannot be written.
    pub fn refuse(disk: &File, reason: &str) -> io::Result<()> {
        let reason = cut(reason, MAX_REASON);
        Answer(disk).finish(NOTHING, reason.as_bytes(), 0, 0)
    }

    /// Copies what was found.
    ///
    /// # Errors
    /// A file cannot be read, or the disk cannot be written.
    pub fn give(&self, found: Found<'_>) -> Result<(), boot::Error> {
        let (from, entry) = (&found.from, &found.entry);
        let (_, kernel) = from.copy(&entry.kernel, MAX_KERNEL, &mut |offset, piece| {
            self.0.write_all_at(piece, KERNEL_AT.saturating_add(offset))
        })?;
        let initrd = from.copy_initrds(&entry.initrds, &mut |offset, piece| {
            self.0.write_all_at(piece, INITRD_AT.saturating_add(offset))
        })?;
        let (origin, arguments) = found.origin();
        let text = text(&origin, &arguments);
        if text.len() as u64 > MAX_TEXT {
            return Err(boot::Error::Reader(Error::Nothing(format!(
                "the boot entry {:?} is too long",
                shown(&origin.title)
            ))));
        }
        self.finish(FOUND, &text, kernel, initrd).map_err(boot::Error::Memory)
    }

    /// Writes the text and then the header, each of which is on the disk, with all that was written before, when this
    /// returns.
    fn finish(&self, state: u32, text: &[u8], kernel: u64, initrd: u64) -> io::Result<()> {
        self.0.write_all_at(text, TEXT_AT)?;
        write_out(self.0)?;
        let mut header = [0; SECTOR as usize];
        let fields: [&[u8]; 6] = [
            MAGIC,
            &VERSION.to_le_bytes(),
            &state.to_le_bytes(),
            &(text.len() as u64).to_le_bytes(),
            &kernel.to_le_bytes(),
            &initrd.to_le_bytes(),
        ];
        for (to, byte) in header.iter_mut().zip(fields.into_iter().flatten()) {
            *to = *byte;
        }
        self.0.write_all_at(&header, 0)?;
        write_out(self.0)
    }
}

/// Waits until what was written is on its disk. The disk is not told to make it durable, as with a sync: then the host
/// would wait for its own disk, and once the guest has ended it is of no use any more.
fn write_out(disk: &File) -> io::Result<()> {
    let flags =
        libc::SYNC_FILE_RANGE_WAIT_BEFORE | libc::SYNC_FILE_RANGE_WRITE | libc::SYNC_FILE_RANGE_WAIT_AFTER;
    // SAFETY: It touches no memory of this process.
    Errno::result(unsafe { libc::sync_file_range(disk.as_raw_fd(), 0, 0, flags) })?;
    Ok(())
}

fn text(origin: &Origin, arguments: &str) -> Vec<u8> {
    let mut text = Vec::new();
    let place = match origin.place {
        Place::Disk => 0,
        Place::Partition(number) => number,
    };
    text.extend(place.to_le_bytes());
    let mut push = |string: &str| {
        // What is longer than that is longer than all may be.
        text.extend(u32::try_from(string.len()).unwrap_or(u32::MAX).to_le_bytes());
        text.extend(string.as_bytes());
    };
    push(origin.configuration.as_deref().unwrap_or_default());
    push(&origin.kernel);
    push(&origin.title);
    push(arguments);
    text.extend(u32::try_from(origin.initrds.len()).unwrap_or(u32::MAX).to_le_bytes());
    for initrd in &origin.initrds {
        text.extend(u32::try_from(initrd.len()).unwrap_or(u32::MAX).to_le_bytes());
        text.extend(initrd.as_bytes());
    }
    text
}

#[cfg(test)]
mod tests;
