//! What the fuzz targets share: disks that are whole at first, and then changed as an input says.
//!
//! Bytes without order never come behind the first checksum. So most targets begin with an image that the usual tools
//! have made, or that is built in code. An input is a list of [`Change`]s, most of which name a structure and a place in
//! it rather than a byte of the disk, and says whether all checksums are made right again afterwards. What is read from
//! the disk then goes through a [`Meter`], and what is allocated through [`memory`].
//!
//! What is asserted everywhere, beside that nothing panics:
//!
//! - No more is read, and no more memory is taken, than the limits say that the reader documents.
//! - What is found is within its limits, and the same a second time.
//! - A message is one line.

mod change;
#[path = "../../src/checksum.rs"]
mod checksum;
pub mod disks;
pub mod ext4;
#[path = "../../tests/common/heap.rs"]
mod heap;
mod image;
mod input;
pub mod journal;
pub mod memory;
mod message;
mod meter;
mod sections;
pub mod sums;
pub mod table;
#[allow(missing_docs, reason = "they are made for tests")]
#[path = "../../tests/common/mod.rs"]
mod tools;

pub use change::{Change, Ground};
pub use image::Image;
pub use input::{Bytes, List, Steps};
pub use message::check_message;
pub use meter::Meter;
pub use sections::sections;
pub use tools::{bzimage, gzip};
