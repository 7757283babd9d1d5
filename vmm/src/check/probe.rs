//! The test machine: one CPU in 64-bit mode that runs a handful of instructions and reports each.

use std::arch::global_asm;

use kvm_bindings::{KVM_MAX_CPUID_ENTRIES, kvm_segment, kvm_userspace_memory_region, kvm_xcrs};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use crate::memory::GuestMemory;

/// How far the machine got.
pub enum Outcome {
    /// To the end.
    Completed,
    /// Not past this instruction.
    FailedAt(&'static str),
}

/// The steps in the order of the code below; it writes a step's number to [`PORT`] before it takes it.
const STEPS: [&str; 5] = ["out", "lock cmpxchg16b", "xrstor", "int3", "iretq"];
const DONE: u8 = STEPS.len() as u8;
const PORT: u16 = 0xf4;

const MEMORY_SIZE: usize = 64 << 10;
const CODE: u64 = 0x1000;
const IDT: u64 = 0x2000;
/// 64 bytes aligned, for cmpxchg16b and xrstor; zeroes are a valid state for both.
const SCRATCH: u64 = 0x3000;
const STACK: u64 = 0x8000;
const PML4: u64 = 0x9000;
const PDPT: u64 = 0xa000;
const DIRECTORY: u64 = 0xb000;
const GDT: u64 = 0x500;

// Position-independent. On entry: rdi points to the scratch memory, rsi is 1 if there is XSAVE.
global_asm!(
    ".pushsection .rodata.probe, \"a\"",
    ".globl innkeeper_probe_start",
    ".globl innkeeper_probe_breakpoint",
    ".globl innkeeper_probe_end",
    "innkeeper_probe_start:",
    "mov al, 0",
    "out 0xf4, al",
    "mov al, 1",
    "out 0xf4, al",
    "xor eax, eax",
    "xor edx, edx",
    "xor ebx, ebx",
    "xor ecx, ecx",
    "lock cmpxchg16b [rdi]",
    "mov al, 2",
    "out 0xf4, al",
    "test esi, esi",
    "jz 2f",
    "mov eax, 1",
    "xor edx, edx",
    "xrstor [rdi + 64]",
    "2:",
    "mov al, 3",
    "out 0xf4, al",
    "int3",
    "mov al, 5",
    "out 0xf4, al",
    "hlt",
    "innkeeper_probe_breakpoint:",
    "mov al, 4",
    "out 0xf4, al",
    "iretq",
    "innkeeper_probe_end:",
    ".popsection",
);

unsafe extern "C" {
    static innkeeper_probe_start: u8;
    static innkeeper_probe_breakpoint: u8;
    static innkeeper_probe_end: u8;
}

/// The code's bytes, and the offset of its breakpoint handler.
fn code() -> (&'static [u8], u64) {
    let start = &raw const innkeeper_probe_start;
    let length = (&raw const innkeeper_probe_end).addr() - start.addr();
    let handler = (&raw const innkeeper_probe_breakpoint).addr() - start.addr();
    // SAFETY: the symbols enclose the code above, which is read-only data of this program.
    (unsafe { std::slice::from_raw_parts(start, length) }, handler as u64)
}

/// Runs the test machine.
pub fn run(kvm: &Kvm) -> Result<Outcome, Box<dyn std::error::Error>> {
    let memory = GuestMemory::from_ranges(&[(GuestAddress(0), MEMORY_SIZE)])?;
    write_memory(&memory)?;
    let vm = kvm.create_vm()?;
    for region in memory.iter() {
        let slot = kvm_userspace_memory_region {
            slot: 0,
            guest_phys_addr: 0,
            memory_size: region.len(),
            userspace_addr: region.as_ptr() as u64,
            flags: 0,
        };
        // SAFETY: the region stays mapped until this function returns, and the machine ends before.
        unsafe { vm.set_user_memory_region(slot) }?;
    }
    vm.set_identity_map_address(crate::memory::KVM_IDENTITY_MAP_START)?;
    vm.set_tss_address(crate::memory::KVM_TSS_START as usize)?;
    let mut cpu = vm.create_vcpu(0)?;
    let has_xsave = set_registers(kvm, &cpu)?;
    let mut registers = cpu.get_regs()?;
    registers.rip = CODE;
    registers.rsp = STACK;
    registers.rflags = 2;
    registers.rdi = SCRATCH;
    registers.rsi = has_xsave.into();
    cpu.set_regs(&registers)?;
    Ok(observe(&mut cpu))
}

/// Follows the reports until there are no more. A machine that reports nothing new ends: every pass of the
/// loop is a report or the end.
fn observe(cpu: &mut VcpuFd) -> Outcome {
    let mut step = 0;
    loop {
        match cpu.run() {
            Ok(VcpuExit::IoOut(PORT, [DONE])) => return Outcome::Completed,
            Ok(VcpuExit::IoOut(PORT, [reported])) if *reported >= step => step = *reported,
            Err(error) if error.errno() == libc::EINTR => {}
            _ => return Outcome::FailedAt(STEPS.get(usize::from(step)).copied().unwrap_or("out")),
        }
    }
}

fn write_memory(memory: &GuestMemory) -> Result<(), vm_memory::GuestMemoryError> {
    const PRESENT_WRITABLE: u64 = 0b11;
    const LARGE_PAGE: u64 = 1 << 7;
    const BREAKPOINT_VECTOR: u64 = 3;
    const INTERRUPT_GATE: u64 = 0x8e00;
    const CODE_SELECTOR: u64 = 8;

    let (code, handler) = code();
    memory.write_slice(code, GuestAddress(CODE))?;
    // The first 2 MiB one to one.
    memory.write_obj(PDPT | PRESENT_WRITABLE, GuestAddress(PML4))?;
    memory.write_obj(DIRECTORY | PRESENT_WRITABLE, GuestAddress(PDPT))?;
    memory.write_obj(PRESENT_WRITABLE | LARGE_PAGE, GuestAddress(DIRECTORY))?;
    let address = CODE + handler;
    let gate = address & 0xffff | CODE_SELECTOR << 16 | INTERRUPT_GATE << 32 | (address >> 16 & 0xffff) << 48;
    memory.write_obj(gate, GuestAddress(IDT + 16 * BREAKPOINT_VECTOR))?;
    // iretq loads the segments again: the table must hold what the registers claim.
    memory.write_slice(
        &[0u64, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff]
            .iter()
            .flat_map(|entry| entry.to_le_bytes())
            .collect::<Vec<_>>(),
        GuestAddress(GDT),
    )
}

/// Puts the CPU into 64-bit mode; returns whether it has XSAVE, switched on.
fn set_registers(kvm: &Kvm, cpu: &VcpuFd) -> Result<bool, kvm_ioctls::Error> {
    const CR0_PE_MP_ET_NE_PG: u64 = 1 | 1 << 1 | 1 << 4 | 1 << 5 | 1 << 31;
    const CR4_PAE_OSFXSR: u64 = 1 << 5 | 1 << 9;
    const CR4_OSXSAVE: u64 = 1 << 18;
    const EFER_LME_LMA: u64 = 1 << 8 | 1 << 10;
    const CPUID_XSAVE: u32 = 1 << 26;

    let cpuid = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)?;
    cpu.set_cpuid2(&cpuid)?;
    let has_xsave = cpuid.as_slice().iter().any(|leaf| leaf.function == 1 && leaf.ecx & CPUID_XSAVE != 0);

    let code = kvm_segment {
        limit: u32::MAX,
        selector: 8,
        type_: 0xb,
        present: 1,
        s: 1,
        l: 1,
        g: 1,
        ..Default::default()
    };
    let data = kvm_segment {
        limit: u32::MAX,
        selector: 16,
        type_: 0x3,
        present: 1,
        s: 1,
        db: 1,
        g: 1,
        ..Default::default()
    };
    let mut special = cpu.get_sregs()?;
    special.cs = code;
    for segment in [&mut special.ds, &mut special.es, &mut special.fs, &mut special.gs, &mut special.ss] {
        *segment = data;
    }
    special.gdt.base = GDT;
    special.gdt.limit = 23;
    special.idt.base = IDT;
    special.idt.limit = 0xfff;
    special.cr0 = CR0_PE_MP_ET_NE_PG;
    special.cr3 = PML4;
    special.cr4 = CR4_PAE_OSFXSR | if has_xsave { CR4_OSXSAVE } else { 0 };
    special.efer = EFER_LME_LMA;
    cpu.set_sregs(&special)?;
    if has_xsave {
        let mut registers = kvm_xcrs { nr_xcrs: 1, ..Default::default() };
        registers.xcrs[0].value = 1; // x87 state only
        cpu.set_xcrs(&registers)?;
    }
    Ok(has_xsave)
}
