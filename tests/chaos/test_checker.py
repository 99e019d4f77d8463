"""The checker finds each kind of damage in a history made by hand, and nothing in a sound one."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.chaos.checker import KINDS, Verdict, check
from tests.chaos.history import History, Letter, Read, Sent, digest

COUNT = "last_indexed_document_count"


def sent(offset: int, count: int, connector: str = "a", reason: str = "") -> Sent:
    event: dict[str, Any] = {
        "event_id": f"e-{count}",
        "connector_id": connector,
        "occurred_at": f"2024-01-01T00:00:{count:02}Z",
        "last_sync": {COUNT: count},
    }
    value = digest(f"{count}".encode())
    return Sent(
        origin=("t", 0, offset), event=None if reason else event, reason=reason, digest=value
    )


SENT = [sent(0, 1), sent(1, 3), sent(2, 2), sent(3, 4, "unknown"), sent(4, 5, reason="not_utf8")]
UNKNOWN = Letter(origin=("t", 0, 3), reason="connector_not_found", digest=digest(b"4"))
INVALID = Letter(origin=("t", 0, 4), reason="not_utf8", digest=digest(b"5"))
LETTERS = [UNKNOWN, INVALID]


def seen(*counts: int | None) -> list[Read]:
    """Reads of connector `a`, one after the other; None is one without the field."""
    values: list[dict[str, Any]] = [{} if count is None else {COUNT: count} for count in counts]
    return [Read(connectors={"a": value}) for value in values]


def judged(reads: list[Read], letters: list[Letter] = LETTERS) -> dict[str, int]:
    found = check(SENT, ["a"], reads, letters).counts
    return {kind: count for kind, count in found.items() if count}


def test_a_sound_run_has_no_findings() -> None:
    assert judged(seen(None, 1, 3)) == {}
    verdict = check(SENT, ["a"], seen(3), LETTERS)
    assert (verdict.clean, verdict.events, verdict.letters) == (True, 5, 2)


@pytest.mark.parametrize("last", [None, 1, 2])
def test_a_newest_event_that_was_never_seen_is_lost(last: int | None) -> None:
    assert judged(seen(None, last)) == {"lost": 1}


def test_a_field_that_goes_back_has_regressed_also_if_it_recovers() -> None:
    assert judged(seen(1, 3, 2)) == {"regressed": 1}
    assert judged(seen(3, 1, 3)) == {"regressed": 1}


def test_a_value_that_two_events_carry_is_no_regression() -> None:
    again = [
        *SENT,
        replace(sent(5, 1), event={**(sent(5, 4).event or {}), "last_sync": {COUNT: 1}}),
    ]
    assert check(again, ["a"], seen(1, 3, 1), LETTERS).clean


def test_a_value_that_no_event_carries_is_wrong() -> None:
    assert judged(seen(3, 7)) == {"wrong": 1}


def test_a_connector_that_is_gone_is_lost_and_one_too_many_is_wrong() -> None:
    assert judged([]) == {"lost": 2}  # the connector, and its field
    assert judged([*seen(3), Read(connectors={}, whole=True)]) == {"lost": 2}
    assert judged([*seen(3), Read(connectors={"b": {}})]) == {"wrong": 1}


def test_letters_are_held_to_their_origins() -> None:
    assert judged(seen(3), [UNKNOWN]) == {"missing_letters": 1}
    assert judged(seen(3), [*LETTERS, INVALID]) == {"duplicate_letters": 1}


@pytest.mark.parametrize(
    "letter",
    [
        replace(INVALID, origin=("t", 0, 0)),
        replace(INVALID, origin=("other", 0, 4)),
    ],
)
def test_a_letter_for_a_record_that_deserves_none_is_wrong(letter: Letter) -> None:
    assert judged(seen(3), [*LETTERS, letter]) == {"wrong": 1}


@pytest.mark.parametrize("change", [{"reason": "too_deep"}, {"digest": digest(None)}])
def test_a_letter_with_another_reason_or_content_is_wrong(change: dict[str, Any]) -> None:
    assert judged(seen(3), [UNKNOWN, replace(INVALID, **change)]) == {"wrong": 1}


def test_every_kind_of_finding_spoils_the_verdict() -> None:
    for kind in KINDS:
        verdict = Verdict()
        getattr(verdict, kind).append("found")
        assert not verdict.clean


def test_a_history_gives_back_what_was_put_in(tmp_path: Path) -> None:
    history = History(tmp_path / "history.jsonl")
    history.add([*SENT, *seen(1, 3), *LETTERS])
    assert (history.sent(), history.reads(), history.letters()) == (SENT, seen(1, 3), LETTERS)
    history.close()


@pytest.mark.parametrize(
    ("last", "finding"),
    [(3, {"regressed": 1}), (1, {"regressed": 1}), (None, {})],
)
def test_what_was_set_before_a_reset_must_not_be_seen_after_it(
    last: int | None, finding: dict[str, int]
) -> None:
    later = {"a": "2024-01-01T00:00:03Z"}  # the reset beats the events of its own moment
    found = check(SENT, ["a"], [*seen(3), Read(connectors={"a": {}}), *seen(last)], LETTERS, later)
    assert {kind: count for kind, count in found.counts.items() if count} == finding


def test_what_was_set_after_a_reset_stays() -> None:
    earlier = {"a": "2024-01-01T00:00:02Z"}
    assert check(SENT, ["a"], seen(3), LETTERS, earlier).clean
    assert check(SENT, ["a"], seen(None), LETTERS, earlier).counts["lost"] == 1
