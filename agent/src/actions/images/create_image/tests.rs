use jiff::Timestamp;

use crate::actions::testing::Client;
use crate::ids::ImageId;
use crate::query::ApiError;
use crate::records::{
    BootFiles, Image, ImageState, Instance, InstanceState, Layer, LayerState, Mapping, Snapshot, Step,
    StoreDisk, Volume, VolumeState,
};
use crate::state::Draft;
use crate::volumes::snapshots::photograph;
use crate::volumes::stack;

/// A client with an instance in this state that has a root volume of 8 GiB, which goes with it, and another of 3 GiB.
struct Lab {
    client: Client,
    instance: String,
    root: String,
    data: String,
}

impl Lab {
    fn new(state: InstanceState) -> Self {
        let client = Client::new();
        let instance = client.instance(InstanceState::Running).to_string();
        let volume = |device: &str, parameters: &str| {
            let create = format!("CreateVolume&AvailabilityZone=us-east-1a&{parameters}");
            let volume = client.text(&create, "volumeId");
            let attach = format!("AttachVolume&VolumeId={volume}&InstanceId={instance}&Device={device}");
            client.ask(&attach).unwrap();
            volume
        };
        // The root need not be the first that it got.
        let data = volume("/dev/sdf", "Size=3&VolumeType=gp3&Iops=3000&Throughput=150&Encrypted=true");
        let root = volume("/dev/xvda", "Size=8&VolumeType=gp2");
        let delete =
            "BlockDeviceMapping.1.DeviceName=/dev/xvda&BlockDeviceMapping.1.Ebs.DeleteOnTermination=true";
        client.ask(&format!("ModifyInstanceAttribute&InstanceId={instance}&{delete}")).unwrap();
        let lab = Self { client, instance, root, data };
        lab.change_instance(|instance| {
            instance.lifecycle.state = state;
            instance.lifecycle.step = None;
            instance.boot = Some(boot());
        });
        lab
    }

    fn change(&self, what: impl Fn(&mut Draft)) {
        let all = |draft: &mut Draft| {
            what(draft);
            Ok::<_, ApiError>(())
        };
        self.client.agent.state.change(all).unwrap();
    }

    fn change_instance(&self, what: impl Fn(&mut Instance)) {
        self.change(|draft| assert!(draft.update::<Instance>(&self.instance, |instance| what(instance))));
    }

    fn request(&self, rest: &str) -> String {
        format!("CreateImage&InstanceId={}&Name=made{rest}", self.instance)
    }

    fn make(&self, rest: &str) -> Image {
        let id = self.client.text(&self.request(rest), "imageId");
        self.image(&id)
    }

    fn image(&self, id: impl AsRef<str>) -> Image {
        Image::clone(self.client.agent.state.read().get::<Image>(id).unwrap())
    }

    fn layer(&self, volume: &str) -> String {
        self.client.agent.state.read().get::<Volume>(volume).unwrap().layer.to_string()
    }

    /// Has what the storage does in time done.
    fn settle(&self) {
        self.change(|draft| {
            let covered: Vec<_> = draft.all::<Layer>().filter_map(|layer| layer.parent.clone()).collect();
            stack::advance(draft, &covered, LayerState::Sealed, Timestamp::UNIX_EPOCH);
        });
    }

    fn photograph(&self, image: &ImageId) -> usize {
        let all = |draft: &mut Draft| Ok::<_, ApiError>(photograph(draft, image, Timestamp::UNIX_EPOCH));
        self.client.agent.state.change(all).unwrap().len()
    }
}

fn boot() -> BootFiles {
    BootFiles { kernel: "/images/one/vmlinux".into(), initrd: None, command_line: "quiet".into() }
}

/// What mappings have: the device, the size, and whether there is a snapshot.
fn outline(image: &Image) -> Vec<(&str, u32, bool)> {
    let mut lines = Vec::new();
    for Mapping { device_name, volume, .. } in &image.block_devices {
        let size = volume.as_ref().map_or(0, |volume| volume.size);
        let has_snapshot = volume.as_ref().is_some_and(|volume| volume.snapshot.is_some());
        lines.push((device_name.as_str(), size, has_snapshot));
    }
    lines
}

#[test]
fn a_stopped_instance_is_photographed_at_once() {
    for (state, rest) in [
        (InstanceState::Stopped, ""),
        (InstanceState::Stopped, "&NoReboot=true"),
        (InstanceState::Running, "&NoReboot=true"),
        (InstanceState::Stopping, "&NoReboot=true"),
    ] {
        let lab = Lab::new(state);
        let (root, data) = (lab.layer(&lab.root), lab.layer(&lab.data));
        let image = lab.make(rest);
        assert_eq!(image.state, ImageState::Pending);
        assert_eq!((&image.waits_for, &image.awaited), (&None, &None));
        assert_eq!(outline(&image), [("/dev/xvda", 8, true), ("/dev/sdf", 3, true)]);
        let world = lab.client.agent.state.read();
        let instance = world.get::<Instance>(&lab.instance).unwrap();
        assert_eq!((instance.lifecycle.state, &instance.lifecycle.step), (state, &None));
        for (mapping, layer, volume) in
            [(&image.block_devices[0], root, &lab.root), (&image.block_devices[1], data, &lab.data)]
        {
            let id = mapping.volume.as_ref().unwrap().snapshot.as_ref().unwrap();
            let snapshot = world.get::<Snapshot>(id).unwrap();
            assert_eq!(snapshot.layer.to_string(), layer);
            assert_eq!(snapshot.volume.as_ref().map(ToString::to_string).as_ref(), Some(volume));
            let expected = format!("Created by CreateImage({}) for {}", lab.instance, image.id);
            assert_eq!(snapshot.description, expected);
        }
        let told = format!("DescribeImages&ImageId.1={}", image.id);
        assert_eq!(lab.client.text(&told, "imageState"), "pending");
        lab.settle();
        assert_eq!(lab.client.text(&told, "imageState"), "available");
        assert_eq!(lab.client.text(&told, "sourceInstanceId"), lab.instance);
    }
}

#[test]
fn an_image_has_what_its_instance_has() {
    let lab = Lab::new(InstanceState::Stopped);
    lab.change_instance(|instance| {
        let disk = |name: &str, device: Option<&str>| StoreDisk {
            name: name.into(),
            device_name: device.map(ToOwned::to_owned),
            size: 1 << 30,
            layer: None,
            source: None,
        };
        instance.instance_store = vec![disk("ephemeral0", Some("/dev/sdb")), disk("ephemeral1", None)];
    });
    let launched_from = lab.client.agent.state.read().get::<Instance>(&lab.instance).unwrap().image.clone();
    let template = lab.make("");
    lab.client.put(Image {
        id: launched_from,
        name: "origin".into(),
        boot_mode: Some("uefi".into()),
        imds_support: Some("v2.0".into()),
        block_devices: Vec::new(),
        state: ImageState::Available,
        ..template
    });
    let tags = "&TagSpecification.1.ResourceType=image&TagSpecification.1.Tag.1.Key=a\
                &TagSpecification.2.ResourceType=snapshot&TagSpecification.2.Tag.1.Key=b";
    let request = lab.request(&format!("-2&Description=d{tags}"));
    let image = lab.image(lab.client.text(&request, "imageId"));
    assert_eq!(image.description.as_deref(), Some("d"));
    assert_eq!((image.boot_mode.as_deref(), image.imds_support.as_deref()), (Some("uefi"), Some("v2.0")));
    assert_eq!((image.boot, image.architecture.as_str()), (Some(boot()), "x86_64"));
    assert_eq!(image.root_device_name, "/dev/xvda");
    assert_eq!(image.location, "000000000000/made-2");
    let [root, data, store] = &image.block_devices[..] else { panic!("{:?}", image.block_devices) };
    let volume = root.volume.as_ref().unwrap();
    assert_eq!((volume.volume_type.as_str(), volume.iops, volume.throughput), ("gp2", None, None));
    assert!(volume.delete_on_termination && !volume.encrypted);
    let volume = data.volume.as_ref().unwrap();
    assert_eq!((volume.volume_type.as_str(), volume.iops, volume.throughput), ("gp3", Some(3000), Some(150)));
    assert!(!volume.delete_on_termination && volume.encrypted);
    assert_eq!((store.device_name.as_str(), store.virtual_name.as_deref()), ("/dev/sdb", Some("ephemeral0")));
    let world = lab.client.agent.state.read();
    assert!(world.tags(&image.id).unwrap().contains_key("a"));
    assert!(world.tags(volume.snapshot.as_ref().unwrap()).unwrap().contains_key("b"));
}

#[test]
fn an_instance_that_runs_is_rebooted_and_photographed_when_it_is_down() {
    let lab = Lab::new(InstanceState::Running);
    let tag = "&TagSpecification.1.ResourceType=snapshot&TagSpecification.1.Tag.1.Key=b";
    let asked = lab.make(tag);
    assert_eq!(asked.waits_for.as_ref().map(ToString::to_string).as_ref(), Some(&lab.instance));
    assert_eq!(outline(&asked), [("/dev/xvda", 8, false), ("/dev/sdf", 3, false)]);
    let world = lab.client.agent.state.read();
    assert_eq!(world.get::<Instance>(&lab.instance).unwrap().lifecycle.step, Some(Step::Reboot));
    assert!(world.all::<Snapshot>().next().is_none());
    assert_eq!(lab.client.texts("DescribeImages", "imageState"), ["pending"]);
    // What it becomes meanwhile is in it.
    lab.change(|draft| {
        draft.update::<Volume>(&lab.data, |volume| volume.size = 5);
    });
    assert_eq!(lab.photograph(&asked.id), 2);
    let image = lab.image(&asked.id);
    assert_eq!(outline(&image), [("/dev/xvda", 8, true), ("/dev/sdf", 5, true)]);
    assert_eq!((&image.waits_for, &image.awaited, image.state), (&None, &None, ImageState::Pending));
    let world = lab.client.agent.state.read();
    assert!(world.all::<Snapshot>().all(|snapshot| world.tags(&snapshot.id).is_some()));
    let mut starts: Vec<_> = world.all::<Snapshot>().map(|snapshot| snapshot.started).collect();
    starts.dedup();
    assert_eq!(starts, [Timestamp::UNIX_EPOCH]);
    // Once is enough.
    assert_eq!(lab.photograph(&asked.id), 0);
    assert_eq!(lab.client.agent.state.read().all::<Snapshot>().count(), 2);
    lab.settle();
    assert_eq!(lab.image(&asked.id).state, ImageState::Available);
    assert_eq!(lab.photograph(&"ami-12345678".parse().unwrap()), 0);
}

#[test]
fn snapshots_of_others_do_not_complete_an_image_that_waits() {
    let lab = Lab::new(InstanceState::Running);
    let asked = lab.make("");
    lab.client.ask(&format!("CreateSnapshot&VolumeId={}", lab.root)).unwrap();
    lab.settle();
    assert_eq!(lab.image(&asked.id).state, ImageState::Pending);
    assert_eq!(lab.photograph(&asked.id), 2);
    lab.settle();
    assert_eq!(lab.image(&asked.id).state, ImageState::Available);
}

#[test]
fn an_instance_that_is_being_stopped_is_waited_for() {
    let lab = Lab::new(InstanceState::Stopping);
    let image = lab.make("");
    assert!(image.waits_for.is_some());
    let world = lab.client.agent.state.read();
    assert_eq!(world.get::<Instance>(&lab.instance).unwrap().lifecycle.step, None);
    assert_eq!(lab.photograph(&image.id), 2);
}

#[test]
fn an_image_fails_with_its_volumes_and_its_snapshots() {
    let lab = Lab::new(InstanceState::Running);
    let image = lab.make("");
    lab.change(|draft| draft.remove::<Volume>(&lab.data));
    assert_eq!(lab.photograph(&image.id), 0);
    let told = format!("DescribeImages&ImageId.1={}", image.id);
    assert_eq!(lab.client.text(&told, "imageState"), "failed");
    let message = lab.client.text(&told, "message");
    assert!(message.contains(&lab.data), "{message}");
    assert_eq!(lab.client.agent.state.read().all::<Snapshot>().count(), 0);

    let lab = Lab::new(InstanceState::Stopped);
    let layer = lab.client.agent.state.read().get::<Volume>(&lab.root).unwrap().layer.clone();
    let image = lab.make("");
    lab.change(|draft| stack::fail(draft, &layer, "the disk is full"));
    let told = format!("DescribeImages&ImageId.1={}", image.id);
    assert_eq!(lab.client.text(&told, "imageState"), "failed");
    let message = lab.client.text(&told, "message");
    assert!(
        message.starts_with("Server.InternalError") && message.ends_with("the disk is full"),
        "{message}"
    );
    for (filter, value, count) in [
        ("state-reason-code", "Server.InternalError", 1),
        ("state-reason-message", "*full", 1),
        ("source-instance-id", lab.instance.as_str(), 1),
        ("source-image-id", "*", 0),
        ("state", "failed", 1),
    ] {
        let request = format!("DescribeImages&Filter.1.Name={filter}&Filter.1.Value.1={value}");
        assert_eq!(lab.client.texts(&request, "imageId").len(), count, "{filter}");
    }
}

/// `BlockDeviceMapping.N` for devices and what is said of each.
fn mappings(all: &[(&str, &str)]) -> String {
    let one = |(number, (device, what)): (usize, &(&str, &str))| {
        format!("&BlockDeviceMapping.{number}.DeviceName={device}&BlockDeviceMapping.{number}.{what}")
    };
    (1..).zip(all).map(one).collect()
}

#[test]
fn an_image_has_other_mappings_if_asked_for() {
    let (root, data) = (("/dev/xvda", 8, true), ("/dev/sdf", 3, true));
    for (asked, expected) in [
        (vec![("/dev/sdf", "NoDevice=")], vec![root]),
        (vec![("/dev/sdf", "VirtualName=ephemeral0")], vec![root, ("/dev/sdf", 0, false)]),
        (vec![("/dev/sdf", "Ebs.VolumeSize=4")], vec![root, ("/dev/sdf", 4, true)]),
        (vec![("/dev/sdf", "Ebs.VolumeSize=3")], vec![root, data]),
        (vec![("/dev/sdf", "Ebs.Encrypted=true")], vec![root, data]),
        (vec![("/dev/sdg", "Ebs.VolumeSize=1")], vec![root, data, ("/dev/sdg", 1, false)]),
        (vec![("/dev/sdg", "VirtualName=ephemeral1")], vec![root, data, ("/dev/sdg", 0, false)]),
        (vec![("/dev/sdg", "NoDevice=")], vec![root, data]),
        (vec![("/dev/xvda", "Ebs.VolumeType=gp3")], vec![root, data]),
        (
            vec![
                ("/dev/xvda", "Ebs.DeleteOnTermination=false"),
                ("/dev/sdf", "Ebs.DeleteOnTermination=true"),
            ],
            vec![root, data],
        ),
    ] {
        let lab = Lab::new(InstanceState::Stopped);
        let image = lab.make(&mappings(&asked));
        assert_eq!(outline(&image), expected, "{asked:?}");
        let deletes =
            |at: usize| image.block_devices[at].volume.as_ref().map(|one| one.delete_on_termination);
        let changes = asked.len() == 2;
        assert_eq!(deletes(0), Some(!changes), "{asked:?}");
        if changes {
            assert_eq!(deletes(1), Some(true));
        }
    }
    let lab = Lab::new(InstanceState::Stopped);
    let image = lab.make(&mappings(&[("/dev/xvda", "Ebs.VolumeType=io1&BlockDeviceMapping.1.Ebs.Iops=200")]));
    let volume = image.block_devices[0].volume.clone().unwrap();
    assert_eq!((volume.volume_type.as_str(), volume.iops, volume.throughput), ("io1", Some(200), None));
    // An instance store that is mapped elsewhere is not in two places.
    lab.change_instance(|instance| {
        instance.instance_store = vec![StoreDisk {
            name: "ephemeral0".into(),
            device_name: Some("/dev/sdb".into()),
            size: 1 << 30,
            layer: None,
            source: None,
        }];
    });
    for (number, asked) in
        [("/dev/sdc", "VirtualName=ephemeral0"), ("/dev/sdb", "NoDevice="), ("/dev/sdb", "Ebs.VolumeSize=1")]
            .iter()
            .enumerate()
    {
        lab.settle();
        let request = lab.request(&format!("-{number}{}", mappings(&[*asked])));
        let image = lab.image(lab.client.text(&request, "imageId"));
        let store: Vec<_> =
            image.block_devices.iter().filter(|mapping| mapping.virtual_name.is_some()).collect();
        assert_eq!(store.len(), usize::from(number == 0), "{asked:?}");
        assert!(store.iter().all(|mapping| mapping.device_name == "/dev/sdc"));
    }
}

#[test]
fn what_an_image_cannot_be_made_of_is_refused() {
    let lab = Lab::new(InstanceState::Running);
    let client = &lab.client;
    let with = |rest: &str| lab.request(rest);
    let mapped = |device: &str, what: &str| lab.request(&mappings(&[(device, what)]));
    let twice = lab.request(&mappings(&[("/dev/sdg", "Ebs.VolumeSize=1"), ("/dev/sdg", "Ebs.VolumeSize=1")]));
    let instance = &lab.instance;
    client.refuses(&[
        ("CreateImage&Name=made", "MissingParameter"),
        (&format!("CreateImage&InstanceId={instance}"), "MissingParameter"),
        (&format!("CreateImage&InstanceId={instance}&Name=x"), "InvalidAMIName.Malformed"),
        ("CreateImage&InstanceId=x&Name=made", "InvalidInstanceID.Malformed"),
        ("CreateImage&InstanceId=i-12345678&Name=made", "InvalidInstanceID.NotFound"),
        (&with("&DryRun=true"), "DryRunOperation"),
        (&with("&BootModeOverride=uefi"), "UnsupportedOperation"),
        (&with("&SnapshotLocation=local"), "UnsupportedOperation"),
        (&with(&format!("&Description={}", "x".repeat(256))), "InvalidParameterValue"),
        (&with("&TagSpecification.1.ResourceType=volume"), "InvalidParameterValue"),
        (&mapped("/dev/xvda", "NoDevice="), "InvalidBlockDeviceMapping"),
        (&mapped("/dev/xvda", "VirtualName=ephemeral0"), "InvalidBlockDeviceMapping"),
        (&mapped("/dev/xvda", "VirtualName=ami"), "InvalidBlockDeviceMapping"),
        (&mapped("/dev/xvda", "Ebs.VolumeSize=7"), "InvalidBlockDeviceMapping"),
        (&mapped("/dev/xvda", "Ebs.Encrypted=true"), "InvalidBlockDeviceMapping"),
        (&mapped("/dev/xvda", "Ebs.SnapshotId=snap-12345678"), "InvalidBlockDeviceMapping"),
        (&mapped("/dev/xvda", "Ebs.KmsKeyId=k"), "UnsupportedOperation"),
        (&mapped("/dev/xvda", "Ebs.VolumeType=io1"), "MissingParameter"),
        (&mapped("/dev/sdf", "Ebs.VolumeType=st1"), "InvalidParameterValue"),
        (&mapped("/dev/sdf", "Ebs.Iops=1"), "InvalidParameterValue"),
        (&mapped("/dev/sdf", "Ebs.VolumeSize=4&BlockDeviceMapping.1.NoDevice="), "InvalidBlockDeviceMapping"),
        (&mapped("/dev/sdg", "Ebs.SnapshotId=snap-12345678"), "InvalidSnapshot.NotFound"),
        (&mapped("/dev/sdg", "VirtualName=ephemeral24"), "InvalidBlockDeviceMapping"),
        (&mapped("/dev/sdg", "VirtualName=ami"), "InvalidBlockDeviceMapping"),
        (&mapped("/dev/vda", "Ebs.VolumeSize=1"), "InvalidBlockDeviceMapping"),
        (&mapped("/dev/sdg", "Ebs.DeleteOnTermination=true"), "MissingParameter"),
        (&twice, "InvalidBlockDeviceMapping"),
    ]);
    for state in [InstanceState::Pending, InstanceState::ShuttingDown, InstanceState::Terminated] {
        lab.change_instance(|instance| instance.lifecycle.state = state);
        client.refuses(&[(&with(""), "InvalidParameterValue")]);
    }
    lab.change_instance(|instance| instance.lifecycle.state = InstanceState::Stopped);
    lab.change(|draft| assert!(draft.update::<Volume>(&lab.data, |one| one.state = VolumeState::Error)));
    client.refuses(&[(&with(""), "IncorrectState")]);
    client.ask(&with(&mappings(&[("/dev/sdf", "NoDevice=")]))).unwrap();
    client.refuses(&[(&with(""), "InvalidAMIName.Duplicate")]);
    for _ in 0..4 {
        client.ask(&format!("CreateSnapshot&VolumeId={}", lab.root)).unwrap();
    }
    let other = with("-2") + &mappings(&[("/dev/sdf", "NoDevice=")]);
    client.refuses(&[(&other, "ConcurrentSnapshotLimitExceeded")]);

    // Without a root volume, or with a root that is none.
    let detach = format!("DetachVolume&VolumeId={}", lab.root);
    client.ask(&detach).unwrap();
    client.refuses(&[(&with("-3"), "InvalidParameterValue")]);
    let lab = Lab::new(InstanceState::Running);
    lab.change_instance(|instance| {
        let root = StoreDisk {
            name: StoreDisk::ROOT.into(),
            device_name: None,
            size: 1 << 30,
            layer: None,
            source: None,
        };
        instance.instance_store = vec![root];
        instance.block_devices.retain(|device| device.device_name != "/dev/xvda");
    });
    lab.client.refuses(&[(&lab.request(""), "InvalidParameterValue")]);
}
