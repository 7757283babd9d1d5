//! A guest that lies about who it is, and what its neighbours hear of that: nothing. Groups allow everything here, so that
//! nothing but its lies can be why a frame does not arrive.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddrV4};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use innkeeper_tests::network::Place;
use innkeeper_tests::network::frame::{
    self, ArpOperation, ArpParty, ICMP, IPV4, IPV6, Mac, UDP, arp, dhcp_answer, dhcp_option, echo_request,
    ethernet, ipv4, parse_ethernet, parse_udp_frame, router_advertisement, udp_frame,
};
use innkeeper_tests::network::lease::Lease;
use innkeeper_tests::network::packets::Capture;
use innkeeper_tests::stand_in::Guest;

use super::{Lab, PATIENCE, eventually};

/// What is in all packets that nobody is to get, and in those that show that others arrive.
const LIE: &[u8] = b"what a liar says";
const TRUTH: &[u8] = b"what is true";
/// What two neighbours tell each other.
const SECRET: &[u8] = b"between the two of us";
/// Who says that it is a router.
const LINK_LOCAL: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0x66);
const PREFIX: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0x66, 0, 0, 0, 0, 0);
const ROUTER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
const EVERYBODY: Ipv4Addr = Ipv4Addr::BROADCAST;
/// How often it says each lie.
const ROUNDS: usize = 3;

/// An instance's guest, its lease, and its interface's addresses.
struct Host {
    guest: Guest,
    lease: Lease,
    own: ArpParty,
    /// Its router, as it knows it.
    router: Mac,
}

#[test]
fn no_lie_of_a_guest_reaches_another() -> Result<()> {
    let lab = Lab::start()?;
    let (near, far) = (subnet(&lab)?, subnet(&lab)?);
    let mut ids = Vec::new();
    // The one of the other VPC has the address of the first victim.
    for (place, address) in
        [(&near, "10.0.0.66"), (&near, "10.0.0.10"), (&near, "10.0.0.11"), (&far, "10.0.0.10")]
    {
        let own =
            [("SubnetId", place.0.as_str()), ("SecurityGroupId.1", &place.1), ("PrivateIpAddress", address)];
        ids.push(lab.launch_with(&own)?);
    }
    let hosts: Vec<Host> = ids.iter().map(|id| host(&lab, id)).collect::<Result<_>>()?;
    let [liar, victim, friend, stranger] = &hosts[..] else { bail!("not four") };
    let server = friend.guest.serve_tcp(7000)?;
    let mut connection = victim.guest.connect(friend.own.1, server.port(), PATIENCE)?.connected()?;
    connection.echo(SECRET)?;

    let captures = [victim, friend, stranger].map(|host| host.guest.capture("eth0"));
    let captures: Vec<Capture> = captures.into_iter().collect::<Result<_>>()?;
    let overheard = liar.guest.capture("eth0")?;
    tell_truth(liar, victim, &captures[0])?;
    for round in 0..ROUNDS {
        for lie in lies(liar, victim, friend) {
            liar.guest.send_frame("eth0", &lie)?;
        }
        connection.echo(SECRET).with_context(|| format!("in round {round}"))?;
    }
    lie_to_who_asks_for_a_lease(liar, victim, &captures[0])?;
    lie_to_who_asks_for_a_lease(liar, friend, &captures[1])?;

    // Frames of one guest stay in order: when these are there, the others would be.
    for (host, capture) in [(victim, &captures[0]), (friend, &captures[1])] {
        tell_truth(liar, host, capture)?;
        believes_no_lie(host, liar, capture)?;
    }
    // What the other VPC hears is its own.
    ensure!(stranger.guest.lease("eth0")? == stranger.lease);
    captures[2].wait_for(|frame| !frame.is_outgoing, PATIENCE).context("the stranger's capture is blind")?;
    believes_no_lie(stranger, liar, &captures[2])?;
    connection.echo(SECRET)?;
    ensure!(victim.guest.ping(friend.own.1)? && friend.guest.ping(victim.own.1)?);
    let heard = overheard.frames();
    ensure!(!heard.is_empty(), "the liar's capture is blind");
    ensure!(!heard.iter().any(|frame| has(&frame.bytes, SECRET)), "the liar has heard what is not for it");
    lab.end("TerminateInstances", &ids, "terminated")
}

/// A subnet in a VPC of its own, where everybody may do everything, and the group that says so.
fn subnet(lab: &Lab) -> Result<(String, String)> {
    let vpc = lab.one("CreateVpc", &[("CidrBlock", "10.0.0.0/16")], "vpcId")?;
    let subnet = lab.one("CreateSubnet", &[("VpcId", &vpc), ("CidrBlock", "10.0.0.0/24")], "subnetId")?;
    let named = [("GroupName", "open"), ("GroupDescription", "open"), ("VpcId", &vpc)];
    let group = lab.one("CreateSecurityGroup", &named, "groupId")?;
    lab.rule("AuthorizeSecurityGroupIngress", &group, ("-1", "-1"), "0.0.0.0/0")?;
    Ok((subnet, group))
}

fn host(lab: &Lab, id: &str) -> Result<Host> {
    let guest = Guest::of(&lab.agent, id)?;
    let lease = guest.lease("eth0")?;
    let (_, mac) = guest.interfaces()?.into_iter().next().context("no interface")?;
    ensure!(lease.router == Some(ROUTER), "{lease:?}");
    let router = router_of(&guest)?;
    Ok(Host { own: (mac, lease.address), guest, lease, router })
}

/// The router's hardware address, as a guest knows it.
fn router_of(guest: &Place) -> Result<Mac> {
    let mut known = None;
    eventually("the guest knows its router", || {
        // Nobody answers there, but who sends finds out where it is.
        guest.udp(ROUTER, 9, b"hello", Duration::from_millis(1))?;
        let listed = guest.run(&format!("ip neigh show {ROUTER} dev eth0"))?;
        known = listed.split("lladdr ").nth(1).and_then(|rest| rest.split_whitespace().next()?.parse().ok());
        Ok(known.is_some())
    })?;
    known.context("no router")
}

/// Frames that are not what they say, as to who sends them or for whom they are.
fn lies(liar: &Host, victim: &Host, friend: &Host) -> Vec<Vec<u8>> {
    let (mac, address) = liar.own;
    let all = (Mac::BROADCAST, EVERYBODY);
    let mut lies = Vec::new();
    // "I have the router's address, and the friend's", to the victim and to all, as answers and as questions.
    for claimed in [ROUTER, friend.own.1, victim.own.1] {
        for source in [mac, friend.own.0, victim.own.0, liar.router] {
            for sender in [mac, source] {
                let reply = |target| arp(ArpOperation::Reply, (sender, claimed), target);
                lies.push(ethernet(victim.own.0, source, frame::ARP, &reply(victim.own)));
                lies.push(ethernet(liar.router, source, frame::ARP, &reply(victim.own)));
                lies.push(ethernet(all.0, source, frame::ARP, &reply((all.0, claimed))));
                let question = arp(ArpOperation::Request, (sender, claimed), (Mac([0; 6]), claimed));
                lies.push(ethernet(all.0, source, frame::ARP, &question));
            }
        }
    }
    // Packets in the name of another one, to the victim by the router, past it, and to all.
    let ping = frame::echo_request(66, 1, LIE);
    for (source, from) in
        [(friend.own.0, friend.own.1), (mac, friend.own.1), (friend.own.0, address), (mac, ROUTER)]
    {
        for (destination, to) in [(liar.router, victim.own.1), (victim.own.0, victim.own.1), (all.0, all.1)] {
            lies.push(ethernet(destination, source, IPV4, &ipv4(from, to, ICMP, &ping)));
            let (from, to) = (SocketAddrV4::new(from, 7000), SocketAddrV4::new(to, 7000));
            lies.push(udp_frame((destination, to), (source, from), LIE));
        }
    }
    // In its own name, to all of the subnet, and to the victim past the router.
    for (destination, to) in [
        (all.0, all.1),
        (all.0, Ipv4Addr::new(10, 0, 0, 255)),
        (all.0, Ipv4Addr::new(10, 0, 255, 255)),
        (liar.router, Ipv4Addr::new(10, 0, 0, 255)),
        (Mac([1, 0, 0x5e, 0, 0, 1]), Ipv4Addr::new(224, 0, 0, 1)),
        (liar.router, Ipv4Addr::new(224, 0, 0, 251)),
        (victim.own.0, victim.own.1),
    ] {
        lies.push(ethernet(destination, mac, IPV4, &ipv4(address, to, ICMP, &ping)));
    }
    lies.push(router_advertisement((mac, LINK_LOCAL), PREFIX));
    let all_nodes = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
    lies.push(ethernet(
        Mac([0x33, 0x33, 0, 0, 0, 1]),
        mac,
        IPV6,
        &frame::ipv6(LINK_LOCAL, all_nodes, UDP, LIE),
    ));
    lies
}

/// Somebody asks for a lease, and the liar answers.
fn lie_to_who_asks_for_a_lease(liar: &Host, asking: &Host, capture: &Capture) -> Result<()> {
    let is_over = AtomicBool::new(false);
    let lie = || -> Result<usize> {
        let mut told = 0;
        while !is_over.load(Ordering::Relaxed) {
            let frames = capture.frames();
            let mut asked = frames.iter().filter(|frame| frame.is_outgoing).filter_map(|frame| {
                let (_, to, message) = parse_udp_frame(&frame.bytes)?;
                (to.port() == 67).then_some(message)
            });
            // In truth it sees nobody's questions: this one is told them.
            if let Some(message) = asked.next_back() {
                for lie in offers(liar, asking, message)? {
                    liar.guest.send_frame("eth0", &lie)?;
                }
                told += 1;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(told)
    };
    let told = std::thread::scope(|scope| -> Result<usize> {
        let lies = scope.spawn(lie);
        let leases: Result<Vec<Lease>> = (0..ROUNDS).map(|_| asking.guest.lease("eth0")).collect();
        is_over.store(true, Ordering::Relaxed);
        let told = lies.join().map_err(|_| anyhow::anyhow!("the liar has panicked"))??;
        let leases = leases?;
        ensure!(leases.iter().all(|lease| *lease == asking.lease), "{leases:?} and not {:?}", asking.lease);
        Ok(told)
    })?;
    ensure!(told > 0, "the liar has not seen that somebody asks");
    Ok(())
}

/// Offers and acknowledgements of an address that is not the asking one's, by a router that is none.
fn offers(liar: &Host, asking: &Host, message: &[u8]) -> Result<Vec<Vec<u8>>> {
    let wrong = Ipv4Addr::new(10, 0, 0, 99);
    let (mask, seconds) = ([255, 255, 255, 0], 3600u32.to_be_bytes());
    let mut offers = Vec::new();
    for server in [liar.own.1, ROUTER] {
        let options = [
            (1, &mask[..]),
            (3, &liar.own.1.octets()),
            (6, &liar.own.1.octets()),
            (51, &seconds),
            (224, LIE),
        ];
        for kind in [2, 5, 6] {
            let answer = dhcp_answer(message, kind, wrong, server, &options)?;
            let from = SocketAddrV4::new(server, 67);
            for (mac, to) in [
                (Mac::BROADCAST, EVERYBODY),
                (asking.own.0, EVERYBODY),
                (liar.router, EVERYBODY),
                (asking.own.0, asking.own.1),
            ] {
                offers.push(udp_frame((mac, SocketAddrV4::new(to, 68)), (liar.own.0, from), &answer));
            }
        }
    }
    Ok(offers)
}

/// The liar can also say something that is true: that arrives.
fn tell_truth(liar: &Host, to: &Host, capture: &Capture) -> Result<()> {
    let before = capture.frames().len();
    let ping = ipv4(liar.own.1, to.own.1, ICMP, &echo_request(1, 1, TRUTH));
    liar.guest.send_frame("eth0", &ethernet(liar.router, liar.own.0, IPV4, &ping))?;
    eventually("an honest ping arrives", || {
        let frames = capture.frames();
        let mut new = frames[before..].iter().filter(|frame| !frame.is_outgoing);
        Ok(new.any(|frame| has(&frame.bytes, TRUTH)))
    })
}

/// Nothing has come but what is true, and all is as it was.
fn believes_no_lie(host: &Host, liar: &Host, capture: &Capture) -> Result<()> {
    for frame in capture.frames().iter().filter(|frame| !frame.is_outgoing) {
        let (_, source, kind, payload) = parse_ethernet(&frame.bytes).context("a frame")?;
        ensure!(source == host.router, "a frame of {source}: {:x?}", frame.bytes);
        ensure!(kind == IPV4 || kind == frame::ARP, "a frame of type {kind:#x}: {:x?}", frame.bytes);
        ensure!(!has(payload, &liar.own.0.0) && !has(payload, LIE), "a lie has come: {:x?}", frame.bytes);
        if let Some((from, to, message)) = parse_udp_frame(&frame.bytes)
            && to.port() == 68
        {
            let server = dhcp_option(message, 54);
            ensure!(*from.ip() == ROUTER && server == Some(&ROUTER.octets()), "{:x?}", frame.bytes);
        }
    }
    ensure!(router_of(&host.guest)? == host.router, "the router is somebody else");
    let addresses = host.guest.run("ip -oneline address show dev eth0")?;
    ensure!(addresses.contains(&format!("inet {}/", host.own.1)), "{addresses}");
    ensure!(!addresses.contains("2001:db8"), "{addresses}");
    Ok(())
}

fn has(bytes: &[u8], wanted: &[u8]) -> bool {
    bytes.windows(wanted.len()).any(|window| window == wanted)
}

/// Not even where groups let everything pass, and with a good guess of the number that the client has chosen.
#[test]
fn a_lease_is_offered_by_nobody_else() -> Result<()> {
    let lab = Lab::start()?;
    let near = subnet(&lab)?;
    let mut ids = Vec::new();
    for address in ["10.0.0.66", "10.0.0.10"] {
        let own =
            [("SubnetId", near.0.as_str()), ("SecurityGroupId.1", &near.1), ("PrivateIpAddress", address)];
        ids.push(lab.launch_with(&own)?);
    }
    let hosts: Vec<Host> = ids.iter().map(|id| host(&lab, id)).collect::<Result<_>>()?;
    let [liar, victim] = &hosts[..] else { bail!("so many hosts") };
    let capture = victim.guest.capture("eth0")?;
    victim.guest.lease("eth0")?;
    let request = capture.wait_for(|f| f.is_outgoing && parse_udp_frame(&f.bytes).is_some(), PATIENCE)?;
    let message = parse_udp_frame(&request.bytes).context("a request")?.2.to_vec();
    let answer = dhcp_answer(&message, 2, Ipv4Addr::new(10, 0, 0, 99), liar.own.1, &[(224, LIE)])?;
    liar.guest.send_frame(
        "eth0",
        &udp_frame(
            (liar.router, SocketAddrV4::new(victim.own.1, 68)),
            (liar.own.0, SocketAddrV4::new(liar.own.1, 67)),
            &answer,
        ),
    )?;
    tell_truth(liar, victim, &capture)?;
    let came = capture.frames().iter().any(|f| !f.is_outgoing && has(&f.bytes, LIE));
    ensure!(!came, "a unicast offer arrives");
    Ok(())
}

/// A third one that knows addresses and ports could tell either end that packets of this size do not arrive.
#[test]
fn only_an_end_of_a_connection_says_that_it_fails() -> Result<()> {
    let lab = Lab::start()?;
    let near = subnet(&lab)?;
    let vpc = lab.one("DescribeSubnets", &[("SubnetId.1", near.0.as_str())], "vpcId")?;
    let named = [("GroupName", "only"), ("GroupDescription", "open"), ("VpcId", vpc.as_str())];
    let group = lab.one("CreateSecurityGroup", &named, "groupId")?;
    lab.rule("AuthorizeSecurityGroupIngress", &group, ("-1", "-1"), "10.0.0.11/32")?;
    let mut ids = Vec::new();
    for (group, address) in [(&near.1, "10.0.0.66"), (&group, "10.0.0.10"), (&near.1, "10.0.0.11")] {
        let own =
            [("SubnetId", near.0.as_str()), ("SecurityGroupId.1", group), ("PrivateIpAddress", address)];
        ids.push(lab.launch_with(&own)?);
    }
    let hosts: Vec<Host> = ids.iter().map(|id| host(&lab, id)).collect::<Result<_>>()?;
    let [liar, victim, friend] = &hosts[..] else { bail!("so many hosts") };
    ensure!(!liar.guest.ping(victim.own.1)?);
    let server = friend.guest.serve_tcp(7000)?;
    let mut connection = victim.guest.connect(friend.own.1, server.port(), PATIENCE)?.connected()?;
    connection.echo(SECRET)?;
    let capture = victim.guest.capture("eth0")?;
    connection.echo(SECRET)?;
    let segment = |bytes: &[u8]| {
        let (_, _, kind, packet) = parse_ethernet(bytes)?;
        (kind == IPV4 && packet[9] == 6).then(|| packet[..28].to_vec())
    };
    let sent = capture.wait_for(|f| f.is_outgoing && segment(&f.bytes).is_some(), PATIENCE)?;
    let packet = segment(&sent.bytes).context("a segment")?;
    // Fragmentation needed, with an MTU of 552.
    let error = frame::icmp(3, 4, &[&[0, 0, 2, 40][..], &packet].concat());
    liar.guest.send_frame(
        "eth0",
        &ethernet(liar.router, liar.own.0, IPV4, &ipv4(liar.own.1, victim.own.1, ICMP, &error)),
    )?;
    std::thread::sleep(Duration::from_millis(500));
    let came = capture.frames().iter().any(|f| !f.is_outgoing && has(&f.bytes, &error));
    ensure!(!came, "an error of a third one arrives");
    Ok(())
}
