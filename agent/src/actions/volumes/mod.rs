//! Volumes. The actions change records; the actor of an instance brings the guest's disks in line with them, and makes a
//! volume's file when it is first needed.

mod attach_volume;
mod create_volume;
mod delete_volume;
mod describe_volumes;
mod detach_volume;
mod item;

use crate::query::dispatch::Registry;

pub(super) fn register(registry: &mut Registry) {
    registry.add::<attach_volume::AttachVolume>();
    registry.add::<create_volume::CreateVolume>();
    registry.add::<delete_volume::DeleteVolume>();
    registry.add::<describe_volumes::DescribeVolumes>();
    registry.add::<detach_volume::DetachVolume>();
}

#[cfg(test)]
mod tests {
    use crate::actions::testing::Client;
    use crate::query::ApiError;
    use crate::records::{BlockDevice, Instance, InstanceState, Snapshot, Volume};
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
            (
                "CreateVolume&AvailabilityZone=us-east-1a&Size=1&MultiAttachEnabled=true",
                "UnsupportedOperation",
            ),
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
            (
                &format!("AttachVolume&VolumeId={volume}&InstanceId={pending}&Device=/dev/sdf"),
                "IncorrectState",
            ),
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
            let changed =
                client.agent.state.change(|draft| Ok::<_, ApiError>(draft.update(&instance, change)));
            assert!(changed.unwrap());
        };
        run(InstanceState::Running);
        client.refuses(&[(&format!("DetachVolume&VolumeId={root}"), "OperationNotPermitted")]);
        run(InstanceState::Stopped);
        client.ask(&format!("DetachVolume&VolumeId={root}")).unwrap();
    }
}
