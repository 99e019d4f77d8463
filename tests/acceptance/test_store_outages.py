"""The store away in mid-run, on a real PostgreSQL: nothing lost, nothing dead-lettered."""

import asyncio
import signal
from collections.abc import Callable

import pytest

from tests.acceptance import generator
from tests.acceptance.conftest import Stack
from tests.acceptance.test_crashes import share_partitions
from tests.acceptance.test_outages import AWAY, LENGTHS, RESUMES_WITHIN, outlast
from tests.eventually import eventually
from tests.postgres import PostgresServer
from tests.programs import Spawned
from tests.proxy import Proxy

Own = tuple[Stack, PostgresServer]


@pytest.fixture
async def own(stack: Stack, make_postgres: Callable[..., PostgresServer]) -> Own:
    """Work with a server of the test's own, which it may stop."""
    server = await asyncio.to_thread(make_postgres)
    stack.more = {"LAST_SYNC_STORE_URL": server.url}
    upgraded = await stack.cli("store", "upgrade", env=stack.env)
    assert upgraded.exit_code == 0, upgraded.stderr
    return stack, server


async def goes_on(worker: Spawned) -> None:
    done = worker.stderr.count("batch.done")
    await eventually(lambda: worker.stderr.count("batch.done") > done, RESUMES_WITHIN)


@pytest.mark.parametrize("how", ["stop", "kill", "pause"])
@pytest.mark.parametrize("seconds", LENGTHS)
async def test_a_postgresql_that_is_away_is_waited_for_and_makes_no_dead_letter(
    own: Own, how: str, seconds: float
) -> None:
    stack, server = own
    made = generator.topic(8_000, 200, seed=21, unknown=0, malformed=0)
    await stack.fill(made, until=AWAY)
    worker = stack.worker(LAST_SYNC_BATCH_SIZE="50")
    await worker.says("batch.done", 30)
    await asyncio.to_thread(getattr(server, how))
    await stack.publish(made, AWAY)
    await outlast(seconds)
    assert worker.exit_code is None
    back = server.resume if how == "pause" else server.start
    await asyncio.to_thread(back)
    await goes_on(worker)
    if how != "pause":
        assert "batch.held" in worker.stderr
    await stack.drained()
    await stack.assert_true_to(made)
    assert not await stack.letters()
    worker.signal(signal.SIGTERM)
    assert await worker.ended() == 0


async def test_connections_cut_in_mid_transaction_lose_nothing(own: Own) -> None:
    stack, server = own
    made = generator.topic(8_000, 200, seed=22, unknown=0, malformed=0)
    await stack.fill(made, until=AWAY)
    credentials, _, rest = server.url.rpartition("@")
    address, _, database = rest.partition("/")
    async with Proxy(address) as proxy:
        proxied = f"{credentials}@{proxy.address}/{database}"
        worker = stack.worker(LAST_SYNC_BATCH_SIZE="50", LAST_SYNC_STORE_URL=proxied)
        await worker.says("batch.done", 30)
        for begin in range(AWAY, len(made.records), 500):
            await proxy.switch("reset")
            await proxy.switch("pass")
            await stack.publish(made, begin, begin + 500)
            await goes_on(worker)
        assert "batch.held" in worker.stderr
        await stack.drained()
        await stack.assert_true_to(made)
        assert not await stack.letters()


async def test_two_workers_share_one_postgresql(own: Own) -> None:
    stack, _ = own
    made = generator.topic(12_000, 300, seed=23)
    first, second = (stack.worker(LAST_SYNC_BATCH_SIZE="50") for _ in range(2))
    await share_partitions(first, second)
    await stack.fill(made)
    await first.says("batch.done", 30)
    await second.says("batch.done", 30)
    first.signal(signal.SIGKILL)
    await stack.drained()
    await stack.assert_true_to(made)
