use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use proptest::prelude::*;

use super::*;
use crate::actions::testing::Client;
use crate::ids::{AddressAssociationId, AllocationId, InstanceId, VolumeId};
use crate::records::{
    BlockDevice, ElasticAssociation, InstanceState, Interruption, InterruptionAction, Notice, PrivateAddress,
    PublicAddress, StoreDisk,
};

const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIExample me";

/// An agent, and an instance that has one of everything.
fn furnished() -> (Client, InstanceId) {
    let client = Client::new();
    let id = client.instance(InstanceState::Running);
    let world = client.agent.state.read();
    let mut instance = Instance::clone(world.get::<Instance>(&id).unwrap());
    instance.launch_time = "2026-11-29T09:00:00Z".parse().unwrap();
    instance.key_name = Some("me".into());
    instance.public_key = Some(KEY.into());
    instance.user_data = Some(STANDARD.encode(b"#!/bin/sh\n\0\xff"));
    instance.metadata_options.instance_metadata_tags = "enabled".into();
    for name in ["/dev/xvda", "/dev/sdf"] {
        instance.block_devices.push(BlockDevice {
            device_name: name.into(),
            volume: VolumeId::random(),
            delete_on_termination: true,
        });
    }
    let disk = |name: &str, device: Option<&str>| StoreDisk {
        name: name.into(),
        device_name: device.map(str::to_owned),
        size: 1,
        layer: None,
        source: None,
    };
    instance.instance_store = vec![disk("ephemeral0", Some("/dev/sdb")), disk("ephemeral1", None)];
    let mut interface =
        NetworkInterface::clone(world.get::<NetworkInterface>(&instance.network_interface).unwrap());
    let elastic =
        ElasticAssociation { allocation: AllocationId::random(), id: AddressAssociationId::random() };
    interface.primary.public =
        Some(PublicAddress { address: Ipv4Addr::new(198, 19, 0, 7), elastic: Some(elastic) });
    interface.secondary = vec![PrivateAddress::from(Ipv4Addr::new(172, 31, 0, 10))];
    client.put(interface);
    client.put(instance);
    let tag = |draft: &mut crate::state::Draft| {
        draft.tag(&id, [("Name".to_owned(), "web".to_owned()), ("cost:center".to_owned(), "7".to_owned())]);
        Ok::<_, crate::query::ApiError>(())
    };
    client.agent.state.change(tag).unwrap();
    client.put(Notice {
        instance: id.clone(),
        given: "2026-11-29T09:30:00Z".parse().unwrap(),
        interruption: Some(Interruption {
            action: InterruptionAction::Terminate,
            time: "2026-11-29T10:02:00Z".parse().unwrap(),
        }),
        rebalance: Some("2026-11-29T09:30:00Z".parse().unwrap()),
    });
    client.profile("web");
    client.ask(&format!("AssociateIamInstanceProfile&InstanceId={id}&IamInstanceProfile.Name=web")).unwrap();
    let event =
        format!("InnkeeperScheduleEvent&InstanceId={id}&Code=instance-stop&NotBefore=2100-01-02T10:00:00Z");
    client.ask(&event).unwrap();
    (client, id)
}

fn with<T>(client: &Client, id: &InstanceId, read: impl FnOnce(View<'_>) -> T) -> T {
    let world = client.agent.state.read();
    let instance = world.get::<Instance>(id).unwrap();
    let now = "2026-11-29T10:00:00Z".parse().unwrap();
    read(View { world: &world, instance, region: "us-east-1", now })
}

/// What is at a path, as a text.
fn read(view: View<'_>, path: &str) -> Option<String> {
    let parts: Vec<&str> = path.split('/').collect();
    Some(match lookup(view, &parts)? {
        Node::Text(text) => text,
        Node::UserData(bytes) => format!("{bytes:?}"),
        Node::Signature(kind) => format!("{kind:?}"),
        Node::Category(category) => category.list(),
    })
}

/// The paths of all leaves below one, by what is listed.
fn leaves(view: View<'_>, path: &str, found: &mut BTreeSet<String>) {
    for name in read(view, path).unwrap().lines() {
        // A key is listed with its name.
        let name = name.split('=').next().unwrap();
        match name.strip_suffix('/') {
            Some(name) => leaves(view, &format!("{path}/{name}"), found),
            None if path.ends_with("public-keys") => leaves(view, &format!("{path}/{name}"), found),
            None => assert!(found.insert(format!("{path}/{name}"))),
        }
    }
}

fn all_leaves(view: View<'_>, version: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for top in read(view, version).unwrap().lines() {
        match top {
            "user-data" => assert!(found.insert(format!("{version}/user-data"))),
            category => leaves(view, &format!("{version}/{category}"), &mut found),
        }
    }
    found
}

#[test]
fn an_instance_finds_what_it_is() {
    let (client, id) = furnished();
    with(&client, &id, |view| {
        let instance = view.instance;
        let macs = "latest/meta-data/network/interfaces/macs";
        let mac = format!("{macs}/02:00:00:00:00:01");
        let event = view.world.all::<crate::records::ScheduledEvent>().next().unwrap().id.to_string();
        let scheduled = format!(
            "[\n  {{\n    \"NotBefore\": \"2 Jan 2100 10:00:00 GMT\",\n    \"Code\": \"instance-stop\",\n    \
             \"Description\": \"The instance is running on degraded hardware\",\n    \"EventId\": \"{event}\",\n    \
             \"State\": \"active\"\n  }}\n]"
        );
        let table = [
            ("latest", "dynamic\nmeta-data\nuser-data".into()),
            ("latest/meta-data/ami-id", instance.image.to_string()),
            ("latest/meta-data/instance-id", id.to_string()),
            ("latest/meta-data/hostname", "ip-172-31-0-9.ec2.internal".into()),
            ("latest/meta-data/public-hostname", "ec2-198-19-0-7.compute-1.amazonaws.com".into()),
            ("latest/meta-data/public-ipv4", "198.19.0.7".into()),
            ("latest/meta-data/security-groups", "default".into()),
            ("latest/meta-data/placement", "availability-zone\navailability-zone-id\nregion".into()),
            ("latest/meta-data/placement/availability-zone-id", "use1-az1".into()),
            ("latest/meta-data/block-device-mapping", "ami\nebs1\nephemeral0\nroot".into()),
            ("latest/meta-data/block-device-mapping/ami", "/dev/xvda".into()),
            ("latest/meta-data/block-device-mapping/ebs1", "sdf".into()),
            ("latest/meta-data/block-device-mapping/ephemeral0", "sdb".into()),
            ("latest/meta-data/public-keys", "0=me".into()),
            ("latest/meta-data/public-keys/0", "openssh-key".into()),
            ("latest/meta-data/public-keys/0/openssh-key", KEY.into()),
            (macs, "02:00:00:00:00:01/".into()),
            (&format!("{mac}/local-ipv4s"), "172.31.0.9\n172.31.0.10".into()),
            (&format!("{mac}/ipv4-associations/198.19.0.7"), "172.31.0.9".into()),
            (&format!("{mac}/vpc-ipv4-cidr-blocks"), "172.31.0.0/16".into()),
            (&format!("{mac}/device-number"), "0".into()),
            ("latest/meta-data/tags/instance", "Name\ncost:center".into()),
            ("latest/meta-data/tags/instance/cost:center", "7".into()),
            (
                "latest/meta-data/spot/instance-action",
                r#"{"action":"terminate","time":"2026-11-29T10:02:00Z"}"#.into(),
            ),
            ("latest/meta-data/spot/termination-time", "2026-11-29T10:02:00Z".into()),
            (
                "latest/meta-data/events/recommendations/rebalance",
                r#"{"noticeTime":"2026-11-29T09:30:00Z"}"#.into(),
            ),
            ("latest/meta-data/events/maintenance/history", "[]".into()),
            ("latest/meta-data/events/maintenance/scheduled", scheduled),
            ("latest/dynamic/fws/instance-monitoring", "disabled".into()),
            ("latest/user-data", format!("{:?}", b"#!/bin/sh\n\0\xff")),
        ];
        for (path, expected) in table {
            assert_eq!(read(view, path).as_deref(), Some(expected.as_str()), "{path}");
        }
        let read_json =
            |path| -> serde_json::Value { serde_json::from_str(&read(view, path).unwrap()).unwrap() };
        let info = read_json("latest/meta-data/iam/info");
        assert_eq!(info["Code"], "Success");
        assert_eq!(info["InstanceProfileArn"], "arn:aws:iam::000000000000:instance-profile/web");
        let credentials = read_json("latest/meta-data/iam/security-credentials/web");
        assert_eq!((&credentials["Code"], &credentials["Type"]), (&"Success".into(), &"AWS-HMAC".into()));
        assert!(credentials["AccessKeyId"].as_str().unwrap().starts_with("ASIA"));
        for name in ["SecretAccessKey", "Token", "LastUpdated", "Expiration"] {
            assert!(!credentials[name].as_str().unwrap().is_empty(), "{name}");
        }
        let document = read_json("latest/dynamic/instance-identity/document");
        assert_eq!(document["instanceId"], id.as_str());
        assert_eq!(document["pendingTime"], "2026-11-29T09:00:00Z");
        assert!(document["kernelId"].is_null() && document.as_object().unwrap().len() == 15);
    });
}

#[test]
fn what_it_does_not_have_is_not_there() {
    let client = Client::new();
    let id = client.instance(InstanceState::Running);
    with(&client, &id, |view| {
        for path in [
            "latest/user-data",
            "latest/api",
            "latest/meta-data/public-ipv4",
            "latest/meta-data/public-hostname",
            "latest/meta-data/public-keys",
            "latest/meta-data/tags",
            "latest/meta-data/spot",
            "latest/meta-data/events/recommendations",
            "latest/meta-data/instance-id/more",
            "latest/meta-data/nothing",
            "latest/nothing",
            "2022-01-01",
            "2022-01-01/meta-data",
            "LATEST",
            "latest/meta-data/..",
            "latest/meta-data/network/interfaces/macs/02:00:00:00:00:02",
        ] {
            assert_eq!(read(view, path), None, "{path}");
        }
        let listed = read(view, "latest/meta-data").unwrap();
        for name in ["public", "spot", "tags", "iam"] {
            assert!(!listed.contains(name), "{listed}");
        }
    });
}

#[test]
fn all_that_is_listed_can_be_read_in_every_version() {
    let (client, id) = furnished();
    with(&client, &id, |view| {
        let mut before = 0;
        for version in VERSIONS {
            let found = all_leaves(view, version);
            for path in &found {
                let text = read(view, path).unwrap_or_else(|| panic!("{path} is listed, and not there"));
                assert!(!text.is_empty(), "{path} says nothing");
            }
            assert!(found.len() >= before, "{version} has less than the one before");
            before = found.len();
        }
        assert!(before > 50, "{before}");
        let first = all_leaves(view, "1.0");
        assert!(first.contains("1.0/meta-data/ami-id") && !first.contains("1.0/meta-data/mac"));
        assert!(first.iter().all(|path| !path.contains("/dynamic/")), "{first:?}");
        let old = all_leaves(view, "2009-04-04");
        assert!(old.contains("2009-04-04/dynamic/instance-identity/document"));
        assert!(old.iter().all(|path| !path.contains("/tags/")), "{old:?}");
    });
}

#[test]
fn notice_of_before_the_last_start_is_none() {
    let (client, id) = furnished();
    let mut instance = Instance::clone(client.agent.state.read().get::<Instance>(&id).unwrap());
    instance.launch_time = "2026-11-29T09:45:00Z".parse().unwrap();
    client.put(instance);
    with(&client, &id, |view| {
        assert_eq!(read(view, "latest/meta-data/spot"), None);
        assert_eq!(read(view, "latest/meta-data/events"), Some("maintenance/".into()));
    });
}

#[test]
fn the_versions_are_in_the_order_of_their_dates() {
    assert!(VERSIONS.is_sorted());
}

proptest! {
    #[test]
    fn any_path_is_there_or_not(path in prop::collection::vec(prop_oneof![
        prop::sample::select(vec!["latest", "1.0", "meta-data", "dynamic", "network", "interfaces", "macs", "iam",
            "tags", "instance", "public-keys", "0", "user-data", "instance-identity", "..", "placement"]).prop_map(str::to_owned),
        ".{0,6}",
    ], 0..7)) {
        thread_local!(static FURNISHED: (Client, InstanceId) = furnished());
        FURNISHED.with(|(client, id)| with(client, id, |view| { let _ = lookup(view, &path).is_some(); }));
    }
}
