//! Instances that come and go, and what of their network comes and goes with them.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use innkeeper_network::names;
use innkeeper_tests::network::Place;
use innkeeper_tests::network::echo::Attempt;
use innkeeper_tests::stand_in::Guest;

use super::{Lab, PATIENCE, SILENCE, eventually, host_address, host_link};

#[test]
fn guests_get_their_addresses_and_reach_each_other() -> Result<()> {
    let lab = Lab::start()?;
    let ids = [lab.launch()?, lab.launch()?];
    let guests = [Guest::of(&lab.agent, &ids[0])?, Guest::of(&lab.agent, &ids[1])?];
    let mut private = Vec::new();
    for (id, guest) in ids.iter().zip(&guests) {
        let lease = guest.lease("eth0")?;
        let address = lab.address(id, "privateIpAddress")?;
        ensure!((lease.address, lease.prefix, lease.mtu) == (address, 20, Some(9001)), "{lease:?}");
        ensure!(lease.router == Some(Ipv4Addr::new(172, 31, 0, 1)), "{lease:?}");
        ensure!(lease.dns == [Ipv4Addr::new(172, 31, 0, 2)], "{lease:?}");
        private.push(address);
    }
    // Members of the default group may do everything with each other.
    ensure!(guests[0].ping(private[1])? && guests[1].ping(private[0])?);
    let server = guests[1].serve_tcp(0)?;
    let mut connection = guests[0].connect(private[1], server.port(), PATIENCE)?.connected()?;
    connection.echo(b"neighbours")?;
    ensure!(server.seen().iter().all(|peer| peer.ip() == private[0]), "{:?}", server.seen());

    // From outside nobody gets in, until a rule lets them.
    let public = lab.address(&ids[1], "ipAddress")?;
    let host = Place::here()?;
    let server = guests[1].serve_tcp(8080)?;
    ensure!(matches!(host.connect(public, 8080, SILENCE)?, Attempt::TimedOut));
    let group = lab.group(&ids[1])?;
    let asked = lab.rule("AuthorizeSecurityGroupIngress", &group, ("tcp", "8080"), "0.0.0.0/0")?;
    let mut connection = loop {
        match host.connect(public, 8080, SILENCE / 5)? {
            Attempt::Connected(connection) => break connection,
            _ => ensure!(asked.elapsed() < PATIENCE, "nobody is let in: {}", lab.agent.last_words()),
        }
    };
    println!("let in after {:?}", asked.elapsed());
    connection.echo(b"hello from the host")?;
    ensure!(matches!(host.connect(public, 8081, SILENCE)?, Attempt::TimedOut));
    drop(server);

    // Out into the world, of which here only the host is to be had.
    let server = host.serve_tcp(0)?;
    guests[1].connect(host_address(public), server.port(), PATIENCE)?.connected()?.echo(b"out")?;
    ensure!(server.seen().iter().all(|peer| peer.ip() == public), "{:?}", server.seen());

    lab.end("TerminateInstances", &ids, "terminated")?;
    eventually("no network is left", || Ok(lab.agent.networks()?.is_empty()))
}

#[test]
fn a_private_address_is_for_life_and_a_public_one_until_the_stop() -> Result<()> {
    let mut lab = Lab::start()?;
    // Another one keeps the network, with whatever is forgotten in it.
    let other = [lab.launch()?];
    let ids = [lab.launch()?];
    let id = &ids[0];
    let (private, public) = (lab.address(id, "privateIpAddress")?, lab.address(id, "ipAddress")?);
    let guest = Guest::of(&lab.agent, id)?;
    guest.lease("eth0")?;

    // The network is there without the daemon, and the next one finds it.
    lab.agent.kill()?;
    let host = Place::here()?;
    ensure!(matches!(host.connect(public, 80, SILENCE)?, Attempt::TimedOut));
    lab.agent.resume()?;
    lab.client = lab.agent.client()?;
    ensure!(lab.address(id, "ipAddress")? == public);
    guest.lease("eth0")?;

    // Now and then the same address comes up again.
    let mut next = public;
    while next == public {
        lab.end("StopInstances", &ids, "stopped")?;
        ensure!(lab.described(id, "ipAddress")?.is_none());
        lab.end("StartInstances", &ids, "running")?;
        ensure!(lab.address(id, "privateIpAddress")? == private);
        next = lab.address(id, "ipAddress")?;
    }
    let guest = Guest::of(&lab.agent, id)?;
    ensure!(guest.lease("eth0")?.address == private);

    // The one before leads nowhere, where the new one leads to the instance.
    let group = lab.group(id)?;
    lab.rule("AuthorizeSecurityGroupIngress", &group, ("tcp", "80"), "0.0.0.0/0")?;
    let server = guest.serve_tcp(80)?;
    let reaches = |address| -> Result<bool> {
        let known = server.seen().len();
        if let Attempt::Connected(mut connection) = host.connect(address, 80, SILENCE / 2)? {
            // Who echoes has seen who asks.
            let _ = connection.echo(b"who is there?");
        }
        Ok(server.seen().len() > known)
    };
    eventually("the new address leads to the instance", || reaches(next))?;
    ensure!(!reaches(public)?, "{public} leads to the instance still");
    let route = host.run(&format!("ip -oneline route get {public} || true"))?;
    ensure!(!route.contains("dev vpc"), "{route}");
    host_link(&host, next)?;
    lab.end("TerminateInstances", &[ids, other].concat(), "terminated")
}

/// An interface that comes and goes while the guest runs.
#[test]
fn an_interface_is_plugged_and_unplugged() -> Result<()> {
    let lab = Lab::start()?;
    let ids = [lab.launch()?, lab.launch()?];
    let guests = [Guest::of(&lab.agent, &ids[0])?, Guest::of(&lab.agent, &ids[1])?];
    for guest in &guests {
        guest.lease("eth0")?;
    }
    let subnet = lab.described(&ids[0], "subnetId")?.context("a subnet")?;
    let interface = lab.one("CreateNetworkInterface", &[("SubnetId", &subnet)], "networkInterfaceId")?;
    let described = [("NetworkInterfaceId.1", interface.as_str())];
    let address: Ipv4Addr = lab.one("DescribeNetworkInterfaces", &described, "privateIpAddress")?.parse()?;
    ensure!(!guests[1].ping(address)?);
    let attach = [("NetworkInterfaceId", interface.as_str()), ("InstanceId", &ids[0]), ("DeviceIndex", "1")];
    let attachment = lab.one("AttachNetworkInterface", &attach, "attachmentId")?;
    let deadline = Instant::now() + PATIENCE;
    while !lab.client.ask("DescribeNetworkInterfaces", &described)?.contains("<status>attached</status>") {
        ensure!(Instant::now() < deadline, "it is not attached: {}", lab.agent.last_words());
        std::thread::sleep(Duration::from_millis(10));
    }
    let lease = guests[0].lease("eth1")?;
    ensure!(lease.address == address);
    let router = lease.router.context("a router")?;
    // As in EC2, what a guest sends by one interface with the address of another one is dropped.
    guests[0].run(&format!(
        "ip rule add from {address} lookup 7; ip route add default via {router} dev eth0 table 7"
    ))?;
    ensure!(!guests[1].ping(address)?);
    guests[0].run(&format!("ip route replace default via {router} dev eth1 table 7"))?;
    ensure!(guests[1].ping(address)?, "the second interface is not reached");

    lab.client.ask("DetachNetworkInterface", &[("AttachmentId", &attachment)])?;
    while !lab.client.ask("DescribeNetworkInterfaces", &described)?.contains("<status>available</status>") {
        ensure!(Instant::now() < deadline, "it is not detached: {}", lab.agent.last_words());
        std::thread::sleep(Duration::from_millis(10));
    }
    ensure!(guests[0].interfaces()?.len() == 1, "{:?}", guests[0].interfaces()?);
    ensure!(!guests[1].ping(address)?);
    lab.client.ask("DeleteNetworkInterface", &[("NetworkInterfaceId", &interface)])?;
    lab.end("TerminateInstances", &ids, "terminated")
}

/// How often instances are launched and terminated. A long run: `INNKEEPER_NETWORK_ROUNDS=500`.
const ROUNDS: usize = 8;
/// One of so many rounds is in a VPC of its own.
const OWN_VPC: usize = 4;

#[test]
fn nothing_is_left_of_the_networks_of_instances_that_were() -> Result<()> {
    let lab = Lab::start()?;
    let rounds = std::env::var("INNKEEPER_NETWORK_ROUNDS").ok().map_or(Ok(ROUNDS), |text| text.parse())?;
    let mut vpcs = vec![lab.one("DescribeVpcs", &[], "vpcId")?];
    let at_first = on_the_host(&lab, &vpcs, None)?;
    ensure!(at_first.is_empty(), "{at_first:#?}");
    // One stays, and with it the namespace, in which nothing may be left of the others.
    let stays = [lab.launch()?];
    lab.guest(&stays[0])?;
    let (private, public) =
        (lab.address(&stays[0], "privateIpAddress")?, lab.address(&stays[0], "ipAddress")?);
    let tap = names::tap(&lab.described(&stays[0], "networkInterfaceId")?.context("an interface")?);
    let [namespace] = &lab.agent.networks()?[..] else { bail!("not one network") };
    let (before, around) = (inside(namespace)?, on_the_host(&lab, &vpcs, Some(public))?);
    ensure!(around.iter().any(|line| line.contains(&names::host_link(&vpcs[0]))), "{around:#?}");
    ensure!(around.iter().any(|line| line.contains(&public.to_string())), "{around:#?}");

    let mut gone = Vec::new();
    for round in 0..rounds {
        if round % OWN_VPC == OWN_VPC - 1 {
            vpcs.push(live_in_an_own_vpc(&lab)?);
            continue;
        }
        let ids = [lab.launch()?];
        let guest = lab.guest(&ids[0])?;
        ensure!(guest.ping(private)? && guest.ping(host_address(public))?, "in round {round}");
        let address = lab.address(&ids[0], "privateIpAddress")?.to_string();
        ensure!(!shows_connections()? || !connections(namespace, std::slice::from_ref(&address))?.is_empty());
        gone.push(address);
        lab.end("TerminateInstances", &ids, "terminated")?;
    }
    ends_with("what is inside of the network", &before, || inside(namespace))?;
    // The one that has stayed has begun connections that are counted, or not; the others have none.
    ends_with("interfaces in the rules", &vec![tap], || {
        let rules = in_namespace(namespace, RULES)?;
        let taps: BTreeSet<&str> = words(&rules).filter(|word| word.starts_with("eni")).collect();
        Ok(taps.into_iter().map(str::to_owned).collect())
    })?;
    ends_with("connections of those that were", &Vec::new(), || match shows_connections()? {
        true => connections(namespace, &gone),
        false => Ok(Vec::new()),
    })?;
    ends_with("the host's side", &around, || on_the_host(&lab, &vpcs, Some(public)))?;

    lab.end("TerminateInstances", &stays, "terminated")?;
    ends_with("what the host has", &Vec::new(), || on_the_host(&lab, &vpcs, Some(public)))
}

/// Waits until something is as it was.
fn ends_with(what: &str, before: &Vec<String>, now: impl Fn() -> Result<Vec<String>>) -> Result<()> {
    let mut last = Vec::new();
    let ended = eventually("it is as before", || {
        last = now()?;
        Ok(last == *before)
    });
    let only = |one: &[String], other: &[String]| -> Vec<String> {
        one.iter().filter(|line| !other.contains(line)).cloned().collect()
    };
    ended.with_context(|| {
        format!("{what}: {:#?} too much, {:#?} too little", only(&last, before), only(before, &last))
    })
}

/// Makes a VPC, lets an instance live in it, and deletes it again; returns its id.
fn live_in_an_own_vpc(lab: &Lab) -> Result<String> {
    let vpc = lab.one("CreateVpc", &[("CidrBlock", "10.0.0.0/16")], "vpcId")?;
    let subnet = lab.one("CreateSubnet", &[("VpcId", &vpc), ("CidrBlock", "10.0.0.0/24")], "subnetId")?;
    let ids = [lab.launch_with(&[("SubnetId", &subnet)])?];
    lab.guest(&ids[0])?;
    lab.end("TerminateInstances", &ids, "terminated")?;
    lab.client.ask("DeleteSubnet", &[("SubnetId", &subnet)])?;
    lab.client.ask("DeleteVpc", &[("VpcId", &vpc)])?;
    Ok(vpc)
}

fn in_namespace(namespace: &Path, what: &str) -> Result<String> {
    Place::here()?.run(&format!("nsenter --net={} {what}", namespace.display()))
}

/// The rules in a namespace, but for the set of those who have asked a service for something in the last 10 s.
const RULES: &str = "nft list ruleset | sed '/set service_rate {/,/^\t}/d'";
/// And but for the set of those whose connections are counted.
const COUNTED: &str = "| sed '/set connections {/,/^\t}/d'";

fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|letter: char| letter.is_whitespace() || ",=\"".contains(letter))
        .filter(|word| !word.is_empty())
}

/// Whether the kernel shows connections where [`connections`] looks for them. Not all do.
fn shows_connections() -> Result<bool> {
    Ok(Path::new("/proc/net/nf_conntrack").try_exists()?)
}

/// The connections in a namespace of those that have these addresses.
fn connections(namespace: &Path, addresses: &[String]) -> Result<Vec<String>> {
    let all = in_namespace(namespace, "cat /proc/net/nf_conntrack")?;
    let is_theirs = |line: &&str| words(line).any(|word| addresses.iter().any(|address| address == word));
    Ok(all.lines().filter(is_theirs).map(str::to_owned).collect())
}

/// How much there is in a namespace, and all words of its rules.
fn inside(namespace: &Path) -> Result<Vec<String>> {
    let count = |what| Ok(format!("{} lines of {what}", in_namespace(namespace, what)?.lines().count()));
    let all = ["ip -o link", "ip -4 route show table all", "ip rule", "ip -4 neigh", "ip -o -4 address"];
    let mut all: Vec<String> = all.into_iter().map(count).collect::<Result<_>>()?;
    let rules = in_namespace(namespace, &format!("{RULES} {COUNTED}"))?;
    all.extend(words(&rules).map(str::to_owned));
    all.sort();
    Ok(all)
}

/// All that the host has of the networks of a daemon, which is not the only one here: links to these VPCs, what has an
/// address of the same pool as `public`, rules, and namespaces.
fn on_the_host(lab: &Lab, vpcs: &[String], public: Option<Ipv4Addr>) -> Result<Vec<String>> {
    let host = Place::here()?;
    let links: Vec<String> = vpcs.iter().map(|vpc| names::host_link(vpc)).collect();
    let pool = public.map(|public| host_address(public).to_string().trim_end_matches('1').to_owned());
    let own = lab.agent.run_directory();
    let own = own.to_str().context("a path")?;
    let is_own = |line: &&str| {
        let words = || line.split([' ', ':', '@', '/']);
        links.iter().any(|link| words().any(|word| word == link))
            || pool.as_ref().is_some_and(|pool| words().any(|word| word.starts_with(pool)))
            || line.contains(own)
    };
    let mut all = Vec::new();
    for what in [
        "ip -o link",
        "ip -o -4 address",
        "ip -4 route show table all",
        "ip -4 neigh",
        "nft list ruleset",
        "mount",
    ] {
        let said = host.run(what)?;
        all.extend(said.lines().filter(is_own).map(|line| format!("{what}: {}", line.trim())));
    }
    Ok(all)
}
