//! The PVH start info (Xen `public/arch-x86/hvm/start_info.h`, version 1).

use linux_loader::configurator::pvh::PvhBootConfigurator;
use linux_loader::configurator::{BootConfigurator, BootParams};
use linux_loader::loader::elf::start_info::{hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info};
use vm_memory::{Address, GuestAddress, GuestMemoryError};

use super::Initrd;
use crate::memory::{self, GuestMemory, boot_data};

/// `XEN_HVM_START_MAGIC_VALUE`: "xEn3" with the 0x80 bit of the "E" set.
const MAGIC: u32 = 0x336e_c578;

pub(super) fn write_start_info(
    memory: &GuestMemory,
    initrd: Option<Initrd>,
    rsdp: GuestAddress,
) -> Result<(), GuestMemoryError> {
    let map: Vec<hvm_memmap_table_entry> = memory::memory_map(memory)
        .iter()
        .map(|range| hvm_memmap_table_entry {
            addr: range.start,
            size: range.size,
            type_: range.kind as u32,
            reserved: 0,
        })
        .collect();
    let info = hvm_start_info {
        magic: MAGIC,
        version: 1,
        cmdline_paddr: boot_data::COMMAND_LINE.raw_value(),
        rsdp_paddr: rsdp.raw_value(),
        memmap_paddr: boot_data::MEMORY_MAP.raw_value(),
        memmap_entries: map.len() as u32,
        nr_modules: u32::from(initrd.is_some()),
        modlist_paddr: boot_data::MODULE_LIST.raw_value(),
        ..Default::default()
    };
    let mut parameters = BootParams::new(&info, boot_data::START_INFO);
    parameters.set_sections(&map, boot_data::MEMORY_MAP);
    if let Some(Initrd { address, size }) = initrd {
        let module = hvm_modlist_entry { paddr: address.raw_value(), size, ..Default::default() };
        parameters.set_modules(&[module], boot_data::MODULE_LIST);
    }
    PvhBootConfigurator::write_bootparams(&parameters, memory)
        .map_err(|_| GuestMemoryError::InvalidGuestAddress(boot_data::START_INFO))
}
