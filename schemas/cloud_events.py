"""CloudEvents 1.0 on Kafka: which framing a record has, and the event inside it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import ValidationError
from pydantic_core import SchemaValidator

from schemas.document import joined, shown
from schemas.reasons import REASONS, Invalid
from schemas.scalars import ID

Framing = Literal["plain", "structured", "binary"]
Headers = Sequence[tuple[str, bytes | None]]

CONTENT_TYPE = "content-type"
PREFIX = "ce_"
STRUCTURED = "application/cloudevents+json"
BATCH = "application/cloudevents-batch"
FORMATS = "application/cloudevents"
EVENT_TYPE = "connector.sync-finished"
SPEC_VERSION = "1.0"

_valid_id = SchemaValidator(ID.core).validate_python


@dataclass(frozen=True, slots=True)
class Frame:
    """How a record is to be read; `attributes` are those that stand in the headers."""

    framing: Framing
    attributes: Mapping[str, str] = field(default_factory=dict)


PLAIN = Frame("plain")


@dataclass(frozen=True, slots=True)
class Envelope:
    """An event's fields wherever they stood; `paths` says where, for what is wrong with them."""

    fields: dict[str, Any]
    paths: Mapping[str, str]
    source: str


def frame(headers: Headers) -> Frame | Invalid:
    """Choose the framing: the content type decides, else any ce_* header means binary."""
    media = _media_type(headers)
    if isinstance(media, Invalid):
        return media
    if media == STRUCTURED:
        return Frame("structured")
    if media.startswith(BATCH):
        found = f"the content type is {shown(media)}"
        return _refused("cloudevents_batch", _at(CONTENT_TYPE), found)
    if media.startswith(FORMATS):
        found = f"the content type is {shown(media)}"
        return _refused("unsupported_content_type", _at(CONTENT_TYPE), found)
    attributes = _attributes(headers)
    if isinstance(attributes, Invalid):
        return attributes
    return Frame("binary", attributes) if attributes else PLAIN


def _media_type(headers: Headers) -> str | Invalid:
    values = set()
    for name, raw in headers:
        if name.lower() == CONTENT_TYPE:
            value = _header_text(name, raw)
            if isinstance(value, Invalid):
                return value
            values.add(value.strip().lower())
    if len(values) > 1:
        found = f"content-type is {' and '.join(shown(value) for value in sorted(values)[:2])}"
        return _refused("content_type_conflict", _at(CONTENT_TYPE), found)
    return values.pop().partition(";")[0].strip() if values else ""


def _attributes(headers: Headers) -> dict[str, str] | Invalid:
    attributes: dict[str, str] = {}
    for name, raw in headers:
        attribute = name.lower()
        if not attribute.startswith(PREFIX):
            continue
        value = _header_text(name, raw)
        if isinstance(value, Invalid):
            return value
        if attribute in attributes:
            found = f"the header {shown(name)} stands more than once"
            return _refused("repeated_header", _at(attribute), found)
        attributes[attribute] = value
    return {name.removeprefix(PREFIX): value for name, value in attributes.items()}


def _header_text(name: str, raw: bytes | None) -> str | Invalid:
    path = _at(name.lower())
    if raw is None:
        return _refused("null_header", path, f"the header {shown(name)} has no value")
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return _refused("header_not_utf8", path, f"the header {shown(name)} is not UTF-8")


def opened(frame: Frame, document: Any) -> Envelope | Invalid:
    """Take the event out of its CloudEvent."""
    if frame.framing == "binary":
        return _opened(frame.attributes, document, headers=True)
    if not isinstance(document, dict):
        found = f"the value is {shown(document)}"
        return _refused("not_an_object", "", found)
    attributes = {name: value for name, value in document.items() if value is not None}
    if "data_base64" in attributes:
        return _refused("binary_data", "data_base64", "the CloudEvent has data_base64")
    if "data" not in attributes:
        return _refused("missing_data", "data", "the CloudEvent has no data")
    return _opened(attributes, attributes["data"], headers=False)


def _opened(attributes: Mapping[str, Any], data: Any, *, headers: bool) -> Envelope | Invalid:
    where = _paths(attributes, headers=headers)
    problem = _attribute_problem(attributes, where) or _data_problem(attributes, data, where)
    if problem is not None:
        return problem
    fields = {name: data[name] for name in ("job", "last_sync") if name in data}
    fields["event_id"] = attributes["id"]
    fields["occurred_at"] = attributes["time"]
    connector_id = attributes.get("subject", data.get("connector_id"))
    if connector_id is not None:
        fields["connector_id"] = connector_id
    return Envelope(fields, where, attributes["source"])


def _paths(attributes: Mapping[str, Any], *, headers: bool) -> dict[str, str]:
    """Say where each attribute, and each field of the event, stands in the record."""
    names = ("specversion", "id", "source", "type", "time", "subject")
    where = {name: _at(PREFIX + name) if headers else name for name in names}
    inside = "" if headers else "data"
    where |= {name: joined(inside, name) for name in ("job", "last_sync")}
    where |= {"data": inside, "event_id": where["id"], "occurred_at": where["time"]}
    connector = joined(inside, "connector_id")
    return where | {"connector_id": where["subject"] if "subject" in attributes else connector}


def _attribute_problem(attributes: Mapping[str, Any], where: Mapping[str, str]) -> Invalid | None:
    for name in ("specversion", "id", "source", "type", "time"):
        path = where[name]
        if name not in attributes:
            reason = "missing_time" if name == "time" else "missing_field"
            return _refused(reason, path, f"the CloudEvent has no {name}")
        found = f"{path} is {shown(attributes[name])}"
        if name == "specversion" and attributes[name] != SPEC_VERSION:
            return _refused("invalid_specversion", path, found)
        if name == "type" and not (isinstance(attributes[name], str) and attributes[name]):
            return _refused("invalid_type", path, found)
        if name in {"id", "source"} and not is_id(attributes[name]):
            return _refused("invalid_id", path, found)
    return None


def _data_problem(
    attributes: Mapping[str, Any], data: Any, where: Mapping[str, str]
) -> Invalid | None:
    if not isinstance(data, dict):
        found = f"{where['data'] or 'the value'} is {shown(data)}"
        return _refused("not_an_object", where["data"], found)
    subject, inside = attributes.get("subject"), data.get("connector_id")
    if subject is not None and inside is not None and subject != inside:
        found = f"the subject is {shown(subject)}, connector_id is {shown(inside)}"
        return _refused("connector_id_conflict", where["subject"], found)
    return None


def claimed_connector(frame: Frame, document: Any) -> str | None:
    """Give the connector that a refused record is about, where that can be told."""
    attributes: Any = document if frame.framing == "structured" else frame.attributes
    inside = document
    if frame.framing == "structured" and isinstance(document, dict):
        inside = document.get("data")
    claims = [(attributes, "subject"), (inside, "connector_id")]
    if frame.framing == "plain":
        claims = claims[1:]
    found = {_claim(node, name) for node, name in claims} - {None}
    return found.pop() if len(found) == 1 else None


def _claim(node: Any, name: str) -> str | None:
    value = node.get(name) if isinstance(node, dict) else None
    return value if is_id(value) else None


def is_id(value: object) -> bool:
    try:
        _valid_id(value)
    except ValidationError:
        return False
    return True


def _at(header: str) -> str:
    return joined("headers", header)


def _refused(reason: str, path: str, found: str) -> Invalid:
    return Invalid(reason, path, f"{found}: {REASONS[reason].fix}")
