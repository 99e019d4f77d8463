"""The ledger: the stamps and winning values of each connector, in an Elasticsearch index.

A document's id is the connector's; its source is

    {"connector_id": "hr-wiki", "deleted": false, "registration": "a UUID of the `add` that did it",
     "state": {"fields": {"last_sync_status": "completed", …},
               "stamps": [[1731165188231000, 4, "event-id", "digest", ["last_sync_status", …]], …]}}
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from elasticsearch import AsyncElasticsearch, BadRequestError, ConflictError, NotFoundError
from elasticsearch.helpers import async_streaming_bulk

from schemas.updates import Stamp
from worker.errors import MisconfiguredError
from worker.merge import State
from worker.stores import elastic_client
from worker.stores.elastic_client import named, translated
from worker.stores.rows import grouped

INDEX = "last-sync-ledger"
SCHEMA = 1
BULK_BYTES = 10 * 1024 * 1024
PAGE = 500  # documents

MAPPINGS = {
    "dynamic": False,
    "properties": {
        "connector_id": {"type": "keyword"},
        "deleted": {"type": "boolean"},
        "state": {"type": "object", "enabled": False},  # kept as it is, and not searched
    },
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A ledger document as it was read, or is to be written in its place.

    `state` is None where there is no document, `registration` also where no `add` made it.
    """

    state: State | None = None
    registration: str | None = None
    seq_no: int | None = None
    primary_term: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Ledger:
    client: AsyncElasticsearch
    url: str
    store_id: str

    async def load(self, connector_ids: Sequence[str]) -> dict[str, Entry]:
        """Read the documents as they are now, whether a search would find them or not."""
        with translated(self.url):
            answer = await self.client.mget(index=INDEX, ids=connector_ids)
        return {doc["_id"]: self._entry(doc) for doc in answer["docs"]}

    async def write(self, changes: Mapping[str, Entry]) -> set[str]:
        """Write each document unless it changed since it was read; gives the ids that lost."""
        lost = set()
        try:
            with translated(self.url):
                async for ok, item in async_streaming_bulk(
                    self.client,
                    (_action(id_, entry) for id_, entry in changes.items()),
                    max_chunk_bytes=BULK_BYTES,
                    raise_on_error=False,
                ):
                    ((_, result),) = item.items()
                    if result["status"] == 409:  # noqa: PLR2004
                        lost.add(result["_id"])
                    elif not ok:
                        raise self._failed(result["status"], result.get("error"))
        except ConflictError:  # of the request as a whole; what was written is a duplicate then
            return {*changes}
        return lost

    async def pages(self) -> AsyncIterator[list[str]]:
        """The ids of all documents, in their order."""
        with translated(self.url):
            await self.client.indices.refresh(index=INDEX)
        after: list[Any] | None = None
        while True:
            with translated(self.url):
                answer = await self.client.search(
                    index=INDEX,
                    size=PAGE,
                    sort=[{"connector_id": "asc"}],
                    search_after=after,
                    source=False,
                )
            hits = answer["hits"]["hits"]
            if hits:
                yield [hit["_id"] for hit in hits]
            if len(hits) < PAGE:
                return
            after = hits[-1]["sort"]

    def _entry(self, doc: Mapping[str, Any]) -> Entry:
        if "error" in doc:
            raise self._failed(404, doc["error"])
        if not doc["found"]:
            return Entry()
        return Entry(
            state=_state_of(doc["_source"]),
            registration=doc["_source"]["registration"],
            seq_no=doc["_seq_no"],
            primary_term=doc["_primary_term"],
        )

    def _failed(self, status: int, error: Any) -> Exception:
        if isinstance(error, dict) and error.get("type") == "index_not_found_exception":
            return MisconfiguredError(
                f"{named(self.url)}: the index {INDEX} is gone, and with it what decides which"
                " event is newer: restore a snapshot, or start anew with `last-sync store upgrade`"
            )
        return elastic_client.of(self.url, status, error)


async def opened(client: AsyncElasticsearch, url: str, version: str) -> Ledger:
    """Find the ledger, or make it; many may do so at once."""
    with translated(url):
        try:
            found = await client.indices.get(index=INDEX)
        except NotFoundError as error:
            if elastic_client.missing(error) is None:
                raise
            await _make(client, version)
            found = await client.indices.get(index=INDEX)
    meta = found[INDEX]["mappings"].get("_meta", {})
    if "store_id" not in meta:
        raise MisconfiguredError(
            f"{named(url)}: the index {INDEX} is not one that this program made: delete or rename"
            " it, if nothing else needs it"
        )
    if meta["schema"] > SCHEMA:
        raise MisconfiguredError(
            f"{named(url)}: the index {INDEX} has the schema {meta['schema']}, and this release"
            f" knows those up to {SCHEMA}; install the release that wrote it, or a newer one"
        )
    return Ledger(client=client, url=url, store_id=meta["store_id"])


async def _make(client: AsyncElasticsearch, version: str) -> None:
    meta = {"store_id": str(uuid4()), "schema": SCHEMA}
    # One node is enough, and more get a copy; a serverless project sees to that itself.
    settings = {} if version == "serverless" else {"auto_expand_replicas": "0-1"}
    try:
        await client.indices.create(
            index=INDEX, mappings={**MAPPINGS, "_meta": meta}, settings=settings
        )
    except BadRequestError as error:
        if error.error != "resource_already_exists_exception":
            raise


def _action(connector_id: str, entry: Entry) -> dict[str, Any]:
    state = entry.state
    assert state is not None  # noqa: S101 - only then there is something to write  # nosec B101
    source = {
        "connector_id": connector_id,
        "deleted": state.deleted,
        "registration": entry.registration,
        "state": {"fields": state.fields, "stamps": grouped(state.stamps)},
    }
    action = {"_index": INDEX, "_id": connector_id, "_source": source}
    if entry.seq_no is None:
        return {**action, "_op_type": "create"}
    return {**action, "if_seq_no": entry.seq_no, "if_primary_term": entry.primary_term}


def _state_of(source: Mapping[str, Any]) -> State:
    kept = source["state"]
    stamps: dict[str, Stamp] = {}
    for at, rank, event_id, digest, names in kept["stamps"]:
        stamps.update(dict.fromkeys(names, Stamp(at, rank, event_id, digest)))
    return State(fields=kept["fields"], stamps=stamps, deleted=source["deleted"])
