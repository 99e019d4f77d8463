"""The OpenAPI document of the served API, and a page for people made from it."""

import json
import re
from collections.abc import Mapping
from html import escape
from importlib.metadata import version
from typing import Any

from schemas.last_sync import (
    ERROR_FIELDS,
    LAST_SYNC_FIELDS,
    LAST_SYNC_TIMES,
    MAX_ERROR_BYTES,
    LastSync,
)
from schemas.scalars import MAX_ID_BYTES, STATUSES
from worker.api.errors import ElasticError
from worker.api.requests import KEYWORDS

Json = dict[str, Any]

_LEAP = r"(?:[0-9]{2}(?:0[48]|[2468][048]|[13579][26])|(?:0[48]|[2468][048]|[13579][26])00)-02-29"
_DAY = (
    rf"(?:(?!0000)[0-9]{{4}}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])"
    rf"|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)|02-(?:0[1-9]|1[0-9]|2[0-8]))|{_LEAP})"
)
_CLOCK = r"(?:[01][0-9]|2[0-3])(?::[0-5][0-9](?::[0-5][0-9](?:[.,][0-9]{1,9})?)?)?"
_ZONE = r"(?:Z|[+-](?:0[0-9]|1[0-7])(?::?[0-5][0-9])?)?"
_EPOCH = "[0-9]{1,3}|[0-9]{5,13}"  # milliseconds; four digits are a year
_ANY_CASE = "|".join(
    "".join(f"[{c}{c.upper()}]" if c.isalpha() else c for c in status) for status in STATUSES
)
_ID = {
    "type": "string",
    "minLength": 1,
    "maxLength": MAX_ID_BYTES,
    "pattern": r"^(?!\.{1,2}$)[^\x00-\x1f\x7f-\x9f]+$",
}
_NULLABLE = {"type": ["string", "null"]}
_TEXT = {"type": "string", "pattern": "^[^\\u0000]*$"}

_KINDS: Mapping[str, Json] = {
    **{
        name: {"type": ["string", "null"], "pattern": f"^(?:{_ANY_CASE})$"}
        for name in LAST_SYNC_FIELDS
    },
    **{
        name: {**_TEXT, "type": ["string", "null"], "maxLength": MAX_ERROR_BYTES}
        for name in ERROR_FIELDS
    },
    **{
        name: {"type": ["string", "null"], "pattern": f"^(?:{_DAY}T{_CLOCK}{_ZONE}|{_EPOCH})$"}
        for name in LAST_SYNC_TIMES
    },
    **{
        name: {
            "anyOf": [
                {"type": "integer", "minimum": 0, "maximum": 2**63 - 1},
                {"type": "number", "exclusiveMinimum": -1, "maximum": 2**53},
                {"type": "string", "pattern": "^[0-9]{1,18}$"},
            ]
        }
        for name in ("last_deleted_document_count", "last_indexed_document_count")
    },
    "sync_cursor": {"anyOf": [{"$ref": "#/components/schemas/CursorObject"}, {"type": "null"}]},
}


def _last_sync() -> Json:
    texts = {name: str(LastSync.model_fields[name].description) for name in LAST_SYNC_FIELDS}
    properties = {  # null is for events; here it leaves alone
        name: {**_KINDS[name], "description": texts[name].replace("null clears", '`""` clears')}
        for name in LAST_SYNC_FIELDS
    }
    return {
        "type": "object",
        "properties": properties,
        "additionalProperties": False,
        "description": "The stats to set; what is left out, or null, is left alone.",
        "examples": [{"last_sync_status": "completed", "last_synced": "2024-11-09T15:13:08.231Z"}],
    }


def _registration() -> Json:
    texts = {
        "description": "What the connector is for.",
        "language": "The analyzer of its index.",
        "name": "Its name, for people.",
        "service_type": "The kind of source, such as sharepoint_online.",
    }
    index = {
        "type": ["string", "null"],
        "pattern": "^content-[a-z0-9]{1,40}$",
        "description": "The index that it fills; no two connectors fill the same.",
    }
    native = {"enum": [True, False, "true", "false"], "description": "Does Elastic run it?"}
    short = {**_TEXT, "maxLength": MAX_ERROR_BYTES}
    properties: Json = {
        name: {**(short if name in KEYWORDS else _TEXT), "description": text}
        for name, text in texts.items()
    } | {
        "index_name": index,
        "is_native": native,
    }
    return {"type": "object", "properties": properties, "additionalProperties": False}


def _object(required: Mapping[str, Json]) -> Json:
    return {"type": "object", "properties": dict(required), "required": list(required)}


_CAUSE = _object({"type": {"type": "string"}, "reason": {"type": "string"}})
_CURSOR_VALUE: Json = {"$ref": "#/components/schemas/CursorValue"}
_SCHEMAS: Json = {
    "CursorObject": {
        "type": "object",
        "propertyNames": _TEXT,
        "additionalProperties": _CURSOR_VALUE,
        "description": "Any JSON without NUL, nested 64 deep at most with the body around it.",
    },
    "CursorValue": {
        "anyOf": [
            {"type": ["boolean", "null", "number"]},
            _TEXT,
            {"type": "array", "items": _CURSOR_VALUE},
            {"$ref": "#/components/schemas/CursorObject"},
        ]
    },
    "LastSync": _last_sync(),
    "Registration": _registration(),
    "Result": _object({"result": {"enum": ["updated", "noop"]}}),
    "Registered": _object({"id": {"type": "string"}, "result": {"enum": ["created", "updated"]}}),
    "Acknowledged": _object({"acknowledged": {"const": True}}),
    "Connector": _object(
        {
            "id": {"type": "string"},
            "name": {"type": "string"},
            "index_name": _NULLABLE,
            "description": _NULLABLE,
            "service_type": _NULLABLE,
            "language": _NULLABLE,
            "is_native": {"type": "boolean"},
            "status": {"enum": ["created", "needs_configuration"]},
        }
    ),
    "Connectors": _object(
        {
            "count": {"type": "integer", "minimum": 0},
            "results": {"type": "array", "items": {"$ref": "#/components/schemas/Connector"}},
        }
    ),
    "Info": _object(
        {
            "name": {"type": "string"},
            "cluster_name": {"type": "string"},
            "cluster_uuid": {"type": "string"},
            "version": _object({"number": {"type": "string"}, "build_flavor": {"type": "string"}}),
            "tagline": {"type": "string"},
        }
    ),
    "Health": _object({"status": {"type": "string"}}),
    "Error": _object(
        {
            "error": {
                **_object(
                    {
                        "root_cause": {"type": "array", "items": _CAUSE},
                        "type": {"type": "string"},
                        "reason": {"type": "string"},
                    }
                ),
                "description": "`caused_by` has the same two fields, where there is a cause.",
            },
            "status": {"type": "integer"},
        }
    ),
    "PlainError": _object({"error": {"type": "string"}}),
}


def _content(name: str) -> Json:
    schema = {"schema": {"$ref": f"#/components/schemas/{name}"}}
    return {
        "application/json": schema,
        "application/vnd.elasticsearch+json;compatible-with=8": schema,
        "application/vnd.elasticsearch+json;compatible-with=9": schema,
    }


_ERRORS = {
    "400": ("Error", "The request is not valid."),
    "401": ("Error", "No API key, or one that is not known."),
    "405": ("PlainError", "The path knows other methods; `Allow` names them."),
    "406": ("PlainError", "The body is not JSON."),
    "408": ("Error", "The body took too long."),
    "413": ("Error", "The body is longer than 1 MiB."),
    "415": ("Error", "The body is compressed, and not by gzip."),
    "500": ("Error", "The server failed; its log says why."),
    "503": ("Error", "The connector store is away, or too many call at once (then in text)."),
}


def _answers(*good: tuple[str, str, str], missing: bool = False) -> Json:
    answers = {"404": ("Error", "There is no such connector."), **_ERRORS}
    if not missing:
        del answers["404"]
    found: Json = {
        status: {"description": text, "content": _content(name)} for status, name, text in good
    }
    found |= {
        status: {"description": text, "content": _content(name)}
        for status, (name, text) in answers.items()
    }
    found["503"]["content"] |= {"text/plain": {"schema": {"type": "string"}}}
    return found


def _body(name: str, *, required: bool) -> Json:
    schema = {"$ref": f"#/components/schemas/{name}"}
    return {"required": required, "content": {"application/json": {"schema": schema}}}


def _query(name: str, schema: Json, text: str) -> Json:
    return {"name": name, "in": "query", "schema": schema, "description": text}


_ID_PARAMETER: Json = {
    "name": "id",
    "in": "path",
    "required": True,
    "schema": _ID,
    "description": "The connector's id: up to 512 bytes of UTF-8, percent-encoded.",
}
_FLAG: Json = {"enum": ["true", "false", ""]}
_INCLUDE_DELETED = _query("include_deleted", _FLAG, "Accepted; none is ever shown.")
_WINDOW: Json = {"type": "integer", "minimum": 0, "maximum": 10_000}
_NAMES: Json = {"type": "string"}
_CREATED = (
    ("201", "Registered", "The connector is new."),
    ("200", "Registered", "The connector was known: it is replaced, its stats are cleared."),
)

PATHS: Json = {
    "/_connector/{id}/_last_sync": {
        "parameters": [_ID_PARAMETER],
        "put": {
            "operationId": "lastSync",
            "summary": "Set last-sync stats",
            "description": "Wins over every event from before, and loses to later ones.",
            "requestBody": _body("LastSync", required=True),
            "responses": _answers(
                ("200", "Result", "`noop` where no value changed."), missing=True
            ),
        },
    },
    "/_connector/{id}": {
        "parameters": [_ID_PARAMETER],
        "put": {
            "operationId": "put",
            "summary": "Register or replace a connector",
            "requestBody": _body("Registration", required=False),
            "responses": _answers(*_CREATED),
        },
        "get": {
            "operationId": "get",
            "summary": "Read a connector",
            "parameters": [_INCLUDE_DELETED],
            "responses": _answers(("200", "Connector", "The connector."), missing=True),
        },
        "delete": {
            "operationId": "delete",
            "summary": "Delete a connector",
            "parameters": [
                _query("hard", _FLAG, "Accepted: late events must lose either way."),
                _query("delete_sync_jobs", _FLAG, "Accepted: there are none."),
            ],
            "responses": _answers(("200", "Acknowledged", "It is deleted."), missing=True),
        },
    },
    "/_connector": {
        "get": {
            "operationId": "list",
            "summary": "List connectors, sorted by index name",
            "parameters": [
                _query("from", _WINDOW, "Skip so many; with `size` at most 10,000."),
                _query("size", _WINDOW, "At most so many; 100 by default."),
                _query("index_name", _NAMES, "Only these, comma-separated."),
                _query("connector_name", _NAMES, "Only these, comma-separated."),
                _query("service_type", _NAMES, "Only these, comma-separated."),
                _query(
                    "query",
                    {"type": "string"},
                    "In index name, name or description; `*` and `?` are wildcards.",
                ),
                _INCLUDE_DELETED,
            ],
            "responses": _answers(("200", "Connectors", "How many, and a page of them.")),
        },
        "post": {
            "operationId": "post",
            "summary": "Register a connector under a new id",
            "requestBody": _body("Registration", required=False),
            "responses": _answers(*_CREATED),
        },
        "put": {
            "operationId": "putWithoutId",
            "summary": "The same",
            "requestBody": _body("Registration", required=False),
            "responses": _answers(*_CREATED),
        },
    },
    "/": {
        "get": {
            "operationId": "info",
            "summary": "What clients ask first",
            "responses": _answers(("200", "Info", "Name and version.")),
        },
        "head": {
            "operationId": "ping",
            "summary": "Ask whether anybody is there",
            "responses": {
                "200": {"description": "Yes."},
                "401": {"description": "No API key, or one that is not known."},
                "400": {"description": "The request is not valid."},
            },
        },
    },
    "/_health": {
        "get": {
            "operationId": "health",
            "summary": "Ask whether the store answers",
            "security": [],
            "responses": {
                status: {"description": text, "content": _content("Health")}
                for status, text in {"200": "It does.", "503": "It does not."}.items()
            }
            | {"400": {"description": "The request is not valid.", "content": _content("Error")}},
        }
    },
}

DOCUMENT: Json = {
    "openapi": "3.1.0",
    "info": {
        "title": "last-sync: the connector API",
        "version": version("last-sync-worker"),
        "description": "The part of Elasticsearch's connector API that last-sync stats need, over"
        " a SQL store. Answers are Elasticsearch's own; where they differ, docs/api.md says so.",
        "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
    },
    "security": [{}, {"apiKey": []}],
    "paths": PATHS,
    "components": {
        "schemas": _SCHEMAS,
        "securitySchemes": {
            "apiKey": {
                "type": "apiKey",
                "in": "header",
                "name": "Authorization",
                "description": "`ApiKey` and one of the keys of LAST_SYNC_API_KEY.",
            }
        },
    },
}


_EXAMPLE_ERROR = ElasticError(
    404, "resource_not_found_exception", "connector [my-connector] not found"
).body()


def _page() -> str:
    sections = [
        _section(path, method, operation)
        for path, operations in PATHS.items()
        for method, operation in operations.items()
        if method != "parameters"
    ]
    tables = [_fields(name) for name in ("LastSync", "Registration")]
    info = DOCUMENT["info"]
    style = (
        "body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}"
        "code{background:#8882;padding:0 .3em}td,th{text-align:left;vertical-align:top;"
        "padding:.2em 1em .2em 0}@media(prefers-color-scheme:dark){"
        "body{background:#111;color:#ddd}}"
    )
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{info["title"]}</title>'
        f"<style>{style}</style><h1>{info['title']}</h1><p>{_marked(info['description'])}</p>"
        f'<p>For programs: <a href="/openapi.json">openapi.json</a>.</p>{"".join(sections)}'
        f"{''.join(tables)}<h2>Errors</h2>{_table([(s, text) for s, (_, text) in _ERRORS.items()])}"
        f"<pre>{escape(json.dumps(_EXAMPLE_ERROR, indent=2))}</pre></html>"
    )


def _section(path: str, method: str, operation: Json) -> str:
    text = _marked(operation.get("description", ""))
    rows = [
        (parameter["name"], parameter["description"])
        for parameter in operation.get("parameters", [])
    ]
    answers = [
        (status, each["description"])
        for status, each in operation["responses"].items()
        if status not in _ERRORS
    ]
    body = operation.get("requestBody", {}).get("content", {}).get("application/json")
    if body:
        rows.append(("body", f"`{body['schema']['$ref'].rpartition('/')[2]}`, as below"))
    return (
        f"<h2><code>{method.upper()} {escape(path)}</code></h2><p>{escape(operation['summary'])}."
        f" {text}</p>{_table(rows)}{_table(answers)}"
    )


def _fields(name: str) -> str:
    properties = _SCHEMAS[name]["properties"]
    rows = [(field, found["description"]) for field, found in properties.items()]
    return f"<h2>{name}</h2>{_table(rows)}"


def _table(rows: list[tuple[str, str]]) -> str:
    cells = "".join(f"<tr><th>{escape(a)}</th><td>{_marked(b)}</td></tr>" for a, b in rows)
    return f"<table>{cells}</table>" if rows else ""


def _marked(text: str) -> str:
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text))


PAGE = _page()
