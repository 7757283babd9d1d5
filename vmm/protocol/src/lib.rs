//! The protocol by which a controller drives a VMM.
//!
//! A controller and a VMM hold the two ends of a Unix socket of type `SOCK_SEQPACKET`. Every packet is one JSON
//! document, and carries the descriptors that the document speaks of (`SCM_RIGHTS`): a [`Descriptor`] is the
//! position of one among those of its packet. The VMM opens nothing; all it works with comes this way.
//!
//! ```text
//! controller                                         VMM
//!     {"id":1,"command":{"hello":{"version":1}}}  →
//!                                                 ←  {"reply":{"id":1,"ok":{"hello":{"version":1,…}}}}
//!     {"id":2,"command":{"configure":{…}}}  + fds →
//!                                                 ←  {"reply":{"id":2,"ok":"done"}}
//!     {"id":3,"command":"start"}                  →
//!                                                 ←  {"reply":{"id":3,"ok":"done"}}
//!     {"id":4,"command":{"events":{"after":0}}}   →
//!                                                 ←  {"reply":{"id":4,"ok":"done"}}
//!                                                 ←  {"event":{"sequence":1,…}}
//! ```
//!
//! - A connection begins with `hello`, which settles the version. [`VERSION`] changes when a controller of the one
//!   before would not be understood, or would not understand; fields may be added without.
//! - Every [`Request`] gets one [`Reply`] with its id, in the order of the requests.
//! - [`Event`]s come only after a connection has asked for them. The VMM keeps the last [`EVENTS_KEPT`], with
//!   consecutive numbers: a controller that takes over asks for those behind the last one that it knows of.
//! - Controllers come and go. With a listener, the VMM accepts any number of them, one after the other or at a time,
//!   and runs on when there is none. A controller that does not read is cut off; it has lost nothing that it cannot
//!   ask for again.
//! - When the guest has ended, the VMM lets go of all it has but this protocol, and waits for a controller to say
//!   `quit`: how it ended is never lost.
//!
//! [`message`], [`disk`] and [`metrics`] have the messages, and [`Connection`] sends and receives them.

#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used))]

mod connection;
pub mod disk;
pub mod message;
pub mod metrics;

pub use connection::{Connection, Error, MAX_DESCRIPTORS, MAX_PACKET, receive_packet, send_packet};
pub use disk::*;
pub use message::*;
pub use metrics::*;

/// The version of the protocol that this crate speaks.
pub const VERSION: u32 = 1;

/// How many events a VMM keeps for controllers that come later.
pub const EVENTS_KEPT: usize = 256;

/// How many layers a controller may pass before the disk that they belong to.
pub const LAYERS_MAX: usize = 4096;

/// The most layers of a disk that a reply has room to name.
pub const NAMED_LAYERS_MAX: usize = 3000;
