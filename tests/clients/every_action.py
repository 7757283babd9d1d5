"""Every action that people's tools need first, answered by the daemon and walked against botocore's model.

The tests run one after the other, in the order of their names, against one daemon; the last one looks at what was
walked: each action must have answered with something, and with what clients rely on.
"""

import base64
import time
import unittest

from botocore.exceptions import ClientError

from clients.daemon import IMAGE, INSTANCE_TYPE, LOCATION, QUICK, REGION, Recorder

INSTANCE = """
    instanceId imageId instanceState/code instanceState/name privateDnsName keyName amiLaunchIndex instanceType
    launchTime placement/availabilityZone placement/tenancy monitoring/state subnetId vpcId privateIpAddress
    groupSet/item/groupId groupSet/item/groupName architecture rootDeviceType rootDeviceName virtualizationType
    hypervisor clientToken tagSet/item/key tagSet/item/value ebsOptimized sourceDestCheck
    metadataOptions/httpTokens metadataOptions/httpPutResponseHopLimit metadataOptions/httpEndpoint""".split()
CHANGE = "instanceId currentState/code currentState/name previousState/code previousState/name".split()
VOLUME = "volumeId size availabilityZone status createTime volumeType encrypted".split()
ATTACHMENT = "volumeId instanceId device status attachTime".split()
RULE = """securityGroupRuleId groupId groupOwnerId isEgress ipProtocol fromPort toPort cidrIpv4""".split()
KEY = "keyName keyFingerprint keyPairId".split()


def below(prefix: str, names) -> list[str]:
    return [f"{prefix}/{name}" for name in names]


# What the answers to each action must have had, all taken together.
EXPECTED = {
    "GetCallerIdentity": ["Arn", "UserId", "Account"],
    "RunInstances": ["reservationId", "ownerId", *below("instancesSet/item", INSTANCE)],
    "DescribeInstances": [
        "reservationSet/item/reservationId",
        "reservationSet/item/ownerId",
        "nextToken",
        *below("reservationSet/item/instancesSet/item", INSTANCE),
        *below("reservationSet/item/instancesSet/item/stateReason", ["code", "message"]),
        "reservationSet/item/instancesSet/item/reason",
        *below(
            "reservationSet/item/instancesSet/item/blockDeviceMapping/item",
            ["deviceName", "ebs/volumeId", "ebs/status", "ebs/attachTime", "ebs/deleteOnTermination"],
        ),
    ],
    "StartInstances": below("instancesSet/item", CHANGE),
    "StopInstances": below("instancesSet/item", CHANGE),
    "RebootInstances": ["return"],
    "TerminateInstances": below("instancesSet/item", CHANGE),
    "DescribeInstanceStatus": below(
        "instanceStatusSet/item",
        [
            "instanceId",
            "availabilityZone",
            "instanceState/code",
            "instanceState/name",
            "systemStatus/status",
            "instanceStatus/status",
        ],
    ),
    "DescribeInstanceAttribute": [
        "instanceId",
        "instanceType/value",
        "disableApiTermination/value",
        "disableApiStop/value",
        "userData/value",
        "instanceInitiatedShutdownBehavior/value",
        "rootDeviceName/value",
        "sourceDestCheck/value",
        "ebsOptimized/value",
        "groupSet/item/groupId",
        "blockDeviceMapping/item/ebs/volumeId",
    ],
    "DescribeInstanceTypes": [
        "nextToken",
        *below(
            "instanceTypeSet/item",
            [
                "instanceType",
                "currentGeneration",
                "bareMetal",
                "hypervisor",
                "vCpuInfo/defaultVCpus",
                "memoryInfo/sizeInMiB",
                "instanceStorageSupported",
                "networkInfo/networkPerformance",
                "networkInfo/maximumNetworkInterfaces",
                "ebsInfo/ebsOptimizedSupport",
                "burstablePerformanceSupported",
                "processorInfo/supportedArchitectures/item",
                "supportedRootDeviceTypes/item",
                "supportedVirtualizationTypes/item",
                "supportedUsageClasses/item",
                "freeTierEligible",
            ],
        ),
    ],
    "GetConsoleOutput": ["instanceId", "timestamp", "output"],
    "CreateVolume": [*VOLUME, "tagSet/item/key"],
    "DeleteVolume": ["return"],
    "DescribeVolumes": [
        "nextToken",
        *below("volumeSet/item", VOLUME),
        *below("volumeSet/item/attachmentSet/item", [*ATTACHMENT, "deleteOnTermination"]),
        "volumeSet/item/tagSet/item/key",
    ],
    "AttachVolume": ATTACHMENT,
    "DetachVolume": ATTACHMENT,
    "DescribeImages": below(
        "imagesSet/item",
        [
            "imageId",
            "imageLocation",
            "imageState",
            "imageOwnerId",
            "isPublic",
            "architecture",
            "imageType",
            "name",
            "description",
            "rootDeviceType",
            "rootDeviceName",
            "virtualizationType",
            "hypervisor",
            "creationDate",
            "tagSet/item/key",
        ],
    ),
    "RegisterImage": ["imageId"],
    "DeregisterImage": ["return"],
    "CreateKeyPair": [*KEY, "keyMaterial", "tagSet/item/key"],
    "ImportKeyPair": KEY,
    "DescribeKeyPairs": below("keySet/item", [*KEY, "keyType", "createTime", "publicKey", "tagSet/item/key"]),
    "DeleteKeyPair": ["return", "keyPairId"],
    "CreateSecurityGroup": ["groupId", "tagSet/item/key"],
    "DeleteSecurityGroup": ["return"],
    "DescribeSecurityGroups": below(
        "securityGroupInfo/item",
        [
            "groupId",
            "groupName",
            "groupDescription",
            "ownerId",
            "vpcId",
            "ipPermissions/item/ipProtocol",
            "ipPermissions/item/fromPort",
            "ipPermissions/item/ipRanges/item/cidrIp",
            "ipPermissions/item/ipRanges/item/description",
            "ipPermissions/item/groups/item/groupId",
            "ipPermissionsEgress/item/ipProtocol",
            "tagSet/item/key",
        ],
    ),
    "DescribeSecurityGroupRules": below(
        "securityGroupRuleSet/item", [*RULE, "description", "referencedGroupInfo/groupId", "tagSet/item/key"]
    ),
    "AuthorizeSecurityGroupIngress": ["return", *below("securityGroupRuleSet/item", RULE)],
    "AuthorizeSecurityGroupEgress": ["return", *below("securityGroupRuleSet/item", RULE)],
    "RevokeSecurityGroupIngress": ["return", "unknownIpPermissionSet/item/fromPort"],
    "RevokeSecurityGroupEgress": ["return"],
    "CreateTags": ["return"],
    "DeleteTags": ["return"],
    "DescribeTags": below("tagSet/item", ["resourceId", "resourceType", "key", "value"]),
    "DescribeRegions": below("regionInfo/item", ["regionName", "regionEndpoint", "optInStatus"]),
    "DescribeAvailabilityZones": below(
        "availabilityZoneInfo/item",
        ["zoneName", "zoneState", "regionName", "zoneId", "zoneType", "optInStatus", "groupName"],
    ),
    "DescribeVpcs": below(
        "vpcSet/item", ["vpcId", "ownerId", "state", "cidrBlock", "dhcpOptionsId", "instanceTenancy", "isDefault"]
    ),
    "DescribeSubnets": below(
        "subnetSet/item",
        [
            "subnetId",
            "vpcId",
            "state",
            "cidrBlock",
            "availabilityZone",
            "availableIpAddressCount",
            "defaultForAz",
            "mapPublicIpOnLaunch",
            "ownerId",
            "subnetArn",
        ],
    ),
    "DescribeAccountAttributes": below(
        "accountAttributeSet/item", ["attributeName", "attributeValueSet/item/attributeValue"]
    ),
}


class EveryAction(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.recorder = Recorder()
        cls.ec2 = cls.recorder.client()
        cls.name = f"every-action-{time.time_ns()}"

    def tags(self, kind: str, **more: str) -> list[dict]:
        tags = [{"Key": key, "Value": value} for key, value in {"Suite": self.name, **more}.items()]
        return [{"ResourceType": kind, "Tags": tags}]

    def mine(self) -> list[dict]:
        return [{"Name": "tag:Suite", "Values": [self.name]}]

    def test_1_the_caller_and_the_place(self):
        identity = self.recorder.client("sts").get_caller_identity()
        self.assertRegex(identity["Account"], r"^\d{12}$")
        self.assertTrue(identity["Arn"].startswith(f"arn:aws:iam::{identity['Account']}:"), identity["Arn"])
        regions = self.ec2.describe_regions()["Regions"]
        self.assertEqual([region["RegionName"] for region in regions], [REGION])
        zones = self.ec2.describe_availability_zones()["AvailabilityZones"]
        self.assertTrue(all(zone["ZoneName"].startswith(REGION) for zone in zones))
        self.assertEqual({zone["State"] for zone in zones}, {"available"})
        attributes = self.ec2.describe_account_attributes()["AccountAttributes"]
        names = {attribute["AttributeName"] for attribute in attributes}
        self.assertLessEqual({"supported-platforms", "default-vpc", "max-instances"}, names)
        chosen = self.ec2.describe_account_attributes(AttributeNames=["default-vpc"])["AccountAttributes"]
        vpcs = self.ec2.describe_vpcs(Filters=[{"Name": "is-default", "Values": ["true"]}])["Vpcs"]
        self.assertEqual([vpc["VpcId"] for vpc in vpcs], [chosen[0]["AttributeValues"][0]["AttributeValue"]])
        subnets = self.ec2.describe_subnets(Filters=[{"Name": "vpc-id", "Values": [vpcs[0]["VpcId"]]}])["Subnets"]
        self.assertEqual({subnet["AvailabilityZone"] for subnet in subnets}, {zone["ZoneName"] for zone in zones})

    def test_2_instance_types(self):
        [micro] = self.ec2.describe_instance_types(InstanceTypes=["t3.micro"])["InstanceTypes"]
        self.assertEqual((micro["VCpuInfo"]["DefaultVCpus"], micro["MemoryInfo"]["SizeInMiB"]), (2, 1024))
        self.assertTrue(micro["BurstablePerformanceSupported"])
        pages = list(self.ec2.get_paginator("describe_instance_types").paginate(PaginationConfig={"PageSize": 5}))
        types = [each for page in pages for each in page["InstanceTypes"]]
        names = [each["InstanceType"] for each in types]
        self.assertEqual(len(names), len(set(names)))
        self.assertGreater(len(pages), 3)
        with_disks = [each for each in types if each["InstanceStorageSupported"]]
        self.assertTrue(with_disks)
        for each in with_disks:
            self.assertGreater(each["InstanceStorageInfo"]["TotalSizeInGB"], 0)
        found = self.ec2.describe_instance_types(Filters=[{"Name": "instance-type", "Values": ["t3.*"]}])
        self.assertTrue(all(each["InstanceType"].startswith("t3.") for each in found["InstanceTypes"]))

    def test_3_key_pairs(self):
        made = self.ec2.create_key_pair(
            KeyName=f"{self.name}-ed", KeyType="ed25519", TagSpecifications=self.tags("key-pair")
        )
        self.assertTrue(
            made["KeyMaterial"].startswith("-----BEGIN OPENSSH PRIVATE KEY-----"), made["KeyMaterial"][:40]
        )
        rsa = self.ec2.create_key_pair(KeyName=f"{self.name}-rsa", TagSpecifications=self.tags("key-pair"))
        self.assertTrue(rsa["KeyMaterial"].startswith("-----BEGIN RSA PRIVATE KEY-----"), rsa["KeyMaterial"][:40])
        # 20 bytes of SHA-1, as EC2 shows those that it has made.
        self.assertRegex(rsa["KeyFingerprint"], "^([0-9a-f]{2}:){19}[0-9a-f]{2}$")
        pairs = self.ec2.describe_key_pairs(Filters=self.mine(), IncludePublicKey=True)["KeyPairs"]
        self.assertEqual({pair["KeyType"] for pair in pairs}, {"ed25519", "rsa"})
        public = next(pair["PublicKey"] for pair in pairs if pair["KeyType"] == "rsa")
        self.ec2.import_key_pair(
            KeyName=f"{self.name}-imported",
            PublicKeyMaterial=public.encode(),
            TagSpecifications=self.tags("key-pair"),
        )
        [imported] = self.ec2.describe_key_pairs(KeyNames=[f"{self.name}-imported"])["KeyPairs"]
        # 16 bytes of MD5, as EC2 shows those that it was given.
        self.assertRegex(imported["KeyFingerprint"], "^([0-9a-f]{2}:){15}[0-9a-f]{2}$")
        for key in (f"{self.name}-rsa", f"{self.name}-imported"):
            self.ec2.delete_key_pair(KeyName=key)
        # Whoever deletes what is not there is told that it is not.
        self.ec2.delete_key_pair(KeyName=f"{self.name}-rsa")
        left = self.ec2.describe_key_pairs(Filters=self.mine())["KeyPairs"]
        self.assertEqual([pair["KeyName"] for pair in left], [f"{self.name}-ed"])

    def test_4_security_groups(self):
        ec2 = self.ec2
        [vpc] = ec2.describe_vpcs(Filters=[{"Name": "is-default", "Values": ["true"]}])["Vpcs"]
        group = ec2.create_security_group(
            GroupName=self.name,
            Description="for tests",
            VpcId=vpc["VpcId"],
            TagSpecifications=self.tags("security-group"),
        )["GroupId"]
        rules = ec2.authorize_security_group_ingress(
            GroupId=group,
            IpPermissions=[
                {
                    "IpProtocol": "tcp",
                    "FromPort": 22,
                    "ToPort": 22,
                    "IpRanges": [{"CidrIp": "10.0.0.0/8", "Description": "inside"}],
                },
                {"IpProtocol": "udp", "FromPort": 53, "ToPort": 53, "UserIdGroupPairs": [{"GroupId": group}]},
                {"IpProtocol": "icmp", "FromPort": -1, "ToPort": -1, "IpRanges": [{"CidrIp": "0.0.0.0/0"}]},
                {"IpProtocol": "tcp", "FromPort": 443, "ToPort": 443, "Ipv6Ranges": [{"CidrIpv6": "::/0"}]},
            ],
            TagSpecifications=self.tags("security-group-rule"),
        )["SecurityGroupRules"]
        self.assertEqual(len(rules), 4)
        # As the command line's --protocol, --port and --cidr have it.
        ec2.authorize_security_group_ingress(
            GroupId=group, IpProtocol="tcp", FromPort=80, ToPort=81, CidrIp="0.0.0.0/0"
        )
        ec2.authorize_security_group_egress(
            GroupId=group,
            IpPermissions=[
                {"IpProtocol": "tcp", "FromPort": 25, "ToPort": 25, "IpRanges": [{"CidrIp": "10.1.0.0/16"}]}
            ],
        )
        [shown] = ec2.describe_security_groups(GroupIds=[group])["SecurityGroups"]
        self.assertEqual(len(shown["IpPermissions"]), 5)
        self.assertEqual(len(shown["IpPermissionsEgress"]), 2)
        listed = ec2.describe_security_group_rules(Filters=[{"Name": "group-id", "Values": [group]}])[
            "SecurityGroupRules"
        ]
        self.assertEqual(len(listed), 7)
        [ssh] = [rule for rule in listed if rule["FromPort"] == 22]
        self.assertTrue(
            ec2.revoke_security_group_ingress(GroupId=group, SecurityGroupRuleIds=[ssh["SecurityGroupRuleId"]])[
                "Return"
            ]
        )
        ec2.revoke_security_group_ingress(
            GroupId=group, IpProtocol="tcp", FromPort=80, ToPort=81, CidrIp="0.0.0.0/0"
        )
        # In a default VPC it is no error that there is no such rule.
        unknown = ec2.revoke_security_group_ingress(
            GroupId=group, IpProtocol="tcp", FromPort=9, ToPort=9, CidrIp="0.0.0.0/0"
        )["UnknownIpPermissions"]
        self.assertEqual([each["FromPort"] for each in unknown], [9])
        # What Terraform does first of all.
        ec2.revoke_security_group_egress(
            GroupId=group, IpPermissions=[{"IpProtocol": "-1", "IpRanges": [{"CidrIp": "0.0.0.0/0"}]}]
        )
        [shown] = ec2.describe_security_groups(Filters=self.mine())["SecurityGroups"]
        self.assertEqual((len(shown["IpPermissions"]), len(shown["IpPermissionsEgress"])), (3, 1))
        other = ec2.create_security_group(GroupName=f"{self.name}-2", Description="for tests", VpcId=vpc["VpcId"])[
            "GroupId"
        ]
        ec2.delete_security_group(GroupId=other)
        waited = ec2.describe_security_groups(Filters=[{"Name": "group-name", "Values": [f"{self.name}*"]}])[
            "SecurityGroups"
        ]
        self.assertEqual([each["GroupId"] for each in waited], [group])

    def test_5_images(self):
        ec2 = self.ec2
        image = ec2.register_image(
            Name=self.name,
            Description="for tests",
            Architecture="x86_64",
            ImageLocation=LOCATION,
            TagSpecifications=self.tags("image"),
        )["ImageId"]
        ec2.get_waiter("image_available").wait(ImageIds=[image], WaiterConfig=QUICK)
        [shown] = ec2.describe_images(ImageIds=[image])["Images"]
        self.assertEqual((shown["Name"], shown["State"], shown["Public"]), (self.name, "available", False))
        self.assertRegex(shown["CreationDate"], r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$")
        [mine] = ec2.describe_images(Owners=["self"], Filters=self.mine())["Images"]
        self.assertEqual(mine["ImageId"], image)
        self.assertIn(IMAGE, [each["ImageId"] for each in ec2.describe_images()["Images"]])
        ec2.deregister_image(ImageId=image)
        with self.assertRaisesRegex(ClientError, "InvalidAMIID.NotFound"):
            ec2.deregister_image(ImageId=image)

    def test_6_instances_and_volumes(self):
        ec2 = self.ec2
        [zone] = ec2.describe_availability_zones()["AvailabilityZones"][:1]
        [group] = ec2.describe_security_groups(Filters=self.mine())["SecurityGroups"]
        user_data = "#!/bin/sh\necho hello\n"
        reservation = ec2.run_instances(
            ImageId=IMAGE,
            InstanceType=INSTANCE_TYPE,
            MinCount=1,
            MaxCount=2,
            KeyName=f"{self.name}-ed",
            UserData=user_data,
            SecurityGroupIds=[group["GroupId"]],
            Placement={"AvailabilityZone": zone["ZoneName"]},
            TagSpecifications=[*self.tags("instance", Name="web"), *self.tags("volume")],
        )
        ids = [each["InstanceId"] for each in reservation["Instances"]]
        self.assertEqual([each["AmiLaunchIndex"] for each in reservation["Instances"]], [0, 1])
        self.assertEqual({each["State"]["Name"] for each in reservation["Instances"]}, {"pending"})
        ec2.get_waiter("instance_running").wait(InstanceIds=ids, WaiterConfig=QUICK)
        first, second = ids

        more = ec2.run_instances(
            ImageId=IMAGE,
            InstanceType=INSTANCE_TYPE,
            MinCount=4,
            MaxCount=4,
            TagSpecifications=self.tags("instance"),
        )
        pages = list(
            ec2.get_paginator("describe_instances").paginate(Filters=self.mine(), PaginationConfig={"PageSize": 5})
        )
        seen = [each["InstanceId"] for page in pages for part in page["Reservations"] for each in part["Instances"]]
        self.assertEqual((len(pages), len(seen), len(set(seen))), (2, 6, 6))
        others = [each["InstanceId"] for each in more["Instances"]]
        ec2.terminate_instances(InstanceIds=others)

        found = ec2.describe_instances(
            Filters=[
                *self.mine(),
                {"Name": "tag:Name", "Values": ["we?"]},
                {"Name": "instance-state-name", "Values": ["running", "stopped"]},
                {"Name": "image-id", "Values": [IMAGE]},
                {"Name": "instance-type", "Values": ["t2.*"]},
                {"Name": "instance.group-id", "Values": [group["GroupId"]]},
                {"Name": "key-name", "Values": [f"{self.name}-ed"]},
            ]
        )["Reservations"]
        self.assertEqual(sorted(each["InstanceId"] for part in found for each in part["Instances"]), sorted(ids))
        statuses = ec2.describe_instance_status(InstanceIds=ids)["InstanceStatuses"]
        self.assertEqual({status["InstanceState"]["Name"] for status in statuses}, {"running"})
        for attribute in [
            "instanceType",
            "userData",
            "disableApiTermination",
            "disableApiStop",
            "instanceInitiatedShutdownBehavior",
            "rootDeviceName",
            "blockDeviceMapping",
            "sourceDestCheck",
            "groupSet",
            "ebsOptimized",
        ]:
            answer = ec2.describe_instance_attribute(InstanceId=first, Attribute=attribute)
            if attribute == "userData":
                self.assertEqual(base64.b64decode(answer["UserData"]["Value"]).decode(), user_data)
        # The VMM runs before the guest has said anything.
        for _ in range(50):
            output = ec2.get_console_output(InstanceId=first, Latest=True).get("Output", "")
            if "ready" in output:
                break
            time.sleep(0.1)
        self.assertIn("ready", output)

        volume = ec2.create_volume(
            AvailabilityZone=zone["ZoneName"], Size=1, VolumeType="gp3", TagSpecifications=self.tags("volume")
        )["VolumeId"]
        ec2.get_waiter("volume_available").wait(VolumeIds=[volume], WaiterConfig=QUICK)
        ec2.attach_volume(VolumeId=volume, InstanceId=first, Device="/dev/sdf")
        ec2.get_waiter("volume_in_use").wait(VolumeIds=[volume], WaiterConfig=QUICK)
        attached = ec2.describe_volumes(Filters=[{"Name": "attachment.instance-id", "Values": [first]}])["Volumes"]
        self.assertIn(volume, [each["VolumeId"] for each in attached])
        # With the root volumes of the instances, there are enough for two pages.
        for _ in range(4):
            ec2.create_volume(AvailabilityZone=zone["ZoneName"], Size=1, TagSpecifications=self.tags("volume"))
        pages = list(
            ec2.get_paginator("describe_volumes").paginate(Filters=self.mine(), PaginationConfig={"PageSize": 5})
        )
        self.assertGreater(len(pages), 1)
        # The guest does not let go by itself.
        ec2.detach_volume(VolumeId=volume, Force=True)
        ec2.get_waiter("volume_available").wait(VolumeIds=[volume], WaiterConfig=QUICK)
        for each in ec2.describe_volumes(Filters=[*self.mine(), {"Name": "status", "Values": ["available"]}])[
            "Volumes"
        ]:
            ec2.delete_volume(VolumeId=each["VolumeId"])
        ec2.get_waiter("volume_deleted").wait(VolumeIds=[volume], WaiterConfig=QUICK)

        ec2.create_tags(Resources=ids, Tags=[{"Key": "Colour", "Value": "red"}, {"Key": "Empty", "Value": ""}])
        tags = ec2.describe_tags(Filters=[{"Name": "resource-id", "Values": [first]}])["Tags"]
        self.assertEqual(
            {tag["Key"]: tag["Value"] for tag in tags},
            {"Suite": self.name, "Name": "web", "Colour": "red", "Empty": ""},
        )
        ec2.delete_tags(Resources=ids, Tags=[{"Key": "Colour"}, {"Key": "Empty", "Value": "not this"}])
        tags = ec2.describe_tags(Filters=[{"Name": "resource-id", "Values": [first]}])["Tags"]
        self.assertEqual({tag["Key"] for tag in tags}, {"Suite", "Name", "Empty"})

        ec2.reboot_instances(InstanceIds=ids)
        changes = ec2.stop_instances(InstanceIds=[first], Force=True)["StoppingInstances"]
        self.assertEqual(
            (changes[0]["PreviousState"]["Name"], changes[0]["CurrentState"]["Name"]), ("running", "stopping")
        )
        ec2.get_waiter("instance_stopped").wait(InstanceIds=[first], WaiterConfig=QUICK)
        [stopped] = ec2.describe_instances(InstanceIds=[first])["Reservations"][0]["Instances"]
        self.assertEqual(stopped["StateReason"]["Code"], "Client.UserInitiatedShutdown")
        self.assertTrue(
            stopped["StateTransitionReason"].startswith("User initiated ("), stopped["StateTransitionReason"]
        )
        statuses = ec2.describe_instance_status(InstanceIds=ids, IncludeAllInstances=True)["InstanceStatuses"]
        self.assertEqual(len(statuses), 2)
        changes = ec2.start_instances(InstanceIds=[first])["StartingInstances"]
        self.assertEqual(
            (changes[0]["PreviousState"]["Name"], changes[0]["CurrentState"]["Name"]), ("stopped", "pending")
        )
        ec2.get_waiter("instance_running").wait(InstanceIds=[first], WaiterConfig=QUICK)
        changes = ec2.terminate_instances(InstanceIds=ids)["TerminatingInstances"]
        self.assertEqual({change["CurrentState"]["Name"] for change in changes}, {"shutting-down"})
        ec2.get_waiter("instance_terminated").wait(InstanceIds=ids + others, WaiterConfig=QUICK)
        self.assertEqual(ec2.describe_volumes(Filters=self.mine())["Volumes"], [])
        ec2.delete_security_group(GroupId=group["GroupId"])
        ec2.delete_key_pair(KeyName=f"{self.name}-ed")

    def test_7_everything_was_walked(self):
        print(self.recorder.report())
        self.assertEqual(self.recorder.errors, [], "what the model does not know")
        self.assertEqual(len(EXPECTED), 39)
        missing = {
            action: [path for path in paths if path not in self.recorder.leaves.get(action, {})]
            for action, paths in EXPECTED.items()
        }
        self.assertEqual({action: paths for action, paths in missing.items() if paths}, {}, "what no answer had")


if __name__ == "__main__":
    unittest.main(failfast=False)
