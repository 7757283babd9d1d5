"""Requests made by hand, for what botocore would not send: signed by botocore, sent byte for byte as they are."""

import http.client
from dataclasses import dataclass, field
from datetime import timedelta
from unittest import mock
from urllib.parse import urlencode, urlsplit

import botocore.auth
import botocore.parsers
import botocore.session
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from clients.daemon import ENDPOINT, REGION
from clients.walker import Walk, walk_error

VERSION = "2016-11-15"
FORM = "application/x-www-form-urlencoded; charset=utf-8"


def credentials() -> Credentials:
    found = botocore.session.get_session().get_credentials()
    assert found is not None, "no credentials: is AWS_SHARED_CREDENTIALS_FILE set?"
    return found


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    def error(self) -> Walk:
        """The answer as an error in EC2's form, which botocore has to understand as well."""
        parsed = botocore.parsers.create_parser("ec2").parse(
            {"status_code": self.status, "headers": self.headers, "body": self.body}, None
        )
        found = walk_error(self.body)
        if parsed["Error"].get("Code") != found.leaves.get("Code"):
            found.wrong("Code", f"botocore reads {parsed['Error']}")
        if "xml" not in self.headers.get("content-type", ""):
            found.wrong("/", f"its type is {self.headers.get('content-type')}")
        return found


@dataclass
class Request:
    """A request before it is signed. What is changed after that, is tampered with."""

    parameters: dict[str, str] = field(default_factory=dict)
    method: str = "POST"
    body: bytes | None = None
    path: str = "/"
    headers: dict[str, str] = field(default_factory=dict)
    region: str = REGION
    service: str = "ec2"
    presigned: int | None = None
    """For how many seconds, if the signature is to be part of the URL."""
    skew: timedelta = timedelta()
    """How wrong the client's clock is."""
    key: Credentials | None = None
    unsigned: bool = False
    version: str = VERSION

    def signed(self) -> AWSRequest:
        parameters = dict(self.parameters)
        if self.version and self.body is None:
            parameters.setdefault("Version", self.version)
        query = self.method == "GET" or self.presigned is not None
        url = ENDPOINT + self.path
        if query and parameters:
            url += "?" + urlencode(parameters)
        body = self.body if self.body is not None else b"" if query else urlencode(parameters).encode()
        headers = {} if query else {"Content-Type": FORM}
        request = AWSRequest(method=self.method, url=url, data=body, headers={**headers, **self.headers})
        if self.unsigned:
            return request
        key = self.key or credentials()
        if self.presigned is not None:
            signer = botocore.auth.SigV4QueryAuth(key, self.service, self.region, expires=self.presigned)
        else:
            signer = botocore.auth.SigV4Auth(key, self.service, self.region)
        now = botocore.auth.get_current_datetime() + self.skew
        with mock.patch.object(botocore.auth, "get_current_datetime", return_value=now):
            signer.add_auth(request)
        return request

    def send(self) -> Answer:
        return send(self.signed())


def send(request: AWSRequest) -> Answer:
    """Sends a request as it is."""
    prepared = request.prepare()
    parts = urlsplit(prepared.url)
    headers = {
        name: value.decode() if isinstance(value, bytes) else value for name, value in prepared.headers.items()
    }
    headers.setdefault("Host", parts.netloc)
    target = parts.path + ("?" + parts.query if parts.query else "")
    body = prepared.body or b""
    return send_raw(prepared.method, target, body.encode() if isinstance(body, str) else body, headers)


def send_raw(method: str, target: str, body: bytes, headers: dict[str, str]) -> Answer:
    parts = urlsplit(ENDPOINT)
    connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=60)
    try:
        connection.putrequest(method, target, skip_host=True, skip_accept_encoding=True)
        for name, value in headers.items():
            if name.lower() != "content-length":
                connection.putheader(name, value)
        if method == "POST" or body:
            connection.putheader("Content-Length", headers.get("Content-Length", str(len(body))))
        try:
            connection.endheaders(body or None)
        except (BrokenPipeError, ConnectionResetError):
            # The daemon has answered before it has read all of it.
            pass
        response = connection.getresponse()
        names = {name.lower(): value for name, value in response.getheaders()}
        return Answer(response.status, names, response.read())
    finally:
        connection.close()
