//! Loading a kernel: from files to guest memory and the first CPU's entry state.
//!
//! Two ways in: the PVH entry point for an uncompressed ELF kernel that has one (x86/HVM direct boot ABI),
//! and the 64-bit Linux boot protocol for a bzImage or an ELF kernel without the note
//! (Documentation/arch/x86/boot.rst, section 1.14).
//!
//! The files are a guest owner's, so nothing in them is believed: sizes and addresses are checked against
//! the RAM there is, and whatever is wrong ends in an [`Error`] that says which file and why.

mod linux;
mod pvh;

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};

use linux_loader::bootparam::setup_header;
use linux_loader::loader::elf::{Elf, PvhBootCapability};
use linux_loader::loader::{self, BzImage, KernelLoader, KernelLoaderResult};
use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryError};

use crate::memory::{self, EXTENDED_RAM_START, GuestMemory, boot_data};

/// What is booted. The files are opened by whoever controls the VMM, and read anew at every reset.
#[derive(Debug)]
pub struct BootSource {
    /// An uncompressed ELF kernel or a bzImage.
    pub kernel: File,
    /// The initial RAM file system.
    pub initrd: Option<File>,
    /// The kernel command line.
    pub command_line: String,
}

/// How the first CPU starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// 32-bit protected mode without paging, `ebx` pointing to the start info.
    Pvh {
        /// The kernel's entry point.
        address: GuestAddress,
    },
    /// 64-bit mode with the first 4 GiB mapped one to one, `rsi` pointing to the zero page.
    Linux64 {
        /// The kernel's entry point.
        address: GuestAddress,
    },
}

/// Why a boot source cannot be booted.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel cannot be loaded.
    #[error("cannot load the kernel: {0}")]
    Kernel(KernelError),
    /// The initrd cannot be loaded.
    #[error("cannot load the initrd: {0}")]
    Initrd(InitrdError),
    /// The command line does not suit Linux.
    #[error("the kernel command line {0}")]
    CommandLine(&'static str),
    /// Boot data could not be written; RAM is too small for it.
    #[error("cannot write boot data to guest memory")]
    BootData(#[from] GuestMemoryError),
}

/// What is wrong with a kernel.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum KernelError {
    #[error("reading it failed: {0}")]
    Read(#[from] std::io::Error),
    #[error("the file is empty")]
    Empty,
    #[error("it is not a regular file")]
    NotAFile,
    #[error("it is {0} bytes long; kernels are at most {MAX_KERNEL_FILE}")]
    TooLong(u64),
    #[error("it is neither an x86-64 ELF file nor a bzImage")]
    UnknownFormat,
    #[error("the file is damaged or truncated, or it does not fit in the guest's memory ({0})")]
    Load(loader::Error),
    #[error("it needs memory up to {end:#x}, and the guest's ends at {limit:#x}; give the guest more memory")]
    DoesNotFit { end: u64, limit: u64 },
    #[error("its entry point {0:#x} lies outside what was loaded")]
    Entry(u64),
    #[error("the file is damaged: it names too many {0}")]
    Excessive(&'static str),
    #[error("a segment lies below 1 MiB, where boot data goes")]
    TooLow,
    #[error("it has no 64-bit entry point (boot protocol 2.12 or later with XLF_KERNEL_64 is needed)")]
    No64BitEntry,
}

/// What is wrong with an initrd.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum InitrdError {
    #[error("reading it failed: {0}")]
    Read(#[from] std::io::Error),
    #[error("it is not a regular file")]
    NotAFile,
    #[error("the file is empty")]
    Empty,
    #[error(
        "its {size} bytes do not fit between the kernel's end and {limit:#x}; give the guest more memory"
    )]
    DoesNotFit { size: u64, limit: u64 },
    #[error("the file ended early")]
    Truncated,
}

/// A kernel file is at most this long: the largest with everything built in are a tenth of it, and a
/// sparse file of exabytes must not keep the loader busy.
const MAX_KERNEL_FILE: u64 = 1 << 30;

/// Linux takes 2048 bytes with the terminating zero on x86 (`COMMAND_LINE_SIZE`).
pub const MAX_COMMAND_LINE: usize = 2047;

/// An initrd as loaded.
#[derive(Clone, Copy, Debug)]
struct Initrd {
    address: GuestAddress,
    size: u64,
}

/// A kernel as loaded.
struct Kernel {
    entry: Entry,
    /// The first address behind it, with all that it needs to unpack itself.
    end: u64,
    /// Limits that a bzImage names.
    header: Option<setup_header>,
}

/// Loads `source` into `memory` and writes the boot data. `rsdp` is the address of the ACPI root pointer.
pub fn load(source: &BootSource, memory: &GuestMemory, rsdp: GuestAddress) -> Result<Entry, Error> {
    let kernel = load_kernel(&source.kernel, memory).map_err(Error::Kernel)?;
    let limit = initrd_limit(memory, kernel.header.as_ref());
    let initrd = match &source.initrd {
        Some(file) => Some(load_initrd(file, memory, kernel.end, limit).map_err(Error::Initrd)?),
        None => None,
    };
    check_command_line(&source.command_line)?;
    memory.write_slice(source.command_line.as_bytes(), boot_data::COMMAND_LINE)?;
    memory.write_obj(0u8, boot_data::COMMAND_LINE.unchecked_add(source.command_line.len() as u64))?;
    match kernel.entry {
        Entry::Pvh { .. } => pvh::write_start_info(memory, initrd, rsdp)?,
        Entry::Linux64 { .. } => {
            linux::write_zero_page(memory, kernel.header, initrd, source.command_line.len(), rsdp)?;
            linux::write_page_tables(memory)?;
        }
    }
    Ok(kernel.entry)
}

/// Checks that Linux can take `command_line`.
pub fn check_command_line(command_line: &str) -> Result<(), Error> {
    if command_line.len() > MAX_COMMAND_LINE {
        return Err(Error::CommandLine("is longer than the 2047 bytes that Linux takes"));
    }
    if command_line.bytes().any(|byte| byte < b' ' && byte != b'\t' || byte == 0x7f) {
        return Err(Error::CommandLine("contains control characters"));
    }
    Ok(())
}

fn load_kernel(mut file: &File, memory: &GuestMemory) -> Result<Kernel, KernelError> {
    let metadata = file.metadata()?;
    match (metadata.is_file(), metadata.len()) {
        (false, _) => return Err(KernelError::NotAFile),
        (true, 0) => return Err(KernelError::Empty),
        (true, length) if length > MAX_KERNEL_FILE => return Err(KernelError::TooLong(length)),
        (true, _) => {}
    }
    let mut magic = [0u8; 4];
    file.seek(SeekFrom::Start(0))?;
    let is_elf = file.read_exact(&mut magic).is_ok() && magic == *b"\x7fELF";
    let kernel = if is_elf { load_elf(file, memory)? } else { load_bzimage(file, memory)? };

    let limit = memory::low_ram_end(memory);
    if kernel.end > limit {
        return Err(KernelError::DoesNotFit { end: kernel.end, limit });
    }
    let (Entry::Pvh { address } | Entry::Linux64 { address }) = kernel.entry;
    if !(EXTENDED_RAM_START..kernel.end).contains(&address.raw_value()) {
        return Err(KernelError::Entry(address.raw_value()));
    }
    Ok(kernel)
}

fn load_elf(file: &File, memory: &GuestMemory) -> Result<Kernel, KernelError> {
    check_elf(file)?;
    let mut file = file;
    let KernelLoaderResult { kernel_load, kernel_end, pvh_boot_cap, .. } =
        Elf::load(memory, None, &mut file, None).map_err(KernelError::Load)?;
    let entry = match pvh_boot_cap {
        PvhBootCapability::PvhEntryPresent(address) => Entry::Pvh { address },
        _ => Entry::Linux64 { address: kernel_load },
    };
    Ok(Kernel { entry, end: kernel_end, header: None })
}

/// Checks what the loader does not: that this is an x86-64 executable, that nothing of it goes where the boot
/// data goes, and that loading it takes no longer than reading the file. (A sparse file of a few KiB can name
/// 65,535 segments, each as long as the file, or notes that take weeks to walk.)
fn check_elf(mut file: &File) -> Result<(), KernelError> {
    use linux_loader::elf::{EM_X86_64, Elf64_Ehdr, Elf64_Phdr, PT_LOAD, PT_NOTE};
    use vm_memory::ByteValued;
    const ELFCLASS64: u8 = 2;
    const MAX_SEGMENTS: u16 = 64;
    const MAX_NOTES: u64 = 64 << 10;

    let length = file.metadata()?.len();
    let mut loaded: u64 = 0;
    let mut header = Elf64_Ehdr::default();
    file.seek(SeekFrom::Start(0))?;
    file.read_exact(header.as_mut_slice())?;
    if header.e_ident[4] != ELFCLASS64 || header.e_machine != EM_X86_64 {
        return Err(KernelError::UnknownFormat);
    }
    if header.e_phnum > MAX_SEGMENTS {
        return Err(KernelError::Excessive("segments"));
    }
    file.seek(SeekFrom::Start(header.e_phoff))?;
    for _ in 0..header.e_phnum {
        let mut segment = Elf64_Phdr::default();
        file.read_exact(segment.as_mut_slice())?;
        match segment.p_type {
            PT_LOAD if segment.p_filesz > 0 && segment.p_paddr < EXTENDED_RAM_START => {
                return Err(KernelError::TooLow);
            }
            PT_LOAD => loaded = loaded.saturating_add(segment.p_filesz),
            PT_NOTE if segment.p_filesz > MAX_NOTES => return Err(KernelError::Excessive("notes")),
            _ => {}
        }
    }
    if loaded > length { Err(KernelError::Excessive("bytes to load")) } else { Ok(()) }
}

fn load_bzimage(file: &File, memory: &GuestMemory) -> Result<Kernel, KernelError> {
    use loader::bzimage;
    /// `xloadflags`: the kernel has the 64-bit entry point at 0x200.
    const XLF_KERNEL_64: u16 = 1;
    const ENTRY_64: u64 = 0x200;

    let mut file = file;
    let loaded =
        BzImage::load(memory, None, &mut file, Some(GuestAddress(EXTENDED_RAM_START))).map_err(|error| {
            match error {
                loader::Error::Bzimage(
                    bzimage::Error::InvalidBzImage | bzimage::Error::ReadBzImageHeader,
                ) => KernelError::UnknownFormat,
                error => KernelError::Load(error),
            }
        })?;
    let header = loaded.setup_header.ok_or(KernelError::UnknownFormat)?;
    let (version, flags, init_size) = (header.version, header.xloadflags, header.init_size);
    if version < 0x020c || flags & XLF_KERNEL_64 == 0 {
        return Err(KernelError::No64BitEntry);
    }
    let start = loaded.kernel_load.raw_value();
    // A relocatable kernel unpacks itself where it was loaded, or at its preferred address if that is higher.
    let unpacked = start.max(header.pref_address).saturating_add(u64::from(init_size));
    Ok(Kernel {
        entry: Entry::Linux64 { address: GuestAddress(start.saturating_add(ENTRY_64)) },
        end: loaded.kernel_end.max(unpacked),
        header: Some(header),
    })
}

/// The address that an initrd must end below.
fn initrd_limit(memory: &GuestMemory, header: Option<&setup_header>) -> u64 {
    let ram_end = memory::low_ram_end(memory);
    match header {
        // The field names the highest address that the initrd may occupy.
        Some(header) if header.initrd_addr_max > 0 => ram_end.min(u64::from(header.initrd_addr_max) + 1),
        _ => ram_end,
    }
}

/// Puts the initrd as high as it goes, so that it is out of the way of a kernel that unpacks itself.
fn load_initrd(mut file: &File, memory: &GuestMemory, floor: u64, limit: u64) -> Result<Initrd, InitrdError> {
    const PAGE: u64 = 0x1000;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(InitrdError::NotAFile);
    }
    let size = metadata.len();
    if size == 0 {
        return Err(InitrdError::Empty);
    }
    let start = limit.checked_sub(size).map(|start| start - start % PAGE);
    let Some(start) = start.filter(|start| *start >= floor) else {
        return Err(InitrdError::DoesNotFit { size, limit });
    };
    let address = GuestAddress(start);
    file.seek(SeekFrom::Start(0))?;
    memory.read_exact_volatile_from(address, &mut file, size as usize).map_err(|_| InitrdError::Truncated)?;
    Ok(Initrd { address, size })
}

#[cfg(test)]
mod tests {
    use super::*;
    use linux_loader::elf::{EM_X86_64, Elf64_Ehdr, Elf64_Phdr, PT_LOAD, PT_NOTE};
    use std::io::Write;
    use std::time::{Duration, Instant};
    use vm_memory::ByteValued;

    const ENTRY: u64 = 0x10_0000;
    const CONTENT_AT: u64 = 0x1000;

    fn segment(kind: u32, offset: u64, size: u64) -> Elf64_Phdr {
        Elf64_Phdr {
            p_type: kind,
            p_offset: offset,
            p_paddr: ENTRY,
            p_filesz: size,
            p_memsz: size,
            ..Elf64_Phdr::default()
        }
    }

    /// A kernel of 8 KiB with these program headers, at `headers_at`, and with `content` at [`CONTENT_AT`].
    fn kernel(headers_at: u64, segments: &[Elf64_Phdr], content: &[u8]) -> File {
        let mut header = Elf64_Ehdr {
            e_machine: EM_X86_64,
            e_entry: ENTRY,
            e_phoff: headers_at,
            e_phentsize: size_of::<Elf64_Phdr>() as u16,
            e_phnum: segments.len() as u16,
            ..Elf64_Ehdr::default()
        };
        header.e_ident[..6].copy_from_slice(b"\x7fELF\x02\x01");
        let mut bytes =
            [header.as_slice(), &segments.iter().flat_map(|one| one.as_slice()).copied().collect::<Vec<_>>()]
                .concat();
        bytes.resize(CONTENT_AT as usize, 0);
        bytes.extend(content);
        bytes.resize(0x2000, 0);
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&bytes).unwrap();
        file
    }

    fn note(name_size: u32, content_size: u32, kind: u32) -> Vec<u8> {
        [name_size, content_size, kind].iter().flat_map(|field| field.to_le_bytes()).collect()
    }

    /// A mistake of rust-vmm's loader (GHSA-52h2-m2cf-9jh6): a file that points behind its own end kept it busy for ever.
    #[test]
    fn a_kernel_that_points_behind_its_end_is_refused_at_once() {
        const HEADERS: u64 = size_of::<Elf64_Ehdr>() as u64;
        let load = segment(PT_LOAD, CONTENT_AT, 0x1000);
        let notes = |size| segment(PT_NOTE, CONTENT_AT, size);
        let repeated = |bytes: Vec<u8>| bytes.repeat(0x1000 / 12);
        let cases = [
            ("a good one", kernel(HEADERS, &[load], &[]), true),
            ("headers", kernel(0x2000, &[load], &[]), false),
            ("headers far away", kernel(i64::MAX as u64, &[load], &[]), false),
            ("headers nowhere", kernel(u64::MAX, &[load], &[]), false),
            ("headers half", kernel(0x2000 - 1, &[load], &[]), false),
            ("content", kernel(HEADERS, &[segment(PT_LOAD, 0x2000, 0x1000)], &[]), false),
            ("content half", kernel(HEADERS, &[segment(PT_LOAD, 0x1800, 0x1000)], &[]), false),
            ("content far away", kernel(HEADERS, &[segment(PT_LOAD, i64::MAX as u64, 1)], &[]), false),
            ("content nowhere", kernel(HEADERS, &[segment(PT_LOAD, u64::MAX, 1)], &[]), false),
            ("content without end", kernel(HEADERS, &[segment(PT_LOAD, CONTENT_AT, u64::MAX)], &[]), false),
            ("notes", kernel(HEADERS, &[load, segment(PT_NOTE, 0x2000, 0x1000)], &[]), false),
            ("notes nowhere", kernel(HEADERS, &[load, segment(PT_NOTE, u64::MAX, 16)], &[]), false),
            ("notes without end", kernel(HEADERS, &[load, notes(u64::MAX)], &[]), false),
            ("empty notes", kernel(HEADERS, &[load, notes(64 << 10)], &[]), false),
            ("a long name", kernel(HEADERS, &[load, notes(4096)], &note(u32::MAX, 0, 1)), false),
            ("long notes", kernel(HEADERS, &[load, notes(4096)], &note(u32::MAX - 3, u32::MAX - 3, 1)), true),
            (
                "a short entry note",
                kernel(HEADERS, &[load, notes(4096)], &[note(4, 3, 18), b"Xen\0".to_vec()].concat()),
                false,
            ),
            ("entry notes of others", kernel(HEADERS, &[load, notes(4092)], &repeated(note(4, 0, 18))), true),
        ];
        let memory = memory::allocate(16 << 20).unwrap();
        for (what, file, is_good) in cases {
            let begun = Instant::now();
            let result = load_kernel(&file, &memory);
            assert_eq!(result.is_ok(), is_good, "{what}: {:?}", result.err());
            assert!(begun.elapsed() < Duration::from_secs(2), "{what} took {:?}", begun.elapsed());
        }
    }
}
