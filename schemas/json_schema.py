"""The JSON Schemas of the contract, derived from the models that enforce it.

A schema accepts whatever the worker accepts. The worker refuses more: what lies between two
fields or outside of JSON's data model (clocks, ids in bytes, repeated names) no schema can say.
"""

from typing import Any

from schemas.dead_letter import PREFIX
from schemas.last_sync import LastSync
from schemas.reasons import REASONS
from schemas.scalars import ID_JSON, TEXT_JSON, TIME_JSON
from schemas.sync_finished import SyncFinished

Schema = dict[str, Any]

DIALECT = "https://json-schema.org/draft/2020-12/schema"

STORABLE = "#/$defs/storable"
_ANY_MEMBERS: Schema = {"propertyNames": TEXT_JSON, "additionalProperties": {"$ref": STORABLE}}

_DECIMAL: Schema = {"type": "string", "pattern": "^(?:0|[1-9][0-9]*)$"}
_BASE64: Schema = {"type": "string", "contentEncoding": "base64"}
_TEXT: Schema = {"type": "string"}
_LETTER_HEADERS: dict[str, tuple[Schema, str]] = {
    "topic": (_TEXT, "Topic of the original record."),
    "partition": (_DECIMAL, "Partition of the original record."),
    "offset": (_DECIMAL, "Offset of the original record."),
    "group": (_TEXT, "Consumer group that could not apply it."),
    "delivery.count": ({"const": "1"}, "Always 1: a letter is written once."),
    "message": (_TEXT, "What was wrong, for people."),
    "reason": ({"enum": list(REASONS)}, "What was wrong, for programs."),
    "status": ({"enum": ["400", "404"]}, "404: no such connector; 400: anything else."),
    "timestamp": (
        {"type": "string", "pattern": "^(?:-1|0|[1-9][0-9]*)$"},
        "The original record's timestamp in milliseconds, -1 for none.",
    ),
    "failed_at": (TIME_JSON, "When the letter was written."),
    "store": (_TEXT, "Id of the store that the event was meant for."),
    "key": (_BASE64, "The original record's key, raw bytes; absent for a null key."),
    "connector_id": (ID_JSON, "The connector that the event is about, where that is known."),
    "value_null": ({"const": "true"}, "The original record had no value."),
    "headers_dropped": (_DECIMAL, "How many original headers were left out."),
    "value_size": (_DECIMAL, "Bytes of the original value, of which the letter has the beginning."),
    "value_sha256": (
        {"type": "string", "pattern": "^[0-9a-f]{64}$"},
        "SHA-256 of the whole original value.",
    ),
    "key_size": (_DECIMAL, "Bytes of the original key, of which the letter has the beginning."),
}
_OPTIONAL_HEADERS = {
    "key",
    "connector_id",
    "value_null",
    "headers_dropped",
    "value_size",
    "value_sha256",
    "key_size",
}

JOB_EXAMPLE: Schema = {
    "id": "j-1",
    "job_type": "full",
    "status": "completed",
    "error": None,
    "scheduled_at": "2024-11-09T15:00:00Z",
    "started_at": "2024-11-09T15:00:01.118Z",
    "completed_at": "2024-11-09T15:13:08.112Z",
    "indexed_document_count": 42,
    "deleted_document_count": 7,
}
PAYLOAD_EXAMPLE: Schema = {
    "last_sync_status": "error",
    "last_sync_error": "the source does not answer",
    "last_indexed_document_count": 42,
}
ENVELOPE_EXAMPLE: Schema = {
    "event_id": "01JCB3ZQ4V8ZR3W9T1K5M7N2P6",
    "connector_id": "my-connector",
    "occurred_at": "2024-11-09T15:13:08.231Z",
}


def sync_finished() -> Schema:
    return {
        **_head("sync-finished", "Sync-finished event"),
        "description": "The state of a connector's sync changed. Carries either the sync job's "
        "own record or the last-sync fields to set.",
        **event(),
        "$defs": {"storable": storable()},
        "examples": [
            {**ENVELOPE_EXAMPLE, "job": JOB_EXAMPLE},
            {**ENVELOPE_EXAMPLE, "last_sync": PAYLOAD_EXAMPLE},
        ],
    }


def last_sync() -> Schema:
    return {
        **_head("last-sync", "Last-sync stats"),
        "description": "The fields that PUT _connector/<connector_id>/_last_sync takes. A field "
        "left out is left alone; null clears the two error fields and nothing else.",
        **_model(LastSync),
        "$defs": {"storable": storable()},
        "examples": [PAYLOAD_EXAMPLE],
    }


def dead_letter() -> Schema:
    return {
        **_head("dead-letter", "Dead letter"),
        "description": "A record of the dead-letter topic as one document. Here raw bytes are "
        "written in base64; on the topic they stand as they are.",
        "type": "object",
        "required": ["key", "value", "headers"],
        "additionalProperties": False,
        "properties": {
            "key": {
                **LETTER_ID,
                "description": "The letter's id: group/topic/partition/offset@timestamp.",
            },
            "value": {**_BASE64, "description": "The original record's value, bytes unchanged."},
            "headers": letter_headers(),
        },
        "examples": [LETTER_EXAMPLE],
    }


LETTER_ID: Schema = {
    "type": "string",
    "pattern": "^[^/]*(?:/[^/]*)*/[^/]+/(?:0|[1-9][0-9]*)/(?:0|[1-9][0-9]*)@(?:-1|0|[1-9][0-9]*)$",
}
LETTER_EXAMPLE: Schema = {
    "key": "last-sync-worker/connector.sync-finished/3/1207@1731165188231",
    "value": "e30=",
    "headers": {
        f"{PREFIX}topic": "connector.sync-finished",
        f"{PREFIX}partition": "3",
        f"{PREFIX}offset": "1207",
        f"{PREFIX}group": "last-sync-worker",
        f"{PREFIX}delivery.count": "1",
        f"{PREFIX}message": "event_id is missing: add the field",
        f"{PREFIX}reason": "missing_field",
        f"{PREFIX}status": "400",
        f"{PREFIX}key": "bXktY29ubmVjdG9y",
        f"{PREFIX}timestamp": "1731165188231",
        f"{PREFIX}failed_at": "2024-11-09T15:20:01.234567Z",
        f"{PREFIX}store": "5f0c9a52-6a0c-4a58-9d0f-b9f2f60a3f50",
    },
}


def letter_headers() -> Schema:
    """Describe the headers of a dead letter; the original record's stand beside them."""
    return {
        "type": "object",
        "description": "What is wrong, and the original record's headers.",
        "required": [PREFIX + name for name in _LETTER_HEADERS if name not in _OPTIONAL_HEADERS],
        "properties": {
            PREFIX + name: {**schema, "description": description}
            for name, (schema, description) in _LETTER_HEADERS.items()
        },
        "patternProperties": {"^__dlq[.]": True},
        "additionalProperties": {"type": ["string", "null"], "contentEncoding": "base64"},
    }


def tombstone_headers() -> Schema:
    """Describe the headers of the record that closes a letter."""
    closing = ["applied", "superseded", "duplicate", "discarded", "edited"]
    kinds = {"by": _TEXT, "how": {"enum": closing}, "at": TIME_JSON, "reason": _TEXT}
    properties = {f"__dlq.resolved.{name}": schema for name, schema in kinds.items()}
    return {"type": "object", "required": list(properties), "properties": properties}


def event() -> Schema:
    """Describe the event as it stands in plain JSON."""
    required = ["event_id", "connector_id", "occurred_at"]
    return {"required": required, **_either_payload(_model(SyncFinished))}


def event_data() -> Schema:
    """Describe the event as it stands in a CloudEvent, whose attributes are its envelope."""
    schema = _either_payload(_model(SyncFinished))
    properties = schema["properties"]
    del properties["event_id"], properties["occurred_at"]
    connector_id = properties["connector_id"]
    properties["connector_id"] = {
        "description": "The connector, unless the subject names it; if both do, they agree.",
        "anyOf": [{"type": "null"}, connector_id],
    }
    return schema


def _either_payload(schema: Schema) -> Schema:
    job, last_sync = (
        {"required": [name], "properties": {name: {"type": "object"}, other: {"type": "null"}}}
        for name, other in (("job", "last_sync"), ("last_sync", "job"))
    )
    payload = next(n for n in schema["properties"]["last_sync"]["anyOf"] if n["type"] == "object")
    payload["minProperties"] = 1
    return {**schema, "oneOf": [job, last_sync]}


def storable() -> Schema:
    """Describe any JSON value without U+0000, for fields that only the publisher knows."""
    return {
        "anyOf": [
            {"type": ["null", "boolean", "number"]},
            TEXT_JSON,
            {"type": "array", "items": {"$ref": STORABLE}},
            {"type": "object", **_ANY_MEMBERS},
        ]
    }


def cloud_event_attributes() -> dict[str, Schema]:
    """Describe the attributes that the worker reads of a CloudEvent, all but the data."""
    text = {"type": "string", "minLength": 1}
    return {
        "specversion": {"const": "1.0"},
        "id": {**ID_JSON, "description": "Names the event together with source."},
        "source": {**ID_JSON, "description": "Who publishes."},
        "type": {**text, "description": "Any text: the topic says what its events are."},
        "time": {**TIME_JSON, "description": "When the status changed."},
        "subject": {**ID_JSON, "description": "The connector, unless the data names it."},
    }


def _head(name: str, title: str) -> Schema:
    return {"$schema": DIALECT, "$id": f"urn:last-sync-worker:schema:{name}", "title": title}


def _model(model: type[LastSync | SyncFinished]) -> Schema:
    schema = model.model_json_schema()
    inlined: Schema = _inlined(schema, schema.get("$defs", {}))
    del inlined["description"]
    inlined.pop("required", None)
    return inlined


def _inlined(node: Any, definitions: Schema) -> Any:
    """Put definitions where they are used, leave out Python's defaults, and forbid U+0000."""
    if isinstance(node, list):
        return [_inlined(item, definitions) for item in node]
    if not isinstance(node, dict):
        return node
    if "$ref" in node:
        return _inlined(definitions[node["$ref"].rpartition("/")[2]], definitions)
    dropped = {"$defs", "default"} | ({"title"} if isinstance(node.get("title"), str) else set())
    kept = {key: _inlined(value, definitions) for key, value in node.items() if key not in dropped}
    return {**_ANY_MEMBERS, **kept} if node.get("type") == "object" else kept
