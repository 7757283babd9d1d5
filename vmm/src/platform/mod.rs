//! The few devices of a PC that a guest expects at fixed ports.
//!
//! A serial port, the ACPI registers for sleep, reset and hotplug, and the one command of the keyboard controller that
//! systems use to reset. Everything else a guest finds on the PCI bus.

pub mod hotplug;
pub mod i8042;
pub mod power;
pub mod serial;

/// Global system interrupts are pins of the I/O APIC. The serial port keeps its traditional one.
pub const GSI_SERIAL: u32 = 4;
/// The ACPI generic event device: the power button.
pub const GSI_EVENTS: u32 = 5;
/// The ACPI generic event device: PCI slots.
pub const GSI_HOTPLUG: u32 = 6;
