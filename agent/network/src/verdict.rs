//! What becomes of a packet, from the plan alone: the model that the rules in Linux are held against, and what
//! `innkeeper net trace` says.

use std::net::Ipv4Addr;

use crate::plan::{AclEntry, Address, GroupRule, Interface, NOBODYS, Peer, Target, Traffic, Vpc, protocol};

/// A packet, as far as anybody looks at it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Who sends it.
    pub source: Ipv4Addr,
    /// For whom.
    pub destination: Ipv4Addr,
    /// The IP protocol.
    pub protocol: u8,
    /// The source's port, if the protocol has ports; for ICMP the identifier of an echo.
    pub source_port: u16,
    /// The destination's port; for ICMP its type and its code, 8 bits each.
    pub destination_port: u16,
}

/// Type and code of an ICMP message that is to be answered.
pub const ECHO_REQUEST: u16 = 0x0800;
/// Type and code of the answer.
pub const ECHO_REPLY: u16 = 0;

impl Packet {
    /// Its answer. That to an echo request is an echo reply.
    pub fn reply(self) -> Self {
        let (source_port, destination_port) = match (self.protocol, self.destination_port) {
            (protocol::ICMP, ECHO_REQUEST) => (self.source_port, ECHO_REPLY),
            _ => (self.destination_port, self.source_port),
        };
        Self { source: self.destination, destination: self.source, source_port, destination_port, ..self }
    }
}

/// Why a packet does not arrive.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// No interface of the VPC has it, or none that is in use.
    #[error("nobody in the VPC has the address {0}")]
    Nobody(Ipv4Addr),
    /// It is not its sender's own.
    #[error("{claimed} is no address of {interface}, which sends only what is its own (SourceDestCheck)")]
    NotItsOwn {
        /// Who has sent it.
        interface: String,
        /// Who it says it is from.
        claimed: Ipv4Addr,
    },
    /// It comes from outside, and says that it is from within.
    #[error("{0} is an address inside of the VPC, and the packet comes from outside")]
    FromInside(Ipv4Addr),
    /// The subnet's route table has no way.
    #[error("the route table {table} of {subnet} has no route to {destination}")]
    NoRoute {
        /// The sender's subnet.
        subnet: String,
        /// Its route table.
        table: String,
        /// Whereto.
        destination: Ipv4Addr,
    },
    /// The route leads to something that is gone, or does not forward.
    #[error("the route to {destination} in {table} is a blackhole")]
    Blackhole {
        /// The route table.
        table: String,
        /// Whereto.
        destination: Ipv4Addr,
    },
    /// The internet gateway knows only public addresses.
    #[error("{0} has no public address, and cannot be seen from outside")]
    NoPublicAddress(Ipv4Addr),
    /// A network ACL denies it.
    #[error("entry {entry} of {acl} denies what {}", if *is_egress { "leaves its subnet" } else { "enters its subnet" })]
    Acl {
        /// Which.
        acl: String,
        /// The entry's number; 32767 if none is about the packet.
        entry: u16,
        /// Whether the packet was leaving.
        is_egress: bool,
    },
    /// No rule of an interface's groups allows it.
    #[error("no {} rule of {interface}'s groups ({}) allows it", if *is_egress { "outbound" } else { "inbound" }, groups.join(", "))]
    Groups {
        /// Whose.
        interface: String,
        /// Its groups.
        groups: Vec<String>,
        /// Whether the packet was leaving.
        is_egress: bool,
    },
}

/// The number of an ACL's last entry, which denies everything.
pub const LAST_ENTRY: u16 = 32767;

/// Where a packet comes from, or goes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// An interface of the VPC, by its id.
    Interface(String),
    /// Something outside.
    Outside,
}

/// How a new connection's first packet goes, or why it does not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Passage {
    /// Where it arrives.
    pub to: End,
    /// As it arrives.
    pub packet: Packet,
}

impl Vpc {
    /// What becomes of the first packet of a connection that an interface begins.
    pub fn sends(&self, interface: &str, packet: Packet) -> Result<Passage, Refusal> {
        self.pass(interface, packet, true)
    }

    /// What becomes of the first packet of a connection from outside, to a public address.
    pub fn receives(&self, packet: Packet) -> Result<Passage, Refusal> {
        if self.contains(packet.source) || is_nobodys(packet.source) {
            return Err(Refusal::FromInside(packet.source));
        }
        let (to, receiver, private) =
            self.owner_of_public(packet.destination).ok_or(Refusal::Nobody(packet.destination))?;
        let packet = Packet { destination: private, ..packet };
        self.enter_subnet(receiver, packet)?;
        self.let_in(to, receiver, packet)?;
        Ok(Passage { to: End::Interface(to.to_owned()), packet })
    }

    /// What becomes of an answer to a packet that has arrived at an interface, on a connection that both ends have
    /// let through. Groups that track it let answers pass; ACLs look at each packet.
    pub fn answers(&self, interface: &str, packet: Packet) -> Result<Passage, Refusal> {
        self.pass(interface, packet, false)
    }

    /// What becomes of an answer from outside to what an interface has sent there. Neither end's address is translated
    /// in `packet`.
    pub fn hears(&self, interface: &str, packet: Packet) -> Result<Passage, Refusal> {
        let receiver = self.interfaces.get(interface).ok_or(Refusal::Nobody(packet.destination))?;
        if let Some(Target::NatGateway(id)) =
            self.route(&receiver.subnet, packet.source).map(|route| &route.target)
            && let Some(gateway) = self.nat_gateways.get(id)
        {
            self.acl(&gateway.subnet, false, packet)?;
            if gateway.subnet != receiver.subnet {
                self.acl(&gateway.subnet, true, packet)?;
            }
        }
        self.enter_subnet(receiver, packet)?;
        Ok(Passage { to: End::Interface(interface.to_owned()), packet })
    }

    fn pass(&self, from: &str, packet: Packet, is_new: bool) -> Result<Passage, Refusal> {
        let sender = self.interfaces.get(from).ok_or(Refusal::Nobody(packet.source))?;
        let own = sender.addresses.iter().find(|own| own.private == packet.source);
        if own.is_none() && (sender.source_dest_check || self.contains(packet.source)) {
            return Err(Refusal::NotItsOwn { interface: from.to_owned(), claimed: packet.source });
        }
        if is_nobodys(packet.destination) {
            return Err(Refusal::Nobody(packet.destination));
        }
        if self.contains(packet.destination) {
            let (to, receiver) = self.owner(packet.destination).ok_or(Refusal::Nobody(packet.destination))?;
            return self.cross(from, sender, to, receiver, packet, is_new);
        }
        let table = self.subnets.get(&sender.subnet).map(|subnet| subnet.route_table.clone());
        let table = table.unwrap_or_default();
        let route = self.route(&sender.subnet, packet.destination).ok_or_else(|| Refusal::NoRoute {
            subnet: sender.subnet.clone(),
            table: table.clone(),
            destination: packet.destination,
        })?;
        let blackhole = || Refusal::Blackhole { table: table.clone(), destination: packet.destination };
        match &route.target {
            Target::Blackhole => Err(blackhole()),
            Target::Interface(id) => {
                let next = self.interfaces.get(id).filter(|next| !next.source_dest_check);
                self.cross(from, sender, id, next.ok_or_else(blackhole)?, packet, is_new)
            }
            Target::InternetGateway if !self.has_internet_gateway => Err(blackhole()),
            Target::InternetGateway => {
                let public = own
                    .and_then(|own: &Address| own.public)
                    .ok_or(Refusal::NoPublicAddress(packet.source))?;
                self.leave_subnet(sender, packet)?;
                self.let_out(from, sender, packet, is_new)?;
                Ok(Passage { to: End::Outside, packet: Packet { source: public, ..packet } })
            }
            Target::NatGateway(id) => {
                let gateway = self.nat_gateways.get(id).filter(|gateway| {
                    let route = self.route(&gateway.subnet, packet.destination);
                    self.has_internet_gateway
                        && route.is_some_and(|route| route.target == Target::InternetGateway)
                });
                let gateway = gateway.ok_or_else(blackhole)?;
                self.leave_subnet(sender, packet)?;
                if gateway.subnet != sender.subnet {
                    self.acl(&gateway.subnet, false, packet)?;
                }
                self.acl(&gateway.subnet, true, packet)?;
                self.let_out(from, sender, packet, is_new)?;
                Ok(Passage { to: End::Outside, packet: Packet { source: gateway.public, ..packet } })
            }
        }
    }

    /// From one interface to another.
    fn cross(
        &self,
        from: &str,
        sender: &Interface,
        to: &str,
        receiver: &Interface,
        packet: Packet,
        is_new: bool,
    ) -> Result<Passage, Refusal> {
        if sender.subnet != receiver.subnet {
            self.leave_subnet(sender, packet)?;
            self.enter_subnet(receiver, packet)?;
        }
        self.let_out(from, sender, packet, is_new)?;
        if is_new {
            self.let_in(to, receiver, packet)?;
        }
        Ok(Passage { to: End::Interface(to.to_owned()), packet })
    }

    fn owner_of_public(&self, public: Ipv4Addr) -> Option<(&str, &Interface, Ipv4Addr)> {
        if !self.has_internet_gateway {
            return None;
        }
        self.interfaces.iter().find_map(|(id, interface)| {
            let own = interface.addresses.iter().find(|address| address.public == Some(public))?;
            Some((id.as_str(), interface, own.private))
        })
    }

    fn leave_subnet(&self, sender: &Interface, packet: Packet) -> Result<(), Refusal> {
        self.acl(&sender.subnet, true, packet)
    }

    fn enter_subnet(&self, receiver: &Interface, packet: Packet) -> Result<(), Refusal> {
        self.acl(&receiver.subnet, false, packet)
    }

    /// What a subnet's ACL says: the first entry that is about the packet.
    fn acl(&self, subnet: &str, is_egress: bool, packet: Packet) -> Result<(), Refusal> {
        let Some(subnet) = self.subnets.get(subnet) else { return Err(Refusal::Nobody(packet.source)) };
        let peer = if is_egress { packet.destination } else { packet.source };
        let about = |entry: &&AclEntry| {
            entry.is_egress == is_egress && entry.peer.contains(peer) && is_about(&entry.traffic, packet)
        };
        let entries = self.acls.get(&subnet.acl).into_iter().flatten();
        match entries.filter(about).min_by_key(|entry| entry.number) {
            Some(entry) if entry.allows => Ok(()),
            other => {
                let entry = other.map_or(LAST_ENTRY, |entry| entry.number);
                Err(Refusal::Acl { acl: subnet.acl.clone(), entry, is_egress })
            }
        }
    }

    fn let_out(&self, id: &str, interface: &Interface, packet: Packet, is_new: bool) -> Result<(), Refusal> {
        if is_new { self.ask_groups(id, interface, true, packet) } else { Ok(()) }
    }

    fn let_in(&self, id: &str, interface: &Interface, packet: Packet) -> Result<(), Refusal> {
        self.ask_groups(id, interface, false, packet)
    }

    /// Whether any rule of any group of an interface allows a packet.
    fn ask_groups(
        &self,
        id: &str,
        interface: &Interface,
        is_egress: bool,
        packet: Packet,
    ) -> Result<(), Refusal> {
        let peer = if is_egress { packet.destination } else { packet.source };
        let allows = |rule: &GroupRule| {
            rule.is_egress == is_egress
                && is_about(&rule.traffic, packet)
                && match &rule.peer {
                    Peer::Range(range) => range.contains(peer),
                    Peer::Group(group) => self.members(group).any(|member| member == peer),
                }
        };
        let mut rules = interface.groups.iter().filter_map(|group| self.groups.get(group)).flatten();
        if rules.any(allows) {
            return Ok(());
        }
        Err(Refusal::Groups { interface: id.to_owned(), groups: interface.groups.clone(), is_egress })
    }
}

/// Whether an address is nobody's, within or outside.
fn is_nobodys(address: Ipv4Addr) -> bool {
    NOBODYS.iter().any(|range| range.contains(address))
}

/// Whether a packet is of a kind.
fn is_about(traffic: &Traffic, packet: Packet) -> bool {
    let [kind, code] = packet.destination_port.to_be_bytes();
    match traffic {
        Traffic::All => true,
        Traffic::Tcp(ports) => packet.protocol == protocol::TCP && ports.contains(&packet.destination_port),
        Traffic::Udp(ports) => packet.protocol == protocol::UDP && ports.contains(&packet.destination_port),
        Traffic::Icmp(wanted_kind, wanted_code) => {
            packet.protocol == protocol::ICMP
                && wanted_kind
                    .is_none_or(|wanted| wanted == kind && wanted_code.is_none_or(|wanted| wanted == code))
        }
        Traffic::Protocol(number) => packet.protocol == *number,
    }
}
