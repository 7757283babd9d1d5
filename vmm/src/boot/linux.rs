//! The 64-bit Linux boot protocol: the zero page and the page tables that it asks for.

use linux_loader::bootparam::{boot_e820_entry, boot_params, setup_header};
use vm_memory::{Address, ByteValued, Bytes, GuestAddress, GuestMemoryError};

use super::Initrd;
use crate::memory::{self, GuestMemory, boot_data};

/// `type_of_loader`: a boot loader without an assigned number.
const LOADER_UNDEFINED: u8 = 0xff;
/// `boot_flag` and `header`: how the kernel knows that the header was filled in.
const BOOT_FLAG: u16 = 0xaa55;
const HEADER_MAGIC: u32 = 0x5372_6448;
/// An ELF kernel says nothing about its alignment; 16 MiB is what bzImages of distributions say.
const KERNEL_ALIGNMENT: u32 = 0x100_0000;

/// `boot_params` is plain data of fixed layout.
#[derive(Clone, Copy)]
#[repr(transparent)]
struct ZeroPage(boot_params);

// SAFETY: `boot_params` is a packed C structure of integers and arrays of integers: it has no padding and
// every bit pattern is a value.
unsafe impl ByteValued for ZeroPage {}

/// Writes `boot_params` for a kernel whose `header` is a bzImage's, or none for an ELF kernel.
pub(super) fn write_zero_page(
    memory: &GuestMemory,
    header: Option<setup_header>,
    initrd: Option<Initrd>,
    command_line_size: usize,
    rsdp: GuestAddress,
) -> Result<(), GuestMemoryError> {
    let elf_header = setup_header {
        boot_flag: BOOT_FLAG,
        header: HEADER_MAGIC,
        kernel_alignment: KERNEL_ALIGNMENT,
        ..Default::default()
    };
    let mut page = boot_params { hdr: header.unwrap_or(elf_header), ..Default::default() };
    page.hdr.type_of_loader = LOADER_UNDEFINED;
    page.hdr.cmd_line_ptr = boot_data::COMMAND_LINE.raw_value() as u32;
    page.hdr.cmdline_size = command_line_size as u32;
    if let Some(Initrd { address, size }) = initrd {
        // Both lie below 4 GiB, because low RAM does.
        page.hdr.ramdisk_image = address.raw_value() as u32;
        page.hdr.ramdisk_size = size as u32;
    }
    page.acpi_rsdp_addr = rsdp.raw_value();
    let map = memory::memory_map(memory);
    let mut table = page.e820_table;
    for (entry, range) in table.iter_mut().zip(&map) {
        *entry = boot_e820_entry { addr: range.start, size: range.size, r#type: range.kind as u32 };
    }
    page.e820_table = table;
    page.e820_entries = map.len() as u8;
    memory.write_obj(ZeroPage(page), boot_data::ZERO_PAGE)
}

/// Maps the first 4 GiB one to one with pages of 2 MiB (Intel SDM volume 3, section 4.5).
pub(super) fn write_page_tables(memory: &GuestMemory) -> Result<(), GuestMemoryError> {
    const PRESENT_WRITABLE: u64 = 0b11;
    const LARGE_PAGE: u64 = 1 << 7;
    const TABLE_SIZE: u64 = 0x1000;
    const ENTRIES: u64 = 512;
    const DIRECTORIES: u64 = 4;

    let pml4 = boot_data::PAGE_TABLES;
    let pdpt = pml4.unchecked_add(TABLE_SIZE);
    let directories = pdpt.unchecked_add(TABLE_SIZE);
    memory.write_obj(pdpt.raw_value() | PRESENT_WRITABLE, pml4)?;
    for directory in 0..DIRECTORIES {
        let table = directories.unchecked_add(directory * TABLE_SIZE);
        memory.write_obj(table.raw_value() | PRESENT_WRITABLE, pdpt.unchecked_add(directory * 8))?;
    }
    let pages: Vec<u8> = (0..DIRECTORIES * ENTRIES)
        .flat_map(|page| ((page << 21) | LARGE_PAGE | PRESENT_WRITABLE).to_le_bytes())
        .collect();
    memory.write_slice(&pages, directories)
}
