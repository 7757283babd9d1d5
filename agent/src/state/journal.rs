//! Keeps the last changes of instances' states, each in the transaction that makes it: none is missed, or told twice,
//! whatever becomes of the agent.

use jiff::Timestamp;

use super::{Draft, World};
use crate::records::{Instance, Record, StateChange};

/// How many are kept.
pub const KEPT: usize = 1000;

/// Adds what has changed since `before`, and forgets what is too old.
pub(super) fn note(before: &World, draft: &mut Draft, now: Timestamp) {
    let mut changes = Vec::new();
    let written = draft.writes.keys().filter_map(|key| key.strip_prefix(Instance::KIND)?.strip_prefix('/'));
    for id in written {
        let Some(instance) = draft.get::<Instance>(id) else { continue };
        let state = instance.lifecycle.state;
        if before.get::<Instance>(id).map(|before| before.lifecycle.state) != Some(state) {
            changes.push((instance.id.clone(), instance.owner.clone(), state));
        }
    }
    let mut number = draft.last::<StateChange>().map_or(0, |last| last.ordinal());
    for (instance, owner, state) in changes {
        number += 1;
        draft.put(StateChange {
            number: StateChange::key_of(number),
            id: uuid::Builder::from_random_bytes(rand::random()).into_uuid().to_string(),
            time: now,
            owner,
            instance,
            state,
        });
    }
    while draft.all::<StateChange>().len() > KEPT {
        let Some(oldest) = draft.all::<StateChange>().next().map(|oldest| oldest.number.clone()) else {
            return;
        };
        draft.remove::<StateChange>(oldest);
    }
}
