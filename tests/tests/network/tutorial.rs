//! EC2's tutorial of a VPC with a public and a private subnet (VPC User Guide, "Example: VPC for web and database
//! servers"), by the real `aws`, and what packets make of it.

use std::net::{Ipv4Addr, SocketAddrV4};

use anyhow::{Context, Result, ensure};
use innkeeper_tests::agent::TINY;
use innkeeper_tests::network::Place;
use innkeeper_tests::network::echo::Attempt;
use innkeeper_tests::network::frame::{self, IPV4, Mac, TCP};
use innkeeper_tests::stand_in::Guest;

use super::{Lab, PATIENCE, SILENCE, eventually, host_address, host_link};

/// Where the public instance, and the private one, may be reached, and where not.
const ALLOWED: u16 = 22;
const OTHER: u16 = 23;
/// Where the private one's group lets everybody in for a while.
const OPENED: u16 = 24;

/// What the tutorial makes.
struct Made {
    vpc: String,
    subnets: [String; 2],
    gateway: String,
    tables: [String; 2],
    groups: [String; 2],
    allocation: String,
    /// The NAT gateway, and its elastic address.
    nat: (String, Ipv4Addr),
}

#[test]
fn a_public_and_a_private_subnet_are_as_in_the_tutorial() -> Result<()> {
    let lab = Lab::start()?;
    let aws = |words: &str| aws(&lab, words);
    let made = make(&lab)?;
    let launch = |subnet: usize| {
        aws(&format!(
            "run-instances --image-id {} --instance-type {TINY} --subnet-id {} --security-group-ids {} \
             --query Instances[0].InstanceId",
            lab.image, made.subnets[subnet], made.groups[subnet]
        ))
    };
    let ids = [launch(0)?, launch(1)?];
    aws(&format!("wait instance-running --instance-ids {} {}", ids[0], ids[1]))?;
    let address = |id: &str, kind: &str| -> Result<String> {
        let query = format!("Reservations[].Instances[].{kind}");
        aws(&format!("describe-instances --instance-ids {id} --query {query}"))
    };
    let public: Ipv4Addr = address(&ids[0], "PublicIpAddress")?.parse()?;
    ensure!(address(&ids[1], "PublicIpAddress")?.is_empty(), "the private instance has a public address");
    let private: Ipv4Addr = address(&ids[1], "PrivateIpAddress")?.parse()?;
    ensure!(private.octets()[..3] == [10, 0, 1], "{private}");

    let guests = [lab.guest(&ids[0])?, lab.guest(&ids[1])?];
    let link = from_outside(&lab, &guests, &made, public, private)?;
    between(&guests, private)?;
    out_by_the_nat_gateway(&lab, &guests[1], &made, public)?;
    take_down(&lab, &made, &ids)?;

    eventually("no network is left", || Ok(lab.agent.networks()?.is_empty()))?;
    let pool = Ipv4Addr::from_bits(public.to_bits() & 0xffff_ff00).to_string();
    let pool = pool.trim_end_matches('0');
    let host = Place::here()?;
    for what in ["ip -oneline link", "ip route show table all", "ip -oneline address"] {
        let listed = host.run(what)?;
        let left: Vec<&str> =
            listed.lines().filter(|line| line.contains(&link) || line.contains(pool)).collect();
        ensure!(left.is_empty(), "of {what} is left: {left:?}");
    }
    Ok(())
}

/// `aws ec2` with these words. The answer comes as text.
fn aws(lab: &Lab, words: &str) -> Result<String> {
    innkeeper_tests::aws::ec2(&lab.agent, words)
}

fn make(lab: &Lab) -> Result<Made> {
    let aws = |words: &str| aws(lab, words);
    let vpc = aws("create-vpc --cidr-block 10.0.0.0/16 --query Vpc.VpcId")?;
    let subnet = |number: u8| {
        aws(&format!("create-subnet --vpc-id {vpc} --cidr-block 10.0.{number}.0/24 --query Subnet.SubnetId"))
    };
    let subnets = [subnet(0)?, subnet(1)?];
    let gateway = aws("create-internet-gateway --query InternetGateway.InternetGatewayId")?;
    aws(&format!("attach-internet-gateway --vpc-id {vpc} --internet-gateway-id {gateway}"))?;
    let table = |subnet: &str, target: &str| -> Result<String> {
        let table = aws(&format!("create-route-table --vpc-id {vpc} --query RouteTable.RouteTableId"))?;
        let route = format!("create-route --route-table-id {table} --destination-cidr-block 0.0.0.0/0");
        ensure!(aws(&format!("{route} {target}"))? == "True");
        aws(&format!("associate-route-table --subnet-id {subnet} --route-table-id {table}"))?;
        Ok(table)
    };
    let public_table = table(&subnets[0], &format!("--gateway-id {gateway}"))?;
    aws(&format!("modify-subnet-attribute --subnet-id {} --map-public-ip-on-launch", subnets[0]))?;

    let group = |name: &str| {
        aws(&format!(
            "create-security-group --group-name {name} --description {name} --vpc-id {vpc} --query GroupId"
        ))
    };
    let groups = [group("public")?, group("private")?];
    let allow =
        |group: &str, rule: &str| aws(&format!("authorize-security-group-ingress --group-id {group} {rule}"));
    allow(&groups[0], &format!("--protocol tcp --port {ALLOWED} --cidr 0.0.0.0/0"))?;
    allow(&groups[0], "--protocol icmp --port -1 --cidr 0.0.0.0/0")?;
    allow(&groups[1], &format!("--protocol tcp --port {ALLOWED} --source-group {}", groups[0]))?;

    let allocation = aws("allocate-address --domain vpc --query AllocationId")?;
    let nat = aws(&format!(
        "create-nat-gateway --subnet-id {} --allocation-id {allocation} --query NatGateway.NatGatewayId",
        subnets[0]
    ))?;
    aws(&format!("wait nat-gateway-available --nat-gateway-ids {nat}"))?;
    let elastic =
        aws(&format!("describe-addresses --allocation-ids {allocation} --query Addresses[].PublicIp"))?;
    let private_table = table(&subnets[1], &format!("--nat-gateway-id {nat}"))?;
    let (tables, nat) = ([public_table, private_table], (nat, elastic.parse()?));
    Ok(Made { vpc, subnets, gateway, tables, groups, allocation, nat })
}

/// The host gets to the public instance as its group says, and to the private one by no way. Returns its link to the
/// VPC.
fn from_outside(
    lab: &Lab,
    guests: &[Guest; 2],
    made: &Made,
    public: Ipv4Addr,
    private: Ipv4Addr,
) -> Result<String> {
    let (host, elastic) = (Place::here()?, made.nat.1);
    let _servers: Vec<_> = [ALLOWED, OTHER]
        .iter()
        .flat_map(|port| guests.iter().map(|guest| guest.serve_tcp(*port)))
        .collect::<Result<_>>()?;
    host.connect(public, ALLOWED, PATIENCE)?.connected()?.echo(b"from the host")?;
    ensure!(matches!(host.connect(public, OTHER, SILENCE)?, Attempt::TimedOut));
    ensure!(host.ping(public)?, "no ping gets through");
    for port in [ALLOWED, OTHER] {
        ensure!(matches!(host.connect(elastic, port, SILENCE)?, Attempt::TimedOut));
    }

    // The host puts it on the VPC's link, as if it knew the way. What is for the private one is dropped there, even if
    // its group allows it.
    let opened = OPENED.to_string();
    lab.rule("AuthorizeSecurityGroupIngress", &made.groups[1], ("tcp", &opened), "0.0.0.0/0")?;
    // Nobody serves there, and says so.
    eventually("the private one is open", || {
        Ok(matches!(guests[0].connect(private, OPENED, SILENCE / 5)?, Attempt::Refused))
    })?;
    let link = host_link(&host, public)?;
    let neighbours = host.run(&format!("ip neigh show dev {link}"))?;
    let other_end = neighbours.split("lladdr ").nth(1).and_then(|rest| rest.split_whitespace().next());
    let other_end: Mac = other_end.with_context(|| format!("no neighbour: {neighbours}"))?.parse()?;
    let own = host.interfaces()?.into_iter().find(|(name, _)| *name == link).context("no link")?.1;
    let captures = [guests[0].capture("eth0")?, guests[1].capture("eth0")?];
    let from = SocketAddrV4::new(host_address(public), 40001);
    for (to, port) in [(private, OPENED), (private, ALLOWED), (elastic, OPENED), (public, ALLOWED)] {
        let syn = frame::tcp(from, SocketAddrV4::new(to, port), 1, 2);
        let packet = frame::ipv4(*from.ip(), to, TCP, &syn);
        host.send_frame(&link, &frame::ethernet(other_end, own, IPV4, &packet))?;
    }
    let is_from_host = |bytes: &[u8]| {
        let packet = frame::parse_ethernet(bytes).and_then(|(_, _, _, packet)| frame::parse_ipv4(packet));
        packet.is_some_and(|(source, ..)| source == *from.ip())
    };
    // That to the public one came last, and shows that such packets come.
    captures[0].wait_for(|frame| is_from_host(&frame.bytes), PATIENCE)?;
    guests[0].connect(private, ALLOWED, PATIENCE)?.connected()?.echo(b"between")?;
    captures[1].wait_for(|_| true, PATIENCE).context("the capture is blind")?;
    let frames = captures[1].frames();
    ensure!(!frames.iter().any(|frame| is_from_host(&frame.bytes)), "{frames:x?}");
    lab.rule("RevokeSecurityGroupIngress", &made.groups[1], ("tcp", &opened), "0.0.0.0/0")?;
    Ok(link)
}

/// The public instance gets to the private one as its group says.
fn between(guests: &[Guest; 2], private: Ipv4Addr) -> Result<()> {
    let _servers = [guests[1].serve_tcp(ALLOWED)?, guests[1].serve_tcp(OTHER)?];
    guests[0].connect(private, ALLOWED, PATIENCE)?.connected()?.echo(b"from the public one")?;
    ensure!(matches!(guests[0].connect(private, OTHER, SILENCE)?, Attempt::TimedOut));
    ensure!(!guests[0].ping(private)?, "the private one is pinged");
    Ok(())
}

/// The private instance gets out as the NAT gateway, until there is no route to it.
fn out_by_the_nat_gateway(lab: &Lab, guest: &Guest, made: &Made, public: Ipv4Addr) -> Result<()> {
    let host = Place::here()?;
    let (world, datagrams) = (host.serve_tcp(0)?, host.serve_udp(0)?);
    let address = host_address(public);
    let mut connection = guest.connect(address, world.port(), PATIENCE)?.connected()?;
    connection.echo(b"out")?;
    ensure!(guest.udp(address, datagrams.port(), b"out", PATIENCE)?.as_deref() == Some(&b"out"[..]));
    ensure!(guest.ping(address)?, "no ping gets out");
    for server in [&world, &datagrams] {
        let seen = server.seen();
        ensure!(!seen.is_empty() && seen.iter().all(|peer| peer.ip() == made.nat.1), "{seen:?}");
    }
    let route = format!("--route-table-id {} --destination-cidr-block 0.0.0.0/0", made.tables[1]);
    aws(lab, &format!("delete-route {route}"))?;
    eventually("nobody gets out", || {
        Ok(!matches!(guest.connect(address, world.port(), SILENCE)?, Attempt::Connected(_)))
    })?;
    let before = datagrams.seen().len();
    ensure!(guest.udp(address, datagrams.port(), b"out", SILENCE)?.is_none());
    ensure!(datagrams.seen().len() == before, "it gets out");
    connection.stream().set_read_timeout(Some(SILENCE))?;
    ensure!(connection.echo(b"still out?").is_err(), "a connection goes on without a route");
    Ok(())
}

/// Deletes everything, and tries what is too early.
fn take_down(lab: &Lab, made: &Made, ids: &[String; 2]) -> Result<()> {
    let aws = |words: &str| aws(lab, words);
    let too_early = |words: &str| -> Result<()> {
        let error = aws(words).err().with_context(|| format!("{words} is not refused"))?.to_string();
        ensure!(error.contains("(DependencyViolation)"), "{words}: {error}");
        Ok(())
    };
    let Made { vpc, subnets, gateway, tables, groups, allocation, nat } = made;
    too_early(&format!("delete-subnet --subnet-id {}", subnets[1]))?;
    too_early(&format!("detach-internet-gateway --internet-gateway-id {gateway} --vpc-id {vpc}"))?;
    aws(&format!("terminate-instances --instance-ids {} {}", ids[0], ids[1]))?;
    aws(&format!("wait instance-terminated --instance-ids {} {}", ids[0], ids[1]))?;
    too_early(&format!("delete-security-group --group-id {}", groups[0]))?;
    for group in groups.iter().rev() {
        aws(&format!("delete-security-group --group-id {group}"))?;
    }
    aws(&format!("delete-nat-gateway --nat-gateway-id {}", nat.0))?;
    aws(&format!("wait nat-gateway-deleted --nat-gateway-ids {}", nat.0))?;
    aws(&format!("release-address --allocation-id {allocation}"))?;
    too_early(&format!("delete-route-table --route-table-id {}", tables[0]))?;
    for subnet in subnets {
        aws(&format!("delete-subnet --subnet-id {subnet}"))?;
    }
    for table in tables {
        aws(&format!("delete-route-table --route-table-id {table}"))?;
    }
    too_early(&format!("delete-vpc --vpc-id {vpc}"))?;
    aws(&format!("detach-internet-gateway --internet-gateway-id {gateway} --vpc-id {vpc}"))?;
    aws(&format!("delete-internet-gateway --internet-gateway-id {gateway}"))?;
    aws(&format!("delete-vpc --vpc-id {vpc}"))?;
    for (left, query) in [
        (format!("describe-subnets --filters Name=vpc-id,Values={vpc}"), "Subnets"),
        (format!("describe-network-interfaces --filters Name=vpc-id,Values={vpc}"), "NetworkInterfaces"),
        (format!("describe-security-groups --filters Name=vpc-id,Values={vpc}"), "SecurityGroups"),
        ("describe-addresses".to_owned(), "Addresses"),
    ] {
        let found = aws(&format!("{left} --query {query}"))?;
        ensure!(found.is_empty(), "{found}");
    }
    Ok(())
}
