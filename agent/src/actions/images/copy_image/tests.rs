use jiff::Timestamp;

use crate::actions::testing::Client;
use crate::query::ApiError;
use crate::records::{Image, ImageState, Layer, LayerState, Snapshot, StoreDisk};
use crate::state::Draft;
use crate::volumes::stack;

const OTHER: &str = "111111111111";

/// A client with the image `source`, of a snapshot, whose ids are given back.
fn lab() -> (Client, String, String) {
    let client = Client::new();
    let volume = client.text("CreateVolume&AvailabilityZone=us-east-1a&Size=2", "volumeId");
    let snapshot = client.text(&format!("CreateSnapshot&VolumeId={volume}"), "snapshotId");
    change(&client, |draft| {
        let covered: Vec<_> = draft.all::<Layer>().filter_map(|layer| layer.parent.clone()).collect();
        stack::advance(draft, &covered, LayerState::Sealed, Timestamp::UNIX_EPOCH);
    });
    let register = format!(
        "RegisterImage&Name=source&RootDeviceName=/dev/xvda&ImdsSupport=v2.0&BootMode=uefi\
         &BlockDeviceMapping.1.DeviceName=/dev/xvda&BlockDeviceMapping.1.Ebs.SnapshotId={snapshot}\
         &BlockDeviceMapping.1.Ebs.DeleteOnTermination=false\
         &BlockDeviceMapping.2.DeviceName=/dev/sdb&BlockDeviceMapping.2.VirtualName=ephemeral0\
         &BlockDeviceMapping.3.DeviceName=/dev/sdf&BlockDeviceMapping.3.Ebs.VolumeSize=1\
         &TagSpecification.1.ResourceType=image&TagSpecification.1.Tag.1.Key=a&TagSpecification.1.Tag.1.Value=1"
    );
    let image = client.text(&register, "imageId");
    (client, image, snapshot)
}

fn change(client: &Client, what: impl Fn(&mut Draft)) {
    let all = |draft: &mut Draft| {
        what(draft);
        Ok::<_, ApiError>(())
    };
    client.agent.state.change(all).unwrap();
}

fn request(image: &str, rest: &str) -> String {
    format!("CopyImage&SourceImageId={image}&SourceRegion=us-east-1&Name=copied{rest}")
}

#[test]
fn a_copy_has_snapshots_of_its_own() {
    let (client, source, snapshot) = lab();
    let tags = "&TagSpecification.1.ResourceType=image&TagSpecification.1.Tag.1.Key=b\
                &TagSpecification.2.ResourceType=snapshot&TagSpecification.2.Tag.1.Key=c";
    let id = client.text(&request(&source, &format!("&Description=d&CopyImageTags=true{tags}")), "imageId");
    let world = client.agent.state.read();
    let (original, image) = (world.get::<Image>(&source).unwrap(), world.get::<Image>(&id).unwrap());
    let copied = image.block_devices[0].volume.as_ref().unwrap().snapshot.clone().unwrap();
    let mut expected = original.block_devices.clone();
    expected[0].volume.as_mut().unwrap().snapshot = Some(copied.clone());
    assert_eq!(image.block_devices, expected);
    assert_ne!(copied.as_str(), snapshot);
    assert_eq!(
        (&image.boot, &image.boot_mode, &image.imds_support),
        (&original.boot, &original.boot_mode, &original.imds_support)
    );
    assert_eq!((image.name.as_str(), image.description.as_deref()), ("copied", Some("d")));
    assert_eq!(image.state, ImageState::Available);
    assert_eq!(
        world.get::<Snapshot>(&copied).unwrap().layer,
        world.get::<Snapshot>(&snapshot).unwrap().layer
    );
    assert_eq!(world.tags(&id).unwrap().keys().collect::<Vec<_>>(), ["a", "b"]);
    assert_eq!(world.tags(&copied).unwrap().keys().collect::<Vec<_>>(), ["c"]);
    for (filter, value, count) in [
        ("source-image-id", source.as_str(), 1),
        ("source-image-region", "us-east-1", 1),
        ("source-instance-id", "*", 0),
    ] {
        let request = format!("DescribeImages&Filter.1.Name={filter}&Filter.1.Value.1={value}");
        assert_eq!(client.texts(&request, "imageId").len(), count, "{filter}");
    }
    // It does not need what it was made of.
    let delete = format!("DeregisterImage&ImageId={source}&DeleteAssociatedSnapshots=true");
    assert_eq!(client.text(&delete, "returnCode"), "success");
    client.refuses(&[(&format!("DeleteSnapshot&SnapshotId={copied}"), "InvalidSnapshot.InUse")]);
}

#[test]
fn a_copy_is_made_once_for_a_token() {
    let (client, source, _) = lab();
    let once = request(&source, "&ClientToken=t");
    let id = client.text(&once, "imageId");
    assert_eq!(client.text(&once, "imageId"), id);
    client.refuses(&[
        (&request(&source, "&ClientToken=t&Description=d"), "IdempotentParameterMismatch"),
        (&request(&source, "&ClientToken=u"), "InvalidAMIName.Duplicate"),
        (&request(&source, ""), "InvalidAMIName.Duplicate"),
    ]);
}

#[test]
fn a_copy_can_be_called_encrypted_and_not_the_contrary() {
    let (client, source, _) = lab();
    let id = client.text(&request(&source, "&Encrypted=true"), "imageId");
    let world = client.agent.state.read();
    let volume = world.get::<Image>(&id).unwrap().block_devices[0].volume.clone().unwrap();
    assert!(volume.encrypted && world.get::<Snapshot>(volume.snapshot.unwrap()).unwrap().encrypted);
    client.refuses(&[(&request(&id, "-2&Encrypted=false"), "InvalidParameterValue")]);
    client.ask(&request(&source, "-2&Encrypted=false")).unwrap();
}

#[test]
fn a_root_in_the_instance_store_is_copied() {
    let (client, source, _) = lab();
    let root = StoreDisk {
        name: StoreDisk::ROOT.into(),
        device_name: None,
        size: 1 << 30,
        layer: Some(crate::ids::LayerId::random()),
        source: None,
    };
    change(&client, |draft| {
        draft.update::<Image>(&source, |image| {
            image.root_store = Some(root.clone());
            image.block_devices.remove(0);
        });
    });
    let id = client.text(&request(&source, ""), "imageId");
    assert_eq!(client.agent.state.read().get::<Image>(&id).unwrap().root_store, Some(root));
}

#[test]
fn others_copy_what_they_are_permitted_to() {
    let (client, source, snapshot) = lab();
    let ask = |rest: &str| client.ask_as(OTHER, &request(&source, rest));
    assert_eq!(ask("").unwrap_err().code, "InvalidAMIID.NotFound");
    client
        .ask(&format!("ModifyImageAttribute&ImageId={source}&LaunchPermission.Add.1.UserId={OTHER}"))
        .unwrap();
    assert_eq!(ask("").unwrap_err().code, "InvalidRequest");
    let permit = format!("ModifySnapshotAttribute&SnapshotId={snapshot}&OperationType=add&UserId.1={OTHER}");
    client.ask(&permit).unwrap();
    ask("&CopyImageTags=true").unwrap();
    let world = client.agent.state.read();
    let copied = world.all::<Image>().find(|image| image.owner == OTHER).unwrap();
    assert!(copied.launch_permissions.is_empty());
    assert!(world.tags(&copied.id).is_none(), "the tags of others are theirs");
}

#[test]
fn what_cannot_be_copied_is_refused() {
    let (client, source, _) = lab();
    client.refuses(&[
        (&request(&source, "&DryRun=true"), "DryRunOperation"),
        (&request("ami-12345678", ""), "InvalidAMIID.NotFound"),
        (&request("x", ""), "InvalidAMIID.Malformed"),
        (&request(&source, "%3A"), "InvalidAMIName.Malformed"),
        (&request(&source, "&KmsKeyId=k"), "InvalidParameterDependency"),
        (&request(&source, "&KmsKeyId=k&Encrypted=true"), "UnsupportedOperation"),
        (&request(&source, "&DestinationOutpostArn=o"), "UnsupportedOperation"),
        (&request(&source, "&DestinationAvailabilityZone=z"), "UnsupportedOperation"),
        (&request(&source, "&DestinationAvailabilityZoneId=z"), "UnsupportedOperation"),
        (&request(&source, "&TagSpecification.1.ResourceType=volume"), "InvalidParameterValue"),
        (&format!("CopyImage&SourceImageId={source}&Name=copied"), "MissingParameter"),
        (
            &format!("CopyImage&SourceImageId={source}&Name=copied&SourceRegion=eu-west-1"),
            "InvalidParameterValue",
        ),
        (&format!("ResetImageAttribute&ImageId={source}&Attribute=description"), "InvalidParameterValue"),
        ("ResetImageAttribute&ImageId=ami-12345678&Attribute=launchPermission", "InvalidAMIID.NotFound"),
    ]);
    change(&client, |draft| {
        draft.update::<Image>(&source, |image| image.state = ImageState::Pending);
    });
    client.refuses(&[(&request(&source, ""), "InvalidAMIID.Unavailable")]);
}

#[test]
fn launch_permissions_are_taken_back() {
    let (client, source, _) = lab();
    client.ask(&format!("ModifyImageAttribute&ImageId={source}&LaunchPermission.Add.1.Group=all")).unwrap();
    assert_eq!(client.text("DescribeImages", "isPublic"), "true");
    client.ask(&format!("ResetImageAttribute&ImageId={source}&Attribute=launchPermission")).unwrap();
    assert_eq!(client.text("DescribeImages", "isPublic"), "false");
}
