//! What a VPC is to Linux: a network namespace, whose interfaces are taps of instances, and in which every packet, also
//! between neighbours, is routed and filtered.
//!
//! - [`plan`] is what a VPC is, as data. Whoever uses this package makes one, whole, and gives it to [`linux`].
//! - [`verdict`] says what becomes of a packet, from the plan alone.
//! - [`ruleset`] and [`routes`] say what Linux has to be told, [`stale`] which connections it has to forget, and
//!   [`linux`] tells it.
//!
//! - [`services`] are what every VPC has inside: addresses, names, the time. [`trace`] says why a packet was
//!   dropped, [`probe`] whether a guest answers.
//!
//! There are no bridges and no layer 2: a tap has a route to its address and a permanent neighbour, the kernel answers
//! ARP for everybody else, and so all traffic crosses one stateful chain.

pub mod cidr;
pub mod linux;
pub mod names;
pub mod plan;
pub mod probe;
pub mod routes;
pub mod ruleset;
pub mod services;
pub mod stale;
pub mod trace;
pub mod verdict;

pub use cidr::Cidr;

/// The mark of packets from a subnet: its first address, whose last four bits are 0, as no subnet is smaller than 16
/// addresses.
pub fn mark(subnet: Cidr) -> u32 {
    subnet.first().to_bits()
}
