//! What every VPC has: names (RFC 1035), the time (RFC 4330) and the API, whatever groups say.

use std::collections::BTreeSet;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail, ensure};
use innkeeper_tests::agent::REGION;
use innkeeper_tests::ec2::texts;
use innkeeper_tests::network::Place;

use super::{Lab, PATIENCE, eventually};

/// Record types: an address, and what an address is called.
const A: u16 = 1;
const PTR: u16 = 12;
/// What an answer says: that all is well, and that there is no such name.
const NO_ERROR: u8 = 0;
const NO_SUCH_NAME: u8 = 3;
/// Where the API is in each VPC.
const API: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 252);
/// How long a service in the same VPC may take.
const ANSWER: Duration = Duration::from_secs(5);

#[test]
fn instances_find_each_other_by_name() -> Result<()> {
    let lab = Lab::start()?;
    let ids = [lab.launch()?, lab.launch()?];
    let (asks, _answers) = (lab.guest(&ids[0])?, lab.guest(&ids[1])?);
    let private = lab.address(&ids[1], "privateIpAddress")?;
    let name = |kind: &str| lab.described(&ids[1], kind)?.with_context(|| format!("no {kind}"));
    let (private_name, public_name) = (name("privateDnsName")?, name("dnsName")?);
    ensure!(private_name.ends_with(".ec2.internal"), "{private_name}");
    ensure!(public_name.ends_with(".compute-1.amazonaws.com"), "{public_name}");

    let server = asks.lease("eth0")?.dns.first().copied().context("a name server")?;
    let address = (NO_ERROR, vec![private.to_string()]);
    let back = (NO_ERROR, vec![private_name.clone()]);
    // By the address of the VPC's own, and by that which is the same in all of them.
    for server in [server, Ipv4Addr::new(169, 254, 169, 253)] {
        ensure!(ask(&asks, server, &private_name, A)? == address);
        ensure!(ask(&asks, server, &private_name.to_uppercase(), A)? == address);
        // From inside, also the public name means the private address.
        ensure!(ask(&asks, server, &public_name, A)? == address);
        ensure!(ask(&asks, server, &reversed(private), PTR)? == back);
    }
    let nobody = "ip-172-31-255-254.ec2.internal";
    ensure!(ask(&asks, server, nobody, A)? == (NO_SUCH_NAME, vec![]));
    ensure!(ask(&asks, server, "innkeeper.ec2.internal", A)? == (NO_SUCH_NAME, vec![]));

    // A name goes with its instance.
    lab.end("TerminateInstances", &ids[1..], "terminated")?;
    eventually("a name has gone with its instance", || {
        Ok(ask(&asks, server, &private_name, A)? == (NO_SUCH_NAME, vec![]))
    })?;
    lab.end("TerminateInstances", &ids[..1], "terminated")
}

#[test]
fn services_are_there_whatever_groups_allow() -> Result<()> {
    let lab = Lab::start()?;
    let other = lab.launch()?;
    let vpc = lab.described(&other, "vpcId")?.context("a VPC")?;
    let group = [("GroupName", "closed"), ("GroupDescription", "nothing"), ("VpcId", &vpc)];
    let group = lab.one("CreateSecurityGroup", &group, "groupId")?;
    let all = [("IpPermissions.1.IpProtocol", "-1"), ("IpPermissions.1.IpRanges.1.CidrIp", "0.0.0.0/0")];
    lab.client.ask("RevokeSecurityGroupEgress", &[&[("GroupId", group.as_str())][..], &all].concat())?;
    let ids = [other, lab.launch_with(&[("SecurityGroupId.1", &group)])?];
    let (other, closed) = (lab.guest(&ids[0])?, lab.guest(&ids[1])?);
    let private = lab.address(&ids[0], "privateIpAddress")?;
    let open = lab.group(&ids[0])?;
    lab.rule("AuthorizeSecurityGroupIngress", &open, ("-1", "-1"), "0.0.0.0/0")?;
    let public = lab.address(&ids[0], "ipAddress")?;
    let host = Place::here()?;
    eventually("everybody is let in", || host.ping(public))?;
    ensure!(!closed.ping(private)?, "the group allows something");

    let server = closed.lease("eth0")?.dns.first().copied().context("a name server")?;
    let name = lab.described(&ids[0], "privateDnsName")?.context("a name")?;
    ensure!(ask(&closed, server, &name, A)? == (NO_ERROR, vec![private.to_string()]));
    for guest in [&closed, &other] {
        let described = ask_api(&lab, guest, "DescribeInstances")?;
        ensure!(texts(&described, "instanceId").len() == 2, "{described}");
        let before = since_1900()?;
        let told = time(guest)?;
        let after = since_1900()?;
        // It is the same clock; the fraction is rounded.
        ensure!((before - 0.01..after + 0.01).contains(&told), "{told} is not within {before} and {after}");
    }
    lab.end("TerminateInstances", &ids, "terminated")
}

#[test]
fn guests_ask_the_api() -> Result<()> {
    let lab = Lab::start()?;
    let ids = [lab.launch()?, lab.launch()?];
    let (guest, other) = (lab.guest(&ids[0])?, lab.guest(&ids[1])?);
    let server = guest.lease("eth0")?.dns.first().copied().context("a name server")?;
    for service in ["ec2", "iam", "sts"] {
        let name = format!("{service}.{REGION}.innkeeper.internal");
        ensure!(ask(&guest, server, &name, A)? == (NO_ERROR, vec![API.to_string()]), "{name}");
    }
    ensure!(ask(&guest, server, "s3.innkeeper.internal", A)? == (NO_SUCH_NAME, vec![]));

    let described = ask_api(&lab, &guest, "DescribeInstances")?;
    let different: BTreeSet<String> = texts(&described, "instanceId").into_iter().collect();
    ensure!(different == ids.iter().cloned().collect(), "{described}");
    let unsigned =
        guest.inside(|| say(&mut connect()?, b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"))?;
    ensure!(
        unsigned.starts_with("HTTP/1.1 403 ") && unsigned.contains("MissingAuthenticationToken"),
        "{unsigned}"
    );

    // One that takes all that it can get leaves enough for others, and takes nothing of the operator's.
    // Those that are refused may be reset before one has them.
    let held: Vec<TcpStream> = guest.inside(|| Ok((0..100).filter_map(|_| connect().ok()).collect()))?;
    ensure!(ask_api(&lab, &other, "DescribeInstances")?.contains(&ids[0]), "the other one is not answered");
    ensure!(lab.client.ask("DescribeInstances", &[])?.contains(&ids[0]));
    let mut open = 0;
    for mut connection in held {
        connection.set_read_timeout(Some(Duration::from_millis(10)))?;
        open +=
            usize::from(connection.read(&mut [0]).is_err_and(|error| error.kind() == ErrorKind::WouldBlock));
    }
    // Its last one may have counted still.
    ensure!((1..=16).contains(&open), "it has {open} connections");
    eventually("it is answered again", || Ok(ask_api(&lab, &guest, "DescribeInstances").is_ok()))?;

    // The next daemon answers too.
    let Lab { mut agent, image, .. } = lab;
    agent.kill()?;
    agent.resume()?;
    let client = agent.client()?;
    let lab = Lab { agent, client, image };
    eventually("the next daemon answers", || Ok(ask_api(&lab, &guest, "DescribeInstances").is_ok()))?;
    lab.end("TerminateInstances", &ids, "terminated")
}

/// Asks the API from inside of a VPC.
fn ask_api(lab: &Lab, guest: &Place, action: &str) -> Result<String> {
    let client = lab.agent.client_at(&format!("http://{API}"))?;
    guest.inside(|| client.ask(action, &[]))
}

fn connect() -> Result<TcpStream> {
    Ok(TcpStream::connect_timeout(&(API, 80).into(), ANSWER)?)
}

/// Says something; returns what comes until the connection ends.
fn say(stream: &mut TcpStream, text: &[u8]) -> Result<String> {
    stream.set_read_timeout(Some(ANSWER))?;
    stream.write_all(text)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

/// The name that stands for an address where its name is asked for.
fn reversed(address: Ipv4Addr) -> String {
    let [a, b, c, d] = address.octets();
    format!("{d}.{c}.{b}.{a}.in-addr.arpa")
}

/// Asks for a record of this type; returns the answer's code and the records' values.
fn ask(place: &Place, server: Ipv4Addr, name: &str, kind: u16) -> Result<(u8, Vec<String>)> {
    // An id, that the server is to ask others too, and one question.
    let mut question = vec![0x1a, 0x2b, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        question.push(u8::try_from(label.len())?);
        question.extend(label.as_bytes());
    }
    question.push(0);
    question.extend([kind.to_be_bytes(), [0, 1]].concat());
    let answer = place.udp(server, 53, &question, ANSWER)?;
    let answer = answer.with_context(|| format!("{server} says nothing about {name}"))?;
    read_answer(&answer, &question, kind).with_context(|| format!("an answer about {name}: {answer:x?}"))
}

fn read_answer(answer: &[u8], question: &[u8], kind: u16) -> Result<(u8, Vec<String>)> {
    ensure!(answer.len() >= question.len() && answer[..2] == question[..2], "to another question");
    ensure!(answer[2] & 0x80 != 0 && answer[12..question.len()] == question[12..], "no answer to it");
    let count = u16::from_be_bytes([answer[6], answer[7]]);
    let (mut at, mut values) = (question.len(), Vec::new());
    for _ in 0..count {
        (_, at) = read_name(answer, at)?;
        let head = answer.get(at..at + 10).context("a record that is cut")?;
        let length = usize::from(u16::from_be_bytes([head[8], head[9]]));
        let value = answer.get(at + 10..at + 10 + length).context("a record that is cut")?;
        ensure!(head[..4] == [kind.to_be_bytes(), [0, 1]].concat(), "a record of another type");
        values.push(match kind {
            A => Ipv4Addr::from(<[u8; 4]>::try_from(value)?).to_string(),
            _ => read_name(answer, at + 10)?.0,
        });
        at += 10 + length;
    }
    Ok((answer[3] & 15, values))
}

/// A name, and where it ends. Names may end as another one does that has been there already.
fn read_name(message: &[u8], mut at: usize) -> Result<(String, usize)> {
    let (mut labels, mut end) = (Vec::new(), None);
    for _ in 0..128 {
        match *message.get(at..).unwrap_or_default() {
            [0, ..] => return Ok((labels.join("."), end.unwrap_or(at + 1))),
            [high @ 0xc0..=0xff, low, ..] => {
                end = end.or(Some(at + 2));
                at = usize::from(u16::from_be_bytes([high & 0x3f, low]));
            }
            [length, ref rest @ ..] if rest.len() >= usize::from(length) => {
                labels.push(std::str::from_utf8(&rest[..length.into()])?.to_owned());
                at += 1 + usize::from(length);
            }
            _ => break,
        }
    }
    bail!("a name without an end")
}

/// Asks for the time, in seconds since 1900.
fn time(place: &Place) -> Result<f64> {
    // Version 4, a client, and what it calls its own time.
    let mut request = [0; 48];
    request[0] = 0x23;
    request[40..].copy_from_slice(b"whenever");
    let answer = place.udp(Ipv4Addr::new(169, 254, 169, 123), 123, &request, PATIENCE)?;
    let answer = answer.context("nobody tells the time")?;
    ensure!(answer.len() == 48 && answer[0] == 0x24 && answer[24..32] == *b"whenever", "{answer:x?}");
    ensure!((1..16).contains(&answer[1]), "its clock is not set: {answer:x?}");
    let transmitted = u64::from_be_bytes(answer[40..].try_into()?);
    Ok(transmitted as f64 / f64::powi(2.0, 32))
}

fn since_1900() -> Result<f64> {
    Ok(SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_secs_f64() + 2_208_988_800.0)
}
