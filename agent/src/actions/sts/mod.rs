//! The security token service's only action that is here.

mod get_caller_identity;

use crate::query::dispatch::Registry;

pub(super) fn register(registry: &mut Registry) {
    registry.add::<get_caller_identity::GetCallerIdentity>();
}
