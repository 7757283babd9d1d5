//! What can be done with instances.

use super::Client;
use crate::instances::capacity::Capacity;
use crate::query::ApiError;
use crate::records::{AttachmentStatus, Image, NetworkInterface, SecurityGroup, StoreDisk, Volume};
use crate::state::Draft;

/// An action on one instance.
fn act(client: &Client, action: &str, id: &str, more: &[(&str, &str)]) -> String {
    let mut parameters = vec![("InstanceId.1", id)];
    parameters.extend(more);
    match client.call(action, &parameters) {
        Ok(answer) => answer.all("name").join(" from "),
        Err(error) => error.code.to_owned(),
    }
}

/// ModifyInstanceAttribute of one instance.
fn modify(client: &Client, id: &str, more: &[(&str, &str)]) -> &'static str {
    let mut parameters = vec![("InstanceId", id)];
    parameters.extend(more);
    client.code("ModifyInstanceAttribute", &parameters)
}

#[test]
fn a_life_as_ec2_tells_it() {
    let client = Client::new();
    let id = client.launch(&[]);
    for (action, more, expected, then) in [
        ("StartInstances", vec![], "pending from pending", "running"),
        ("StartInstances", vec![], "running from running", "running"),
        ("RebootInstances", vec![("DryRun", "true")], "DryRunOperation", "running"),
        ("RebootInstances", vec![], "", "running"),
        ("StopInstances", vec![("Hibernate", "true")], "UnsupportedHibernationConfiguration", "running"),
        ("StopInstances", vec![("DryRun", "true")], "DryRunOperation", "running"),
        ("StopInstances", vec![], "stopping from running", "stopped"),
        ("StopInstances", vec![], "stopped from stopped", "stopped"),
        ("RebootInstances", vec![], "IncorrectInstanceState", "stopped"),
        ("StartInstances", vec![], "pending from stopped", "running"),
        ("StopInstances", vec![("Force", "true")], "stopping from running", "stopped"),
        ("TerminateInstances", vec![], "shutting-down from stopped", "terminated"),
        ("TerminateInstances", vec![], "terminated from terminated", "terminated"),
        ("StartInstances", vec![], "IncorrectInstanceState", "terminated"),
        ("StopInstances", vec![], "IncorrectInstanceState", "terminated"),
        ("RebootInstances", vec![], "IncorrectInstanceState", "terminated"),
    ] {
        assert_eq!(act(&client, action, &id, &more), expected, "{action} {more:?}");
        client.settle();
        assert_eq!(client.state(&id), then, "{action} {more:?}");
    }
    let gone = client.call("DescribeInstances", &[]).unwrap();
    for name in ["networkInterfaceId", "volumeId", "groupId", "subnetId", "vpcId", "privateIpAddress"] {
        assert_eq!(gone.all(name).len(), 0, "{name}");
    }
}

#[test]
fn what_cannot_be_done_to_one_is_done_to_none() {
    let client = Client::new();
    let (running, pending) = (client.running(&[]), client.launch(&[]));
    let both = [("InstanceId.1", running.as_str()), ("InstanceId.2", pending.as_str())];
    assert_eq!(client.code("StopInstances", &both), "IncorrectInstanceState");
    assert_eq!(client.state(&running), "running");
    client.settle();
    let answer = client.call("StopInstances", &[&both[..], &[("InstanceId.3", &running)]].concat()).unwrap();
    assert_eq!(answer.all("instanceId"), [running, pending]);
}

#[test]
fn protected_instances_stay() {
    let client = Client::new();
    let message = |action: &str, id: &str| {
        let error = client.call(action, &[("InstanceId.1", id)]).err().unwrap();
        assert_eq!(error.code, "OperationNotPermitted");
        error.message
    };
    let id = client.running(&[("DisableApiTermination", "true")]);
    assert_eq!(
        message("TerminateInstances", &id),
        format!(
            "The instance '{id}' may not be terminated. Modify its 'disableApiTermination' instance attribute and try \
             again."
        )
    );
    assert_eq!(modify(&client, &id, &[("DisableApiTermination.Value", "false")]), "");
    assert_eq!(act(&client, "TerminateInstances", &id, &[]), "shutting-down from running");
    let id = client.running(&[("DisableApiStop", "true")]);
    assert!(message("StopInstances", &id).contains("may not be stopped. Modify its 'disableApiStop'"));
    assert!(
        message("TerminateInstances", &id).contains("may not be terminated. Modify its 'disableApiStop'")
    );
    assert_eq!(modify(&client, &id, &[("Attribute", "disableApiStop"), ("Value", "false")]), "");
    assert_eq!(act(&client, "StopInstances", &id, &[]), "stopping from running");
}

#[test]
fn a_start_needs_room() {
    let mut client = Client::new();
    client.client.agent.capacity = Capacity { vcpus: 4, memory: 1 << 20, largest: 4 };
    let (one, two) = (client.running(&[]), client.running(&[]));
    let both = [("InstanceId.1", one.as_str()), ("InstanceId.2", two.as_str())];
    client.call("StopInstances", &both).unwrap();
    client.settle();
    client.running(&[]);
    assert_eq!(client.code("StartInstances", &both), "InsufficientInstanceCapacity");
    assert_eq!(client.state(&one), "stopped");
    assert_eq!(act(&client, "StartInstances", &one, &[]), "pending from stopped");
    assert_eq!(act(&client, "StartInstances", &two, &[]), "InsufficientInstanceCapacity");
}

#[test]
fn an_instance_without_a_root_volume_cannot_be_stopped() {
    let client = Client::new();
    let root = StoreDisk {
        name: StoreDisk::ROOT.into(),
        device_name: None,
        size: 1 << 30,
        layer: None,
        source: None,
    };
    client.put(Image {
        block_devices: Vec::new(),
        root_store: Some(root),
        ..client.image("ami-0000000000000000a")
    });
    let store = [("ImageId", "ami-0000000000000000a"), ("MinCount", "1"), ("MaxCount", "1")];
    let stop = [&store[..], &[("InstanceInitiatedShutdownBehavior", "stop")]].concat();
    assert_eq!(client.code("RunInstances", &stop), "InvalidParameterCombination");
    let answer = client.call("RunInstances", &store).unwrap();
    assert_eq!(answer.one("rootDeviceType"), "instance-store");
    client.settle();
    let id = answer.one("instanceId");
    let error = client.call("StopInstances", &[("InstanceId.1", &id)]).err().unwrap();
    assert_eq!(
        error.message,
        format!("The instance '{id}' does not have an 'ebs' root device type and cannot be stopped")
    );
    let behavior = [("InstanceInitiatedShutdownBehavior.Value", "stop")];
    assert_eq!(modify(&client, &id, &behavior), "InvalidParameterCombination");
    assert_eq!(act(&client, "TerminateInstances", &id, &[]), "shutting-down from running");
}

#[test]
fn attributes_change_in_both_forms() {
    let client = Client::new();
    let id = client.running(&[]);
    let read = |attribute: &str| {
        let parameters = [("InstanceId", id.as_str()), ("Attribute", attribute)];
        client.call("DescribeInstanceAttribute", &parameters).unwrap().one(attribute)
    };
    for (attribute, structured, value, before) in [
        ("disableApiTermination", "DisableApiTermination.Value", "true", "false"),
        ("disableApiStop", "DisableApiStop.Value", "true", "false"),
        ("instanceInitiatedShutdownBehavior", "InstanceInitiatedShutdownBehavior.Value", "terminate", "stop"),
        ("sourceDestCheck", "SourceDestCheck.Value", "false", "true"),
    ] {
        assert_eq!(read(attribute), format!("<value>{before}</value>"));
        assert_eq!(modify(&client, &id, &[(structured, value)]), "", "{attribute}");
        assert_eq!(read(attribute), format!("<value>{value}</value>"));
        assert_eq!(modify(&client, &id, &[("Attribute", attribute), ("Value", before)]), "", "{attribute}");
        assert_eq!(read(attribute), format!("<value>{before}</value>"));
    }
    // Only while it is stopped.
    let later = [
        ("instanceType", "InstanceType.Value", "m5.large"),
        ("userData", "UserData.Value", "aGk="),
        ("ebsOptimized", "EbsOptimized.Value", "true"),
    ];
    for (attribute, structured, value) in later {
        assert_eq!(modify(&client, &id, &[(structured, value)]), "IncorrectInstanceState", "{attribute}");
    }
    act(&client, "StopInstances", &id, &[]);
    client.settle();
    for (attribute, structured, value) in later {
        assert_eq!(modify(&client, &id, &[(structured, value)]), "", "{attribute}");
        assert_eq!(read(attribute), format!("<value>{value}</value>"));
    }
}

#[test]
fn an_attribute_that_is_not_asked_for_is_not_there() {
    let client = Client::new();
    let id = client.running(&[]);
    for (attribute, expected) in [
        ("userData", "<userData"),
        ("kernel", "<kernel"),
        ("rootDeviceName", "<rootDeviceName><value>/dev/xvda</value></rootDeviceName>"),
        ("enaSupport", "<enaSupport><value>true</value></enaSupport>"),
        ("enclaveOptions", "<enclaveOptions><enabled>false</enabled></enclaveOptions>"),
        ("groupSet", "<groupName>default</groupName>"),
        ("productCodes", "<productCodes"),
        ("blockDeviceMapping", "<deviceName>/dev/xvda</deviceName>"),
    ] {
        let parameters = [("InstanceId", id.as_str()), ("Attribute", attribute)];
        let answer = client.call("DescribeInstanceAttribute", &parameters).unwrap().0;
        assert!(answer.contains(expected), "{answer}");
        assert_eq!(answer.contains("disableApiStop"), attribute == "disableApiStop", "{answer}");
    }
    let bad = [("InstanceId", id.as_str()), ("Attribute", "colour")];
    assert_eq!(client.code("DescribeInstanceAttribute", &bad), "InvalidParameterValue");
}

#[test]
fn bad_modifications_are_refused() {
    let client = Client::new();
    let id = client.running(&[]);
    let stop = ("DisableApiStop.Value", "true");
    for (parameters, expected) in [
        (vec![], "InvalidParameterCombination"),
        (vec![stop, ("DisableApiTermination.Value", "true")], "InvalidParameterCombination"),
        (vec![("Attribute", "disableApiStop")], "MissingParameter"),
        (vec![("Value", "true")], "MissingParameter"),
        (vec![("Attribute", "disableApiStop"), ("Value", "maybe")], "InvalidParameterValue"),
        (vec![("Attribute", "colour"), ("Value", "red")], "InvalidParameterValue"),
        (vec![("InstanceInitiatedShutdownBehavior.Value", "sleep")], "InvalidParameterValue"),
        (vec![("GroupId.1", "sg-00000000000000000")], "InvalidGroup.NotFound"),
        (vec![("Kernel.Value", "aki-1")], "UnsupportedOperation"),
        (vec![("EnaSupport.Value", "false")], "UnsupportedOperation"),
        (vec![("EnaSupport.Value", "true")], ""),
        (vec![("EnclaveOptions.Enabled", "true")], "UnsupportedOperation"),
        (vec![("EnclaveOptions.Enabled", "false")], ""),
        (vec![("Attribute", "disableApiStop"), stop], ""),
        (vec![("BlockDeviceMapping.1.DeviceName", "/dev/sdz")], "InvalidInstanceAttributeValue"),
        (
            vec![("BlockDeviceMapping.1.DeviceName", "/dev/xvda"), ("BlockDeviceMapping.1.NoDevice", "")],
            "InvalidParameterCombination",
        ),
    ] {
        assert_eq!(modify(&client, &id, &parameters), expected, "{parameters:?}");
    }
    act(&client, "StopInstances", &id, &[("Force", "true")]);
    assert_eq!(modify(&client, &id, &[("DisableApiStop.Value", "false")]), "");
    act(&client, "StopInstances", &id, &[]);
    client.settle();
    assert_eq!(modify(&client, &id, &[("InstanceType.Value", "t9.tiny")]), "InvalidParameterValue");
    assert_eq!(modify(&client, &id, &[("UserData.Value", "#!")]), "InvalidParameterValue");
}

#[test]
fn what_hangs_on_an_instance_changes_with_it() {
    let client = Client::new();
    let id = client.running(&[]);
    let default = client.agent.state.read().all::<SecurityGroup>().next().unwrap().clone();
    client.put(SecurityGroup {
        id: "sg-0000000000000000a".parse().unwrap(),
        name: "web".into(),
        ..SecurityGroup::clone(&default)
    });
    assert_eq!(modify(&client, &id, &[("GroupId.1", "sg-0000000000000000a")]), "");
    assert_eq!(modify(&client, &id, &[("SourceDestCheck.Value", "false")]), "");
    let keep = [
        ("BlockDeviceMapping.1.DeviceName", "/dev/xvda"),
        ("BlockDeviceMapping.1.Ebs.DeleteOnTermination", "false"),
    ];
    assert_eq!(modify(&client, &id, &keep), "");
    let instance = client.instance(&id);
    let world = client.agent.state.read();
    let interface = world.get::<NetworkInterface>(&instance.network_interface).unwrap();
    assert_eq!(interface.groups[0].as_str(), "sg-0000000000000000a");
    assert!(!interface.source_dest_check);
    let volume = world.get::<Volume>(&instance.block_devices[0].volume).unwrap();
    assert!(!volume.attachment.as_ref().unwrap().delete_on_termination);
    assert!(!instance.block_devices[0].delete_on_termination);
    let reset = |attribute: &str| {
        client.code("ResetInstanceAttribute", &[("InstanceId", &id), ("Attribute", attribute)])
    };
    assert_eq!(reset("sourceDestCheck"), "");
    assert!(client.interface(&id).source_dest_check);
    assert_eq!((reset("kernel"), reset("userData")), ("UnsupportedOperation", "InvalidParameterValue"));
}

#[test]
fn monitoring_metadata_and_console() {
    let client = Client::new();
    let id = client.running(&[]);
    let one = [("InstanceId.1", id.as_str())];
    let by_id = ("InstanceId", id.as_str());
    for (action, answered, on) in
        [("MonitorInstances", "pending", true), ("UnmonitorInstances", "disabling", false)]
    {
        let category = [one[0], ("MetricCategoryId.1", "x")];
        assert_eq!(client.code(action, &category), "UnsupportedOperation");
        assert_eq!(client.call(action, &one).unwrap().one("state"), answered);
        assert_eq!(client.instance(&id).monitoring, on);
    }
    let options = [by_id, ("HttpTokens", "required"), ("HttpPutResponseHopLimit", "3")];
    let answer = client.call("ModifyInstanceMetadataOptions", &options).unwrap();
    assert_eq!(
        (answer.one("httpTokens"), answer.one("httpPutResponseHopLimit")),
        ("required".into(), "3".into())
    );
    assert_eq!(client.instance(&id).metadata_options.http_tokens, "required");
    let bad = [by_id, ("HttpEndpoint", "sometimes")];
    assert_eq!(client.code("ModifyInstanceMetadataOptions", &bad), "InvalidParameterValue");
    assert_eq!(client.call("GetConsoleOutput", &[by_id, ("Latest", "true")]).unwrap().one("instanceId"), id);
}

#[test]
fn a_burstable_instance_has_the_credits_that_were_chosen() {
    let client = Client::new();
    let launch = |kind: &str, credits: &str| match credits {
        "" => client.running(&[("InstanceType", kind)]),
        _ => client.running(&[("InstanceType", kind), ("CreditSpecification.CpuCredits", credits)]),
    };
    let told = |id: &str| {
        client
            .call("DescribeInstanceCreditSpecifications", &[("InstanceId.1", id)])
            .map(|it| it.one("cpuCredits"))
    };
    for (kind, chosen, expected) in [
        ("t2.micro", "", "standard"),
        ("t2.micro", "unlimited", "unlimited"),
        ("t3.micro", "", "unlimited"),
        ("t3.micro", "standard", "standard"),
    ] {
        let id = launch(kind, chosen);
        assert_eq!(told(&id).unwrap(), expected, "{kind} {chosen}");
        // Without ids, only those that are not limited are told.
        let all = client.call("DescribeInstanceCreditSpecifications", &[]).unwrap().all("instanceId");
        assert_eq!(all.contains(&id), expected == "unlimited", "{kind} {chosen}");
        act(&client, "TerminateInstances", &id, &[]);
        client.settle();
    }
    let (burstable, plain, gone) = (launch("t3.micro", ""), launch("m5.large", ""), launch("t3.micro", ""));
    act(&client, "TerminateInstances", &gone, &[]);
    assert_eq!(told(&plain).err().unwrap().code, "InvalidParameterValue");
    for (id, expected) in [
        (burstable.as_str(), ""),
        (&plain, "InstanceCreditSpecification.NotSupported"),
        (&gone, "IncorrectInstanceState"),
        ("i-00000000000000000", "InvalidInstanceID.NotFound"),
        ("web", "InvalidInstanceID.Malformed"),
    ] {
        let one = "InstanceCreditSpecification.1";
        let parameters = [(&*format!("{one}.InstanceId"), id), (&*format!("{one}.CpuCredits"), "standard")];
        let answer = client.call("ModifyInstanceCreditSpecification", &parameters).unwrap();
        assert_eq!(answer.all("code").concat(), expected, "{id}");
        let bad = [parameters[0], (&*format!("{one}.CpuCredits"), "none")];
        assert_eq!(client.code("ModifyInstanceCreditSpecification", &bad), "InvalidParameterValue");
    }
    assert_eq!(told(&burstable).unwrap(), "standard");
    assert_eq!(client.code("ModifyInstanceCreditSpecification", &[]), "MissingParameter");
}

#[test]
fn an_interface_that_a_guest_was_to_let_go_of_is_free_when_there_is_no_guest() {
    let client = Client::new();
    let id = client.running(&[("InstanceType", "m5.large")]);
    let subnet = client.instance(&id).subnet.to_string();
    let eni =
        client.call("CreateNetworkInterface", &[("SubnetId", &subnet)]).unwrap().one("networkInterfaceId");
    let attach = [("NetworkInterfaceId", eni.as_str()), ("InstanceId", &id), ("DeviceIndex", "1")];
    client.call("AttachNetworkInterface", &attach).unwrap();
    let asked = |draft: &mut Draft| {
        draft.update::<NetworkInterface>(&eni, |interface| {
            interface.attachment.as_mut().unwrap().status = AttachmentStatus::Detaching { force: false };
        });
        Ok::<_, ApiError>(())
    };
    client.agent.state.change(asked).unwrap();
    let status = || {
        let shown = client.call("DescribeNetworkInterfaces", &[("NetworkInterfaceId.1", &eni)]).unwrap();
        shown.all("status")
    };
    assert_eq!(status(), ["in-use", "detaching"]);
    client.call("StopInstances", &[("InstanceId.1", &id)]).unwrap();
    assert_eq!(status(), ["in-use", "detaching"]);
    client.settle();
    assert_eq!(status(), ["available"]);
}

#[test]
fn an_instance_keeps_to_a_type_that_can_have_its_interfaces() {
    let client = Client::new();
    let id = client.running(&[
        ("InstanceType", "m5.large"),
        ("NetworkInterface.1.DeviceIndex", "0"),
        ("NetworkInterface.1.SecondaryPrivateIpAddressCount", "5"),
    ]);
    client.call("StopInstances", &[("InstanceId.1", &id)]).unwrap();
    client.settle();
    assert_eq!(modify(&client, &id, &[("InstanceType.Value", "t3.micro")]), "PrivateIpAddressLimitExceeded");
    assert_eq!(modify(&client, &id, &[("InstanceType.Value", "m5.xlarge")]), "");
}
