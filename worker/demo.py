"""The whole story in one command: an embedded broker, an embedded store, and the real worker."""

import asyncio
import difflib
import logging
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from aiokafka import AIOKafkaProducer
from pydantic import JsonValue
from rich.console import Console, RenderableType
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table

from schemas.last_sync import SyncJob
from schemas.sync_finished import Record, SyncFinished
from schemas.updates import Update
from worker import extras, kafka, logs
from worker.app import running
from worker.app.letters import dead_letters
from worker.dead_letters import ANY_SIZE, DeadLetterTopic
from worker.errors import LastSyncError
from worker.letter_document import LetterDocument
from worker.merge import Outcome
from worker.open_letters import OpenLetter
from worker.replay import Replay, Signature, apply_edited
from worker.settings import Settings
from worker.signals import stopping
from worker.stores import ConnectorStore, open_store
from worker.watchdog import Watchdog

CONNECTORS = ("crm-accounts", "hr-wiki", "legal-contracts", "support-tickets")
FORGOTTEN = "old-intranet"
WIDTH = 80  # columns, where nobody is looking through a wider terminal
WIDEST = 100
SOURCE = "urn:connectors:nightly"
SIGNATURE = Signature(by="the demo", why="shown")


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """One record of the morning, and what a person would say of it."""

    said: str
    record: Record
    event_id: str | None = None  # as the worker will know it; None where the record has none


class Witness:
    """A store that remembers what became of each event; all the rest is the store's own."""

    def __init__(self, store: ConnectorStore) -> None:
        self._store = store
        self.outcomes: dict[str, list[str]] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def apply(self, updates: Sequence[Update]) -> list[Outcome]:
        outcomes = await self._store.apply(updates)
        for update, outcome in zip(updates, outcomes, strict=True):
            self.outcomes.setdefault(update.event_id, []).append(outcome.name)
        return outcomes


@dataclass(slots=True)
class Stage:
    """Where the story is told."""

    console: Console
    settings: Settings
    store: ConnectorStore

    def heading(self, text: str) -> None:
        self.console.print(f"\n[bold]{text}[/bold]")

    def say(self, text: str) -> None:
        self.console.print(text, highlight=False, soft_wrap=True)

    def show(self, what: RenderableType) -> None:
        """Print without the blanks that a layout leaves at the end of lines."""
        with self.console.capture() as captured:
            self.console.print(what, highlight=False)
        for line in captured.get().splitlines():
            self.console.out(line.rstrip(), highlight=False)


async def tell(configured: Settings) -> None:
    """Play the morning and show what the worker made of it, on stdout."""
    logs.configure("error", configured.log_format)
    logging.getLogger(logs.AUDIT).setLevel(logging.ERROR)  # the story itself says it
    with _embedded_broker() as address, tempfile.TemporaryDirectory() as folder:
        url = f"sqlite:///{Path(folder) / 'last-sync.db'}"
        settings = Settings.model_construct(
            **{name: field.get_default() for name, field in Settings.model_fields.items()}
            | {"kafka_bootstrap_servers": address}
        )
        async with open_store(url) as store:
            stage = Stage(_console(), settings, store)
            await _play(stage)


def _console() -> Console:
    console = Console()
    console.width = min(WIDEST, console.width) if console.is_terminal else WIDTH
    return console


@contextmanager
def _embedded_broker() -> Iterator[str]:
    extras.require("demo", "the demo's broker")
    from confluent_kafka import Producer  # noqa: PLC0415 - an extra

    # The cluster lives as long as this client, which is used for nothing else.
    host = Producer({"test.mock.num.brokers": 1, "log_level": 3})
    (broker,) = host.list_topics(timeout=10).brokers.values()
    yield f"{broker.host}:{broker.port}"


async def _play(stage: Stage) -> None:
    scenes = _morning(datetime.now(UTC).replace(second=0, microsecond=0) - timedelta(hours=3))
    stage.heading("1. A broker, a store, four connectors")
    stage.say(
        f"Kafka at {stage.settings.kafka_bootstrap_servers} (librdkafka's mock cluster: the real\n"
        "protocol, but no compaction and one member a group), and a SQLite store."
    )
    await stage.store.add(CONNECTORS)
    stage.say(f"Registered: {', '.join(CONNECTORS)}.")

    stage.heading("2. A morning of sync-finished events")
    places = await _publish(stage.settings, scenes)
    stage.say(
        f"Published {len(scenes)} records to {stage.settings.kafka_topic}: plain JSON and\n"
        "CloudEvents, one late, one twice, two for an unknown connector, three broken."
    )

    stage.heading("3. The worker reads them, until nothing is left")
    witness = Witness(stage.store)
    with stopping() as stop, Watchdog(stage.settings.watchdog_seconds) as watchdog:
        await running.consume(
            stage.settings, witness, stop, watchdog, drain=True, topics_checked=False
        )
        if stop.is_set():
            raise LastSyncError("the demo was stopped before its end")
    letters = await _open_letters(stage)
    stage.show(_outcomes(scenes, places, witness, letters))

    stage.heading("4. What people see now: the connectors' last-sync stats")
    stage.show(await _stats(stage.store))
    stage.say(
        "The late job did not push crm-accounts back, and the record that came twice\n"
        "counted once: for each field the newest event wins, whatever the order."
    )

    stage.heading("5. What waits for a person: the dead letters")
    _show_letters(stage, letters)

    stage.heading("6. The forgotten connector is registered: what would a replay do?")
    await stage.store.add([FORGOTTEN])
    await _replay(stage, dry_run=True)
    stage.say("Nothing was written yet. Now the same, for good:")
    await _replay(stage, dry_run=False)
    stage.say(
        "The year-old letter could not push newer stats back. What is applied or\n"
        "superseded is closed, with who, when and why; the rest stays open."
    )

    stage.heading("7. A malformed letter is mended by hand")
    await _mend(stage)
    stage.show(await _stats(stage.store))
    left = await _open_letters(stage)
    stage.say(f"Still open: {', '.join(letter.reason for letter in left)}.")


def _morning(start: datetime) -> list[Scene]:
    """Three hours ago until now: in order, late, twice, as CloudEvents, unknown and broken."""
    at = _Clock(start)
    completed = at.job(12, "full", "completed", began=0, indexed=1204, deleted=12)
    return [
        at.scene("hr-wiki: full sync is due", "hr-wiki", at.job(0, "full", "pending")),
        at.scene("hr-wiki: it runs", "hr-wiki", at.job(0, "full", "in_progress", began=0)),
        at.scene(
            "crm-accounts: an incremental sync is done",
            "crm-accounts",
            at.job(9, "incremental", "completed", began=5, indexed=87, deleted=3),
            framing="structured",
        ),
        done := at.scene("hr-wiki: it is done", "hr-wiki", completed),
        at.scene(
            "support-tickets: full sync failed",
            "support-tickets",
            at.job(31, "full", "error", began=30, error="503 from the ticket system"),
        ),
        at.scene(
            "legal-contracts: permissions are synced",
            "legal-contracts",
            at.job(44, "access_control", "completed", began=40),
            framing="binary",
        ),
        Scene(
            said="hr-wiki: the same record once more", record=done.record, event_id=done.event_id
        ),
        at.scene(
            "crm-accounts: yesterday's sync, a day late",
            "crm-accounts",
            at.job(-1440, "incremental", "completed", began=-1450, indexed=5, deleted=0),
        ),
        at.scene(
            "old-intranet: a connector nobody registered",
            FORGOTTEN,
            at.job(50, "full", "completed", began=48, indexed=9, deleted=0),
        ),
        at.scene(
            "old-intranet: its sync of a year ago",
            FORGOTTEN,
            at.job(-525_600, "full", "completed", began=-525_602, indexed=7, deleted=0),
        ),
        _broken("hr-wiki: a value cut off on its way", done.record.value[:70]),
        _broken(
            "support-tickets: a status in capitals",
            at.scene(
                "", "support-tickets", at.job(70, "full", "completed", began=65, indexed=310)
            ).record.value.replace(b'"completed"', b'"Completed"'),
        ),
        _broken(
            "hr-wiki: a count that is null",
            at.payload(55, b'{"last_indexed_document_count":null}'),
        ),
    ]


def _broken(said: str, value: bytes) -> Scene:
    return Scene(said=said, record=Record(b"hr-wiki", value, []))


@dataclass(frozen=True, slots=True)
class _Clock:
    """Jobs and events by the minute of the morning."""

    start: datetime

    def moment(self, minute: float) -> datetime:
        return self.start + timedelta(minutes=minute)

    def job(
        self,
        minute: float,
        job_type: str,
        status: str,
        *,
        began: float | None = None,
        indexed: int | None = None,
        deleted: int | None = None,
        error: str | None = None,
    ) -> tuple[datetime, SyncJob]:
        moment = self.moment(minute)
        given: Mapping[str, Any] = {
            "scheduled_at": self.moment(minute if began is None else began),
            "started_at": None if began is None else self.moment(began),
            "completed_at": moment if status == "completed" else None,
            "indexed_document_count": indexed,
            "deleted_document_count": deleted,
            "error": error,
        }
        present = {name: value for name, value in given.items() if value is not None}
        return moment, SyncJob(job_type=job_type, status=status, **present)

    def scene(
        self,
        said: str,
        connector_id: str,
        happened: tuple[datetime, SyncJob],
        framing: Any = "plain",
    ) -> Scene:
        moment, job = happened
        event = SyncFinished.from_job(connector_id=connector_id, job=job, occurred_at=moment)
        record = event.to_record(framing, source=None if framing == "plain" else SOURCE)
        known = event.event_id if framing == "plain" else f"{SOURCE} {event.event_id}"
        return Scene(said=said, record=record, event_id=known)

    def payload(self, minute: float, last_sync: bytes) -> bytes:
        occurred_at = self.moment(minute).isoformat().encode()
        return (
            b'{"event_id":"by-hand","connector_id":"hr-wiki","occurred_at":"%s","last_sync":%s}'
            % (occurred_at, last_sync)
        )


async def _publish(settings: Settings, scenes: Sequence[Scene]) -> list[tuple[int, int]]:
    """Send the records one by one; gives the partition and offset of each."""
    producer = AIOKafkaProducer(**kafka.client_options(settings), acks="all")
    places = []
    async with kafka.started(producer, settings):
        await producer.partitions_for(settings.dead_letter_topic)  # made by being asked for
        for scene in scenes:
            key, value, headers = scene.record
            sent = await producer.send_and_wait(
                settings.kafka_topic, value, key=key, headers=headers
            )
            places.append((sent.partition, sent.offset))
    return places


async def _open_letters(stage: Stage) -> list[OpenLetter]:
    async with dead_letters(stage.settings, topics_checked=False) as letters:
        return sorted(await letters.table(), key=lambda letter: letter.timestamp_ms)


async def _replay(stage: Stage, *, dry_run: bool) -> None:
    """Run the open letters against the store, and print what each did or would do."""
    async with AsyncExitStack() as stack:
        letters = await stack.enter_async_context(
            dead_letters(stage.settings, topics_checked=False)
        )
        opened = DeadLetterTopic.opened(stage.settings, ANY_SIZE)
        run = Replay(
            letters=letters,
            store=stage.store,
            topic=None if dry_run else await stack.enter_async_context(opened),
            signature=SIGNATURE,
            batch_size=stage.settings.batch_size,
            stop=asyncio.Event(),
        )
        table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
        async for results in run.run(await letters.table()):
            for result in sorted(results, key=lambda result: result.letter):
                colour = "green" if result.resolved else "red"
                name = result.letter.connector_id or "-"
                outcome = result.outcome if result.resolved else f"{result.outcome}, stays open"
                table.add_row(f"  {name}", result.letter.reason, f"[{colour}]{outcome}[/{colour}]")
    stage.show(table)


async def _mend(stage: Stage) -> None:
    """Do what `last-sync dlq edit` does, with an editor that knows what is wrong."""
    async with (
        dead_letters(stage.settings, topics_checked=False) as letters,
        DeadLetterTopic.opened(stage.settings, ANY_SIZE) as topic,
    ):
        capitals = [one for one in await letters.table() if one.reason == "invalid_status"]
        for letter in capitals:
            whole = await letters.whole(letter)
            assert whole is not None  # noqa: S101 - it is one of ours  # nosec B101
            before = LetterDocument.of(whole).text()
            after = before.replace('"Completed"', '"completed"')
            for line in difflib.unified_diff(before.splitlines(), after.splitlines(), n=0):
                if not line.startswith(("---", "+++", "@@")):
                    stage.say(escape(f"  {line}"))
            edited = LetterDocument.parsed(after).edited()
            result = await apply_edited(
                [letter], edited, stage.store, topic, signature=SIGNATURE, other_stores=()
            )
            stage.say(f"{letter.connector_id}: {result.outcome}, and the letter is closed.")


def _outcomes(
    scenes: Sequence[Scene],
    places: Sequence[tuple[int, int]],
    witness: Witness,
    letters: Sequence[OpenLetter],
) -> Table:
    table = Table("record", "outcome", box=None, padding=(0, 2, 0, 0), header_style="dim")
    reasons = {(letter.partition, letter.offset): letter.reason for letter in letters}
    for scene, place in zip(scenes, places, strict=True):
        if reason := reasons.get(place):
            table.add_row(scene.said, f"[red]dead letter[/red]: {reason}")
        else:
            outcome = witness.outcomes[scene.event_id or ""].pop(0)
            colour = "green" if outcome == "applied" else "yellow"
            table.add_row(scene.said, f"[{colour}]{outcome}[/{colour}]")
    return table


async def _stats(store: ConnectorStore) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for name in ("connector", "content", "permissions", "synced (UTC)"):
        table.add_column(name, no_wrap=True)
    table.add_column("indexed", justify="right")
    table.add_column("error")
    async for connector in store.connectors():
        fields = connector.fields
        table.add_row(
            connector.id,
            _shown(fields.get("last_sync_status")),
            _shown(fields.get("last_access_control_sync_status")),
            _shown(fields.get("last_synced"))[11:19] or "-",
            _shown(fields.get("last_indexed_document_count")),
            _shown(fields.get("last_sync_error")),
        )
    return table


def _shown(value: JsonValue) -> str:
    return "-" if value is None else str(value)


def _show_letters(stage: Stage, letters: Sequence[OpenLetter]) -> None:
    for letter in letters:
        stage.say(f"[red]{letter.reason}[/red] ({letter.status})")
        stage.say(f"  {escape(letter.id)}")
        stage.show(Padding(escape(letter.message), (0, 0, 0, 2)))
    stage.say(
        f"\nEach is a record of {stage.settings.dead_letter_topic}: the original bytes, and\n"
        "headers with the reason. Nothing was lost, and nothing wrong was stored."
    )
