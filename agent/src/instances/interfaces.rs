//! The network interfaces of an instance's guest.

use std::sync::Arc;

use anyhow::{Context, Result};
use innkeeper_protocol::{DeviceStatus, DriverState, Limit, Limits, Status};

use super::actor::Actor;
use super::chain;
use super::health::Guest;
use super::settle::{detach_interface, interface_attached};
use crate::catalogue::Network;
use crate::records::{AttachmentStatus, Instance, NetworkInterface};

/// The most pairs of queues that a VMM's interface has.
const MAX_QUEUES: u32 = 8;

impl Actor {
    /// Gives a guest that is about to start its interfaces, in the order of their device indexes.
    pub(super) async fn attach_interfaces(&mut self, instance: &Instance) -> Result<()> {
        self.interfaces.clear();
        for interface in self.own_interfaces() {
            self.attach_interface(instance, &interface).await?;
        }
        Ok(())
    }

    /// Gives a running guest the interfaces that it is to have, takes those that it is to lose, and records what came of
    /// it.
    pub(super) async fn reconcile_interfaces(&mut self, instance: &Instance) {
        for interface in self.own_interfaces() {
            let id = &interface.id;
            let Some(attachment) = &interface.attachment else { continue };
            let result = match (attachment.status, self.interfaces.contains(id)) {
                (AttachmentStatus::Attached, true) => Ok(()),
                (AttachmentStatus::Attaching, true) => self.change(id, interface_attached).await,
                (AttachmentStatus::Attaching | AttachmentStatus::Attached, false) => {
                    match self.attach_interface(instance, &interface).await {
                        Ok(()) => self.change(id, interface_attached).await,
                        Err(error) => Err(error),
                    }
                }
                (AttachmentStatus::Detaching { force }, true) => self.ask_for(id.as_str(), force).await,
                (AttachmentStatus::Detaching { .. }, false) => self.change(id, detach_interface).await,
            };
            if let Err(error) = result {
                tracing::warn!(
                    instance = %self.id, interface = %id, error = chain(error.as_ref()), "cannot do so"
                );
            }
        }
    }

    /// Whether the guest answers on the network, if it drives its primary interface.
    pub(super) async fn ask_guest(&self, instance: &Instance, status: &Status) -> Guest {
        let primary = &instance.network_interface;
        let drives =
            |device: &DeviceStatus| device.id == primary.as_str() && device.driver == DriverState::Running;
        if !status.devices.iter().any(drives) {
            return Guest::Unasked;
        }
        match self.shared.data_plane.is_answered(primary).await {
            Ok(true) => Guest::Answers,
            Ok(false) => Guest::Mute,
            Err(error) => {
                tracing::debug!(instance = %self.id, error = chain(error.as_ref()), "the guest was not asked");
                Guest::Unasked
            }
        }
    }

    /// The interfaces that are the instance's as the records say.
    fn own_interfaces(&self) -> Vec<Arc<NetworkInterface>> {
        let world = self.shared.state.read();
        let index =
            |one: &Arc<NetworkInterface>| one.attachment.as_ref().map(|attachment| attachment.device_index);
        let own = world.all::<NetworkInterface>().filter(|one| one.instance() == Some(&self.id));
        let mut own: Vec<_> = own.cloned().collect();
        own.sort_by_key(index);
        own
    }

    async fn attach_interface(&mut self, instance: &Instance, interface: &NetworkInterface) -> Result<()> {
        let name = &instance.instance_type;
        let kind = self.shared.catalogue.get(name);
        let kind = kind.with_context(|| format!("there is no instance type {name} any more"))?;
        let queues = u16::try_from(kind.vcpus.clamp(1, MAX_QUEUES)).unwrap_or(1);
        let limits = limits(&kind.network);
        let taps = self.shared.data_plane.open_tap(&interface.id, queues).await?;
        let vmm = self.vmm.as_mut().context("there is no VMM")?;
        let slot = vmm.attach_interface(interface.id.as_str(), &interface.mac, limits, &taps).await?;
        self.interfaces.insert(interface.id.clone());
        tracing::debug!(instance = %self.id, interface = %interface.id, slot, "attached");
        Ok(())
    }
}

/// What an interface of a type may send, and receive, in a second: the most that EC2's has, for however long.
fn limits(network: &Network) -> Limits {
    let bytes = network.peak * 1e9 / 8.0;
    let limit = Limit { per_second: bytes as u64, burst: None };
    Limits { bytes: (limit.per_second > 0).then_some(limit), operations: None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_type_has_the_bandwidth_of_ec2s() {
        let catalogue = crate::catalogue::Catalogue::default();
        for (name, expected) in [("t3.micro", 625_000_000), ("c5.9xlarge", 1_500_000_000)] {
            let limits = limits(&catalogue.get(name).unwrap().network);
            assert_eq!(limits.bytes.unwrap().per_second, expected, "{name}");
        }
    }
}
