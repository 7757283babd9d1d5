//! `meta-data`.

use super::{Category, FIRST, Node, View, events, iam, network};
use crate::actions::{tag_key_fits, zone_id};
use crate::iam::profile_of;
use crate::network::names::{private_dns_name, public_dns_name};
use crate::records::{Instance, NetworkInterface, SecurityGroup, StoreDisk, Vpc};
use crate::state::World;

pub fn meta_data<'v>(view: View<'v>, category: Category<'v>) -> Category<'v> {
    let View { world, instance, region, .. } = view;
    let primary = view.primary();
    let name = primary.map(|interface| private_dns_name(interface.primary.address, region));
    let public = primary.and_then(|interface| interface.primary.public.as_ref());
    let public_name = primary.and_then(|interface| public_name(world, interface, region));
    let zone = &instance.availability_zone;
    let profile = profile_of(world, instance);
    category
        .text(FIRST, "ami-id", || instance.image.to_string())
        .text(FIRST, "ami-launch-index", || instance.launch_index.to_string())
        .text(FIRST, "ami-manifest-path", || "(unknown)".to_owned())
        .category("2007-12-15", "block-device-mapping", |inside| block_devices(instance, inside))
        .category("2018-08-17", "events", move |inside| events::events(view, inside))
        .some(FIRST, "hostname", name.clone())
        .category_if(profile.is_some(), "2012-01-12", "iam", move |inside| match &profile {
            Some(profile) => iam::iam(view, profile, inside),
            None => inside,
        })
        .text("2008-09-01", "instance-action", || "none".to_owned())
        .text(FIRST, "instance-id", || instance.id.to_string())
        .text("2019-10-01", "instance-life-cycle", || "on-demand".to_owned())
        .text("2007-08-29", "instance-type", || instance.instance_type.clone())
        .some("2007-01-19", "local-hostname", name)
        .some(FIRST, "local-ipv4", primary.map(|interface| interface.primary.address.to_string()))
        .some("2011-01-01", "mac", primary.map(|interface| interface.mac.clone()))
        .category("2011-01-01", "network", move |inside| network::network(view, inside))
        .category("2008-02-01", "placement", move |inside| {
            inside
                .text("2008-02-01", "availability-zone", || zone.clone())
                .text("2019-10-01", "availability-zone-id", move || zone_id(region, zone))
                .text("2020-08-24", "region", || region.to_owned())
        })
        .text("2007-12-15", "profile", || "default-hvm".to_owned())
        .some("2007-01-19", "public-hostname", public_name)
        .some("2007-01-19", "public-ipv4", public.map(|public| public.address.to_string()))
        .category_if(instance.public_key.is_some(), FIRST, "public-keys", |inside| keys(instance, inside))
        .text(FIRST, "reservation-id", || instance.reservation.to_string())
        .some(
            FIRST,
            "security-groups",
            primary.map(|interface| groups(world, interface, |group| &group.name)),
        )
        .category("2014-02-25", "services", |inside| {
            inside.text("2014-02-25", "domain", || "amazonaws.com".to_owned()).text(
                "2015-10-20",
                "partition",
                || "aws".to_owned(),
            )
        })
        .category_if(events::is_interrupted(view), "2014-11-05", "spot", move |inside| {
            events::spot(view, inside)
        })
        .category_if(
            instance.metadata_options.instance_metadata_tags == "enabled",
            "2021-03-23",
            "tags",
            move |inside| {
                inside.category("2021-03-23", "instance", move |inside| {
                    let tags =
                        world.tags(&instance.id).into_iter().flatten().filter(|(key, _)| tag_key_fits(key));
                    tags.fold(inside, |inside, (key, value)| inside.named(key.clone(), value.clone()))
                })
            },
        )
}

/// The name of an interface's first public address, if its VPC wants it to have one.
pub fn public_name(world: &World, interface: &NetworkInterface, region: &str) -> Option<String> {
    let public = interface.primary.public.as_ref()?;
    let vpc = world.get::<Vpc>(&interface.vpc)?;
    vpc.enable_dns_hostnames.then(|| public_dns_name(public.address, region))
}

/// Something of each group of an interface, one in a line.
pub fn groups(world: &World, interface: &NetworkInterface, what: fn(&SecurityGroup) -> &str) -> String {
    let groups = interface.groups.iter().filter_map(|id| world.get::<SecurityGroup>(id));
    groups.map(|group| what(group)).collect::<Vec<_>>().join("\n")
}

/// By what name each disk is known. As with EC2's NVMe disks, those of the instance store that no mapping names have none.
fn block_devices<'v>(instance: &Instance, category: Category<'v>) -> Category<'v> {
    let root = &instance.root_device_name;
    let mut category =
        category.some(FIRST, "ami", Some(root.clone())).some(FIRST, "root", Some(root.clone()));
    let volumes = instance.block_devices.iter().filter(|device| device.device_name != *root);
    for (device, number) in volumes.zip(1..) {
        category = category.named(format!("ebs{number}"), short(&device.device_name));
    }
    let disks = instance.instance_store.iter().filter(|disk| !StoreDisk::is_root(disk));
    for disk in disks {
        if let Some(device) = &disk.device_name {
            category = category.named(disk.name.clone(), short(device));
        }
    }
    category
}

fn short(device: &str) -> String {
    device.strip_prefix("/dev/").unwrap_or(device).to_owned()
}

/// `public-keys`: there is one.
fn keys<'v>(instance: &'v Instance, mut category: Category<'v>) -> Category<'v> {
    let name = instance.key_name.as_deref().unwrap_or_default();
    let key = instance.public_key.as_deref().unwrap_or_default();
    let version = category.version;
    let way = move || {
        let inside = Category::new(version).text(FIRST, "openssh-key", move || key.to_owned());
        Some(Node::Category(inside))
    };
    category.push("0", format!("0={name}"), Box::new(way));
    category
}
