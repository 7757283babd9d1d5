//! Actions that EC2 does not have, for people on the host.

mod describe_state;

use crate::query::dispatch::Registry;

pub(super) fn register(registry: &mut Registry) {
    registry.add::<describe_state::DescribeState>();
}
