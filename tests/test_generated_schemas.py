"""The JSON Schemas and the AsyncAPI document: fresh, valid, and in agreement with the worker."""

import base64
import copy
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import (  # type: ignore[import-untyped]  # it has no types of its own
    Draft7Validator,
    Draft202012Validator,
)
from pydantic import JsonValue

from schemas import generate
from schemas.dead_letter import DeadLetter
from schemas.last_sync import LAST_SYNC_FIELDS, LastSync, SyncJob
from schemas.reasons import REASONS
from schemas.sync_finished import Invalid, SyncFinished, decode, microseconds
from tests.test_dead_letter import LETTER
from tests.test_sync_finished import (
    CLOUD_EVENT,
    ELASTIC,
    EVENT,
    FROM_STORE,
    JOB,
    JSON,
    NO_IDS,
    NO_TIMES,
    NOW,
    STRUCTURED,
    TEXTS,
    TIMES,
    changed,
    events,
)

DATA = Path(__file__).parent / "data"
DOCUMENTS = generate.documents()
ASYNCAPI = DOCUMENTS["asyncapi"]


def validator(schema: dict[str, Any]) -> Draft202012Validator:
    return Draft202012Validator(schema, format_checker=Draft202012Validator.FORMAT_CHECKER)


EVENT_SCHEMA = validator(DOCUMENTS["sync-finished"])


def message(channel: str, name: str, part: str) -> Draft202012Validator:
    """Give the schema of a message's headers or payload, with the components it refers to."""
    schema = ASYNCAPI["channels"][channel]["messages"][name][part]["schema"]
    return validator({**schema, "components": ASYNCAPI["components"]})


# --- fresh --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", generate.FILES)
def test_the_files_are_what_the_code_says(name: str) -> None:
    written = (generate.DIRECTORY / generate.FILES[name]).read_text()
    assert written == generate.text(DOCUMENTS[name]), "run python -m schemas.generate"


def test_every_file_is_generated() -> None:
    assert {path.name for path in generate.DIRECTORY.iterdir()} == set(generate.FILES.values())
    assert set(DOCUMENTS) == set(generate.FILES)


def test_the_page_for_publishers_lists_every_reason_as_it_is() -> None:
    page = generate.EVENTS_PAGE.read_text()
    assert page == generate.with_reasons(page), "run python -m schemas.generate"
    assert all(f"### `{code}`" in page for code in REASONS)


def test_the_examples_on_the_page_are_accepted() -> None:
    page = generate.EVENTS_PAGE.read_text().partition(generate.BEGIN)[0]
    blocks = [block.partition("```")[0] for block in page.split("```json\n")[1:]]
    assert len(blocks) >= 4
    for block in blocks:
        document = json.loads(block)
        if "specversion" in document:
            headers = STRUCTURED
        elif "event_id" in document:
            headers = []
        else:
            attributes = changed(CLOUD_EVENT, {"data": ...})
            headers = [(f"ce_{name}", value.encode()) for name, value in attributes.items()]
        assert isinstance(decode(block.encode(), headers, now=NOW), SyncFinished), block


def test_the_python_on_the_page_runs() -> None:
    code = generate.EVENTS_PAGE.read_text().partition("```python\n")[2].partition("```")[0]
    names: dict[str, Any] = {}
    exec(code, names)  # noqa: S102 - our own page
    read = decode(names["value"], names["headers"], now=microseconds(names["now"]))
    assert read == names["event"]
    assert names["key"] == b"my-connector"


def test_the_page_names_every_field() -> None:
    page = generate.EVENTS_PAGE.read_text()
    models = (SyncFinished, SyncJob, LastSync)
    assert [n for m in models for n in m.model_fields if f"`{n}`" not in page] == []


# --- valid --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sync-finished", "last-sync", "dead-letter"])
def test_the_json_schemas_are_json_schemas(name: str) -> None:
    schema = DOCUMENTS[name]
    Draft202012Validator.check_schema(schema)
    assert schema["$id"] == f"urn:last-sync-worker:schema:{name}"
    assert schema["title"]
    assert schema["description"]
    for example in schema["examples"]:
        validator(schema).validate(example)


def asyncapi_errors(document: Any) -> list[Any]:
    schema = json.loads((DATA / "asyncapi-3.0.0.json").read_text())
    return list(Draft7Validator(schema).iter_errors(document))


def test_the_asyncapi_document_meets_the_published_schema() -> None:
    assert asyncapi_errors(ASYNCAPI) == []


@pytest.mark.parametrize(
    "path",
    [
        ("channels", "syncFinished", "bindings", "kafka"),
        ("channels", "syncFinished", "messages", "plain"),
        ("operations", "receiveSyncFinished"),
    ],
)
def test_the_published_schema_would_notice_a_mistake(path: tuple[str, ...]) -> None:
    broken = copy.deepcopy(ASYNCAPI)
    node = broken
    for step in path:
        node = node[step]
    node["adress"] = "x"
    assert asyncapi_errors(broken)


def schemas_of_asyncapi() -> Iterator[Any]:
    for channel in ASYNCAPI["channels"].values():
        for entry in channel["messages"].values():
            yield entry["headers"]["schema"]
            yield entry["payload"]["schema"]
            yield entry["bindings"]["kafka"]["key"]


def test_every_schema_in_the_asyncapi_document_is_a_json_schema() -> None:
    schemas = list(schemas_of_asyncapi())
    assert len(schemas) == 15
    for schema in schemas:
        Draft202012Validator.check_schema(schema)


def references(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        yield from (value for key, value in node.items() if key == "$ref")
        yield from (ref for value in node.values() for ref in references(value))
    elif isinstance(node, list):
        yield from (ref for value in node for ref in references(value))


@pytest.mark.parametrize("document", DOCUMENTS.values(), ids=DOCUMENTS)
def test_every_reference_leads_somewhere(document: Any) -> None:
    for reference in references(document):
        node = document
        for step in reference.removeprefix("#/").split("/"):
            node = node[step]


# --- the event ----------------------------------------------------------------------------------


@given(events())
@settings(max_examples=200)
def test_the_schema_accepts_what_publishers_send(sent: SyncFinished) -> None:
    plain, structured, binary = (
        sent.to_record(framing) for framing in ("plain", "structured", "binary")
    )
    EVENT_SCHEMA.validate(json.loads(plain.value))
    message("syncFinished", "plain", "payload").validate(json.loads(plain.value))
    message("syncFinished", "structured", "payload").validate(json.loads(structured.value))
    message("syncFinished", "binary", "payload").validate(json.loads(binary.value))
    for name, record in (("structured", structured), ("binary", binary), ("plain", plain)):
        headers = {header: value.decode() for header, value in record.headers}
        message("syncFinished", name, "headers").validate(headers)


CHANGES = JSON | st.sampled_from([*TIMES, "completed", "full", 0, 2**63, "..", 1.0, "x" * 513])
CHANGED_EVENTS = st.builds(
    lambda event, job, payload: {
        **EVENT,
        **event,
        **({"job": {**JOB, **job}} if job is not None else {}),
        **({"last_sync": payload} if payload is not None else {}),
    },
    st.dictionaries(st.sampled_from([*EVENT, "last_sync"]) | TEXTS, CHANGES, max_size=2),
    st.none() | st.dictionaries(st.sampled_from([*JOB]) | TEXTS, CHANGES, max_size=2),
    st.none() | st.dictionaries(st.sampled_from(LAST_SYNC_FIELDS), CHANGES, max_size=3),
)
INEXPRESSIBLE = {"time_after_event", "occurred_in_future"}  # relations of two values, or a clock


@given(CHANGED_EVENTS)
@settings(max_examples=1000)
def test_what_the_worker_accepts_the_schema_accepts(document: dict[str, JsonValue]) -> None:
    decoded = decode(json.dumps(document).encode(), now=NOW)
    errors = [error.message for error in EVENT_SCHEMA.iter_errors(document)]
    if isinstance(decoded, SyncFinished):
        assert errors == []
    elif not errors:
        assert decoded.reason in INEXPRESSIBLE or is_float(document, decoded), decoded


def is_float(document: Any, invalid: Invalid) -> bool:
    """Tell whether the refused value is a float such as 1.0, an integer to JSON Schema."""
    node = document
    for step in invalid.path.split("."):
        node = node[step]
    return isinstance(node, float)


@pytest.mark.parametrize("text", TIMES)
def test_both_accept_these_times(text: str) -> None:
    document = changed(EVENT, {"job": ..., "last_sync": {"last_synced": text}})
    EVENT_SCHEMA.validate(document)


def no_line_feed(values: list[Any]) -> list[Any]:
    """Leave out what only Python's `$` takes, before a last line feed; JSON Schema's does not."""
    return [value for value in values if not str(value).endswith("\n")]


@pytest.mark.parametrize("value", no_line_feed(NO_TIMES))
def test_both_refuse_these_times(value: Any) -> None:
    beyond_schema = {"0001-01-01T00:00:00+00:01", "9999-12-31T23:59:59-00:01"}  # outside in UTC
    errors = list(EVENT_SCHEMA.iter_errors({**EVENT, "occurred_at": value}))
    assert bool(errors) is not (isinstance(value, str) and value in beyond_schema)


@pytest.mark.parametrize("value", no_line_feed(NO_IDS))
def test_both_refuse_these_ids(value: Any) -> None:
    more_bytes_than_characters = isinstance(value, str) and len(value) in range(129, 300)
    errors = list(EVENT_SCHEMA.iter_errors({**EVENT, "connector_id": value}))
    assert bool(errors) is not more_bytes_than_characters


REFUSED_BY_SCHEMA: list[dict[str, Any]] = [
    {"event_id": ...},
    {"connector_id": None},
    {"occurred_at": ...},
    {"job": ...},
    {"job": None},
    {"job": []},
    {"last_sync": {"last_sync_status": "pending"}},
    {"job": ..., "last_sync": {}},
    {"job": ..., "last_sync": []},
    {"job": ..., "last_sync": {"last_seen": "2024-11-09T15:13:08Z"}},
    {"job": ..., "last_sync": {"last_synced": None}},
    {"job": ..., "last_sync": {"last_sync_status": "Pending"}},
    {"job": ..., "last_sync": {"last_indexed_document_count": -1}},
    {"job": ..., "last_sync": {"last_indexed_document_count": 2**63}},
    {"job": ..., "last_sync": {"last_indexed_document_count": True}},
    {"job": ..., "last_sync": {"last_sync_error": "\0"}},
    {"job": ..., "last_sync": {"last_sync_error": 1}},
    {"job": ..., "last_sync": {"sync_cursor": []}},
    {"job": ..., "last_sync": {"sync_cursor": {"a": [{"\0": 1}]}}},
    {"job": {"job_type": "full"}},
    {"job": {"status": "pending"}},
    {"job": {**JOB, "status": None}},
    {"job": {**JOB, "id": ""}},
    {"job": {**JOB, "note": "\0"}},
    {"note": {"a": ["\0"]}},
    {"\0": 1},
]


@pytest.mark.parametrize("changes", REFUSED_BY_SCHEMA, ids=str)
def test_what_the_schema_refuses_the_worker_refuses(changes: dict[str, Any]) -> None:
    document = changed(EVENT, changes)
    assert not EVENT_SCHEMA.is_valid(document)
    assert isinstance(decode(json.dumps(document).encode(), now=NOW), Invalid)


def test_elastics_own_example_meets_the_schema_of_the_payload() -> None:
    validator(DOCUMENTS["last-sync"]).validate(json.loads(ELASTIC))


def test_the_payloads_schema_has_the_contracts_fields() -> None:
    assert tuple(sorted(DOCUMENTS["last-sync"]["properties"])) == LAST_SYNC_FIELDS


@pytest.mark.parametrize(
    ("content_type", "structured"),
    [
        ("application/cloudevents+json", True),
        ("Application/CloudEvents+JSON; charset=utf-8", True),
        ("application/json", False),
        ("application/cloudevents-batch+json", False),
    ],
)
def test_the_header_that_makes_a_record_structured(content_type: str, structured: bool) -> None:  # noqa: FBT001
    headers = message("syncFinished", "structured", "headers")
    assert headers.is_valid({"content-type": content_type}) is structured


# --- the letter ---------------------------------------------------------------------------------


def as_document(letter: DeadLetter, max_bytes: int = 200_000) -> dict[str, Any]:
    """Write a letter's record as the schema describes it: raw bytes in base64."""
    key, value, headers = letter.fitted(max_bytes).record()
    raw = {"__dlq.errors.key"}
    ours = {n: v for n, v in headers if n.startswith("__dlq.")}
    originals = {n: v for n, v in headers if n not in ours}

    def shown(name: str, value: bytes | None) -> str | None:
        if value is None:
            return None
        text = name in ours and name not in raw
        return value.decode() if text else base64.b64encode(value).decode()

    document = {name: shown(name, value) for name, value in {**ours, **originals}.items()}
    encoded = base64.b64encode(value).decode()
    return {"key": key.decode(), "value": encoded, "headers": document}


@pytest.mark.parametrize(
    "letter",
    [
        LETTER,
        replace(LETTER, value=None, key=None, connector_id=None, timestamp_ms=-1),
        replace(LETTER, value=b"v" * 300_000, key=b"k" * 300_000, status=404, group="a/b\n"),
        replace(LETTER, headers=(("__dlq.x", b""),), reason="rejected"),
    ],
    ids=["plain", "null", "cut", "dropped"],
)
def test_letters_meet_their_schema(letter: DeadLetter) -> None:
    document = as_document(letter)
    validator(DOCUMENTS["dead-letter"]).validate(document)
    message("deadLetters", "deadLetter", "headers").validate(document["headers"])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("partition", "x"),
        ("status", "500"),
        ("reason", "because"),
        ("failed_at", "now"),
        ("delivery.count", "2"),
        ("value_null", "false"),
    ],
)
def test_the_letters_schema_refuses_other_headers(name: str, value: str) -> None:
    document = as_document(LETTER)
    document["headers"][f"__dlq.errors.{name}"] = value
    assert not validator(DOCUMENTS["dead-letter"]).is_valid(document)


@pytest.mark.parametrize("name", ["topic", "offset", "group", "message", "store"])
def test_the_letters_schema_asks_for_every_header(name: str) -> None:
    document = as_document(LETTER)
    del document["headers"][f"__dlq.errors.{name}"]
    assert not validator(DOCUMENTS["dead-letter"]).is_valid(document)


def test_every_reason_of_a_letter_is_in_its_schema() -> None:
    reasons = DOCUMENTS["dead-letter"]["properties"]["headers"]["properties"]
    assert reasons["__dlq.errors.reason"]["enum"] == list(REASONS)
    assert set(REASONS) >= FROM_STORE
