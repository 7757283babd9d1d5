"""IAM's actions, and those that give an instance its role, walked against botocore's model."""

import time
import unittest

from botocore.credentials import Credentials
from botocore.exceptions import ClientError

from clients.daemon import IMAGE, INSTANCE_TYPE, QUICK, Recorder
from clients.walker import walk_error
from clients.wire import Request, credentials

TRUST = """{
    "Version": "2012-10-17",
    "Statement": [{"Effect": "Allow", "Principal": {"Service": "ec2.amazonaws.com"}, "Action": "sts:AssumeRole"}]
}"""
MAY_DESCRIBE = """{
    "Version": "2012-10-17",
    "Statement": {"Sid": "Look", "Effect": "Allow", "Action": ["ec2:Describe*"], "Resource": "*"}
}"""
ASSOCIATION = "associationId instanceId iamInstanceProfile/arn iamInstanceProfile/id state timestamp".split()
ROLE = """Path RoleName RoleId Arn CreateDate AssumeRolePolicyDocument Description MaxSessionDuration
    """.split()
PROFILE = "Path InstanceProfileName InstanceProfileId Arn CreateDate".split()


def below(prefix: str, names) -> list[str]:
    return [f"{prefix}/{name}" for name in names]


# What the answers to each action must have had, all taken together.
EXPECTED = {
    "CreateRole": below("Role", [*ROLE, "Tags/member/Key", "Tags/member/Value"]),
    "GetRole": below("Role", [*ROLE, "Tags/member/Key"]),
    "ListRoles": [*below("Roles/member", ROLE), "IsTruncated", "Marker"],
    "DeleteRole": [],
    "UpdateRole": [],
    "UpdateAssumeRolePolicy": [],
    "PutRolePolicy": [],
    "GetRolePolicy": ["RoleName", "PolicyName", "PolicyDocument"],
    "ListRolePolicies": ["PolicyNames/member", "IsTruncated"],
    "DeleteRolePolicy": [],
    "ListAttachedRolePolicies": ["IsTruncated"],
    "TagRole": [],
    "ListRoleTags": ["Tags/member/Key", "Tags/member/Value", "IsTruncated"],
    "UntagRole": [],
    "CreateInstanceProfile": below("InstanceProfile", [*PROFILE, "Tags/member/Key"]),
    "GetInstanceProfile": [
        *below("InstanceProfile", PROFILE),
        *below("InstanceProfile/Roles/member", ROLE),
    ],
    "ListInstanceProfiles": below("InstanceProfiles/member", PROFILE),
    "ListInstanceProfilesForRole": below("InstanceProfiles/member", [*PROFILE, "Roles/member/RoleName"]),
    "AddRoleToInstanceProfile": [],
    "RemoveRoleFromInstanceProfile": [],
    "DeleteInstanceProfile": [],
    "TagInstanceProfile": [],
    "ListInstanceProfileTags": ["Tags/member/Key", "Tags/member/Value"],
    "UntagInstanceProfile": [],
    "GetUser": below("User", ["Path", "UserName", "UserId", "Arn", "CreateDate"]),
    "AssociateIamInstanceProfile": below("iamInstanceProfileAssociation", ASSOCIATION),
    "ReplaceIamInstanceProfileAssociation": below("iamInstanceProfileAssociation", ASSOCIATION),
    "DisassociateIamInstanceProfile": below("iamInstanceProfileAssociation", ASSOCIATION),
    "DescribeIamInstanceProfileAssociations": below("iamInstanceProfileAssociationSet/item", ASSOCIATION),
    "RunInstances": below("instancesSet/item/iamInstanceProfile", ["arn", "id"]),
    "DescribeInstances": below("reservationSet/item/instancesSet/item/iamInstanceProfile", ["arn", "id"]),
}


class EveryIdentityAction(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.recorder = Recorder()
        cls.iam, cls.ec2 = cls.recorder.client("iam"), cls.recorder.client()
        cls.name = f"identity-{time.time_ns()}"

    def refused(self, code: str, function, **parameters):
        with self.assertRaises(ClientError) as caught:
            function(**parameters)
        self.assertEqual(caught.exception.response["Error"]["Code"], code)
        return caught.exception.response["Error"]["Message"]

    def test_1_a_role(self):
        iam, name = self.iam, self.name
        tags = [{"Key": "Suite", "Value": name}, {"Key": "Empty", "Value": ""}]
        role = iam.create_role(
            RoleName=name,
            Path="/tests/",
            AssumeRolePolicyDocument=TRUST,
            Description="for tests",
            Tags=tags,
        )["Role"]
        self.assertRegex(role["RoleId"], "^AROA[A-Z2-7]{17}$")
        self.assertTrue(role["Arn"].endswith(f":role/tests/{name}"), role["Arn"])
        self.refused(
            "EntityAlreadyExists", iam.create_role, RoleName=name.upper(), AssumeRolePolicyDocument=TRUST
        )
        iam.create_role(RoleName=f"{name}-2", AssumeRolePolicyDocument=TRUST, Tags=[], Description="another")
        pages = iam.get_paginator("list_roles").paginate(PaginationConfig={"PageSize": 1})
        names = [each["RoleName"] for page in pages for each in page["Roles"]]
        self.assertLessEqual({name, f"{name}-2"}, set(names))
        self.assertEqual(
            [each["RoleName"] for each in iam.list_roles(PathPrefix="/tests/")["Roles"]], [name]
        )

        iam.update_role(RoleName=name, MaxSessionDuration=7200)
        iam.update_assume_role_policy(RoleName=name, PolicyDocument=TRUST)
        shown = iam.get_role(RoleName=name)["Role"]
        # botocore reads the document, as it was given.
        self.assertEqual(shown["AssumeRolePolicyDocument"]["Statement"][0]["Action"], "sts:AssumeRole")
        self.assertEqual((shown["Description"], shown["MaxSessionDuration"]), ("for tests", 7200))
        self.assertEqual(sorted(shown["Tags"], key=str), sorted(tags, key=str))
        iam.tag_role(RoleName=name, Tags=[{"Key": "Colour", "Value": "red"}])
        iam.untag_role(RoleName=name, TagKeys=["Empty"])
        tags = iam.list_role_tags(RoleName=name)["Tags"]
        self.assertEqual({tag["Key"]: tag["Value"] for tag in tags}, {"Suite": name, "Colour": "red"})

        iam.put_role_policy(RoleName=name, PolicyName="look", PolicyDocument=MAY_DESCRIBE)
        self.assertEqual(iam.list_role_policies(RoleName=name)["PolicyNames"], ["look"])
        policy = iam.get_role_policy(RoleName=name, PolicyName="look")["PolicyDocument"]
        self.assertEqual(policy["Statement"]["Action"], ["ec2:Describe*"])
        self.assertEqual(iam.list_attached_role_policies(RoleName=name)["AttachedPolicies"], [])
        narrow = MAY_DESCRIBE.replace('"*"}', '"*", "Condition": {"Bool": {"aws:SecureTransport": "true"}}}')
        message = self.refused(
            "MalformedPolicyDocument",
            iam.put_role_policy,
            RoleName=name,
            PolicyName="narrow",
            PolicyDocument=narrow,
        )
        self.assertIn("Condition is not evaluated", message)
        self.refused("DeleteConflict", iam.delete_role, RoleName=name)
        self.assertTrue(iam.get_user()["User"]["Arn"].endswith(":root"))

    def test_2_a_profile(self):
        iam, name = self.iam, self.name
        for profile in (name, f"{name}-2"):
            made = iam.create_instance_profile(
                InstanceProfileName=profile, Path="/tests/", Tags=[{"Key": "Suite", "Value": name}]
            )
            self.assertEqual(made["InstanceProfile"]["Roles"], [])
            iam.add_role_to_instance_profile(InstanceProfileName=profile, RoleName=profile)
        self.refused(
            "LimitExceeded", iam.add_role_to_instance_profile, InstanceProfileName=name, RoleName=name
        )
        iam.tag_instance_profile(InstanceProfileName=name, Tags=[{"Key": "Colour", "Value": "red"}])
        iam.untag_instance_profile(InstanceProfileName=name, TagKeys=["Suite"])
        tags = iam.list_instance_profile_tags(InstanceProfileName=name)["Tags"]
        self.assertEqual(tags, [{"Key": "Colour", "Value": "red"}])
        shown = iam.get_instance_profile(InstanceProfileName=name)["InstanceProfile"]
        self.assertEqual([role["RoleName"] for role in shown["Roles"]], [name])
        iam.get_waiter("instance_profile_exists").wait(InstanceProfileName=name)
        self.assertEqual(len(iam.list_instance_profiles(PathPrefix="/tests/")["InstanceProfiles"]), 2)
        [found] = iam.list_instance_profiles_for_role(RoleName=name)["InstanceProfiles"]
        self.assertEqual(found["InstanceProfileName"], name)

    def test_3_an_instance(self):
        ec2, name = self.ec2, self.name
        [instance] = ec2.run_instances(
            ImageId=IMAGE,
            InstanceType=INSTANCE_TYPE,
            MinCount=1,
            MaxCount=1,
            IamInstanceProfile={"Name": name},
        )["Instances"]
        instance, arn = instance["InstanceId"], instance["IamInstanceProfile"]["Arn"]
        ec2.get_waiter("instance_running").wait(InstanceIds=[instance], WaiterConfig=QUICK)
        mine = [{"Name": "instance-id", "Values": [instance]}]

        def association():
            found = ec2.describe_iam_instance_profile_associations(Filters=mine)
            [found] = found["IamInstanceProfileAssociations"]
            self.assertEqual(found["State"], "associated")
            return found

        self.assertEqual(association()["IamInstanceProfile"]["Arn"], arn)
        self.refused(
            "IncorrectState",
            ec2.associate_iam_instance_profile,
            InstanceId=instance,
            IamInstanceProfile={"Name": name},
        )
        ec2.replace_iam_instance_profile_association(
            AssociationId=association()["AssociationId"], IamInstanceProfile={"Arn": f"{arn}-2"}
        )
        self.assertEqual(association()["IamInstanceProfile"]["Arn"], f"{arn}-2")
        ec2.disassociate_iam_instance_profile(AssociationId=association()["AssociationId"])
        self.assertEqual(
            ec2.describe_iam_instance_profile_associations(Filters=mine)["IamInstanceProfileAssociations"], []
        )
        ec2.associate_iam_instance_profile(InstanceId=instance, IamInstanceProfile={"Name": name})
        found = ec2.describe_instances(Filters=[{"Name": "iam-instance-profile.arn", "Values": [arn]}])
        self.assertEqual([each["Instances"][0]["InstanceId"] for each in found["Reservations"]], [instance])
        message = self.refused(
            "InvalidParameterValue",
            ec2.run_instances,
            ImageId=IMAGE,
            MinCount=1,
            MaxCount=1,
            IamInstanceProfile={"Name": "nobody's"},
        )
        self.assertEqual(
            message,
            "Value (nobody's) for parameter iamInstanceProfile.name is invalid. Invalid IAM Instance Profile name",
        )
        ec2.terminate_instances(InstanceIds=[instance])
        ec2.get_waiter("instance_terminated").wait(InstanceIds=[instance], WaiterConfig=QUICK)

    def test_4_the_end(self):
        iam = self.iam
        iam.delete_role_policy(RoleName=self.name, PolicyName="look")
        for name in (self.name, f"{self.name}-2"):
            self.refused("DeleteConflict", iam.delete_role, RoleName=name)
            iam.remove_role_from_instance_profile(InstanceProfileName=name, RoleName=name)
            iam.delete_instance_profile(InstanceProfileName=name)
            iam.delete_role(RoleName=name)
            self.refused("NoSuchEntity", iam.get_role, RoleName=name)

    def test_5_temporary_credentials_that_nobody_was_given(self):
        own = credentials()
        temporary = "ASIAIOSFODNN7EXAMPLE"
        for key in [
            Credentials(temporary, own.secret_key, "aW52ZW50ZWQ="),
            Credentials(temporary, own.secret_key),
            Credentials(own.access_key, own.secret_key, "aW52ZW50ZWQ="),
        ]:
            answer = Request({"Action": "DescribeRegions"}, key=key).send()
            self.assertEqual((answer.error().leaves["Code"], answer.status), ("AuthFailure", 401))
            answer = Request({"Action": "GetUser"}, key=key, service="iam", version="2010-05-08").send()
            found = walk_error(answer.body, "query")
            self.assertEqual(
                (found.errors, found.leaves["Code"], answer.status), ([], "InvalidClientTokenId", 403)
            )

    def test_6_everything_was_walked(self):
        print(self.recorder.report())
        self.assertEqual(self.recorder.errors, [], "what the model does not know")
        missing = {
            action: [path for path in paths if path not in self.recorder.leaves.get(action, {})]
            for action, paths in EXPECTED.items()
        }
        self.assertEqual({action: paths for action, paths in missing.items() if paths}, {}, "what no answer had")
        self.assertLessEqual(set(EXPECTED), set(self.recorder.leaves))


if __name__ == "__main__":
    unittest.main(failfast=False)
