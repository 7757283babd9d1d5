//! Volumes. The actions change records; the actor of an instance brings the guest's disks in line with them, and makes a
//! volume's file when it is first needed.

mod attach_volume;
mod create_volume;
mod delete_volume;
mod describe_volumes;
mod detach_volume;
mod item;

use crate::query::dispatch::Registry;

pub(super) fn register(registry: &mut Registry) {
    registry.add::<attach_volume::AttachVolume>();
    registry.add::<create_volume::CreateVolume>();
    registry.add::<delete_volume::DeleteVolume>();
    registry.add::<describe_volumes::DescribeVolumes>();
    registry.add::<detach_volume::DetachVolume>();
}
