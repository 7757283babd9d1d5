//! `meta-data/network`: each interface, by its MAC address.

use super::meta_data::{groups, public_name};
use super::{Category, FIRST, View};
use crate::network::Cidr;
use crate::network::names::private_dns_name;
use crate::records::{NetworkInterface, Subnet, Vpc};

pub fn network<'v>(view: View<'v>, category: Category<'v>) -> Category<'v> {
    category.category(FIRST, "interfaces", move |inside| {
        inside.category(FIRST, "macs", move |mut inside| {
            let all = view.world.all::<NetworkInterface>();
            for own in all.filter(|one| one.instance() == Some(&view.instance.id)) {
                inside.within(own.mac.to_lowercase(), move |inside| interface(view, own, inside));
            }
            inside
        })
    })
}

fn interface<'v>(view: View<'v>, own: &'v NetworkInterface, category: Category<'v>) -> Category<'v> {
    let View { world, region, .. } = view;
    let index = own.attachment.as_ref().map_or(0, |attachment| attachment.device_index);
    let public = || own.addresses().filter_map(|address| Some((address.public.as_ref()?, address.address)));
    let publics: Vec<_> = public().map(|(public, _)| public.address.to_string()).collect();
    let subnet = world.get::<Subnet>(&own.subnet);
    let vpc = world.get::<Vpc>(&own.vpc);
    let some = |texts: Vec<String>| Some(texts.join("\n")).filter(|text| !text.is_empty());
    let cidrs = |cidrs: Vec<Cidr>| some(cidrs.iter().map(ToString::to_string).collect());
    category
        .text(FIRST, "device-number", move || index.to_string())
        .text(FIRST, "interface-id", || own.id.to_string())
        .category_if(!publics.is_empty(), FIRST, "ipv4-associations", move |mut inside| {
            for (public, private) in public() {
                inside = inside.named(public.address.to_string(), private.to_string());
            }
            inside
        })
        .text(FIRST, "local-hostname", move || private_dns_name(own.primary.address, region))
        .some(FIRST, "local-ipv4s", some(own.addresses().map(|own| own.address.to_string()).collect()))
        .text(FIRST, "mac", || own.mac.to_lowercase())
        // There is one card. Its number has changed its name.
        .text("2020-11-01", "network-card", || "0".to_owned())
        .text("2020-11-01", "network-card-index", || "0".to_owned())
        .text(FIRST, "owner-id", || own.owner.clone())
        .some(FIRST, "public-hostname", public_name(world, own, region))
        .some(FIRST, "public-ipv4s", some(publics.clone()))
        .text(FIRST, "security-group-ids", move || groups(world, own, |group| group.id.as_str()))
        .text(FIRST, "security-groups", move || groups(world, own, |group| &group.name))
        .text(FIRST, "subnet-id", || own.subnet.to_string())
        .some(FIRST, "subnet-ipv4-cidr-block", subnet.map(|subnet| subnet.cidr.to_string()))
        .text(FIRST, "vpc-id", || own.vpc.to_string())
        .some(FIRST, "vpc-ipv4-cidr-block", vpc.map(|vpc| vpc.cidr.to_string()))
        .some("2016-06-30", "vpc-ipv4-cidr-blocks", vpc.and_then(|vpc| cidrs(vpc.cidrs().collect())))
}
