use crate::actions::testing::Client;
use crate::query::ApiError;
use crate::records::{
    BlockDevice, Instance, InstanceState, ModificationState, Snapshot, Volume, VolumeState,
};
use crate::state::Draft;

fn create(client: &Client, parameters: &str) -> String {
    client.text(&format!("CreateVolume&AvailabilityZone=us-east-1a&{parameters}"), "volumeId")
}

#[test]
fn a_volume_is_made_once_for_a_token() {
    let client = Client::new();
    let tagged = "TagSpecification.1.ResourceType=volume&TagSpecification.1.Tag.1.Key=a&TagSpecification.1.Tag.1.Value=b";
    let five = "Size=5&VolumeType=gp3&VolumeInitializationRate=100&ClientToken=t";
    let id = create(&client, &format!("{five}&{tagged}"));
    assert_eq!(create(&client, &format!("{five}&{tagged}")), id);
    client.refuses(&[(
        "CreateVolume&AvailabilityZone=us-east-1a&Size=6&ClientToken=t",
        "IdempotentParameterMismatch",
    )]);
    for (filter, value, count) in [
        ("size", "5", 1),
        ("size", "6", 0),
        ("status", "available", 1),
        ("volume-type", "gp3", 1),
        ("tag:a", "b", 1),
        ("attachment.instance-id", "*", 0),
        ("availability-zone-id", "use1-az1", 1),
    ] {
        let request = format!("DescribeVolumes&Filter.1.Name={filter}&Filter.1.Value.1={value}");
        assert_eq!(client.texts(&request, "volumeId").len(), count, "{filter}");
    }
    client.ask(&format!("DeleteVolume&VolumeId={id}")).unwrap();
    client.refuses(&[(&format!("DescribeVolumes&VolumeId.1={id}"), "InvalidVolume.NotFound")]);
    assert!(client.agent.state.read().tags(&id).is_none());
}

#[test]
fn only_the_same_token_makes_the_same_volume() {
    let client = Client::new();
    for (one, other, is_same) in [
        ("&ClientToken=t", "&ClientToken=t", true),
        ("&ClientToken=t", "&ClientToken=u", false),
        ("&ClientToken=", "&ClientToken=", false),
        ("", "", false),
    ] {
        let [one, other] = [one, other].map(|token| create(&client, &format!("Size=1{token}")));
        assert_eq!(one == other, is_same, "{one} {other}");
    }
}

#[test]
fn a_repeated_request_needs_nothing_any_more() {
    let client = Client::new();
    let id = "snap-0123456789abcdef0";
    let snapshot = Snapshot {
        id: id.parse().unwrap(),
        owner: client.agent.config.account.clone(),
        description: String::new(),
        volume_size: 1,
        volume: None,
        started: jiff::Timestamp::UNIX_EPOCH,
        layer: crate::ids::LayerId::random(),
        state: crate::records::SnapshotState::Completed,
        completed: None,
        encrypted: false,
        create_volume_permissions: Vec::new(),
        file: None,
    };
    let done: Result<(), ApiError> = client.agent.state.change(|draft| {
        draft.put(snapshot);
        Ok(())
    });
    done.unwrap();
    let request = format!("SnapshotId={id}&ClientToken=t");
    let volume = create(&client, &request);
    let done: Result<(), ApiError> = client.agent.state.change(|draft| {
        draft.remove::<Snapshot>(id);
        Ok(())
    });
    done.unwrap();
    assert_eq!(create(&client, &request), volume);
}

#[test]
fn what_cannot_be_made_is_refused() {
    let client = Client::new();
    client.refuses(&[
        ("CreateVolume&Size=1", "MissingParameter"),
        ("CreateVolume&AvailabilityZone=us-east-1a", "MissingParameter"),
        ("CreateVolume&AvailabilityZone=mars-1a&Size=1", "InvalidZone.NotFound"),
        ("CreateVolume&AvailabilityZone=us-east-1a&Size=0", "InvalidParameterValue"),
        ("CreateVolume&AvailabilityZone=us-east-1a&Size=1&VolumeType=x", "UnknownVolumeType"),
        ("CreateVolume&AvailabilityZone=us-east-1a&Size=1&Iops=100", "InvalidParameterCombination"),
        ("CreateVolume&AvailabilityZone=us-east-1a&Size=1&MultiAttachEnabled=true", "UnsupportedOperation"),
        ("CreateVolume&AvailabilityZone=us-east-1a&Size=1&Operator.Principal=x", "UnsupportedOperation"),
        ("CreateVolume&AvailabilityZone=us-east-1a&Size=1&KmsKeyId=k", "InvalidParameterDependency"),
        ("CreateVolume&AvailabilityZone=us-east-1a&SnapshotId=snap-12345678", "InvalidSnapshot.NotFound"),
        ("CreateVolume&AvailabilityZone=us-east-1a&SnapshotId=x", "InvalidSnapshotID.Malformed"),
        ("CreateVolume&AvailabilityZone=us-east-1a&Size=1&DryRun=true", "DryRunOperation"),
        ("DeleteVolume&VolumeId=vol-12345678", "InvalidVolume.NotFound"),
        ("DeleteVolume&VolumeId=x", "InvalidVolumeID.Malformed"),
        ("DescribeVolumes&MaxResults=4", "InvalidParameterValue"),
        ("DescribeVolumes&Filter.1.Name=colour&Filter.1.Value.1=red", "InvalidParameterValue"),
    ]);
}

#[test]
fn a_volume_is_attached_and_detached() {
    let client = Client::new();
    let instance = client.instance(InstanceState::Running);
    let (volume, other) = (create(&client, "Size=1"), create(&client, "Size=1"));
    let attach = |volume: &str, device: &str| {
        format!("AttachVolume&VolumeId={volume}&InstanceId={instance}&Device={device}")
    };
    let away = client.text("CreateVolume&AvailabilityZone=us-east-1b&Size=1", "volumeId");
    let pending = client.instance(InstanceState::Pending);
    client.refuses(&[
        (&attach(&volume, "/dev/hda"), "InvalidParameterValue"),
        (&attach(&volume, "/dev/sdf&EbsCardIndex=1"), "UnsupportedOperation"),
        (&attach(&away, "/dev/sdf"), "InvalidVolume.ZoneMismatch"),
        (&attach("vol-12345678", "/dev/sdf"), "InvalidVolume.NotFound"),
        (
            &format!("AttachVolume&VolumeId={volume}&InstanceId=i-12345678&Device=/dev/sdf"),
            "InvalidInstanceID.NotFound",
        ),
        (&format!("AttachVolume&VolumeId={volume}&InstanceId={pending}&Device=/dev/sdf"), "IncorrectState"),
        (&format!("DetachVolume&VolumeId={volume}"), "IncorrectState"),
    ]);
    assert_eq!(client.text(&attach(&volume, "/dev/sdf&EbsCardIndex=0"), "status"), "attaching");
    let world = client.agent.state.read();
    assert_eq!(world.get::<Instance>(&instance).unwrap().block_devices[0].volume.as_str(), volume);
    client.refuses(&[
        (&attach(&volume, "/dev/sdg"), "VolumeInUse"),
        (&attach(&other, "/dev/sdf"), "InvalidParameterValue"),
        (&format!("DeleteVolume&VolumeId={volume}"), "VolumeInUse"),
        (&format!("DetachVolume&VolumeId={volume}&Device=/dev/sdg"), "InvalidAttachment.NotFound"),
        (&format!("DetachVolume&VolumeId={volume}&InstanceId={pending}"), "InvalidAttachment.NotFound"),
    ]);
    let detach = format!("DetachVolume&VolumeId={volume}&InstanceId={instance}&Device=/dev/sdf");
    assert_eq!(client.text(&detach, "status"), "detaching");
    // Until the guest has let go of it, it is nobody else's.
    client.refuses(&[
        (&attach(&volume, "/dev/sdg"), "VolumeInUse"),
        (&format!("DeleteVolume&VolumeId={volume}"), "VolumeInUse"),
    ]);
    let id = volume.parse().unwrap();
    let let_go = |draft: &mut Draft| {
        crate::instances::detach(draft, &id);
        Ok::<_, ApiError>(())
    };
    client.agent.state.change(let_go).unwrap();
    let world = client.agent.state.read();
    assert!(world.get::<Instance>(&instance).unwrap().block_devices.is_empty());
    assert_eq!(world.get::<Volume>(&volume).unwrap().attachment, None);
}

#[test]
fn a_running_instance_keeps_its_root() {
    let client = Client::new();
    let instance = client.instance(InstanceState::Stopped);
    let root = create(&client, "Size=8");
    client.ask(&format!("AttachVolume&VolumeId={root}&InstanceId={instance}&Device=/dev/xvda")).unwrap();
    let run = |state| {
        let change = |instance: &mut Instance| {
            instance.lifecycle.state = state;
            let id = root.parse().unwrap();
            let device_name = "/dev/xvda".to_owned();
            instance.block_devices =
                vec![BlockDevice { device_name, volume: id, delete_on_termination: true }];
        };
        let changed = client.agent.state.change(|draft| Ok::<_, ApiError>(draft.update(&instance, change)));
        assert!(changed.unwrap());
    };
    run(InstanceState::Running);
    client.refuses(&[(&format!("DetachVolume&VolumeId={root}"), "OperationNotPermitted")]);
    run(InstanceState::Stopped);
    client.ask(&format!("DetachVolume&VolumeId={root}")).unwrap();
}

/// Does to a volume what the storage does in time.
fn settle(client: &Client, id: &str, change: impl Fn(&mut Volume)) {
    let done: Result<bool, ApiError> =
        client.agent.state.change(|draft| Ok(draft.update::<Volume>(id, |volume| change(volume))));
    assert!(done.unwrap());
}

fn end_modification(client: &Client, id: &str, state: &ModificationState) {
    settle(client, id, |volume| {
        let modification = volume.modification.as_mut().unwrap();
        modification.state = state.clone();
        modification.ended = Some(jiff::Timestamp::UNIX_EPOCH);
        if *state == ModificationState::Completed {
            let target = modification.target.clone();
            volume.size = target.size;
            volume.volume_type = target.volume_type;
            volume.iops = target.iops;
            volume.throughput = target.throughput;
        }
    });
}

#[test]
fn a_volume_grows_and_becomes_faster() {
    let client = Client::new();
    let id = create(&client, "Size=10&VolumeType=gp2");
    let instance = client.instance(InstanceState::Running);
    // Nobody brings about here what an instance's actor has to.
    client.ask(&format!("AttachVolume&VolumeId={id}&InstanceId={instance}&Device=/dev/sdf")).unwrap();
    let named = format!("DescribeVolumesModifications&VolumeId.1={id}");
    client.refuses(&[(&named, "InvalidVolumeModification.NotFound")]);
    assert!(client.texts("DescribeVolumesModifications", "volumeId").is_empty());
    let modify = format!("ModifyVolume&VolumeId={id}");
    let answer = client.ask(&format!("{modify}&Size=20&VolumeType=gp3&Iops=4000")).unwrap();
    for part in [
        "<modificationState>modifying</modificationState>",
        "<originalSize>10</originalSize>",
        "<originalVolumeType>gp2</originalVolumeType>",
        "<originalIops>100</originalIops>",
        "<targetSize>20</targetSize>",
        "<targetVolumeType>gp3</targetVolumeType>",
        "<targetIops>4000</targetIops>",
        "<targetThroughput>125</targetThroughput>",
        "<progress>0</progress>",
    ] {
        assert!(answer.contains(part), "{part}: {answer}");
    }
    assert!(!answer.contains("originalThroughput") && !answer.contains("endTime"), "{answer}");
    client.refuses(&[(&format!("{modify}&Size=30"), "IncorrectModificationState")]);
    assert_eq!(client.texts("DescribeVolumes", "size"), ["10"], "it is not done yet");
    end_modification(&client, &id, &ModificationState::Completed);
    assert_eq!(client.texts("DescribeVolumes", "size"), ["20"]);
    assert_eq!(client.text(&named, "modificationState"), "completed");
    assert_eq!(client.text(&named, "progress"), "100");
    assert_eq!(client.texts(&named, "endTime").len(), 1);
    for (filter, value, count) in [
        ("volume-id", id.as_str(), 1),
        ("modification-state", "completed", 1),
        ("modification-state", "modifying", 0),
        ("original-iops", "100", 1),
        ("original-size", "10", 1),
        ("original-volume-type", "gp2", 1),
        ("originalMultiAttachEnabled", "false", 1),
        ("start-time", "20*", 1),
        ("target-iops", "4000", 1),
        ("target-size", "20", 1),
        ("target-volume-type", "gp2", 0),
        ("targetMultiAttachEnabled", "true", 0),
    ] {
        let request = format!("DescribeVolumesModifications&Filter.1.Name={filter}&Filter.1.Value.1={value}");
        assert_eq!(client.texts(&request, "volumeId").len(), count, "{filter} {value}");
    }
    client.ask(&format!("{modify}&Throughput=200")).unwrap();
    end_modification(&client, &id, &ModificationState::Failed("there is no room".into()));
    assert_eq!(client.text(&named, "modificationState"), "failed");
    assert_eq!(client.text(&named, "statusMessage"), "there is no room");
    assert_eq!(client.texts("DescribeVolumes", "throughput"), ["125"]);
    client.ask(&format!("{modify}&Throughput=200")).unwrap();
    // As if it was let go of meanwhile.
    settle(&client, &id, |volume| {
        volume.state = VolumeState::Available;
        volume.attachment = None;
    });
    let attach = format!("AttachVolume&VolumeId={id}&InstanceId={instance}&Device=/dev/sdg");
    client.refuses(&[(&attach, "OperationNotPermitted")]);
    client.ask(&format!("DeleteVolume&VolumeId={id}")).unwrap();
}

#[test]
fn what_a_change_leaves_open_stays_or_is_what_the_type_has() {
    let client = Client::new();
    for (made, change, expected) in [
        ("Size=100&VolumeType=gp3&Iops=5000&Throughput=300", "Size=200", (200, "gp3", Some(5000), Some(300))),
        (
            "Size=100&VolumeType=gp3&Iops=5000&Throughput=300",
            "Iops=3000",
            (100, "gp3", Some(3000), Some(300)),
        ),
        ("Size=100&VolumeType=gp3&Iops=5000&Throughput=300", "VolumeType=gp2", (100, "gp2", Some(300), None)),
        (
            "Size=100&VolumeType=gp3&Iops=5000&Throughput=300",
            "VolumeType=io2",
            (100, "io2", Some(3000), None),
        ),
        ("Size=100&VolumeType=io1&Iops=500", "Size=200", (200, "io1", Some(500), None)),
        ("Size=100&VolumeType=io1&Iops=500", "VolumeType=gp3", (100, "gp3", Some(3000), Some(125))),
        ("Size=100&VolumeType=gp2", "Size=2000", (2000, "gp2", Some(6000), None)),
        ("Size=200&VolumeType=gp2", "VolumeType=st1", (200, "st1", None, None)),
        // Nothing is a change, too.
        ("Size=8&VolumeType=gp3", "MultiAttachEnabled=false", (8, "gp3", Some(3000), Some(125))),
        ("Size=8&VolumeType=gp3", "Size=8&VolumeType=gp3", (8, "gp3", Some(3000), Some(125))),
    ] {
        let id = create(&client, made);
        client.ask(&format!("ModifyVolume&VolumeId={id}&{change}")).unwrap();
        let world = client.agent.state.read();
        let target = &world.get::<Volume>(&id).unwrap().modification.as_ref().unwrap().target;
        let found = (target.size, target.volume_type.as_str(), target.iops, target.throughput);
        assert_eq!(found, expected, "{made} {change}");
    }
}

#[test]
fn changes_that_cannot_be_are_refused() {
    let client = Client::new();
    let id = create(&client, "Size=10&VolumeType=gp2");
    let modify = |rest: &str| format!("ModifyVolume&VolumeId={id}&{rest}");
    client.refuses(&[
        ("ModifyVolume&Size=1", "MissingParameter"),
        ("ModifyVolume&VolumeId=x&Size=1", "InvalidVolumeID.Malformed"),
        ("ModifyVolume&VolumeId=vol-12345678&Size=1", "InvalidVolume.NotFound"),
        (&modify("Size=9"), "InvalidParameterValue"),
        (&modify("Size=20000"), "InvalidParameterValue"),
        (&modify("VolumeType=gp4"), "UnknownVolumeType"),
        (&modify("VolumeType=st1"), "InvalidParameterValue"),
        (&modify("Iops=200"), "InvalidParameterCombination"),
        (&modify("Throughput=200"), "InvalidParameterCombination"),
        (&modify("VolumeType=gp3&Throughput=5000"), "InvalidParameterValue"),
        // The 3000 operations that it gets are too many for 10 GiB.
        (&modify("VolumeType=io1"), "InvalidParameterValue"),
        (&modify("MultiAttachEnabled=true"), "UnsupportedOperation"),
        (&modify("Size=20&DryRun=true"), "DryRunOperation"),
        ("DescribeVolumesModifications&MaxResults=0", "InvalidParameterValue"),
        ("DescribeVolumesModifications&VolumeId.1=x", "InvalidVolumeID.Malformed"),
        ("DescribeVolumesModifications&Filter.1.Name=size&Filter.1.Value.1=1", "InvalidParameterValue"),
    ]);
    for (state, code) in [
        (VolumeState::Creating, "IncorrectState"),
        (VolumeState::Deleting, "IncorrectState"),
        (VolumeState::Error, "IncorrectState"),
        (VolumeState::InUse, "DryRunOperation"),
        (VolumeState::Available, "DryRunOperation"),
    ] {
        settle(&client, &id, |volume| volume.state = state);
        client.refuses(&[(&modify("Size=20&DryRun=true"), code)]);
    }
    let instance = client.instance(InstanceState::Stopped);
    let root = create(&client, "Size=125");
    client.ask(&format!("AttachVolume&VolumeId={root}&InstanceId={instance}&Device=/dev/xvda")).unwrap();
    client.refuses(&[(&format!("ModifyVolume&VolumeId={root}&VolumeType=sc1"), "InvalidParameterValue")]);
}

#[test]
fn a_volume_that_is_impaired_is_enabled_again() {
    let client = Client::new();
    let id = create(&client, "Size=1&VolumeType=gp3");
    let status = format!("DescribeVolumeStatus&VolumeId.1={id}");
    let states = || client.texts(&status, "status");
    assert_eq!(states(), ["ok", "passed", "not-applicable"]);
    let instance = client.instance(InstanceState::Running);
    client.ask(&format!("AttachVolume&VolumeId={id}&InstanceId={instance}&Device=/dev/sdf")).unwrap();
    assert_eq!(states(), ["ok", "passed", "normal"]);
    assert_eq!(client.text(&status, "ioPerformance"), "normal");
    assert!(client.texts(&status, "eventId").is_empty());

    settle(&client, &id, |volume| volume.impairment = Some("a write was lost".into()));
    assert_eq!(states(), ["impaired", "failed", "stalled"]);
    let events = client.texts(&status, "eventId");
    assert_eq!(events.len(), 2);
    assert!(events[0].starts_with("evol-") && events[0] == events[1], "{events:?}");
    assert_eq!(client.text(&status, "code"), "enable-volume-io");
    assert_eq!(client.texts(&status, "eventType"), ["potential-data-inconsistency"; 2]);
    assert!(client.texts(&status, "description").contains(&"a write was lost".to_owned()));
    let (event, instance) = (events[0].as_str(), instance.to_string());
    for (filter, value, count) in [
        ("volume-status.status", "impaired", 1),
        ("volume-status.status", "ok", 0),
        ("volume-status.details-name", "io-enabled", 1),
        ("volume-status.details-status", "failed", 1),
        ("action.code", "enable-volume-io", 1),
        ("action.description", "Enable*", 1),
        ("action.event-id", event, 1),
        ("event.event-id", event, 1),
        ("event.event-type", "potential-data-inconsistency", 1),
        ("event.description", "*lost", 1),
        ("event.not-before", "*", 0),
        ("event.not-after", "*", 0),
        ("attachment-status.instance-id", &instance, 1),
        ("attachment-status.io-performance", "stalled", 1),
        ("availability-zone", "us-east-1a", 1),
        ("availability-zone-id", "use1-az1", 1),
    ] {
        let request = format!("DescribeVolumeStatus&Filter.1.Name={filter}&Filter.1.Value.1={value}");
        assert_eq!(client.texts(&request, "volumeId").len(), count, "{filter} {value}");
    }
    let enable = format!("EnableVolumeIO&VolumeId={id}");
    client.refuses(&[(&enable, "IncorrectState")]);
    let stop = |instance: &mut Instance| instance.lifecycle.state = InstanceState::Stopped;
    let stopped = client.agent.state.change(|draft| Ok::<_, ApiError>(draft.update(&instance, stop)));
    assert!(stopped.unwrap());
    client.refuses(&[(&format!("{enable}&DryRun=true"), "DryRunOperation")]);
    assert_eq!(states()[0], "impaired");
    for _ in 0..2 {
        client.ask(&enable).unwrap();
        assert_eq!(states(), ["ok", "passed", "normal"]);
    }
    let other = create(&client, "Size=1");
    settle(&client, &other, |volume| volume.impairment = Some("a write was lost".into()));
    let attach = format!("AttachVolume&VolumeId={other}&InstanceId={instance}&Device=/dev/sdg");
    client.refuses(&[(&attach, "IncorrectState")]);
    client.ask(&format!("EnableVolumeIO&VolumeId={other}")).unwrap();
    client.ask(&attach).unwrap();
    settle(&client, &id, |volume| volume.state = VolumeState::Error);
    assert_eq!(states()[..2], ["insufficient-data"; 2]);
    client.refuses(&[
        ("EnableVolumeIO&VolumeId=vol-12345678", "InvalidVolume.NotFound"),
        ("DescribeVolumeStatus&VolumeId.1=vol-12345678", "InvalidVolume.NotFound"),
        (&format!("{status}&MaxResults=5"), "InvalidParameterCombination"),
        ("DescribeVolumeStatus&MaxResults=4", "InvalidParameterValue"),
        ("DescribeVolumeStatus&Filter.1.Name=size&Filter.1.Value.1=1", "InvalidParameterValue"),
    ]);
}

#[test]
fn attributes_of_volumes() {
    let client = Client::new();
    let id = create(&client, "Size=1");
    let describe = |attribute: &str| format!("DescribeVolumeAttribute&VolumeId={id}&Attribute={attribute}");
    let modify = |rest: &str| format!("ModifyVolumeAttribute&VolumeId={id}{rest}");
    assert_eq!(client.text(&describe("autoEnableIO"), "value"), "false");
    client.ask(&modify("&AutoEnableIO.Value=true")).unwrap();
    assert_eq!(client.text(&describe("autoEnableIO"), "value"), "true");
    assert!(client.ask(&describe("productCodes")).unwrap().contains("productCodes"));
    client.refuses(&[
        (&describe("colour"), "InvalidParameterValue"),
        ("DescribeVolumeAttribute&VolumeId=vol-12345678&Attribute=productCodes", "InvalidVolume.NotFound"),
        (&format!("DescribeVolumeAttribute&VolumeId={id}"), "MissingParameter"),
        (&modify(""), "InvalidParameterCombination"),
        (&modify("&AutoEnableIO.Value=maybe"), "InvalidParameterValue"),
        (&modify("&AutoEnableIO.Value=true&DryRun=true"), "DryRunOperation"),
        ("EnableEbsEncryptionByDefault", "UnsupportedOperation"),
    ]);
    for action in ["GetEbsEncryptionByDefault", "DisableEbsEncryptionByDefault"] {
        assert_eq!(client.text(action, "ebsEncryptionByDefault"), "false");
    }
}

#[test]
fn a_volume_that_is_on_its_way_is_not_deleted() {
    let client = Client::new();
    let id = create(&client, "Size=1");
    for (state, code) in [
        (VolumeState::Creating, "IncorrectState"),
        (VolumeState::Deleting, "IncorrectState"),
        (VolumeState::Error, "DryRunOperation"),
        (VolumeState::Available, "DryRunOperation"),
    ] {
        settle(&client, &id, |volume| volume.state = state);
        client.refuses(&[(&format!("DeleteVolume&VolumeId={id}&DryRun=true"), code)]);
    }
}
