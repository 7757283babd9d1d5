//! Importing disks: what `qemu-img` makes, what is refused, what is left when an import is interrupted, and what a manifest
//! notices. `qemu-img` is also who says what is on a disk.

#[path = "../common/mod.rs"]
mod common;
mod disks;
mod formats;
mod manifests;
mod refusals;
mod resume;
