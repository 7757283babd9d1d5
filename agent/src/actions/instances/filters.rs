//! The filters of DescribeInstances: those of EC2's that can tell this host's instances apart, and those that everybody
//! has the same value for.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::view::{architecture, attached_devices, attachment, enabled, launched, private_dns_name};
use crate::actions::lookup::time;
use crate::actions::regions::zone_id;
use crate::query::Context;
use crate::query::filters::{Field, Filtered};
use crate::records::{Instance, InstanceState, NetworkInterface, SecurityGroup};
use crate::state::World;

/// An instance with what its filters need.
pub struct Seen<'w> {
    /// The instance.
    pub instance: &'w Instance,
    world: &'w World,
    interface: Option<&'w Arc<NetworkInterface>>,
    region: &'w str,
}

impl<'w> Seen<'w> {
    /// How filters see an instance.
    pub fn new(world: &'w World, context: Context<'w>, instance: &'w Instance) -> Self {
        let there = instance.lifecycle.state != InstanceState::Terminated;
        Self {
            instance,
            world,
            interface: world.get::<NetworkInterface>(&instance.network_interface).filter(|_| there),
            region: &context.agent.config.region,
        }
    }

    /// A value that those have that are still in their network.
    fn there(&self, value: impl ToString) -> Vec<String> {
        match self.instance.lifecycle.state {
            InstanceState::Terminated => Vec::new(),
            _ => vec![value.to_string()],
        }
    }

    fn group_names(&self) -> Vec<String> {
        let names = self.instance.security_groups.iter();
        names.filter_map(|id| Some(self.world.get::<SecurityGroup>(id)?.name.clone())).collect()
    }

    fn of_interface(&self, value: impl Fn(&NetworkInterface) -> String) -> Vec<String> {
        self.interface.map(|interface| value(interface)).into_iter().collect()
    }

    fn interface_tags(&self) -> impl Iterator<Item = (&String, &String)> {
        self.interface.and_then(|interface| self.world.tags(&interface.id)).into_iter().flatten()
    }

    fn private_dns_name(&self) -> Vec<String> {
        self.there(private_dns_name(self.instance.private_address, self.region))
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
            "image-id" => |seen| vec![seen.instance.image.to_string()],
            "instance-id" => |seen| vec![seen.instance.id.to_string()],
            "instance-state-code" => |seen| vec![seen.instance.lifecycle.state.code().to_string()],
            "instance-state-name" => |seen| vec![seen.instance.lifecycle.state.name().to_owned()],
            "instance-type" => |seen| vec![seen.instance.instance_type.clone()],
            "instance.group-id" | "group-id" => {
                |seen| seen.instance.security_groups.iter().map(ToString::to_string).collect()
            }
            "instance.group-name" | "group-name" => Seen::group_names,
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
            "private-dns-name" => Seen::private_dns_name,
            "private-dns-name-options.enable-resource-name-dns-a-record"
            | "private-dns-name-options.enable-resource-name-dns-aaaa-record" => |seen| seen.there(false),
            "private-dns-name-options.hostname-type" => |seen| seen.there("ip-name"),
            "private-ip-address" => |seen| seen.there(seen.instance.private_address),
            "reason" => |seen| vec![seen.instance.lifecycle.transition_reason.clone()],
            "reservation-id" => |seen| vec![seen.instance.reservation.to_string()],
            "root-device-name" => |seen| vec![seen.instance.root_device_name.clone()],
            "root-device-type" => |seen| vec![seen.instance.root_device_type().name().to_owned()],
            "source-dest-check" => |seen| seen.there(seen.instance.source_dest_check),
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
            | "dns-name"
            | "host-id"
            | "iam-instance-profile.arn"
            | "iam-instance-profile.id"
            | "iam-instance-profile.name"
            | "instance-lifecycle"
            | "ip-address"
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
        "addresses.private-dns-name" | "private-dns-name" => {
            |seen| seen.of_interface(|interface| private_dns_name(interface.private_address, seen.region))
        }
        "addresses.primary" => |seen| seen.of_interface(|_| "true".to_owned()),
        "addresses.private-ip-address" | "private-ip-address" => {
            |seen| seen.of_interface(|interface| interface.private_address.to_string())
        }
        "attachment.attach-time" => |seen| seen.of_interface(|interface| time(interface.attached)),
        "attachment.attachment-id" => |seen| seen.of_interface(|interface| interface.attachment.to_string()),
        "attachment.delete-on-termination" => {
            |seen| seen.of_interface(|interface| interface.delete_on_termination.to_string())
        }
        "attachment.device-index" | "attachment.network-card-index" => {
            |seen| seen.of_interface(|_| "0".to_owned())
        }
        "attachment.instance-id" => |seen| seen.of_interface(|interface| interface.instance.to_string()),
        "attachment.instance-owner-id" | "owner-id" => {
            |seen| seen.of_interface(|interface| interface.owner.clone())
        }
        "attachment.status" => |seen| seen.of_interface(|_| "attached".to_owned()),
        "availability-zone" => |seen| seen.of_interface(|_| seen.instance.availability_zone.clone()),
        "description" => |seen| seen.of_interface(|interface| interface.description.clone()),
        "group-id" => {
            |seen| seen.interface.iter().flat_map(|found| &found.groups).map(ToString::to_string).collect()
        }
        "group-name" => |seen| if seen.interface.is_some() { seen.group_names() } else { Vec::new() },
        "mac-address" => |seen| seen.of_interface(|interface| interface.mac.clone()),
        "network-interface-id" => |seen| seen.of_interface(|interface| interface.id.to_string()),
        "ipv6-native" | "operator.managed" | "requester-managed" => {
            |seen| seen.of_interface(|_| "false".to_owned())
        }
        "source-dest-check" => |seen| seen.of_interface(|interface| interface.source_dest_check.to_string()),
        "status" => |seen| seen.of_interface(|_| "in-use".to_owned()),
        "tag-key" => |seen| seen.interface_tags().map(|(key, _)| key.clone()).collect(),
        "tag-value" => |seen| seen.interface_tags().map(|(_, value)| value.clone()).collect(),
        "subnet-id" => |seen| seen.of_interface(|interface| interface.subnet.to_string()),
        "vpc-id" => |seen| seen.of_interface(|interface| interface.vpc.to_string()),
        "addresses.association.allocation-id"
        | "addresses.association.association-id"
        | "addresses.association.carrier-ip"
        | "addresses.association.customer-owned-ip"
        | "addresses.association.ip-owner-id"
        | "addresses.association.public-dns-name"
        | "addresses.association.public-ip"
        | "association.allocation-id"
        | "association.association-id"
        | "association.carrier-ip"
        | "association.customer-owned-ip"
        | "association.ip-owner-id"
        | "association.public-dns-name"
        | "association.public-ip"
        | "deny-all-igw-traffic"
        | "ipv4-prefixes.ipv4-prefix"
        | "ipv6-address"
        | "ipv6-addresses.ipv6-address"
        | "ipv6-addresses.is-primary-ipv6"
        | "ipv6-prefixes.ipv6-prefix"
        | "operator.principal"
        | "outpost-arn"
        | "public-dns-name"
        | "requester-id" => |_| Vec::new(),
        _ => return None,
    })
}
