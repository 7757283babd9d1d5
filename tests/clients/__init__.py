"""Tests with the real clients: the `aws` command line and boto3.

They talk to a daemon that somebody else has started; the suites in tests/tests start one and run these as
`python3 -m clients.NAME`. The environment says where it is (AWS_ENDPOINT_URL, AWS_SHARED_CREDENTIALS_FILE,
AWS_DEFAULT_REGION) and what there is to launch (see `daemon.py`).
"""
