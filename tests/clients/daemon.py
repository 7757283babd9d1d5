"""The daemon under test, as the environment says, and sessions with it whose answers are all walked.

AWS_ENDPOINT_URL, AWS_SHARED_CREDENTIALS_FILE and AWS_DEFAULT_REGION are the clients' own variables. Of ours are

- INNKEEPER_TEST_IMAGE, the id of an image that can be launched,
- INNKEEPER_TEST_BANNER, what its guests print when they are up, and
- INNKEEPER_TEST_LOCATION, a directory of the host that an image can be registered from.
"""

import os
from collections import Counter

import boto3
from botocore.config import Config

from clients.walker import Walk, walk, walk_error

ENDPOINT = os.environ.get("AWS_ENDPOINT_URL", "http://127.0.0.1:8773")
REGION = os.environ.get("AWS_DEFAULT_REGION", "us-east-1")
IMAGE = os.environ.get("INNKEEPER_TEST_IMAGE", "")
BANNER = os.environ.get("INNKEEPER_TEST_BANNER", "ready")
LOCATION = os.environ.get("INNKEEPER_TEST_LOCATION", "")
# The smallest: what is launched here does nothing.
INSTANCE_TYPE = "t2.nano"

# Waiters as botocore has them ask every 15 seconds; nothing takes that long here.
QUICK = {"Delay": 1, "MaxAttempts": 120}

# An answer has to be right the first time.
_once = Config(retries={"total_max_attempts": 1}, read_timeout=60)


class Recorder:
    """A boto3 session that walks every answer before botocore parses it."""

    def __init__(self):
        self.session = boto3.Session()
        self.session.events.register("before-parse", self._walk)
        self.answers: Counter[str] = Counter()
        """How many answers were walked, by action."""
        self.leaves: dict[str, dict[str, str]] = {}
        """What the answers that were not errors had, by action."""
        self.errors: list[str] = []
        """What was wrong in any of them."""

    def client(self, service: str = "ec2"):
        return self.session.client(service, config=_once)

    def resource(self):
        return self.session.resource("ec2", config=_once)

    def _walk(self, operation_model, response_dict, **_):
        name, body = operation_model.name, response_dict["body"]
        found: Walk
        if response_dict["status_code"] >= 300:
            found = walk_error(body, operation_model.metadata["protocol"])
        else:
            found = walk(operation_model, body)
            self.leaves.setdefault(name, {}).update(found.leaves)
        self.answers[name] += 1
        self.errors += [f"{name}: {error}" for error in found.errors]

    def report(self) -> str:
        return f"{sum(self.answers.values())} answers of {len(self.answers)} actions walked"
