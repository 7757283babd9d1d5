//! The first CPU's registers at the kernel's entry point.

use kvm_bindings::{kvm_fpu, kvm_regs, kvm_segment, kvm_sregs};
use vm_memory::{Address, Bytes, GuestMemoryError};

use crate::boot::Entry;
use crate::memory::{GuestMemory, boot_data};

const CR0_PE: u64 = 1;
const CR0_ET: u64 = 1 << 4;
const CR0_NE: u64 = 1 << 5;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const CR4_OSFXSR: u64 = 1 << 9;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;
/// The only bit of RFLAGS that is always set.
const RFLAGS_RESERVED: u64 = 1 << 1;

/// Selectors as the Linux boot protocol names them (`__BOOT_CS`, `__BOOT_DS`); the task state follows.
const CODE: u16 = 0x10;
const DATA: u16 = 0x18;
const TASK: u16 = 0x20;

const TYPE_CODE: u8 = 0xb; // execute, read, accessed
const TYPE_DATA: u8 = 0x3; // read, write, accessed
const TYPE_BUSY_TASK: u8 = 0xb;

fn flat(selector: u16, kind: u8, long: bool) -> kvm_segment {
    kvm_segment {
        base: 0,
        limit: u32::MAX,
        selector,
        type_: kind,
        present: 1,
        dpl: 0,
        db: u8::from(!long),
        s: 1,
        l: u8::from(long),
        g: 1,
        ..Default::default()
    }
}

fn code(entry: Entry) -> kvm_segment {
    flat(CODE, TYPE_CODE, matches!(entry, Entry::Linux64 { .. }))
}

fn data() -> kvm_segment {
    flat(DATA, TYPE_DATA, false)
}

fn task() -> kvm_segment {
    kvm_segment {
        base: 0,
        limit: 0x67,
        selector: TASK,
        type_: TYPE_BUSY_TASK,
        present: 1,
        ..Default::default()
    }
}

/// A segment as the descriptor table holds it (Intel SDM volume 3, section 3.4.5).
fn descriptor(segment: &kvm_segment) -> u64 {
    let limit = if segment.g == 1 { segment.limit >> 12 } else { segment.limit };
    let access = u64::from(segment.type_)
        | u64::from(segment.s) << 4
        | u64::from(segment.dpl) << 5
        | u64::from(segment.present) << 7;
    let flags = u64::from(segment.l) << 1 | u64::from(segment.db) << 2 | u64::from(segment.g) << 3;
    u64::from(limit & 0xffff)
        | (segment.base & 0xff_ffff) << 16
        | access << 40
        | u64::from(limit >> 16 & 0xf) << 48
        | flags << 52
        | (segment.base >> 24 & 0xff) << 56
}

/// Writes the descriptor table that the segment registers claim to be loaded from.
pub fn write_gdt(memory: &GuestMemory, entry: Entry) -> Result<(), GuestMemoryError> {
    let table = [0, 0, descriptor(&code(entry)), descriptor(&data()), descriptor(&task()), 0];
    let bytes: Vec<u8> = table.iter().flat_map(|entry| entry.to_le_bytes()).collect();
    memory.write_slice(&bytes, boot_data::GDT)
}

/// Changes the special registers from their state after a reset.
pub fn set_special(special: &mut kvm_sregs, entry: Entry) {
    special.cs = code(entry);
    for segment in [&mut special.ds, &mut special.es, &mut special.fs, &mut special.gs, &mut special.ss] {
        *segment = data();
    }
    special.tr = task();
    special.gdt.base = boot_data::GDT.raw_value();
    special.gdt.limit = 6 * 8 - 1;
    special.idt.base = 0;
    special.idt.limit = 0;
    special.cr0 = CR0_PE | CR0_ET;
    special.cr4 = 0;
    special.efer = 0;
    if let Entry::Linux64 { .. } = entry {
        special.cr0 |= CR0_NE | CR0_PG;
        special.cr3 = boot_data::PAGE_TABLES.raw_value();
        special.cr4 = CR4_PAE | CR4_OSFXSR;
        special.efer = EFER_LME | EFER_LMA;
    }
}

/// The general registers: the entry point, and where the boot data is.
pub fn general(entry: Entry) -> kvm_regs {
    let stack = boot_data::STACK_TOP.raw_value() - 16;
    let common = kvm_regs { rflags: RFLAGS_RESERVED, rsp: stack, rbp: stack, ..Default::default() };
    match entry {
        Entry::Pvh { address } => {
            kvm_regs { rip: address.raw_value(), rbx: boot_data::START_INFO.raw_value(), ..common }
        }
        Entry::Linux64 { address } => {
            kvm_regs { rip: address.raw_value(), rsi: boot_data::ZERO_PAGE.raw_value(), ..common }
        }
    }
}

/// The floating-point state after FNINIT, with all SSE exceptions masked.
pub fn floating_point() -> kvm_fpu {
    kvm_fpu { fcw: 0x37f, mxcsr: 0x1f80, ..Default::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_are_the_well_known_ones() {
        let address = vm_memory::GuestAddress(0);
        assert_eq!(descriptor(&code(Entry::Pvh { address })), 0x00cf_9b00_0000_ffff);
        assert_eq!(descriptor(&code(Entry::Linux64 { address })), 0x00af_9b00_0000_ffff);
        assert_eq!(descriptor(&data()), 0x00cf_9300_0000_ffff);
        assert_eq!(descriptor(&task()), 0x0000_8b00_0000_0067);
    }
}
