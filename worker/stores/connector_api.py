"""Elasticsearch's connector API, as far as this program needs it.

Requests go through the client's `perform_request`: each call of its `connector` methods prints a
warning that the API is not yet generally available, and drops what is None.
"""

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

from elasticsearch import AsyncElasticsearch, NotFoundError
from pydantic import JsonValue

from schemas.last_sync import ERROR_FIELDS, LAST_SYNC_FIELDS, LAST_SYNC_TIMES
from worker.errors import LastSyncError
from worker.stores import elastic_client
from worker.stores.elastic_client import named, translated

PAGE = 100  # connectors; each comes with its whole configuration
LISTED = 10_000  # Elasticsearch pages no further (index.max_result_window)

_JSON = {"accept": "application/json", "content-type": "application/json"}
_MISSING = {"document_missing_exception", "resource_not_found_exception"}
_NO_INDEX = "index_not_found_exception"  # nobody has registered a connector yet


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectorApi:
    client: AsyncElasticsearch
    url: str

    async def get(self, connector_id: str) -> dict[str, JsonValue] | None:
        """The connector's last-sync fields; None where there is no such connector."""
        answer = await self._of_one("GET", connector_id)
        return None if answer is None else fields_of(answer)

    async def register(self, connector_id: str) -> None:
        """Make the connector; one that is there is replaced."""
        await self._of_one("PUT", connector_id, body={"name": connector_id})

    async def delete(self, connector_id: str) -> bool:
        """True where there was such a connector."""
        return await self._of_one("DELETE", connector_id) is not None

    async def put_last_sync(self, connector_id: str, fields: Mapping[str, JsonValue]) -> bool:
        """Set the fields, and leave alone all others; false where there is no such connector."""
        body = {name: _sent(name, value) for name, value in fields.items()}
        return await self._of_one("PUT", connector_id, "/_last_sync", body=body) is not None

    async def connectors(self) -> AsyncIterator[tuple[str, dict[str, JsonValue]]]:
        """Ids and fields of all connectors, those of the last second perhaps left out."""
        start, count = 0, 1
        while start < count:
            if start >= LISTED:
                raise LastSyncError(
                    f"{named(self.url)} lists at most {LISTED} of its {count} connectors"
                )
            try:
                page = await self._request("GET", f"/_connector?from={start}&size={PAGE}")
            except _MissingError:
                return
            for document in page["results"]:
                yield document["id"], fields_of(document)
            start, count = start + PAGE, page["count"]

    async def _of_one(
        self, method: str, connector_id: str, action: str = "", body: Any = None
    ) -> Any:
        """The answer, or None where it says that there is no such connector."""
        try:
            return await self._request(
                method, f"/_connector/{quote(connector_id, safe='')}{action}", body
            )
        except _MissingError:
            return None

    async def _request(self, method: str, path: str, body: Any = None) -> Any:
        with translated(self.url):
            try:
                return await self.client.perform_request(method, path, headers=_JSON, body=body)
            except NotFoundError as error:
                kind = elastic_client.missing(error)
                if kind in _MISSING or (kind == _NO_INDEX and method == "GET"):
                    raise _MissingError from error
                raise


class _MissingError(Exception):
    pass


def _sent(name: str, value: JsonValue) -> JsonValue:
    # The API ignores a null, so that only an empty text can clear an error.
    return "" if value is None and name in ERROR_FIELDS else value


def fields_of(document: Mapping[str, Any]) -> dict[str, JsonValue]:
    """The last-sync fields of a connector's document, as events write them."""
    found = {name: document[name] for name in LAST_SYNC_FIELDS if document.get(name) is not None}
    for name in ERROR_FIELDS & found.keys():
        found[name] = found[name] or None
    for name in found.keys() & set(LAST_SYNC_TIMES):
        found[name] = _time(found[name])
    return found


def _time(text: str) -> str:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:  # another program's, outside the years 1 to 9999
        return text
    return moment.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
