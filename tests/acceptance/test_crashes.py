"""`kill -9` at random points: as if it had never happened."""

import json
import random
import signal

from tests.acceptance import generator
from tests.acceptance.conftest import Stack
from tests.eventually import eventually
from tests.programs import Spawned

KILLS = 5


async def test_killed_at_random_points_and_started_again_the_result_is_the_same(
    stack: Stack,
) -> None:
    made, portion = generator.topic(20_000, 500, seed=2), 4_000
    await stack.register(made.registered)
    chance = random.Random(2)  # noqa: S311 - not for secrets
    for kill in range(KILLS):
        end = (kill + 1) * portion if kill + 1 < KILLS else None
        await stack.publish(made, kill * portion, end)
        before = sum((await stack.committed()).values())
        worker = stack.worker(LAST_SYNC_BATCH_SIZE="100")
        enough = before + chance.randrange(1, 3_000)

        async def far_enough(enough: int = enough) -> bool:
            return sum((await stack.committed()).values()) >= enough

        await eventually(far_enough, 30)
        worker.signal(signal.SIGKILL)
        assert await worker.ended() == -signal.SIGKILL
    assert not await stack.is_drained()
    await stack.drain()
    await stack.assert_true_to(made)


async def test_two_workers_one_stopped_and_one_killed_apply_everything_once_in_effect(
    stack: Stack,
) -> None:
    made = generator.topic(6_000, 500, seed=3)
    await stack.register(made.registered)
    parts = [made.records[:2_000], made.records[2_000:4_000], made.records[4_000:]]
    first, second = stack.worker(), stack.worker()
    await share_partitions(first, second)
    await stack.kafka.produce(stack.topics.source, parts[0])
    await first.says("batch.done", 30)
    await second.says("batch.done", 30)
    first.signal(signal.SIGTERM)
    await stack.kafka.produce(stack.topics.source, parts[1])
    assert await first.ended() == 0
    third = stack.worker()
    await third.says("partitions.assigned", 30)
    second.signal(signal.SIGKILL)
    await stack.kafka.produce(stack.topics.source, parts[2])
    await stack.drained(60)
    third.signal(signal.SIGTERM)
    assert await third.ended() == 0
    await stack.assert_true_to(made)


async def share_partitions(*workers: Spawned) -> None:
    """Wait until each of two workers has two of the four partitions."""

    def shared() -> bool:
        assigned = [
            json.loads(line)["partitions"]
            for worker in workers
            for line in worker.stderr.splitlines()
            if '"partitions.assigned"' in line
        ]
        return sum(len(partitions) == 2 for partitions in assigned) >= len(workers)

    await eventually(shared, 30)
