"""The life of an instance in boto3's resources: launched, rebooted, stopped, changed, started, terminated."""

import time
import unittest

from clients.daemon import BANNER, IMAGE, INSTANCE_TYPE, QUICK, Recorder

# A type that is larger, so that the change can be seen.
LARGER = "t3.nano"


class Life(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.recorder = Recorder()
        cls.ec2 = cls.recorder.resource()

    def wait_for_banners(self, instance, count: int):
        """Waits until the guest has said so often that it is up."""
        output = ""
        for _ in range(600):
            output = instance.console_output(Latest=True).get("Output", "")
            if output.count(BANNER) >= count:
                return
            time.sleep(0.2)
        self.fail(f"{BANNER!r} is not on the console {count} times: {output[-2000:]!r}")

    def test_a_life(self):
        key = self.ec2.create_key_pair(KeyName=f"life-{time.time_ns()}", KeyType="ed25519")
        [instance] = self.ec2.create_instances(
            ImageId=IMAGE,
            InstanceType=INSTANCE_TYPE,
            MinCount=1,
            MaxCount=1,
            KeyName=key.name,
            UserData="#!/bin/sh\necho hello\n",
            TagSpecifications=[{"ResourceType": "instance", "Tags": [{"Key": "Name", "Value": "life"}]}],
        )
        self.assertEqual(instance.state["Name"], "pending")
        instance.wait_until_exists()
        instance.wait_until_running(WaiterConfig=QUICK)
        instance.reload()
        self.assertEqual((instance.state["Name"], instance.state["Code"]), ("running", 16))
        self.assertEqual((instance.image_id, instance.key_name), (IMAGE, key.name))
        self.assertEqual(instance.tags, [{"Key": "Name", "Value": "life"}])
        self.assertEqual(instance.image.state, "available")
        self.assertEqual(instance.vpc.is_default, True)
        self.assertEqual(instance.subnet.vpc_id, instance.vpc_id)
        self.assertEqual([group["GroupName"] for group in instance.security_groups], ["default"])
        address, launched = instance.private_ip_address, instance.launch_time
        self.wait_for_banners(instance, 1)

        instance.reboot()
        self.wait_for_banners(instance, 2)
        instance.reload()
        self.assertEqual(instance.state["Name"], "running")

        instance.stop()
        instance.wait_until_stopped(WaiterConfig=QUICK)
        instance.reload()
        self.assertEqual(instance.state_reason["Code"], "Client.UserInitiatedShutdown")
        # It can be read when the guest is off.
        self.assertIn(BANNER, instance.console_output()["Output"])
        instance.modify_attribute(InstanceType={"Value": LARGER})
        instance.reload()
        self.assertEqual(instance.instance_type, LARGER)

        instance.start()
        instance.wait_until_running(WaiterConfig=QUICK)
        instance.reload()
        self.assertEqual((instance.instance_type, instance.private_ip_address), (LARGER, address))
        self.assertGreater(instance.launch_time, launched)
        self.wait_for_banners(instance, 1)

        instance.create_tags(Tags=[{"Key": "Stage", "Value": "last"}])
        found = list(self.ec2.instances.filter(Filters=[{"Name": "tag:Stage", "Values": ["l*t"]}]))
        self.assertIn(instance, found)
        volumes = [volume.id for volume in instance.volumes.all()]
        instance.terminate()
        instance.wait_until_terminated(WaiterConfig=QUICK)
        instance.reload()
        self.assertEqual(instance.state["Name"], "terminated")
        left = {volume.id for volume in self.ec2.volumes.all()}
        self.assertFalse(left.intersection(volumes))
        key.delete()
        self.assertEqual(self.recorder.errors, [])
        print(self.recorder.report())


if __name__ == "__main__":
    unittest.main()
