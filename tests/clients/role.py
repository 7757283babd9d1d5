"""What a program in a guest does that has no keys of its own: boto3 finds those of the instance's role.

Prints one line for each thing that it tries. The argument is the instance that it tries to stop.
"""

import sys

import boto3
from botocore.exceptions import ClientError


def main():
    session = boto3.Session()
    credentials = session.get_credentials()
    print("credentials:", credentials.method if credentials else None)
    ec2 = session.client("ec2")
    reservations = ec2.describe_instances()["Reservations"]
    print("described:", *(one["InstanceId"] for each in reservations for one in each["Instances"]))
    for dry_run in (True, False):
        try:
            ec2.stop_instances(InstanceIds=[sys.argv[1]], DryRun=dry_run)
            print("stopped")
        except ClientError as error:
            print("refused:", error.response["Error"]["Code"])
    print("is:", session.client("sts").get_caller_identity()["Arn"])


main()
