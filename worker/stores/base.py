"""The port that every connector store implements."""

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from pydantic import JsonValue

from worker.merge import Outcome, Update


@dataclass(frozen=True, slots=True, kw_only=True)
class Connector:
    """A live connector and its last-sync fields; those never set are left out."""

    id: str
    fields: Mapping[str, JsonValue]


class ConnectorStore(Protocol):
    """Connectors, their last-sync fields, and the stamps that decide who may change them.

    (contract to be written here, each sentence with a contract test)
    """

    @property
    def store_id(self) -> str: ...

    async def apply(self, updates: Sequence[Update]) -> list[Outcome]: ...

    async def preview(self, updates: Sequence[Update]) -> list[Outcome]: ...

    async def add(self, connector_ids: Sequence[str]) -> list[bool]: ...

    async def delete(self, connector_ids: Sequence[str]) -> list[bool]: ...

    async def get(self, connector_id: str) -> Connector | None: ...

    def connectors(self) -> AsyncIterator[Connector]: ...
