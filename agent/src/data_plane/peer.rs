//! Who is at the other end of a connection to a service of a VPC.

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::AsFd;

use innkeeper_network::names::tap;
use nix::sys::socket::{setsockopt, sockopt};

use super::plan::used;
use crate::ids::{NetworkInterfaceId, VpcId};
use crate::records::{Instance, NetworkInterface};
use crate::state::World;

/// Whoever has an address in a VPC, which anti-spoofing makes trustworthy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// The interface.
    pub interface: NetworkInterfaceId,
    /// The address.
    pub address: Ipv4Addr,
}

impl Peer {
    /// None, if the address is of no interface that is used.
    pub fn of(world: &World, vpc: &VpcId, address: IpAddr) -> Option<Self> {
        let IpAddr::V4(address) = address else { return None };
        let has_it = |one: &&NetworkInterface| one.addresses().any(|own| own.address == address);
        let interface = used(world, vpc).find(has_it)?.id.clone();
        Some(Self { interface, address })
    }

    /// Its instance, as long as it still has that address: a connection may outlive that.
    pub fn instance<'w>(&self, world: &'w World) -> Option<&'w Instance> {
        let interface = world.get::<NetworkInterface>(&self.interface)?;
        let has_it = interface.addresses().any(|own| own.address == self.address);
        let instance = world.get::<Instance>(interface.instance()?)?;
        (has_it && instance.lifecycle.state.holds_capacity()).then_some(instance)
    }

    /// Lets what is said on a connection go to this peer's tap alone. TCP says again what was not heard, also after we have
    /// closed the connection, and whoever has the address then is not to hear it: another tap is another device, whatever
    /// it is called. An error is that the tap is gone.
    pub fn hold(&self, connection: &impl AsFd) -> io::Result<()> {
        Ok(setsockopt(connection, sockopt::BindToDevice, &tap(self.interface.as_str()).into())?)
    }
}
