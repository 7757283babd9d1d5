//! A KVM virtual machine monitor for x86-64: one process runs one guest.
//!
//! The way of a guest through this crate:
//!
//! 1. A controller passes what the guest is made of as descriptors, over the protocol of [`innkeeper_protocol`]; the
//!    VMM itself opens nothing. [`cli`] has `serve`, for a controller that is somebody else, and `run`, which opens
//!    files by name and then is the controller itself.
//! 2. [`control`] is the thread that does what controllers ask for. It has a [`machine::guest::Guest`]: the life of a
//!    guest over all its resets.
//! 3. [`machine`] builds a machine for each: [`memory`], [`firmware`] tables, a kernel ([`boot`]), CPUs ([`cpu`]),
//!    [`interrupt`]s, the [`platform`]'s few fixed devices, and [`virtio`] devices on a [`pci`] bus.
//! 4. CPU threads leave the guest for port and memory accesses, which the [`bus`] takes to a device. Disk and
//!    network work is done by the devices' own threads, woken by the guest's doorbells directly.
//!
//! Nothing here knows what an instance or an image is; and nothing believes what a guest writes.

// Nothing that a guest, a user or a disk can influence may end the process.
#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used))]

pub mod boot;
pub mod bus;
pub mod check;
pub mod cli;
pub mod console;
pub mod control;
pub mod cpu;
pub mod event;
pub mod exit;
pub mod firmware;
pub mod interrupt;
pub mod machine;
pub mod memory;
pub mod metrics;
pub mod pci;
pub mod platform;
pub mod rate_limit;
pub mod virtio;
