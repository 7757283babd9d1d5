"""Bad requests, each with EC2's code and HTTP status.

Whatever is wrong, the answer is XML in EC2's form, which botocore understands, and nothing has changed afterwards.
"""

import time
import unittest
from datetime import timedelta

from clients.asked import ASKED
from clients.daemon import IMAGE, INSTANCE_TYPE, QUICK, Recorder
from clients.signed import REGIONS, SIGNED, form, presigned, sent, with_body
from clients.walker import walk_error
from clients.wire import Request


class BadRequests(unittest.TestCase):
    """All of them: a failing one is told, and the next one is tried."""

    maxDiff = None

    @classmethod
    def setUpClass(cls):
        cls.recorder = Recorder()
        ec2 = cls.ec2 = cls.recorder.client()
        name = f"bad-requests-{time.time_ns()}"
        subnets = sorted(ec2.describe_subnets()["Subnets"], key=lambda subnet: subnet["AvailabilityZone"])
        zone, subnet = subnets[0]["AvailabilityZone"], subnets[0]["SubnetId"]
        ec2.create_key_pair(KeyName=name, KeyType="ed25519")
        group = ec2.create_security_group(GroupName=name, Description="for tests")["GroupId"]
        ec2.authorize_security_group_ingress(
            GroupId=group, IpProtocol="tcp", FromPort=22, ToPort=22, CidrIp="10.0.0.0/8"
        )
        token = name[-64:]
        launch = dict(
            ImageId=IMAGE,
            InstanceType=INSTANCE_TYPE,
            MinCount=1,
            MaxCount=1,
            SubnetId=subnet,
            SecurityGroupIds=[group],
        )
        instances = {
            "running": ec2.run_instances(**launch),
            "stopped": ec2.run_instances(**launch),
            "terminated": ec2.run_instances(**launch),
            "protected": ec2.run_instances(**launch, DisableApiTermination=True, DisableApiStop=True),
            "token": ec2.run_instances(
                ImageId=IMAGE, InstanceType=INSTANCE_TYPE, MinCount=1, MaxCount=1, ClientToken=token
            ),
        }
        cls.instances = {key: value["Instances"][0]["InstanceId"] for key, value in instances.items()}
        ids = cls.instances
        ec2.get_waiter("instance_running").wait(InstanceIds=list(ids.values()), WaiterConfig=QUICK)
        ec2.stop_instances(InstanceIds=[ids["stopped"]], Force=True)
        ec2.terminate_instances(InstanceIds=[ids["terminated"], ids["token"]])
        volume, far, attached = cls.volumes = [
            ec2.create_volume(AvailabilityZone=where, Size=1)["VolumeId"]
            for where in (zone, subnets[-1]["AvailabilityZone"], zone)
        ]
        ec2.get_waiter("volume_available").wait(VolumeIds=cls.volumes, WaiterConfig=QUICK)
        ec2.attach_volume(VolumeId=attached, InstanceId=ids["running"], Device="/dev/sdf")
        ec2.get_waiter("volume_in_use").wait(VolumeIds=[attached], WaiterConfig=QUICK)
        ec2.get_waiter("instance_stopped").wait(InstanceIds=[ids["stopped"]], WaiterConfig=QUICK)
        ec2.get_waiter("instance_terminated").wait(
            InstanceIds=[ids["terminated"], ids["token"]], WaiterConfig=QUICK
        )
        types = [
            each
            for page in ec2.get_paginator("describe_instance_types").paginate()
            for each in page["InstanceTypes"]
        ]
        cls.names = {
            **{key: ids[key] for key in ("running", "stopped", "terminated", "protected")},
            "address": ec2.describe_instances(InstanceIds=[ids["running"]])["Reservations"][0]["Instances"][0][
                "PrivateIpAddress"
            ],
            "image": IMAGE,
            "image_name": ec2.describe_images(ImageIds=[IMAGE])["Images"][0]["Name"],
            "largest": max(types, key=lambda each: each["MemoryInfo"]["SizeInMiB"])["InstanceType"],
            "key": name,
            "group": group,
            "group_name": name,
            "token": token,
            "zone": zone,
            "subnet": subnet,
            "volume": volume,
            "far": far,
            "attached": attached,
        }

    @classmethod
    def tearDownClass(cls):
        """The daemon may be used by others after us."""
        ec2, ids = cls.ec2, [cls.instances[key] for key in ("running", "stopped", "protected")]
        protected = cls.instances["protected"]
        ec2.modify_instance_attribute(InstanceId=protected, DisableApiTermination={"Value": False})
        # It protects from termination as well.
        ec2.modify_instance_attribute(InstanceId=protected, DisableApiStop={"Value": False})
        ec2.terminate_instances(InstanceIds=ids)
        ec2.get_waiter("instance_terminated").wait(InstanceIds=ids, WaiterConfig=QUICK)
        for volume in cls.volumes:
            ec2.delete_volume(VolumeId=volume)
        ec2.delete_security_group(GroupId=cls.names["group"])
        ec2.delete_key_pair(KeyName=cls.names["key"])

    def everything(self):
        """What there is."""
        ec2 = self.ec2
        return {
            "instances": {
                each["InstanceId"]: (each["State"]["Name"], each["InstanceType"])
                for part in ec2.describe_instances()["Reservations"]
                for each in part["Instances"]
            },
            "volumes": {each["VolumeId"]: each["State"] for each in ec2.describe_volumes()["Volumes"]},
            "snapshots": {each["SnapshotId"] for each in ec2.describe_snapshots()["Snapshots"]},
            "images": {each["ImageId"] for each in ec2.describe_images()["Images"]},
            "keys": {each["KeyName"] for each in ec2.describe_key_pairs()["KeyPairs"]},
            "groups": {each["GroupId"] for each in ec2.describe_security_groups()["SecurityGroups"]},
            "rules": {
                each["SecurityGroupRuleId"] for each in ec2.describe_security_group_rules()["SecurityGroupRules"]
            },
            "tags": [(each["ResourceId"], each["Key"]) for each in ec2.describe_tags()["Tags"]],
        }

    def expect(self, answer, code: str, status: int):
        found = answer.error()
        message = found.leaves.get("Message", "")
        self.assertEqual(found.errors, [], answer.body[:500])
        self.assertEqual((found.leaves.get("Code"), answer.status), (code, status), message)
        self.assertGreater(len(message), 10, "a message that says what is wrong")

    def test_what_is_wrong_with_a_request(self):
        before = self.everything()
        for what, make, code, status in SIGNED:
            with self.subTest(what):
                self.expect(make(), code, status)
        self.assertEqual(self.everything(), before)

    def test_what_is_wrong_with_what_is_asked_for(self):
        before = self.everything()
        for action, parameters, code, *status in ASKED:
            filled = {"Action": action, **{name: value.format(**self.names) for name, value in parameters.items()}}
            short = {name: value if len(value) < 60 else f"{value[:60]}…" for name, value in [*filled.items()][:8]}
            with self.subTest(**short):
                self.expect(Request(filled).send(), code, *status or [400])
        self.assertEqual(self.everything(), before)

    def test_by_get_it_is_the_same(self):
        for action, parameters, code, *status in ASKED[::5]:
            filled = {"Action": action, **{name: value.format(**self.names) for name, value in parameters.items()}}
            with self.subTest(action=action, code=code):
                self.expect(Request(filled, method="GET").send(), code, *status or [400])

    def test_what_is_signed_for_sts_is_answered_as_sts_does(self):
        for action, code, status in [
            ("DescribeRegions", "SignatureDoesNotMatch", 403),
            ("GetSessionToken", "InvalidAction", 400),
        ]:
            answer = Request({"Action": action}, service="sts", version="2011-06-15").send()
            found = walk_error(answer.body, "query")
            self.assertEqual((found.errors, found.leaves["Code"], answer.status), ([], code, status))

    def test_good_ones_are_answered(self):
        """What the bad ones begin with is good, so that they are refused for what they change."""
        for what, make in {
            "by POST": sent(REGIONS),
            "by GET": sent(REGIONS, method="GET"),
            "presigned": presigned(),
            "a clock that is slow, but not too slow": sent(REGIONS, skew=timedelta(minutes=-14)),
            "with a charset, or without": with_body(form(), Content_Type="application/x-www-form-urlencoded"),
            "an older version": sent(REGIONS, version="2014-10-01"),
        }.items():
            with self.subTest(what):
                answer = make()
                self.assertEqual(answer.status, 200, answer.body)

    def test_a_launch_that_is_sent_again_is_the_same_launch(self):
        again = self.ec2.run_instances(
            ImageId=IMAGE, InstanceType=INSTANCE_TYPE, MinCount=1, MaxCount=1, ClientToken=self.names["token"]
        )
        self.assertEqual([each["InstanceId"] for each in again["Instances"]], [self.instances["token"]])

    def test_there_are_enough(self):
        print(f"{len(SIGNED) + len(ASKED)} bad requests")
        self.assertGreaterEqual(len(SIGNED) + len(ASKED), 60)


if __name__ == "__main__":
    unittest.main()
