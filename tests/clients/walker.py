"""Walks an XML answer against botocore's model of the service, and says what the model does not know.

botocore's own parser drops what it does not know, and takes any text for an enum: an answer can be wrong in
many ways and still be parsed. Here every element has to be a member of the output's shape, every value has to
be of its type, an enum's value has to be one of the model's, and a time has to look as EC2 writes it.
"""

import base64
import binascii
import re
import xml.etree.ElementTree as ElementTree

from botocore.model import OperationModel, Shape

TIME = re.compile(r"\d{4}-(0\d|1[0-2])-([0-2]\d|3[01])T([01]\d|2[0-3]):[0-5]\d:[0-5]\d\.\d{3}Z")
UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
INTEGERS = {"integer": 31, "long": 63}


class Walk:
    """What was found in one answer."""

    def __init__(self):
        self.errors: list[str] = []
        """What is wrong, each with the path of the element."""
        self.leaves: dict[str, str] = {}
        """The elements that have a value, by path: the last value of each. Items of lists share a path."""

    def wrong(self, path: str, reason: str):
        self.errors.append(f"{path}: {reason}")


def walk(operation: OperationModel, body: bytes) -> Walk:
    """Walks an answer that is not an error."""
    found = Walk()
    root = parse(body, found)
    if root is None:
        return found
    namespace, name = split(root.tag)
    # EC2 writes its namespace with a slash at the end, the model without.
    if namespace.rstrip("/") != operation.metadata["xmlNamespace"].rstrip("/"):
        found.wrong(name, f"its namespace is {namespace!r}")
    if name != f"{operation.name}Response":
        found.wrong(name, f"not {operation.name}Response")
    elements, wrapper = list(root), None
    if operation.metadata["protocol"] == "ec2":
        identifiers = [child for child in elements if split(child.tag)[1] == "requestId"]
        elements = [child for child in elements if child not in identifiers]
    else:
        metadata = [child for child in elements if split(child.tag)[1] == "ResponseMetadata"]
        elements = [child for child in elements if child not in metadata]
        identifiers = [child for part in metadata for child in part]
        wrapper = operation.output_shape and operation.output_shape.serialization["resultWrapper"]
    if len(identifiers) != 1 or not UUID.fullmatch(identifiers[0].text or ""):
        found.wrong(name, "it has no request id, or not one that is a UUID")
    if wrapper:
        if [split(child.tag)[1] for child in elements] != [wrapper]:
            found.wrong(name, f"it holds something else than {wrapper}")
        elements = [child for wrapped in elements for child in wrapped]
    if operation.output_shape is None and operation.metadata["protocol"] != "ec2":
        if elements:
            found.wrong(name, f"it should be empty, and has {[split(child.tag)[1] for child in elements]}")
        return found
    if operation.output_shape is None:
        if [(split(child.tag)[1], child.text) for child in elements] != [("return", "true")]:
            found.wrong(name, "it should say <return>true</return> and nothing else")
        else:
            found.leaves["return"] = "true"
        return found
    structure(operation.output_shape, elements, namespace, "", found)
    return found


def walk_error(body: bytes, protocol: str = "ec2") -> Walk:
    """Walks an answer that is an error: EC2's form, with one error in it. `leaves` has Code, Message, RequestID."""
    found = Walk()
    root = parse(body, found)
    if root is None:
        return found
    if protocol == "ec2":
        shape = ("Response", [("Errors", [("Error", [("Code", None), ("Message", None)])]), ("RequestID", None)])
    else:
        shape = (
            "ErrorResponse",
            [("Error", [("Type", None), ("Code", None), ("Message", None)]), ("RequestId", None)],
        )
    exactly(shape, root, "", found)
    if not found.errors and not UUID.fullmatch(
        found.leaves.get("RequestID") or found.leaves.get("RequestId") or ""
    ):
        found.wrong("RequestID", "not a UUID")
    return found


def exactly(shape, element, path: str, found: Walk):
    name, children = shape
    path = f"{path}/{name}" if path else name
    actual = split(element.tag)[1]
    if actual != name:
        found.wrong(path, f"it is {actual}")
    elif children is None:
        if len(element) or not (element.text or "").strip():
            found.wrong(path, "it should have a text")
        found.leaves[name] = element.text or ""
    elif len(children) != len(element):
        found.wrong(path, f"it has {[split(child.tag)[1] for child in element]}")
    else:
        for wanted, child in zip(children, element, strict=True):
            exactly(wanted, child, path, found)


def parse(body: bytes, found: Walk):
    try:
        return ElementTree.fromstring(body)
    except ElementTree.ParseError as error:
        found.wrong("/", f"not XML ({error}): {body[:200]!r}")
        return None


def split(tag: str) -> tuple[str, str]:
    """A tag's namespace and name."""
    namespace, _, name = tag.rpartition("}")
    return namespace.lstrip("{"), name


def structure(shape: Shape, elements, namespace: str, path: str, found: Walk):
    members, flattened = {}, set()
    for name, member in shape.members.items():
        key = member.serialization.get("name", name)
        if member.type_name == "list" and member.serialization.get("flattened"):
            key = member.serialization.get("name") or member.member.serialization.get("name", name)
            flattened.add(key)
        members[key] = member
    seen = set()
    for element in elements:
        space, name = split(element.tag)
        here = f"{path}/{name}" if path else name
        if space != namespace:
            found.wrong(here, f"its namespace is {space!r}")
        if element.attrib:
            found.wrong(here, f"it has attributes: {element.attrib}")
        if (element.tail or "").strip():
            found.wrong(here, f"text after it: {element.tail.strip()!r}")
        if name not in members:
            found.wrong(here, f"{shape.name} has no such member")
            continue
        if name in seen and name not in flattened:
            found.wrong(here, "it is there twice")
        seen.add(name)
        member = members[name]
        value(member.member if name in flattened else member, element, namespace, here, found)
    for name in shape.required_members:
        key = shape.members[name].serialization.get("name", name)
        if key not in seen:
            found.wrong(f"{path}/{key}", f"{shape.name} always has it")


def value(shape: Shape, element, namespace: str, path: str, found: Walk):
    text = element.text or ""
    if shape.type_name in ("structure", "list"):
        if text.strip():
            found.wrong(path, f"text in a {shape.type_name}: {text.strip()!r}")
        if shape.type_name == "structure":
            structure(shape, list(element), namespace, path, found)
            return
        item = shape.member.serialization.get("name", "member")
        for child in element:
            if split(child.tag) != (namespace, item):
                found.wrong(path, f"an element {split(child.tag)[1]} in a list, not {item}")
                continue
            value(shape.member, child, namespace, f"{path}/{item}", found)
        return
    if len(element):
        found.wrong(path, f"elements in a {shape.type_name}")
        return
    problem = scalar(shape, text)
    if problem:
        found.wrong(path, f"{text!r} is not {problem}")
    elif text:
        found.leaves[path] = text


def scalar(shape: Shape, text: str) -> str | None:
    """What a text should have been, unless it is."""
    kind = shape.type_name
    if kind == "string":
        choices = getattr(shape, "enum", None)
        return f"a {shape.name}: {', '.join(choices[:12])}…" if choices and text not in choices else None
    if kind in INTEGERS:
        limit = 1 << INTEGERS[kind]
        return None if re.fullmatch(r"-?(0|[1-9]\d*)", text) and -limit <= int(text) < limit else f"a {kind}"
    if kind == "boolean":
        return None if text in ("true", "false") else "true or false"
    if kind == "timestamp":
        return None if TIME.fullmatch(text) else "a time such as 2026-11-21T10:00:00.000Z"
    if kind in ("float", "double"):
        return None if re.fullmatch(r"-?\d+(\.\d+)?([eE][-+]?\d+)?", text) else "a number"
    if kind == "blob":
        try:
            base64.b64decode(text, validate=True)
        except binascii.Error:
            return "base64"
        return None
    return f"something that this walker knows: a {kind}"
