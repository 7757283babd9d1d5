"""Bad requests: what is wrong with what one asks for.

`{name}` stands for one of the resources that the suite `bad_requests` makes.
"""

import base64

from clients.daemon import INSTANCE_TYPE, LOCATION, REGION

# An id that is well formed, and nobody's.
NOBODY = "0123456789abcdef0"

RUN = {"ImageId": "{image}", "InstanceType": INSTANCE_TYPE, "MinCount": "1", "MaxCount": "1"}


def run(**changes) -> dict[str, str]:
    """The parameters of a launch, with some that are changed; None takes one away. `__` stands for a dot."""
    merged = {**RUN, **{name.replace("__", "."): value for name, value in changes.items()}}
    return {name: value for name, value in merged.items() if value is not None}


def permission(**values) -> dict[str, str]:
    return {
        "GroupId": "{group}",
        **{f"IpPermissions.1.{name.replace('__', '.')}": value for name, value in values.items()},
    }


CIDR = {"IpRanges__1__CidrIp": "10.0.0.0/8"}
MANY_TAGS = {f"Tag.{number}.{part}": f"{part}-{number}" for number in range(1, 60) for part in ("Key", "Value")}

# The action, its parameters, the code; the status is 400 where it is not said.
ASKED = [
    # Launching.
    ("RunInstances", run(ImageId=None), "MissingParameter"),
    ("RunInstances", run(MinCount=None), "MissingParameter"),
    ("RunInstances", run(MaxCount=None), "MissingParameter"),
    ("RunInstances", run(MinCount="0"), "InvalidParameterValue"),
    ("RunInstances", run(MinCount="-1"), "InvalidParameterValue"),
    ("RunInstances", run(MinCount="2"), "InvalidParameterValue"),
    ("RunInstances", run(MinCount="one"), "InvalidParameterValue"),
    ("RunInstances", run(MinCount="1.5"), "InvalidParameterValue"),
    ("RunInstances", run(MinCount=""), "InvalidParameterValue"),
    ("RunInstances", run(MaxCount="99999999999999999999"), "InvalidParameterValue"),
    ("RunInstances", run(ImageId="ubuntu"), "InvalidAMIID.Malformed"),
    ("RunInstances", run(ImageId="ami-" + "g" * 17), "InvalidAMIID.Malformed"),
    ("RunInstances", run(ImageId=f"ami-{NOBODY}"), "InvalidAMIID.NotFound"),
    ("RunInstances", run(InstanceType="t9.huge"), "InvalidParameterValue"),
    (
        "RunInstances",
        run(InstanceType="{largest}", MinCount="100", MaxCount="100"),
        "InsufficientInstanceCapacity",
        500,
    ),
    ("RunInstances", run(KeyName="nobody's"), "InvalidKeyPair.NotFound"),
    ("RunInstances", run(SecurityGroupId__1=f"sg-{NOBODY}"), "InvalidGroup.NotFound"),
    ("RunInstances", run(SecurityGroupId__1="default"), "InvalidGroupId.Malformed"),
    ("RunInstances", run(SecurityGroup__1="nobody's"), "InvalidGroup.NotFound"),
    ("RunInstances", run(SubnetId=f"subnet-{NOBODY}"), "InvalidSubnetID.NotFound"),
    ("RunInstances", run(SubnetId="{subnet}", PrivateIpAddress="8.8.8.8"), "InvalidParameterValue"),
    ("RunInstances", run(SubnetId="{subnet}", PrivateIpAddress="{address}"), "InvalidIPAddress.InUse"),
    ("RunInstances", run(SubnetId="{subnet}", PrivateIpAddress="here"), "InvalidParameterValue"),
    ("RunInstances", run(Placement__AvailabilityZone="us-east-9z"), "InvalidParameterValue"),
    ("RunInstances", run(UserData="not base64!"), "InvalidParameterValue"),
    ("RunInstances", run(UserData=base64.b64encode(b"x" * 16385).decode()), "InvalidParameterValue"),
    ("RunInstances", run(InstanceInitiatedShutdownBehavior="explode"), "InvalidParameterValue"),
    ("RunInstances", run(MetadataOptions__HttpTokens="perhaps"), "InvalidParameterValue"),
    ("RunInstances", run(MetadataOptions__HttpPutResponseHopLimit="65"), "InvalidParameterValue"),
    ("RunInstances", run(DisableApiTermination="perhaps"), "InvalidParameterValue"),
    ("RunInstances", run(BlockDeviceMapping__1__Ebs__VolumeSize="1"), "MissingParameter"),
    (
        "RunInstances",
        run(BlockDeviceMapping__1__DeviceName="/dev/sdf", BlockDeviceMapping__1__Ebs__VolumeSize="0"),
        "InvalidParameterValue",
    ),
    (
        "RunInstances",
        run(
            BlockDeviceMapping__1__DeviceName="/dev/sdf",
            BlockDeviceMapping__1__Ebs__VolumeType="gp9",
            BlockDeviceMapping__1__Ebs__VolumeSize="1",
        ),
        "UnknownVolumeType",
    ),
    (
        "RunInstances",
        run(BlockDeviceMapping__1__DeviceName="/dev/sdf", BlockDeviceMapping__1__Ebs__SnapshotId=f"snap-{NOBODY}"),
        "InvalidSnapshot.NotFound",
    ),
    (
        "RunInstances",
        run(TagSpecification__1__ResourceType="dream", TagSpecification__1__Tag__1__Key="a"),
        "InvalidParameterValue",
    ),
    (
        "RunInstances",
        run(TagSpecification__1__ResourceType="instance", TagSpecification__1__Tag__1__Key="aws:a"),
        "InvalidParameterValue",
    ),
    ("RunInstances", run(IamInstanceProfile__Name="nobody's"), "InvalidParameterValue"),
    (
        "RunInstances",
        run(IamInstanceProfile__Arn="arn:aws:iam::000000000000:instance-profile/nobodys"),
        "InvalidParameterValue",
    ),
    ("RunInstances", run(ClientToken="x" * 65), "InvalidParameterValue"),
    ("RunInstances", run(ClientToken="{token}", MaxCount="2"), "IdempotentParameterMismatch"),
    ("RunInstances", run(DryRun="true"), "DryRunOperation", 412),
    ("RunInstances", run(DryRun="true", ImageId=f"ami-{NOBODY}"), "InvalidAMIID.NotFound"),
    # Looking at instances.
    ("DescribeInstances", {"InstanceId.1": "web"}, "InvalidInstanceID.Malformed"),
    ("DescribeInstances", {"InstanceId.1": f"I-{NOBODY}"}, "InvalidInstanceID.Malformed"),
    ("DescribeInstances", {"InstanceId.1": f"i-{NOBODY}"}, "InvalidInstanceID.NotFound"),
    (
        "DescribeInstances",
        {"InstanceId.1": "{running}", "InstanceId.2": f"i-{NOBODY}"},
        "InvalidInstanceID.NotFound",
    ),
    ("DescribeInstances", {"Filter.1.Name": "colour", "Filter.1.Value.1": "red"}, "InvalidParameterValue"),
    (
        "DescribeInstances",
        {"Filter.1.Name": "Instance-Id", "Filter.1.Value.1": "{running}"},
        "InvalidParameterValue",
    ),
    ("DescribeInstances", {"Filter.1.Name": "instance-id"}, "InvalidParameterValue"),
    ("DescribeInstances", {"Filter.1.Value.1": "{running}"}, "MissingParameter"),
    ("DescribeInstances", {"MaxResults": "4"}, "InvalidParameterValue"),
    ("DescribeInstances", {"MaxResults": "1001"}, "InvalidParameterValue"),
    ("DescribeInstances", {"MaxResults": "many"}, "InvalidParameterValue"),
    ("DescribeInstances", {"MaxResults": "5", "InstanceId.1": "{running}"}, "InvalidParameterCombination"),
    ("DescribeInstances", {"NextToken": "rubbish!", "MaxResults": "5"}, "InvalidNextToken"),
    ("DescribeInstances", {"DryRun": "true"}, "DryRunOperation", 412),
    ("DescribeInstanceStatus", {"InstanceId.1": f"i-{NOBODY}"}, "InvalidInstanceID.NotFound"),
    ("DescribeInstanceAttribute", {"InstanceId": "{running}"}, "MissingParameter"),
    ("DescribeInstanceAttribute", {"InstanceId": "{running}", "Attribute": "colour"}, "InvalidParameterValue"),
    ("DescribeInstanceAttribute", {"Attribute": "userData"}, "MissingParameter"),
    ("DescribeInstanceTypes", {"InstanceType.1": "t9.huge"}, "InvalidInstanceType"),
    ("GetConsoleOutput", {}, "MissingParameter"),
    ("GetConsoleOutput", {"InstanceId": "web"}, "InvalidInstanceID.Malformed"),
    ("GetConsoleOutput", {"InstanceId": f"i-{NOBODY}"}, "InvalidInstanceID.NotFound"),
    # What does not go with an instance's state.
    ("StartInstances", {}, "MissingParameter"),
    ("StartInstances", {"InstanceId.1": f"i-{NOBODY}"}, "InvalidInstanceID.NotFound"),
    ("StartInstances", {"InstanceId.1": "{terminated}"}, "IncorrectInstanceState"),
    ("StopInstances", {"InstanceId.1": "web"}, "InvalidInstanceID.Malformed"),
    ("StopInstances", {"InstanceId.1": "{terminated}"}, "IncorrectInstanceState"),
    ("StopInstances", {"InstanceId.1": "{protected}"}, "OperationNotPermitted"),
    ("StopInstances", {"InstanceId.1": "{running}", "InstanceId.2": f"i-{NOBODY}"}, "InvalidInstanceID.NotFound"),
    ("StopInstances", {"InstanceId.1": "{running}", "DryRun": "true"}, "DryRunOperation", 412),
    ("RebootInstances", {"InstanceId.1": "{stopped}"}, "IncorrectInstanceState"),
    ("RebootInstances", {"InstanceId.1": f"i-{NOBODY}"}, "InvalidInstanceID.NotFound"),
    ("TerminateInstances", {}, "MissingParameter"),
    ("TerminateInstances", {"InstanceId.1": f"i-{NOBODY}"}, "InvalidInstanceID.NotFound"),
    ("TerminateInstances", {"InstanceId.1": "{protected}"}, "OperationNotPermitted"),
    ("TerminateInstances", {"InstanceId.1": "{running}", "InstanceId.2": "{protected}"}, "OperationNotPermitted"),
    (
        "ModifyInstanceAttribute",
        {"InstanceId": "{running}", "InstanceType.Value": "t3.small"},
        "IncorrectInstanceState",
    ),
    (
        "ModifyInstanceAttribute",
        {"InstanceId": "{running}", "UserData.Value": "aGVsbG8="},
        "IncorrectInstanceState",
    ),
    (
        "ModifyInstanceAttribute",
        {"InstanceId": "{stopped}", "InstanceType.Value": "t9.huge"},
        "InvalidParameterValue",
    ),
    ("ModifyInstanceAttribute", {"InstanceId": "{stopped}"}, "InvalidParameterCombination"),
    # Instance profiles.
    (
        "AssociateIamInstanceProfile",
        {"InstanceId": "{running}", "IamInstanceProfile.Name": "nobody's"},
        "InvalidParameterValue",
    ),
    ("AssociateIamInstanceProfile", {"InstanceId": "{running}"}, "MissingParameter"),
    (
        "DisassociateIamInstanceProfile",
        {"AssociationId": f"iip-assoc-{NOBODY}"},
        "InvalidAssociationID.NotFound",
    ),
    (
        "DescribeIamInstanceProfileAssociations",
        {"AssociationId.1": f"iip-assoc-{NOBODY}"},
        "InvalidAssociationID.NotFound",
    ),
    # Volumes.
    ("CreateVolume", {"Size": "1"}, "MissingParameter"),
    ("CreateVolume", {"AvailabilityZone": "{zone}"}, "MissingParameter"),
    ("CreateVolume", {"AvailabilityZone": "us-east-9z", "Size": "1"}, "InvalidZone.NotFound"),
    ("CreateVolume", {"AvailabilityZone": "{zone}", "Size": "0"}, "InvalidParameterValue"),
    ("CreateVolume", {"AvailabilityZone": "{zone}", "Size": "99999999"}, "InvalidParameterValue"),
    ("CreateVolume", {"AvailabilityZone": "{zone}", "Size": "1", "VolumeType": "gp9"}, "UnknownVolumeType"),
    (
        "CreateVolume",
        {"AvailabilityZone": "{zone}", "Size": "8", "VolumeType": "gp2", "Iops": "3000"},
        "InvalidParameterCombination",
    ),
    (
        "CreateVolume",
        {"AvailabilityZone": "{zone}", "Size": "8", "VolumeType": "gp3", "Iops": "1"},
        "InvalidParameterValue",
    ),
    ("CreateVolume", {"AvailabilityZone": "{zone}", "Size": "8", "VolumeType": "io1"}, "MissingParameter"),
    ("CreateVolume", {"AvailabilityZone": "{zone}", "SnapshotId": f"snap-{NOBODY}"}, "InvalidSnapshot.NotFound"),
    ("DescribeVolumes", {"VolumeId.1": f"vol-{NOBODY}"}, "InvalidVolume.NotFound"),
    ("DescribeVolumes", {"VolumeId.1": "disk"}, "InvalidVolumeID.Malformed"),
    ("DescribeVolumes", {"MaxResults": "5", "VolumeId.1": "{volume}"}, "InvalidParameterCombination"),
    ("DeleteVolume", {}, "MissingParameter"),
    ("DeleteVolume", {"VolumeId": f"vol-{NOBODY}"}, "InvalidVolume.NotFound"),
    ("DeleteVolume", {"VolumeId": "{attached}"}, "VolumeInUse"),
    ("DeleteVolume", {"VolumeId": "{volume}", "DryRun": "true"}, "DryRunOperation", 412),
    ("AttachVolume", {"VolumeId": "{attached}", "InstanceId": "{stopped}", "Device": "/dev/sdg"}, "VolumeInUse"),
    (
        "AttachVolume",
        {"VolumeId": "{volume}", "InstanceId": f"i-{NOBODY}", "Device": "/dev/sdg"},
        "InvalidInstanceID.NotFound",
    ),
    (
        "AttachVolume",
        {"VolumeId": f"vol-{NOBODY}", "InstanceId": "{running}", "Device": "/dev/sdg"},
        "InvalidVolume.NotFound",
    ),
    (
        "AttachVolume",
        {"VolumeId": "{volume}", "InstanceId": "{running}", "Device": "/dev/sdf"},
        "InvalidParameterValue",
    ),
    ("AttachVolume", {"VolumeId": "{volume}", "InstanceId": "{running}"}, "MissingParameter"),
    (
        "AttachVolume",
        {"VolumeId": "{volume}", "InstanceId": "{terminated}", "Device": "/dev/sdg"},
        "IncorrectState",
    ),
    (
        "AttachVolume",
        {"VolumeId": "{far}", "InstanceId": "{running}", "Device": "/dev/sdg"},
        "InvalidVolume.ZoneMismatch",
    ),
    ("DetachVolume", {"VolumeId": "{volume}"}, "IncorrectState"),
    ("DetachVolume", {"VolumeId": "{attached}", "InstanceId": "{stopped}"}, "InvalidAttachment.NotFound"),
    ("DetachVolume", {"VolumeId": f"vol-{NOBODY}"}, "InvalidVolume.NotFound"),
    ("ModifyVolume", {"Size": "2"}, "MissingParameter"),
    ("ModifyVolume", {"VolumeId": f"vol-{NOBODY}", "Size": "2"}, "InvalidVolume.NotFound"),
    ("ModifyVolume", {"VolumeId": "disk", "Size": "2"}, "InvalidVolumeID.Malformed"),
    ("ModifyVolume", {"VolumeId": "{volume}", "Size": "0"}, "InvalidParameterValue"),
    ("ModifyVolume", {"VolumeId": "{volume}", "Size": "-2"}, "InvalidParameterValue"),
    ("ModifyVolume", {"VolumeId": "{volume}", "Size": "99999999"}, "InvalidParameterValue"),
    ("ModifyVolume", {"VolumeId": "{volume}", "VolumeType": "gp9"}, "UnknownVolumeType"),
    ("ModifyVolume", {"VolumeId": "{volume}", "Throughput": "200"}, "InvalidParameterCombination"),
    ("ModifyVolume", {"VolumeId": "{volume}", "MultiAttachEnabled": "true"}, "UnsupportedOperation"),
    ("ModifyVolume", {"VolumeId": "{volume}", "Size": "2", "DryRun": "true"}, "DryRunOperation", 412),
    (
        "DescribeVolumesModifications",
        {"VolumeId.1": "{volume}"},
        "InvalidVolumeModification.NotFound",
    ),
    ("DescribeVolumeStatus", {"VolumeId.1": f"vol-{NOBODY}"}, "InvalidVolume.NotFound"),
    ("DescribeVolumeStatus", {"MaxResults": "1"}, "InvalidParameterValue"),
    ("DescribeVolumeAttribute", {"VolumeId": "{volume}", "Attribute": "colour"}, "InvalidParameterValue"),
    ("ModifyVolumeAttribute", {"VolumeId": "{volume}"}, "InvalidParameterCombination"),
    ("EnableVolumeIO", {"VolumeId": f"vol-{NOBODY}"}, "InvalidVolume.NotFound"),
    ("EnableEbsEncryptionByDefault", {}, "UnsupportedOperation"),
    # Snapshots.
    ("CreateSnapshot", {}, "MissingParameter"),
    ("CreateSnapshot", {"VolumeId": f"vol-{NOBODY}"}, "InvalidVolume.NotFound"),
    ("CreateSnapshot", {"VolumeId": "{volume}", "OutpostArn": "arn:x"}, "UnsupportedOperation"),
    ("CreateSnapshot", {"VolumeId": "{volume}", "Description": "x" * 256}, "InvalidParameterValue"),
    ("CreateSnapshot", {"VolumeId": "{volume}", "DryRun": "true"}, "DryRunOperation", 412),
    ("CreateSnapshots", {"InstanceSpecification.InstanceId": f"i-{NOBODY}"}, "InvalidInstanceID.NotFound"),
    ("CreateSnapshots", {"InstanceSpecification.InstanceId": "{terminated}"}, "InvalidParameterValue"),
    (
        "CreateSnapshots",
        {
            "InstanceSpecification.InstanceId": "{running}",
            "InstanceSpecification.ExcludeDataVolumeId.1": "{volume}",
        },
        "InvalidParameterValue",
    ),
    (
        "CopySnapshot",
        {"SourceRegion": REGION, "SourceSnapshotId": f"snap-{NOBODY}"},
        "InvalidSnapshot.NotFound",
    ),
    (
        "CopySnapshot",
        {"SourceRegion": "mars-east-1", "SourceSnapshotId": f"snap-{NOBODY}"},
        "InvalidParameterValue",
    ),
    ("DescribeSnapshots", {"SnapshotId.1": "disk"}, "InvalidSnapshotID.Malformed"),
    ("DescribeSnapshots", {"Owner.1": "nobody"}, "InvalidUserID.Malformed"),
    ("DescribeSnapshots", {"MaxResults": "2"}, "InvalidParameterValue"),
    ("DeleteSnapshot", {"SnapshotId": f"snap-{NOBODY}"}, "InvalidSnapshot.NotFound"),
    ("DeleteSnapshot", {}, "MissingParameter"),
    (
        "ModifySnapshotAttribute",
        {"SnapshotId": f"snap-{NOBODY}", "OperationType": "add", "UserGroup.1": "all"},
        "InvalidSnapshot.NotFound",
    ),
    (
        "ResetSnapshotAttribute",
        {"SnapshotId": f"snap-{NOBODY}", "Attribute": "createVolumePermission"},
        "InvalidSnapshot.NotFound",
    ),
    # Images.
    ("RegisterImage", {"ImageLocation": LOCATION}, "MissingParameter"),
    ("RegisterImage", {"Name": "bad-image"}, "MissingParameter"),
    ("RegisterImage", {"Name": "x", "ImageLocation": LOCATION}, "InvalidAMIName.Malformed"),
    ("RegisterImage", {"Name": "{image_name}", "ImageLocation": LOCATION}, "InvalidAMIName.Duplicate"),
    ("CreateImage", {"InstanceId": "{stopped}"}, "MissingParameter"),
    ("CreateImage", {"InstanceId": "{stopped}", "Name": "x"}, "InvalidAMIName.Malformed"),
    ("CreateImage", {"InstanceId": "{stopped}", "Name": "{image_name}"}, "InvalidAMIName.Duplicate"),
    ("CreateImage", {"InstanceId": f"i-{NOBODY}", "Name": "bad-image"}, "InvalidInstanceID.NotFound"),
    ("CreateImage", {"InstanceId": "{terminated}", "Name": "bad-image"}, "InvalidParameterValue"),
    (
        "CreateImage",
        {
            "InstanceId": "{stopped}",
            "Name": "bad-image",
            "BlockDeviceMapping.1.DeviceName": "/dev/sdg",
            "BlockDeviceMapping.1.Ebs.SnapshotId": f"snap-{NOBODY}",
        },
        "InvalidSnapshot.NotFound",
    ),
    ("CreateImage", {"InstanceId": "{stopped}", "Name": "bad-image", "DryRun": "true"}, "DryRunOperation", 412),
    (
        "CopyImage",
        {"SourceImageId": f"ami-{NOBODY}", "SourceRegion": REGION, "Name": "bad-image"},
        "InvalidAMIID.NotFound",
    ),
    (
        "CopyImage",
        {"SourceImageId": "{image}", "SourceRegion": "mars-east-1", "Name": "bad-image"},
        "InvalidParameterValue",
    ),
    ("ResetImageAttribute", {"ImageId": "{image}", "Attribute": "description"}, "InvalidParameterValue"),
    ("RegisterImage", {"Name": "bad-image", "ImageLocation": "/nowhere/at/all"}, "InvalidManifest"),
    ("RegisterImage", {"Name": "bad-image", "ImageLocation": "/etc"}, "InvalidManifest"),
    (
        "RegisterImage",
        {"Name": "bad-image", "ImageLocation": LOCATION + "/../../../../etc"},
        "InvalidManifest",
    ),
    (
        "RegisterImage",
        {"Name": "bad-image", "ImageLocation": LOCATION, "Architecture": "z80"},
        "InvalidParameterValue",
    ),
    ("DescribeImages", {"ImageId.1": f"ami-{NOBODY}"}, "InvalidAMIID.NotFound"),
    ("DescribeImages", {"ImageId.1": "ubuntu"}, "InvalidAMIID.Malformed"),
    ("DescribeImages", {"Filter.1.Name": "colour", "Filter.1.Value.1": "red"}, "InvalidParameterValue"),
    ("DeregisterImage", {"ImageId": f"ami-{NOBODY}"}, "InvalidAMIID.NotFound"),
    ("DeregisterImage", {}, "MissingParameter"),
    # Key pairs.
    ("CreateKeyPair", {}, "MissingParameter"),
    ("CreateKeyPair", {"KeyName": "{key}"}, "InvalidKeyPair.Duplicate"),
    ("CreateKeyPair", {"KeyName": "x" * 256}, "InvalidParameterValue"),
    ("CreateKeyPair", {"KeyName": "bad-key", "KeyType": "dsa"}, "InvalidParameterValue"),
    ("ImportKeyPair", {"KeyName": "bad-key"}, "MissingParameter"),
    ("ImportKeyPair", {"KeyName": "bad-key", "PublicKeyMaterial": "!"}, "InvalidKey.Format"),
    (
        "ImportKeyPair",
        {"KeyName": "bad-key", "PublicKeyMaterial": base64.b64encode(b"ssh-rsa AAAA nobody").decode()},
        "InvalidKey.Format",
    ),
    ("DescribeKeyPairs", {"KeyName.1": "nobody's"}, "InvalidKeyPair.NotFound"),
    ("DeleteKeyPair", {}, "MissingParameter"),
    # Security groups.
    ("CreateSecurityGroup", {"GroupName": "bad-group"}, "MissingParameter"),
    ("CreateSecurityGroup", {"GroupName": "{group_name}", "GroupDescription": "again"}, "InvalidGroup.Duplicate"),
    ("CreateSecurityGroup", {"GroupName": "default", "GroupDescription": "mine"}, "InvalidGroup.Reserved"),
    ("CreateSecurityGroup", {"GroupName": "sg-mine", "GroupDescription": "mine"}, "InvalidParameterValue"),
    (
        "CreateSecurityGroup",
        {"GroupName": "bad-group", "GroupDescription": "x", "VpcId": f"vpc-{NOBODY}"},
        "InvalidVpcID.NotFound",
    ),
    ("DescribeSecurityGroups", {"GroupId.1": f"sg-{NOBODY}"}, "InvalidGroup.NotFound"),
    ("DescribeSecurityGroups", {"GroupName.1": "nobody's"}, "InvalidGroup.NotFound"),
    ("DescribeSecurityGroups", {"GroupId.1": "group"}, "InvalidGroupId.Malformed"),
    (
        "DescribeSecurityGroupRules",
        {"SecurityGroupRuleId.1": f"sgr-{NOBODY}"},
        "InvalidSecurityGroupRuleId.NotFound",
    ),
    ("DeleteSecurityGroup", {}, "MissingParameter"),
    ("DeleteSecurityGroup", {"GroupId": f"sg-{NOBODY}"}, "InvalidGroup.NotFound"),
    ("DeleteSecurityGroup", {"GroupId": "{group}"}, "DependencyViolation"),
    ("DeleteSecurityGroup", {"GroupName": "default"}, "CannotDelete"),
    ("AuthorizeSecurityGroupIngress", {"GroupId": "{group}"}, "MissingParameter"),
    (
        "AuthorizeSecurityGroupIngress",
        permission(IpProtocol="tcp", FromPort="22", ToPort="22", **CIDR),
        "InvalidPermission.Duplicate",
    ),
    (
        "AuthorizeSecurityGroupIngress",
        permission(IpProtocol="tcp", FromPort="99999", ToPort="99999", **CIDR),
        "InvalidParameterValue",
    ),
    (
        "AuthorizeSecurityGroupIngress",
        permission(IpProtocol="tcp", FromPort="80", ToPort="22", **CIDR),
        "InvalidParameterValue",
    ),
    (
        "AuthorizeSecurityGroupIngress",
        permission(IpProtocol="telepathy", FromPort="1", ToPort="1", **CIDR),
        "InvalidParameterValue",
    ),
    (
        "AuthorizeSecurityGroupIngress",
        permission(IpProtocol="tcp", FromPort="1", ToPort="1", IpRanges__1__CidrIp="10.0.0.0/33"),
        "InvalidParameterValue",
    ),
    (
        "AuthorizeSecurityGroupIngress",
        permission(IpProtocol="tcp", FromPort="1", ToPort="1", IpRanges__1__CidrIp="everywhere"),
        "InvalidParameterValue",
    ),
    (
        "AuthorizeSecurityGroupIngress",
        permission(IpProtocol="tcp", FromPort="1", ToPort="1", Groups__1__GroupId=f"sg-{NOBODY}"),
        "InvalidGroup.NotFound",
    ),
    (
        "AuthorizeSecurityGroupIngress",
        {**permission(IpProtocol="tcp", FromPort="1", ToPort="1", **CIDR), "GroupId": f"sg-{NOBODY}"},
        "InvalidGroup.NotFound",
    ),
    ("AuthorizeSecurityGroupEgress", permission(IpProtocol="tcp", **CIDR), "InvalidParameterValue"),
    # A rule that is not there is no error in a default VPC: the answer tells of it, as EC2 documents.
    (
        "RevokeSecurityGroupIngress",
        permission(IpProtocol="tcp", FromPort="9", ToPort="1", **CIDR),
        "InvalidParameterValue",
    ),
    (
        "RevokeSecurityGroupEgress",
        {"GroupId": "{group}", "SecurityGroupRuleId.1": f"sgr-{NOBODY}"},
        "InvalidSecurityGroupRuleId.NotFound",
    ),
    # Tags.
    ("CreateTags", {"Tag.1.Key": "a", "Tag.1.Value": "b"}, "MissingParameter"),
    ("CreateTags", {"ResourceId.1": "{running}"}, "MissingParameter"),
    (
        "CreateTags",
        {"ResourceId.1": "{running}", "Tag.1.Key": "aws:mine", "Tag.1.Value": "b"},
        "InvalidParameterValue",
    ),
    (
        "CreateTags",
        {"ResourceId.1": "{running}", "Tag.1.Key": "x" * 129, "Tag.1.Value": "b"},
        "InvalidParameterValue",
    ),
    (
        "CreateTags",
        {"ResourceId.1": "{running}", "Tag.1.Key": "a", "Tag.1.Value": "x" * 257},
        "InvalidParameterValue",
    ),
    ("CreateTags", {"ResourceId.1": "{running}", **MANY_TAGS}, "TagLimitExceeded"),
    (
        "CreateTags",
        {"ResourceId.1": f"i-{NOBODY}", "Tag.1.Key": "a", "Tag.1.Value": "b"},
        "InvalidInstanceID.NotFound",
    ),
    (
        "CreateTags",
        {"ResourceId.1": "{running}", "ResourceId.2": f"vol-{NOBODY}", "Tag.1.Key": "a", "Tag.1.Value": "b"},
        "InvalidVolume.NotFound",
    ),
    ("CreateTags", {"ResourceId.1": "nobody", "Tag.1.Key": "a", "Tag.1.Value": "b"}, "InvalidID"),
    ("DescribeTags", {"Filter.1.Name": "colour", "Filter.1.Value.1": "red"}, "InvalidParameterValue"),
    # The place.
    ("DescribeRegions", {"RegionName.1": "eu-central-9"}, "InvalidParameterValue"),
    ("DescribeAvailabilityZones", {"ZoneName.1": "us-east-9z"}, "InvalidParameterValue"),
    ("DescribeAccountAttributes", {"AttributeName.1": "colour"}, "InvalidParameterValue"),
    ("DescribeVpcs", {"VpcId.1": f"vpc-{NOBODY}"}, "InvalidVpcID.NotFound"),
    ("DescribeSubnets", {"SubnetId.1": f"subnet-{NOBODY}"}, "InvalidSubnetID.NotFound"),
]
