//! ACPI 6.5 tables of a hardware-reduced platform (section 4.1).
//!
//! Hardware-reduced means: no PM1 registers, no PM timer, no SCI. Sleep and reset are plain registers, the
//! power button is a device behind a generic event device, and the guest's start-up skips the legacy timer
//! and interrupt controller altogether.

use acpi_tables::Aml;
use acpi_tables::fadt::{FADTBuilder, Flags, PmProfile};
use acpi_tables::gas::{AccessSize, AddressSpace as GasSpace, GAS};
use acpi_tables::madt::{EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic};
use acpi_tables::mcfg::MCFG;
use acpi_tables::rsdp::Rsdp;
use acpi_tables::xsdt::XSDT;

use super::dsdt::dsdt;
use crate::memory::{ECAM_START, IO_APIC_START, LOCAL_APIC_START};
use crate::platform::hotplug::Slots;
use crate::platform::power::{RESET_PORT, RESET_VALUE, SLEEP_CONTROL_PORT, SLEEP_STATUS_PORT};

pub(super) const OEM_ID: [u8; 6] = *b"AMAZON";
pub(super) const OEM_TABLE_ID: [u8; 8] = *b"INNKEEPR";
pub(super) const OEM_REVISION: u32 = 1;

/// All tables in one piece of memory that starts at `base` (below 4 GiB) with the root pointer.
pub fn tables(cpus: u8, slots: Slots, base: u64) -> Vec<u8> {
    // The root pointer comes first but is known last.
    let mut area = Area { base, bytes: vec![0; Rsdp::len()] };
    let dsdt = area.place(&dsdt(slots));
    let entries = [area.place(&fadt(dsdt)), area.place(&madt(cpus)), area.place(&mcfg())];
    let mut xsdt = XSDT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    for entry in entries {
        xsdt.add_entry(entry);
    }
    let xsdt = area.place(&xsdt);
    let mut rsdp = Vec::new();
    Rsdp::new(OEM_ID, xsdt).to_aml_bytes(&mut rsdp);
    area.bytes[..rsdp.len()].copy_from_slice(&rsdp);
    area.bytes
}

/// Guest memory that is filled with one table after the other.
struct Area {
    base: u64,
    bytes: Vec<u8>,
}

impl Area {
    /// Appends a table and returns its address.
    fn place(&mut self, table: &dyn Aml) -> u64 {
        self.bytes.resize(self.bytes.len().next_multiple_of(16), 0);
        let address = self.base + self.bytes.len() as u64;
        table.to_aml_bytes(&mut self.bytes);
        address
    }
}

fn io_port(port: u16) -> GAS {
    GAS::new(GasSpace::SystemIo, 8, 0, AccessSize::ByteAccess, u64::from(port))
}

/// Fixed description table (section 5.2.9).
fn fadt(dsdt: u64) -> impl Aml {
    /// `IAPC_BOOT_ARCH`: nobody needs to probe for a VGA or a CMOS clock. The keyboard controller's bit is
    /// clear too: it only knows the reset command.
    const NO_VGA: u16 = 1 << 2;
    const NO_CMOS_CLOCK: u16 = 1 << 5;

    let mut fadt = FADTBuilder::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION)
        .dsdt_64(dsdt)
        .preferred_pm_profile(PmProfile::EnterpriseServer)
        .flag(Flags::HwReducedAcpi)
        .flag(Flags::ResetRegSup)
        .flag(Flags::Headless)
        // Set means: there is no such fixed-hardware button. Ours is a device.
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton);
    fadt.iapc_boot_arch = (NO_VGA | NO_CMOS_CLOCK).into();
    fadt.sleep_control_reg = io_port(SLEEP_CONTROL_PORT);
    fadt.sleep_status_reg = io_port(SLEEP_STATUS_PORT);
    fadt.reset_reg = io_port(RESET_PORT);
    fadt.reset_value = RESET_VALUE;
    fadt.finalize()
}

/// Interrupt controllers (section 5.2.12): a local APIC per CPU and one I/O APIC.
fn madt(cpus: u8) -> MADT {
    let mut madt =
        MADT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION, LocalInterruptController::Address(LOCAL_APIC_START));
    for cpu in 0..cpus {
        madt.add_structure(ProcessorLocalApic::new(cpu, cpu, EnabledStatus::Enabled));
    }
    madt.add_structure(IoApic::new(cpus, IO_APIC_START, 0));
    madt
}

/// Where the PCI Express configuration space is (PCI Firmware 3.3, section 4.1.2).
fn mcfg() -> MCFG {
    let mut mcfg = MCFG::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    mcfg.add_ecam(ECAM_START, 0, 0, 0);
    mcfg
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    const BASE: u64 = 0xe_0000;

    /// The tables as (signature, bytes), found the way an operating system finds them.
    fn walk(area: &[u8]) -> Vec<(String, Vec<u8>)> {
        let u32_at =
            |offset: usize| u32::from_le_bytes(area[offset..offset + 4].try_into().unwrap()) as usize;
        let u64_at = |offset: usize| u64::from_le_bytes(area[offset..offset + 8].try_into().unwrap());
        let offset_of = |address: u64| (address - BASE) as usize;
        assert_eq!(&area[..8], b"RSD PTR ");
        let sum = |bytes: &[u8]| bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
        assert_eq!(sum(&area[..20]), 0);
        assert_eq!(sum(&area[..36]), 0);
        let table = |offset: usize| {
            let bytes = area[offset..offset + u32_at(offset + 4)].to_vec();
            assert_eq!(sum(&bytes), 0, "checksum");
            (String::from_utf8(bytes[..4].to_vec()).unwrap(), bytes)
        };
        let xsdt = offset_of(u64_at(24));
        let mut found = vec![table(xsdt)];
        for entry in (xsdt + 36..xsdt + u32_at(xsdt + 4)).step_by(8) {
            let offset = offset_of(u64_at(entry));
            found.push(table(offset));
            if found.last().unwrap().0 == "FACP" {
                found.push(table(offset_of(u64_at(offset + 140))));
            }
        }
        found
    }

    /// As many as there can be.
    fn slots() -> Slots {
        Slots::except([])
    }

    /// What has no name in the tables is nothing that a guest would give up.
    #[test]
    fn only_slots_for_what_comes_and_goes_have_a_name() {
        for built_in in [vec![], vec![28, 29, 30], vec![29]] {
            let tables = tables(1, Slots::except(built_in.clone()), BASE);
            let named = |slot: &u8| tables.windows(4).any(|name| name == format!("S{slot:03}").as_bytes());
            let expected = (1..=30).filter(|slot| !built_in.contains(slot));
            assert!((0..32).filter(named).eq(expected), "{built_in:?}");
        }
    }

    #[test]
    fn every_table_is_found_and_sums_to_zero() {
        for cpus in [1, 32] {
            let names: Vec<String> =
                walk(&tables(cpus, slots(), BASE)).into_iter().map(|(name, _)| name).collect();
            assert_eq!(names, ["XSDT", "FACP", "DSDT", "APIC", "MCFG"]);
        }
    }

    #[test]
    fn the_largest_machine_fits() {
        assert!(tables(32, slots(), BASE).len() < 0x1_0000, "{}", tables(32, slots(), BASE).len());
    }

    /// The reference compiler reads our tables, and compiles what it read without an error or a warning.
    #[test]
    fn iasl_agrees() {
        if Command::new("iasl").arg("-v").output().is_err() {
            panic!("iasl is missing; run scripts/setup (package acpica-tools)");
        }
        let directory = tempfile::tempdir().unwrap();
        for (name, bytes) in walk(&tables(4, slots(), BASE)) {
            let binary = directory.path().join(format!("{name}.aml"));
            std::fs::write(&binary, bytes).unwrap();
            let disassembled = Command::new("iasl").arg("-d").arg(&binary).output().unwrap();
            assert!(disassembled.status.success(), "{name}: {disassembled:?}");
            let compiled = Command::new("iasl").arg(binary.with_extension("dsl")).output().unwrap();
            let report = String::from_utf8_lossy(&compiled.stdout).into_owned();
            assert!(compiled.status.success(), "{name}: {report}");
            if name == "DSDT" {
                assert!(report.contains("0 Errors, 0 Warnings"), "{report}");
            }
        }
    }
}
