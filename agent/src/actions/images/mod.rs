//! Images, and the snapshots that their disks are.

mod deregister_image;
mod describe_image_attribute;
mod describe_images;
mod describe_snapshots;
mod mapping;
mod modify_image_attribute;
mod register_image;

use crate::query::dispatch::Registry;

/// The launch permission of everybody.
const EVERYBODY: &str = "all";

pub(super) fn register(registry: &mut Registry) {
    registry.add::<deregister_image::DeregisterImage>();
    registry.add::<describe_image_attribute::DescribeImageAttribute>();
    registry.add::<describe_images::DescribeImages>();
    registry.add::<describe_snapshots::DescribeSnapshots>();
    registry.add::<modify_image_attribute::ModifyImageAttribute>();
    registry.add::<register_image::RegisterImage>();
}
