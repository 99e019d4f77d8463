import asyncio
from typing import Any

from worker.batch import Batch
from worker.reader import Reader


def batch(records: int, seconds: float) -> Batch:
    each: Any = None
    found = Batch(records=[each] * records)
    found.seconds["store"] = seconds
    return found


def test_a_batch_becomes_as_large_as_the_store_can_take_within_a_second() -> None:
    client: Any = None
    reader = Reader(client, group="g", batch_size=1_000, stop=asyncio.Event())
    sizes = []
    for records, seconds in [
        *((1_000, 0.1), (1_000, 0.9), (1_000, 4.0)),  # as many as is allowed, until it is too slow
        *((100, 0.1), (250, 0.6)),  # not full; full, and it took its time
        *((250, 0.1), (500, 0.1)),  # better, and well
        (1, 60.0),  # there is always one
    ]:
        reader.learn(batch(records, seconds))
        sizes.append(reader.most)
    assert sizes == [1_000, 1_000, 250, 250, 250, 500, 1_000, 1]
