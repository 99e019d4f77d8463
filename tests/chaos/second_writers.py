"""Others write into the store that workers drain into: the API, resets, registrations, replays.

A connector that is written in more than one way has a writer of its own, who does one thing after
the other: what it did later wins, for all of its stamps are times of this machine. Old events of
the same connectors arrive all the while, late and doubled, and may win nothing of that back.
"""

import asyncio
import json
import random
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from http.client import HTTPConnection
from itertools import count
from typing import Any

from aiokafka import AIOKafkaProducer

from tests.brokers import HOST, free_port
from tests.chaos.events import Item, Mix
from tests.chaos.history import Sent
from tests.chaos.kills import FIND, kill
from tests.chaos.nursery import Member
from tests.chaos.rig import Result, Rig, Run, running
from tests.eventually import eventually
from tests.oracle import Event, text
from tests.programs import Spawn

MIX = Mix(connectors=300, unknown=0.05)
LATE = [f"unknown-{n}" for n in range(50)]  # those of the mix; they are registered meanwhile
SHARED = MIX.registered[:60]  # events, PUTs and resets
APART = [f"api-{n}" for n in range(10)]  # PUTs alone; all others: events alone
WORKERS, WRITERS = 3, 8
PAUSE = (0.5, 4.0)  # seconds between two kills, in which workers and writers meet
PACE, LONGEST = 300, 400.0  # old events a second, and seconds
EVENTS, PUTS, REPLACED, DELETED = "events", "PUTs", "replaced", "deleted"
COMMANDED = "deleted by command"
ACTS = {EVENTS: 45, PUTS: 45, REPLACED: 6, DELETED: 3, COMMANDED: 1}  # how often, in 100
REST = (0.0, 0.3)  # seconds of a writer between two acts
MANY = 20  # kills, in whose time everything has to have happened
UNIQUE = 10**9  # counts from here on are a second writer's: each tells which
AT_ONCE = 10  # connectors registered by one command
BETWEEN_REPLAYS = 2.0  # seconds; starting a program costs the machine the most
# In small batches, so that it can be killed between two.
LETTERS = ("--reason", "connector_not_found", "--batch-size", "20")
REPLAY = ("dlq", "replay", *LETTERS, "--yes", "--json")
AWAY, CANNOT_START = 3, 3  # tries, of which each but the last may fail by a 503 or this exit code

# What workers that are wrong on purpose cost here.
FINDS = {
    "stamp_ignored": {"lost", "regressed"},
    "lock_not_taken": {"lost", "regressed"},
    "reset_forgotten": {"regressed"},
}


@dataclass(slots=True, kw_only=True)
class Stage:
    """A run with an API beside its workers, and what was done by whom."""

    run: Run
    port: int
    faults: Sequence[str]
    numbers: Iterator[int] = field(default_factory=count)
    done: Counter[str] = field(default_factory=Counter)
    over: asyncio.Event = field(default_factory=asyncio.Event)

    async def ask(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> None:
        """Have the API do it; what it could not do for now, and so has not done, is asked again."""
        for _ in range(AWAY):
            status, answer = await asyncio.to_thread(self._ask, method, path, body)
            if status in (200, 201):
                return
            assert status == 503, f"{method} {path}: {status} {answer}"
            self.done["asked again"] += 1
        raise AssertionError(f"{method} {path}: {answer}")

    def _ask(self, method: str, path: str, body: Mapping[str, Any] | None) -> tuple[int, str]:
        connection = HTTPConnection(HOST, self.port, timeout=30)
        try:
            sent = None if body is None else json.dumps(body)
            connection.request(method, path, sent, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        finally:
            connection.close()

    def command(self, *arguments: str) -> Member:
        nursery, environ = self.run.rig.nursery, self.run.environ
        return nursery.spawn(*arguments, faults=self.faults, environ=environ)

    async def finished(self, *arguments: str, codes: Sequence[int] = (0,)) -> Member:
        """Run it to its end, again where the machine was too busy for it to start in time."""
        for _ in range(AWAY):
            member = self.command(*arguments)
            code = await member.ended(120)
            if code != CANNOT_START:
                break
        assert code in codes, f"{arguments} ended with {code}: {member.tail}"
        return member


async def second_writers(rig: Rig, *, kills: int, bug: str = "", seed: int = 1) -> Result:
    """Let all of them write until the workers were killed often enough; drain, replay, check."""
    name, faults = f"second-writers-{bug}".rstrip("-"), ["--bug", bug] if bug else []
    chance = random.Random(seed)  # noqa: S311 - not for secrets
    async with running(rig, name, rig.database(), MIX) as run, _served(run, faults) as stage:
        await run.register(APART)
        seconds = kills * (sum(PAUSE) / 2 + FIND)
        async with asyncio.TaskGroup() as others:
            others.create_task(run.publish(int(PACE * LONGEST), seconds=LONGEST, seed=seed))
            for number in range(WRITERS):
                others.create_task(_write(stage, number, random.Random(f"{seed}/{number}")))  # noqa: S311
            others.create_task(_register(stage, seconds / 2))
            others.create_task(_replay_all_the_while(stage))
            try:
                await kill(run, WORKERS, kills, chance, pause=PAUSE, faults=faults)
            finally:
                run.enough.set()
                stage.over.set()
        stage.done["records committed meanwhile"] = await run.handled()
        await run.drain(300)
        await _replay(stage)
        run.registered = [*run.registered, *APART, *LATE]
        facts = ", ".join([f"{kills} kills", *(f"{n:,} {what}" for what, n in stage.done.items())])
        problems = _unproved(stage.done, kills)
        return Result(name=name, verdict=await run.verdict(), facts=facts, problems=problems)


@asynccontextmanager
async def _served(run: Run, faults: Sequence[str]) -> AsyncIterator[Stage]:
    """Start the real `last-sync api` on the run's store; its end has to be orderly."""
    folder, port = run.rig.folder / f"{run.name}-api", free_port()
    folder.mkdir()
    spawn = Spawn(folder, {**run.environ, "LAST_SYNC_API_PORT": str(port)})
    try:
        server = spawn("api")
        await server.says("api.started", 60)
        yield Stage(run=run, port=port, faults=faults)
        server.signal(signal.SIGTERM)
        assert await server.ended() == 0, server.stderr[-1500:]
    finally:
        spawn.close()


def _unproved(done: Counter[str], kills: int) -> list[str]:
    """Name what has to have happened, and did not; a run of a few kills is too short for some."""
    wanted = [EVENTS, PUTS, REPLACED, "replayed: applied", "records committed meanwhile"]
    if kills > MANY:
        wanted += [DELETED, COMMANDED, "replayed: superseded", "replays killed"]
    return [f"0 {what}" for what in wanted if not done[what]]


# --- writers of connectors -----------------------------------------------------------------------


async def _write(stage: Stage, number: int, chance: random.Random) -> None:
    """Do one thing after the other to connectors that no other writer touches."""
    own = (SHARED + APART)[number::WRITERS]
    async with stage.run.producing() as producer:
        while not stage.over.is_set():
            connector = chance.choice(own)
            (what,) = chance.choices(list(ACTS), list(ACTS.values()))
            what = PUTS if connector in APART else what
            if what == EVENTS:
                await _send(stage, producer, _event(stage, connector, chance))
            elif what == PUTS:
                await _put(stage, _event(stage, connector, chance))
            else:
                await _reset(stage, connector, what)
            stage.done[what] += 1
            await asyncio.sleep(chance.uniform(*REST))


def _event(stage: Stage, connector: str, chance: random.Random) -> Event:
    """Some fields, with values that nothing else has, as of now."""
    number, now = next(stage.numbers), _now()
    every = {
        "last_sync_status": chance.choice(["completed", "error", "in_progress"]),
        "last_sync_error": f"error {number}",
        "last_synced": now,
        "last_indexed_document_count": UNIQUE + number,
        "last_deleted_document_count": UNIQUE + number,
    }
    names = chance.sample(sorted(every), chance.randrange(1, 4))
    return {
        "event_id": f"second-{number}",
        "connector_id": connector,
        "occurred_at": now,
        "last_sync": {name: every[name] for name in names},
    }


async def _send(stage: Stage, producer: AIOKafkaProducer, event: Event) -> None:
    value = json.dumps(event).encode()
    item = Item(key=event["connector_id"].encode(), value=value, event=event)
    await stage.run.send(producer, [item])


async def _put(stage: Stage, event: Event) -> None:
    """Note the PUT as an event of a moment between the request and its answer."""
    path = f"/_connector/{event['connector_id']}/_last_sync"
    at = await _timed(lambda: stage.ask("PUT", path, event["last_sync"]))
    put, origin = {**event, "occurred_at": at}, ("api", 0, next(stage.numbers))
    stage.run.history.add([Sent(origin=origin, event=put, reason="", digest="")])


async def _reset(stage: Stage, connector: str, what: str) -> None:
    """Replace the connector, or delete it and register it again a little later."""
    path = f"/_connector/{connector}"
    if what == REPLACED:
        at = await _timed(lambda: stage.ask("PUT", path, {}))
    elif what == DELETED:
        at = await _timed(lambda: stage.ask("DELETE", path))
        await asyncio.sleep(0.5)  # for records that find nobody
        await stage.ask("PUT", path, {})
    else:
        at = await _timed(lambda: stage.finished("connectors", "delete", connector))
        await stage.finished("connectors", "add", connector)
    stage.run.resets[connector] = at


async def _timed(act: Callable[[], Any]) -> str:
    """Do it; give a moment between its beginning and its end, as events write it."""
    began = time.time()
    await act()
    return text(datetime.fromtimestamp((began + time.time()) / 2, UTC))


def _now() -> str:
    return text(datetime.now(UTC))


# --- connectors that are registered too late -----------------------------------------------------


async def _register(stage: Stage, seconds: float) -> None:
    for first in range(0, len(LATE), AT_ONCE):
        await asyncio.sleep(seconds * AT_ONCE / len(LATE))
        await stage.finished("connectors", "add", *LATE[first : first + AT_ONCE])
        stage.done["registered late"] += AT_ONCE


async def _replay_all_the_while(stage: Stage) -> None:
    """Each second replay is killed in the middle of its work, if it has so much to do."""
    while not stage.over.is_set():
        await asyncio.sleep(BETWEEN_REPLAYS)
        await _replay(stage, open_ones=True)
        replay = stage.command(*REPLAY)
        await eventually(partial(_has_begun, replay), 60)
        if replay.exit_code is None:
            replay.signal(signal.SIGKILL)
            stage.done["replays killed"] += 1
        await replay.ended()


def _has_begun(replay: Member) -> bool:
    return bool(replay.stdout) or replay.exit_code is not None


async def _replay(stage: Stage, *, open_ones: bool = False) -> None:
    """Replay to the end; letters may stay open while their connectors are not registered."""
    replay = await stage.finished(*REPLAY, codes=(0, 1) if open_ones else (0,))
    for line in replay.stdout.splitlines():
        stage.done[f"replayed: {json.loads(line)['outcome']}"] += 1
