//! Address ranges, and the VPC that every account begins with.

pub mod cidr;
pub mod default_vpc;

pub use cidr::Cidr;
