//! Address ranges, and what follows from the records about addresses, names and routes; and the VPC that every account
//! begins with.

pub mod default_vpc;
pub mod furnishing;
pub mod names;
pub mod public_addresses;
pub mod routes;
pub mod subnets;

pub use innkeeper_network::Cidr;
