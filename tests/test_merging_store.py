"""What a worker opens does without what only the management of connectors takes."""

import asyncio
import json
import subprocess
import sys

from worker.stores import open_store

MERGING = """
import asyncio, json, sys
from schemas.updates import Update
from worker.stores import open_merging_store

async def main():
    update = Update("a", {"last_sync_error": "x"}, 1, 1, "event")
    async with open_merging_store(sys.argv[1], make=False) as store:
        foreseen = await store.preview([update])
        applied = await store.apply([update])
        held = await store.get("a")
        described = await store.describe()
    print(json.dumps({
        "outcomes": [outcome.name for outcome in foreseen + applied],
        "fields": dict(held.fields),
        "store": store.store_id in described and store.store_id,
        "modules": [*sys.modules],
    }))

asyncio.run(main())
"""


def test_merging_takes_no_sqlalchemy(sql_store_url: str) -> None:
    """It is 20 MB of every worker, which answers of the brokers get instead."""
    store_id = asyncio.run(made(sql_store_url))
    ran = subprocess.run(
        [sys.executable, "-c", MERGING, sql_store_url],
        check=True,
        timeout=30,
        capture_output=True,
        text=True,
    )
    found = json.loads(ran.stdout)
    assert not {"sqlalchemy", "aiosqlite", "alembic"} & set(found["modules"])
    assert found["outcomes"] == ["applied", "applied"]
    assert found["fields"] == {"last_sync_error": "x"}
    assert found["store"] == store_id


async def made(url: str) -> str:
    async with open_store(url) as store:
        await store.add(["a"])
        return store.store_id
