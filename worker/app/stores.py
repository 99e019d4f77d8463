"""The connector store that the settings name, and what is done to it by hand."""

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager

from worker import stores
from worker.settings import Settings
from worker.stores import (
    Connector,
    ConnectorStore,
    Difference,
    ElasticsearchAccess,
    MergingStore,
)


def opened(settings: Settings) -> AbstractAsyncContextManager[ConnectorStore]:
    return stores.open_store(settings.required_store_url(), _access(settings))


def opened_for_merging(
    settings: Settings, *, make: bool = True
) -> AbstractAsyncContextManager[MergingStore]:
    url = settings.required_store_url()
    return stores.open_merging_store(url, _access(settings), make=make)


def _access(settings: Settings) -> ElasticsearchAccess:
    key = settings.elasticsearch_api_key
    return ElasticsearchAccess(
        api_key=key.get_secret_value() if key else None,
        cafile=settings.elasticsearch_cafile,
        concurrency=settings.elasticsearch_concurrency,
    )


async def upgrade_store(settings: Settings) -> str:
    """Bring the schema up to date, and describe the store."""
    await stores.upgrade_store(settings.required_store_url())
    async with opened(settings) as store:
        return await store.describe()


async def verify_store(settings: Settings, *, repair: bool) -> AsyncIterator[Difference]:
    """Find, and with `repair` mend, what a crash left behind."""
    async with opened(settings) as store:
        async for difference in store.verify(repair=repair):
            yield difference


async def add_connectors(settings: Settings, ids: Sequence[str]) -> list[bool]:
    async with opened(settings) as store:
        return await store.add(ids)


async def delete_connectors(settings: Settings, ids: Sequence[str]) -> list[bool]:
    async with opened(settings) as store:
        return await store.delete(ids)


async def connector(settings: Settings, connector_id: str) -> Connector | None:
    async with opened(settings) as store:
        return await store.get(connector_id)


async def connectors(settings: Settings) -> AsyncIterator[Connector]:
    async with opened(settings) as store:
        async for found in store.connectors():
            yield found
