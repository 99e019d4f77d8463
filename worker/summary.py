"""What a replay did, and the commands for what it left open."""

import glob
import shlex
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from schemas.dead_letter import TOO_LARGE
from worker.letter_screens import outcome_text
from worker.options import PROGRAM, say
from worker.replay import OTHER_STORE, RESOLVING, Result
from worker.selection import UNREADABLE
from worker.text import printable

NAMED = 10  # letters, and connectors, that a summary names for each outcome
ALWAYS = (*RESOLVING, "connector_not_found", "invalid")  # rows that are there even when zero
IN_FUTURE = "occurred_in_future"
DISCARD = ["--reason-text", "why"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """The options that were given, so that commands to paste reach the same brokers and store."""

    kafka: Sequence[str] = ()
    store: Sequence[str] = ()
    store_ids: Sequence[str] = ()


@dataclass(slots=True)
class Tally:
    """Counts of outcomes, and the first few letters of each that is still open."""

    counts: Counter[str] = field(default_factory=Counter)
    left: dict[str, list[Result]] = field(default_factory=dict)
    connectors: dict[str, None] = field(default_factory=dict)  # that are missing, in order

    def add(self, results: Sequence[Result]) -> None:
        self.counts.update(result.outcome for result in results)
        for result in results:
            if result.resolved:
                continue
            kind = IN_FUTURE if result.reason == IN_FUTURE else result.outcome
            named = self.left.setdefault(kind, [])
            if len(named) < NAMED:
                named.append(result)
            name = result.letter.connector_id
            if kind == "connector_not_found" and name and len(self.connectors) < NAMED:
                self.connectors[name] = None

    @property
    def open(self) -> int:
        return sum(count for outcome, count in self.counts.items() if outcome not in RESOLVING)


def summarize(tally: Tally, total: int, given: Given, *, dry_run: bool) -> None:
    """Print the table, the letters that are left, and what to do about them; on stderr."""
    counts = tally.counts
    say(f"{'WOULD BE' if dry_run else 'OUTCOME':<22} LETTERS")
    for outcome in (*ALWAYS, *sorted(counts.keys() - set(ALWAYS))):
        say(f"  {outcome:<20} {counts[outcome]:>7}")
    if total > counts.total():
        say(f"  {'not tried':<20} {total - counts.total():>7}  (stopped, or resolved meanwhile)")
    for kind in sorted(tally.left, key=list(ADVICE).index):
        _advise(kind, tally.left[kind], tally, given)
    if total > counts.total():
        say("\nto go on, run the same command again")


def _advise(kind: str, results: Sequence[Result], tally: Tally, given: Given) -> None:
    say(f"\n{kind}: {ADVICE[kind]}")
    for command in _commands(kind, results[0], tally, given):
        say(f"  {shlex.join(command)}")
    for result in results:
        about = printable(result.letter.connector_id or "-")
        say(f"  - {result.letter.id} ({about}): {outcome_text(result)}")
    if len(results) == NAMED:
        say(f"  - … (all of them: {PROGRAM} dlq list)")


ADVICE = {
    "connector_not_found": "register the connectors and replay, or discard",
    "invalid": "look at it, then mend or discard it",
    "rejected": "look at it, then mend or discard it",
    IN_FUTURE: "replay once the moment has come, or discard",
    TOO_LARGE: "it is not whole: look at it, then discard it",
    OTHER_STORE: "name that store with --store, or allow its letters here",
    UNREADABLE: "no letter of this program: look at it, then discard it",
}


def _commands(kind: str, result: Result, tally: Tally, given: Given) -> Iterator[list[str]]:
    dlq, letter = [PROGRAM, "dlq"], result.letter
    one, where = ["--id", letter.id], [*given.kafka, *given.store]
    discard = [*dlq, "discard", *given.kafka, *DISCARD]
    again = [*dlq, "replay", *where, *_flags("--store-id", given.store_ids)]
    if kind == "connector_not_found":
        globs = _flags("--connector", [glob.escape(name) for name in tally.connectors])
        if tally.connectors:
            yield [PROGRAM, "connectors", "add", *given.store, "--", *tally.connectors]
        yield [*again, *(globs or one)]
        yield [*discard, *(globs or one)]
        return
    if kind == IN_FUTURE:
        yield [*again, "--reason", IN_FUTURE]
        yield [*discard, *one]
        return
    yield [*dlq, "show", *where, letter.id]
    if kind == OTHER_STORE:
        yield [*again, "--store-id", letter.store, "--all", "--dry-run"]
    elif kind in {TOO_LARGE, UNREADABLE}:
        yield [*discard, *one]
    else:
        yield [*dlq, "edit", *where, *_flags("--store-id", given.store_ids), letter.id]
        yield [*discard, *one]


def _flags(name: str, values: Sequence[str]) -> list[str]:
    return [word for value in values for word in (name, value)]
