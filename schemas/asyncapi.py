"""The AsyncAPI document of the two topics."""

from typing import Any

from schemas import cloud_events, json_schema
from schemas.json_schema import DIALECT, STORABLE, Schema
from schemas.scalars import ID_JSON

FORMAT = "application/schema+json;version=draft-2020-12"
BINDING_VERSION = "0.5.0"
DELETE_RETENTION_MS = 30 * 24 * 3600 * 1000

_STORABLE_HERE = "#/components/schemas/storable"


def asyncapi() -> Schema:
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "last-sync",
            "version": "1.0.0",
            "description": "Connector services publish sync-finished events; the last-sync worker "
            "keeps each connector's last-sync stats, and sets aside what it cannot apply.",
            "license": {"name": "Apache-2.0"},
        },
        "defaultContentType": "application/json",
        "channels": {"syncFinished": _events(), "deadLetters": _letters()},
        "operations": {
            "receiveSyncFinished": _operation("receive", "syncFinished", "Apply events."),
            "sendDeadLetter": _operation(
                "send", "deadLetters", "Set aside what cannot be applied."
            ),
        },
        "components": {"schemas": {"storable": _here(json_schema.storable())}},
    }


def _operation(action: str, channel: str, summary: str) -> Schema:
    return {"action": action, "channel": {"$ref": f"#/channels/{channel}"}, "summary": summary}


def _events() -> Schema:
    return {
        "address": "connector.sync-finished",
        "title": "Sync-finished events",
        "description": "One event a record, in any of three framings, told apart by headers.",
        "messages": {"plain": _plain(), "structured": _structured(), "binary": _binary()},
        "bindings": _topic({"cleanup.policy": ["delete"]}),
    }


def _letters() -> Schema:
    compacted = {"cleanup.policy": ["compact"], "delete.retention.ms": DELETE_RETENTION_MS}
    return {
        "address": "connector.sync-finished.dlq",
        "title": "Dead letters",
        "description": "A table of open letters: a record opens one, a record without a value "
        "closes it.",
        "messages": {"deadLetter": _letter(), "resolution": _resolution()},
        "bindings": _topic(compacted),
    }


def _topic(configuration: Schema) -> Schema:
    return {"kafka": {"topicConfiguration": configuration, "bindingVersion": BINDING_VERSION}}


def _plain() -> Schema:
    return _message(
        "Plain JSON",
        "application/json",
        headers={"type": "object", "not": {"required": ["ce_id"]}},
        payload=json_schema.event(),
        key=_connector(),
    )


def _structured() -> Schema:
    attributes = json_schema.cloud_event_attributes()
    subject = {"anyOf": [attributes.pop("subject"), {"type": "null"}]}
    members = {**attributes, "subject": subject, "data_base64": {"type": "null"}}
    return _message(
        "CloudEvent in structured mode",
        cloud_events.STRUCTURED,
        headers=_headers({"content-type": {"type": "string", "pattern": _media_type()}}),
        payload={
            "type": "object",
            "required": [*attributes, "data"],
            "properties": {**members, "data": json_schema.event_data()},
        },
        key=_connector(),
    )


def _media_type() -> str:
    """Match the media type in any letter case, with or without parameters."""
    letters = cloud_events.STRUCTURED.replace("+", "[+]")
    either = "".join(f"[{c.upper()}{c}]" if c.isalpha() else c for c in letters)
    return f"^ *{either} *(?:;.*)?$"


def _binary() -> Schema:
    attributes = {
        cloud_events.PREFIX + name: schema
        for name, schema in json_schema.cloud_event_attributes().items()
    }
    required = [name for name in attributes if name != "ce_subject"]
    return _message(
        "CloudEvent in binary mode",
        "application/json",
        headers={**_headers(attributes), "required": required},
        payload=json_schema.event_data(),
        key=_connector(),
    )


def _letter() -> Schema:
    value = {"type": "string", "description": "The original record's value, bytes unchanged."}
    return _message(
        "Dead letter",
        "application/octet-stream",
        headers=json_schema.letter_headers(),
        payload=value,
        key=json_schema.LETTER_ID,
    )


def _resolution() -> Schema:
    return _message(
        "Resolution of a dead letter",
        "application/octet-stream",
        headers=json_schema.tombstone_headers(),
        payload={"type": "null", "description": "A tombstone: the letter is closed."},
        key=json_schema.LETTER_ID,
    )


def _headers(properties: Schema) -> Schema:
    return {"type": "object", "required": list(properties), "properties": properties}


def _connector() -> Schema:
    return {**ID_JSON, "description": "The connector's id: keeps its events in one partition."}


def _message(
    title: str, content_type: str, *, headers: Schema, payload: Schema, key: Schema
) -> Schema:
    return {
        "title": title,
        "contentType": content_type,
        "headers": _multi_format(headers),
        "payload": _multi_format(payload),
        "bindings": {"kafka": {"key": key, "bindingVersion": BINDING_VERSION}},
    }


def _multi_format(schema: Schema) -> Schema:
    return {"schemaFormat": FORMAT, "schema": {"$schema": DIALECT, **_here(schema)}}


def _here(node: Any) -> Any:
    """Point references to this document's components."""
    if isinstance(node, dict):
        moved = {key: _here(value) for key, value in node.items()}
        return {"$ref": _STORABLE_HERE} if node.get("$ref") == STORABLE else moved
    return [_here(item) for item in node] if isinstance(node, list) else node
