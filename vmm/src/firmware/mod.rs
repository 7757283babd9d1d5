//! What firmware would leave in memory: ACPI and SMBIOS tables, and code at the reset vector.
//!
//! The tables are pure functions from a description of the machine to bytes; [`write`] puts them where operating
//! systems look.

pub mod acpi;
mod dsdt;
pub mod smbios;

use vm_memory::{Bytes, GuestAddress};

use crate::memory::{ACPI_START, GuestMemory, RESET_VECTOR, SMBIOS_START};
use crate::platform::hotplug::Slots;
use crate::platform::power::{RESET_PORT, RESET_VALUE};

/// Why the tables are not in guest memory.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A bug, or more CPUs than the area was made for.
    #[error("the {table} tables take {size} bytes and there is room for {room}")]
    TooLarge {
        /// ACPI or SMBIOS.
        table: &'static str,
        /// Bytes needed.
        size: usize,
        /// Bytes available.
        room: u64,
    },
    /// RAM is too small.
    #[error("cannot write firmware tables to guest memory")]
    Write(#[from] vm_memory::GuestMemoryError),
}

/// Real-mode code that resets the machine: `mov al, VALUE; mov dx, PORT; out dx, al; hlt; jmp` to the halt.
///
/// Systems that find no better way jump to the reset vector. Linux does so at every reboot of a
/// hardware-reduced platform: it expects EFI there, and falls back to the BIOS.
const RESET_CODE: [u8; 9] = {
    let [port_low, port_high] = RESET_PORT.to_le_bytes();
    [0xb0, RESET_VALUE, 0xba, port_low, port_high, 0xee, 0xf4, 0xeb, 0xfd]
};

/// Writes the ACPI tables of a machine with `cpus` CPUs and these `slots` for what comes and goes, the SMBIOS tables of
/// `identity` and the reset code; returns the address of the ACPI root pointer.
pub fn write(
    memory: &GuestMemory,
    cpus: u8,
    slots: Slots,
    identity: &smbios::Identity,
) -> Result<GuestAddress, Error> {
    let rsdp = GuestAddress(ACPI_START);
    let areas = [
        ("ACPI", acpi::tables(cpus, slots, ACPI_START), rsdp, SMBIOS_START - ACPI_START),
        (
            "SMBIOS",
            smbios::tables(identity, SMBIOS_START),
            GuestAddress(SMBIOS_START),
            RESET_VECTOR - SMBIOS_START,
        ),
    ];
    for (table, bytes, address, room) in areas {
        if bytes.len() as u64 > room {
            return Err(Error::TooLarge { table, size: bytes.len(), room });
        }
        memory.write_slice(&bytes, address)?;
    }
    memory.write_slice(&RESET_CODE, GuestAddress(RESET_VECTOR))?;
    Ok(rsdp)
}
