//! What the fuzz targets share: a guest whose driver works by the book or writes whatever it likes, and the device in
//! the place of its threads.
//!
//! An input is a list of steps, which each target has of its own kind. The steps of a driver are everywhere the same
//! ([`Act`]), and go through a [`Guest`], which knows what the driver has submitted, what came back, and which bytes of
//! memory a device may have changed at all. [`Device`] calls a handler as its thread would. Whatever is not as it has to
//! be is a panic, which libFuzzer takes for a crash.
//!
//! What is asserted of every device, after each time that it was called:
//!
//! - It has changed no byte of memory but in used rings and in buffers that a descriptor offers for writing.
//! - What came back was submitted, and came back no more often; nobody says to have written more than there was room.
//! - A driver that works by the book is never told that its ring is wrong.
//! - It comes to rest.

mod act;
mod device;
mod driver;
mod guest;
mod input;
mod memory;

pub use act::{Act, Address, Length};
pub use device::Device;
pub use driver::{Chain, Driver, Piece, Returned};
pub use guest::{Guest, QueueSetup, Setup};
pub use input::{Bytes, List, Steps, Timed};
pub use memory::{BUFFERS, CANARY, Memory, PAGE};
