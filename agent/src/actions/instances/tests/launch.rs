//! RunInstances.

use std::collections::BTreeSet;

use super::{Answer, Client, IMAGE, SNAPSHOT};
use crate::ids::SubnetId;
use crate::instances::capacity::Capacity;
use crate::query::ApiError;
use crate::records::{
    Image, ImageState, Instance, Mapping, NetworkInterface, SecurityGroup, StoreDisk, Subnet, Volume,
    VolumeState,
};

/// RunInstances of one with some parameters more.
fn run(client: &Client, more: &[(&str, &str)]) -> Result<Answer, ApiError> {
    let replaced = |name: &str| more.iter().any(|(other, _)| *other == name);
    let base = [("ImageId", IMAGE), ("MinCount", "1"), ("MaxCount", "1")];
    let mut parameters: Vec<_> = base.into_iter().filter(|(name, _)| !replaced(name)).collect();
    parameters.extend(more.iter().filter(|(_, value)| *value != "-"));
    client.call("RunInstances", &parameters)
}

fn code(client: &Client, more: &[(&str, &str)]) -> &'static str {
    run(client, more).map_or_else(|error| error.code, |_| "")
}

#[test]
fn a_launch_records_all_that_belongs_to_it() {
    let client = Client::new();
    let answer = run(
        &client,
        &[
            ("MinCount", "3"),
            ("MaxCount", "3"),
            ("InstanceType", "t3.nano"),
            ("KeyName", "mine"),
            ("UserData", "aGk="),
            ("TagSpecification.1.ResourceType", "instance"),
            ("TagSpecification.1.Tag.1.Key", "Name"),
            ("TagSpecification.1.Tag.1.Value", "web"),
            ("TagSpecification.2.ResourceType", "volume"),
            ("TagSpecification.2.Tag.1.Key", "of"),
            ("TagSpecification.2.Tag.1.Value", "web"),
        ],
    )
    .unwrap();
    assert_eq!(answer.all("amiLaunchIndex"), ["0", "1", "2"]);
    assert_eq!(answer.all("name"), ["pending"; 3]);
    assert_eq!(answer.one("privateDnsName"), "ip-172-31-0-4.ec2.internal");
    let world = client.agent.state.read();
    let instances: Vec<_> = world.all::<Instance>().collect();
    assert_eq!(instances.len(), 3);
    let addresses: BTreeSet<_> =
        world.all::<NetworkInterface>().map(|interface| interface.primary.address.to_string()).collect();
    assert_eq!(Vec::from_iter(addresses), ["172.31.0.4", "172.31.0.5", "172.31.0.6"]);
    let macs: BTreeSet<_> = world.all::<NetworkInterface>().map(|interface| &interface.mac).collect();
    assert_eq!(macs.len(), 3);
    for instance in instances {
        assert_eq!(instance.user_data.as_deref(), Some("aGk="));
        assert_eq!(world.tags(&instance.id).unwrap()["Name"], "web");
        let [device] = instance.block_devices.as_slice() else { panic!("{instance:?}") };
        let volume = world.get::<Volume>(&device.volume).unwrap();
        assert_eq!((volume.size, volume.state, volume.iops), (8, VolumeState::Creating, Some(3000)));
        assert_eq!(volume.attachment.as_ref().unwrap().instance, instance.id);
        assert_eq!(world.tags(&volume.id).unwrap()["of"], "web");
        let interface = world.get::<NetworkInterface>(&instance.network_interface).unwrap();
        assert_eq!(interface.instance(), Some(&instance.id));
        let group = world.get::<SecurityGroup>(&interface.groups[0]).unwrap();
        assert_eq!(group.name, "default");
    }
}

#[test]
fn an_instance_has_its_profile_from_the_beginning() {
    let client = Client::new();
    client.profile("web");
    let answer = run(&client, &[("IamInstanceProfile.Name", "web")]).unwrap();
    let arn = "arn:aws:iam::000000000000:instance-profile/web";
    assert!(answer.0.contains(&format!("<iamInstanceProfile><arn>{arn}</arn><id>AIPA")), "{}", answer.0);
    let id = answer.one("instanceId");
    assert_eq!(run(&client, &[("IamInstanceProfile.Arn", arn)]).unwrap().all("arn"), [arn]);
    assert_eq!(client.texts("DescribeIamInstanceProfileAssociations", "associationId").len(), 2);
    client.settle();
    client.call("TerminateInstances", &[("InstanceId.1", &id)]).unwrap();
    client.settle();
    assert_eq!(client.texts("DescribeIamInstanceProfileAssociations", "associationId").len(), 1);
    assert!(!client.ask(&format!("DescribeInstances&InstanceId.1={id}")).unwrap().contains("iamInstance"));
}

#[test]
fn what_cannot_be_launched_is_refused() {
    let client = Client::new();
    let long = "A".repeat(16 * 1024 * 4 / 3 + 8);
    let interface = ("NetworkInterface.1.DeviceIndex", "0");
    #[rustfmt::skip]
    let cases: &[(&[(&str, &str)], &str)] = &[
        (&[("ImageId", "-")], "MissingParameter"),
        (&[("ImageId", "debian")], "InvalidAMIID.Malformed"),
        (&[("ImageId", "ami-00000000000000000")], "InvalidAMIID.NotFound"),
        (&[("MinCount", "-")], "MissingParameter"),
        (&[("MaxCount", "-")], "MissingParameter"),
        (&[("MinCount", "0")], "InvalidParameterValue"),
        (&[("MaxCount", "0")], "InvalidParameterValue"),
        (&[("MinCount", "2")], "InvalidParameterValue"),
        (&[("MinCount", "1001"), ("MaxCount", "1001")], "InstanceLimitExceeded"),
        (&[("InstanceType", "t3.gigantic")], "InvalidParameterValue"),
        (&[("InstanceType", "m7a.48xlarge")], "InsufficientInstanceCapacity"),
        (&[("KeyName", "yours")], "InvalidKeyPair.NotFound"),
        (&[("SecurityGroup.1", "web")], "InvalidGroup.NotFound"),
        (&[("SecurityGroupId.1", "sg-00000000000000000")], "InvalidGroup.NotFound"),
        (&[("SecurityGroupId.1", "web")], "InvalidGroupId.Malformed"),
        (&[("SubnetId", "subnet-00000000000000000")], "InvalidSubnetID.NotFound"),
        (&[("Placement.AvailabilityZone", "us-east-1z")], "InvalidParameterValue"),
        (&[("Placement.Tenancy", "dedicated")], "UnsupportedOperation"),
        (&[("Placement.GroupName", "spread")], "UnsupportedOperation"),
        (&[("PrivateIpAddress", "10.0.0.9")], "InvalidParameterValue"),
        (&[("PrivateIpAddress", "172.31.0.3")], "InvalidParameterValue"),
        (&[("PrivateIpAddress", "172.31.15.255")], "InvalidParameterValue"),
        (&[("PrivateIpAddress", "nowhere")], "InvalidParameterValue"),
        (&[("PrivateIpAddress", "172.31.0.9"), ("MaxCount", "2")], "InvalidParameterCombination"),
        (&[interface, ("SubnetId", "subnet-00000000000000000")], "InvalidParameterCombination"),
        (&[interface, ("SecurityGroup.1", "default")], "InvalidParameterCombination"),
        (&[interface, ("PrivateIpAddress", "172.31.0.9")], "InvalidParameterCombination"),
        (&[interface, ("NetworkInterface.1.Ipv6AddressCount", "1")], "UnsupportedOperation"),
        (&[interface, ("NetworkInterface.1.InterfaceType", "efa")], "UnsupportedOperation"),
        (&[interface, ("NetworkInterface.1.SecondaryPrivateIpAddressCount", "2")], "PrivateIpAddressLimitExceeded"),
        (&[interface, ("NetworkInterface.1.NetworkInterfaceId", "eni-00000000000000000")], "InvalidNetworkInterfaceID.NotFound"),
        (&[interface, ("NetworkInterface.2.DeviceIndex", "0")], "InvalidParameterCombination"),
        (
            &[interface, ("NetworkInterface.2.DeviceIndex", "1"), ("NetworkInterface.1.AssociatePublicIpAddress", "true")],
            "InvalidParameterCombination",
        ),
        (
            &[interface, ("NetworkInterface.2.DeviceIndex", "1"), ("NetworkInterface.3.DeviceIndex", "2")],
            "AttachmentLimitExceeded",
        ),
        (&[("NetworkInterface.1.DeviceIndex", "1")], "InvalidParameterCombination"),
        (&[("NetworkInterface.1.Description", "x")], "MissingParameter"),
        (&[("UserData", "#!/bin/sh")], "InvalidParameterValue"),
        (&[("UserData", &long)], "InvalidParameterValue"),
        (&[("InstanceInitiatedShutdownBehavior", "hibernate")], "InvalidParameterValue"),
        (&[("InstanceType", "t2.micro"), ("EbsOptimized", "true")], "InvalidParameterCombination"),
        (&[("MetadataOptions.HttpTokens", "maybe")], "InvalidParameterValue"),
        (&[("CreditSpecification.CpuCredits", "none")], "InvalidParameterValue"),
        (&[("InstanceType", "m5.large"), ("CreditSpecification.CpuCredits", "unlimited")], "InvalidParameterCombination"),
        (&[("CpuOptions.CoreCount", "4")], "UnsupportedOperation"),
        (&[("PrivateDnsNameOptions.HostnameType", "resource-name")], "UnsupportedOperation"),
        (&[("EnclaveOptions.Enabled", "true")], "UnsupportedOperation"),
        (&[("HibernationOptions.Configured", "true")], "UnsupportedHibernationConfiguration"),
        (&[("CapacityReservationSpecification.CapacityReservationPreference", "none of it")], "InvalidParameterValue"),
        (&[("LaunchTemplate.LaunchTemplateName", "web")], "UnsupportedOperation"),
        (&[("InstanceMarketOptions.MarketType", "spot")], "UnsupportedOperation"),
        (&[("IamInstanceProfile.Name", "web")], "InvalidParameterValue"),
        (&[("Ipv6AddressCount", "1")], "UnsupportedOperation"),
        (&[("Monitoring.Enabled", "true"), ("Monitoring.MetricCategoryId.1", "x")], "UnsupportedOperation"),
        (&[("TagSpecification.1.ResourceType", "vpc")], "InvalidParameterValue"),
        (&[("ClientToken", "ä")], "InvalidParameterValue"),
        (&[("Colour", "red")], "UnknownParameter"),
        (&[("DryRun", "true")], "DryRunOperation"),
        (&[("DryRun", "true"), ("KeyName", "yours")], "InvalidKeyPair.NotFound"),
    ];
    for (parameters, expected) in cases {
        assert_eq!(code(&client, parameters), *expected, "{parameters:?}");
    }
    let world = client.agent.state.read();
    assert_eq!((world.all::<Instance>().count(), world.all::<Volume>().count()), (0, 0));
}

#[test]
fn what_says_the_default_is_accepted() {
    let client = Client::new();
    for parameters in [
        [("Placement.Tenancy", "default"), ("Placement.GroupName", "")],
        [("CpuOptions.CoreCount", "1"), ("CpuOptions.ThreadsPerCore", "2")],
        [("CreditSpecification.CpuCredits", "unlimited"), ("InstanceType", "t3.small")],
        [("CreditSpecification.CpuCredits", "standard"), ("InstanceType", "t3.small")],
        [("EnclaveOptions.Enabled", "false"), ("HibernationOptions.Configured", "false")],
        [("PrivateDnsNameOptions.HostnameType", "ip-name"), ("MaintenanceOptions.AutoRecovery", "default")],
        [("NetworkInterface.1.DeviceIndex", "0"), ("NetworkInterface.1.AssociatePublicIpAddress", "false")],
        [
            ("CapacityReservationSpecification.CapacityReservationPreference", "open"),
            ("Placement.AvailabilityZoneId", "use1-az2"),
        ],
    ] {
        assert_eq!(code(&client, &parameters), "", "{parameters:?}");
    }
}

#[test]
fn only_those_whom_it_permits_launch_an_image() {
    let client = Client::new();
    let foreign = |id: &str, permissions: &[&str], state| Image {
        owner: "111111111111".into(),
        launch_permissions: permissions.iter().map(ToString::to_string).collect(),
        state,
        ..client.image(id)
    };
    let own = client.account.as_str();
    for (id, permissions, state, expected) in [
        ("ami-0000000000000000a", vec![], ImageState::Available, "InvalidAMIID.NotFound"),
        ("ami-0000000000000000b", vec!["all"], ImageState::Available, ""),
        ("ami-0000000000000000c", vec![own], ImageState::Available, ""),
        ("ami-0000000000000000d", vec!["222222222222"], ImageState::Available, "InvalidAMIID.NotFound"),
        ("ami-0000000000000000e", vec!["all"], ImageState::Pending, "InvalidAMIID.Unavailable"),
    ] {
        client.put(foreign(id, &permissions, state));
        assert_eq!(code(&client, &[("ImageId", id)]), expected, "{id}");
    }
}

#[test]
fn the_largest_count_that_fits_is_launched() {
    let mut client = Client::new();
    // Five times t3.micro.
    client.client.agent.capacity = Capacity { vcpus: 11, memory: 1 << 20, largest: 4 };
    let error = run(&client, &[("MinCount", "6"), ("MaxCount", "9")]).err().unwrap();
    assert_eq!((error.code, error.status()), ("InsufficientInstanceCapacity", 500));
    let answer = run(&client, &[("MinCount", "2"), ("MaxCount", "9")]).unwrap();
    assert_eq!(answer.all("instanceId").len(), 5);
    assert_eq!(code(&client, &[]), "InsufficientInstanceCapacity");
}

#[test]
fn a_client_token_launches_once() {
    let client = Client::new();
    let first = run(&client, &[("ClientToken", "once")]).unwrap();
    let again = run(&client, &[("ClientToken", "once")]).unwrap();
    assert_eq!(first.one("reservationId"), again.one("reservationId"));
    assert_eq!(first.one("instanceId"), again.one("instanceId"));
    assert_eq!(again.one("clientToken"), "once");
    assert_eq!(
        code(&client, &[("ClientToken", "once"), ("InstanceType", "t3.small")]),
        "IdempotentParameterMismatch"
    );
    assert_eq!(code(&client, &[("ClientToken", "twice")]), "");
    assert_eq!(client.agent.state.read().all::<Instance>().count(), 2);
}

#[test]
fn addresses_are_given_once_and_again_when_they_are_free() {
    let client = Client::new();
    let first = client.running(&[("PrivateIpAddress", "172.31.0.5")]);
    assert_eq!(code(&client, &[("PrivateIpAddress", "172.31.0.5")]), "InvalidIPAddress.InUse");
    let next = run(&client, &[("MinCount", "2"), ("MaxCount", "2")]).unwrap();
    assert_eq!(next.all("privateDnsName")[0], "ip-172-31-0-4.ec2.internal");
    assert!(next.0.contains("<privateIpAddress>172.31.0.6</privateIpAddress>"));
    client.call("TerminateInstances", &[("InstanceId.1", &first)]).unwrap();
    client.settle();
    assert_eq!(code(&client, &[("PrivateIpAddress", "172.31.0.5")]), "");
}

#[test]
fn a_full_subnet_has_no_place() {
    let client = Client::new();
    let default = client.agent.state.read().all::<Subnet>().next().unwrap().clone();
    let subnet = SubnetId::random();
    client.put(Subnet {
        id: subnet.clone(),
        cidr: "172.31.128.0/28".parse().unwrap(),
        availability_zone: "us-east-1b".into(),
        default_for_az: false,
        map_public_ip_on_launch: false,
        ..Subnet::clone(&default)
    });
    let here = ("SubnetId", subnet.as_str());
    assert_eq!(
        code(&client, &[here, ("MinCount", "12"), ("MaxCount", "12")]),
        "InsufficientFreeAddressesInSubnet"
    );
    assert_eq!(code(&client, &[here, ("Placement.AvailabilityZone", "us-east-1a")]), "InvalidParameterValue");
    let answer = run(&client, &[here, ("MaxCount", "12")]).unwrap();
    assert_eq!(answer.all("instanceId").len(), 11);
    assert_eq!(answer.one("availabilityZone"), "us-east-1b");
    assert_eq!(code(&client, &[here]), "InsufficientFreeAddressesInSubnet");
}

#[test]
fn groups_are_those_of_the_subnet_s_vpc() {
    let client = Client::new();
    let world = client.agent.state.read();
    let default = world.all::<SecurityGroup>().next().unwrap().clone();
    let other = SecurityGroup {
        id: "sg-0000000000000000a".parse().unwrap(),
        vpc: "vpc-0000000000000000a".parse().unwrap(),
        ..SecurityGroup::clone(&default)
    };
    client.put(other);
    assert_eq!(code(&client, &[("SecurityGroupId.1", "sg-0000000000000000a")]), "InvalidParameter");
    let both = [("SecurityGroup.1", "default"), ("SecurityGroupId.1", default.id.as_str())];
    let id = client.launch(&both);
    assert_eq!(client.interface(&id).groups, std::slice::from_ref(&default.id));
    let interface = [
        ("NetworkInterface.1.DeviceIndex", "0"),
        ("NetworkInterface.1.SecurityGroupId.1", default.id.as_str()),
        ("NetworkInterface.1.PrivateIpAddress", "172.31.0.77"),
        ("NetworkInterface.1.DeleteOnTermination", "true"),
    ];
    let id = client.launch(&interface);
    assert_eq!(client.interface(&id).primary.address.to_string(), "172.31.0.77");
}

/// `BlockDeviceMapping.1` with this device, and what else there is.
fn device<'a>(client: &Client, name: &'a str, more: &[(&str, &'a str)]) -> Result<Instance, ApiError> {
    let mut parameters = vec![("BlockDeviceMapping.1.DeviceName".to_owned(), name)];
    parameters.extend(more.iter().map(|(name, value)| (format!("BlockDeviceMapping.1.{name}"), *value)));
    let parameters: Vec<(&str, &str)> =
        parameters.iter().map(|(name, value)| (name.as_str(), *value)).collect();
    let id = run(client, &parameters)?.one("instanceId");
    Ok(client.instance(&id))
}

#[test]
fn block_devices_are_the_image_s_as_the_request_changes_them() {
    let client = Client::new();
    for (name, more, count, size, kind, iops, delete) in [
        ("/dev/xvda", vec![("Ebs.VolumeSize", "20")], 1, 20, "gp3", Some(3000), true),
        ("/dev/xvda", vec![("Ebs.DeleteOnTermination", "false")], 1, 8, "gp3", Some(3000), false),
        ("/dev/xvda", vec![("Ebs.VolumeType", "gp2")], 1, 8, "gp2", Some(100), true),
        ("/dev/xvda", vec![("Ebs.VolumeType", "io1"), ("Ebs.Iops", "400")], 1, 8, "io1", Some(400), true),
        ("/dev/sdf", vec![("Ebs.VolumeSize", "1")], 2, 1, "gp2", Some(100), true),
        ("/dev/sdf", vec![("Ebs.SnapshotId", SNAPSHOT)], 2, 8, "gp2", Some(100), true),
        ("/dev/sdf", vec![("VirtualName", "ephemeral0")], 1, 8, "gp3", Some(3000), true),
        ("/dev/sdf", vec![("NoDevice", "")], 1, 8, "gp3", Some(3000), true),
    ] {
        let instance = device(&client, name, &more).unwrap();
        assert_eq!(instance.block_devices.len(), count, "{name} {more:?}");
        let last = instance.block_devices.last().unwrap();
        let world = client.agent.state.read();
        let volume = world.get::<Volume>(&last.volume).unwrap();
        assert_eq!(
            (volume.size, volume.volume_type.as_str(), volume.iops, last.delete_on_termination),
            (size, kind, iops, delete),
            "{name} {more:?}"
        );
    }
}

#[test]
fn the_instance_store_is_the_types_and_its_names_are_the_mappings() {
    let mut client = Client::new();
    client.client.agent.capacity.memory = 512 << 10;
    let image = client.image("ami-0000000000000000e");
    let mapped = |name: &str, disk: &str| Mapping {
        device_name: name.into(),
        volume: None,
        virtual_name: Some(disk.into()),
    };
    let both = [image.block_devices.clone(), vec![mapped("/dev/sdb", "ephemeral0")]].concat();
    client.put(Image { block_devices: both, ..image });
    let disks = |kind: &str, more: &[(&str, &str)]| {
        let parameters = [&[("ImageId", "ami-0000000000000000e"), ("InstanceType", kind)], more].concat();
        let id = run(&client, &parameters).unwrap().one("instanceId");
        let disks = client.instance(&id).instance_store.into_iter();
        let shown = disks.map(|disk| format!("{} {}", disk.name, disk.device_name.unwrap_or_default()));
        shown.collect::<Vec<_>>().join(", ")
    };
    let map =
        |name, disk| [("BlockDeviceMapping.1.DeviceName", name), ("BlockDeviceMapping.1.VirtualName", disk)];
    assert_eq!(disks("t3.micro", &[]), "");
    assert_eq!(disks("m5d.large", &[]), "ephemeral0 /dev/sdb");
    assert_eq!(disks("m5d.large", &map("/dev/sdc", "ephemeral0")), "ephemeral0 /dev/sdc");
    // What the type does not have is nothing, and what it has comes even if nobody wants it.
    assert_eq!(disks("m5d.large", &map("/dev/sdb", "ephemeral1")), "ephemeral0 ");
    let none = [("BlockDeviceMapping.1.DeviceName", "/dev/sdb"), ("BlockDeviceMapping.1.NoDevice", "")];
    assert_eq!(disks("m5d.large", &none), "ephemeral0 ");
    let twice = [
        &map("/dev/sdc", "ephemeral0")[..],
        &[
            ("BlockDeviceMapping.2.DeviceName", "/dev/sdd"),
            ("BlockDeviceMapping.2.VirtualName", "ephemeral0"),
        ],
    ];
    assert_eq!(code(&client, &twice.concat()), "InvalidBlockDeviceMapping");
    // It takes memory, of which there is not enough for four more of 8 GiB and 75 GB.
    let four = [("InstanceType", "m5d.large"), ("MinCount", "4"), ("MaxCount", "4")];
    assert_eq!(code(&client, &four), "InsufficientInstanceCapacity");
}

#[test]
fn a_root_device_in_the_instance_store_is_no_volume() {
    let client = Client::new();
    let root = StoreDisk {
        name: StoreDisk::ROOT.into(),
        device_name: None,
        size: 1 << 30,
        layer: None,
        source: None,
    };
    let image = client.image("ami-0000000000000000d");
    client.put(Image { block_devices: Vec::new(), root_store: Some(root), ..image });
    let store = ("ImageId", "ami-0000000000000000d");
    let id = run(&client, &[store, ("InstanceType", "m5d.large")]).unwrap().one("instanceId");
    let instance = client.instance(&id);
    let names: Vec<_> = instance.instance_store.iter().map(|disk| disk.name.as_str()).collect();
    assert_eq!((names, instance.block_devices.len()), (vec!["root", "ephemeral0"], 0));
    let mapped = [
        store,
        ("BlockDeviceMapping.1.DeviceName", "/dev/xvda"),
        ("BlockDeviceMapping.1.Ebs.VolumeSize", "20"),
    ];
    assert_eq!(code(&client, &mapped), "InvalidBlockDeviceMapping");
}

#[test]
fn volumes_that_ec2_would_not_make_are_refused() {
    let client = Client::new();
    for (name, more, expected) in [
        ("/dev/xvda", vec![("Ebs.VolumeSize", "7")], "InvalidBlockDeviceMapping"),
        ("/dev/xvda", vec![("NoDevice", "")], "InvalidBlockDeviceMapping"),
        ("/dev/xvda", vec![("Ebs.VolumeType", "st1"), ("Ebs.VolumeSize", "125")], "InvalidParameterValue"),
        ("/dev/xvda", vec![("Ebs.SnapshotId", "snap-00000000000000000")], "InvalidBlockDeviceMapping"),
        ("/dev/sdf", vec![], "MissingParameter"),
        ("/dev/sdf", vec![("Ebs.VolumeType", "gp3")], "MissingParameter"),
        ("/dev/sdf", vec![("Ebs.SnapshotId", "snap-00000000000000000")], "InvalidSnapshot.NotFound"),
        (
            "/dev/sdf",
            vec![("Ebs.SnapshotId", SNAPSHOT), ("Ebs.VolumeSize", "4")],
            "InvalidBlockDeviceMapping",
        ),
        ("/dev/sdf", vec![("Ebs.VolumeSize", "8"), ("Ebs.Iops", "500")], "InvalidParameterCombination"),
        ("/dev/sdf", vec![("Ebs.VolumeSize", "8"), ("Ebs.VolumeType", "io1")], "MissingParameter"),
        ("/dev/sdf", vec![("Ebs.VolumeSize", "8"), ("Ebs.VolumeType", "tape")], "UnknownVolumeType"),
        ("/dev/sdf", vec![("Ebs.VolumeSize", "8"), ("Ebs.KmsKeyId", "x")], "InvalidParameterDependency"),
        ("/dev/sdf", vec![("Ebs.VolumeSize", "8"), ("NoDevice", "")], "InvalidParameterCombination"),
        ("/dev/sdf", vec![("VirtualName", "disk0")], "InvalidParameterValue"),
        ("disk", vec![("Ebs.VolumeSize", "8")], "InvalidParameterValue"),
    ] {
        let code = device(&client, name, &more).map_or_else(|error| error.code, |_| "");
        assert_eq!(code, expected, "{name} {more:?}");
    }
    let twice = [
        ("BlockDeviceMapping.1.DeviceName", "/dev/sdf"),
        ("BlockDeviceMapping.1.Ebs.VolumeSize", "1"),
        ("BlockDeviceMapping.2.DeviceName", "/dev/sdf"),
        ("BlockDeviceMapping.2.Ebs.VolumeSize", "1"),
    ];
    assert_eq!(code(&client, &twice), "InvalidBlockDeviceMapping");
}

#[test]
fn metadata_options_are_the_image_s_until_the_request_says_otherwise() {
    let client = Client::new();
    client.put(Image { imds_support: Some("v2.0".into()), ..client.image("ami-0000000000000000f") });
    let options = |more: &[(&str, &str)]| {
        let id = run(&client, more).unwrap().one("instanceId");
        let options = client.instance(&id).metadata_options;
        (options.http_tokens, options.http_put_response_hop_limit)
    };
    let strict = ("ImageId", "ami-0000000000000000f");
    assert_eq!(options(&[]), ("optional".into(), 1));
    assert_eq!(options(&[strict]), ("required".into(), 2));
    assert_eq!(options(&[strict, ("MetadataOptions.HttpTokens", "optional")]), ("optional".into(), 2));
    let tag = [
        ("MetadataOptions.InstanceMetadataTags", "enabled"),
        ("TagSpecification.1.ResourceType", "instance"),
        ("TagSpecification.1.Tag.1.Key", "a/b"),
    ];
    assert_eq!(code(&client, &tag), "InvalidParameterValue");
    assert_eq!(code(&client, &tag[1..]), "");
}

#[test]
fn a_public_address_comes_with_the_start_and_goes_with_the_stop() {
    let client = Client::new();
    let id = client.running(&[]);
    let describe = |id: &str| client.call("DescribeInstances", &[("InstanceId.1", id)]).unwrap();
    let address = || describe(&id).one("ipAddress");
    let first = address();
    assert!(first.starts_with("198.19."), "{first}");
    let name = format!("ec2-{}.compute-1.amazonaws.com", first.replace('.', "-"));
    assert_eq!(describe(&id).one("dnsName"), name);
    assert_eq!(describe(&id).all("publicDnsName"), [name.clone(), name.clone()]);
    assert_eq!(describe(&id).one("ipOwnerId"), "amazon");
    for (filter, value) in
        [("ip-address", &first), ("dns-name", &name), ("network-interface.association.public-ip", &first)]
    {
        let filter = [("Filter.1.Name", filter), ("Filter.1.Value.1", value.as_str())];
        assert_eq!(client.call("DescribeInstances", &filter).unwrap().all("instanceId"), [&*id]);
    }
    client.call("StopInstances", &[("InstanceId.1", &id)]).unwrap();
    assert_eq!(address(), first);
    client.settle();
    assert!(describe(&id).all("ipAddress").is_empty() && describe(&id).all("publicIp").is_empty());
    client.call("StartInstances", &[("InstanceId.1", &id)]).unwrap();
    assert!(address().starts_with("198.19."));
    let none =
        [("NetworkInterface.1.DeviceIndex", "0"), ("NetworkInterface.1.AssociatePublicIpAddress", "false")];
    let id = client.running(&none);
    assert!(describe(&id).all("ipAddress").is_empty());
}

#[test]
fn an_instance_has_the_interfaces_that_it_is_launched_with() {
    let client = Client::new();
    let world = client.agent.state.read();
    let first = world.all::<Subnet>().find(|subnet| subnet.availability_zone == "us-east-1a").unwrap();
    let subnet = first.id.to_string();
    let parameters =
        [("SubnetId", subnet.as_str()), ("PrivateIpAddresses.1.PrivateIpAddress", "172.31.0.40")];
    let made = client.call("CreateNetworkInterface", &parameters).unwrap();
    let eni = made.one("networkInterfaceId");
    let both = [
        ("InstanceType", "m5.large"),
        ("NetworkInterface.1.DeviceIndex", "1"),
        ("NetworkInterface.1.NetworkInterfaceId", eni.as_str()),
        ("NetworkInterface.2.DeviceIndex", "0"),
        ("NetworkInterface.2.SubnetId", &subnet),
        ("NetworkInterface.2.SecondaryPrivateIpAddressCount", "3"),
        ("NetworkInterface.2.DeleteOnTermination", "false"),
    ];
    assert_eq!(code(&client, &[&both[..], &[("MaxCount", "2")]].concat()), "InvalidParameterCombination");
    let id = client.running(&both);
    let shown = client.call("DescribeInstances", &[("InstanceId.1", &id)]).unwrap();
    assert_eq!(shown.all("deviceIndex"), ["0", "1"]);
    assert_eq!(shown.all("networkInterfaceId")[1], eni);
    assert_eq!(shown.all("primary"), ["true", "false", "false", "false", "true", "false"]);
    assert!(shown.all("ipAddress").is_empty());
    assert_eq!(code(&client, &both), "InvalidNetworkInterface.InUse");
    client.call("TerminateInstances", &[("InstanceId.1", &id)]).unwrap();
    client.settle();
    let left = client.call("DescribeNetworkInterfaces", &[]).unwrap();
    assert_eq!(left.all("status"), ["available", "available"]);
}

#[test]
fn an_elastic_address_stays_through_a_stop_and_is_free_after_the_end() {
    let client = Client::new();
    let id = client.running(&[]);
    let allocation = client.call("AllocateAddress", &[]).unwrap().one("allocationId");
    let associate = [("AllocationId", allocation.as_str()), ("InstanceId", &id)];
    client.call("AssociateAddress", &associate).unwrap();
    let shown = || client.call("DescribeAddresses", &[("AllocationId.1", &allocation)]).unwrap();
    let address = shown().one("publicIp");
    let seen = || client.call("DescribeInstances", &[("InstanceId.1", &id)]).unwrap().all("ipAddress");
    assert_eq!(seen(), [&*address]);
    for action in ["StopInstances", "StartInstances"] {
        client.call(action, &[("InstanceId.1", &id)]).unwrap();
        client.settle();
        assert_eq!(seen(), [&*address], "{action}");
    }
    client.call("TerminateInstances", &[("InstanceId.1", &id)]).unwrap();
    client.settle();
    assert!(seen().is_empty() && shown().all("associationId").is_empty());
    assert_eq!(client.code("ReleaseAddress", &[("AllocationId", &allocation)]), "");
}

#[test]
fn without_public_addresses_instances_are_launched_unless_they_ask_for_one() {
    let mut client = Client::new();
    client.client.agent.config.public_addresses = vec!["203.0.113.0/30".parse().unwrap()];
    let asks =
        [("NetworkInterface.1.DeviceIndex", "0"), ("NetworkInterface.1.AssociatePublicIpAddress", "true")];
    let id = client.launch(&asks);
    let shown = client.call("DescribeInstances", &[("InstanceId.1", &id)]).unwrap();
    assert_eq!(shown.one("ipAddress"), "203.0.113.2");
    assert_eq!(code(&client, &asks), "InsufficientAddressCapacity");
    let id = client.launch(&[]);
    let shown = client.call("DescribeInstances", &[("InstanceId.1", &id)]).unwrap();
    assert!(shown.all("ipAddress").is_empty());
}

#[test]
fn disks_leave_a_place_for_the_interface() {
    let client = Client::new();
    let code = |volumes: u8| {
        let named = |number: u8| {
            let mapping = format!("BlockDeviceMapping.{}", number + 1);
            let device =
                format!("/dev/xvd{}{}", if number < 26 { 'b' } else { 'c' }, char::from(b'a' + number % 26));
            [(format!("{mapping}.DeviceName"), device), (format!("{mapping}.Ebs.VolumeSize"), "1".to_owned())]
        };
        let mappings: Vec<_> = (0..volumes).flat_map(named).collect();
        let mut parameters =
            vec![("ImageId", IMAGE), ("MinCount", "1"), ("MaxCount", "1"), ("DryRun", "true")];
        parameters.extend(mappings.iter().map(|(name, value)| (name.as_str(), value.as_str())));
        client.code("RunInstances", &parameters)
    };
    assert_eq!((code(26), code(27)), ("DryRunOperation", "AttachmentLimitExceeded"));
}
