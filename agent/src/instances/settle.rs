//! What an instance's steps mean for other records: its volumes and its interfaces.

use jiff::Timestamp;

use super::lifecycle::Observation;
use crate::ids::{InstanceId, NetworkInterfaceId, VolumeId};
use crate::network::public_addresses::take_automatic;
use crate::records::{AttachmentStatus, Instance, NetworkInterface, Step, Tags, Volume, VolumeState};
use crate::state::{Draft, World};
use crate::volumes::snapshots;

/// Brings other records in line with an instance that has just taken a step, and whose record is in place already.
pub fn settle(draft: &mut Draft, instance: &Instance, seen: &Observation) {
    let Observation::Done(step) = seen else { return };
    let volumes = instance.block_devices.iter().map(|device| &device.volume);
    match step {
        Step::PrepareVolumes => volumes.for_each(|id| {
            draft.update::<Volume>(id, |volume| volume.state = VolumeState::InUse);
        }),
        Step::StartVmm => {
            volumes.for_each(|id| attached(draft, id));
            interfaces(draft, &instance.id).iter().for_each(|id| interface_attached(draft, id));
        }
        // There is no guest any more that would have to let go.
        Step::EndVmm => {
            snapshots::photograph_waiting(draft, &instance.id, Timestamp::now());
            volumes.for_each(|id| {
                detach(draft, id);
                // One that its guest did not get in time is there from the next start on.
                attached(draft, id);
            });
            for id in interfaces(draft, &instance.id) {
                take_automatic(draft, &id);
                detach_interface(draft, &id);
                interface_attached(draft, &id);
            }
        }
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
    for id in interfaces(draft, &instance.id) {
        let goes = draft.get::<NetworkInterface>(&id).and_then(|interface| interface.attachment.as_ref());
        if goes.is_some_and(|attachment| attachment.delete_on_termination) {
            // Elastic addresses are free with that, and stay the account's.
            draft.remove::<NetworkInterface>(&id);
            draft.remove::<Tags>(&id);
        } else {
            draft.update::<NetworkInterface>(&id, |interface| interface.attachment = None);
        }
    }
}

/// The interfaces of an instance, whatever their attachments' status is.
pub fn interfaces(world: &World, instance: &InstanceId) -> Vec<NetworkInterfaceId> {
    let all = world.all::<NetworkInterface>().filter(|interface| interface.instance() == Some(instance));
    all.map(|interface| interface.id.clone()).collect()
}

/// Records that a guest has an interface.
pub fn interface_attached(draft: &mut Draft, id: &NetworkInterfaceId) {
    draft.update::<NetworkInterface>(id, |interface| {
        if let Some(attachment) = &mut interface.attachment
            && attachment.status == AttachmentStatus::Attaching
        {
            attachment.status = AttachmentStatus::Attached;
        }
    });
}

/// Records that no VMM has an interface any more that was to be detached. Without effect on one that was not.
pub fn detach_interface(draft: &mut Draft, id: &NetworkInterfaceId) {
    let is_leaving = |interface: &NetworkInterface| {
        let status = interface.attachment.as_ref().map(|attachment| attachment.status);
        matches!(status, Some(AttachmentStatus::Detaching { .. }))
    };
    if draft.get::<NetworkInterface>(id).is_some_and(|interface| is_leaving(interface)) {
        take_automatic(draft, id);
        draft.update::<NetworkInterface>(id, |interface| interface.attachment = None);
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::actions::testing::Client;
    use crate::query::ApiError;
    use crate::records::InstanceState;

    #[test]
    fn what_a_guest_did_not_get_before_its_end_is_attached_all_the_same() {
        let client = Client::new();
        let id = client.instance(InstanceState::Running);
        let volume = client.text("CreateVolume&AvailabilityZone=us-east-1a&Size=1", "volumeId");
        client.ask(&format!("AttachVolume&VolumeId={volume}&InstanceId={id}&Device=/dev/sdf")).unwrap();
        let status = || {
            let attachment = client.agent.state.read().get::<Volume>(&volume).unwrap().attachment.clone();
            attachment.unwrap().status
        };
        assert_eq!(status(), AttachmentStatus::Attaching);
        let instance = Instance::clone(client.agent.state.read().get::<Instance>(&id).unwrap());
        client
            .agent
            .state
            .change(|draft| {
                settle(draft, &instance, &Observation::Done(Step::EndVmm));
                Ok::<_, ApiError>(())
            })
            .unwrap();
        assert_eq!(status(), AttachmentStatus::Attached);
    }
}
