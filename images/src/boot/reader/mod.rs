//! The *reader guest*: a micro-VM that says what a disk boots when its file system is none that is read on the host.
//!
//! Linux has drivers for XFS and btrfs, and no host should let a stranger's disk near them. So a guest that is thrown away
//! gets the disk, read-only, and a second one for its answer. It is made by the recipe `boot-reader`, whose init is this
//! very program, and runs the same code as the host does for ext4:
//!
//! | | |
//! | --- | --- |
//! | `machine` | what an init does: `/dev`, modules, power-off |
//! | `mapper`, `overlay` | device-mapper: writes to the disk go to a store behind the answer |
//! | `mounted` | a mounted directory as a [tree](super::tree) |
//! | `serve` | the guest's life |
//! | `answer` | what is written on the second disk, and [`answer`], by which the host reads it |
//!
//! **The answer is hostile.** The file system may have taken over the kernel that mounted it. The host believes nothing of
//! it: every length has its limit, and kernel, initial RAM file system and arguments go through the same checks as those
//! that were read here. What such a guest can say the disk could have said as well; it can do no more than that.
//!
//! A file system that was cut off has a log to be replayed, which Linux refuses where it cannot write. That is what the
//! overlay is for: the log is replayed into the store, and the disk stays as it is.
//!
//! The guest has one CPU, [`MEMORY`], the disk, and a second disk of [`ANSWER_DISK`], in this order, and the artefacts of
//! the recipe: `vmlinux`, `initrd.img`, and `command-line`, as it is. It ends by itself, with a power-off. When its kernel
//! crashes it resets, finds on the second disk that it began before, says so, and powers off. When it hangs it has to be
//! ended: whoever runs it needs a deadline.

mod answer;
mod machine;
mod mapper;
mod mounted;
mod overlay;
mod serve;

/// How much memory the guest needs, in bytes: 256 MiB, however large what it reads is.
pub const MEMORY: u64 = 256 << 20;

pub use answer::{ANSWER_DISK, Error, answer};
pub use mounted::Mounted;
pub use serve::serve;
