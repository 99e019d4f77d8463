"""The port that every connector store implements."""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pydantic import JsonValue

from schemas.updates import Update
from worker.merge import Outcome


@dataclass(frozen=True, slots=True, kw_only=True)
class Connector:
    """A live connector and its last-sync fields; those never set are left out."""

    id: str
    fields: Mapping[str, JsonValue]


@dataclass(frozen=True, slots=True, kw_only=True)
class Registration:
    """What a caller of Elasticsearch's connector API says of a connector that it registers."""

    index_name: str | None = None
    name: str | None = None
    description: str | None = None
    service_type: str | None = None
    language: str | None = None
    is_native: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Which connectors to list: those that every filter given lets through."""

    index_names: Sequence[str] = ()
    names: Sequence[str] = ()
    service_types: Sequence[str] = ()
    text: str = ""  # somewhere in index name, name or description; with `*` and `?`


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """A place where what people see is not what the events say."""

    connector_id: str
    field: str | None  # None: the connector itself is missing
    found: JsonValue = None
    expected: JsonValue = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ElasticsearchAccess:
    """What reaching an Elasticsearch takes beside its URL."""

    api_key: str | None = None
    cafile: Path | None = None
    concurrency: int = 16  # requests in flight


class MergingStore(Protocol):
    """Connectors, their last-sync fields, and the stamps that decide who may change them.

    This much the worker and a replay need; a `ConnectorStore` does more, under the same promises.

    `tests/contract/` tries each promise on every store; each store's own tests try its errors.

    Order: outcomes come in the order of the updates, one for each, and are those of handling one
    at a time in that order.
    Idempotency: applying an update again changes nothing; it is then `duplicate` or `superseded`.
    Atomicity: a call's changes are visible to others, and durable, all together or not at all,
    and never before it returns or raises. Two writers of one connector lose nothing.
    Rejection: an update whose very content the store refuses for good is `rejected`, with why in
    `detail`; the rest of its batch is merged as if it had not been there, in parts to which
    atomicity applies one by one.
    Errors: `TransientError` when trying again can help; `MisconfiguredError` when a person must
    change something first. After either, nothing of the call is stored, unless the answer to the
    commit itself was lost. Anything else is a bug and should stop the worker.
    Blocking: no call blocks the event loop; each may wait for other writers, seconds at most,
    then `TransientError`. Readers wait for no one.
    Cancellation: a cancelled call has stored all of its changes or none; the store stays usable.
    Values: what is given and what comes back is never shared with the store's own memory, and a
    value comes back as it was given: large integers, floats and Unicode too.
    """

    @property
    def remote(self) -> bool:
        """Whether another process does most of the work."""

    @property
    def leaves_time(self) -> asyncio.Event:
        """Set while `apply` needs little of this process: always where another does the work.

        Where it waits for nothing it is never set.
        """

    @property
    def most(self) -> int:
        """How many updates `apply` may get at once: more take longer than a stop can wait."""

    @property
    def store_id(self) -> str:
        """The UUID made with the data: the same at every opening, another where the data is."""

    async def apply(self, updates: Sequence[Update]) -> list[Outcome]:
        """Merge the updates, and write each connector that changed once."""

    async def preview(self, updates: Sequence[Update]) -> list[Outcome]:
        """Give the outcomes that `apply` would give now, rejections aside; write nothing."""

    async def get(self, connector_id: str) -> Connector | None:
        """Read one connector; None when it is unknown or deleted."""

    async def describe(self) -> str:
        """Name the engine, its version, the schema and the store's id, in one line."""


class ConnectorStore(MergingStore, Protocol):
    """A store whose connectors can be managed, too.

    The answers of `add` and `delete` have the order that outcomes have.
    """

    async def add(self, connector_ids: Sequence[str]) -> list[bool]:
        """Register the connectors; true for each that was not live before, false where it was."""

    async def delete(self, connector_ids: Sequence[str]) -> list[bool]:
        """Reset the connectors and keep their tombstones; true for each that was live."""

    def connectors(self) -> AsyncIterator[Connector]:
        """Read the live connectors in the code-point order of their ids.

        They come in pages, each read by itself, so neither memory nor a transaction holds them
        all: a connector changed meanwhile comes as it was or as it is, none comes twice.
        """

    def verify(self, *, repair: bool) -> AsyncIterator[Difference]:
        """Find what a crash left behind where values are kept twice, and with `repair` mend it."""
