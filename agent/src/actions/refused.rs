//! What EC2 has and this host does not.

use crate::query::ApiError;

/// The error for something that this host does not have.
pub fn unsupported(message: impl Into<String>) -> ApiError {
    ApiError::new("UnsupportedOperation", message)
}

/// Refuses the first thing that is asked for.
pub fn refuse(asked: &[(bool, &str)]) -> Result<(), ApiError> {
    match asked.iter().find(|(is_asked, _)| *is_asked) {
        Some((_, what)) => Err(unsupported(*what)),
        None => Ok(()),
    }
}

/// Subnets have no IPv6 ranges.
pub const NO_IPV6: &str = "The networks of this host have no IPv6 addresses.";

/// Interfaces have addresses, one by one.
pub const NO_PREFIXES: &str = "Network interfaces of this host have no prefixes.";

/// Nobody manages addresses for anybody.
pub const NO_IPAM: &str = "This host has no IPAM pools: name a CidrBlock.";

/// There are no outposts, local zones or carriers.
pub const NO_OUTPOSTS: &str = "This host has no outposts, wavelength zones or address pools of customers.";
