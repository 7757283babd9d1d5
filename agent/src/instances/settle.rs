//! What an instance's steps mean for other records: its volumes and its interface.

use super::lifecycle::Observation;
use crate::ids::VolumeId;
use crate::records::{AttachmentStatus, Instance, NetworkInterface, Step, Tags, Volume, VolumeState};
use crate::state::Draft;

/// Brings other records in line with an instance that has just taken a step, and whose record is in place already.
pub fn settle(draft: &mut Draft, instance: &Instance, seen: &Observation) {
    let Observation::Done(step) = seen else { return };
    let volumes = instance.block_devices.iter().map(|device| &device.volume);
    match step {
        Step::PrepareVolumes => volumes.for_each(|id| {
            draft.update::<Volume>(id, |volume| volume.state = VolumeState::InUse);
        }),
        Step::StartVmm => volumes.for_each(|id| attached(draft, id)),
        // There is no guest any more that would have to let go.
        Step::EndVmm => volumes.for_each(|id| detach(draft, id)),
        Step::ReleaseVolumes => release(draft, instance),
        Step::Reboot | Step::PressButton { .. } => {}
    }
}

/// Nothing of a terminated instance is left but its record and its tags.
fn release(draft: &mut Draft, instance: &Instance) {
    for device in &instance.block_devices {
        if device.delete_on_termination {
            draft.remove::<Volume>(&device.volume);
            draft.remove::<Tags>(&device.volume);
        } else {
            draft.update::<Volume>(&device.volume, |volume| {
                volume.state = VolumeState::Available;
                volume.attachment = None;
            });
        }
    }
    draft.remove::<NetworkInterface>(&instance.network_interface);
    draft.remove::<Tags>(&instance.network_interface);
}

/// Records that a guest has a volume.
pub fn attached(draft: &mut Draft, id: &VolumeId) {
    draft.update::<Volume>(id, |volume| {
        if let Some(attachment) = &mut volume.attachment
            && attachment.status == AttachmentStatus::Attaching
        {
            attachment.status = AttachmentStatus::Attached;
        }
    });
}

/// Records that no VMM has a volume any more that was to be detached. Without effect on one that was not.
pub fn detach(draft: &mut Draft, id: &VolumeId) {
    let Some(attachment) = draft.get::<Volume>(id).and_then(|volume| volume.attachment.clone()) else {
        return;
    };
    if !matches!(attachment.status, AttachmentStatus::Detaching { .. }) {
        return;
    }
    draft.update::<Instance>(&attachment.instance, |instance| {
        instance.block_devices.retain(|device| device.volume != *id);
    });
    draft.update::<Volume>(id, |volume| {
        volume.state = VolumeState::Available;
        volume.attachment = None;
    });
}
