"""What publishers send: late, doubled, out of order, wrong, and by clocks that disagree."""

import heapq
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import count, islice

from tests.acceptance.generator import MALFORMED
from tests.oracle import Event

START = datetime(2024, 1, 1, tzinfo=UTC)
SKEW = 120.0  # seconds by which a publisher's clock is wrong, at most
ENDS = ("completed", "error", "canceled")
PUBLISHERS = 8  # at most: what keeps their numbers apart


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """A record to send; `reason` says why it is no event, and is empty where it is one."""

    key: bytes
    value: bytes | None
    event: Event | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mix:
    """How much of what is sent is wrong."""

    connectors: int = 1_000
    poison: float = 0.01
    unknown: float = 0.01  # of 50 connectors that nobody registered
    doubled: float = 0.03
    late: float = 0.05

    @property
    def registered(self) -> list[str]:
        return [f"connector-{n:05}" for n in range(self.connectors)]


class Publisher:
    """One service with a clock of its own; the same items for the same seed."""

    def __init__(self, mix: Mix, number: int, seed: int) -> None:
        self._mix, self._number = mix, number
        self._chance = random.Random(f"{seed}/{number}")  # noqa: S311 - not for secrets
        self._skew = timedelta(seconds=self._chance.uniform(-SKEW, SKEW))
        self._names = mix.registered

    def items(self, wanted: int) -> Iterator[Item]:
        return islice(self._shuffled(), wanted)

    def _shuffled(self) -> Iterator[Item]:
        """Most go out within 30 of their turn, some much later, and some twice."""
        chance, waiting, order = self._chance, list[tuple[int, int, Item]](), count()
        for turn in count():
            for item in self._made(turn):
                late = chance.random() < self._mix.late
                due = turn + (chance.randrange(2_000) if late else chance.randrange(30))
                heapq.heappush(waiting, (due, next(order), item))
                if chance.random() < self._mix.doubled:
                    heapq.heappush(waiting, (due + chance.randrange(500), next(order), item))
            while waiting and waiting[0][0] <= turn:
                yield heapq.heappop(waiting)[2]

    def _made(self, turn: int) -> list[Item]:
        """A connector's events, and among them so many malformed ones that the share is right."""
        connector, poison = self._chance.choice(self._names), self._mix.poison
        if poison == 1:
            return [self._malformed(connector, turn)]
        made = [_item(event) for event in self._events(connector, turn)]
        for _ in list(made):
            while self._chance.random() < poison:
                made.append(self._malformed(connector, turn))
        return made

    def _events(self, connector: str, turn: int) -> list[Event]:
        if self._chance.random() < self._mix.unknown:
            connector = f"unknown-{turn % 50}"
        if self._chance.random() < 0.6:
            return list(self._job(connector, turn))
        return [self._payload(connector, turn)]

    def _malformed(self, connector: str, turn: int) -> Item:
        wrong = {**self._payload(connector, turn), "last_sync": {"last_sync_status": "Done"}}
        values = {**MALFORMED, json.dumps(wrong).encode(): "invalid_status"}
        value, reason = self._chance.choice(list(values.items()))
        return Item(key=connector.encode(), value=value, reason=reason)

    def _job(self, connector: str, turn: int) -> Iterator[Event]:
        """A job's life; its end may carry an earlier time than its start, from another host."""
        began = self._now(turn)
        job = {
            "id": f"job-{self._number}-{turn}",
            "job_type": self._chance.choice(["full", "incremental", "access_control"]),
            "scheduled_at": _text(began - timedelta(minutes=5)),
        }
        yield self._event(connector, turn, 0, began, job={**job, "status": "pending"})
        for step, status in enumerate(self._steps(), 1):
            if status == "in_progress":
                job["started_at"] = _text(began + timedelta(seconds=step))
            at = began + timedelta(seconds=step + self._chance.uniform(-SKEW, SKEW))
            yield self._event(connector, turn, step, at, job={**job, **self._ending(status, turn)})

    def _steps(self) -> list[str]:
        resumed = ["suspended", "in_progress"] if self._chance.random() < 0.1 else []
        canceling = ["canceling"] if self._chance.random() < 0.1 else []
        return ["in_progress", *resumed, *canceling, self._chance.choice(ENDS)]

    def _ending(self, status: str, turn: int) -> Event:
        if status not in ENDS:
            return {"status": status}
        error = "it broke: é" if status == "error" else None
        return {"status": status, "error": error, **self._counts(turn)}

    def _counts(self, turn: int) -> dict[str, int]:
        """Counts that no other job has: a value tells which event has set it."""
        unique = turn * PUBLISHERS + self._number
        return {"indexed_document_count": unique, "deleted_document_count": unique}

    def _payload(self, connector: str, turn: int) -> Event:
        at = self._now(turn)
        every = {
            "last_sync_status": self._chance.choice(ENDS),
            "last_sync_error": self._chance.choice([None, "late"]),
            "last_access_control_sync_status": "completed",
            "last_synced": _text(at),
            "last_sync_scheduled_at": _text(at),
            **{f"last_{name}": value for name, value in self._counts(turn).items()},
        }
        names = self._chance.sample(sorted(every), self._chance.randrange(1, 5))
        return self._event(connector, turn, 0, at, last_sync={name: every[name] for name in names})

    def _event(self, connector: str, turn: int, step: int, at: datetime, **payload: Event) -> Event:
        """One id in a hundred is used again, for other content."""
        reused = self._chance.random() < 0.01
        name = self._chance.randrange(100) if reused else f"{self._number}-{turn}-{step}"
        event_id = f"event-{name}"
        return {
            "event_id": event_id,
            "connector_id": connector,
            "occurred_at": _text(at),
            **payload,
        }

    def _now(self, turn: int) -> datetime:
        jitter = timedelta(microseconds=self._chance.choice([0, 1, 231]))
        return START + timedelta(seconds=turn) + self._skew + jitter


def _item(event: Event) -> Item:
    return Item(key=event["connector_id"].encode(), value=json.dumps(event).encode(), event=event)


def _text(moment: datetime) -> str:
    return moment.isoformat().replace("+00:00", "Z")
