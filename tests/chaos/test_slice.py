"""A slice of `make chaos`, the same scenarios in less than three minutes."""

import pytest

from tests.brokers import BrokerFactory
from tests.chaos.rig import Rig
from tests.chaos.scenarios import SLICE, run_all, scenarios, table
from tests.postgres import PostgresFactory


@pytest.mark.timeout(600)  # half a minute where a machine has nothing else to do
@pytest.mark.parametrize(
    "group",
    [
        "kills",
        "crashes",
        "shutdown",
        "poison",
        "unknown",
        "bisection",
        "network-resets",
        "offsets-deleted",
        "second-writers",
        "bug",
        "without",
        "postgresql-killed rebalances",
    ],
)
async def test_nothing_is_lost_and_every_seeded_bug_is_found_out(
    rig: Rig, brokers: BrokerFactory, postgres_servers: PostgresFactory, group: str
) -> None:
    every, names = scenarios(rig, SLICE, brokers, postgres_servers), tuple(group.split())
    results = await run_all([one for one in every if one[0].startswith(names)], rig.say)
    assert results
    assert all(result.good for result in results), "\n".join(table(results))
