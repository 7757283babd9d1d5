//! Volumes. The actions change records; the storage, and the actor of the instance that has a volume, bring what there is in
//! line with them.

mod attach_volume;
mod attributes;
mod create_volume;
mod delete_volume;
mod describe_volume_status;
mod describe_volumes;
mod describe_volumes_modifications;
mod detach_volume;
mod encryption_by_default;
mod item;
mod modification;
mod modify_volume;
#[cfg(test)]
mod tests;

use crate::query::dispatch::Registry;

pub(super) fn register(registry: &mut Registry) {
    registry.add::<attach_volume::AttachVolume>();
    registry.add::<attributes::DescribeVolumeAttribute>();
    registry.add::<attributes::EnableVolumeIO>();
    registry.add::<attributes::ModifyVolumeAttribute>();
    registry.add::<create_volume::CreateVolume>();
    registry.add::<delete_volume::DeleteVolume>();
    registry.add::<describe_volume_status::DescribeVolumeStatus>();
    registry.add::<describe_volumes::DescribeVolumes>();
    registry.add::<describe_volumes_modifications::DescribeVolumesModifications>();
    registry.add::<detach_volume::DetachVolume>();
    registry.add::<encryption_by_default::DisableEbsEncryptionByDefault>();
    registry.add::<encryption_by_default::EnableEbsEncryptionByDefault>();
    registry.add::<encryption_by_default::GetEbsEncryptionByDefault>();
    registry.add::<modify_volume::ModifyVolume>();
}
