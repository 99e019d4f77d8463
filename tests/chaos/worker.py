"""The worker with a fault in it: the real `last-sync`, wrapped where it meets the outside.

    python -m tests.chaos.worker --crash after_apply:3 -- run

wraps the consumer's client, the store and the dead-letter topic, and runs the program. With
`--nursery` it forks such programs on demand: starting Python takes longer than chaos lets it live.
"""

import argparse
import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from aiokafka import AIOKafkaConsumer
from aiokafka.abc import ConsumerRebalanceListener
from sqlalchemy import Engine, event

from schemas.dead_letter import DeadLetter
from schemas.updates import Update
from worker import cli, merge, stores
from worker.dead_letters import DeadLetterTopic
from worker.stores import postgresql_driver

POINTS = (
    "after_poll",
    "after_apply",
    "after_some_letters",
    "after_all_letters",
    "before_commit",
    "after_commit",
    "in_revocation",  # with a batch in the store's hands
)
BUGS = (
    "commit_before_apply",
    "letter_not_awaited",
    "stamp_ignored",
    "revocation_not_drained",
    "lock_not_taken",
    "reset_forgotten",
)
DAWDLE = 0.2  # seconds between a read without a lock and the write
LINGER = 0.5  # seconds that a letter nobody waits for stays in the producer


@dataclass(slots=True, kw_only=True)
class Faults:
    """What is to go wrong in this process."""

    crash: str = ""
    nth: int = 1
    bug: str = ""
    slow: float = 0.0  # seconds that the store takes longer
    journal: bool = False  # tell on stdout what is done for which partition, in which epoch
    client: AIOKafkaConsumer | None = None
    polled: dict[Any, Any] = field(default_factory=dict)  # what the store's batch is made of
    in_hand: bool = False  # a batch was applied and is not committed
    applying: int = 0
    handed_out: dict[Any, int] = field(default_factory=dict)
    tasks: set[Any] = field(default_factory=set)

    def reach(self, point: str) -> None:
        """Die, as by `kill -9`, when this is the point, for the nth time."""
        if point == self.crash:
            self.nth -= 1
            if self.nth == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    @property
    def epoch(self) -> int:
        coordinator = self.client and self.client._coordinator  # nothing public tells it
        return int(coordinator.generation) if coordinator else -1

    def note(self, did: str, offsets: Any, epoch: int | None = None) -> None:
        """Write a line of the journal; the clock is the machine's, the same for all processes."""
        if self.journal:
            epoch = self.epoch if epoch is None else epoch
            where = {tp.partition: at for tp, at in offsets.items()}
            line = {"at": time.monotonic(), "did": did, "epoch": epoch, "offsets": where}
            print(json.dumps(line), flush=True)  # noqa: T201 - this is what stdout is for


class Store:
    """A store whose `apply` is watched; all else is the real one's."""

    def __init__(self, store: Any, faults: Faults) -> None:
        self._store, self._faults = store, faults

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def apply(self, updates: Sequence[Update]) -> Any:
        faults = self._faults
        polled, epoch = faults.polled, faults.epoch
        faults.applying += 1
        try:
            await asyncio.sleep(faults.slow)
            if faults.bug == "stamp_ignored":
                updates = [_arrived_now(update) for update in updates]
            outcomes = await self._store.apply(updates)
        finally:
            faults.applying -= 1
            faults.note("applied", polled, epoch)
        faults.in_hand = True
        faults.reach("after_apply")
        return outcomes


def _arrived_now(update: Update) -> Update:
    return update._replace(at=time.time_ns() // 1000)


class Listener(ConsumerRebalanceListener):  # type: ignore[misc]  # aiokafka ships no types
    """The worker's own, in which a crash or a bug waits for a revocation."""

    def __init__(self, listener: Any, client: AIOKafkaConsumer, faults: Faults) -> None:
        self._listener, self._client, self._faults = listener, client, faults

    async def on_partitions_revoked(self, revoked: set[Any]) -> None:
        faults = self._faults
        if faults.bug == "revocation_not_drained" and faults.handed_out:
            await self._client.commit(dict(faults.handed_out))
        faults.handed_out.clear()
        if faults.applying:
            faults.reach("in_revocation")
        faults.note("revoking", dict.fromkeys(revoked))
        await self._listener.on_partitions_revoked(revoked)
        faults.note("revoked", dict.fromkeys(revoked))

    async def on_partitions_assigned(self, assigned: set[Any]) -> None:
        self._faults.note("assigned", dict.fromkeys(assigned))
        await self._listener.on_partitions_assigned(assigned)


def install(faults: Faults) -> None:
    """Wrap the three seams: the client's calls, the store's `apply`, the letters' `publish`."""
    _watch_client(faults)
    _watch_letters(faults)
    if faults.bug == "lock_not_taken":
        event.listen(Engine, "before_cursor_execute", _without_lock, retval=True)
        vars(postgresql_driver)["_SELECT"] = _unlocked(postgresql_driver._SELECT)
        vars(postgresql_driver)["_UNCHANGED"] = "true"
    if faults.bug == "reset_forgotten":
        vars(merge)["registered"] = lambda _: merge.State(fields={}, stamps={})
    opened = vars(stores)["open_merging_store"]

    @asynccontextmanager
    async def watched(*args: Any, **more: Any) -> AsyncIterator[Store]:
        async with opened(*args, **more) as store:
            yield Store(store, faults)

    vars(stores)["open_merging_store"] = watched


def _without_lock(*call: Any) -> tuple[str, Any]:
    _, _, statement, values, *_ = call
    return _unlocked(statement) if "FOR UPDATE" in statement else statement, values


def _unlocked(statement: str) -> str:
    """Read as if nobody else wrote, and take a moment before what was read is used."""
    unlocked = statement.replace("FOR UPDATE", "")
    return f"SELECT found.* FROM ({unlocked}) AS found, pg_sleep({DAWDLE})"  # noqa: S608


def _watch_client(faults: Faults) -> None:
    getmany, commit, subscribe = (
        AIOKafkaConsumer.getmany,
        AIOKafkaConsumer.commit,
        AIOKafkaConsumer.subscribe,
    )

    async def watched_getmany(client: Any, *args: Any, **more: Any) -> Any:
        polled = await getmany(client, *args, **more)
        handed = {tp: records[-1].offset + 1 for tp, records in polled.items() if records}
        faults.handed_out.update(handed)
        if handed:
            first = {tp: records[0].offset for tp, records in polled.items() if records}
            faults.note("fetched", first)
            faults.polled = faults.polled if faults.applying else first
            if faults.bug == "commit_before_apply":
                await commit(client, handed)
            faults.reach("after_poll")
        return polled

    async def watched_commit(client: Any, offsets: Any = None) -> None:
        in_hand, faults.in_hand = faults.in_hand, False
        if in_hand:
            faults.reach("before_commit")
        faults.note("committing", offsets)
        await commit(client, offsets)
        faults.note("committed", offsets)
        if in_hand:
            faults.reach("after_commit")

    def watched_subscribe(client: Any, topics: Any = (), *, listener: Any = None) -> None:
        faults.client = client
        subscribe(client, topics, listener=Listener(listener, client, faults))

    AIOKafkaConsumer.getmany = watched_getmany
    AIOKafkaConsumer.commit = watched_commit
    AIOKafkaConsumer.subscribe = watched_subscribe


def _watch_letters(faults: Faults) -> None:
    publish = DeadLetterTopic.publish

    async def watched(topic: DeadLetterTopic, letters: Sequence[DeadLetter]) -> Any:
        if faults.bug == "letter_not_awaited":
            faults.tasks.add(asyncio.create_task(_linger(topic, letters)))
            return letters
        if faults.crash == "after_some_letters" and len(letters) > 1:
            await publish(topic, letters[: len(letters) // 2])
            faults.reach("after_some_letters")
        written = await publish(topic, letters)
        faults.reach("after_all_letters")
        return written

    async def _linger(topic: DeadLetterTopic, letters: Sequence[DeadLetter]) -> None:
        await asyncio.sleep(LINGER)
        await publish(topic, letters)

    setattr(DeadLetterTopic, "publish", watched)  # noqa: B010 - as above


def run(arguments: Sequence[str]) -> NoReturn:
    """Put the faults in, and be `last-sync` with the arguments behind `--`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--crash", default="", help=f"{', '.join(POINTS)}; with :N, the Nth time")
    parser.add_argument("--bug", default="", choices=("", *BUGS))
    parser.add_argument("--slow", type=float, default=0.0)
    parser.add_argument("--journal", action="store_true")
    split = arguments.index("--")
    chosen = parser.parse_args(arguments[:split])
    point, _, nth = chosen.crash.partition(":")
    faults = Faults(crash=point, nth=int(nth or 1), bug=chosen.bug, slow=chosen.slow)
    faults.journal = chosen.journal
    install(faults)
    sys.argv = ["last-sync", *arguments[split + 1 :]]
    cli.main()


# --- the nursery -------------------------------------------------------------------------------


def serve() -> None:
    """Answer each line on stdin, a request in JSON, with one on stdout; end with stdin."""
    children: set[int] = set()
    try:
        for line in sys.stdin:
            request = json.loads(line)
            handle = _born if "arguments" in request else _code
            print(json.dumps(handle(request, children)), flush=True)  # noqa: T201 - the protocol
    finally:
        for pid in children:
            os.kill(pid, signal.SIGKILL)


def _born(request: dict[str, Any], children: set[int]) -> int:
    pid = os.fork()
    if pid == 0:
        _become(request)
    children.add(pid)
    return pid


def _code(request: dict[str, Any], children: set[int]) -> int | None:
    """Give a child's exit code, negative for a signal; null while it runs."""
    pid, status = os.waitpid(request["pid"], os.WNOHANG)
    children.discard(pid)
    return os.waitstatus_to_exitcode(status) if pid else None


def _become(request: dict[str, Any]) -> NoReturn:
    code = 1
    try:
        for number, path in enumerate((os.devnull, request["stdout"], request["stderr"])):
            flags = os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT | os.O_APPEND
            os.dup2(os.open(path, flags, 0o644), number)
        os.chdir(request["folder"])
        os.environ.clear()
        os.environ.update(request["environ"])
        sys.stdin = Path(os.devnull).open()  # noqa: SIM115 - the requests are the parent's
        run(request["arguments"])
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def main() -> None:
    if sys.argv[1:] == ["--nursery"]:
        from worker.app import running  # noqa: F401, PLC0415 - once, as the stores
        from worker.stores import elasticsearch, postgresql, sqlite  # noqa: F401, PLC0415

        serve()
    else:
        run(sys.argv[1:])


if __name__ == "__main__":
    main()
