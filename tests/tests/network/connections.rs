//! Connections whose addresses become another's, or are translated to other ones: a sender that goes on sending, as who
//! uses UDP does, is not taken for the one that it was.

use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use innkeeper_tests::ec2::texts;
use innkeeper_tests::network::Place;

use super::{Lab, host_address};

fn socket(place: &Place, port: u16) -> Result<UdpSocket> {
    let socket = place.inside(|| Ok(UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port))?))?;
    socket.set_read_timeout(Some(Duration::from_millis(20)))?;
    Ok(socket)
}

/// Sends every 20 ms, until it arrives at `to` from an address.
fn arrives(
    from: &UdpSocket,
    at: SocketAddrV4,
    to: &UdpSocket,
    patience: Duration,
) -> Result<Option<Ipv4Addr>> {
    let begun = Instant::now();
    while begun.elapsed() < patience {
        from.send_to(b"probe", at)?;
        if let Ok((_, std::net::SocketAddr::V4(peer))) = to.recv_from(&mut [0; 16]) {
            return Ok(Some(*peer.ip()));
        }
    }
    Ok(None)
}

fn elastic(lab: &Lab) -> Result<(Ipv4Addr, String)> {
    let allocated = lab.client.ask("AllocateAddress", &[("Domain", "vpc")])?;
    let text = |name| texts(&allocated, name).pop().context(name);
    Ok((text("publicIp")?.parse()?, text("allocationId")?))
}

/// A client with a port of its own, as VPNs, monitoring and name servers are, that goes on sending.
#[test]
fn a_sender_of_datagrams_is_heard_by_the_next_holder_of_an_elastic_address() -> Result<()> {
    let lab = Lab::start()?;
    let ids = [lab.launch()?, lab.launch()?];
    let guests = [lab.guest(&ids[0])?, lab.guest(&ids[1])?];
    let (address, allocation) = elastic(&lab)?;
    let group = lab.group(&ids[0])?;
    lab.rule("AuthorizeSecurityGroupIngress", &group, ("udp", "7000"), "0.0.0.0/0")?;
    let client = socket(&Place::here()?, 0)?;
    let servers = [socket(&guests[0], 7000)?, socket(&guests[1], 7000)?];
    let to = SocketAddrV4::new(address, 7000);
    for (number, (id, server)) in ids.iter().zip(&servers).enumerate() {
        lab.client.ask("AssociateAddress", &[("AllocationId", &allocation), ("InstanceId", id)])?;
        let heard = arrives(&client, to, server, Duration::from_secs(6))?;
        ensure!(heard.is_some(), "holder {number}, {id}, hears nothing");
        server.send_to(b"answer", SocketAddrV4::new(host_address(address), client.local_addr()?.port()))?;
    }
    Ok(())
}

/// A server in the world hears an instance that goes on sending under its new address.
#[test]
fn a_sender_of_datagrams_gets_a_new_address() -> Result<()> {
    let lab = Lab::start()?;
    let ids = [lab.launch()?];
    let guest = lab.guest(&ids[0])?;
    let before = lab.address(&ids[0], "ipAddress")?;
    let server = socket(&Place::here()?, 0)?;
    let to = SocketAddrV4::new(host_address(before), server.local_addr()?.port());
    let client = socket(&guest, 0)?;
    ensure!(arrives(&client, to, &server, Duration::from_secs(6))? == Some(before));
    let (address, allocation) = elastic(&lab)?;
    lab.client.ask("AssociateAddress", &[("AllocationId", &allocation), ("InstanceId", &ids[0])])?;
    let mut seen = None;
    let begun = Instant::now();
    while seen != Some(address) && begun.elapsed() < Duration::from_secs(6) {
        seen = arrives(&client, to, &server, Duration::from_secs(6))?;
    }
    ensure!(seen == Some(address), "seen is {seen:?}");
    Ok(())
}

/// As with a new address: another NAT gateway.
#[test]
fn a_sender_of_datagrams_goes_by_another_nat_gateway() -> Result<()> {
    let lab = Lab::start()?;
    let vpc = lab.one("CreateVpc", &[("CidrBlock", "10.0.0.0/16")], "vpcId")?;
    let subnet = |cidr| lab.one("CreateSubnet", &[("VpcId", &vpc), ("CidrBlock", cidr)], "subnetId");
    let (public, private) = (subnet("10.0.0.0/24")?, subnet("10.0.1.0/24")?);
    let gateway = lab.one("CreateInternetGateway", &[], "internetGatewayId")?;
    lab.client.ask("AttachInternetGateway", &[("VpcId", &vpc), ("InternetGatewayId", &gateway)])?;
    let table = |subnet: &str| -> Result<String> {
        let table = lab.one("CreateRouteTable", &[("VpcId", &vpc)], "routeTableId")?;
        lab.client.ask("AssociateRouteTable", &[("RouteTableId", &table), ("SubnetId", subnet)])?;
        Ok(table)
    };
    let (outer, inner) = (table(&public)?, table(&private)?);
    let route = |change: &str, table: &str, kind: &str, target: &str| {
        let own = [("RouteTableId", table), ("DestinationCidrBlock", "0.0.0.0/0"), (kind, target)];
        lab.client.ask(change, &own).map(drop)
    };
    route("CreateRoute", &outer, "GatewayId", &gateway)?;
    let nat = || -> Result<(Ipv4Addr, String)> {
        let (address, allocation) = elastic(&lab)?;
        let own = [("SubnetId", public.as_str()), ("AllocationId", &allocation)];
        Ok((address, lab.one("CreateNatGateway", &own, "natGatewayId")?))
    };
    let nats = [nat()?, nat()?];
    route("CreateRoute", &inner, "NatGatewayId", &nats[0].1)?;
    let id = lab.launch_with(&[("SubnetId", &private)])?;
    let guest = lab.guest(&id)?;
    let server = socket(&Place::here()?, 0)?;
    let to = SocketAddrV4::new(host_address(nats[0].0), server.local_addr()?.port());
    let client = socket(&guest, 0)?;
    ensure!(arrives(&client, to, &server, Duration::from_secs(6))? == Some(nats[0].0));
    route("ReplaceRoute", &inner, "NatGatewayId", &nats[1].1)?;
    let mut seen = None;
    let begun = Instant::now();
    while seen != Some(nats[1].0) && begun.elapsed() < Duration::from_secs(6) {
        seen = arrives(&client, to, &server, Duration::from_secs(6))?;
    }
    ensure!(seen == Some(nats[1].0), "seen is {seen:?}");
    // Nothing of it goes by the one before any more, nor does what begins now.
    for client in [client, socket(&guest, 0)?] {
        for _ in 0..5 {
            let seen = arrives(&client, to, &server, Duration::from_secs(6))?;
            ensure!(seen == Some(nats[1].0), "seen is {seen:?} after that");
        }
    }
    Ok(())
}

/// Nobody inherits the connections of who had its private address before, which its own groups do not allow.
#[test]
fn a_new_instance_inherits_no_connections() -> Result<()> {
    let lab = Lab::start()?;
    let vpc = lab.one("CreateVpc", &[("CidrBlock", "10.0.0.0/16")], "vpcId")?;
    let subnet = lab.one("CreateSubnet", &[("VpcId", &vpc), ("CidrBlock", "10.0.0.0/24")], "subnetId")?;
    let group = |name| {
        let own = [("GroupName", name), ("GroupDescription", name), ("VpcId", vpc.as_str())];
        lab.one("CreateSecurityGroup", &own, "groupId")
    };
    let (open, closed) = (group("open")?, group("closed")?);
    lab.rule("AuthorizeSecurityGroupIngress", &open, ("udp", "7000"), "10.0.0.66/32")?;
    let launch = |group: &str, address| {
        lab.launch_with(&[("SubnetId", &subnet), ("SecurityGroupId.1", group), ("PrivateIpAddress", address)])
    };
    let (client, first) = (launch(&closed, "10.0.0.66")?, launch(&open, "10.0.0.10")?);
    let asks = socket(&*lab.guest(&client)?, 7001)?;
    let to = SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, 10), 7000);
    {
        let server = socket(&*lab.guest(&first)?, 7000)?;
        ensure!(arrives(&asks, to, &server, Duration::from_secs(6))?.is_some());
        server.send_to(b"answer", SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, 66), 7001))?;
        ensure!(asks.recv(&mut [0; 16]).is_ok());
        ensure!(arrives(&asks, to, &server, Duration::from_secs(6))?.is_some());
    }
    lab.end("TerminateInstances", std::slice::from_ref(&first), "terminated")?;
    let second = launch(&closed, "10.0.0.10")?;
    let guest = lab.guest(&second)?;
    let server = socket(&guest, 7000)?;
    let other = socket(&*lab.guest(&client)?, 7002)?;
    ensure!(arrives(&other, to, &server, Duration::from_secs(1))?.is_none(), "the group is open");
    ensure!(arrives(&asks, to, &server, Duration::from_secs(1))?.is_none(), "it has inherited a connection");
    Ok(())
}
