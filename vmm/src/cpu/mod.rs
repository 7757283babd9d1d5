//! A virtual CPU: its features, its state at entry, and the thread that runs it.

pub mod cpuid;
mod msr;
mod registers;
mod thread;

use kvm_bindings::CpuId;
use kvm_ioctls::{VcpuFd, VmFd};

use crate::boot::Entry;
use crate::memory::GuestMemory;

pub use thread::{CpuThread, ExitCounters, Exits, install_kick_handler};

/// The most CPUs a guest can have. All have 8-bit APIC ids and one I/O APIC can name them all.
pub const MAX_CPUS: u8 = 32;

/// Why a CPU cannot be had.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} of CPU {cpu}")]
pub struct Error {
    action: &'static str,
    cpu: u8,
    source: kvm_ioctls::Error,
}

/// A CPU that does not run yet.
#[derive(Debug)]
pub struct Cpu {
    index: u8,
    fd: VcpuFd,
}

impl Cpu {
    /// Creates CPU `index` of `count`, with the features in `template`.
    pub fn create(vm: &VmFd, template: &CpuId, index: u8, count: u8) -> Result<Self, Error> {
        let error = |action| move |source| Error { action, cpu: index, source };
        let fd = vm.create_vcpu(u64::from(index)).map_err(error("create the KVM side"))?;
        let features = cpuid::for_cpu(template, index, count).map_err(|_| Error {
            action: "list the features",
            cpu: index,
            source: kvm_ioctls::Error::new(libc::E2BIG),
        })?;
        fd.set_cpuid2(&features).map_err(error("set the features"))?;
        msr::initialise(&fd).map_err(error("set the model-specific registers"))?;
        Ok(Self { index, fd })
    }

    /// Sets the registers of the first CPU for `entry`. The others wait for the guest to start them.
    pub fn enter_at(&self, memory: &GuestMemory, entry: Entry) -> Result<(), Error> {
        let error = |source| Error { action: "set the registers", cpu: self.index, source };
        registers::write_gdt(memory, entry).map_err(|_| error(kvm_ioctls::Error::new(libc::EFAULT)))?;
        let mut special = self.fd.get_sregs().map_err(error)?;
        registers::set_special(&mut special, entry);
        self.fd.set_sregs(&special).map_err(error)?;
        self.fd.set_regs(&registers::general(entry)).map_err(error)?;
        self.fd.set_fpu(&registers::floating_point()).map_err(error)
    }
}
