//! Images: what instances are launched from.

mod copy_image;
mod create_image;
mod deregister_image;
mod describe_image_attribute;
mod describe_images;
mod mapping;
mod modify_image_attribute;
mod register_image;
mod reset_image_attribute;

use crate::ids::SnapshotId;
use crate::images;
use crate::query::dispatch::Registry;
use crate::query::{ApiError, Context};
use crate::records::Image;
use crate::state::World;

/// The most characters of a description.
const MAX_DESCRIPTION: usize = 255;

pub(super) fn register(registry: &mut Registry) {
    registry.add::<copy_image::CopyImage>();
    registry.add::<create_image::CreateImage>();
    registry.add::<deregister_image::DeregisterImage>();
    registry.add::<describe_image_attribute::DescribeImageAttribute>();
    registry.add::<describe_images::DescribeImages>();
    registry.add::<modify_image_attribute::ModifyImageAttribute>();
    registry.add::<register_image::RegisterImage>();
    registry.add::<reset_image_attribute::ResetImageAttribute>();
}

/// The snapshots that an image's volumes are made from.
fn snapshots(image: &Image) -> impl Iterator<Item = &SnapshotId> {
    image.block_devices.iter().filter_map(|mapping| mapping.volume.as_ref()?.snapshot.as_ref())
}

/// Whether the caller has no image of this name.
fn check_name_is_free(world: &World, context: Context<'_>, name: &str) -> Result<(), ApiError> {
    let mut own = world.all::<Image>().filter(|image| image.owner == context.caller.account);
    match own.find(|image| image.name == name) {
        None => Ok(()),
        Some(other) => {
            let message = format!("AMI name {name} is already in use by AMI {}", other.id);
            Err(ApiError::new("InvalidAMIName.Duplicate", message))
        }
    }
}

fn check_description(description: Option<&String>) -> Result<(), ApiError> {
    if description.is_some_and(|text| text.chars().count() > MAX_DESCRIPTION) {
        let message = format!("The description of an image has at most {MAX_DESCRIPTION} characters.");
        return Err(ApiError::new("InvalidParameterValue", message));
    }
    Ok(())
}

/// Removes the files that nobody needs any more. If it cannot, that is no reason to take back what was asked for.
fn clean_up(context: Context<'_>) {
    let directory = images::directory(&context.agent.config.state_directory);
    if let Err(error) = images::clean_up(&directory, &context.agent.state) {
        tracing::warn!(%error, "files of images that nobody needs stay behind for now");
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;
    use std::sync::Arc;
    use std::thread;
    use std::time::Duration;

    use innkeeper_block::Layered;
    use innkeeper_images::import::{Format, Import, Progress};

    use crate::actions::testing::Client;
    use crate::ids::LayerId;
    use crate::images::{Copying, clean_up, directory, fail_interrupted};
    use crate::records::{Image, ImageState, Instance, InstanceState, Snapshot};
    use crate::volumes::Volumes;
    use crate::volumes::layers::Access;

    /// A client of an agent that may read `import`, which has the image `debian` with a disk and `tiny` without.
    fn lab() -> (tempfile::TempDir, Client) {
        let lab = tempfile::tempdir().unwrap();
        let mut client = Client::new();
        client.agent.config.state_directory = lab.path().join("state");
        client.agent.volumes = Arc::new(Volumes::new(client.agent.state.clone(), &lab.path().join("state")));
        client.agent.config.image_directories = vec![lab.path().join("import")];
        for (image, files) in [("debian", &["vmlinux", "disk.raw"][..]), ("tiny", &["vmlinux"])] {
            let directory = lab.path().join("import").join(image);
            fs::create_dir_all(&directory).unwrap();
            for file in files {
                fs::write(directory.join(file), image).unwrap();
            }
        }
        (lab, client)
    }

    fn register(lab: &Path, name: &str, rest: &str) -> String {
        format!("RegisterImage&Name={name}&ImageLocation={}/import/debian{rest}", lab.display())
    }

    fn kept(client: &Client) -> usize {
        fs::read_dir(directory(&client.agent.config.state_directory)).map_or(0, |entries| entries.count())
    }

    /// The first bytes of what a layer has, if it is there.
    fn content(client: &Client, layer: &LayerId, length: usize) -> Option<Vec<u8>> {
        let opened = client.agent.volumes.open_layers(layer, Access::Read).ok()?;
        let mut content = vec![0; length];
        Layered::open_still(opened.files).unwrap().read_at(&mut content, 0).unwrap();
        Some(content)
    }

    #[test]
    fn a_root_device_can_be_in_the_instance_store() {
        let (lab, client) = lab();
        let root = "&BlockDeviceMapping.1.DeviceName=/dev/xvda&BlockDeviceMapping.1.VirtualName=ami";
        let id = client.text(&register(lab.path(), "store", root), "imageId");
        let image = Image::clone(client.agent.state.read().get::<Image>(&id).unwrap());
        let disk = image.root_store.clone().unwrap();
        assert!(disk.is_root() && image.block_devices.is_empty());
        assert_eq!(disk.size, 512, "in whole sectors");
        let layer = disk.layer.clone().unwrap();
        assert_eq!(content(&client, &layer, 6).unwrap(), b"debian");
        assert!(client.agent.state.read().all::<Snapshot>().next().is_none());
        let told = format!("DescribeImages&ImageId.1={id}");
        assert_eq!(client.text(&told, "rootDeviceType"), "instance-store");

        // Its files stay as long as an instance could still be started from them.
        let instance = client.instance(InstanceState::Pending);
        let started = Instance::clone(client.agent.state.read().get::<Instance>(&instance).unwrap());
        client.put(Instance { instance_store: vec![disk], boot: image.boot, ..started.clone() });
        client.ask(&format!("DeregisterImage&ImageId={id}")).unwrap();
        client.agent.volumes.collect().unwrap();
        assert!(content(&client, &layer, 6).is_some());
        client.put(started);
        client.agent.volumes.collect().unwrap();
        assert!(content(&client, &layer, 6).is_none());

        let other = "&BlockDeviceMapping.1.DeviceName=/dev/xvda&BlockDeviceMapping.1.VirtualName=ephemeral0";
        let snapshot = "RegisterImage&Name=abc&RootDeviceName=/dev/xvda".to_owned() + root;
        client.refuses(&[
            (&register(lab.path(), "other", other), "InvalidBlockDeviceMapping"),
            (&snapshot, "InvalidParameterCombination"),
        ]);
    }

    #[test]
    fn an_image_is_registered_from_a_directory() {
        let (lab, client) = lab();
        let chosen = "ami-0123456789abcdef0";
        let rest = format!(
            "&ImageId={chosen}&Description=d&KernelCommandLine=quiet&ImdsSupport=v2.0&BootMode=uefi\
             &BlockDeviceMapping.1.DeviceName=/dev/xvda&BlockDeviceMapping.1.Ebs.VolumeSize=9\
             &BlockDeviceMapping.1.Ebs.VolumeType=gp3&BlockDeviceMapping.1.Ebs.EbsCardIndex=0\
             &BlockDeviceMapping.1.Ebs.VolumeInitializationRate=100&BlockDeviceMapping.2.DeviceName=/dev/sdb\
             &BlockDeviceMapping.2.VirtualName=ephemeral0&TagSpecification.1.ResourceType=snapshot\
             &TagSpecification.1.Tag.1.Key=a"
        );
        assert_eq!(client.text(&register(lab.path(), "debian-12", &rest), "imageId"), chosen);
        let world = client.agent.state.read();
        let image = world.get::<Image>(chosen).unwrap();
        assert_eq!(image.boot.as_ref().unwrap().command_line, "quiet");
        let volume = image.block_devices[0].volume.as_ref().unwrap();
        let snapshot = world.get::<Snapshot>(volume.snapshot.as_ref().unwrap()).unwrap();
        assert_eq!((snapshot.volume_size, volume.size), (1, 9));
        assert_eq!(content(&client, &snapshot.layer, 6).unwrap(), b"debian");
        assert_eq!(world.tags(&snapshot.id).unwrap().len(), 1);
        assert_eq!(client.texts("DescribeSnapshots", "snapshotId"), [snapshot.id.as_str()]);
        for (filter, value, count) in [
            ("name", "debian-*", 1),
            ("state", "available", 1),
            ("is-public", "true", 0),
            ("root-device-type", "ebs", 1),
            ("block-device-mapping.volume-size", "9", 1),
            ("block-device-mapping.snapshot-id", snapshot.id.as_str(), 1),
            ("owner-id", "000000000000", 1),
            ("platform", "windows", 0),
            ("boot-mode", "uefi", 1),
            ("boot-mode", "legacy-bios", 0),
            ("public-ssm-parameter-name", "*", 0),
            ("image-watermark.watermark-key", "*", 0),
            ("scan-result.finding-scan-date", "*", 0),
        ] {
            let request = format!("DescribeImages&Filter.1.Name={filter}&Filter.1.Value.1={value}");
            assert_eq!(client.texts(&request, "imageId").len(), count, "{filter}");
        }
        assert_eq!(client.texts("DescribeImages", "bootMode"), ["uefi"]);
        let attribute = format!("DescribeImageAttribute&ImageId={chosen}&Attribute=bootMode");
        assert_eq!(client.text(&attribute, "value"), "uefi");
        for (rest, count) in [("Owner.1=self", 1), ("Owner.1=amazon", 0), ("ExecutableBy.1=all", 0)] {
            assert_eq!(client.texts(&format!("DescribeImages&{rest}"), "imageId").len(), count, "{rest}");
        }
    }

    #[test]
    fn what_cannot_be_registered_is_refused_and_leaves_nothing() {
        let (lab, client) = lab();
        client.ask(&register(lab.path(), "taken", "&ImageId=ami-12345678")).unwrap();
        let with = |rest: &str| register(lab.path(), "free", rest);
        let root = "&BlockDeviceMapping.1.DeviceName=/dev/xvda&BlockDeviceMapping.1";
        client.refuses(&[
            (&register(lab.path(), "taken", ""), "InvalidAMIName.Duplicate"),
            (&register(lab.path(), "x", ""), "InvalidAMIName.Malformed"),
            ("RegisterImage", "MissingParameter"),
            ("RegisterImage&Name=free", "MissingParameter"),
            ("RegisterImage&Name=free&RootDeviceName=/dev/xvda", "InvalidBlockDeviceMapping"),
            ("RegisterImage&Name=free&ImageLocation=/etc", "InvalidManifest"),
            (&with("&ImageId=ami-12345678"), "InvalidParameterValue"),
            (&with("&ImageId=mine"), "InvalidAMIID.Malformed"),
            (&with("&Architecture=arm64"), "InvalidParameterValue"),
            (&with("&ImdsSupport=v1.0"), "InvalidParameterValue"),
            (&with("&KernelId=aki-1"), "UnsupportedOperation"),
            (&with(&format!("{root}.Ebs.VolumeSize=0")), "InvalidBlockDeviceMapping"),
            (&with(&format!("{root}.Ebs.KmsKeyId=k")), "UnsupportedOperation"),
            (&with(&format!("{root}.Ebs.OutpostArn=o")), "UnsupportedOperation"),
            (&with(&format!("{root}.Ebs.AvailabilityZone=us-east-1a")), "UnsupportedOperation"),
            (&with(&format!("{root}.Ebs.AvailabilityZoneId=use1-az1")), "UnsupportedOperation"),
            (&with(&format!("{root}.Ebs.EbsCardIndex=1")), "UnsupportedOperation"),
            (&with(&format!("{root}.Ebs.VolumeType=x")), "UnknownVolumeType"),
            (&with(&format!("{root}.Ebs.SnapshotId=snap-12345678")), "InvalidParameterCombination"),
            (&with(&format!("{root}.VirtualName=ephemeral0")), "InvalidBlockDeviceMapping"),
            (&with("&RootDeviceName=/dev/vda"), "InvalidParameterValue"),
            (&with("&RootDeviceName="), "InvalidParameterValue"),
            (&with("&TagSpecification.1.ResourceType=volume"), "InvalidParameterValue"),
            (&with("&DryRun=true"), "DryRunOperation"),
            ("DeregisterImage&ImageId=ami-87654321", "InvalidAMIID.NotFound"),
            ("DescribeImages&ImageId.1=x", "InvalidAMIID.Malformed"),
            ("DescribeSnapshots&SnapshotId.1=snap-12345678", "InvalidSnapshot.NotFound"),
        ]);
        assert_eq!(kept(&client), 1);
    }

    #[test]
    fn mappings_are_as_many_as_there_can_be_and_have_names_of_devices() {
        let (lab, client) = lab();
        let volume = "Ebs.VolumeSize=1";
        let many: Vec<String> = ('a'..='z').map(|letter| format!("/dev/xvdb{letter}")).collect();
        let most: Vec<_> = many.iter().map(|name| (name.as_str(), volume)).collect();
        for (mappings, code) in [
            (
                vec![("/dev/sdb", volume), ("xvdc", "VirtualName=ephemeral23"), ("sdd", "NoDevice=")],
                "DryRunOperation",
            ),
            (vec![("/dev/vdb", volume)], "InvalidBlockDeviceMapping"),
            (vec![("", "VirtualName=ephemeral0")], "InvalidBlockDeviceMapping"),
            (vec![("/dev/sdb16", "NoDevice=")], "InvalidBlockDeviceMapping"),
            (vec![("/dev/sdb", volume), ("/dev/sdb", volume)], "InvalidBlockDeviceMapping"),
            (
                vec![("/dev/sdb", "VirtualName=ephemeral0"), ("/dev/sdc", "VirtualName=ephemeral0")],
                "InvalidBlockDeviceMapping",
            ),
            // With the root, which need not be named.
            (most.clone(), "DryRunOperation"),
            ([&most[..], &[("/dev/xvda", volume)]].concat(), "DryRunOperation"),
            ([&most[..], &[("/dev/sdb", volume)]].concat(), "InvalidBlockDeviceMapping"),
        ] {
            let mapping = |(number, (name, what)): (usize, &(&str, &str))| {
                format!("&BlockDeviceMapping.{number}.DeviceName={name}&BlockDeviceMapping.{number}.{what}")
            };
            let mappings: String = (1..).zip(&mappings).map(mapping).collect();
            client.refuses(&[(&register(lab.path(), "free", &format!("&DryRun=true{mappings}")), code)]);
        }
    }

    /// Nobody looks how far an import is.
    struct Silent;

    impl Progress for Silent {}

    /// Waits until an image is no longer pending; returns its state.
    fn settled(client: &Client, id: &str) -> ImageState {
        for _ in 0..2000 {
            match client.agent.state.read().get::<Image>(id).unwrap().state {
                ImageState::Pending => thread::sleep(Duration::from_millis(5)),
                state => return state,
            }
        }
        panic!("{id} stays pending");
    }

    #[test]
    fn an_image_that_takes_long_is_pending_meanwhile() {
        let (lab, mut client) = lab();
        client.agent.copying = Copying::with_patience(Duration::ZERO);
        let disk = lab.path().join("import/debian/disk.raw");
        fs::write(&disk, vec![7; 64 << 20]).unwrap();
        let request = register(
            lab.path(),
            "large",
            "&TagSpecification.1.ResourceType=snapshot\
                                 &TagSpecification.1.Tag.1.Key=of&TagSpecification.1.Tag.1.Value=large",
        );
        let id = client.text(&request, "imageId");
        assert_eq!(client.text("DescribeImages", "imageState"), "pending");
        // Nobody else gets its name, and it cannot be launched yet.
        client.refuses(&[
            (&request, "InvalidAMIName.Duplicate"),
            (&format!("RunInstances&ImageId={id}&MinCount=1&MaxCount=1"), "InvalidAMIID.Unavailable"),
        ]);
        assert_eq!(settled(&client, &id), ImageState::Available);
        let snapshot = client.text("DescribeSnapshots", "snapshotId");
        assert_eq!(client.text(&format!("DescribeImages&ImageId.1={id}"), "snapshotId"), snapshot);
        assert!(client.ask("DescribeSnapshots").unwrap().contains("<value>large</value>"));
        let layer = client.agent.state.read().get::<Snapshot>(&snapshot).unwrap().layer.clone();
        assert_eq!(content(&client, &layer, 3).unwrap(), [7; 3]);

        // What is deregistered meanwhile leaves nothing behind.
        let gone = client.text(&register(lab.path(), "gone", ""), "imageId");
        client.ask(&format!("DeregisterImage&ImageId={gone}&DeleteAssociatedSnapshots=true")).unwrap();
        for _ in 0..2000 {
            if kept(&client) == 1 {
                break;
            }
            thread::sleep(Duration::from_millis(5));
        }
        assert_eq!((kept(&client), client.texts("DescribeSnapshots", "snapshotId")), (1, vec![snapshot]));

        // What cannot be made says so.
        let manifest = "innkeeper-image 1\nthis is none\n";
        fs::write(disk.with_file_name("disk.manifest"), manifest).unwrap();
        client.refuses(&[(&register(lab.path(), "broken", ""), "InvalidManifest")]);
        // As it was imported, and then changed.
        let target = lab.path().join("imported");
        let import =
            Import { source: disk.clone(), format: Format::Raw, target: target.clone(), checksum: None };
        import.run(&mut Silent).unwrap();
        fs::copy(target.join("disk.manifest"), disk.with_file_name("disk.manifest")).unwrap();
        fs::write(&disk, vec![8; 64 << 20]).unwrap();
        let broken = client.text(&register(lab.path(), "broken", ""), "imageId");
        assert_eq!(settled(&client, &broken), ImageState::Failed);
        let told = client.ask(&format!("DescribeImages&ImageId.1={broken}")).unwrap();
        assert!(told.contains("<imageState>failed</imageState>") && told.contains("disk.raw"), "{told}");
        client.ask(&format!("DeregisterImage&ImageId={broken}")).unwrap();
        // In good time, the answer says it, and nothing is left.
        client.agent.copying = Copying::default();
        client.refuses(&[(&register(lab.path(), "broken", ""), "InvalidManifest")]);
        assert_eq!(client.texts("DescribeImages", "imageId"), [id]);
    }

    #[test]
    fn an_image_whose_copying_was_interrupted_has_failed() {
        let (lab, client) = lab();
        let id = client.text(&register(lab.path(), "half", ""), "imageId");
        let mut image = Image::clone(client.agent.state.read().get::<Image>(&id).unwrap());
        (image.state, image.is_copied) = (ImageState::Pending, true);
        client.put(image);
        fail_interrupted(&client.agent.state).unwrap();
        let told = client.ask("DescribeImages").unwrap();
        assert!(
            told.contains("<imageState>failed</imageState>") && told.contains("register it again"),
            "{told}"
        );
    }

    #[test]
    fn files_stay_as_long_as_somebody_needs_them() {
        let (lab, client) = lab();
        let location = lab.path().join("import/tiny");
        let request = format!("RegisterImage&Name=tiny&ImageLocation={}", location.display());
        let id = client.text(&request, "imageId");
        let world = client.agent.state.read();
        let image = world.get::<Image>(&id).unwrap();
        assert_eq!(image.block_devices[0].volume.as_ref().unwrap().snapshot, None);
        assert!(!client.ask("DescribeImages").unwrap().contains("bootMode"));
        let instance = client.instance(InstanceState::Running);
        let mut record = Instance::clone(client.agent.state.read().get::<Instance>(&instance).unwrap());
        record.boot.clone_from(&image.boot);
        client.put(record.clone());
        client.ask(&format!("DeregisterImage&ImageId={id}")).unwrap();
        assert_eq!(kept(&client), 1);
        record.lifecycle.state = InstanceState::Terminated;
        client.put(record);
        clean_up(&directory(&client.agent.config.state_directory), &client.agent.state).unwrap();
        assert_eq!(kept(&client), 0);
    }

    #[test]
    fn snapshots_stay_unless_they_are_to_go_and_nobody_needs_them() {
        let (lab, client) = lab();
        let first = client.text(&register(lab.path(), "first", ""), "imageId");
        let snapshot = client.text("DescribeSnapshots", "snapshotId");
        let again = format!(
            "RegisterImage&Name=second&RootDeviceName=/dev/sda1&BlockDeviceMapping.1.DeviceName=/dev/sda1\
             &BlockDeviceMapping.1.Ebs.SnapshotId={snapshot}"
        );
        let second = client.text(&again, "imageId");
        let boot = |id: &str| client.agent.state.read().get::<Image>(id).unwrap().boot.clone();
        assert!(boot(&second).is_some());
        let all = |id: &str| format!("DeregisterImage&ImageId={id}&DeleteAssociatedSnapshots=true");
        assert_eq!(client.text(&all(&first), "returnCode"), "skipped");
        assert_eq!(kept(&client), 1);
        assert_eq!(client.text(&all(&second), "returnCode"), "success");
        assert_eq!(kept(&client), 0);
        assert!(client.texts("DescribeSnapshots", "snapshotId").is_empty());
    }

    #[test]
    fn others_launch_what_they_are_permitted_to() {
        let (lab, client) = lab();
        let id = client.text(&register(lab.path(), "debian", ""), "imageId");
        let other = "111111111111";
        let sees = || client.ask_as(other, "DescribeImages").unwrap().contains(&id);
        let modify = |rest: &str| client.ask(&format!("ModifyImageAttribute&ImageId={id}&{rest}")).unwrap();
        assert!(!sees());
        modify(&format!("LaunchPermission.Add.1.UserId={other}"));
        assert!(sees());
        modify(&format!("LaunchPermission.Remove.1.UserId={other}"));
        assert!(!sees());
        modify("Attribute=launchPermission&OperationType=add&UserGroup.1=all");
        assert!(sees());
        let deregister = format!("DeregisterImage&ImageId={id}");
        assert_eq!(client.ask_as(other, &deregister).unwrap_err().code, "AuthFailure");
        modify("Description.Value=new");
        let describe = |attribute: &str| format!("DescribeImageAttribute&ImageId={id}&Attribute={attribute}");
        assert_eq!(client.text(&describe("description"), "value"), "new");
        assert_eq!(client.text(&describe("launchPermission"), "group"), "all");
        client.refuses(&[
            (&describe("colour"), "InvalidParameterValue"),
            (&format!("ModifyImageAttribute&ImageId={id}"), "InvalidParameterCombination"),
            (&format!("ModifyImageAttribute&ImageId={id}&ProductCode.1=x"), "UnsupportedOperation"),
            (&format!("ModifyImageAttribute&ImageId={id}&OrganizationArn.1=x"), "UnsupportedOperation"),
            (&format!("ModifyImageAttribute&ImageId={id}&OrganizationalUnitArn.1=x"), "UnsupportedOperation"),
            (
                &format!("ModifyImageAttribute&ImageId={id}&LaunchPermission.Add.1.OrganizationArn=x"),
                "UnsupportedOperation",
            ),
            (
                &format!("ModifyImageAttribute&ImageId={id}&LaunchPermission.Add.1.UserId=x"),
                "InvalidAMIAttributeItemValue",
            ),
            (
                &format!("ModifyImageAttribute&ImageId={id}&LaunchPermission.Add.1.Group=some"),
                "InvalidAMIAttributeItemValue",
            ),
        ]);
    }
}
