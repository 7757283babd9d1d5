//! Model-specific registers that firmware would have set before it started the kernel.

use kvm_bindings::{Msrs, kvm_msr_entry};
use kvm_ioctls::{Error, VcpuFd};

/// `IA32_MISC_ENABLE`: fast string operations.
const MISC_ENABLE: u32 = 0x1a0;
const MISC_ENABLE_FAST_STRING: u64 = 1;
/// `IA32_MTRR_DEF_TYPE`: memory types are on and everything is write-back.
const MTRR_DEFAULT_TYPE: u32 = 0x2ff;
const MTRR_ENABLE: u64 = 1 << 11;
const MTRR_WRITE_BACK: u64 = 6;

/// Sets what differs from the state after a reset. KVM's own default for the rest is the architecture's.
pub fn initialise(cpu: &VcpuFd) -> Result<(), Error> {
    let entries =
        [(MISC_ENABLE, MISC_ENABLE_FAST_STRING), (MTRR_DEFAULT_TYPE, MTRR_ENABLE | MTRR_WRITE_BACK)]
            .map(|(index, data)| kvm_msr_entry { index, data, ..Default::default() });
    for entry in entries {
        let registers = Msrs::from_entries(&[entry]).map_err(|_| Error::new(libc::EINVAL))?;
        // A register that this CPU model does not have needs no value: KVM then sets none of one.
        cpu.set_msrs(&registers)?;
    }
    Ok(())
}
