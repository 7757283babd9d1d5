//! Elastic addresses: who they stand for.

use std::io::{Read, Write};
use std::net::Ipv4Addr;

use anyhow::{Context, Result, ensure};
use innkeeper_tests::network::Place;
use innkeeper_tests::network::echo::Attempt;
use innkeeper_tests::network::frame::{TCP, parse_ethernet, parse_ipv4};
use innkeeper_tests::network::packets::Frame;

use super::{Lab, PATIENCE, SILENCE, eventually, host_address, host_link};

/// The port of a server, which everybody may connect to, and of one that only the host may.
const OPEN: u16 = 7000;
const TRACKED: u16 = 7001;

#[test]
fn an_elastic_address_stays_and_then_goes_to_another() -> Result<()> {
    let lab = Lab::start()?;
    let ids = [lab.launch()?, lab.launch()?];
    let host = Place::here()?;
    let allocated = lab.client.ask("AllocateAddress", &[("Domain", "vpc")])?;
    let text = |name| innkeeper_tests::ec2::texts(&allocated, name).pop().context(name);
    let (elastic, allocation): (Ipv4Addr, _) = (text("publicIp")?.parse()?, text("allocationId")?);
    let group = lab.group(&ids[0])?;
    let only_host = format!("{}/32", host_address(elastic));
    for (port, from) in [(OPEN, "0.0.0.0/0"), (TRACKED, only_host.as_str())] {
        lab.rule("AuthorizeSecurityGroupIngress", &group, ("tcp", &port.to_string()), from)?;
    }
    let associate = |id: &str, may_take: &str| {
        let whom =
            [("AllocationId", allocation.as_str()), ("InstanceId", id), ("AllowReassociation", may_take)];
        lab.client.send("AssociateAddress", &whom)
    };

    // In the place of the automatic address, which is nobody's then.
    let automatic = lab.address(&ids[0], "ipAddress")?;
    let (status, answer) = associate(&ids[0], "false")?;
    ensure!(status == 200, "{answer}");
    ensure!(lab.address(&ids[0], "ipAddress")? == elastic && automatic != elastic);
    // What is nobody's here may be somebody's out there, who answers too.
    let reaches = |guest: &Place, address: Ipv4Addr| -> Result<bool> {
        let server = guest.serve_tcp(OPEN)?;
        if let Attempt::Connected(mut connection) = host.connect(address, OPEN, SILENCE / 5)? {
            // Who echoes has seen who asks.
            let _ = connection.echo(b"who is there?");
        }
        Ok(!server.seen().is_empty())
    };
    let (guest, other) = (lab.guest(&ids[0])?, lab.guest(&ids[1])?);
    eventually("the address leads to its instance", || reaches(&guest, elastic))?;
    ensure!(!reaches(&guest, automatic)?, "it has two public addresses");

    lab.end("StopInstances", &ids[..1], "stopped")?;
    ensure!(lab.address(&ids[0], "ipAddress")? == elastic);
    ensure!(!reaches(&other, elastic)?, "the address leads to another instance");
    lab.end("StartInstances", &ids[..1], "running")?;
    ensure!(lab.address(&ids[0], "ipAddress")? == elastic);
    let guests = [lab.guest(&ids[0])?, other];
    eventually("the address leads to its instance again", || reaches(&guests[0], elastic))?;

    // Those whom the one has known stay his, and nobody else is to hear of them.
    let mut old = Vec::new();
    for port in [OPEN, TRACKED] {
        let listener = guests[0].listen(port)?;
        let client = host.connect(elastic, port, PATIENCE)?.connected()?.into_stream();
        let mut server = listener.accept()?.0;
        server.set_read_timeout(Some(PATIENCE))?;
        (&client).write_all(b"before")?;
        server.read_exact(&mut [0; 6])?;
        old.push((client, server));
    }
    let (status, answer) = associate(&ids[1], "false")?;
    ensure!(status == 400 && answer.contains("Resource.AlreadyAssociated"), "{answer}");
    ensure!(lab.address(&ids[0], "ipAddress")? == elastic);
    let (status, answer) = associate(&ids[1], "true")?;
    ensure!(status == 200, "{answer}");
    ensure!(lab.address(&ids[1], "ipAddress")? == elastic);
    ensure!(lab.described(&ids[0], "ipAddress")? != Some(elastic.to_string()));
    eventually("the address leads to the other instance", || reaches(&guests[1], elastic))?;

    let link = host_link(&host, elastic)?;
    let captures = [guests[0].capture("eth0")?, guests[1].capture("eth0")?, host.capture(&link)?];
    for (client, server) in &mut old {
        client.write_all(b"from outside")?;
        server.write_all(b"from inside")?;
    }
    let known: Vec<u16> =
        old.iter().map(|(client, _)| Ok(client.local_addr()?.port())).collect::<Result<_>>()?;
    // The host has sent it, the first instance too, and it has got nowhere; not even when TCP has said it again.
    let of_old = |frame: &&Frame| {
        tcp_ports(&frame.bytes).is_some_and(|ports| ports.iter().any(|port| known.contains(port)))
    };
    let sent =
        |at: usize| captures[at].frames().iter().filter(of_old).filter(|frame| frame.is_outgoing).count();
    eventually("TCP has said it again", || Ok(sent(0) >= 4 && sent(2) >= 4))?;
    // It would have come before this does.
    ensure!(reaches(&guests[1], elastic)?);
    for (capture, whose) in captures.iter().zip(["first", "second", "host's"]) {
        let frames = capture.frames();
        let come: Vec<_> = frames.iter().filter(of_old).filter(|frame| !frame.is_outgoing).collect();
        ensure!(come.is_empty(), "the {whose} gets {come:x?}");
    }
    // And the capture is not blind.
    let is_new = |frame: &Frame| tcp_ports(&frame.bytes).is_some_and(|ports| ports.contains(&OPEN));
    captures[1].wait_for(|frame| !frame.is_outgoing && is_new(frame), PATIENCE)?;
    for (client, _) in &mut old {
        client.set_read_timeout(Some(SILENCE))?;
        ensure!(client.read(&mut [0; 16]).is_err(), "an old connection goes on");
    }
    drop(old);

    // Who has lost it has an automatic one again, as at the launch.
    let automatic = lab.address(&ids[0], "ipAddress")?;
    eventually("an automatic address leads to its instance", || reaches(&guests[0], automatic))?;
    lab.end("TerminateInstances", &ids, "terminated")?;
    let described = lab.client.ask("DescribeAddresses", &[])?;
    ensure!(described.contains(&allocation) && !described.contains("associationId"), "{described}");
    lab.client.ask("ReleaseAddress", &[("AllocationId", &allocation)]).map(drop)
}

/// Both ports of a TCP segment.
fn tcp_ports(frame: &[u8]) -> Option<[u16; 2]> {
    let (_, _, _, packet) = parse_ethernet(frame)?;
    let (_, _, _, segment) = parse_ipv4(packet).filter(|(_, _, protocol, _)| *protocol == TCP)?;
    let ports = segment.first_chunk::<4>()?;
    Some([u16::from_be_bytes([ports[0], ports[1]]), u16::from_be_bytes([ports[2], ports[3]])])
}
