//! What can be seen of instances and types.

use jiff::Timestamp;

use super::{Client, IMAGE};
use crate::instances::health::{Check, Health};

#[test]
fn instances_that_are_not_there_are_named() {
    let client = Client::new();
    let id = client.launch(&[]);
    let message = |ids: &[(&str, &str)]| client.call("DescribeInstances", ids).err().unwrap().message;
    let missing = ("InstanceId.2", "i-00000000000000000");
    let both = [("InstanceId.1", id.as_str()), missing];
    assert_eq!(message(&both), "The instance ID 'i-00000000000000000' does not exist");
    let more = [missing, ("InstanceId.3", "i-00000000000000001")];
    assert_eq!(message(&more), "The instance IDs 'i-00000000000000000, i-00000000000000001' do not exist");
    for (action, ids, expected) in [
        ("DescribeInstances", vec![("InstanceId.1", "web")], "InvalidInstanceID.Malformed"),
        ("StopInstances", vec![], "MissingParameter"),
        ("StartInstances", vec![missing], "InvalidInstanceID.NotFound"),
        ("RebootInstances", vec![missing], "InvalidInstanceID.NotFound"),
        ("TerminateInstances", both.to_vec(), "InvalidInstanceID.NotFound"),
        ("DescribeInstanceStatus", vec![missing], "InvalidInstanceID.NotFound"),
        ("MonitorInstances", vec![missing], "InvalidInstanceID.NotFound"),
        ("GetConsoleOutput", vec![("InstanceId", "i-00000000000000000")], "InvalidInstanceID.NotFound"),
        ("GetConsoleOutput", vec![], "MissingParameter"),
    ] {
        assert_eq!(client.code(action, &ids), expected, "{action} {ids:?}");
    }
    assert_eq!(client.state(&id), "pending");
}

#[test]
fn an_account_sees_its_own_instances_only() {
    let mut client = Client::new();
    let id = client.launch(&[]);
    client.account = "111111111111".into();
    assert_eq!(client.code("DescribeInstances", &[("InstanceId.1", &id)]), "InvalidInstanceID.NotFound");
    assert!(client.call("DescribeInstances", &[]).unwrap().all("instanceId").is_empty());
    assert_eq!(client.code("TerminateInstances", &[("InstanceId.1", &id)]), "InvalidInstanceID.NotFound");
}

#[test]
fn every_filter_finds_what_it_is_about() {
    let client = Client::new();
    let tags = [
        ("TagSpecification.1.ResourceType", "instance"),
        ("TagSpecification.1.Tag.1.Key", "Name"),
        ("TagSpecification.1.Tag.1.Value", "web"),
        ("TagSpecification.2.ResourceType", "network-interface"),
        ("TagSpecification.2.Tag.1.Key", "Side"),
        ("TagSpecification.2.Tag.1.Value", "front"),
    ];
    let other = client.running(&[("InstanceType", "m5.large")]);
    client.call("TerminateInstances", &[("InstanceId.1", &other)]).unwrap();
    client.settle();
    let id = client.running(&[&[("KeyName", "mine"), ("ClientToken", "once")][..], &tags[..]].concat());
    let instance = client.instance(&id);
    let volume = instance.block_devices[0].volume.to_string();
    let (group, vpc) = (client.interface(&id).groups[0].to_string(), instance.vpc.to_string());
    for (name, value) in [
        ("architecture", "x86_64"),
        ("availability-zone", "us-east-1a"),
        ("availability-zone-id", "use1-az1"),
        ("block-device-mapping.attach-time", "2*"),
        ("block-device-mapping.delete-on-termination", "true"),
        ("block-device-mapping.device-name", "/dev/xvda"),
        ("block-device-mapping.status", "attached"),
        ("block-device-mapping.volume-id", volume.as_str()),
        ("client-token", "once"),
        ("current-instance-boot-mode", "legacy-bios"),
        ("dns-name", "ec2-198-19-*.compute-1.amazonaws.com"),
        ("ebs-optimized", "false"),
        ("hypervisor", "xen"),
        ("image-id", IMAGE),
        ("instance-id", id.as_str()),
        ("instance-state-code", "16"),
        ("instance-state-name", "run*"),
        ("instance-type", "t3.*"),
        ("instance.group-id", group.as_str()),
        ("instance.group-name", "default"),
        ("ip-address", "198.19.*"),
        ("key-name", "mine"),
        ("launch-index", "0"),
        ("launch-time", "20*"),
        ("metadata-options.http-endpoint", "enabled"),
        ("metadata-options.http-put-response-hop-limit", "1"),
        ("metadata-options.http-tokens", "optional"),
        ("metadata-options.instance-metadata-tags", "disabled"),
        ("monitoring-state", "disabled"),
        ("network-interface.addresses.association.public-ip", "198.19.*"),
        ("network-interface.addresses.primary", "true"),
        ("network-interface.association.ip-owner-id", "amazon"),
        ("network-interface.association.public-dns-name", "ec2-198-19-*"),
        ("network-interface.addresses.private-dns-name", "ip-172-31-0-4.*"),
        ("network-interface.attachment.network-card-index", "0"),
        ("network-interface.ipv6-native", "false"),
        ("network-interface.operator.managed", "false"),
        ("network-interface.tag-key", "Side"),
        ("network-interface.tag-value", "front"),
        ("network-interface.addresses.private-ip-address", "172.31.0.4"),
        ("network-interface.attachment.attachment-id", "eni-attach-*"),
        ("network-interface.attachment.device-index", "0"),
        ("network-interface.attachment.instance-id", id.as_str()),
        ("network-interface.attachment.status", "attached"),
        ("network-interface.availability-zone", "us-east-1a"),
        ("network-interface.description", ""),
        ("network-interface.group-id", group.as_str()),
        ("network-interface.group-name", "default"),
        ("network-interface.mac-address", "02:*"),
        ("network-interface.network-interface-id", instance.network_interface.as_str()),
        ("network-interface.private-dns-name", "ip-172-31-0-4.*"),
        ("network-interface.source-dest-check", "true"),
        ("network-interface.status", "in-use"),
        ("network-interface.subnet-id", instance.subnet.as_str()),
        ("network-interface.vpc-id", vpc.as_str()),
        ("owner-id", client.account.as_str()),
        ("private-dns-name", "ip-172-31-0-4.ec2.internal"),
        ("private-ip-address", "172.31.0.4"),
        ("reservation-id", instance.reservation.as_str()),
        ("root-device-name", "/dev/xvda"),
        ("root-device-type", "ebs"),
        ("source-dest-check", "true"),
        ("subnet-id", instance.subnet.as_str()),
        ("tag:Name", "w?b"),
        ("tag-key", "Name"),
        ("tag-value", "web"),
        ("tenancy", "default"),
        ("usage-operation", "RunInstances"),
        ("virtualization-type", "hvm"),
        ("vpc-id", vpc.as_str()),
    ] {
        let found = |value: &str| {
            let filters = [
                ("Filter.1.Name", name),
                ("Filter.1.Value.1", value),
                ("Filter.2.Name", "instance-state-name"),
                ("Filter.2.Value.1", "running"),
            ];
            client.call("DescribeInstances", &filters).unwrap().all("reservationId").len()
        };
        assert_eq!((found(value), found("something else")), (1, 0), "{name}");
    }
    for none in [
        "instance-lifecycle",
        "platform",
        "iam-instance-profile.arn",
        "tpm-support",
        "network-interface.deny-all-igw-traffic",
        "network-interface.ipv4-prefixes.ipv4-prefix",
        "network-interface.ipv6-addresses.ipv6-address",
        "network-interface.ipv6-addresses.is-primary-ipv6",
        "network-interface.ipv6-prefixes.ipv6-prefix",
        "network-interface.operator.principal",
    ] {
        let filters = [("Filter.1.Name", none), ("Filter.1.Value.1", "*")];
        assert!(
            client.call("DescribeInstances", &filters).unwrap().all("reservationId").is_empty(),
            "{none}"
        );
    }
    // The terminated one is still listed, without its network.
    for (name, value, count) in [
        ("instance-state-name", "terminated", 1),
        ("state-reason-code", "Client.UserInitiatedShutdown", 1),
        ("reason", "User initiated (*)", 1),
        ("vpc-id", "*", 1),
        ("private-ip-address", "*", 1),
        ("owner-id", "*", 2),
    ] {
        let filters = [("Filter.1.Name", name), ("Filter.1.Value.1", value)];
        let found = client.call("DescribeInstances", &filters).unwrap().all("reservationId").len();
        assert_eq!(found, count, "{name}");
    }
    let bad = [("Filter.1.Name", "colour"), ("Filter.1.Value.1", "red")];
    for action in ["DescribeInstances", "DescribeInstanceStatus", "DescribeInstanceTypes"] {
        assert_eq!(client.code(action, &bad), "InvalidParameterValue", "{action}");
    }
}

#[test]
fn pages_keep_reservations_together_and_in_order() {
    let client = Client::new();
    for _ in 0..4 {
        let three = [("ImageId", IMAGE), ("MinCount", "3"), ("MaxCount", "3"), ("InstanceType", "t3.nano")];
        client.call("RunInstances", &three).unwrap();
    }
    let whole = client.call("DescribeInstances", &[]).unwrap();
    assert_eq!(whole.all("reservationId").len(), 4);
    assert_eq!(whole.all("amiLaunchIndex"), ["0", "1", "2"].repeat(4));
    let first = client.call("DescribeInstances", &[("MaxResults", "7")]).unwrap();
    assert_eq!((first.all("reservationId").len(), first.all("amiLaunchIndex").len()), (3, 7));
    let token = first.one("nextToken");
    let rest = client.call("DescribeInstances", &[("MaxResults", "7"), ("NextToken", &token)]).unwrap();
    assert_eq!((rest.all("amiLaunchIndex").len(), rest.all("nextToken").len()), (5, 0));
    let ids = |answer: &super::Answer| {
        let network = |id: &String| id.starts_with("i-");
        Vec::from_iter(answer.all("instanceId").into_iter().filter(network))
    };
    assert_eq!([ids(&first), ids(&rest)].concat(), ids(&whole));
    let id = &ids(&whole)[0];
    let both = [("MaxResults", "7"), ("InstanceId.1", id)];
    for (parameters, expected) in [
        (&both[..], "InvalidParameterCombination"),
        (&[("MaxResults", "4")], "InvalidParameterValue"),
        (&[("MaxResults", "1001")], "InvalidParameterValue"),
        (&[("NextToken", "?")], "InvalidNextToken"),
    ] {
        assert_eq!(client.code("DescribeInstances", parameters), expected, "{parameters:?}");
        assert_eq!(client.code("DescribeInstanceStatus", parameters), expected, "{parameters:?}");
    }
}

#[test]
fn only_running_instances_have_a_status_if_not_all_are_wanted() {
    let client = Client::new();
    let running = client.running(&[]);
    let pending = client.launch(&[]);
    let some = client.call("DescribeInstanceStatus", &[]).unwrap();
    assert_eq!(some.all("instanceId"), [running.as_str()]);
    assert!(some.0.contains("<instanceStatus><status>initializing</status>"), "{}", some.0);
    let all = client.call("DescribeInstanceStatus", &[("IncludeAllInstances", "true")]).unwrap();
    assert_eq!(all.all("instanceId").len(), 2);
    let failed = Check::Failed { since: Timestamp::UNIX_EPOCH };
    let (instance, volumes) = (Check::Passed, Check::Passed);
    let health = Health { system: failed, instance, volumes, ..Health::default() };
    client.agent.instances.set_health(&running.parse().unwrap(), health);
    let some = client.call("DescribeInstanceStatus", &[("InstanceId.1", &running)]).unwrap();
    for piece in [
        "<systemStatus><status>impaired</status><details><item><name>reachability</name><status>failed</status>\
         <impairedSince>1970-01-01T00:00:00.000Z</impairedSince>",
        "<instanceStatus><status>ok</status><details><item><name>reachability</name><status>passed</status>",
        "<attachedEbsStatus><status>ok</status>",
    ] {
        assert!(some.0.contains(piece), "{piece}: {}", some.0);
    }
    let filters = [
        ("IncludeAllInstances", "true"),
        ("Filter.1.Name", "system-status.status"),
        ("Filter.1.Value.1", "not-applicable"),
    ];
    assert_eq!(client.call("DescribeInstanceStatus", &filters).unwrap().all("instanceId"), [pending]);
}

#[test]
fn types_are_described_in_pages_and_by_filters() {
    let client = Client::new();
    let micro = client.call("DescribeInstanceTypes", &[("InstanceType.1", "t3.micro")]).unwrap();
    for (name, value) in [
        ("instanceType", "t3.micro"),
        ("defaultVCpus", "2"),
        ("defaultCores", "1"),
        ("sizeInMiB", "1024"),
        ("burstablePerformanceSupported", "true"),
        ("networkPerformance", "Up to 5 Gigabit"),
        ("maximumNetworkInterfaces", "2"),
        ("baselineThroughputInMBps", "10.875"),
    ] {
        assert_eq!(micro.one(name), value, "{name}");
    }
    for (name, value, count) in [
        ("instance-type", "c5d.*", 8),
        ("free-tier-eligible", "true", 2),
        ("vcpu-info.default-vcpus", "1", 6),
        ("memory-info.size-in-mib", "512", 3),
        ("instance-storage-info.total-size-in-gb", "60000", 1),
        ("ebs-info.ebs-optimized-support", "unsupported", 7),
        ("network-info.network-performance", "100 Gigabit", 2),
        ("bare-metal", "true", 0),
        ("ebs-info.attachment-limit-type", "dedicated", 0),
        ("ebs-info.maximum-ebs-attachments", "27", 0),
        ("network-info.flexible-ena-queues-support", "supported", 0),
        ("reboot-migration-support", "supported", 0),
    ] {
        let filters = [("Filter.1.Name", name), ("Filter.1.Value.1", value)];
        let found = client.call("DescribeInstanceTypes", &filters).unwrap().all("instanceType").len();
        assert_eq!(found, count, "{name}");
    }
    let page = client.call("DescribeInstanceTypes", &[("MaxResults", "100")]).unwrap();
    assert_eq!((page.all("instanceType").len(), page.all("nextToken").len()), (100, 1));
    for (parameters, expected) in [
        ([("InstanceType.1", "t9.tiny")], "InvalidInstanceType"),
        ([("MaxResults", "101")], "InvalidParameterValue"),
    ] {
        assert_eq!(client.code("DescribeInstanceTypes", &parameters), expected);
    }
}

#[test]
fn types_are_offered_everywhere() {
    let client = Client::new();
    for (location_type, locations) in [
        ("region", &["us-east-1"][..]),
        ("availability-zone", &["us-east-1a", "us-east-1b", "us-east-1c"]),
        ("availability-zone-id", &["use1-az1", "use1-az2", "use1-az3"]),
        ("outpost", &[]),
    ] {
        let parameters = [
            ("LocationType", location_type),
            ("Filter.1.Name", "instance-type"),
            ("Filter.1.Value.1", "t3.nano"),
        ];
        let answer = client.call("DescribeInstanceTypeOfferings", &parameters).unwrap();
        assert_eq!(answer.all("location"), locations, "{location_type}");
    }
    let bad = [("LocationType", "moon")];
    assert_eq!(client.code("DescribeInstanceTypeOfferings", &bad), "InvalidParameterValue");
}

#[test]
fn a_thousand_instances_are_described_at_once() {
    let mut client = Client::new();
    client.client.agent.capacity.vcpus = 1 << 20;
    client.client.agent.capacity.memory = 1 << 30;
    let thousand = [("ImageId", IMAGE), ("MinCount", "1000"), ("MaxCount", "1000")];
    client.call("RunInstances", &thousand).unwrap();
    client.settle();
    let begin = std::time::Instant::now();
    let answer = client.call("DescribeInstances", &[]).unwrap();
    // A few milliseconds when optimized; what is quadratic takes minutes.
    assert!(begin.elapsed() < std::time::Duration::from_secs(5), "{:?}", begin.elapsed());
    assert_eq!(answer.all("amiLaunchIndex").len(), 1000);
}
