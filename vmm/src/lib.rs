//! A KVM virtual machine monitor for x86-64: one process runs one guest.
//!
//! The way of a guest through this crate:
//!
//! 1. [`cli`] turns arguments into a [`machine::Configuration`] of opened files.
//! 2. [`machine`] builds a machine from it: [`memory`], [`firmware`] tables, a kernel ([`boot`]), CPUs
//!    ([`cpu`]), [`interrupt`]s, the [`platform`]'s few fixed devices, and [`virtio`] devices on a [`pci`] bus.
//! 3. CPU threads leave the guest for port and memory accesses, which the [`bus`] takes to a device. Disk and
//!    network work is done by the devices' own threads, woken by the guest's doorbells directly.
//! 4. The supervisor in [`machine`] waits for signals, console input and the guest's end, and builds the next
//!    machine when the guest resets.
//!
//! Nothing here knows what an instance or an image is; and nothing believes what a guest writes.

// Nothing that a guest, a user or a disk can influence may end the process.
#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used))]

pub mod boot;
pub mod bus;
pub mod check;
pub mod cli;
pub mod console;
pub mod cpu;
pub mod event;
pub mod exit;
pub mod firmware;
pub mod interrupt;
pub mod machine;
pub mod memory;
pub mod pci;
pub mod platform;
pub mod virtio;
