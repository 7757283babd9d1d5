//! What changes while an instance runs, and how soon it reads of that: with the next request.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use innkeeper_tests::ec2::texts;
use innkeeper_tests::network::Place;
use innkeeper_tests::network::frame::{TCP, parse_ethernet, parse_ipv4};
use innkeeper_tests::network::packets::{Capture, Frame};
use innkeeper_tests::stand_in::{Lab, eventually};

use super::wire::{Ask, SERVICE, Wire, get, once, put, token};

/// The hops of whatever has no limit of its own.
const USUAL: u8 = 64;

/// What is at a path.
fn read(place: &Place, path: &str) -> Result<String> {
    let answer = once(place, &get(&format!("/latest/{path}")))?;
    Ok(answer.text().with_context(|| path.to_owned())?.to_owned())
}

/// Expects a text at a path below `meta-data`, or that nothing is there.
fn expect(place: &Place, path: &str, expected: Option<&str>) -> Result<()> {
    let answer = once(place, &get(&format!("/latest/meta-data/{path}")))?;
    let found = if answer.status == 404 { None } else { Some(answer.text()?) };
    ensure!(found == expected, "{path} is {found:?}, and not {expected:?}");
    Ok(())
}

#[test]
fn changes_are_read_at_once() -> Result<()> {
    let lab = Lab::start()?;
    let tags = [("MetadataOptions.InstanceMetadataTags", "enabled")];
    let ids = [lab.launch_with(&tags)?];
    let (id, guest) = (&ids[0], lab.guest(&ids[0])?);
    let own = |action: &str, more: &[(&str, &str)]| {
        lab.client.ask(action, &[&[("InstanceId", id.as_str())], more].concat())
    };
    let is = |path: &str, expected: &str| expect(&guest, path, Some(expected));
    let is_gone = |path: &str| expect(&guest, path, None);

    // A volume.
    let zone = lab.described(id, "availabilityZone")?.context("a zone")?;
    let volume = [("AvailabilityZone", zone.as_str()), ("Size", "1")];
    let volume = lab.one("CreateVolume", &volume, "volumeId")?;
    let available = || Ok(lab.client.ask("DescribeVolumes", &[])?.contains("<status>available</status>"));
    eventually("the volume is there", available)?;
    is_gone("block-device-mapping/ebs1")?;
    own("AttachVolume", &[("VolumeId", &volume), ("Device", "/dev/sdg")])?;
    is("block-device-mapping/ebs1", "sdg")?;
    is("block-device-mapping", "ami\nebs1\nroot")?;
    eventually("the volume is attached", || {
        Ok(lab
            .client
            .ask("DescribeVolumes", &[("VolumeId.1", &volume)])?
            .contains("<status>attached</status>"))
    })?;
    lab.client.ask("DetachVolume", &[("VolumeId", &volume)])?;
    eventually("the volume is detached", available)?;
    is("block-device-mapping", "ami\nroot")?;

    // A tag.
    let tag = [("ResourceId.1", id.as_str()), ("Tag.1.Key", "Stage"), ("Tag.1.Value", "first")];
    is("tags/instance", "")?;
    lab.client.ask("CreateTags", &tag)?;
    is("tags/instance", "Stage")?;
    is("tags/instance/Stage", "first")?;
    lab.client.ask("CreateTags", &[tag[0], tag[1], ("Tag.1.Value", "second")])?;
    is("tags/instance/Stage", "second")?;
    lab.client.ask("DeleteTags", &tag[..2])?;
    is_gone("tags/instance/Stage")?;

    // Addresses.
    let allocated = lab.client.ask("AllocateAddress", &[("Domain", "vpc")])?;
    let text = |name| texts(&allocated, name).pop().context(name);
    let (elastic, allocation) = (text("publicIp")?, text("allocationId")?);
    let mac = read(&guest, "meta-data/mac")?;
    let of_interface = |name: &str| format!("network/interfaces/macs/{mac}/{name}");
    let association = [("InstanceId", id.as_str()), ("AllocationId", &allocation)];
    let association = lab.one("AssociateAddress", &association, "associationId")?;
    is("public-ipv4", &elastic)?;
    is(&of_interface("public-ipv4s"), &elastic)?;
    is("public-hostname", &lab.described(id, "dnsName")?.context("a name")?)?;
    lab.client.ask("DisassociateAddress", &[("AssociationId", &association)])?;
    ensure!(read(&guest, "meta-data/public-ipv4")? != elastic);
    let interface = lab.described(id, "networkInterfaceId")?.context("an interface")?;
    let private = lab.described(id, "privateIpAddress")?.context("an address")?;
    let second = "172.31.0.200";
    let more = [("NetworkInterfaceId", interface.as_str()), ("PrivateIpAddress.1", second)];
    lab.client.ask("AssignPrivateIpAddresses", &more)?;
    is(&of_interface("local-ipv4s"), &format!("{private}\n{second}"))?;
    lab.client.ask("UnassignPrivateIpAddresses", &more)?;
    is(&of_interface("local-ipv4s"), &private)?;

    // Groups.
    let group = [("GroupName", "other"), ("GroupDescription", "other")];
    let group = lab.one("CreateSecurityGroup", &group, "groupId")?;
    is("security-groups", "default")?;
    own("ModifyInstanceAttribute", &[("GroupId.1", &group)])?;
    is("security-groups", "other")?;
    is(&of_interface("security-group-ids"), &group)?;

    // Monitoring.
    ensure!(read(&guest, "dynamic/fws/instance-monitoring")? == "disabled");
    lab.client.ask("MonitorInstances", &[("InstanceId.1", id)])?;
    ensure!(read(&guest, "dynamic/fws/instance-monitoring")? == "enabled");

    // Another interface.
    let subnet = lab.described(id, "subnetId")?.context("a subnet")?;
    let made = lab.client.ask("CreateNetworkInterface", &[("SubnetId", &subnet)])?;
    let text = |name| texts(&made, name).into_iter().next().context(name);
    let (interface, other_mac) = (text("networkInterfaceId")?, text("macAddress")?);
    let other = |name: &str| format!("network/interfaces/macs/{other_mac}/{name}");
    is_gone(&other("device-number"))?;
    let attach = [("NetworkInterfaceId", interface.as_str()), ("InstanceId", id), ("DeviceIndex", "1")];
    let attachment = lab.one("AttachNetworkInterface", &attach, "attachmentId")?;
    is(&other("device-number"), "1")?;
    is(&other("interface-id"), &interface)?;
    is(&other("local-ipv4s"), &text("privateIpAddress")?)?;
    // It is the first one's that are the instance's own.
    is("mac", &mac)?;
    is("local-ipv4", &private)?;
    let described = [("NetworkInterfaceId.1", interface.as_str())];
    let status = |wanted: &str| {
        let wanted = format!("<status>{wanted}</status>");
        Ok(lab.client.ask("DescribeNetworkInterfaces", &described)?.contains(&wanted))
    };
    eventually("it is attached", || status("attached"))?;
    // It asks by any of them who it is: now by the second one.
    guest.lease("eth1")?;
    is("instance-id", id)?;
    lab.client.ask("DetachNetworkInterface", &[("AttachmentId", &attachment)])?;
    eventually("it is detached", || status("available"))?;
    guest.lease("eth0")?;
    is_gone(&other("device-number"))?;
    lab.end("TerminateInstances", &ids, "terminated")
}

#[test]
fn what_is_announced_is_read_at_once() -> Result<()> {
    let lab = Lab::start()?;
    let ids = [lab.launch()?];
    let (id, guest) = (ids[0].as_str(), lab.guest(&ids[0])?);
    let is = |path: &str, expected: &str| expect(&guest, path, Some(expected));
    let is_gone = |path: &str| expect(&guest, path, None);

    is("events/maintenance/scheduled", "[]")?;
    let event = [
        ("InstanceId", id),
        ("Code", "system-reboot"),
        ("NotBefore", "2100-01-21T09:00:43Z"),
        ("NotAfter", "2100-01-21T09:17:23Z"),
        ("Description", "a \"scheduled\" reboot"),
    ];
    let event = lab.one("InnkeeperScheduleEvent", &event, "instanceEventId")?;
    let told: serde_json::Value =
        serde_json::from_str(&read(&guest, "meta-data/events/maintenance/scheduled")?)?;
    let expected = serde_json::json!([{
        "NotBefore": "21 Jan 2100 09:00:43 GMT",
        "Code": "system-reboot",
        "Description": "a \"scheduled\" reboot",
        "EventId": event,
        "NotAfter": "21 Jan 2100 09:17:23 GMT",
        "State": "active",
    }]);
    ensure!(told == expected, "{told}");
    is("events/maintenance/history", "[]")?;
    lab.client.ask("InnkeeperCancelEvent", &[("InstanceEventId", &event)])?;
    is("events/maintenance/scheduled", "[]")?;
    let history = |event: &str| -> Result<serde_json::Value> {
        let all: Vec<serde_json::Value> =
            serde_json::from_str(&read(&guest, "meta-data/events/maintenance/history")?)?;
        Ok(all.into_iter().find(|found| found["EventId"] == event).unwrap_or_default())
    };
    let canceled = history(&event)?;
    ensure!(canceled["State"] == "canceled", "{canceled}");
    ensure!(canceled["Description"] == "[Canceled] a \"scheduled\" reboot", "{canceled}");

    // One that is over.
    let event = [
        ("InstanceId", id),
        ("Code", "system-maintenance"),
        ("NotBefore", "2020-01-21T09:00:43Z"),
        ("NotAfter", "2020-01-21T09:17:23Z"),
        ("Description", "long ago"),
    ];
    let event = lab.one("InnkeeperScheduleEvent", &event, "instanceEventId")?;
    let expected = serde_json::json!({
        "NotBefore": "21 Jan 2020 09:00:43 GMT",
        "Code": "system-maintenance",
        "Description": "[Completed] long ago",
        "EventId": event,
        "NotAfter": "21 Jan 2020 09:17:23 GMT",
        "State": "completed",
    });
    eventually("the event is history", || Ok(history(&event)? == expected))?;
    is("events/maintenance/scheduled", "[]")?;

    let notify = |notice: &str, more: &[(&str, &str)]| {
        let own = [("InstanceId", id), ("Notice", notice)];
        lab.client.ask("InnkeeperNotifyInstance", &[&own, more].concat())
    };
    let time = ("Time", "2100-01-02T10:00:00Z");
    is_gone("spot")?;
    is_gone("events/recommendations")?;
    notify("interruption", &[time, ("InterruptionAction", "stop")])?;
    is("spot", "instance-action")?;
    let action = |action: &str| serde_json::json!({ "action": action, "time": time.1 });
    let told = || -> Result<serde_json::Value> {
        Ok(serde_json::from_str(&read(&guest, "meta-data/spot/instance-action")?)?)
    };
    ensure!(told()? == action("stop"), "{}", told()?);
    is_gone("spot/termination-time")?;
    notify("interruption", &[time])?;
    ensure!(told()? == action("terminate"), "{}", told()?);
    is("spot", "instance-action\ntermination-time")?;
    is("spot/termination-time", time.1)?;
    notify("rebalance", &[time])?;
    let told = read(&guest, "meta-data/events/recommendations/rebalance")?;
    let told: serde_json::Value = serde_json::from_str(&told)?;
    ensure!(told == serde_json::json!({ "noticeTime": time.1 }), "{told}");
    is("events", "maintenance/\nrecommendations/")?;
    notify("none", &[])?;
    is_gone("spot")?;
    is_gone("events/recommendations/rebalance")?;

    // A start after that makes nothing of it.
    notify("interruption", &[("InterruptionAction", "stop")])?;
    lab.end("StopInstances", &ids, "stopped")?;
    lab.end("StartInstances", &ids, "running")?;
    expect(&*lab.guest(id)?, "spot", None)?;
    lab.end("TerminateInstances", &ids, "terminated")
}

/// Also on a connection that is there already.
#[test]
fn options_act_at_once() -> Result<()> {
    let lab = Lab::start()?;
    let ids = [lab.launch()?];
    let guest = lab.guest(&ids[0])?;
    lab.client
        .ask("CreateTags", &[("ResourceId.1", &ids[0]), ("Tag.1.Key", "Name"), ("Tag.1.Value", "x")])?;
    let change = |option: &str, value: &str| {
        let change = [("InstanceId", ids[0].as_str()), (option, value)];
        lab.client.ask("ModifyInstanceMetadataOptions", &change)
    };
    let token = token(&guest, 600)?;
    let mut wire = Wire::open(&guest)?;
    let mut expect = |ask: Ask, status: u16| -> Result<()> {
        let answer = wire.ask(&ask)?;
        ensure!(answer.status == status, "{ask}: {answer:?}, and not {status}");
        Ok(())
    };
    let id = || get("/latest/meta-data/instance-id");
    let tag = || get("/latest/meta-data/tags/instance/Name");
    for _ in 0..3 {
        expect(id(), 200)?;
        change("HttpTokens", "required")?;
        expect(id(), 401)?;
        expect(id().token(&token), 200)?;
        change("HttpEndpoint", "disabled")?;
        expect(id().token(&token), 403)?;
        expect(put("60"), 403)?;
        change("HttpEndpoint", "enabled")?;
        expect(id().token(&token), 200)?;
        change("HttpTokens", "optional")?;
        expect(tag(), 404)?;
        change("InstanceMetadataTags", "enabled")?;
        expect(tag(), 200)?;
        change("InstanceMetadataTags", "disabled")?;
        expect(tag(), 404)?;
    }
    lab.end("TerminateInstances", &ids, "terminated")
}

#[test]
fn tokens_outlive_the_daemon_and_expire() -> Result<()> {
    let mut lab = Lab::start()?;
    let ids = [lab.launch_with(&[("MetadataOptions.HttpTokens", "required")])?];
    let guest = lab.guest(&ids[0])?;
    let issued = Instant::now();
    let (long, short) = (token(&guest, 600)?, token(&guest, 5)?);
    let status = |token: &str| -> Result<u16> {
        Ok(once(&guest, &get("/latest/meta-data/instance-id").token(token))?.status)
    };
    ensure!(status(&short)? == 200 && status(&long)? == 200);
    lab.agent.kill()?;
    lab.agent.resume()?;
    lab.client = lab.agent.client()?;
    eventually("somebody answers again", || Ok(status(&long).is_ok()))?;
    ensure!(status(&long)? == 200, "the token did not outlive the daemon");
    ensure!(issued.elapsed() > Duration::from_secs(4) || status(&short)? == 200);
    std::thread::sleep(Duration::from_secs(5).saturating_sub(issued.elapsed()));
    ensure!(status(&short)? == 401 && status(&long)? == 200);

    // A stop and a start make no other instance of it.
    lab.end("StopInstances", &ids, "stopped")?;
    lab.end("StartInstances", &ids, "running")?;
    let guest = lab.guest(&ids[0])?;
    ensure!(once(&guest, &get("/latest/").token(&long))?.status == 200);
    lab.end("TerminateInstances", &ids, "terminated")
}

#[test]
fn user_data_is_as_it_was_at_the_start() -> Result<()> {
    const LARGEST: usize = 16 * 1024;
    let lab = Lab::start()?;
    let data = |length: usize| (0..length).map(|number| (number * 7) as u8).collect::<Vec<u8>>();
    let text = |length: usize| BASE64_STANDARD.encode(data(length));
    let ids = [lab.launch_with(&[("UserData", &text(LARGEST))])?];
    let is = |length: usize| -> Result<()> {
        let answer = once(&*lab.guest(&ids[0])?, &get("/latest/user-data"))?;
        ensure!((answer.status, answer.body.len()) == (200, length) && answer.body == data(length));
        Ok(())
    };
    is(LARGEST)?;
    let launch = [("ImageId", lab.image.as_str()), ("MinCount", "1"), ("MaxCount", "1")];
    let too_long = text(LARGEST + 1);
    let (status, answer) =
        lab.client.send("RunInstances", &[&launch[..], &[("UserData", &too_long)]].concat())?;
    ensure!(status == 400 && answer.contains("<Code>InvalidParameterValue<"), "{answer}");

    let change = |length: usize| {
        let change = [("InstanceId", ids[0].as_str()), ("UserData.Value", &text(length))];
        lab.client.send("ModifyInstanceAttribute", &change)
    };
    let (status, answer) = change(10)?;
    ensure!(status == 400 && answer.contains("<Code>IncorrectInstanceState<"), "{answer}");
    is(LARGEST)?;
    lab.end("StopInstances", &ids, "stopped")?;
    let (status, answer) = change(LARGEST + 1)?;
    ensure!(status == 400 && answer.contains("<Code>InvalidParameterValue<"), "{answer}");
    let (status, answer) = change(10)?;
    ensure!(status == 200, "{answer}");
    lab.end("StartInstances", &ids, "running")?;
    is(10)?;
    lab.end("StopInstances", &ids, "stopped")?;
    let (status, answer) = change(0)?;
    ensure!(status == 200, "{answer}");
    lab.end("StartInstances", &ids, "running")?;
    let guest = lab.guest(&ids[0])?;
    ensure!(once(&guest, &get("/latest/user-data"))?.status == 404);
    ensure!(read(&guest, "")? == "dynamic\nmeta-data");
    lab.end("TerminateInstances", &ids, "terminated")
}

/// What the service has sent, and how many hops it may go: TCP's payloads.
fn said(capture: &Capture) -> Vec<(u8, Vec<u8>)> {
    let payload = |frame: &Frame| -> Option<(u8, Vec<u8>)> {
        let (_, _, _, packet) = parse_ethernet(&frame.bytes).filter(|_| !frame.is_outgoing)?;
        let (_, _, _, segment) =
            parse_ipv4(packet).filter(|(source, _, protocol, _)| *source == SERVICE && *protocol == TCP)?;
        let header = usize::from(segment.get(12)? >> 4) * 4;
        Some((*packet.get(8)?, segment.get(header..)?.to_vec()))
    };
    let all = capture.frames();
    all.iter().filter_map(payload).filter(|(_, payload)| !payload.is_empty()).collect()
}

fn has(bytes: &[u8], wanted: &str) -> bool {
    bytes.windows(wanted.len()).any(|window| window == wanted.as_bytes())
}

#[test]
fn only_a_token_goes_no_further_than_it_may() -> Result<()> {
    let lab = Lab::start()?;
    let ids = [lab.launch()?];
    let guest = lab.guest(&ids[0])?;
    let mut wire = Wire::open(&guest)?;
    let mut is_first = true;
    // One is the default.
    for limit in [1, 2, 64, 1, 33] {
        let hops = limit.to_string();
        let change = [("InstanceId", ids[0].as_str()), ("HttpPutResponseHopLimit", &hops)];
        if !is_first {
            lab.client.ask("ModifyInstanceMetadataOptions", &change)?;
        }
        is_first = false;
        // On the same connection as before, and on a new one.
        for wire in [&mut wire, &mut Wire::open(&guest)?] {
            for (ask, expected) in [
                (put("60"), limit),
                (get("/latest/meta-data/instance-id"), USUAL),
                (put("60"), limit),
                (put("60"), limit),
                (get("/latest/user-data"), USUAL),
                // A refusal is no token.
                (put("0"), USUAL),
                (get("/latest/"), USUAL),
            ] {
                let capture = guest.capture("eth0")?;
                let answer = wire.ask(&ask)?;
                let end = String::from_utf8(answer.body)?;
                eventually("the answer is seen", || {
                    Ok(said(&capture).iter().any(|(_, text)| has(text, &end)))
                })?;
                for (hops, text) in said(&capture) {
                    ensure!(hops == expected, "{ask}: {hops} hops, not {expected}, for {text:x?}");
                }
            }
        }
    }
    lab.end("TerminateInstances", &ids, "terminated")
}

/// A forwarded connection loses what has no hops left. Neither TCP, which says it again, nor what is asked next gets the
/// token through.
#[test]
fn a_token_that_is_lost_is_not_said_again_with_more_hops() -> Result<()> {
    let lab = Lab::start()?;
    let ids = [lab.launch()?];
    let guest = lab.guest(&ids[0])?;
    let mut wire = Wire::open(&guest)?;
    let drop_it = format!("ip saddr {SERVICE} ip ttl 1 drop");
    guest.run(&format!(
        "nft 'table ip far {{ chain input {{ type filter hook prerouting priority -300; {drop_it}; }}; }}'"
    ))?;
    let capture = guest.capture("eth0")?;
    let asked = [get("/latest/"), put("60"), get("/latest/meta-data/instance-id"), get("/latest/")];
    wire.say(&asked.iter().flat_map(Ask::bytes).collect::<Vec<u8>>())?;
    let is_token = |text: &[u8]| has(text, "X-Aws-Ec2-Metadata-Token-Ttl-Seconds");
    eventually("TCP has said it again", || {
        Ok(said(&capture).iter().filter(|(_, text)| is_token(text)).count() >= 2)
    })?;
    for (hops, text) in said(&capture) {
        ensure!(!is_token(&text) || hops == 1, "the token goes {hops} hops");
    }
    // What is near gets it all, and further requests have their hops again.
    guest.run("nft delete table ip far")?;
    for ask in &asked {
        let answer = wire.hear()?;
        ensure!(answer.status == 200, "{ask}: {answer:?}");
    }
    let capture = guest.capture("eth0")?;
    let zone = wire.ask(&get("/latest/meta-data/placement/availability-zone"))?;
    eventually("it is seen", || {
        Ok(said(&capture).iter().any(|(_, text)| has(text, zone.text().unwrap_or("?"))))
    })?;
    ensure!(said(&capture).iter().all(|(hops, _)| *hops == USUAL));
    lab.end("TerminateInstances", &ids, "terminated")
}
