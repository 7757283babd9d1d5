//! The differentiated system description table (ACPI 6.5, section 5.2.11.1): the devices that cannot be found by
//! looking at a bus, and the methods that make PCI slots hot-pluggable.

use acpi_tables::aml::{
    AddressSpace, AddressSpaceCacheable, And, Arg, Device, EISAName, Else, Equal, Field, FieldAccessType,
    FieldEntry, FieldLockRule, FieldUpdateRule, IO, If, Interrupt, Local, Memory32Fixed, Method, MethodCall,
    Name, Notify, ONE, OpRegion, OpRegionSpace, Package, Path, ResourceTemplate, Scope, Store, ZERO,
};
use acpi_tables::sdt::Sdt;
use acpi_tables::{Aml, AmlSink};

use super::acpi::{OEM_ID, OEM_REVISION, OEM_TABLE_ID};
use crate::memory::{ECAM_SIZE, ECAM_START, PCI_WINDOW_SIZE, PCI_WINDOW_START};
use crate::platform::hotplug::Slots;
use crate::platform::power::SLEEP_TYPE_SOFT_OFF;
use crate::platform::{GSI_EVENTS, GSI_HOTPLUG, GSI_SERIAL, hotplug, serial};

/// The table, of a machine with these slots for what comes and goes.
pub fn dsdt(slots: Slots) -> Sdt {
    let mut code = Vec::new();
    soft_off(&mut code);
    Scope::new(
        "_SB_".into(),
        vec![&PciRoot(slots), &EcamReservation, &SerialPort, &PowerButton, &GenericEventDevice],
    )
    .to_aml_bytes(&mut code);

    const HEADER_SIZE: u32 = 36;
    const REVISION_64_BIT_INTEGERS: u8 = 2;
    let mut dsdt =
        Sdt::new(*b"DSDT", HEADER_SIZE, REVISION_64_BIT_INTEGERS, OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    dsdt.append_slice(&code);
    dsdt
}

/// What to write to the sleep control register for soft-off (section 7.4.2).
fn soft_off(code: &mut Vec<u8>) {
    Name::new("_S5_".into(), &Package::new(vec![&SLEEP_TYPE_SOFT_OFF, &ZERO, &ZERO, &ZERO]))
        .to_aml_bytes(code);
}

struct PciRoot(Slots);

impl Aml for PciRoot {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        let window_end = (PCI_WINDOW_START + PCI_WINDOW_SIZE - 1) as u32;
        let events = SlotEvents(self.0);
        let slots: Vec<Slot> = self.0.iter().map(Slot).collect();
        let mut children: Vec<&dyn Aml> = vec![&HotplugRegisters, &events];
        children.extend(slots.iter().map(|slot| slot as &dyn Aml));
        let children = Sequence(&children);
        Device::new(
            "PCI0".into(),
            vec![
                &Name::new("_HID".into(), &EISAName::new("PNP0A08")),
                &Name::new("_CID".into(), &EISAName::new("PNP0A03")),
                &Name::new("_SEG".into(), &ZERO),
                &Name::new("_UID".into(), &ZERO),
                &Name::new("_BBN".into(), &ZERO),
                // Bus 0 only: a guest need not scan 255 empty ones.
                &Name::new(
                    "_CRS".into(),
                    &ResourceTemplate::new(vec![
                        &AddressSpace::new_bus_number(0u16, 0u16),
                        &AddressSpace::new_memory(
                            AddressSpaceCacheable::NotCacheable,
                            true,
                            PCI_WINDOW_START as u32,
                            window_end,
                            None,
                        ),
                    ]),
                ),
                &children,
            ],
        )
        .to_aml_bytes(sink);
    }
}

/// Objects one after the other.
struct Sequence<'a>(&'a [&'a dyn Aml]);

impl Aml for Sequence<'_> {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        self.0.iter().for_each(|object| object.to_aml_bytes(sink));
    }
}

/// The registers of [`hotplug`], as fields.
struct HotplugRegisters;

const CHECK_FIELD: &str = "HPCK";
const REQUEST_FIELD: &str = "HPRQ";
const EJECT_FIELD: &str = "HPEJ";

impl Aml for HotplugRegisters {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        const BITS: usize = 32;
        let (port, size) = (hotplug::BASE_PORT, hotplug::PORT_COUNT as u8);
        OpRegion::new("HPRG".into(), OpRegionSpace::SystemIO, &port, &size).to_aml_bytes(sink);
        // In the order of their offsets.
        let fields = [CHECK_FIELD, REQUEST_FIELD, EJECT_FIELD]
            .into_iter()
            .map(|name| FieldEntry::Named(name.as_bytes().try_into().unwrap_or([b'_'; 4]), BITS));
        Field::new(
            "HPRG".into(),
            FieldAccessType::DWord,
            FieldLockRule::NoLock,
            FieldUpdateRule::WriteAsZeroes,
            fields.collect(),
        )
        .to_aml_bytes(sink);
    }
}

/// A slot that devices come to and go from (sections 6.1.1, 6.1.9 and 6.3.3).
struct Slot(u8);

impl Slot {
    fn path(&self) -> Path {
        Path::new(&format!("S{:03}", self.0))
    }

    fn bit(&self) -> u32 {
        1 << self.0
    }
}

impl Aml for Slot {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        const DEVICE_SHIFT: u32 = 16;
        Device::new(
            self.path(),
            vec![
                &Name::new("_ADR".into(), &(u32::from(self.0) << DEVICE_SHIFT)),
                &Name::new("_SUN".into(), &self.0),
                &Method::new("_EJ0".into(), 1, true, vec![&Store::new(&Path::new(EJECT_FIELD), &self.bit())]),
            ],
        )
        .to_aml_bytes(sink);
    }
}

/// The method `HPEV`: it notifies each slot of what is pending for it.
struct SlotEvents(Slots);

impl Aml for SlotEvents {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        /// `Notify` values that every device understands (table 5.187).
        const DEVICE_CHECK: u8 = 1;
        const EJECT_REQUEST: u8 = 3;

        let mut notifications = Vec::new();
        for (register, value) in [(CHECK_FIELD, DEVICE_CHECK), (REQUEST_FIELD, EJECT_REQUEST)] {
            Store::new(&Local(0), &Path::new(register)).to_aml_bytes(&mut notifications);
            for slot in self.0.iter().map(Slot) {
                If::new(&And::new(&ZERO, &Local(0), &slot.bit()), vec![&Notify::new(&slot.path(), &value)])
                    .to_aml_bytes(&mut notifications);
            }
        }
        Method::new("HPEV".into(), 0, true, vec![&Code(notifications)]).to_aml_bytes(sink);
    }
}

/// Bytes of AML that are finished.
struct Code(Vec<u8>);

impl Aml for Code {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        sink.vec(&self.0);
    }
}

/// Systems check that the ECAM is claimed by a motherboard device before they use it.
struct EcamReservation;

impl Aml for EcamReservation {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        Device::new(
            "MBRD".into(),
            vec![
                &Name::new("_HID".into(), &EISAName::new("PNP0C02")),
                &Name::new("_UID".into(), &ZERO),
                &Name::new(
                    "_CRS".into(),
                    &ResourceTemplate::new(vec![&Memory32Fixed::new(
                        true,
                        ECAM_START as u32,
                        ECAM_SIZE as u32,
                    )]),
                ),
            ],
        )
        .to_aml_bytes(sink);
    }
}

struct SerialPort;

impl Aml for SerialPort {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        Device::new(
            "COM1".into(),
            vec![
                &Name::new("_HID".into(), &EISAName::new("PNP0501")),
                &Name::new("_UID".into(), &ZERO),
                &Name::new(
                    "_CRS".into(),
                    &ResourceTemplate::new(vec![
                        &Interrupt::new(true, true, false, false, GSI_SERIAL),
                        &IO::new(serial::BASE_PORT, serial::BASE_PORT, 1, serial::PORT_COUNT as u8),
                    ]),
                ),
            ],
        )
        .to_aml_bytes(sink);
    }
}

/// A control-method power button (section 4.8.3.1.2.2).
struct PowerButton;

impl Aml for PowerButton {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        Device::new(
            "PWRB".into(),
            vec![&Name::new("_HID".into(), &EISAName::new("PNP0C0C")), &Name::new("_UID".into(), &ZERO)],
        )
        .to_aml_bytes(sink);
    }
}

/// Turns interrupts into ACPI notifications (section 5.6.9): that of the power button, and that of the slots.
struct GenericEventDevice;

impl Aml for GenericEventDevice {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        /// `Notify` value of a pressed button (table 5.190).
        const PRESSED: u8 = 0x80;
        let edge = |gsi| Interrupt::new(true, true, false, false, gsi);
        Device::new(
            "GED0".into(),
            vec![
                &Name::new("_HID".into(), &"ACPI0013"),
                &Name::new("_UID".into(), &ONE),
                &Name::new(
                    "_CRS".into(),
                    &ResourceTemplate::new(vec![&edge(GSI_EVENTS), &edge(GSI_HOTPLUG)]),
                ),
                &Method::new(
                    "_EVT".into(),
                    1,
                    true,
                    vec![
                        &If::new(
                            &Equal::new(&Arg(0), &GSI_HOTPLUG),
                            vec![&MethodCall::new("\\_SB_.PCI0.HPEV".into(), vec![])],
                        ),
                        &Else::new(vec![&Notify::new(&Path::new("\\_SB_.PWRB"), &PRESSED)]),
                    ],
                ),
            ],
        )
        .to_aml_bytes(sink);
    }
}
