//! How soon changes act, and on whom: connections that are tracked live on after their rule (EC2 User Guide, "Security
//! group connection tracking").

use std::io::Read;
use std::net::{Ipv4Addr, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use innkeeper_tests::network::Place;
use innkeeper_tests::network::echo::{Attempt, Connection};

use super::{Lab, PATIENCE, SILENCE, eventually, host_address};

/// How soon a change is to act, as a rule: half of them may take longer on a machine that is busy.
const PROMISED: Duration = Duration::from_millis(200);
/// How soon each of them is to act.
const SOON: Duration = Duration::from_secs(1);
/// Between two datagrams of a probe.
const PACE: Duration = Duration::from_millis(2);
/// A probe that has been silent for so long is cut.
const CUT: Duration = Duration::from_millis(250);
const ROUNDS: usize = 5;

const EVERYBODY: &str = "0.0.0.0/0";
const ALLOW: &str = "AuthorizeSecurityGroupIngress";
const REVOKE: &str = "RevokeSecurityGroupIngress";

#[test]
fn changes_of_rules_and_acls_act_soon() -> Result<()> {
    let lab = Lab::start()?;
    let ids = [lab.launch()?];
    let guest = lab.guest(&ids[0])?;
    let (public, group) = (lab.address(&ids[0], "ipAddress")?, lab.group(&ids[0])?);
    let acl = default_acl(&lab)?;
    let probe = Probe::new(&Place::here()?, public, (&guest, 7000))?;
    let mut figures = [const { Vec::new() }; 4];
    for _ in 0..ROUNDS {
        // Nobody is let in at first, and again after each round.
        ensure!(!probe.beat()?, "somebody was let in");
        let changed = lab.rule(ALLOW, &group, ("udp", "7000"), EVERYBODY)?;
        figures[0].push(probe.passes_after(changed)?);
        let changed = deny(&lab, &acl, "udp", "7000")?;
        figures[1].push(probe.is_cut_after(changed)?);
        let changed = permit(&lab, &acl)?;
        figures[2].push(probe.passes_after(changed)?);
        // It is not tracked, as everybody may send, and be answered.
        let changed = lab.rule(REVOKE, &group, ("udp", "7000"), EVERYBODY)?;
        figures[3].push(probe.is_cut_after(changed)?);
    }
    let names = ["a rule is added", "an ACL denies", "an ACL's entry is deleted", "a rule is revoked"];
    for (name, figures) in names.iter().zip(&mut figures) {
        figures.sort();
        let (median, most) = (figures[ROUNDS / 2], figures[ROUNDS - 1]);
        println!("{name:25} acts after {median:.1?} (median), {most:.1?} at most");
        ensure!(median <= PROMISED, "when {name}, it acts after {median:.1?}: {figures:.1?}");
    }
    lab.end("TerminateInstances", &ids, "terminated")
}

#[test]
fn a_tracked_connection_outlives_its_rule_and_no_acl() -> Result<()> {
    let lab = Lab::start()?;
    let ids = [lab.launch()?];
    let guest = lab.guest(&ids[0])?;
    let (public, group) = (lab.address(&ids[0], "ipAddress")?, lab.group(&ids[0])?);
    let (host, acl) = (Place::here()?, default_acl(&lab)?);
    let _servers = [guest.serve_tcp(7001)?, guest.serve_tcp(7002)?];
    let only_host = format!("{}/32", host_address(public));
    let rules = [("7001", only_host.as_str()), ("7002", EVERYBODY)];
    for (port, from) in rules {
        lab.rule(ALLOW, &group, ("tcp", port), from)?;
    }
    let mut tracked = connect(&host, public, 7001)?;
    let mut untracked = connect(&host, public, 7002)?;
    tracked.echo(b"of the host only")?;
    untracked.echo(b"of everybody")?;

    for (port, from) in rules {
        let changed = lab.rule(REVOKE, &group, ("tcp", port), from)?;
        if port == "7002" {
            let after = cut_after(&mut untracked, changed)?;
            println!("a connection that is not tracked is cut after {after:.1?}");
        }
        eventually("nobody new is let in", || {
            Ok(matches!(host.connect(public, port.parse()?, SILENCE)?, Attempt::TimedOut))
        })?;
    }
    tracked.echo(b"tracked")?;
    let changed = deny(&lab, &acl, "tcp", "7001")?;
    println!("a tracked connection is cut by an ACL after {:.1?}", cut_after(&mut tracked, changed)?);
    // TCP has not given up: what was said meanwhile comes when the ACL lets it.
    permit(&lab, &acl)?;
    tracked.stream().set_read_timeout(Some(PATIENCE))?;
    tracked.stream().read_exact(&mut [0])?;
    tracked.echo(b"on it goes")?;

    // An ACL looks at what leaves too, as does nobody else with a tracked connection.
    let egress = entry(&acl, "true", "50");
    let changed = change_acl(&lab, "CreateNetworkAclEntry", &[&egress[..], &denied("tcp")].concat())?;
    println!("and by one that lets nothing out after {:.1?}", cut_after(&mut tracked, changed)?);
    lab.end("TerminateInstances", &ids, "terminated")
}

/// Datagrams from one place to another.
struct Probe {
    sender: UdpSocket,
    receiver: UdpSocket,
}

impl Probe {
    fn new(from: &Place, address: Ipv4Addr, to: (&Place, u16)) -> Result<Self> {
        let (place, port) = to;
        let receiver = place.inside(|| Ok(UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port))?))?;
        receiver.set_read_timeout(Some(PACE))?;
        let sender = from.inside(|| Ok(UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?))?;
        sender.connect((address, port))?;
        Ok(Self { sender, receiver })
    }

    /// Sends one, and says whether any has come until it was time for the next.
    fn beat(&self) -> Result<bool> {
        self.sender.send(b"probe")?;
        let mut has_come = false;
        while self.receiver.recv(&mut [0; 16]).is_ok() {
            has_come = true;
        }
        Ok(has_come)
    }

    /// How long after a change the first one arrives.
    fn passes_after(&self, changed: Instant) -> Result<Duration> {
        while !self.beat()? {
            ensure!(changed.elapsed() < SOON, "nothing passes {:?} after the change", changed.elapsed());
        }
        Ok(changed.elapsed())
    }

    /// How long after a change the last one arrives.
    fn is_cut_after(&self, changed: Instant) -> Result<Duration> {
        let mut last = changed;
        while last.elapsed() < CUT {
            if self.beat()? {
                last = Instant::now();
            }
            ensure!(last - changed < SOON, "it is not cut {:?} after the change", changed.elapsed());
        }
        Ok(last - changed)
    }
}

/// Connects as soon as that is allowed.
fn connect(from: &Place, address: Ipv4Addr, port: u16) -> Result<Connection> {
    let mut made = None;
    eventually("somebody is let in", || {
        if let Attempt::Connected(connection) = from.connect(address, port, SILENCE / 5)? {
            made = Some(connection);
        }
        Ok(made.is_some())
    })?;
    made.ok_or_else(|| anyhow::anyhow!("no connection"))
}

/// How long after a change the last echo has come. One byte's echo is still to come.
fn cut_after(connection: &mut Connection, changed: Instant) -> Result<Duration> {
    connection.stream().set_read_timeout(Some(CUT))?;
    let mut last = changed;
    while connection.echo(b".").is_ok() {
        last = Instant::now();
        ensure!(last - changed < SOON, "it is not cut {:?} after the change", last - changed);
        std::thread::sleep(PACE);
    }
    Ok(last - changed)
}

/// The network ACL of all subnets of the default VPC.
fn default_acl(lab: &Lab) -> Result<String> {
    lab.one(
        "DescribeNetworkAcls",
        &[("Filter.1.Name", "default"), ("Filter.1.Value.1", "true")],
        "networkAclId",
    )
}

fn entry<'t>(acl: &'t str, is_egress: &'t str, number: &'t str) -> [(&'t str, &'t str); 3] {
    [("NetworkAclId", acl), ("Egress", is_egress), ("RuleNumber", number)]
}

/// What an entry says that denies all of a protocol to everybody.
fn denied(protocol: &'static str) -> [(&'static str, &'static str); 5] {
    [
        ("Protocol", if protocol == "tcp" { "6" } else { "17" }),
        ("RuleAction", "deny"),
        ("CidrBlock", EVERYBODY),
        ("PortRange.From", "0"),
        ("PortRange.To", "65535"),
    ]
}

fn change_acl(lab: &Lab, action: &str, parameters: &[(&str, &str)]) -> Result<Instant> {
    lab.client.ask(action, parameters)?;
    Ok(Instant::now())
}

/// Denies what enters the subnets for a port.
fn deny(lab: &Lab, acl: &str, protocol: &'static str, port: &str) -> Result<Instant> {
    let [protocol, action, range, ..] = denied(protocol);
    let ports = [("PortRange.From", port), ("PortRange.To", port)];
    let parameters = [&entry(acl, "false", "50")[..], &[protocol, action, range], &ports].concat();
    change_acl(lab, "CreateNetworkAclEntry", &parameters)
}

/// Takes back what [`deny`] did.
fn permit(lab: &Lab, acl: &str) -> Result<Instant> {
    change_acl(lab, "DeleteNetworkAclEntry", &entry(acl, "false", "50"))
}
