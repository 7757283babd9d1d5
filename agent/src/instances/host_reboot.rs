//! What a reboot of the host means for the instances: VMMs, instance stores, and what was in the run directory, are gone.
//! Instances that ran start again, with the same ids, addresses and volumes, or are terminated if their root device was in
//! the instance store; what had begun is finished.

use jiff::Timestamp;

use super::settle::{detach, detach_interface, interfaces};
use crate::host::{Host, HostError};
use crate::records::{Instance, InstanceState, Machine};
use crate::state::{Draft, State};
use crate::store::StoreError;
use crate::volumes::snapshots;

/// Why the records are not brought in line.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The host fails.
    #[error(transparent)]
    Host(#[from] HostError),
    /// The records cannot be changed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Compares the host's boot with the one that the records are of, and brings the records in line if it is another. To be
/// called before the actors begin. Done in one transaction, so that it happens once for each reboot.
pub fn settle_reboot(state: &State, host: &dyn Host, now: Timestamp) -> Result<(), Error> {
    let boot_id = host.boot_id()?;
    let last = state.read().get::<Machine>(Machine::THIS).cloned();
    if last.as_ref().is_some_and(|machine| machine.boot_id == boot_id) {
        return Ok(());
    }
    // The first start, or that of an agent that is newer than its records, tells nothing.
    if last.is_some() {
        // Mostly they are gone already. Should the host have kept them, what is in them does not count.
        for instance in host.stores()? {
            host.remove_store(&instance)?;
        }
    }
    let settle = |draft: &mut Draft| -> Result<(), StoreError> {
        if last.is_some() {
            let instances: Vec<_> = draft.all::<Instance>().cloned().collect();
            for instance in instances {
                settle_instance(draft, &instance, now);
            }
        }
        draft.put(Machine { name: Machine::THIS.into(), boot_id: boot_id.clone() });
        Ok(())
    };
    Ok(state.change(settle)?)
}

fn settle_instance(draft: &mut Draft, instance: &Instance, now: Timestamp) {
    // There is no guest any more that would have to let go of what it was to lose.
    for device in &instance.block_devices {
        detach(draft, &device.volume);
    }
    for interface in interfaces(draft, &instance.id) {
        detach_interface(draft, &interface);
    }
    // Its guest is down, and what it has flushed is what there is.
    snapshots::photograph_waiting(draft, &instance.id, now);
    let from = instance.lifecycle.state;
    let endings = instance.endings();
    draft.update::<Instance>(&instance.id, |instance| instance.lifecycle.host_rebooted(endings, now));
    if from == InstanceState::Running {
        tracing::info!(instance = %instance.id, "the host was started anew, and so is the instance");
    }
}
