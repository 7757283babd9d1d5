//! Instances that come and go, and what of their network comes and goes with them.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use innkeeper_tests::network::Place;
use innkeeper_tests::network::echo::Attempt;
use innkeeper_tests::stand_in::Guest;

use super::{Lab, PATIENCE, SILENCE, eventually, host_address};

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

    lab.end("StopInstances", &ids, "stopped")?;
    ensure!(lab.described(id, "ipAddress")?.is_none());
    lab.end("StartInstances", &ids, "running")?;
    ensure!(lab.address(id, "privateIpAddress")? == private);
    let lease = Guest::of(&lab.agent, id)?.lease("eth0")?;
    ensure!(lease.address == private);
    ensure!(lab.described(id, "ipAddress")?.is_some());
    lab.end("TerminateInstances", &ids, "terminated")
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

#[test]
fn nothing_is_left_of_the_networks_of_instances_that_were() -> Result<()> {
    let lab = Lab::start()?;
    let rounds = std::env::var("INNKEEPER_NETWORK_ROUNDS").ok().map_or(Ok(ROUNDS), |text| text.parse())?;
    let host = Place::here()?;
    let left = || -> Result<Vec<String>> {
        let mut left = vec![host.run("ip -o link | grep -o 'vpc[0-9a-f]*' || true")?];
        left.push(host.run("ip route | grep ' dev vpc' || true")?);
        left.extend(lab.agent.networks()?.iter().map(|place| place.display().to_string()));
        left.retain(|text| !text.is_empty());
        Ok(left)
    };
    // One stays, and with it the namespace, in which nothing may be left of the others.
    let stays = [lab.launch()?];
    let inside = |what: &str| -> Result<usize> {
        let networks = lab.agent.networks()?;
        let namespace = networks.first().context("no network")?.display();
        Ok(host.run(&format!("nsenter --net={namespace} {what}"))?.lines().count())
    };
    let counts = || -> Result<Vec<usize>> {
        ["ip -o link", "ip route show table all", "ip rule", "ip neigh", "ip -o address", "nft list ruleset"]
            .iter()
            .map(|what| inside(what))
            .collect()
    };
    let deadline = |seconds| Instant::now() + Duration::from_secs(seconds);
    let before = counts()?;
    for _ in 0..rounds.div_ceil(2) {
        let ids = [lab.launch()?, lab.launch()?];
        lab.end("TerminateInstances", &ids, "terminated")?;
    }
    let end = deadline(20);
    while counts()? != before {
        ensure!(Instant::now() < end, "{:?} and not {before:?}", counts()?);
        std::thread::sleep(Duration::from_millis(20));
    }
    lab.end("TerminateInstances", &stays, "terminated")?;
    let end = deadline(20);
    let own = lab.agent.run_directory();
    while left()?.iter().any(|one| one.contains(own.to_str().unwrap_or_default())) {
        ensure!(Instant::now() < end, "{:?}", left()?);
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}
