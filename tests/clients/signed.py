"""Bad requests: what is wrong with the bytes, the form or the signature of one."""

import gzip
from datetime import timedelta
from urllib.parse import urlencode

from botocore.credentials import Credentials

from clients.daemon import REGION
from clients.wire import FORM, Request, credentials, send, send_raw

REGIONS = {"Action": "DescribeRegions"}


def tampered(**changes):
    """A signed request that is changed afterwards."""

    def make():
        request = Request(REGIONS).signed()
        for name, value in changes.items():
            if name == "headers":
                for header, text in value.items():
                    del request.headers[header]
                    if text is not None:
                        request.headers[header] = text
            else:
                setattr(request, name, value)
        return send(request)

    return make


def authorization(change):
    """A signed request whose Authorization header is changed afterwards."""

    def make():
        request = Request(REGIONS).signed()
        text = request.headers["Authorization"]
        changed = change(text)
        assert changed != text
        del request.headers["Authorization"]
        request.headers["Authorization"] = changed
        return send(request)

    return make


def presigned(change=None, **options):
    def make():
        request = Request(REGIONS, method="GET", presigned=options.pop("expires", 60), **options).signed()
        if change:
            changed = change(request.url)
            assert changed != request.url
            request.url = changed
        return send(request)

    return make


def sent(*arguments, **options):
    return lambda: Request(*arguments, **options).send()


def raw(method, target, body=b"", headers=None):
    return lambda: send_raw(method, target, body, {"Host": "127.0.0.1", **(headers or {})})


def other_key(**changes):
    own = credentials()
    return Credentials(
        changes.get("id", own.access_key), changes.get("secret", own.secret_key), changes.get("token")
    )


def form(*pairs):
    """A body with these pairs, in their order."""
    return urlencode([("Action", "DescribeRegions"), ("Version", "2016-11-15"), *pairs]).encode()


def with_body(body: bytes, **headers):
    return sent(
        body=body,
        headers={"Content-Type": FORM, **{name.replace("_", "-"): value for name, value in headers.items()}},
    )


# What is wrong, the request, the code, the status.
SIGNED = [
    # The signature.
    ("no signature", sent(REGIONS, unsigned=True), "MissingAuthenticationToken", 403),
    ("no signature, by GET", sent(REGIONS, method="GET", unsigned=True), "MissingAuthenticationToken", 403),
    (
        "an unknown key",
        lambda: Request(REGIONS, key=other_key(id="AKIAIOSFODNN7EXAMPLE")).send(),
        "AuthFailure",
        401,
    ),
    ("another secret", lambda: Request(REGIONS, key=other_key(secret="x" * 40)).send(), "AuthFailure", 401),
    ("an empty signature", authorization(lambda text: text[:-64]), "AuthFailure", 401),
    ("a signature of something else", authorization(lambda text: text[:-64] + 64 * "0"), "AuthFailure", 401),
    (
        "another algorithm",
        authorization(lambda text: text.replace("AWS4-HMAC-SHA256", "AWS4-HMAC-SHA512")),
        "IncompleteSignature",
        400,
    ),
    ("Basic authorization", authorization(lambda text: "Basic dXNlcjpwYXNzd29yZA=="), "IncompleteSignature", 400),
    (
        "no signed headers",
        authorization(lambda text: text.replace("SignedHeaders=", "Headers=")),
        "IncompleteSignature",
        400,
    ),
    (
        "a scope without a service",
        authorization(lambda text: text.replace("/ec2/", "/")),
        "IncompleteSignature",
        400,
    ),
    ("a host that is not signed", authorization(lambda text: text.replace(";host;", ";")), "AuthFailure", 401),
    (
        "a scope of another day",
        authorization(lambda text: text.replace("/20", "/19", 1)),
        "IncompleteSignature",
        400,
    ),
    ("no date", tampered(headers={"X-Amz-Date": None}), "IncompleteSignature", 400),
    ("a date that is none", tampered(headers={"X-Amz-Date": "yesterday"}), "IncompleteSignature", 400),
    ("another region in the scope", sent(REGIONS, region="eu-central-9"), "AuthFailure", 401),
    ("another service in the scope", sent(REGIONS, service="s3"), "SignatureDoesNotMatch", 403),
    ("a clock that is slow", sent(REGIONS, skew=timedelta(minutes=-16)), "RequestExpired", 400),
    ("a clock that is fast", sent(REGIONS, skew=timedelta(minutes=16)), "RequestExpired", 400),
    ("a body that is changed", tampered(data=form(("AllRegions", "true"))), "AuthFailure", 401),
    ("a header that is changed", tampered(headers={"Content-Type": "text/plain"}), "AuthFailure", 401),
    ("a presigned request that has expired", presigned(skew=timedelta(minutes=-5)), "RequestExpired", 400),
    ("a presigned request of the future", presigned(skew=timedelta(minutes=16)), "RequestExpired", 400),
    ("a presigned request that is good for too long", presigned(expires=8 * 86400), "InvalidParameterValue", 400),
    (
        "a presigned request that is good for no number",
        presigned(lambda url: url.replace("X-Amz-Expires=60", "X-Amz-Expires=soon")),
        "InvalidParameterValue",
        400,
    ),
    (
        "a presigned request that is prolonged",
        presigned(lambda url: url.replace("X-Amz-Expires=60", "X-Amz-Expires=600")),
        "AuthFailure",
        401,
    ),
    (
        "another action in a presigned request",
        presigned(lambda url: url.replace("DescribeRegions", "DescribeImages")),
        "AuthFailure",
        401,
    ),
    (
        "a presigned request without a key",
        presigned(lambda url: url.replace("X-Amz-Credential", "X-Amz-Cred")),
        "IncompleteSignature",
        400,
    ),
    # The form.
    ("no action", sent({}), "MissingAction", 400),
    ("no action, by GET", sent({}, method="GET"), "MissingAction", 400),
    ("an empty action", sent({"Action": ""}), "MissingAction", 400),
    ("an unknown action", sent({"Action": "DescribeEverything"}), "InvalidAction", 400),
    ("an unknown action, by GET", sent({"Action": "DescribeEverything"}, method="GET"), "InvalidAction", 400),
    ("an action in another case", sent({"Action": "describeRegions"}), "InvalidAction", 400),
    ("an action with a slash", sent({"Action": "../DescribeRegions"}), "InvalidAction", 400),
    ("an action of a kilobyte", sent({"Action": "x" * 1024}), "InvalidAction", 400),
    ("an action with control characters", sent({"Action": "\x00\x1b\x7f]]>&<"}), "InvalidAction", 400),
    ("no version", sent(REGIONS, version=""), "MissingParameter", 400),
    ("a version that is none", sent(REGIONS, version="latest"), "NoSuchVersion", 400),
    ("two actions", with_body(form(("Action", "DescribeImages"))), "InvalidParameterCombination", 400),
    ("an unknown parameter", sent({**REGIONS, "Colour": "red"}), "UnknownParameter", 400),
    ("a parameter in another case", sent({**REGIONS, "regionName.1": REGION}), "UnknownParameter", 400),
    (
        "a parameter twice",
        with_body(form(("AllRegions", "true"), ("AllRegions", "true"))),
        "InvalidParameterCombination",
        400,
    ),
    (
        "a value and a list",
        with_body(form(("Filter", "x"), ("Filter.1.Name", "x"))),
        "InvalidParameterCombination",
        400,
    ),
    ("a list that begins with 0", sent({**REGIONS, "RegionName.0": REGION}), "UnknownParameter", 400),
    ("a list without a number", sent({**REGIONS, "RegionName.x": REGION}), "UnknownParameter", 400),
    (
        "a list with a huge number",
        sent({**REGIONS, "RegionName.99999999999999999999": REGION}),
        "UnknownParameter",
        400,
    ),
    ("a list that should be a value", sent({**REGIONS, "AllRegions.1": "true"}), "UnknownParameter", 400),
    ("a name of many parts", sent({**REGIONS, ".".join("a" * 500): "x"}), "UnknownParameter", 400),
    ("an empty name", with_body(form(("", "x"))), "UnknownParameter", 400),
    ("a boolean that is none", sent({**REGIONS, "AllRegions": "perhaps"}), "InvalidParameterValue", 400),
    ("DryRun that is no boolean", sent({**REGIONS, "DryRun": "perhaps"}), "InvalidParameterValue", 400),
    ("half a percent", with_body(form() + b"&RegionName.1=%4"), "MalformedQueryString", 400),
    ("a percent of something else", with_body(form() + b"&RegionName.1=%zz"), "MalformedQueryString", 400),
    ("not UTF-8", with_body(form() + b"&RegionName.1=%ff%fe"), "MalformedQueryString", 400),
    ("not UTF-8, not even escaped", with_body(form() + b"&RegionName.1=\xff\xfe"), "MalformedQueryString", 400),
    ("a surrogate", with_body(form() + b"&RegionName.1=%ed%a0%80"), "MalformedQueryString", 400),
    ("a zero in a value", sent({**REGIONS, "RegionName.1": "a\x00b"}), "InvalidParameterValue", 400),
    ("a value that is markup", sent({**REGIONS, "RegionName.1": "]]><a/>&amp;<!--"}), "InvalidParameterValue", 400),
    (
        "a body that is JSON",
        with_body(b'{"Action": "DescribeRegions"}', Content_Type="application/x-amz-json-1.0"),
        "MissingAction",
        400,
    ),
    (
        "a body that is compressed",
        with_body(gzip.compress(form()), Content_Encoding="gzip"),
        "MalformedQueryString",
        400,
    ),
    ("too large a body", with_body(form(("RegionName.1", "x" * (1 << 20)))), "RequestEntityTooLarge", 413),
    (
        "too many parameters",
        with_body(form(*((f"RegionName.{number}", "x") for number in range(1, 20_000)))),
        "InvalidParameterValue",
        400,
    ),
    ("PUT", raw("PUT", "/"), "MethodNotAllowed", 405),
    ("DELETE", raw("DELETE", "/"), "MethodNotAllowed", 405),
    ("another path", raw("GET", "/latest/meta-data"), "MissingAuthenticationToken", 403),
    ("a GET of nothing", raw("GET", "/"), "MissingAuthenticationToken", 403),
]
