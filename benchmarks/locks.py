"""How often writers wait for each other's locks in PostgreSQL."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import asyncpg

INTERVAL = 0.005  # seconds between two looks
WAITING = (
    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
    " AND wait_event_type = 'Lock'"
)


@dataclass(kw_only=True)
class Looks:
    """How many looks there were, and at how many of them somebody waited."""

    made: int = 0
    waiting: int = 0


@contextmanager
def watched(url: str) -> Iterator[Looks]:
    """Look again and again, from a thread, as long as the block runs."""
    looks, over = Looks(), threading.Event()

    async def look() -> None:
        database = await asyncpg.connect(url)
        while not over.is_set():
            looks.made += 1
            looks.waiting += bool(await database.fetchval(WAITING))
            await asyncio.sleep(INTERVAL)
        await database.close()

    thread = threading.Thread(target=lambda: asyncio.run(look()), name="lock watcher")
    thread.start()
    try:
        yield looks
    finally:
        over.set()
        thread.join()
