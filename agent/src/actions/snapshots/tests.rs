use jiff::Timestamp;

use crate::actions::testing::Client;
use crate::ids::{LayerId, VolumeId};
use crate::query::ApiError;
use crate::records::{InstanceState, Layer, LayerState, Snapshot, SnapshotState, Volume, VolumeState};
use crate::state::Draft;
use crate::volumes::stack;

const OTHER: &str = "111111111111";

/// A volume of nobody's.
pub(super) fn volume(layer: LayerId) -> Volume {
    Volume {
        id: VolumeId::random(),
        owner: "000000000000".into(),
        size: 1,
        volume_type: "gp3".into(),
        iops: Some(3000),
        throughput: Some(125),
        encrypted: false,
        snapshot: None,
        layer,
        availability_zone: "us-east-1a".into(),
        created: Timestamp::UNIX_EPOCH,
        state: VolumeState::Available,
        attachment: None,
        modification: None,
        impairment: None,
        auto_enable_io: false,
    }
}

fn create(client: &Client, parameters: &str) -> String {
    client.text(&format!("CreateVolume&AvailabilityZone=us-east-1a&{parameters}"), "volumeId")
}

/// A volume that an instance has, for which nothing is brought about here.
fn create_in_use(client: &Client, parameters: &str) -> String {
    let (volume, instance) = (create(client, parameters), client.instance(InstanceState::Running));
    client.ask(&format!("AttachVolume&VolumeId={volume}&InstanceId={instance}&Device=/dev/sdf")).unwrap();
    volume
}

fn take(client: &Client, volume: &str) -> String {
    client.text(&format!("CreateSnapshot&VolumeId={volume}"), "snapshotId")
}

fn change(client: &Client, what: impl Fn(&mut Draft)) {
    let all = |draft: &mut Draft| {
        what(draft);
        Ok::<_, ApiError>(())
    };
    client.agent.state.change(all).unwrap();
}

/// What the storage does in time: all layers under the tops are on the disk.
fn settle(client: &Client) {
    change(client, |draft| {
        let covered: Vec<_> = draft.all::<Layer>().filter_map(|layer| layer.parent.clone()).collect();
        stack::advance(draft, &covered, LayerState::Sealed, Timestamp::UNIX_EPOCH);
    });
}

fn record(client: &Client, id: &str) -> Snapshot {
    Snapshot::clone(client.agent.state.read().get::<Snapshot>(id).unwrap())
}

#[test]
fn a_snapshot_is_what_the_volume_had_on_top() {
    let client = Client::new();
    let volume = create_in_use(&client, "Size=3&Encrypted=true");
    let tags = "TagSpecification.1.ResourceType=snapshot&TagSpecification.1.Tag.1.Key=a&TagSpecification.1.Tag.1.Value=b";
    let before = client.agent.state.read().get::<Volume>(&volume).unwrap().layer.clone();
    let request = format!("CreateSnapshot&VolumeId={volume}&Description=d&Location=regional&{tags}");
    let answer = client.ask(&request).unwrap();
    for part in [
        "<status>pending</status>",
        "<progress>0%</progress>",
        "<volumeSize>3</volumeSize>",
        "<encrypted>true</encrypted>",
        "<description>d</description>",
        "<key>a</key>",
        &format!("<volumeId>{volume}</volumeId>"),
    ] {
        assert!(answer.contains(part), "{part}: {answer}");
    }
    assert!(!answer.contains("completionTime"));
    let id = client.text("DescribeSnapshots", "snapshotId");
    let world = client.agent.state.read();
    assert_eq!(record(&client, &id).layer, before);
    let top = &world.get::<Volume>(&volume).unwrap().layer;
    assert_eq!(world.get::<Layer>(top).unwrap().parent.as_ref(), Some(&before));

    client.refuses(&[
        (&format!("CreateVolume&AvailabilityZone=us-east-1a&SnapshotId={id}"), "IncorrectState"),
        (&format!("CopySnapshot&SourceRegion=us-east-1&SourceSnapshotId={id}"), "IncorrectState"),
        (
            &format!(
                "RegisterImage&Name=abc&RootDeviceName=/dev/xvda&BlockDeviceMapping.1.DeviceName=/dev/xvdb\
                 &BlockDeviceMapping.1.Ebs.SnapshotId={id}"
            ),
            "IncorrectState",
        ),
    ]);
    settle(&client);
    assert_eq!(client.text("DescribeSnapshots", "status"), "completed");
    assert_eq!(client.text("DescribeSnapshots", "progress"), "100%");
    assert_eq!(client.texts("DescribeSnapshots", "completionTime").len(), 1);
    let made = create(&client, &format!("SnapshotId={id}&Size=4"));
    let world = client.agent.state.read();
    let made = world.get::<Volume>(&made).unwrap();
    assert!(made.encrypted, "what is made of something encrypted is encrypted");
    assert_eq!(world.get::<Layer>(&made.layer).unwrap().parent.as_ref(), Some(&before));

    for (filter, value, count) in [
        ("status", "completed", 1),
        ("status", "pending", 0),
        ("volume-id", volume.as_str(), 1),
        ("volume-size", "3", 1),
        ("description", "d", 1),
        ("encrypted", "true", 1),
        ("encrypted", "false", 0),
        ("progress", "100%25", 1),
        ("owner-id", "000000000000", 1),
        ("owner-alias", "*", 0),
        ("start-time", "20*", 1),
        ("storage-tier", "standard", 1),
        ("transfer-type", "standard", 1),
        ("snapshot-id", id.as_str(), 1),
        ("tag:a", "b", 1),
        ("tag-key", "c", 0),
    ] {
        let request = format!("DescribeSnapshots&Filter.1.Name={filter}&Filter.1.Value.1={value}");
        assert_eq!(client.texts(&request, "snapshotId").len(), count, "{filter} {value}");
    }
}

#[test]
fn a_snapshot_that_failed_says_why() {
    let client = Client::new();
    let volume = create_in_use(&client, "Size=1");
    let id = take(&client, &volume);
    let layer = record(&client, &id).layer;
    change(&client, |draft| stack::fail(draft, &layer, "the disk is full"));
    assert_eq!(client.text("DescribeSnapshots", "status"), "error");
    assert_eq!(client.text("DescribeSnapshots", "statusMessage"), "the disk is full");
    client.refuses(&[
        (&format!("CreateVolume&AvailabilityZone=us-east-1a&SnapshotId={id}"), "IncorrectState"),
        (&format!("CopySnapshot&SourceRegion=us-east-1&SourceSnapshotId={id}"), "IncorrectState"),
    ]);
    client.ask(&format!("DeleteSnapshot&SnapshotId={id}")).unwrap();
}

#[test]
fn what_cannot_be_kept_is_refused() {
    let client = Client::new();
    let volume = create(&client, "Size=1");
    let request = format!("CreateSnapshot&VolumeId={volume}");
    let long = "x".repeat(256);
    client.refuses(&[
        ("CreateSnapshot", "MissingParameter"),
        ("CreateSnapshot&VolumeId=x", "InvalidVolumeID.Malformed"),
        ("CreateSnapshot&VolumeId=vol-12345678", "InvalidVolume.NotFound"),
        (&format!("{request}&DryRun=true"), "DryRunOperation"),
        (&format!("{request}&Description={long}"), "InvalidParameterValue"),
        (&format!("{request}&OutpostArn=o"), "UnsupportedOperation"),
        (&format!("{request}&Location=local"), "UnsupportedOperation"),
        (&format!("{request}&Location=moon"), "InvalidParameterValue"),
        (&format!("{request}&Colour=red"), "UnknownParameter"),
        (&format!("{request}&TagSpecification.1.ResourceType=volume"), "InvalidParameterValue"),
        ("DescribeSnapshots&MaxResults=4", "InvalidParameterValue"),
        ("DescribeSnapshots&MaxResults=5&SnapshotId.1=snap-12345678", "InvalidParameterCombination"),
        ("DescribeSnapshots&SnapshotId.1=snap-12345678", "InvalidSnapshot.NotFound"),
        ("DescribeSnapshots&Owner.1=me", "InvalidUserID.Malformed"),
        ("DescribeSnapshots&RestorableBy.1=amazon", "InvalidUserID.Malformed"),
        ("DescribeSnapshots&Filter.1.Name=colour&Filter.1.Value.1=red", "InvalidParameterValue"),
    ]);
    assert_eq!(client.ask_as(OTHER, &request).unwrap_err().code, "InvalidVolume.NotFound");
    for (state, code) in [
        (VolumeState::Creating, "IncorrectState"),
        (VolumeState::Deleting, "IncorrectState"),
        (VolumeState::Error, "IncorrectState"),
        (VolumeState::InUse, "DryRunOperation"),
    ] {
        change(&client, |draft| assert!(draft.update::<Volume>(&volume, |volume| volume.state = state)));
        client.refuses(&[(&format!("{request}&DryRun=true"), code)]);
    }
    assert!(client.texts("DescribeSnapshots", "snapshotId").is_empty());
}

#[test]
fn only_so_many_are_pending_at_a_time() {
    let client = Client::new();
    for (parameters, most) in [("Size=1&VolumeType=gp3", 5), ("Size=125&VolumeType=st1", 1)] {
        let volume = create_in_use(&client, parameters);
        for _ in 0..most {
            take(&client, &volume);
        }
        let request = format!("CreateSnapshot&VolumeId={volume}");
        client.refuses(&[(&request, "ConcurrentSnapshotLimitExceeded")]);
        settle(&client);
        client.ask(&request).unwrap();
    }
}

/// An instance with a root volume and two others; the ids of all.
fn instance(client: &Client) -> (String, [String; 3]) {
    let instance = client.instance(InstanceState::Running).to_string();
    let volumes = ["xvda", "sdf", "sdg"].map(|device| {
        let tags = format!(
            "TagSpecification.1.ResourceType=volume&TagSpecification.1.Tag.1.Key=device\
             &TagSpecification.1.Tag.1.Value={device}"
        );
        let volume = create(client, &format!("Size=1&{tags}"));
        let attach = format!("AttachVolume&VolumeId={volume}&InstanceId={instance}&Device=/dev/{device}");
        client.ask(&attach).unwrap();
        volume
    });
    (instance, volumes)
}

#[test]
fn the_volumes_of_an_instance_are_kept_at_once() {
    let client = Client::new();
    let (instance, [root, first, second]) = instance(&client);
    let request = format!("CreateSnapshots&InstanceSpecification.InstanceId={instance}");
    let answer = client.texts(&format!("{request}&Description=d"), "volumeId");
    assert_eq!(answer, [root.as_str(), &first, &second]);
    assert_eq!(client.texts("DescribeSnapshots", "description"), ["d"; 3]);
    let mut starts = client.texts("DescribeSnapshots", "startTime");
    starts.dedup();
    assert_eq!(starts.len(), 1, "they are of one point in time");

    let excluding = |volume: &str| format!("{request}&InstanceSpecification.ExcludeDataVolumeId.1={volume}");
    let no_root = "&InstanceSpecification.ExcludeBootVolume=true";
    for (request, expected) in [
        (format!("{request}{no_root}"), vec![&first, &second]),
        (excluding(&first), vec![&root, &second]),
        (excluding(&second) + no_root, vec![&first]),
    ] {
        assert_eq!(client.texts(&request, "volumeId").iter().collect::<Vec<_>>(), expected, "{request}");
    }
    let free = create(&client, "Size=1");
    let bare = client.instance(InstanceState::Running);
    client.refuses(&[
        ("CreateSnapshots", "MissingParameter"),
        ("CreateSnapshots&InstanceSpecification.InstanceId=i-12345678", "InvalidInstanceID.NotFound"),
        (&format!("CreateSnapshots&InstanceSpecification.InstanceId={bare}"), "InvalidParameterValue"),
        (&excluding(&root), "InvalidParameterValue"),
        (&excluding(&free), "InvalidParameterValue"),
        (&excluding("x"), "InvalidVolumeID.Malformed"),
        (
            &format!("{}{no_root}&InstanceSpecification.ExcludeDataVolumeId.2={second}", excluding(&first)),
            "InvalidParameterValue",
        ),
        (&format!("{request}&CopyTagsFromSource=instance"), "InvalidParameterValue"),
        (&format!("{request}&OutpostArn=o"), "UnsupportedOperation"),
        (&format!("{request}&DryRun=true"), "DryRunOperation"),
    ]);
}

#[test]
fn what_an_instance_had_is_not_kept_with_it() {
    let client = Client::new();
    let (instance, volumes) = instance(&client);
    change(&client, |draft| {
        for id in &volumes {
            assert!(draft.update::<Volume>(id, |volume| volume.attachment = None));
        }
    });
    let request = format!("CreateSnapshots&InstanceSpecification.InstanceId={instance}");
    client.refuses(&[(&request, "InvalidParameterValue")]);
}

#[test]
fn snapshots_of_an_instance_have_the_tags_of_its_volumes_if_asked_for() {
    let client = Client::new();
    let (instance, _) = instance(&client);
    let request = format!("CreateSnapshots&InstanceSpecification.InstanceId={instance}");
    let tag = |key: &str| {
        format!(
            "&TagSpecification.1.ResourceType=snapshot&TagSpecification.1.Tag.1.Key={key}\
             &TagSpecification.1.Tag.1.Value=own"
        )
    };
    for (parameters, expected) in [
        (String::new(), vec![]),
        ("&CopyTagsFromSource=volume".to_owned(), vec!["xvda", "sdf", "sdg"]),
        (tag("more"), vec!["own"; 3]),
        (format!("&CopyTagsFromSource=volume{}", tag("device")), vec!["own"; 3]),
        (
            format!("&CopyTagsFromSource=volume{}", tag("more")),
            vec!["xvda", "own", "sdf", "own", "sdg", "own"],
        ),
    ] {
        settle(&client);
        assert_eq!(client.texts(&format!("{request}{parameters}"), "value"), expected, "{parameters}");
    }
}

#[test]
fn a_copy_is_the_same_layer_and_its_owners_own() {
    let client = Client::new();
    let volume = create(&client, "Size=2");
    let source = take(&client, &volume);
    settle(&client);
    let request = format!("CopySnapshot&SourceSnapshotId={source}&SourceRegion");
    let tagged = "&TagSpecification.1.ResourceType=snapshot&TagSpecification.1.Tag.1.Key=a";
    let answer = client.ask(&format!("{request}=us-east-1&Description=c&Encrypted=true{tagged}")).unwrap();
    assert!(answer.contains("<key>a</key>"), "{answer}");
    let copied = client.text("DescribeSnapshots&Filter.1.Name=description&Filter.1.Value.1=c", "snapshotId");
    let (source_record, copy) = (record(&client, &source), record(&client, &copied));
    assert_eq!(copy.layer, source_record.layer);
    assert_eq!(copy.state, SnapshotState::Completed);
    assert_eq!((copy.volume_size, copy.encrypted, copy.volume), (2, true, None));
    let mine = "DescribeSnapshots&Filter.1.Name=description&Filter.1.Value.1=c";
    assert_eq!(client.text(mine, "volumeId"), "vol-ffffffff");
    client.refuses(&[
        (&format!("{request}=eu-west-1"), "InvalidParameterValue"),
        (&format!("{request}=us-east-1&DestinationRegion=eu-west-1"), "InvalidParameterValue"),
        (&format!("{request}=us-east-1&Encrypted=false"), "InvalidParameterValue"),
        (&format!("{request}=us-east-1&KmsKeyId=k"), "InvalidParameterDependency"),
        (&format!("{request}=us-east-1&KmsKeyId=k&Encrypted=true"), "UnsupportedOperation"),
        (&format!("{request}=us-east-1&DestinationOutpostArn=o"), "UnsupportedOperation"),
        (&format!("{request}=us-east-1&DestinationAvailabilityZone=z"), "UnsupportedOperation"),
        (&format!("{request}=us-east-1&DryRun=true"), "DryRunOperation"),
        ("CopySnapshot&SourceRegion=us-east-1&SourceSnapshotId=snap-12345678", "InvalidSnapshot.NotFound"),
        (&format!("CopySnapshot&SourceSnapshotId={source}"), "MissingParameter"),
    ]);
    // What others may use, they may copy; then it is theirs.
    let foreign = format!("{request}=us-east-1");
    assert_eq!(client.ask_as(OTHER, &foreign).unwrap_err().code, "InvalidSnapshot.NotFound");
    let permit = format!("ModifySnapshotAttribute&SnapshotId={source}&OperationType=add&UserId.1={OTHER}");
    client.ask(&permit).unwrap();
    client.ask_as(OTHER, &foreign).unwrap();
    client.ask(&format!("DeleteSnapshot&SnapshotId={source}")).unwrap();
    let theirs = client.ask_as(OTHER, "DescribeSnapshots").unwrap();
    assert_eq!(theirs.matches("<snapshotId>").count(), 1, "{theirs}");
    assert!(theirs.contains(&format!("<ownerId>{OTHER}</ownerId>")));
}

#[test]
fn a_snapshot_is_deleted_unless_an_image_needs_it() {
    let client = Client::new();
    let volume = create(&client, "Size=1");
    let [first, second] = [(); 2].map(|()| take(&client, &volume));
    settle(&client);
    create(&client, &format!("SnapshotId={first}"));
    let root = "RootDeviceName=/dev/xvda&BlockDeviceMapping.1.DeviceName=/dev/xvda&BlockDeviceMapping.1.Ebs.SnapshotId";
    let image = client.text(&format!("RegisterImage&Name=abc&{root}={first}"), "imageId");
    let delete = |id: &str| format!("DeleteSnapshot&SnapshotId={id}");
    let error = client.ask(&delete(&first)).unwrap_err();
    assert_eq!(error.code, "InvalidSnapshot.InUse");
    assert_eq!(error.message, format!("The snapshot {first} is currently in use by {image}"));
    client.refuses(&[
        ("DeleteSnapshot", "MissingParameter"),
        ("DeleteSnapshot&SnapshotId=x", "InvalidSnapshotID.Malformed"),
        ("DeleteSnapshot&SnapshotId=snap-12345678", "InvalidSnapshot.NotFound"),
        (&format!("{}&DryRun=true", delete(&first)), "InvalidSnapshot.InUse"),
        (&format!("{}&DryRun=true", delete(&second)), "DryRunOperation"),
    ]);
    assert_eq!(client.ask_as(OTHER, &delete(&second)).unwrap_err().code, "InvalidSnapshot.NotFound");
    client
        .ask(&format!("ModifySnapshotAttribute&SnapshotId={second}&CreateVolumePermission.Add.1.Group=all"))
        .unwrap();
    assert_eq!(client.ask_as(OTHER, &delete(&second)).unwrap_err().code, "AuthFailure");
    client.ask(&format!("CreateTags&ResourceId.1={first}&Tag.1.Key=a")).unwrap();
    client.ask(&format!("DeregisterImage&ImageId={image}")).unwrap();
    // The older one first: the newer one, and the volumes, keep what they need.
    for id in [&first, &second] {
        client.ask(&delete(id)).unwrap();
        client.refuses(&[(&delete(id), "InvalidSnapshot.NotFound")]);
    }
    let world = client.agent.state.read();
    assert!(world.tags(&first).is_none());
    assert_eq!(stack::unneeded(&world), []);
}

#[test]
fn others_use_what_they_are_permitted_to() {
    let client = Client::new();
    let volume = create(&client, "Size=1");
    let id = take(&client, &volume);
    settle(&client);
    let sees = |parameters: &str| {
        client.ask_as(OTHER, &format!("DescribeSnapshots{parameters}")).unwrap().contains(&id)
    };
    let make = format!("CreateVolume&AvailabilityZone=us-east-1a&SnapshotId={id}");
    let modify = |rest: &str| client.ask(&format!("ModifySnapshotAttribute&SnapshotId={id}&{rest}")).unwrap();
    let describe = format!("DescribeSnapshotAttribute&SnapshotId={id}&Attribute=createVolumePermission");
    assert!(!sees(""));
    assert_eq!(client.ask_as(OTHER, &make).unwrap_err().code, "InvalidSnapshot.NotFound");
    modify(&format!("CreateVolumePermission.Add.1.UserId={OTHER}"));
    assert_eq!(client.text(&describe, "userId"), OTHER);
    client.ask_as(OTHER, &make).unwrap();
    for (parameters, expected) in [
        ("", true),
        ("&Owner.1=self", false),
        ("&Owner.1=000000000000", true),
        ("&Owner.1=amazon", false),
        ("&RestorableBy.1=self", true),
        ("&RestorableBy.1=all", false),
        ("&RestorableBy.1=111111111111", true),
        ("&RestorableBy.1=222222222222", false),
    ] {
        assert_eq!(sees(parameters), expected, "{parameters}");
    }
    assert_eq!(client.ask_as(OTHER, &describe).unwrap_err().code, "AuthFailure");
    modify(&format!("CreateVolumePermission.Remove.1.UserId={OTHER}"));
    assert!(!sees(""));
    modify("Attribute=createVolumePermission&OperationType=add&UserGroup.1=all");
    assert_eq!(client.text(&describe, "group"), "all");
    assert!(sees("") && sees("&RestorableBy.1=all"));
    client.ask(&format!("ResetSnapshotAttribute&SnapshotId={id}&Attribute=createVolumePermission")).unwrap();
    assert!(!sees(""));
    let codes = format!("DescribeSnapshotAttribute&SnapshotId={id}&Attribute=productCodes");
    assert!(client.ask(&codes).unwrap().contains("productCodes"));

    let modify = |rest: &str| format!("ModifySnapshotAttribute&SnapshotId={id}{rest}");
    client.refuses(&[
        (&format!("DescribeSnapshotAttribute&SnapshotId={id}&Attribute=colour"), "InvalidParameterValue"),
        (&format!("DescribeSnapshotAttribute&SnapshotId={id}"), "MissingParameter"),
        (&modify(""), "InvalidParameterCombination"),
        (&modify("&UserId.1=111111111111"), "MissingParameter"),
        (&modify("&UserId.1=111111111111&OperationType=give"), "InvalidParameterValue"),
        (&modify("&UserId.1=x&OperationType=add"), "InvalidParameterValue"),
        (&modify("&UserGroup.1=some&OperationType=add"), "InvalidParameterValue"),
        (&modify("&Attribute=productCodes&UserGroup.1=all&OperationType=add"), "InvalidParameterValue"),
        (&modify("&CreateVolumePermission.Add.1.OrganizationArn=x"), "UnknownParameter"),
        (
            &modify(
                "&CreateVolumePermission.Add.1.Group=all&CreateVolumePermission.Add.1.UserId=111111111111",
            ),
            "InvalidParameterCombination",
        ),
        (
            &modify(
                "&CreateVolumePermission.Add.1.Group=all&CreateVolumePermission.Remove.1.UserId=111111111111",
            ),
            "InvalidParameterCombination",
        ),
        (&modify("&CreateVolumePermission.Add.1.Group=all&DryRun=true"), "DryRunOperation"),
        (&format!("ResetSnapshotAttribute&SnapshotId={id}&Attribute=productCodes"), "InvalidParameterValue"),
    ]);
    change(&client, |draft| assert!(draft.update::<Snapshot>(&id, |snapshot| snapshot.encrypted = true)));
    client.refuses(&[(&modify("&CreateVolumePermission.Add.1.Group=all"), "OperationNotPermitted")]);
}

#[test]
fn instances_have_volumes_of_snapshots_that_are_complete() {
    let client = Client::new();
    let volume = create_in_use(&client, "Size=1&Encrypted=true");
    let root = take(&client, &volume);
    settle(&client);
    let mapped = |number: u8, device: &str, id: &str| {
        let mapping = format!("&BlockDeviceMapping.{number}");
        format!("{mapping}.DeviceName={device}{mapping}.Ebs.SnapshotId={id}")
    };
    let register = format!("RegisterImage&Name=abc{}", mapped(1, "/dev/xvda", &root));
    let image = client.text(&register, "imageId");
    let run = format!("RunInstances&ImageId={image}&MinCount=1&MaxCount=1");
    let data = take(&client, &volume);
    client.refuses(&[(&format!("{run}{}", mapped(1, "/dev/sdf", &data)), "IncorrectState")]);
    settle(&client);
    client.ask(&format!("{run}{}", mapped(1, "/dev/sdf", &data))).unwrap();
    let world = client.agent.state.read();
    let made: Vec<_> = world.all::<Volume>().filter(|made| made.snapshot.is_some()).collect();
    assert_eq!(made.len(), 2);
    for volume in made {
        assert!(volume.encrypted, "what is made of something encrypted is encrypted");
        let snapshot = volume.snapshot.as_ref().and_then(|id| world.get::<Snapshot>(id)).unwrap();
        assert_eq!(world.get::<Layer>(&volume.layer).unwrap().parent.as_ref(), Some(&snapshot.layer));
    }
}

#[test]
fn a_volume_has_no_more_layers_than_its_vmm_can_name() {
    let client = Client::new();
    let volume = create(&client, "Size=1");
    let request = format!("CreateSnapshot&VolumeId={volume}");
    let snapshot = client.text(&request, "snapshotId");
    // As if many had been taken, and each were still needed.
    let layers = client.agent.state.change(|draft| {
        let mut below = None;
        for _ in 1..stack::MAX_DEPTH {
            below = Some(stack::found(draft, below.as_ref(), 1));
        }
        draft.update::<Volume>(&volume, |volume| volume.layer = below.clone().unwrap());
        Ok::<_, ApiError>(below)
    });
    let top = layers.unwrap();
    let dry = format!("{request}&DryRun=true");
    client.refuses(&[(&dry, "DryRunOperation")]);
    client
        .agent
        .state
        .change(|draft| {
            let next = stack::found(draft, top.as_ref(), 1);
            draft.update::<Volume>(&volume, |volume| volume.layer = next);
            Ok::<_, ApiError>(())
        })
        .unwrap();
    client.refuses(&[(&dry, "SnapshotLimitExceeded"), (&request, "SnapshotLimitExceeded")]);
    assert_eq!(client.texts("DescribeSnapshots", "snapshotId"), [snapshot]);
}
