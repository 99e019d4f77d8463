"""The shorter way from a record to what merging needs; test_sync_finished.py takes it, too."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas import updates as module
from schemas.last_sync import JOB_TIMES
from schemas.scalars import STATUSES
from schemas.updates import Update, update
from tests.test_sync_finished import (
    EVENT,
    JOB,
    NOW,
    accepted,
    changed,
    decoded_alike,
    event,
    job,
    payload,
)

HEADERS = [("traceparent", b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")]

# What releases have written into stores: an event read again has to be known again.
DIGESTS: list[tuple[dict[str, Any], str]] = [
    (
        {"job": {**JOB, "deleted_document_count": 0}},
        "b15c8860bbdad51f7e0103d3586235c4e7e1ae77cb80f133da5f1e768dbd39a8",
    ),
    (
        {
            "job": {
                **JOB,
                "status": "error",
                "deleted_document_count": 0,
                "error": 'Fehler: "ü" \\ \n\t\x7f\u2028\U0001f600 <&>',
            }
        },
        "9cf988421cfe34bed911e545bc2319bffcc537d352720525308913d55d7fe6f0",
    ),
    (
        {
            "job": {
                "job_type": "access_control",
                "status": "error",
                "scheduled_at": "2024-11-09T16:00:00+01:00",
            }
        },
        "3184b6586ce21c17831433c9a5f8236cef2333769d59b9320195a9db4d6d6e0e",
    ),
    (
        {
            "job": {
                **JOB,
                "job_type": "incremental",
                "deleted_document_count": 0,
                "indexed_document_count": 2**63 - 1,
                "sync_cursor": {"z": 1e16, "a": [0.1, -0.0, None, True], "ü": {"b": 2**70}},
            }
        },
        "8798137a682a6bd3453fc658b6f056dc07a0152a190b1523379653ca661a373b",
    ),
    (
        {
            "connector_id": 'k"1\\ü',
            "last_sync": {
                "last_synced": "2024-11-09T15:13:08.1234567Z",
                "last_sync_error": None,
                "last_access_control_sync_status": "pending",
                "last_deleted_document_count": 7,
            },
        },
        "b70296863e438eb91d335741441e79c29da8c381efeda27a1ef82911ac453401",
    ),
    (
        {"last_sync": {"sync_cursor": {}, "last_sync_error": "x" * 40_000}},
        "b5a89852e186f3ed966e8529ea984fcbb7fc1220a162b1fbf0382d5b8fa83b22",
    ),
]


@pytest.mark.parametrize(("content", "digest"), DIGESTS)
def test_a_digest_is_what_it_was_in_every_release(content: dict[str, Any], digest: str) -> None:
    value = json.dumps({**changed(EVENT, {"job": ...}), **content}).encode()
    found = update(value, now=NOW)
    assert isinstance(found, Update)
    assert found.stamp.digest == digest


@pytest.mark.parametrize(
    "value",
    [event(), job(status="error", error="x"), payload(last_synced="2024-11-09T15:13:08Z")],
    ids=["completed", "error", "payload"],
)
@pytest.mark.parametrize("headers", [[], HEADERS], ids=["bare", "with headers"])
def test_an_everyday_event_takes_the_shorter_way(
    value: bytes, headers: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "decode", None)
    assert isinstance(update(value, headers, now=NOW), Update)


# Pieces of which each makes the text around it a little different, or quite another one
pieces = st.sampled_from(
    [
        b'"',
        b'\\"',
        b"\\",
        b":",
        b",",
        b"{",
        b"}",
        b" ",
        b"0",
        b"null",
        b'"job"',
        b'"job":null,',
        b'"event_id":"x",',
        b'"\\u006aob":{},',
        b'"note":1,',
        b'"error":"\\u0000",',
        b'"error":"\\ud800",',
        b'"id":"\\"",',
        b'"id" : null,',
        b'"started_at":"2024-02-30T00:00:00Z",',
        b"\xff",
        b"NaN",
        b'"sync_cursor":{"a":1},',
        b'"last_sync":{"last_sync_error":null},',
        b"\xef\xbb\xbf",
        b"1e2",
    ]
)
VALUES = [
    event(),
    event(job={"job_type": "full", "status": "pending"}),
    payload(last_sync_error="x"),
]


@given(
    st.sampled_from(VALUES),
    st.lists(st.tuples(st.integers(0, 400), st.integers(0, 9), pieces), max_size=3),
)
def test_whatever_is_put_into_an_event_both_ways_come_to_the_same(
    value: bytes, edits: list[tuple[int, int, bytes]]
) -> None:
    for start, length, piece in edits:
        value = value[:start] + piece + value[start + length :]
    decoded_alike(value, [], NOW)


commas = st.sampled_from([at + 1 for at, byte in enumerate(VALUES[0]) if byte in b",{"])


@given(commas, pieces)
def test_whatever_member_is_added_both_ways_come_to_the_same(start: int, piece: bytes) -> None:
    decoded_alike(VALUES[0][:start] + piece + VALUES[0][start:], [], NOW)


def test_a_leap_day_is_a_day() -> None:
    value = job(scheduled_at="2024-02-29T00:00:00Z", started_at=None)
    assert accepted(value).fields()["last_sync_scheduled_at"] == "2024-02-29T00:00:00.000000Z"


# Around one second, and around how far two clocks may differ, in the notations of the shorter way
moments = st.builds(
    lambda second, fraction, zone: f"2024-11-09T15:{second}{fraction}{zone}",
    st.sampled_from(["13:07", "13:08", "13:09", "18:07", "18:08", "18:09"]),
    st.sampled_from(["", ".0", ".5", ".50", ".500000", ".4999999", ".500001", ".9"]),
    st.sampled_from(["Z", "+00:00"]),
)


@settings(max_examples=300)
@given(moments, st.sampled_from(STATUSES), st.fixed_dictionaries(dict.fromkeys(JOB_TIMES, moments)))
def test_times_compare_alike_however_they_are_written(
    occurred_at: str, status: str, times: dict[str, str]
) -> None:
    value = event(occurred_at=occurred_at, job=changed(JOB, {"status": status, **times}))
    decoded_alike(value, [], NOW)
    fields = {"last_sync_scheduled_at": times["scheduled_at"], "last_synced": times["started_at"]}
    decoded_alike(event(occurred_at=occurred_at, job=..., last_sync=fields), [], NOW)
