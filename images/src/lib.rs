//! What an Innkeeper image is on disk, and how one comes to be.
//!
//! An image is a directory of *artefacts*: a disk, or a kernel and an initial RAM disk, or all three.
//! - [`boot`] reads from a disk what it boots: the kernel, the initial RAM disk and the command line that its own
//!   boot loader would take.
//! - [`import`] makes an image of a disk in a raw or qcow2 file.
//! - [`kernel`] takes a distribution's `vmlinuz` and finds the uncompressed ELF kernel inside, which boots without
//!   spending the guest's time on decompression.
//! - [`recipe`] builds images from Debian packages, into a cache that every checkout on the machine shares.

// Nothing that a guest, a user or a disk can influence may end the process.
#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used))]

pub mod boot;
mod checksum;
pub mod display;
pub mod import;
pub mod kernel;
pub mod recipe;
