//! No instance reads what is another one's, whatever it claims to be and whoever was there before it.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use innkeeper_tests::network::Place;
use innkeeper_tests::network::frame::{self, IPV4, Mac, TCP, parse_ethernet, parse_ipv4};
use innkeeper_tests::network::packets::{Capture, Frame};
use innkeeper_tests::stand_in::{Guest, Lab, eventually};

use super::PATIENCE;
use super::wire::{Answer, HTTP, SERVICE, Wire, get, once, put, token};

/// TCP's flag of a segment that begins a connection.
const SYN: u8 = 2;
/// An address of a subnet of ours.
const ADDRESS: &str = "10.0.0.10";
/// What only one of them is to know.
const SECRET: &str = "the first one's secret";

/// A subnet in a VPC of its own.
fn subnet(lab: &Lab) -> Result<String> {
    let vpc = lab.one("CreateVpc", &[("CidrBlock", "10.0.0.0/16")], "vpcId")?;
    lab.one("CreateSubnet", &[("VpcId", &vpc), ("CidrBlock", "10.0.0.0/24")], "subnetId")
}

fn launch(lab: &Lab, subnet: &str, address: &str, user_data: &str) -> Result<String> {
    let user_data = BASE64_STANDARD.encode(user_data);
    lab.launch_with(&[("SubnetId", subnet), ("PrivateIpAddress", address), ("UserData", &user_data)])
}

/// What an instance is told of itself, and given.
fn who_am_i(guest: &Place) -> Result<(String, String)> {
    let mut wire = Wire::open(guest)?;
    let mut read = |path: &str| -> Result<String> { Ok(wire.ask(&get(path))?.text()?.to_owned()) };
    Ok((read("/latest/meta-data/instance-id")?, read("/latest/user-data")?))
}

/// The port of the guest that a segment of the service's is for, and what it says.
fn of_service(frame: &Frame) -> Option<(u16, &[u8])> {
    let (_, _, _, packet) = parse_ethernet(&frame.bytes).filter(|_| !frame.is_outgoing)?;
    let (source, _, protocol, segment) = parse_ipv4(packet)?;
    let port = u16::from_be_bytes([*segment.get(2)?, *segment.get(3)?]);
    let says = segment.get(usize::from(segment.get(12)? >> 4) * 4..)?;
    (source == SERVICE && protocol == TCP).then_some((port, says))
}

fn is_told(capture: &Capture, wanted: &str) -> bool {
    let told = |frame: &Frame| {
        let (_, says) = of_service(frame)?;
        Some(says.windows(wanted.len()).any(|window| window == wanted.as_bytes()))
    };
    capture.frames().iter().any(|frame| told(frame) == Some(true))
}

fn mac(guest: &Guest) -> Result<Mac> {
    Ok(guest.interfaces()?.into_iter().find(|(name, _)| name == "eth0").context("no eth0")?.1)
}

/// The hardware address of the router, of which a guest has had an answer.
fn router(guest: &Guest) -> Result<Mac> {
    let known = guest.run("ip neigh show dev eth0")?;
    let router = known.split("lladdr ").nth(1).and_then(|rest| rest.split_whitespace().next());
    router.with_context(|| format!("no router in {known:?}"))?.parse()
}

/// A frame with a SYN to the service.
fn syn(to: Mac, from: Mac, address: Ipv4Addr, port: u16) -> Vec<u8> {
    let (source, service) = (SocketAddrV4::new(address, port), SocketAddrV4::new(SERVICE, HTTP));
    let segment = frame::tcp(source, service, 1, SYN);
    frame::ethernet(to, from, IPV4, &frame::ipv4(address, SERVICE, TCP, &segment))
}

#[test]
fn nobody_asks_in_another_ones_name() -> Result<()> {
    let lab = Lab::start()?;
    let subnet = subnet(&lab)?;
    let ids = [launch(&lab, &subnet, ADDRESS, SECRET)?, launch(&lab, &subnet, "10.0.0.66", "the liar's")?];
    let (victim, liar) = (lab.guest(&ids[0])?, lab.guest(&ids[1])?);
    let address: Ipv4Addr = ADDRESS.parse()?;
    ensure!(who_am_i(&victim)? == (ids[0].clone(), SECRET.to_owned()));
    ensure!(who_am_i(&liar)? == (ids[1].clone(), "the liar's".to_owned()));
    let (own, others, router) = (mac(&liar)?, mac(&victim)?, router(&liar)?);

    // A token says nothing of whom it was given to, and is of no use to others.
    let foreign = token(&victim, 600)?;
    for path in ["/latest/user-data", "/latest/meta-data/instance-id", "/latest/nothing"] {
        let answer = once(&liar, &get(path).token(&foreign))?;
        ensure!(answer.status == 401, "{answer:?}");
    }

    // As itself, as one who may forward, and with the victim's address as one of its own.
    for round in 0..3 {
        if round == 1 {
            let change = [("InstanceId", ids[1].as_str()), ("SourceDestCheck.Value", "false")];
            lab.client.ask("ModifyInstanceAttribute", &change)?;
            let rules = "nft list ruleset";
            let namespace = lab.agent.networks()?.pop().context("no network")?;
            let inside = format!("nsenter --net={} {rules} | grep -A3 'set forwarders'", namespace.display());
            eventually("it may forward", || Ok(Place::here()?.run(&inside)?.contains(&own.to_string())))?;
        }
        if round == 2 {
            liar.run(&format!("ip address add {ADDRESS}/32 dev eth0"))?;
        }
        let captures = [liar.capture("eth0")?, victim.capture("eth0")?];
        let elsewhere = [address, Ipv4Addr::new(192, 0, 2, 1), Ipv4Addr::new(10, 0, 0, 1), SERVICE];
        let mut ports = 40_000..;
        let mut forged = Vec::new();
        for source in elsewhere.into_iter().chain([Ipv4Addr::LOCALHOST, Ipv4Addr::UNSPECIFIED]) {
            for (to, from) in [(router, own), (router, others), (others, own), (Mac::BROADCAST, own)] {
                let port = ports.next().context("a port")?;
                liar.send_frame("eth0", &syn(to, from, source, port))?;
                forged.push(port);
            }
        }
        // In its own name, with another one's hardware address.
        let port = ports.next().context("a port")?;
        liar.send_frame("eth0", &syn(router, others, Ipv4Addr::new(10, 0, 0, 66), port))?;
        forged.push(port);
        let line = format!("curl -sS --max-time 1 --interface {ADDRESS} http://{SERVICE}/latest/user-data");
        let asked = liar.output(&["sh", "-c", &line])?;
        ensure!(!asked.status.success() && asked.stdout.is_empty(), "{asked:?}");

        // What is true is answered, and comes after the lies.
        let honest = ports.next().context("a port")?;
        liar.send_frame("eth0", &syn(router, own, Ipv4Addr::new(10, 0, 0, 66), honest))?;
        let is_answer = |frame: &Frame| of_service(frame).is_some_and(|(port, _)| port == honest);
        captures[0].wait_for(is_answer, PATIENCE).context("an honest SYN has no answer")?;
        ensure!(who_am_i(&victim)?.1 == SECRET);
        for capture in &captures {
            let frames = capture.frames();
            let mut answered = frames.iter().filter_map(of_service).map(|(port, _)| port);
            let lie = answered.find(|port| forged.contains(port));
            ensure!(lie.is_none(), "in round {round}, the lie of port {lie:?} is answered");
        }
        ensure!(!is_told(&captures[0], SECRET), "the liar was told the secret");
    }
    ensure!(who_am_i(&liar)?.0 == ids[1]);
    lab.end("TerminateInstances", &ids, "terminated")
}

/// An address goes from one instance to another one, while the service still has something to say to the first.
#[test]
fn whoever_gets_an_address_is_told_nothing_of_who_had_it() -> Result<()> {
    an_address_goes_on(|_| Ok(()))
}

/// What the daemon had to say is the kernel's to say then.
#[test]
fn nor_when_the_daemon_has_been_killed() -> Result<()> {
    an_address_goes_on(|lab| {
        lab.agent.kill()?;
        lab.agent.resume()?;
        lab.client = lab.agent.client()?;
        Ok(())
    })
}

fn an_address_goes_on(meanwhile: impl FnOnce(&mut Lab) -> Result<()>) -> Result<()> {
    let mut lab = Lab::start()?;
    let subnet = subnet(&lab)?;
    // The network stays as it is.
    let witness = launch(&lab, &subnet, "10.0.0.66", "a witness")?;
    let first = launch(&lab, &subnet, ADDRESS, SECRET)?;
    let guest = lab.guest(&first)?;
    let old_token = token(&guest, 600)?;
    let mut open = Wire::open(&guest)?;
    ensure!(open.ask(&get("/latest/user-data"))?.text()? == SECRET);
    let port = open.stream().local_addr()?.port();
    // From now on it hears nothing, so that TCP says everything again and again.
    let mut deaf = Wire::open(&guest)?;
    let capture = guest.capture("eth0")?;
    guest.run(&format!(
        "nft 'table ip deaf {{ chain input {{ type filter hook prerouting priority -300; ip saddr {SERVICE} drop; }}; }}'"
    ))?;
    for wire in [&mut open, &mut deaf] {
        wire.say(&[get("/latest/user-data").bytes(), put("600").bytes()].concat())?;
    }
    eventually("it is told the secret", || Ok(is_told(&capture, SECRET)))?;
    let told = Instant::now();
    // What TCP expects of it next, as one who has seen all of it knows.
    let last = capture.frames().iter().rev().find(|frame| frame.is_outgoing).cloned().context("a frame")?;
    meanwhile(&mut lab)?;
    lab.end("TerminateInstances", std::slice::from_ref(&first), "terminated")?;

    let second = launch(&lab, &subnet, ADDRESS, "the second one's")?;
    let guest = Guest::of(&lab.agent, &second)?;
    guest.run("ip link set eth0 up")?;
    let capture = guest.capture("eth0")?;
    guest.lease("eth0")?;
    ensure!(who_am_i(&guest)? == (second.clone(), "the second one's".to_owned()));
    let answer = once(&guest, &get("/latest/user-data").token(&old_token))?;
    ensure!(answer.status == 401, "{answer:?}");
    // It goes on with a connection of the first one, whose numbers it knows, and begins those anew.
    let (mine, router) = (mac(&guest)?, router(&guest)?);
    let (_, _, _, packet) = parse_ethernet(&last.bytes).context("a frame")?;
    guest.send_frame("eth0", &frame::ethernet(router, mine, IPV4, packet))?;
    guest.send_frame("eth0", &syn(router, mine, ADDRESS.parse()?, port))?;
    // TCP waits twice as long each time: after about 0.2, 0.6, 1.4, 3, 6.2 seconds.
    std::thread::sleep(Duration::from_millis(6800).saturating_sub(told.elapsed()));
    ensure!(!is_told(&capture, SECRET), "it is told the first one's secret");
    ensure!(!is_told(&capture, &first), "it is told of the first one");
    ensure!(who_am_i(&guest)? == (second.clone(), "the second one's".to_owned()));
    lab.end("TerminateInstances", &[witness, second], "terminated")
}

/// The same addresses in two VPCs.
#[test]
fn each_vpc_has_its_own_service() -> Result<()> {
    let lab = Lab::start()?;
    let subnets = [subnet(&lab)?, subnet(&lab)?];
    let secrets = ["the first one's", "the second one's"];
    let mut ids = Vec::new();
    for (subnet, secret) in subnets.iter().zip(secrets) {
        ids.push(launch(&lab, subnet, ADDRESS, secret)?);
    }
    let guests = [lab.guest(&ids[0])?, lab.guest(&ids[1])?];
    let mut wires = [Wire::open(&guests[0])?, Wire::open(&guests[1])?];
    for _ in 0..3 {
        for ((id, guest), (secret, wire)) in ids.iter().zip(&guests).zip(secrets.iter().zip(&mut wires)) {
            ensure!(who_am_i(guest)? == (id.clone(), (*secret).to_owned()));
            let is_own = |answer: Answer| -> Result<bool> { Ok(answer.text()? == *secret) };
            ensure!(is_own(wire.ask(&get("/latest/user-data"))?)?);
        }
    }
    let foreign = token(&guests[0], 60)?;
    ensure!(once(&guests[1], &get("/latest/").token(&foreign))?.status == 401);
    lab.end("TerminateInstances", &ids, "terminated")
}

#[test]
fn nobody_asks_from_outside() -> Result<()> {
    let lab = Lab::start()?;
    let ids = [lab.launch()?, lab.launch()?];
    let (guest, router_guest) = (lab.guest(&ids[0])?, lab.guest(&ids[1])?);
    ensure!(once(&guest, &get("/latest/meta-data/instance-id"))?.text()? == ids[0]);
    let host = Place::here()?;
    let public = lab.address(&ids[0], "ipAddress")?;
    let route = host.run(&format!("ip -oneline route get {public}"))?;
    let link = route.split_whitespace().skip_while(|word| *word != "dev").nth(1).context("a link")?;

    // The host, by its link to the VPC, as itself and as others.
    let capture = host.capture(link)?;
    host.ping(public)?;
    let known = host.run(&format!("ip neigh show dev {link}"))?;
    let other_end = known.split("lladdr ").nth(1).and_then(|rest| rest.split_whitespace().next());
    let other_end: Mac = other_end.with_context(|| format!("no neighbour: {known}"))?.parse()?;
    let own = host.interfaces()?.into_iter().find(|(name, _)| name == link).context("no link")?.1;
    let private = lab.address(&ids[0], "privateIpAddress")?;
    let here = Ipv4Addr::from_bits((public.to_bits() & 0xffff_ff00) + 1);
    for (port, source) in (40_000..).zip([here, private, public, SERVICE, Ipv4Addr::new(192, 0, 2, 1)]) {
        host.send_frame(link, &syn(other_end, own, source, port))?;
    }
    let asked =
        host.output(&["curl", "-sS", "--max-time", "1", "--interface", link, "http://169.254.169.254/"])?;
    ensure!(!asked.status.success() && asked.stdout.is_empty(), "{asked:?}");

    // Through an instance that forwards, for somebody outside of the VPC, and for somebody in it.
    let change = [("InstanceId", ids[1].as_str()), ("SourceDestCheck.Value", "false")];
    lab.client.ask("ModifyInstanceAttribute", &change)?;
    router_guest.run("sysctl -qw net.ipv4.ip_forward=1")?;
    let behind = innkeeper_tests::network::Namespace::new()?;
    connect(&router_guest, &behind)?;
    let heard = router_guest.capture("eth0")?;
    for line in ["", "--interface 10.99.0.3"] {
        let line = format!("curl -sS --max-time 1 {line} http://169.254.169.254/latest/user-data");
        let asked = behind.output(&["sh", "-c", &line])?;
        ensure!(!asked.status.success() && asked.stdout.is_empty(), "{asked:?}");
    }
    let sent = heard.frames().iter().any(|frame| frame.is_outgoing);
    ensure!(sent, "nothing was forwarded");
    ensure!(!heard.frames().iter().any(|frame| of_service(frame).is_some()), "the service answers");
    // With the forwarding one's own address, it is the forwarding one that asks.
    router_guest.run("nft 'table ip nat { chain post { type nat hook postrouting priority 100; oifname eth0 masquerade; }; }'")?;
    eventually("whom it forwards for is answered", || {
        let line = "curl -sS --max-time 1 http://169.254.169.254/latest/meta-data/instance-id";
        let asked = behind.output(&["sh", "-c", line])?;
        Ok(asked.status.success() && asked.stdout == ids[1].as_bytes())
    })?;
    // But not with a token, which goes one hop.
    let line = "curl -sS --max-time 1 -X PUT -H 'X-aws-ec2-metadata-token-ttl-seconds: 60' \
                http://169.254.169.254/latest/api/token";
    let asked = behind.output(&["sh", "-c", line])?;
    ensure!(!asked.status.success() && asked.stdout.is_empty(), "{asked:?}");
    let hops = [("InstanceId", ids[1].as_str()), ("HttpPutResponseHopLimit", "2")];
    lab.client.ask("ModifyInstanceMetadataOptions", &hops)?;
    let asked = behind.output(&["sh", "-c", line])?;
    ensure!(asked.status.success() && asked.stdout.len() == 56, "{asked:?}");

    let heard = capture.frames();
    ensure!(!heard.is_empty(), "the capture is blind");
    ensure!(!heard.iter().any(|frame| of_service(frame).is_some()), "the service answers the host");
    lab.end("TerminateInstances", &ids, "terminated")
}

/// Puts a network behind a guest, which leads everywhere by it.
fn connect(guest: &Guest, behind: &Place) -> Result<()> {
    // A link has its two ends in one place before one of them moves.
    let pid = guest.pid();
    behind.run(&format!("ip link add inside type veth peer name outside netns {pid}"))?;
    guest.set_address("outside", "10.99.0.1/24", None)?;
    behind.run("ip address add 10.99.0.2/24 dev inside && ip address add 10.99.0.3/24 dev inside")?;
    behind.run("ip link set inside up")?;
    behind.run("ip route add default via 10.99.0.1")?;
    if !behind.ping(Ipv4Addr::new(10, 99, 0, 1))? {
        bail!("the guest is not reached from behind");
    }
    Ok(())
}
