"""The clients of the metadata service that guests have, run where a guest is: cloud-init's, botocore's and Amazon's own.

INNKEEPER_TEST_INSTANCE says what is expected, as JSON; see tests/tests/metadata/clients.rs. Debian's cloud-init and
ec2-metadata are where scripts/setup has unpacked them.
"""

import json
import os
import subprocess
import sys
import unittest
from pathlib import Path

import botocore.session
from botocore.utils import IMDSRegionProvider, InstanceMetadataFetcher

DEBIAN = Path(__file__).parents[2] / "target/clients/debian"
EXPECTED = json.loads(os.environ.get("INNKEEPER_TEST_INSTANCE", "{}"))
SERVICE = "http://169.254.169.254"


class CloudInit(unittest.TestCase):
    """What it does at each boot of an instance, with the token that it gets for itself."""

    @classmethod
    def setUpClass(cls):
        sys.path.append(str(DEBIAN / "usr/lib/python3/dist-packages"))
        from cloudinit.helpers import Paths
        from cloudinit.sources import DataSourceEc2 as ec2
        from cloudinit.sources.helpers import ec2 as crawler

        cls.ec2, cls.crawler = ec2, crawler
        cls.source = ec2.DataSourceEc2({}, None, Paths({}))
        # It would ask the firmware, which is the host's here.
        cls.source._cloud_name = ec2.CloudNames.AWS
        cls.source.metadata_address = cls.source._maybe_fetch_api_token([SERVICE])
        cls.version = cls.source.get_metadata_api_version()
        cls.asks = {
            "headers_cb": cls.source._get_headers,
            "headers_redact": ec2.AWS_TOKEN_REDACT,
            "exception_cb": cls.source._refresh_stale_aws_token_cb,
        }
        cls.metadata = crawler.get_instance_metadata(cls.version, SERVICE, **cls.asks)

    def test_the_service_is_found(self):
        self.assertEqual(self.source.metadata_address, SERVICE)
        self.assertEqual(len(self.source._api_token), 56)
        self.assertEqual(self.version, "2021-03-23")

    def test_everything_that_is_listed_is_read(self):
        found = self.metadata
        for name in ["instance-id", "ami-id", "instance-type", "local-ipv4", "mac", "local-hostname", "public-ipv4"]:
            self.assertEqual(found[name], EXPECTED[name], name)
        self.assertEqual(found["placement"]["availability-zone"], EXPECTED["availability-zone"])
        self.assertEqual(found["placement"]["region"], EXPECTED["region"])
        self.assertEqual(found["security-groups"], EXPECTED["security-groups"])
        self.assertEqual(found["block-device-mapping"]["ebs1"], "sdf")
        self.assertEqual(found["public-keys"], {EXPECTED["key-name"]: EXPECTED["public-key"].rstrip("\n")})
        self.assertEqual(found["tags"], {"instance": EXPECTED["tags"]})
        self.assertEqual(found["services"], {"domain": "amazonaws.com", "partition": "aws"})
        self.assertEqual(found["events"]["maintenance"], {"history": "[]", "scheduled": "[]"})

    def test_the_identity_is_read(self):
        found = self.crawler.get_instance_identity(self.version, SERVICE, **self.asks)
        self.assertEqual(found["document"]["instanceId"], EXPECTED["instance-id"])
        self.assertEqual(set(found), {"document", "pkcs7", "rsa2048", "signature"})

    def test_user_data_is_as_it_was_given(self):
        found = self.crawler.get_instance_userdata(self.version, SERVICE, **self.asks)
        self.assertEqual(found.decode(), EXPECTED["user-data"])

    def test_the_network_is_configured(self):
        self.source.metadata = self.metadata
        self.assertFalse(self.source.is_classic_instance())
        own = self.metadata["network"]["interfaces"]["macs"][EXPECTED["mac"]]
        self.assertEqual(own["vpc-id"], EXPECTED["vpc-id"])
        made = self.ec2.convert_ec2_metadata_network_config(
            self.metadata["network"], macs_to_nics={EXPECTED["mac"]: "eth0"}, fallback_nic="eth0"
        )
        interface = made["ethernets"]["eth0"]
        self.assertEqual((made["version"], interface["dhcp4"], interface["dhcp6"]), (2, True, False))
        self.assertEqual(interface["match"], {"macaddress": EXPECTED["mac"]})
        # The primary one is for DHCP.
        prefix = own["subnet-ipv4-cidr-block"].split("/")[1]
        self.assertEqual(interface["addresses"], [f"{address}/{prefix}" for address in EXPECTED["secondary"]])


class Botocore(unittest.TestCase):
    """What it does on an instance where nothing is configured."""

    def test_the_region_is_found(self):
        session = botocore.session.get_session()
        self.assertEqual(IMDSRegionProvider(session).provide(), EXPECTED["region"])

    def test_there_are_no_credentials_without_a_profile(self):
        fetcher = InstanceMetadataFetcher(num_attempts=1, timeout=5)
        self.assertEqual(fetcher.retrieve_iam_role_credentials(), {})


class Ec2Metadata(unittest.TestCase):
    """Amazon's script for people."""

    def test_it_shows_everything(self):
        command = [DEBIAN / "usr/bin/ec2-metadata", "--all"]
        shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        lines = shown.splitlines()
        for line in [
            f"ami-id: {EXPECTED['ami-id']}",
            "ami-launch-index: 0",
            "ami-manifest-path: (unknown)",
            "ancestor-ami-ids: not available",
            "\t ami: " + EXPECTED["root"],
            "\t ebs1: sdf",
            "\t root: " + EXPECTED["root"],
            f"instance-id: {EXPECTED['instance-id']}",
            f"instance-type: {EXPECTED['instance-type']}",
            f"local-hostname: {EXPECTED['local-hostname']}",
            f"local-ipv4: {EXPECTED['local-ipv4']}",
            "kernel-id: not available",
            f"placement: {EXPECTED['availability-zone']}",
            "product-codes: not available",
            f"public-hostname: {EXPECTED['public-hostname']}",
            f"public-ipv4: {EXPECTED['public-ipv4']}",
            f"keyname:{EXPECTED['key-name']}",
            "index:0",
            "format:openssh-key",
            EXPECTED["public-key"].rstrip("\n"),
            "ramdisk-id: not available",
            f"reservation-id: {EXPECTED['reservation-id']}",
            f"security-groups: {EXPECTED['security-groups']}",
            *f"user-data: {EXPECTED['user-data']}".splitlines(),
            *(f"\t {key}: {value}" for key, value in EXPECTED["tags"].items()),
        ]:
            self.assertIn(line, lines)


if __name__ == "__main__":
    unittest.main()
