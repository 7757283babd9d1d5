//! The filters of DescribeInstances: those of EC2's that can tell this host's instances apart, and those that everybody
//! has the same value for.

use std::collections::BTreeMap;

use super::view::{Interfaces, architecture, attached_devices, attachment, enabled, launched};
use crate::actions::lookup::time;
use crate::actions::network_interfaces::item::Association;
use crate::actions::regions::zone_id;
use crate::network::names::private_dns_name;
use crate::query::Context;
use crate::query::filters::{Field, Filtered};
use crate::records::{
    Instance, InstanceState, InterfaceAttachment, NetworkInterface, PrivateAddress, ProfileAssociation,
    SecurityGroup,
};
use crate::state::World;

/// An instance with what its filters need.
pub struct Seen<'w> {
    /// The instance.
    pub instance: &'w Instance,
    world: &'w World,
    /// In the order of their device indexes.
    interfaces: &'w [&'w NetworkInterface],
    region: &'w str,
}

impl<'w> Seen<'w> {
    /// How filters see an instance.
    pub fn new(
        world: &'w World,
        context: Context<'w>,
        interfaces: &'w Interfaces<'w>,
        instance: &'w Instance,
    ) -> Self {
        let region = &context.agent.config.region;
        Self { instance, world, interfaces: interfaces.of(instance), region }
    }

    /// A value that those have that are still in their network.
    fn there(&self, value: impl ToString) -> Vec<String> {
        match self.instance.lifecycle.state {
            InstanceState::Terminated => Vec::new(),
            _ => vec![value.to_string()],
        }
    }

    /// A value of the instance profile.
    fn of_profile(&self, value: impl Fn(&ProfileAssociation) -> Option<String>) -> Vec<String> {
        match self.instance.lifecycle.state {
            InstanceState::Terminated => Vec::new(),
            _ => self.instance.instance_profile.iter().filter_map(value).collect(),
        }
    }

    /// A value of the primary interface.
    fn of_primary(&self, value: impl Fn(&NetworkInterface) -> String) -> Vec<String> {
        self.interfaces.first().map(|interface| value(interface)).into_iter().collect()
    }

    /// The primary interface's public address.
    fn of_public(&self, value: impl Fn(Association) -> String) -> Vec<String> {
        let primary =
            self.interfaces.first().and_then(|interface| self.association(interface, &interface.primary));
        primary.map(value).into_iter().collect()
    }

    fn association(&self, interface: &NetworkInterface, address: &PrivateAddress) -> Option<Association> {
        Some(Association::new(self.world, self.region, interface, address.public.as_ref()?))
    }

    /// The groups of one interface.
    fn group_names<'s>(&'s self, interface: &'s NetworkInterface) -> impl Iterator<Item = String> {
        let names = interface.groups.iter();
        names.filter_map(|id| Some(self.world.get::<SecurityGroup>(id)?.name.clone()))
    }

    /// A value of each interface.
    fn of_interfaces(&self, value: impl Fn(&NetworkInterface) -> String) -> Vec<String> {
        self.interfaces.iter().map(|interface| value(interface)).collect()
    }

    /// A value of each interface's attachment.
    fn of_attachments(&self, value: impl Fn(&InterfaceAttachment) -> String) -> Vec<String> {
        self.interfaces.iter().filter_map(|interface| interface.attachment.as_ref()).map(value).collect()
    }

    /// A value of each private address.
    fn of_addresses(&self, value: impl Fn(&PrivateAddress) -> String) -> Vec<String> {
        self.interfaces.iter().flat_map(|interface| interface.addresses()).map(value).collect()
    }

    /// A value of the public address of each private one.
    fn of_associations(&self, value: impl Fn(Association) -> Option<String>) -> Vec<String> {
        let of = |interface: &&NetworkInterface| {
            let found = interface.addresses().filter_map(|address| self.association(interface, address));
            found.collect::<Vec<Association>>()
        };
        self.interfaces.iter().flat_map(of).filter_map(value).collect()
    }

    /// The public address of each interface's first one.
    fn of_own_associations(&self, value: impl Fn(Association) -> Option<String>) -> Vec<String> {
        let own = self.interfaces.iter().filter_map(|one| self.association(one, &one.primary));
        own.filter_map(value).collect()
    }

    fn interface_tags(&self) -> impl Iterator<Item = (&String, &String)> {
        self.interfaces.iter().filter_map(|interface| self.world.tags(&interface.id)).flatten()
    }
}

/// A value that every instance has.
macro_rules! always {
    ($value:literal) => {
        |_| vec![$value.to_owned()]
    };
}

/// What is asked of a device, one value for each.
macro_rules! devices {
    ($seen:ident, $device:ident => $value:expr) => {
        |$seen| attached_devices($seen.instance).map(|$device| $value).collect()
    };
}

impl Filtered for Seen<'_> {
    fn field(name: &str) -> Option<Field<Self>> {
        if let Some(rest) = name.strip_prefix("network-interface.") {
            return interface_field(rest);
        }
        Some(match name {
            "affinity" => always!("default"),
            "architecture" => |seen| vec![architecture(seen.world, seen.instance)],
            "availability-zone" => |seen| vec![seen.instance.availability_zone.clone()],
            "availability-zone-id" => |seen| vec![zone_id(seen.region, &seen.instance.availability_zone)],
            "block-device-mapping.attach-time" => {
                devices!(seen, device => time(attachment(seen.world, seen.instance, device).1))
            }
            "block-device-mapping.delete-on-termination" => {
                devices!(seen, device => device.delete_on_termination.to_string())
            }
            "block-device-mapping.device-name" => devices!(seen, device => device.device_name.clone()),
            "block-device-mapping.status" => {
                devices!(seen, device => attachment(seen.world, seen.instance, device).0.to_owned())
            }
            "block-device-mapping.volume-id" => devices!(seen, device => device.volume.to_string()),
            "boot-mode" | "current-instance-boot-mode" => always!("legacy-bios"),
            "capacity-reservation-specification.capacity-reservation-preference" => always!("open"),
            "client-token" => |seen| seen.instance.client_token.clone().into_iter().collect(),
            "ebs-optimized" => |seen| vec![seen.instance.ebs_optimized.to_string()],
            "ena-support" => always!("true"),
            "enclave-options.enabled" | "hibernation-options.configured" => always!("false"),
            "hypervisor" => always!("xen"),
            "iam-instance-profile.arn" => |seen| seen.of_profile(|one| Some(one.arn.clone())),
            "iam-instance-profile.id" => |seen| seen.of_profile(|one| Some(one.profile.clone())),
            "iam-instance-profile.name" => {
                |seen| seen.of_profile(|one| one.arn.rsplit('/').next().map(str::to_owned))
            }
            "image-id" => |seen| vec![seen.instance.image.to_string()],
            "instance-id" => |seen| vec![seen.instance.id.to_string()],
            "instance-state-code" => |seen| vec![seen.instance.lifecycle.state.code().to_string()],
            "instance-state-name" => |seen| vec![seen.instance.lifecycle.state.name().to_owned()],
            "instance-type" => |seen| vec![seen.instance.instance_type.clone()],
            "instance.group-id" | "group-id" => |seen| {
                seen.interfaces.iter().take(1).flat_map(|one| &one.groups).map(ToString::to_string).collect()
            },
            "instance.group-name" | "group-name" => {
                |seen| seen.interfaces.iter().take(1).flat_map(|one| seen.group_names(one)).collect()
            }
            "dns-name" => |seen| seen.of_public(|public| public.public_dns_name),
            "ip-address" => |seen| seen.of_public(|public| public.public_ip),
            "key-name" => |seen| seen.instance.key_name.clone().into_iter().collect(),
            "launch-index" => |seen| vec![seen.instance.launch_index.to_string()],
            "launch-time" => |seen| vec![time(seen.instance.launch_time)],
            "maintenance-options.auto-recovery" => always!("default"),
            "metadata-options.http-endpoint" => {
                |seen| vec![seen.instance.metadata_options.http_endpoint.clone()]
            }
            "metadata-options.http-protocol-ipv4" => always!("enabled"),
            "metadata-options.http-protocol-ipv6" => always!("disabled"),
            "metadata-options.http-put-response-hop-limit" => {
                |seen| vec![seen.instance.metadata_options.http_put_response_hop_limit.to_string()]
            }
            "metadata-options.http-tokens" => |seen| vec![seen.instance.metadata_options.http_tokens.clone()],
            "metadata-options.instance-metadata-tags" => {
                |seen| vec![seen.instance.metadata_options.instance_metadata_tags.clone()]
            }
            "metadata-options.state" => always!("applied"),
            "monitoring-state" => |seen| vec![enabled(seen.instance.monitoring).to_owned()],
            "network-performance-options.bandwidth-weighting" => always!("default"),
            "operator.managed" => always!("false"),
            "owner-id" => |seen| vec![seen.instance.owner.clone()],
            "platform-details" => always!("Linux/UNIX"),
            "private-dns-name" => {
                |seen| seen.of_primary(|one| private_dns_name(one.primary.address, seen.region))
            }
            "private-dns-name-options.enable-resource-name-dns-a-record"
            | "private-dns-name-options.enable-resource-name-dns-aaaa-record" => |seen| seen.there(false),
            "private-dns-name-options.hostname-type" => |seen| seen.there("ip-name"),
            "private-ip-address" => |seen| seen.of_primary(|one| one.primary.address.to_string()),
            "reason" => |seen| vec![seen.instance.lifecycle.transition_reason.clone()],
            "reservation-id" => |seen| vec![seen.instance.reservation.to_string()],
            "root-device-name" => |seen| vec![seen.instance.root_device_name.clone()],
            "root-device-type" => |seen| vec![seen.instance.root_device_type().name().to_owned()],
            "source-dest-check" => |seen| seen.of_primary(|one| one.source_dest_check.to_string()),
            "state-reason-code" => {
                |seen| seen.instance.lifecycle.state_reason.iter().map(|reason| reason.code.clone()).collect()
            }
            "state-reason-message" => |seen| {
                seen.instance.lifecycle.state_reason.iter().map(|reason| reason.message.clone()).collect()
            },
            "subnet-id" => |seen| seen.there(&seen.instance.subnet),
            "tenancy" => always!("default"),
            "usage-operation" => always!("RunInstances"),
            "usage-operation-update-time" => |seen| vec![time(launched(seen.world, seen.instance))],
            "virtualization-type" => always!("hvm"),
            "vpc-id" => |seen| seen.there(&seen.instance.vpc),
            // What no instance of this host has.
            "capacity-reservation-id"
            | "capacity-reservation-specification.capacity-reservation-target.capacity-reservation-id"
            | "capacity-reservation-specification.capacity-reservation-target.capacity-reservation-resource-group-arn"
            | "host-id"
            | "instance-lifecycle"
            | "ipv6-address"
            | "kernel-id"
            | "operator.principal"
            | "outpost-arn"
            | "placement-group-name"
            | "placement-partition-number"
            | "platform"
            | "product-code"
            | "product-code.type"
            | "ramdisk-id"
            | "requester-id"
            | "spot-instance-request-id"
            | "tpm-support" => |_| Vec::new(),
            _ => return None,
        })
    }

    fn tags(&self) -> Option<&BTreeMap<String, String>> {
        self.world.tags(&self.instance.id)
    }
}

/// The filters whose names begin with `network-interface.`.
fn interface_field<'w>(name: &str) -> Option<Field<Seen<'w>>> {
    Some(match name {
        "addresses.association.allocation-id" => |seen| seen.of_associations(|public| public.allocation_id),
        "addresses.association.association-id" => |seen| seen.of_associations(|public| public.association_id),
        "addresses.association.ip-owner-id" => |seen| seen.of_associations(|public| Some(public.ip_owner_id)),
        "addresses.association.public-dns-name" => {
            |seen| seen.of_associations(|public| Some(public.public_dns_name))
        }
        "addresses.association.public-ip" => |seen| seen.of_associations(|public| Some(public.public_ip)),
        "addresses.private-dns-name" => {
            |seen| seen.of_addresses(|one| private_dns_name(one.address, seen.region))
        }
        "addresses.primary" => {
            |seen| seen.interfaces.iter().flat_map(|one| one.addresses().enumerate()).map(is_first).collect()
        }
        "addresses.private-ip-address" => |seen| seen.of_addresses(|one| one.address.to_string()),
        "association.allocation-id" => |seen| seen.of_own_associations(|public| public.allocation_id),
        "association.association-id" => |seen| seen.of_own_associations(|public| public.association_id),
        "association.ip-owner-id" => |seen| seen.of_own_associations(|public| Some(public.ip_owner_id)),
        "association.public-dns-name" | "public-dns-name" => {
            |seen| seen.of_own_associations(|public| Some(public.public_dns_name))
        }
        "association.public-ip" => |seen| seen.of_own_associations(|public| Some(public.public_ip)),
        "attachment.attach-time" => |seen| seen.of_attachments(|one| time(one.attached)),
        "attachment.attachment-id" => |seen| seen.of_attachments(|one| one.id.to_string()),
        "attachment.delete-on-termination" => {
            |seen| seen.of_attachments(|one| one.delete_on_termination.to_string())
        }
        "attachment.device-index" => |seen| seen.of_attachments(|one| one.device_index.to_string()),
        "attachment.network-card-index" => |seen| seen.of_attachments(|_| "0".to_owned()),
        "attachment.instance-id" => |seen| seen.of_attachments(|one| one.instance.to_string()),
        "attachment.instance-owner-id" | "owner-id" => |seen| seen.of_interfaces(|one| one.owner.clone()),
        "attachment.status" => |seen| seen.of_attachments(|one| one.status.name().to_owned()),
        "availability-zone" => |seen| seen.of_interfaces(|_| seen.instance.availability_zone.clone()),
        "description" => |seen| seen.of_interfaces(|one| one.description.clone()),
        "group-id" => {
            |seen| seen.interfaces.iter().flat_map(|one| &one.groups).map(ToString::to_string).collect()
        }
        "group-name" => |seen| seen.interfaces.iter().flat_map(|one| seen.group_names(one)).collect(),
        "mac-address" => |seen| seen.of_interfaces(|one| one.mac.clone()),
        "network-interface-id" => |seen| seen.of_interfaces(|one| one.id.to_string()),
        "ipv6-native" | "operator.managed" | "requester-managed" => {
            |seen| seen.of_interfaces(|_| "false".to_owned())
        }
        "private-dns-name" => {
            |seen| seen.of_interfaces(|one| private_dns_name(one.primary.address, seen.region))
        }
        "private-ip-address" => |seen| seen.of_interfaces(|one| one.primary.address.to_string()),
        "source-dest-check" => |seen| seen.of_interfaces(|one| one.source_dest_check.to_string()),
        "status" => |seen| seen.of_interfaces(|one| one.status().to_owned()),
        "tag-key" => |seen| seen.interface_tags().map(|(key, _)| key.clone()).collect(),
        "tag-value" => |seen| seen.interface_tags().map(|(_, value)| value.clone()).collect(),
        "subnet-id" => |seen| seen.of_interfaces(|one| one.subnet.to_string()),
        "vpc-id" => |seen| seen.of_interfaces(|one| one.vpc.to_string()),
        "addresses.association.carrier-ip"
        | "addresses.association.customer-owned-ip"
        | "association.carrier-ip"
        | "association.customer-owned-ip"
        | "deny-all-igw-traffic"
        | "ipv4-prefixes.ipv4-prefix"
        | "ipv6-address"
        | "ipv6-addresses.ipv6-address"
        | "ipv6-addresses.is-primary-ipv6"
        | "ipv6-prefixes.ipv6-prefix"
        | "operator.principal"
        | "outpost-arn"
        | "requester-id" => |_| Vec::new(),
        _ => return None,
    })
}

/// Whether an address is the first one of its interface.
fn is_first((number, _): (usize, &PrivateAddress)) -> String {
    (number == 0).to_string()
}
