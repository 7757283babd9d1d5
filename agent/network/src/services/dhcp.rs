//! DHCP (RFC 2131): each guest gets the address that its interface has, and never another one.

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};

use dhcproto::v4::{DhcpOption, Flags, HType, Message, MessageType, Opcode, OptionCode};
use dhcproto::{Decodable, Decoder, Encodable};

use super::Current;
use super::socket::{Datagram, Socket};
use crate::Cidr;
use crate::linux::INSIDE_MTU;
use crate::plan::Mac;

/// Where servers listen.
pub const PORT: u16 = 67;
/// Where clients do.
const CLIENT_PORT: u16 = 68;

/// How long a lease is, in seconds: EC2's are as long.
const LEASE: u32 = 3600;

/// What a guest is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// Its interface's Ethernet address.
    pub mac: Mac,
    /// Its interface's primary address.
    pub address: Ipv4Addr,
    /// Its subnet.
    pub subnet: Cidr,
    /// Its router, who is also the server.
    pub router: Ipv4Addr,
    /// Who knows names.
    pub name_servers: Vec<Ipv4Addr>,
    /// What names end with.
    pub domain: Option<String>,
    /// Its name, without the domain.
    pub host_name: Option<String>,
    /// Who knows the time.
    pub time_servers: Vec<Ipv4Addr>,
}

/// An answer, and where it goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// What it says.
    pub bytes: Vec<u8>,
    /// A broadcast address, or the guest's.
    pub to: Ipv4Addr,
}

/// Serves for ever.
pub(super) async fn serve(socket: Socket, directory: Current) -> io::Result<()> {
    loop {
        let Datagram { bytes, interface, .. } = socket.receive().await?;
        let Ok(tap) = socket.interface_name(interface) else { continue };
        let current = directory.borrow().clone();
        let Some(lease) = current.leases.get(&tap) else { continue };
        match answer(&bytes, lease) {
            Some(answer) => {
                let to = SocketAddrV4::new(answer.to, CLIENT_PORT);
                socket.send(&answer.bytes, to, interface, lease.router);
            }
            None => tracing::debug!(tap, "nothing to be answered by DHCP"),
        }
    }
}

/// Answers a client. None, if it said nothing that is to be answered: what is malformed, for another server, or goodbye.
pub fn answer(request: &[u8], lease: &Lease) -> Option<Answer> {
    let request = Message::decode(&mut Decoder::new(request)).ok()?;
    if request.opcode() != Opcode::BootRequest
        || request.htype() != HType::Eth
        || request.hlen() != 6
        || request.chaddr().get(..6)? != lease.mac.0
        // There are no relays here.
        || !request.giaddr().is_unspecified()
    {
        return None;
    }
    let address = |code| match request.opts().get(code) {
        Some(DhcpOption::ServerIdentifier(address) | DhcpOption::RequestedIpAddress(address)) => {
            Some(*address)
        }
        _ => None,
    };
    if address(OptionCode::ServerIdentifier).is_some_and(|server| server != lease.router) {
        return None;
    }
    let wanted = address(OptionCode::RequestedIpAddress)
        .or_else(|| Some(request.ciaddr()).filter(|own| !own.is_unspecified()));
    let kind = match request.opts().msg_type()? {
        MessageType::Discover => MessageType::Offer,
        MessageType::Request if wanted == Some(lease.address) => MessageType::Ack,
        MessageType::Request => MessageType::Nak,
        MessageType::Inform => MessageType::Ack,
        _ => return None,
    };
    let is_inform = request.opts().msg_type() == Some(MessageType::Inform);
    let mut message = Message::new_with_id(
        request.xid(),
        request.ciaddr(),
        Ipv4Addr::UNSPECIFIED,
        Ipv4Addr::UNSPECIFIED,
        Ipv4Addr::UNSPECIFIED,
        &lease.mac.0,
    );
    message.set_opcode(Opcode::BootReply).set_flags(request.flags());
    let options = message.opts_mut();
    options.insert(DhcpOption::MessageType(kind));
    options.insert(DhcpOption::ServerIdentifier(lease.router));
    if kind == MessageType::Nak {
        message.set_ciaddr(Ipv4Addr::UNSPECIFIED).set_flags(Flags::default().set_broadcast());
        return Some(Answer { bytes: message.to_vec().ok()?, to: Ipv4Addr::BROADCAST });
    }
    if !is_inform {
        options.insert(DhcpOption::AddressLeaseTime(LEASE));
        options.insert(DhcpOption::Renewal(LEASE / 2));
        options.insert(DhcpOption::Rebinding(LEASE / 8 * 7));
    }
    options.insert(DhcpOption::SubnetMask(mask(lease.subnet)));
    options.insert(DhcpOption::BroadcastAddr(lease.subnet.last()));
    options.insert(DhcpOption::Router(vec![lease.router]));
    options.insert(DhcpOption::InterfaceMtu(u16::try_from(INSIDE_MTU).unwrap_or(u16::MAX)));
    if !lease.name_servers.is_empty() {
        options.insert(DhcpOption::DomainNameServer(lease.name_servers.clone()));
    }
    if !lease.time_servers.is_empty() {
        options.insert(DhcpOption::NtpServers(lease.time_servers.clone()));
    }
    if let Some(domain) = &lease.domain {
        options.insert(DhcpOption::DomainName(domain.clone()));
    }
    if let Some(name) = &lease.host_name {
        options.insert(DhcpOption::Hostname(name.clone()));
    }
    if !is_inform {
        message.set_yiaddr(lease.address);
    }
    // The kernel knows who is at the interface, and needs no ARP to reach a guest that has no address yet.
    let to = if !request.ciaddr().is_unspecified() {
        request.ciaddr()
    } else if request.flags().broadcast() {
        Ipv4Addr::BROADCAST
    } else {
        lease.address
    };
    // One that says it has another address would get nothing.
    let to = if to == lease.address { to } else { Ipv4Addr::BROADCAST };
    Some(Answer { bytes: message.to_vec().ok()?, to })
}

fn mask(range: Cidr) -> Ipv4Addr {
    Ipv4Addr::from_bits(!u32::MAX.checked_shr(range.prefix().into()).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease() -> Lease {
        Lease {
            mac: Mac([2, 0, 0, 0, 0, 1]),
            address: Ipv4Addr::new(10, 0, 0, 5),
            subnet: "10.0.0.0/24".parse().unwrap(),
            router: Ipv4Addr::new(10, 0, 0, 1),
            name_servers: vec![Ipv4Addr::new(10, 0, 0, 2)],
            domain: Some("ec2.internal".into()),
            host_name: Some("ip-10-0-0-5".into()),
            time_servers: Vec::new(),
        }
    }

    fn request(kind: MessageType, options: &[DhcpOption]) -> Message {
        let none = Ipv4Addr::UNSPECIFIED;
        let mut message = Message::new_with_id(7, none, none, none, none, &lease().mac.0);
        message.opts_mut().insert(DhcpOption::MessageType(kind));
        for option in options {
            message.opts_mut().insert(option.clone());
        }
        message
    }

    fn answered(request: &Message) -> Option<(Message, Ipv4Addr)> {
        let answer = answer(&request.to_vec().unwrap(), &lease())?;
        Some((Message::decode(&mut Decoder::new(&answer.bytes)).unwrap(), answer.to))
    }

    #[test]
    fn a_guest_gets_its_address_and_what_goes_with_it() {
        let own = DhcpOption::RequestedIpAddress(lease().address);
        for (asked, options, kind) in [
            (MessageType::Discover, vec![], MessageType::Offer),
            // Whatever it would like to have.
            (
                MessageType::Discover,
                vec![DhcpOption::RequestedIpAddress(Ipv4Addr::LOCALHOST)],
                MessageType::Offer,
            ),
            (MessageType::Request, vec![own], MessageType::Ack),
        ] {
            let (answer, to) = answered(&request(asked, &options)).unwrap();
            assert_eq!((answer.xid(), answer.yiaddr(), to), (7, lease().address, lease().address));
            let get = |code| answer.opts().get(code).cloned();
            assert_eq!(answer.opts().msg_type(), Some(kind));
            assert_eq!(
                get(OptionCode::SubnetMask),
                Some(DhcpOption::SubnetMask(Ipv4Addr::new(255, 255, 255, 0)))
            );
            assert_eq!(get(OptionCode::Router), Some(DhcpOption::Router(vec![lease().router])));
            assert_eq!(get(OptionCode::InterfaceMtu), Some(DhcpOption::InterfaceMtu(9001)));
            assert_eq!(get(OptionCode::AddressLeaseTime), Some(DhcpOption::AddressLeaseTime(3600)));
            assert_eq!(get(OptionCode::Hostname), Some(DhcpOption::Hostname("ip-10-0-0-5".into())));
            assert_eq!(get(OptionCode::NtpServers), None);
        }
    }

    #[test]
    fn another_address_is_refused_and_another_server_is_left_alone() {
        let other = Ipv4Addr::new(10, 0, 0, 6);
        let asked = request(MessageType::Request, &[DhcpOption::RequestedIpAddress(other)]);
        let (answer, to) = answered(&asked).unwrap();
        assert_eq!((answer.opts().msg_type(), to), (Some(MessageType::Nak), Ipv4Addr::BROADCAST));
        assert_eq!(answer.yiaddr(), Ipv4Addr::UNSPECIFIED);

        let to_other = DhcpOption::ServerIdentifier(other);
        for kind in [MessageType::Request, MessageType::Discover] {
            assert_eq!(answered(&request(kind, std::slice::from_ref(&to_other))), None);
        }
        for kind in [MessageType::Release, MessageType::Decline, MessageType::Offer, MessageType::Ack] {
            assert_eq!(answered(&request(kind, &[])), None);
        }
        let mut forged = request(MessageType::Discover, &[]);
        forged.set_chaddr(&[2, 0, 0, 0, 0, 9]);
        assert_eq!(answered(&forged), None);
        let mut relayed = request(MessageType::Discover, &[]);
        relayed.set_giaddr(other);
        assert_eq!(answered(&relayed), None);
        assert_eq!(super::answer(&[1; 10], &lease()), None);
    }

    #[test]
    fn who_cannot_hear_yet_is_told_by_broadcast_and_who_renews_is_not() {
        let mut asked = request(MessageType::Discover, &[]);
        asked.set_flags(Flags::default().set_broadcast());
        assert_eq!(answered(&asked).unwrap().1, Ipv4Addr::BROADCAST);
        let mut renewing = request(MessageType::Request, &[]);
        renewing.set_ciaddr(lease().address);
        let (answer, to) = answered(&renewing).unwrap();
        assert_eq!((answer.opts().msg_type(), to), (Some(MessageType::Ack), lease().address));
        let mut informed = request(MessageType::Inform, &[]);
        informed.set_ciaddr(lease().address);
        let (answer, _) = answered(&informed).unwrap();
        assert_eq!(answer.yiaddr(), Ipv4Addr::UNSPECIFIED);
        assert_eq!(answer.opts().get(OptionCode::AddressLeaseTime), None);
    }
}
