"""The walker finds what is wrong, and nothing else."""

import unittest

import botocore.session

from clients.walker import walk, walk_error

REQUEST = "<requestId>59dbff89-35bd-4eac-99ed-be587EXAMPLE</requestId>".replace("EXAMPLE", "0123456")
GOOD = """<?xml version="1.0" encoding="UTF-8"?>
<DescribeInstancesResponse xmlns="http://ec2.amazonaws.com/doc/2016-11-15/">
  REQUEST
  <reservationSet><item>
    <reservationId>r-0123456789abcdef0</reservationId><ownerId>000000000000</ownerId><groupSet/>
    <instancesSet><item>
      <instanceId>i-0123456789abcdef0</instanceId><instanceState><code>16</code><name>running</name></instanceState>
      <instanceType>t3.micro</instanceType><launchTime>2026-11-21T10:00:00.000Z</launchTime>
      <ebsOptimized>false</ebsOptimized><amiLaunchIndex>0</amiLaunchIndex>
      <tagSet><item><key>Name</key><value/></item></tagSet>
    </item></instancesSet>
  </item></reservationSet>
</DescribeInstancesResponse>""".replace("REQUEST", REQUEST)


def operation(name: str, service: str = "ec2"):
    return botocore.session.get_session().get_service_model(service).operation_model(name)


class Walker(unittest.TestCase):
    def test_a_good_answer_has_nothing_wrong(self):
        found = walk(operation("DescribeInstances"), GOOD.encode())
        self.assertEqual(found.errors, [])
        self.assertEqual(found.leaves["reservationSet/item/instancesSet/item/instanceState/name"], "running")
        self.assertNotIn("reservationSet/item/instancesSet/item/tagSet/item/value", found.leaves)

    def test_every_planted_error_is_found(self):
        instance = "reservationSet/item/instancesSet/item"
        cases = {
            "an unknown element": ("<groupSet/>", "<groupsSet/>", "reservationSet/item/groupsSet"),
            "an unknown element in depth": (
                "<code>16",
                "<number>1</number><code>16",
                f"{instance}/instanceState/number",
            ),
            "a name of a member instead of its location": ("tagSet>", "Tags>", f"{instance}/Tags"),
            "a bad enum": (">running<", ">runing<", f"{instance}/instanceState/name"),
            "an enum in another case": (">running<", ">Running<", f"{instance}/instanceState/name"),
            "an empty enum": (">t3.micro<", "><", f"{instance}/instanceType"),
            "a time without milliseconds": (":00.000Z", ":00Z", f"{instance}/launchTime"),
            "a time with microseconds": (".000Z", ".000000Z", f"{instance}/launchTime"),
            "a time with an offset": (".000Z", ".000+00:00", f"{instance}/launchTime"),
            "a time as a number": ("2026-11-21T10:00:00.000Z", "1795255200", f"{instance}/launchTime"),
            "a time without a value": ("2026-11-21T10:00:00.000Z", "", f"{instance}/launchTime"),
            "a bad boolean": (">false<", ">False<", f"{instance}/ebsOptimized"),
            "a number for a boolean": (">false<", ">0<", f"{instance}/ebsOptimized"),
            "a bad integer": (">16<", ">16.0<", f"{instance}/instanceState/code"),
            "too large an integer": (">16<", ">2147483648<", f"{instance}/instanceState/code"),
            "a list of something else": ("<tagSet><item>", "<tagSet><member/><item>", f"{instance}/tagSet"),
            "text in a list": ("<tagSet>", "<tagSet>none", f"{instance}/tagSet"),
            "text after an element": ("<groupSet/>", "<groupSet/>none", "reservationSet/item/groupSet"),
            "an element twice": ("<groupSet/>", "<groupSet/><groupSet/>", "reservationSet/item/groupSet"),
            "elements in a text": ("t3.micro", "<a/>", f"{instance}/instanceType"),
            "an attribute": ("<groupSet/>", '<groupSet nil="true"/>', "reservationSet/item/groupSet"),
            "no request id": (REQUEST, "", "DescribeInstancesResponse"),
            "a request id that is none": (REQUEST, "<requestId>1</requestId>", "DescribeInstancesResponse"),
            "another namespace": ("2016-11-15", "2015-10-01", "DescribeInstancesResponse"),
            "another answer": ("DescribeInstancesResponse", "DescribeVpcsResponse", "DescribeVpcsResponse"),
            "no XML": ("</reservationSet>", "", "/"),
        }
        for name, (good, bad, path) in cases.items():
            with self.subTest(name):
                self.assertIn(good, GOOD)
                errors = walk(operation("DescribeInstances"), GOOD.replace(good, bad).encode()).errors
                self.assertTrue(any(error.startswith(f"{path}: ") for error in errors), errors)

    def test_an_answer_without_output_says_true(self):
        answer = (
            "<DeleteVolumeResponse xmlns='http://ec2.amazonaws.com/doc/2016-11-15/'>{}{}</DeleteVolumeResponse>"
        )
        for content, is_good in [
            ("<return>true</return>", True),
            ("<return>false</return>", False),
            ("", False),
            ("<return>true</return><volumeId>vol-1</volumeId>", False),
        ]:
            errors = walk(operation("DeleteVolume"), answer.format(REQUEST, content).encode()).errors
            self.assertEqual(not errors, is_good, content)

    def test_iam_says_nothing_where_there_is_nothing_to_say(self):
        answer = """<DeleteRoleResponse xmlns="https://iam.amazonaws.com/doc/2010-05-08/"><ResponseMetadata>
            <RequestId>59dbff89-35bd-4eac-99ed-be5870123456</RequestId></ResponseMetadata></DeleteRoleResponse>"""
        delete = operation("DeleteRole", "iam")
        self.assertEqual(walk(delete, answer.encode()).errors, [])
        changed = answer.replace("<ResponseMetadata>", "<return>true</return><ResponseMetadata>")
        self.assertTrue(walk(delete, changed.encode()).errors)

    def test_sts_wraps_its_results(self):
        answer = """<GetCallerIdentityResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><GetCallerIdentityResult>
            <Arn>arn:aws:iam::000000000000:root</Arn><UserId>000000000000</UserId><Account>000000000000</Account>
            </GetCallerIdentityResult><ResponseMetadata>REQUEST</ResponseMetadata></GetCallerIdentityResponse>"""
        answer = answer.replace("REQUEST", REQUEST.replace("requestId", "RequestId"))
        sts = operation("GetCallerIdentity", "sts")
        self.assertEqual(walk(sts, answer.encode()).errors, [])
        for good, bad in [
            ("GetCallerIdentityResult", "Result"),
            ("Arn>", "arn>"),
            ("<ResponseMetadata>", "<Metadata>"),
        ]:
            changed = answer.replace(good, bad).replace(
                "</ResponseMetadata>", bad.replace("<", "</") if "Meta" in bad else "</ResponseMetadata>"
            )
            self.assertTrue(walk(sts, changed.encode()).errors, bad)

    def test_errors_have_ec2s_form(self):
        good = (
            "<Response><Errors><Error><Code>InvalidAction</Code><Message>No.</Message></Error></Errors>"
            f"{REQUEST.replace('requestId', 'RequestID')}</Response>"
        )
        found = walk_error(good.encode())
        self.assertEqual((found.errors, found.leaves["Code"]), ([], "InvalidAction"))
        for right, wrong in [
            ("RequestID", "RequestId"),
            ("<Message>No.</Message>", ""),
            ("No.", ""),
            ("Response", "ErrorResponse"),
            ("InvalidAction", " "),
            ("59dbff89", "59"),
            ("</Errors>", "</Error>"),
        ]:
            self.assertTrue(walk_error(good.replace(right, wrong).encode()).errors, wrong)


if __name__ == "__main__":
    unittest.main()
