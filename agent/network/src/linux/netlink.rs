//! rtnetlink: links, addresses, routes, rules and neighbours of the namespace in which the socket was made.

use std::collections::BTreeMap;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::RawFd;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST,
    NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::{
    InfoData, InfoKind, InfoVeth, LinkAttribute, LinkExtentMask, LinkFlags, LinkInfo, LinkMessage,
};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage as Message};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use nix::errno::Errno;

use crate::Cidr;
use crate::plan::Mac;
use crate::routes::{INSIDE, INSIDE_PRIORITY, MARK_MASK, SUBNET_PRIORITY};

/// What is ours carries this number, as others have theirs (`/etc/iproute2/rt_protos`).
const OURS: RouteProtocol = RouteProtocol::Other(236);

/// How often a list is read that changes all the time.
const MAX_DUMPS: usize = 10;

/// The priority of the rule that ends the search: what finds no way is dropped.
const LAST_PRIORITY: u32 = 300;

/// A connection.
#[derive(Debug)]
pub struct Netlink {
    socket: Socket,
    sequence: u32,
    was_interrupted: bool,
}

/// A link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    /// Its index.
    pub index: u32,
    /// Whether it is up.
    pub is_up: bool,
    /// Whether packets get through: the kernel takes its time after both ends are up.
    pub is_running: bool,
    /// The largest packet.
    pub mtu: u32,
}

/// A route as the kernel has it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct KernelRoute {
    /// The table's number.
    pub table: u32,
    /// Whereto.
    pub destination: Cidr,
    /// By which link; none is nowhere.
    pub link: Option<u32>,
    /// By which next hop, which is taken to be at the link.
    pub hop: Option<Ipv4Addr>,
}

/// A neighbour as the kernel has it: link, address, Ethernet address.
pub type KernelNeighbour = (u32, Ipv4Addr, Mac);

impl Netlink {
    /// Made in the namespace of the calling thread.
    pub fn open() -> io::Result<Self> {
        let socket = Socket::new(NETLINK_ROUTE)?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Self { socket, sequence: 0, was_interrupted: false })
    }

    fn send(&mut self, message: Message, flags: u16) -> io::Result<()> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut packet = NetlinkMessage::from(message);
        packet.header.flags = NLM_F_REQUEST | flags;
        packet.header.sequence_number = self.sequence;
        packet.finalize();
        let mut bytes = vec![0; packet.buffer_len()];
        packet.serialize(&mut bytes);
        self.socket.send(&bytes, 0)?;
        Ok(())
    }

    /// Receives what answers the last request; true if there is more to come.
    fn receive(&mut self, mut each: impl FnMut(Message)) -> io::Result<bool> {
        let (bytes, _) = self.socket.recv_from_full()?;
        let mut rest = bytes.as_slice();
        while !rest.is_empty() {
            let packet = NetlinkMessage::<Message>::deserialize(rest).map_err(io::Error::other)?;
            let length = usize::try_from(packet.header.length).map_err(io::Error::other)?;
            rest = rest.get(length.max(1).next_multiple_of(4)..).unwrap_or_default();
            if packet.header.sequence_number != self.sequence {
                continue;
            }
            match packet.payload {
                NetlinkPayload::Error(error) if error.code.is_some() => return Err(error.to_io()),
                NetlinkPayload::Done(done) if done.code != 0 => {
                    return Err(io::Error::from_raw_os_error(done.code.abs()));
                }
                NetlinkPayload::Error(_) | NetlinkPayload::Done(_) => return Ok(false),
                // Something has changed meanwhile, and the list may lack what was there all the time.
                NetlinkPayload::InnerMessage(_) if packet.header.flags & NLM_F_DUMP_INTR != 0 => {
                    self.was_interrupted = true;
                }
                NetlinkPayload::InnerMessage(message) => each(message),
                _ => {}
            }
        }
        Ok(true)
    }

    /// Has something done.
    fn request(&mut self, message: Message, flags: u16) -> io::Result<()> {
        self.send(message, flags | NLM_F_ACK)?;
        while self.receive(drop)? {}
        Ok(())
    }

    fn add(&mut self, message: Message) -> io::Result<()> {
        self.request(message, NLM_F_CREATE | NLM_F_REPLACE)
    }

    /// What is gone already is removed.
    fn remove(&mut self, message: Message) -> io::Result<()> {
        match self
            .request(message, 0)
            .map_err(|error| (Errno::from_raw(error.raw_os_error().unwrap_or(0)), error))
        {
            Err((Errno::ESRCH | Errno::ENOENT | Errno::ENODEV | Errno::EADDRNOTAVAIL, _)) | Ok(()) => Ok(()),
            Err((_, error)) => Err(error),
        }
    }

    /// Lists something; a list that was changed while it was read is read again.
    fn dump(&mut self, message: Message, each: impl FnMut(Message)) -> io::Result<()> {
        for _ in 0..MAX_DUMPS {
            let mut list = Vec::new();
            self.was_interrupted = false;
            self.send(message.clone(), NLM_F_DUMP)?;
            while self.receive(|message| list.push(message))? {}
            if !self.was_interrupted {
                list.into_iter().for_each(each);
                return Ok(());
            }
        }
        Err(io::ErrorKind::Interrupted.into())
    }

    /// All links, by name.
    pub fn links(&mut self) -> io::Result<BTreeMap<String, Link>> {
        let mut links = BTreeMap::new();
        let mut message = LinkMessage::default();
        message.attributes = vec![LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats])];
        self.dump(Message::GetLink(message), |message| links.extend(read_link(message)))?;
        Ok(links)
    }

    /// One link. None if it is not there.
    pub fn link(&mut self, name: &str) -> io::Result<Option<Link>> {
        let mut message = LinkMessage::default();
        message.attributes = vec![
            LinkAttribute::IfName(name.to_owned()),
            LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]),
        ];
        self.send(Message::GetLink(message), NLM_F_ACK)?;
        let mut found = None;
        loop {
            match self.receive(|message| found = read_link(message).map(|(_, link)| link)) {
                Ok(true) => {}
                Ok(false) => return Ok(found),
                Err(error) if error.raw_os_error() == Some(Errno::ENODEV as i32) => return Ok(None),
                Err(error) => return Err(error),
            }
        }
    }

    /// Makes a pair of links, the second of which is in another namespace.
    pub fn add_pair(&mut self, one: (&str, Mac), other: (&str, Mac), namespace: RawFd) -> io::Result<()> {
        let link = |(name, mac): (&str, Mac), more| {
            let mut message = LinkMessage::default();
            message.attributes =
                vec![LinkAttribute::IfName(name.to_owned()), LinkAttribute::Address(mac.0.to_vec()), more];
            message
        };
        let peer = link(other, LinkAttribute::NetNsFd(namespace));
        let kind = vec![LinkInfo::Kind(InfoKind::Veth), LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer)))];
        self.request(Message::NewLink(link(one, LinkAttribute::LinkInfo(kind))), NLM_F_CREATE | NLM_F_EXCL)
    }

    /// Removes a link, if it is there.
    pub fn remove_link(&mut self, name: &str) -> io::Result<()> {
        let Some(link) = self.link(name)? else { return Ok(()) };
        let mut message = LinkMessage::default();
        message.header.index = link.index;
        self.remove(Message::DelLink(message))
    }

    /// Switches a link on, with an MTU.
    pub fn set_up(&mut self, index: u32, mtu: Option<u32>) -> io::Result<()> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.header.flags = LinkFlags::Up;
        message.header.change_mask = LinkFlags::Up;
        message.attributes.extend(mtu.map(LinkAttribute::Mtu));
        self.request(Message::SetLink(message), 0)
    }

    /// The IPv4 addresses of a link.
    pub fn addresses(&mut self, index: u32) -> io::Result<Vec<Ipv4Addr>> {
        let mut addresses = Vec::new();
        let mut message = AddressMessage::default();
        message.header.family = AddressFamily::Inet;
        self.dump(Message::GetAddress(message), |message| {
            if let Message::NewAddress(message) = message
                && message.header.index == index
            {
                for attribute in message.attributes {
                    if let AddressAttribute::Local(std::net::IpAddr::V4(address)) = attribute {
                        addresses.push(address);
                    }
                }
            }
        })?;
        Ok(addresses)
    }

    /// Gives a link an address, without a route to others.
    pub fn add_address(&mut self, index: u32, address: Ipv4Addr) -> io::Result<()> {
        self.add(Message::NewAddress(address_message(index, address)))
    }

    /// Takes an address from a link.
    pub fn remove_address(&mut self, index: u32, address: Ipv4Addr) -> io::Result<()> {
        self.remove(Message::DelAddress(address_message(index, address)))
    }

    /// Our routes.
    pub fn routes(&mut self) -> io::Result<Vec<KernelRoute>> {
        let mut routes = Vec::new();
        let mut message = RouteMessage::default();
        message.header.address_family = AddressFamily::Inet;
        self.dump(Message::GetRoute(message), |message| {
            if let Message::NewRoute(message) = message {
                routes.extend(read_route(&message));
            }
        })?;
        Ok(routes)
    }

    /// Adds a route, or puts it in the place of another one to the same destination.
    pub fn add_route(&mut self, route: &KernelRoute) -> io::Result<()> {
        self.add(Message::NewRoute(route_message(route)))
    }

    /// Removes a route.
    pub fn remove_route(&mut self, route: &KernelRoute) -> io::Result<()> {
        self.remove(Message::DelRoute(route_message(route)))
    }

    /// The permanent neighbours.
    pub fn neighbours(&mut self) -> io::Result<Vec<KernelNeighbour>> {
        let mut neighbours = Vec::new();
        let mut message = NeighbourMessage::default();
        message.header.family = AddressFamily::Inet;
        self.dump(Message::GetNeighbour(message), |message| {
            if let Message::NewNeighbour(message) = message
                && message.header.state == NeighbourState::Permanent
            {
                let (mut address, mut mac) = (None, None);
                for attribute in message.attributes {
                    match attribute {
                        NeighbourAttribute::Destination(NeighbourAddress::Inet(own)) => address = Some(own),
                        NeighbourAttribute::LinkLayerAddress(bytes) => mac = bytes.try_into().ok().map(Mac),
                        _ => {}
                    }
                }
                if let (Some(address), Some(mac)) = (address, mac) {
                    neighbours.push((message.header.ifindex, address, mac));
                }
            }
        })?;
        Ok(neighbours)
    }

    /// Says for ever who is at a link.
    pub fn add_neighbour(&mut self, (link, address, mac): KernelNeighbour) -> io::Result<()> {
        let mut message = neighbour_message(link, address);
        message.header.state = NeighbourState::Permanent;
        message.attributes.push(NeighbourAttribute::LinkLayerAddress(mac.0.to_vec()));
        self.add(Message::NewNeighbour(message))
    }

    /// Forgets who is at a link.
    pub fn remove_neighbour(&mut self, (link, address, _): KernelNeighbour) -> io::Result<()> {
        self.remove(Message::DelNeighbour(neighbour_message(link, address)))
    }

    /// The marks that have a rule of ours, and whether the two other rules are there.
    pub fn rules(&mut self) -> io::Result<(Vec<u32>, bool)> {
        let (mut marks, mut others) = (Vec::new(), 0);
        let mut message = RuleMessage::default();
        message.header.family = AddressFamily::Inet;
        self.dump(Message::GetRule(message), |message| {
            let Message::NewRule(message) = message else { return };
            let mut priority = 0;
            let mut mark = None;
            for attribute in &message.attributes {
                match attribute {
                    RuleAttribute::Priority(number) => priority = *number,
                    RuleAttribute::FwMark(number) => mark = Some(*number),
                    _ => {}
                }
            }
            match (priority, mark) {
                (SUBNET_PRIORITY, Some(mark)) => marks.push(mark),
                (INSIDE_PRIORITY | LAST_PRIORITY, None) => others += 1,
                _ => {}
            }
        })?;
        Ok((marks, others == 2))
    }

    /// Lets the table of what is inside be asked, and drops what finds no way.
    pub fn add_fixed_rules(&mut self) -> io::Result<()> {
        let mut last = rule_message(LAST_PRIORITY, None);
        last.header.action = RuleAction::Blackhole;
        last.attributes.retain(|attribute| !matches!(attribute, RuleAttribute::Table(_)));
        for message in [rule_message(INSIDE_PRIORITY, None), last] {
            match self.request(Message::NewRule(message), NLM_F_CREATE | NLM_F_EXCL) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    /// Lets the table of a subnet be asked for its packets.
    pub fn add_rule(&mut self, mark: u32) -> io::Result<()> {
        let message = rule_message(SUBNET_PRIORITY, Some(mark));
        self.request(Message::NewRule(message), NLM_F_CREATE | NLM_F_EXCL)
    }

    /// Removes such a rule.
    pub fn remove_rule(&mut self, mark: u32) -> io::Result<()> {
        self.remove(Message::DelRule(rule_message(SUBNET_PRIORITY, Some(mark))))
    }
}

fn read_link(message: Message) -> Option<(String, Link)> {
    let Message::NewLink(message) = message else { return None };
    let has = |flag| message.header.flags.contains(flag);
    let (is_up, is_running) = (has(LinkFlags::Up), has(LinkFlags::Running));
    let mut link = Link { index: message.header.index, is_up, is_running, mtu: 0 };
    let mut name = None;
    for attribute in message.attributes {
        match attribute {
            LinkAttribute::IfName(text) => name = Some(text),
            LinkAttribute::Mtu(mtu) => link.mtu = mtu,
            _ => {}
        }
    }
    Some((name?, link))
}

fn address_message(index: u32, address: Ipv4Addr) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = AddressFamily::Inet;
    message.header.index = index;
    message.header.prefix_len = 32;
    message.attributes =
        vec![AddressAttribute::Local(address.into()), AddressAttribute::Address(address.into())];
    message
}

fn neighbour_message(link: u32, address: Ipv4Addr) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Inet;
    message.header.ifindex = link;
    message.attributes = vec![NeighbourAttribute::Destination(NeighbourAddress::Inet(address))];
    message
}

fn rule_message(priority: u32, mark: Option<u32>) -> RuleMessage {
    let mut message = RuleMessage::default();
    message.header.family = AddressFamily::Inet;
    message.header.action = RuleAction::ToTable;
    message.attributes = vec![
        RuleAttribute::Priority(priority),
        RuleAttribute::Table(mark.unwrap_or(INSIDE)),
        RuleAttribute::Protocol(OURS),
    ];
    if let Some(mark) = mark {
        message.attributes.extend([RuleAttribute::FwMark(mark), RuleAttribute::FwMask(MARK_MASK)]);
    }
    message
}

fn route_message(route: &KernelRoute) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header = RouteHeader {
        address_family: AddressFamily::Inet,
        destination_prefix_length: route.destination.prefix(),
        protocol: OURS,
        scope: if route.link.is_some() && route.hop.is_none() {
            RouteScope::Link
        } else {
            RouteScope::Universe
        },
        kind: if route.link.is_some() { RouteType::Unicast } else { RouteType::BlackHole },
        ..RouteHeader::default()
    };
    message.attributes = vec![
        RouteAttribute::Destination(RouteAddress::Inet(route.destination.first())),
        RouteAttribute::Table(route.table),
    ];
    message.attributes.extend(route.link.map(RouteAttribute::Oif));
    if let Some(hop) = route.hop {
        message.header.flags = RouteFlags::Onlink;
        message.attributes.push(RouteAttribute::Gateway(RouteAddress::Inet(hop)));
    }
    message
}

fn read_route(message: &RouteMessage) -> Option<KernelRoute> {
    if message.header.protocol != OURS {
        return None;
    }
    let mut route = KernelRoute {
        table: message.header.table.into(),
        destination: Cidr::around(Ipv4Addr::UNSPECIFIED, 0)?,
        link: None,
        hop: None,
    };
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Table(table) => route.table = *table,
            RouteAttribute::Destination(RouteAddress::Inet(address)) => {
                route.destination = Cidr::around(*address, message.header.destination_prefix_length)?;
            }
            RouteAttribute::Oif(link) => route.link = Some(*link),
            RouteAttribute::Gateway(RouteAddress::Inet(hop)) => route.hop = Some(*hop),
            _ => {}
        }
    }
    Some(route)
}
