"""The process that looks at the whole store now and then, and notes what has changed.

python -m tests.soak.onlooker STORE FOLDER
"""

import asyncio
import signal
import sys
from collections.abc import Mapping
from pathlib import Path

from tests.chaos.history import History, Read
from tests.oracle import Fields
from tests.soak.plan import PARTITIONS, partition_of
from worker.errors import TransientError
from worker.stores import open_store

LOOK = 30.0  # seconds between looks


class Reads:
    """Histories of what was read, one a partition."""

    def __init__(self, folder: Path) -> None:
        self._histories = [History(path_of(folder, n)) for n in range(PARTITIONS)]

    def add(self, connectors: Mapping[str, Fields], *, whole: bool = False) -> None:
        parts: list[dict[str, Fields]] = [{} for _ in self._histories]
        for name, fields in connectors.items():
            parts[partition_of(name)][name] = fields
        for history, part in zip(self._histories, parts, strict=True):
            history.add([Read(connectors=part, whole=whole)])

    def close(self) -> None:
        for history in self._histories:
            history.close()


def path_of(folder: Path, partition: int) -> Path:
    return folder / f"reads-{partition:02}.jsonl"


async def look_on(store_url: str, folder: Path) -> None:
    """Look on until SIGTERM; a store that is away is asked again later."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    reads, seen = Reads(folder), dict[str, Fields]()
    async with open_store(store_url) as store:
        while not stop.is_set():
            try:
                now = {found.id: dict(found.fields) async for found in store.connectors()}
            except TransientError:
                now = {}
            reads.add({name: fields for name, fields in now.items() if seen.get(name) != fields})
            seen |= now
            try:
                await asyncio.wait_for(stop.wait(), LOOK)
            except TimeoutError:
                continue
    reads.close()


if __name__ == "__main__":
    asyncio.run(look_on(sys.argv[1], Path(sys.argv[2])))
