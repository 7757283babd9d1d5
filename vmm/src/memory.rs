//! The guest's physical address space: where RAM, devices and boot data lie, and the RAM itself.
//!
//! ```text
//!   0                RAM; boot data below 640 KiB ([`boot_data`])
//!   0x000a_0000      legacy hole: ACPI tables at 0xe0000, SMBIOS at 0xf0000, reset vector at the end
//!   0x0010_0000      RAM: kernel from 1 MiB up, initrd at the top
//!   0xc000_0000      32-bit hole: the PCI window (512 MiB), then the ECAM
//!   0xfec0_0000      I/O APIC, local APICs, pages that KVM wants on Intel
//!   0x1_0000_0000    the rest of RAM
//! ```

use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

/// Guest RAM as every part of the VMM sees it.
pub type GuestMemory = GuestMemoryMmap<()>;

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// RAM below 4 GiB ends here, in bytes; what does not fit continues at [`HIGH_RAM_START`].
pub const LOW_RAM_LIMIT: u64 = 3 * GIB;
/// RAM above the 32-bit hole starts here.
pub const HIGH_RAM_START: u64 = 4 * GIB;
/// The first byte of RAM above the legacy hole; kernels are loaded from here up.
pub const EXTENDED_RAM_START: u64 = MIB;
/// The end of the RAM below the legacy hole, less the 1 KiB where PCs keep an extended BIOS data area.
pub const BASE_RAM_END: u64 = 0x9_fc00;

/// Where PCI memory BARs are placed.
pub const PCI_WINDOW_START: u64 = LOW_RAM_LIMIT;
/// The size of the PCI window in bytes.
pub const PCI_WINDOW_SIZE: u64 = 512 * MIB;
/// PCI Express configuration space of bus 0 (PCI Firmware 3.3, section 4.1.2).
pub const ECAM_START: u64 = PCI_WINDOW_START + PCI_WINDOW_SIZE;
/// One bus: 32 devices of 8 functions of 4 KiB.
pub const ECAM_SIZE: u64 = MIB;

/// The I/O APIC's registers, where every PC has them.
pub const IO_APIC_START: u32 = 0xfec0_0000;
/// The local APIC's registers after reset.
pub const LOCAL_APIC_START: u32 = 0xfee0_0000;
/// One page for KVM's identity map (Intel CPUs that cannot run real mode).
pub const KVM_IDENTITY_MAP_START: u64 = 0xfffb_c000;
/// Three pages for KVM's task state segment, behind the identity map.
pub const KVM_TSS_START: u64 = KVM_IDENTITY_MAP_START + 0x1000;

/// Where firmware tables begin; the RSDP is the first thing there.
pub const ACPI_START: u64 = 0xe_0000;
/// Operating systems look for the SMBIOS entry point from here to the end of the legacy hole.
pub const SMBIOS_START: u64 = 0xf_0000;
/// Where a PC starts, and where software jumps to start it anew.
pub const RESET_VECTOR: u64 = 0xf_fff0;
/// The end of the legacy hole, and of the firmware tables.
pub const FIRMWARE_END: u64 = EXTENDED_RAM_START;

/// Where the boot loader (us) puts what it hands to the kernel, all below 640 KiB.
pub mod boot_data {
    use vm_memory::GuestAddress;

    /// Global descriptor table of the first CPU.
    pub const GDT: GuestAddress = GuestAddress(0x500);
    /// PVH `hvm_start_info`.
    pub const START_INFO: GuestAddress = GuestAddress(0x6000);
    /// PVH module list, behind the start info.
    pub const MODULE_LIST: GuestAddress = GuestAddress(0x6040);
    /// PVH memory map.
    pub const MEMORY_MAP: GuestAddress = GuestAddress(0x6100);
    /// Linux `boot_params`, the "zero page".
    pub const ZERO_PAGE: GuestAddress = GuestAddress(0x7000);
    /// The first stack, growing down to the zero page's end.
    pub const STACK_TOP: GuestAddress = GuestAddress(0x9000);
    /// Page tables: one PML4, one PDPT and four page directories.
    pub const PAGE_TABLES: GuestAddress = GuestAddress(0x9000);
    /// The kernel command line.
    pub const COMMAND_LINE: GuestAddress = GuestAddress(0x2_0000);
}

/// The smallest guest, in bytes: room for boot data and a small payload.
pub const MIN_RAM: u64 = 4 * MIB;
/// The largest guest, in bytes: fits the 39 physical address bits of the smallest CPUs with KVM.
pub const MAX_RAM: u64 = 256 * GIB;

/// Why there is no guest memory.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Not a size a guest can have.
    #[error("a guest cannot have {0} bytes of memory: it takes 4M to 256G, in steps of 4K")]
    Size(u64),
    /// The host refused.
    #[error("cannot map {size} bytes of guest memory")]
    Map {
        /// The guest's RAM in bytes.
        size: u64,
        /// What the host said.
        source: vm_memory::mmap::FromRangesError,
    },
}

/// What a range of the guest's physical address space is, in the numbers that PVH and e820 share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum RangeKind {
    /// RAM that the guest may use.
    Ram = 1,
    /// Used by the platform.
    Reserved = 2,
}

/// A range of the guest's physical address space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// The first address.
    pub start: u64,
    /// The length in bytes.
    pub size: u64,
    /// What is there.
    pub kind: RangeKind,
}

/// Splits `size` bytes of RAM into the parts below and above the 32-bit hole.
fn ram_ranges(size: u64) -> Vec<(GuestAddress, usize)> {
    let low = size.min(LOW_RAM_LIMIT);
    let mut ranges = vec![(GuestAddress(0), low as usize)];
    if size > low {
        ranges.push((GuestAddress(HIGH_RAM_START), (size - low) as usize));
    }
    ranges
}

/// Checks that a guest can have `size` bytes of RAM.
pub fn check_size(size: u64) -> Result<(), Error> {
    if (MIN_RAM..=MAX_RAM).contains(&size) && size.is_multiple_of(0x1000) {
        Ok(())
    } else {
        Err(Error::Size(size))
    }
}

/// Maps `size` bytes of zeroed RAM. The host gives pages as the guest touches them, in large ones if it can:
/// that spares loading the kernel, and the guest's first steps, some hundred faults for each one left.
pub fn allocate(size: u64) -> Result<GuestMemory, Error> {
    check_size(size)?;
    let memory = GuestMemory::from_ranges(&ram_ranges(size)).map_err(|source| Error::Map { size, source })?;
    for region in memory.iter() {
        // SAFETY: the range is this region's own mapping, and the advice changes nothing but the size of pages.
        let result =
            unsafe { libc::madvise(region.as_ptr().cast(), region.len() as usize, libc::MADV_HUGEPAGE) };
        if result != 0 {
            tracing::debug!(error = %std::io::Error::last_os_error(), "the host has no huge pages for the guest");
        }
    }
    Ok(memory)
}

/// The end of the RAM below 4 GiB.
pub fn low_ram_end(memory: &GuestMemory) -> u64 {
    memory.find_region(GuestAddress(0)).map_or(0, |region| region.len())
}

/// The memory map as the guest is told it (e820 and PVH), in ascending order.
pub fn memory_map(memory: &GuestMemory) -> Vec<Range> {
    let range = |start, end: u64, kind| Range { start, size: end - start, kind };
    let mut map = vec![
        range(0, BASE_RAM_END, RangeKind::Ram),
        range(BASE_RAM_END, FIRMWARE_END, RangeKind::Reserved),
        range(EXTENDED_RAM_START, low_ram_end(memory), RangeKind::Ram),
        // Linux believes the ECAM that ACPI names only if the memory map reserves it.
        range(ECAM_START, ECAM_START + ECAM_SIZE, RangeKind::Reserved),
    ];
    if let Some(high) = memory.find_region(GuestAddress(HIGH_RAM_START)) {
        map.push(range(HIGH_RAM_START, HIGH_RAM_START + high.len(), RangeKind::Ram));
    }
    map
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ram_skips_the_hole() {
        assert_eq!(ram_ranges(256 * MIB), [(GuestAddress(0), 256 << 20)]);
        assert_eq!(ram_ranges(3 * GIB), [(GuestAddress(0), 3 << 30)]);
        assert_eq!(ram_ranges(64 * GIB), [(GuestAddress(0), 3 << 30), (GuestAddress(4 * GIB), 61 << 30)]);
    }

    #[test]
    fn the_map_holds_all_ram_in_order_and_without_overlap() {
        for size in [MIN_RAM, 256 * MIB, 3 * GIB, 3 * GIB + 0x1000, 5 * GIB, 64 * GIB] {
            let map = memory_map(&allocate(size).unwrap());
            for pair in map.windows(2) {
                assert!(pair[0].start + pair[0].size <= pair[1].start, "{size}: {pair:x?}");
            }
            let ram: u64 =
                map.iter().filter(|range| range.kind == RangeKind::Ram).map(|range| range.size).sum();
            assert_eq!(ram, size - (FIRMWARE_END - BASE_RAM_END));
        }
    }

    #[test]
    fn sizes_outside_the_limits_are_refused() {
        for size in [0, 1, MIN_RAM - 0x1000, MIN_RAM + 1, MAX_RAM + 0x1000, u64::MAX] {
            assert!(check_size(size).is_err(), "{size}");
        }
    }
}
