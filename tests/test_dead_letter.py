"""Dead letters: the record of a letter, what is kept when it does not fit, and reading it back."""

import base64
import hashlib
import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.dead_letter import (
    MAX_ORIGINAL_HEADERS,
    MIN_RECORD,
    About,
    DeadLetter,
    Original,
    record_size,
    resolution_headers,
)

GOLDEN = Path(__file__).parent / "data" / "dead_letters"
FAILED_AT = datetime(2024, 11, 9, 15, 20, 1, 234567, tzinfo=UTC)
LETTER = DeadLetter(
    group="last-sync-worker",
    topic="connector.sync-finished",
    partition=3,
    offset=1207,
    timestamp_ms=1_731_165_188_231,
    key=b"my-connector",
    value=b'{"event_id": "e-1"}',
    headers=(("traceparent", b"00-1"), ("traceparent", b"00-2"), ("empty", None), ("raw", b"\xff")),
    reason="missing_field",
    status=400,
    message="connector_id is missing: add the field",
    connector_id="my-connector",
    failed_at=FAILED_AT,
    store="5f0c9a52-6a0c-4a58-9d0f-b9f2f60a3f50",
)
MEBIBYTE = 1024 * 1024
USUAL = (
    *("topic", "partition", "offset", "group", "delivery.count", "message", "reason", "status"),
    *("key", "timestamp", "connector_id", "failed_at", "store"),
)


def ours(letter: DeadLetter, max_bytes: int = MEBIBYTE) -> dict[str, bytes | None]:
    """Give the headers that the letter adds, by their names without the common beginning."""
    _, _, headers = letter.fitted(max_bytes).record()
    prefix = "__dlq.errors."
    return {name.removeprefix(prefix): v for name, v in headers if name.startswith(prefix)}


def read_back(letter: DeadLetter, max_bytes: int = MEBIBYTE) -> DeadLetter:
    return DeadLetter.from_record(*letter.fitted(max_bytes).record())


# --- the record ---------------------------------------------------------------------------------


def test_the_id_names_the_original_record() -> None:
    assert LETTER.id == "last-sync-worker/connector.sync-finished/3/1207@1731165188231"
    assert LETTER.fitted(MEBIBYTE).record()[0] == LETTER.id.encode()


def test_a_letter_carries_the_original_bytes_and_says_what_is_wrong() -> None:
    _, value, headers = LETTER.fitted(MEBIBYTE).record()
    assert value == LETTER.value
    assert headers == [
        ("__dlq.errors.topic", b"connector.sync-finished"),
        ("__dlq.errors.partition", b"3"),
        ("__dlq.errors.offset", b"1207"),
        ("__dlq.errors.group", b"last-sync-worker"),
        ("__dlq.errors.delivery.count", b"1"),
        ("__dlq.errors.message", b"connector_id is missing: add the field"),
        ("__dlq.errors.reason", b"missing_field"),
        ("__dlq.errors.status", b"400"),
        ("__dlq.errors.key", b"my-connector"),
        ("__dlq.errors.timestamp", b"1731165188231"),
        ("__dlq.errors.connector_id", b"my-connector"),
        ("__dlq.errors.failed_at", b"2024-11-09T15:20:01.234567Z"),
        ("__dlq.errors.store", b"5f0c9a52-6a0c-4a58-9d0f-b9f2f60a3f50"),
        *LETTER.headers,
    ]


def test_a_null_value_is_marked_and_is_no_tombstone() -> None:
    letter = replace(LETTER, value=None)
    assert letter.fitted(MEBIBYTE).record()[1] == b""
    assert ours(letter)["value_null"] == b"true"
    assert read_back(letter).value is None


def test_an_empty_value_is_not_null() -> None:
    letter = replace(LETTER, value=b"")
    assert "value_null" not in ours(letter)
    assert read_back(letter).value == b""


def test_a_null_key_has_no_header_and_an_empty_key_has_one() -> None:
    assert "key" not in ours(replace(LETTER, key=None))
    assert ours(replace(LETTER, key=b""))["key"] == b""
    assert read_back(replace(LETTER, key=None)).key is None
    assert read_back(replace(LETTER, key=b"")).key == b""


def test_an_unknown_connector_has_no_header() -> None:
    assert "connector_id" not in ours(replace(LETTER, connector_id=None))


def test_a_key_is_kept_as_bytes() -> None:
    assert ours(replace(LETTER, key=b"\x00\xff"))["key"] == b"\x00\xff"


def test_a_record_without_a_timestamp_has_minus_one() -> None:
    letter = replace(LETTER, timestamp_ms=-1)
    assert ours(letter)["timestamp"] == b"-1"
    assert read_back(letter) == letter


def test_original_headers_ride_along_up_to_32_kib() -> None:
    name, value = "n" * 24, b"v" * 1000
    letter = replace(LETTER, headers=((name, value),) * 32)
    assert read_back(letter) == letter
    letter = replace(LETTER, headers=((name, value),) * 40)
    kept = read_back(letter)
    assert kept.headers == ((name, value),) * 32
    assert kept.headers_dropped == 8
    assert ours(letter)["headers_dropped"] == b"8"


def test_names_count_in_bytes_and_the_limit_is_exact() -> None:
    letter = replace(LETTER, headers=(("é" * 8, b"v" * (MAX_ORIGINAL_HEADERS - 16)),))
    assert read_back(letter) == letter
    letter = replace(LETTER, headers=(("é" * 8, b"v" * (MAX_ORIGINAL_HEADERS - 15)),))
    assert (read_back(letter).headers, read_back(letter).headers_dropped) == ((), 1)


def test_headers_after_the_first_that_did_not_fit_are_dropped_too() -> None:
    letter = replace(LETTER, headers=(("a", b""), ("b", b"v" * 40_000), ("c", b"")))
    assert read_back(letter).headers == (("a", b""),)
    assert read_back(letter).headers_dropped == 2


def test_original_headers_that_look_like_ours_are_dropped_and_counted() -> None:
    forged = (("__dlq.errors.topic", b"x"), ("__dlq.resolved.by", b"x"), ("__dlq.", None))
    letter = replace(LETTER, headers=(*forged, ("a", b"b")))
    assert read_back(letter).headers == (("a", b"b"),)
    assert read_back(letter).headers_dropped == 3
    assert read_back(letter).topic == LETTER.topic


def test_a_tombstone_says_who_what_when_and_why() -> None:
    assert resolution_headers("ada", "discarded", FAILED_AT, "a test, é") == [
        ("__dlq.resolved.by", b"ada"),
        ("__dlq.resolved.how", b"discarded"),
        ("__dlq.resolved.at", b"2024-11-09T15:20:01.234567Z"),
        ("__dlq.resolved.reason", "a test, é".encode()),
    ]


# --- too large ----------------------------------------------------------------------------------

BIG = bytes(range(256)) * 8 * 1024  # 2 MiB


def test_a_value_that_does_not_fit_keeps_its_beginning_its_size_and_its_hash() -> None:
    letter = replace(LETTER, value=BIG)
    cut = read_back(letter)
    assert cut.value == BIG[: 64 * 1024]
    assert (cut.value_size, cut.value_sha256) == (len(BIG), hashlib.sha256(BIG).hexdigest())
    assert (cut.reason, cut.status) == ("too_large", 400)
    assert cut.message == "missing_field: connector_id is missing: add the field"
    assert (cut.key, cut.key_size, cut.headers) == (LETTER.key, None, LETTER.headers)
    assert cut.id == letter.id


def test_the_status_of_a_letter_that_is_cut_stays() -> None:
    cut = read_back(replace(LETTER, value=BIG, reason="connector_not_found", status=404))
    assert (cut.reason, cut.status) == ("too_large", 404)


def test_a_value_that_just_fits_is_whole() -> None:
    letter = replace(LETTER, value=b"v" * 5_000)
    size = record_size(*letter.fitted(MEBIBYTE).record())
    assert read_back(letter, size) == letter
    assert read_back(letter, size - 1).reason == "too_large"


def test_a_key_that_does_not_fit_keeps_its_beginning_and_its_size() -> None:
    cut = read_back(replace(LETTER, key=BIG), MIN_RECORD)
    assert cut.key is not None
    assert BIG.startswith(cut.key)
    assert 30_000 < len(cut.key) < MIN_RECORD
    assert cut.key_size == len(BIG)
    assert cut.value == LETTER.value
    assert cut.value_size == len(LETTER.value or b"")


def test_a_letter_that_was_cut_can_be_written_again_and_again() -> None:
    cut = read_back(replace(LETTER, value=BIG, key=BIG), MIN_RECORD)
    assert read_back(cut) == cut
    smaller = read_back(cut, 80_000)
    assert (smaller.value_size, smaller.value_sha256) == (cut.value_size, cut.value_sha256)
    assert (smaller.key_size, smaller.message) == (cut.key_size, cut.message)


def test_a_long_message_is_shortened_without_losing_the_value() -> None:
    kept = read_back(replace(LETTER, message="é" * 100_000))
    assert kept.message.endswith("…")
    assert len(kept.message.encode()) <= 4096
    assert (kept.reason, kept.value) == ("missing_field", LETTER.value)


def test_a_limit_that_no_letter_can_meet_is_said() -> None:
    with pytest.raises(ValueError, match="allow at least 131072 bytes"):
        LETTER.fitted(100).record()


@given(
    st.sampled_from([0, 1, 20_000, 70_000, 2_000_000]),
    st.sampled_from([None, 0, 1, 70_000, 2_000_000]),
    st.sampled_from([0, 1, 31_000, 70_000]),
    st.sampled_from([1, 16, 249, 32_767]),
    st.integers(MIN_RECORD, 4_000_000),
)
@settings(max_examples=200)
def test_a_letter_fits_whatever_the_input(
    value: int, key: int | None, headers: int, group: int, max_bytes: int
) -> None:
    letter = replace(
        LETTER,
        value=b"v" * value,
        key=None if key is None else b"k" * key,
        headers=(("h" * (headers // 2), b"v" * (headers // 2)), ("x", b"y")),
        group="g" * group,
        topic="t" * 249,
        connector_id="c" * 512,
        message="m" * 100_000,
    )
    record = letter.fitted(max_bytes).record()
    assert record_size(*record) <= max_bytes
    read = DeadLetter.from_record(*record)
    assert read.id == letter.id
    assert letter.value is not None
    assert read.value is not None
    assert letter.value.startswith(read.value)
    whole = (read.value, read.key) == (letter.value, letter.key)
    assert whole or read.reason == "too_large"


def test_the_size_is_never_less_than_what_kafka_counts() -> None:
    key, value, headers = replace(LETTER, value=b"v" * 5_000).fitted(MEBIBYTE).record()
    builder = DefaultRecordBatchBuilder(
        magic=2, compression_type=0, is_transactional=0, producer_id=-1, producer_epoch=-1,
        base_sequence=-1, batch_size=MEBIBYTE,
    )  # fmt: skip
    builder.append(0, LETTER.timestamp_ms, key, value, headers)
    actual = len(builder.build())
    assert actual <= record_size(key, value, headers) <= actual + 400


# --- reading ------------------------------------------------------------------------------------

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
HEADERS = st.lists(
    st.tuples(
        TEXTS.filter(lambda n: not n.startswith("__dlq.")), st.none() | st.binary(max_size=9)
    ),
    max_size=4,
)
LETTERS = st.builds(
    DeadLetter,
    group=TEXTS,
    topic=TEXTS,
    partition=st.integers(0, 2**31 - 1),
    offset=st.integers(0, 2**63 - 1),
    timestamp_ms=st.integers(-1, 2**62),
    key=st.none() | st.binary(max_size=20),
    value=st.none() | st.binary(max_size=200),
    headers=HEADERS.map(tuple),
    reason=TEXTS,
    status=st.sampled_from([400, 404]),
    message=TEXTS,
    connector_id=st.none() | TEXTS,
    failed_at=st.datetimes(timezones=st.just(UTC)),
    store=TEXTS,
)


@given(LETTERS)
def test_a_letter_that_was_not_cut_is_read_back_as_it_was(letter: DeadLetter) -> None:
    assert read_back(letter) == letter


def without(name: str) -> list[tuple[str, bytes | None]]:
    return [header for header in LETTER.fitted(MEBIBYTE).record()[2] if header[0] != name]


REQUIRED = [
    "topic",
    "partition",
    "offset",
    "group",
    "message",
    "reason",
    "status",
    "timestamp",
    "failed_at",
    "store",
]


@pytest.mark.parametrize("name", REQUIRED)
def test_a_record_without_a_header_of_ours_is_no_letter(name: str) -> None:
    header = f"__dlq.errors.{name}"
    with pytest.raises(ValueError, match=f"{header} is missing"):
        DeadLetter.from_record(LETTER.id.encode(), b"", without(header))


MALFORMED = [
    ("partition", b""),
    ("partition", b"-1"),
    ("partition", b"+1"),
    ("partition", b"01"),
    ("partition", b" 1"),
    ("partition", b"1.0"),
    ("partition", "\u0661".encode()),
    ("offset", b"1" * 5_000),
    ("timestamp", b"-2"),
    ("status", b"500"),
    ("status", b"x"),
    ("failed_at", b"yesterday"),
    ("failed_at", b"2024-11-09T15:20:01"),
    ("group", b"\xff"),
    ("topic", None),
]
MALFORMED_SOMETIMES = [
    ("headers_dropped", b"x"),
    ("value_size", b"-1"),
    ("value_sha256", b"\xff"),
]


@pytest.mark.parametrize(("name", "value"), [*MALFORMED, *MALFORMED_SOMETIMES])
def test_a_malformed_header_of_ours_is_named(name: str, value: bytes | None) -> None:
    header = f"__dlq.errors.{name}"
    with pytest.raises(ValueError, match=header):
        DeadLetter.from_record(LETTER.id.encode(), b"", [*without(header), (header, value)])


@pytest.mark.parametrize(("name", "value"), [*MALFORMED, *((name, None) for name in USUAL)])
def test_a_malformed_header_among_the_usual_ones_is_named(name: str, value: bytes | None) -> None:
    key, content, headers = replace(LETTER, headers=()).fitted(MEBIBYTE).record()
    header = f"__dlq.errors.{name}"
    changed = [(each, value if each == header else given) for each, given in headers]
    with pytest.raises(ValueError, match=header):
        DeadLetter.from_record(key, content, changed)


def test_the_usual_headers_are_read_by_their_names_in_any_order() -> None:
    key, value, headers = replace(LETTER, headers=()).fitted(MEBIBYTE).record()
    assert [name for name, _ in headers] == [f"__dlq.errors.{name}" for name in USUAL]
    for turn in range(len(headers)):
        turned = [*headers[turn:], *headers[:turn]]
        assert DeadLetter.from_record(key, value, turned) == replace(LETTER, headers=())


def test_a_repeated_header_of_ours_is_refused() -> None:
    key, value, headers = LETTER.fitted(MEBIBYTE).record()
    with pytest.raises(ValueError, match="repeated"):
        DeadLetter.from_record(key, value, [*headers, ("__dlq.errors.group", b"x")])


def test_a_key_that_names_another_record_is_refused() -> None:
    _, value, headers = LETTER.fitted(MEBIBYTE).record()
    with pytest.raises(ValueError, match="key is not"):
        DeadLetter.from_record(b"last-sync-worker/x/3/1207@1", value, headers)


def test_a_tombstone_is_no_letter() -> None:
    key, _, headers = LETTER.fitted(MEBIBYTE).record()
    with pytest.raises(ValueError, match="not a dead letter"):
        DeadLetter.from_record(key, None, headers)
    with pytest.raises(ValueError, match="not a dead letter"):
        DeadLetter.from_record(None, b"", headers)


def test_a_null_value_with_bytes_is_refused() -> None:
    key, _, headers = replace(LETTER, value=None).fitted(MEBIBYTE).record()
    with pytest.raises(ValueError, match="value_null"):
        DeadLetter.from_record(key, b"x", headers)


def test_a_letter_of_another_tool_is_refused() -> None:
    headers = [(f"__dlq.errors.{name}", b"1") for name in ("topic", "partition", "offset", "group")]
    with pytest.raises(ValueError, match="it is not a dead letter"):
        DeadLetter.from_record(b"1/1/1/1@1", b"", headers)


SHORT_NAMES = [*REQUIRED, "key", "value_null", "headers_dropped", "connector_id", "delivery.count"]


@given(
    st.none() | st.binary(max_size=20) | st.just(LETTER.id.encode()),
    st.none() | st.binary(max_size=20),
    st.lists(
        st.tuples(
            st.sampled_from(SHORT_NAMES).map("__dlq.errors.".__add__) | st.text(max_size=5),
            st.none() | st.binary(max_size=10) | st.sampled_from([b"1", b"400", b"true"]),
        )
    ),
    st.booleans(),
)
@settings(max_examples=500)
def test_a_hostile_record_raises_a_value_error_and_nothing_else(
    key: bytes | None,
    value: bytes | None,
    extra: list[tuple[str, bytes | None]],
    real: bool,  # noqa: FBT001 - drawn
) -> None:
    names = {name for name, _ in extra}
    base = [h for h in LETTER.fitted(MEBIBYTE).record()[2] if h[0] not in names] if real else []
    try:
        letter = DeadLetter.from_record(key, value, [*base, *extra])
    except ValueError:
        return
    assert letter.id.encode() == key


# --- what a letter carries, read without the rest ------------------------------------------------


@pytest.mark.parametrize("value", [None, b"", b"{}"])
def test_the_original_is_what_the_whole_letter_holds(value: bytes | None) -> None:
    letter = replace(LETTER, value=value)
    _, written, headers = letter.fitted(MEBIBYTE).record()
    assert Original.of(written, headers) == (value, letter.headers)


def test_the_original_has_no_header_of_our_family_not_even_a_future_one() -> None:
    _, value, headers = LETTER.fitted(MEBIBYTE).record()
    later = [*headers, ("__dlq.errors.future", b"1"), ("mine", None)]
    assert Original.of(value, later).headers == (*LETTER.headers, ("mine", None))


@pytest.mark.parametrize("missing", ["delivery.count", "key", "connector_id", None])
@pytest.mark.parametrize("more", [(), (("mine", b"x"),), (("__dlq.errors.value_null", b"true"),)])
def test_the_original_is_the_same_whichever_way_it_is_read(
    missing: str | None, more: tuple[tuple[str, bytes], ...]
) -> None:
    key, value, headers = replace(LETTER, value=None, headers=()).fitted(MEBIBYTE).record()
    left = [one for one in headers if one[0] not in (f"__dlq.errors.{missing}", *dict(more))]
    for some in left, [one for one in left if one[0] != "__dlq.errors.value_null"]:
        read = About.read(key, value, [*some, *more]).original
        assert read == Original.of(value, [*some, *more])
        assert read.headers == tuple(one for one in more if one[0] == "mine")


@pytest.mark.parametrize("name", ["headers_dropped", "value_size", "value_sha256", "key_size"])
def test_a_header_that_only_the_whole_letter_uses_is_checked_all_the_same(name: str) -> None:
    key, value, headers = LETTER.fitted(MEBIBYTE).record()
    with pytest.raises(ValueError, match=name):
        About.read(key, value, [*headers, (f"__dlq.errors.{name}", b"\xff")])


# --- the format of the past ---------------------------------------------------------------------


def stored(record: Any) -> tuple[bytes, bytes, list[tuple[str, bytes | None]]]:
    headers = [
        (name, None if value is None else base64.b64decode(value))
        for name, value in record["headers"]
    ]
    return base64.b64decode(record["key"]), base64.b64decode(record["value"]), headers


def golden() -> list[Any]:
    return [json.loads(path.read_text()) for path in sorted(GOLDEN.glob("*.json"))]


def test_there_are_letters_of_the_first_format() -> None:
    assert {record["name"] for record in golden()} == {"invalid", "not-found", "null", "too-large"}


@pytest.mark.parametrize("record", golden(), ids=lambda record: record["name"])
def test_letters_that_lie_in_topics_today_are_read_for_ever(record: Any) -> None:
    letter = DeadLetter.from_record(*stored(record))
    assert letter.fitted(MEBIBYTE).record() == stored(record)
    for name, expected in record["reads"].items():
        assert str(getattr(letter, name)) == expected
