"""Every action on volumes, snapshots and images, answered by the daemon and walked against botocore's model.

Nothing here looks at what is on a disk: that is for the tests with guests.
"""

import time
import unittest

from botocore.exceptions import ClientError

from clients.daemon import IMAGE, INSTANCE_TYPE, QUICK, REGION, Recorder

MODIFICATION = """
    volumeId modificationState progress startTime originalSize originalVolumeType originalIops
    originalMultiAttachEnabled targetSize targetVolumeType targetIops targetThroughput
    targetMultiAttachEnabled""".split()
SNAPSHOT = """
    snapshotId volumeId status startTime progress ownerId volumeSize description encrypted storageTier
    tagSet/item/key tagSet/item/value""".split()


def below(prefix: str, names) -> list[str]:
    return [f"{prefix}/{name}" for name in names]


# What the answers to each action must have had, all taken together.
EXPECTED = {
    "ModifyVolume": below("volumeModification", MODIFICATION),
    "DescribeVolumesModifications": [
        "nextToken",
        *below("volumeModificationSet/item", [*MODIFICATION, "endTime"]),
    ],
    "DescribeVolumeStatus": [
        "nextToken",
        *below(
            "volumeStatusSet/item",
            [
                "volumeId",
                "availabilityZone",
                "availabilityZoneId",
                "volumeStatus/status",
                "volumeStatus/details/item/name",
                "volumeStatus/details/item/status",
                "attachmentStatuses/item/instanceId",
                "attachmentStatuses/item/ioPerformance",
            ],
        ),
    ],
    "DescribeVolumeAttribute": ["volumeId", "autoEnableIO/value"],
    "ModifyVolumeAttribute": ["return"],
    "EnableVolumeIO": ["return"],
    "GetEbsEncryptionByDefault": ["ebsEncryptionByDefault", "sseType"],
    "DisableEbsEncryptionByDefault": ["ebsEncryptionByDefault"],
    "CreateSnapshot": SNAPSHOT,
    "CreateSnapshots": below(
        "snapshotSet/item",
        """description tagSet/item/key encrypted volumeId state volumeSize startTime progress ownerId
        snapshotId""".split(),
    ),
    "CopySnapshot": ["snapshotId", "tagSet/item/key"],
    "DescribeSnapshots": ["nextToken", *below("snapshotSet/item", [*SNAPSHOT, "completionTime"])],
    "DescribeSnapshotAttribute": [
        "snapshotId",
        "createVolumePermission/item/userId",
        "createVolumePermission/item/group",
    ],
    "ModifySnapshotAttribute": ["return"],
    "ResetSnapshotAttribute": ["return"],
    "DeleteSnapshot": ["return"],
    "CreateImage": ["imageId"],
    "CopyImage": ["imageId"],
    "DescribeImages": below(
        "imagesSet/item",
        """sourceInstanceId sourceImageId sourceImageRegion blockDeviceMapping/item/deviceName
        blockDeviceMapping/item/virtualName blockDeviceMapping/item/ebs/snapshotId
        blockDeviceMapping/item/ebs/volumeSize blockDeviceMapping/item/ebs/volumeType
        blockDeviceMapping/item/ebs/deleteOnTermination blockDeviceMapping/item/ebs/encrypted""".split(),
    ),
    "DescribeImageAttribute": [
        "imageId",
        "description/value",
        "launchPermission/item/userId",
        "blockDeviceMapping/item/deviceName",
    ],
    "ModifyImageAttribute": ["return"],
    "ResetImageAttribute": ["return"],
    "DeregisterImage": [
        "return",
        "deleteSnapshotResultSet/item/snapshotId",
        "deleteSnapshotResultSet/item/returnCode",
    ],
}


class EveryStorageAction(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.recorder = Recorder()
        cls.ec2 = cls.recorder.client()
        cls.name = f"storage-{time.time_ns()}"
        cls.zone = cls.ec2.describe_availability_zones()["AvailabilityZones"][0]["ZoneName"]

    def tags(self, *kinds: str, **more: str) -> list[dict]:
        tags = [{"Key": key, "Value": value} for key, value in {"Suite": self.name, **more}.items()]
        return [{"ResourceType": kind, "Tags": tags} for kind in kinds]

    def mine(self) -> list[dict]:
        return [{"Name": "tag:Suite", "Values": [self.name]}]

    def refused(self, code: str, function, **parameters):
        with self.assertRaises(ClientError) as caught:
            function(**parameters)
        self.assertEqual(caught.exception.response["Error"]["Code"], code)

    def volume(self, **parameters) -> str:
        parameters = {"AvailabilityZone": self.zone, "TagSpecifications": self.tags("volume"), **parameters}
        volume = self.ec2.create_volume(**parameters)["VolumeId"]
        self.ec2.get_waiter("volume_available").wait(VolumeIds=[volume], WaiterConfig=QUICK)
        return volume

    def completed(self, *snapshots: str):
        self.ec2.get_waiter("snapshot_completed").wait(SnapshotIds=list(snapshots), WaiterConfig=QUICK)

    def modified(self, volume: str) -> dict:
        """Waits until a change of a volume is done, for which botocore has no waiter."""
        for _ in range(QUICK["MaxAttempts"]):
            [found] = self.ec2.describe_volumes_modifications(VolumeIds=[volume])["VolumesModifications"]
            if found["ModificationState"] not in ("modifying", "optimizing"):
                return found
            time.sleep(QUICK["Delay"])
        self.fail(f"{volume} is still being modified")

    def test_1_volumes_change(self):
        ec2 = self.ec2
        volume = self.volume(Size=1, VolumeType="gp2")
        self.refused("InvalidVolumeModification.NotFound", ec2.describe_volumes_modifications, VolumeIds=[volume])
        change = ec2.modify_volume(VolumeId=volume, Size=2, VolumeType="gp3")["VolumeModification"]
        self.assertEqual((change["OriginalSize"], change["TargetSize"]), (1, 2))
        self.assertEqual((change["TargetIops"], change["TargetThroughput"]), (3000, 125))
        done = self.modified(volume)
        self.assertEqual((done["ModificationState"], done["Progress"]), ("completed", 100))
        [shown] = ec2.describe_volumes(VolumeIds=[volume])["Volumes"]
        self.assertEqual((shown["Size"], shown["VolumeType"], shown["Iops"]), (2, "gp3", 3000))
        self.refused("InvalidParameterValue", ec2.modify_volume, VolumeId=volume, Size=1)
        other = self.volume(Size=1)
        ec2.modify_volume(VolumeId=other, Size=2)
        self.modified(other)
        paginator = ec2.get_paginator("describe_volumes_modifications")
        pages = list(paginator.paginate(PaginationConfig={"PageSize": 1}))
        seen = [each["VolumeId"] for page in pages for each in page["VolumesModifications"]]
        self.assertLessEqual({volume, other}, set(seen))

    def test_2_volumes_are_well(self):
        ec2 = self.ec2
        for _ in range(5):
            self.volume(Size=1)
        pages = list(ec2.get_paginator("describe_volume_status").paginate(PaginationConfig={"PageSize": 5}))
        self.assertGreater(len(pages), 1)
        volume = self.volume(Size=1)
        [status] = ec2.describe_volume_status(VolumeIds=[volume])["VolumeStatuses"]
        self.assertEqual((status["VolumeStatus"]["Status"], status["Events"], status["Actions"]), ("ok", [], []))
        ec2.modify_volume_attribute(VolumeId=volume, AutoEnableIO={"Value": True})
        attribute = ec2.describe_volume_attribute(VolumeId=volume, Attribute="autoEnableIO")
        self.assertEqual(attribute["AutoEnableIO"], {"Value": True})
        codes = ec2.describe_volume_attribute(VolumeId=volume, Attribute="productCodes")
        self.assertEqual(codes["ProductCodes"], [])
        ec2.enable_volume_io(VolumeId=volume)
        self.assertFalse(ec2.get_ebs_encryption_by_default()["EbsEncryptionByDefault"])
        self.assertFalse(ec2.disable_ebs_encryption_by_default()["EbsEncryptionByDefault"])
        self.refused("UnsupportedOperation", ec2.enable_ebs_encryption_by_default)

    def test_3_snapshots(self):
        ec2 = self.ec2
        volume = self.volume(Size=1)
        described = {"Description": "for tests", "TagSpecifications": self.tags("snapshot")}
        first = ec2.create_snapshot(VolumeId=volume, **described)
        self.assertEqual((first["State"], first["VolumeSize"], first["Encrypted"]), ("pending", 1, False))
        first = first["SnapshotId"]
        self.completed(first)
        made = self.volume(SnapshotId=first)
        second = ec2.create_snapshot(VolumeId=made, **described)["SnapshotId"]
        self.completed(second)
        copied = ec2.copy_snapshot(SourceRegion=REGION, SourceSnapshotId=second, **described)["SnapshotId"]
        self.completed(copied)
        self.refused(
            "InvalidParameterValue", ec2.copy_snapshot, SourceRegion="mars-east-1", SourceSnapshotId=second
        )
        more = [ec2.create_snapshot(VolumeId=made, **described)["SnapshotId"] for _ in range(3)]
        self.completed(*more)
        paginator = ec2.get_paginator("describe_snapshots")
        pages = list(paginator.paginate(OwnerIds=["self"], PaginationConfig={"PageSize": 5}))
        seen = [each["SnapshotId"] for page in pages for each in page["Snapshots"]]
        self.assertLessEqual({first, second, copied, *more}, set(seen))
        self.assertGreater(len(pages), 1)

        permission = {"SnapshotId": first, "Attribute": "createVolumePermission"}
        other = "999999999999"
        ec2.modify_snapshot_attribute(**permission, OperationType="add", UserIds=[other], GroupNames=["all"])
        permitted = ec2.describe_snapshot_attribute(**permission)["CreateVolumePermissions"]
        self.assertEqual(sorted(permitted, key=str), [{"Group": "all"}, {"UserId": other}])
        restorable = ec2.describe_snapshots(RestorableByUserIds=["all"])["Snapshots"]
        self.assertIn(first, [each["SnapshotId"] for each in restorable])
        ec2.modify_snapshot_attribute(
            SnapshotId=first, CreateVolumePermission={"Remove": [{"UserId": other}, {"Group": "all"}]}
        )
        self.assertEqual(ec2.describe_snapshot_attribute(**permission)["CreateVolumePermissions"], [])
        ec2.reset_snapshot_attribute(**permission)
        ec2.describe_snapshot_attribute(SnapshotId=first, Attribute="productCodes")

        # In any order: the newest first, then the one that all are made on.
        for snapshot in [*reversed(more), first, second, copied]:
            ec2.delete_snapshot(SnapshotId=snapshot)
        self.assertEqual(ec2.describe_snapshots(Filters=self.mine())["Snapshots"], [])
        ec2.delete_volume(VolumeId=made)
        ec2.delete_volume(VolumeId=volume)

    def test_4_images_of_instances(self):
        ec2 = self.ec2
        instance = ec2.run_instances(
            ImageId=IMAGE,
            InstanceType=INSTANCE_TYPE,
            MinCount=1,
            MaxCount=1,
            Placement={"AvailabilityZone": self.zone},
            BlockDeviceMappings=[{"DeviceName": "/dev/sdf", "Ebs": {"VolumeSize": 1, "VolumeType": "gp3"}}],
            TagSpecifications=self.tags("instance", "volume"),
        )["Instances"][0]["InstanceId"]
        ec2.get_waiter("instance_running").wait(InstanceIds=[instance], WaiterConfig=QUICK)
        # Only a volume whose speed can be chosen says how fast it is.
        ec2.describe_volume_status(
            Filters=[{"Name": "attachment-status.instance-id", "Values": [instance]}]
        )
        snapshots = ec2.create_snapshots(
            InstanceSpecification={"InstanceId": instance},
            Description="for tests",
            CopyTagsFromSource="volume",
        )["Snapshots"]
        self.assertEqual(len({each["VolumeId"] for each in snapshots}), 2)
        self.assertEqual({each["State"] for each in snapshots}, {"pending"})
        ids = [each["SnapshotId"] for each in snapshots]
        self.completed(*ids)
        for snapshot in ids:
            ec2.delete_snapshot(SnapshotId=snapshot)

        image = ec2.create_image(
            InstanceId=instance,
            Name=self.name,
            Description="for tests",
            NoReboot=True,
            BlockDeviceMappings=[
                {"DeviceName": "/dev/sdf", "Ebs": {"DeleteOnTermination": True}},
                {"DeviceName": "/dev/sdb", "VirtualName": "ephemeral0"},
            ],
            TagSpecifications=self.tags("image", "snapshot"),
        )["ImageId"]
        self.refused("InvalidAMIName.Duplicate", ec2.create_image, InstanceId=instance, Name=self.name)
        ec2.get_waiter("image_available").wait(ImageIds=[image], WaiterConfig=QUICK)
        [shown] = ec2.describe_images(ImageIds=[image])["Images"]
        self.assertEqual((shown["SourceInstanceId"], shown["RootDeviceType"]), (instance, "ebs"))
        mapped = {each["DeviceName"]: each for each in shown["BlockDeviceMappings"]}
        self.assertIn("/dev/sdf", mapped)
        self.assertEqual(mapped["/dev/sdb"]["VirtualName"], "ephemeral0")
        self.refused(
            "InvalidSnapshot.InUse", ec2.delete_snapshot, SnapshotId=mapped["/dev/sdf"]["Ebs"]["SnapshotId"]
        )

        copied = ec2.copy_image(
            SourceImageId=image, SourceRegion=REGION, Name=f"{self.name}-2", CopyImageTags=True
        )["ImageId"]
        ec2.get_waiter("image_available").wait(ImageIds=[copied], WaiterConfig=QUICK)
        [shown] = ec2.describe_images(ImageIds=[copied])["Images"]
        self.assertEqual((shown["SourceImageId"], shown["SourceImageRegion"]), (image, REGION))
        self.assertEqual(shown["Tags"], [{"Key": "Suite", "Value": self.name}])
        other = "999999999999"
        ec2.modify_image_attribute(ImageId=image, LaunchPermission={"Add": [{"UserId": other}]})
        ec2.modify_image_attribute(ImageId=image, Description={"Value": "changed"})
        for attribute in ["description", "launchPermission", "blockDeviceMapping"]:
            ec2.describe_image_attribute(ImageId=image, Attribute=attribute)
        ec2.reset_image_attribute(ImageId=image, Attribute="launchPermission")
        permitted = ec2.describe_image_attribute(ImageId=image, Attribute="launchPermission")
        self.assertEqual(permitted["LaunchPermissions"], [])

        # Of each image, in any order: both have snapshots of their own.
        for each in (image, copied):
            deleted = ec2.deregister_image(ImageId=each, DeleteAssociatedSnapshots=True)
            codes = {result["ReturnCode"] for result in deleted["DeleteSnapshotResults"]}
            self.assertEqual(codes, {"success"})
        ec2.terminate_instances(InstanceIds=[instance])
        ec2.get_waiter("instance_terminated").wait(InstanceIds=[instance], WaiterConfig=QUICK)

    def test_5_an_image_that_waits_for_a_reboot(self):
        ec2 = self.ec2
        instance = ec2.run_instances(
            ImageId=IMAGE, InstanceType=INSTANCE_TYPE, MinCount=1, MaxCount=1,
            TagSpecifications=self.tags("instance", "volume"),
        )["Instances"][0]["InstanceId"]
        ec2.get_waiter("instance_running").wait(InstanceIds=[instance], WaiterConfig=QUICK)
        image = ec2.create_image(InstanceId=instance, Name=f"{self.name}-3")["ImageId"]
        ec2.get_waiter("image_available").wait(ImageIds=[image], WaiterConfig=QUICK)
        [shown] = ec2.describe_instances(InstanceIds=[instance])["Reservations"][0]["Instances"]
        self.assertEqual(shown["State"]["Name"], "running")
        ec2.terminate_instances(InstanceIds=[instance])
        ec2.get_waiter("instance_terminated").wait(InstanceIds=[instance], WaiterConfig=QUICK)
        ec2.deregister_image(ImageId=image, DeleteAssociatedSnapshots=True)

    def test_6_everything_was_walked(self):
        for volume in self.ec2.describe_volumes(Filters=self.mine())["Volumes"]:
            self.ec2.delete_volume(VolumeId=volume["VolumeId"])
        print(self.recorder.report())
        self.assertEqual(self.recorder.errors, [], "what the model does not know")
        missing = {
            action: [path for path in paths if path not in self.recorder.leaves.get(action, {})]
            for action, paths in EXPECTED.items()
        }
        self.assertEqual({action: paths for action, paths in missing.items() if paths}, {}, "what no answer had")


if __name__ == "__main__":
    unittest.main(failfast=False)
