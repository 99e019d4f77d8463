"""The worker on an Elasticsearch that fails: it waits or says what to do, and loses nothing."""

import signal
from collections.abc import Iterator
from typing import Any

import pytest

from tests.acceptance import generator
from tests.acceptance.conftest import Stack
from tests.acceptance.test_crashes import share_partitions
from tests.acceptance.test_outages import RESUMES_WITHIN
from tests.elasticsearch import FakeElasticsearch, Request, call, in_a_thread
from tests.eventually import eventually

BEFORE = 1_500  # records: the others make sure that there is work when the trouble comes
Own = tuple[Stack, FakeElasticsearch]


@pytest.fixture
def own(stack: Stack) -> Iterator[Own]:
    server = FakeElasticsearch()
    with in_a_thread(server):
        stack.more = {"LAST_SYNC_STORE_URL": f"elasticsearch+{server.url}"}
        yield stack, server


def puts_values(request: Request) -> bool:
    return request.path.endswith("/_last_sync")


def writes_ledger(request: Request) -> bool:
    return request.path.endswith("/_bulk")


async def assert_true_to(stack: Stack, made: generator.Topic) -> None:
    """As on other stores, but for the list, which is a second late."""

    async def is_listed() -> bool:
        return await stack.stored() == made.expected

    await eventually(is_listed, 10)
    await stack.assert_true_to(made)


@pytest.mark.parametrize("match", [puts_values, writes_ledger], ids=lambda match: match.__name__)
@pytest.mark.parametrize(
    "kind",
    [
        503,
        "reset_after",
        *(pytest.param(kind, marks=pytest.mark.slow) for kind in (409, 429, "reset", "html_502")),
    ],
)
async def test_trouble_is_waited_for_and_makes_no_dead_letter(
    own: Own, kind: Any, match: Any
) -> None:
    stack, server = own
    made = generator.topic(2_000, 50, seed=31, unknown=0, malformed=0)
    await stack.fill(made, until=BEFORE)
    worker = stack.worker(LAST_SYNC_BATCH_SIZE="50")
    await worker.says("batch.done", 30)
    failure = server.fail(kind, match=match)
    await stack.publish(made, BEFORE)
    if kind != 409:  # a lost race is run again at once
        await worker.says("batch.held", 30)
    committed = await stack.committed()
    failure.clear()

    async def goes_on() -> bool:
        return await stack.committed() != committed

    await eventually(goes_on, RESUMES_WITHIN)
    await stack.drained()
    await assert_true_to(stack, made)
    worker.signal(signal.SIGTERM)
    assert await worker.ended() == 0


async def test_a_node_that_is_killed_and_comes_back_is_waited_for(own: Own) -> None:
    stack, server = own
    made = generator.topic(2_000, 50, seed=32, unknown=0, malformed=0)
    await stack.fill(made, until=BEFORE)
    worker = stack.worker(LAST_SYNC_BATCH_SIZE="50")
    await worker.says("batch.done", 30)
    call(server, server.stop())
    await stack.publish(made, BEFORE)
    await worker.says("batch.held", 30)
    call(server, server.start())
    done = worker.stderr.count("batch.done")
    await eventually(lambda: worker.stderr.count("batch.done") > done, RESUMES_WITHIN)
    await stack.drained()
    await assert_true_to(stack, made)


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        (401, "LAST_SYNC_ELASTICSEARCH_API_KEY"),
        (403, "manage_connector"),
        ("html_404", "a proxy or another service answered"),
    ],
)
async def test_a_misconfiguration_stops_the_worker_before_any_letter(
    own: Own, kind: Any, says: str
) -> None:
    stack, server = own
    made = generator.topic(300, 20, seed=33, unknown=0, malformed=0)
    await stack.fill(made)
    server.fail(kind, match=puts_values)
    ended = await stack.cli("run", env=stack.env)
    assert ended.exit_code == 3
    assert says in ended.stderr.splitlines()[-1]
    assert not await stack.letters()
    assert not any((await stack.committed()).values())


async def test_unknown_connectors_and_broken_events_become_the_right_letters(own: Own) -> None:
    stack, _ = own
    made = generator.topic(2_000, 100, seed=34)
    await stack.fill(made)
    await stack.drain()
    await assert_true_to(stack, made)


async def test_two_workers_share_one_elasticsearch_and_one_may_die(own: Own) -> None:
    stack, _ = own
    made = generator.topic(3_000, 100, seed=35)
    first, second = (stack.worker(LAST_SYNC_BATCH_SIZE="50") for _ in range(2))
    await share_partitions(first, second)
    await stack.fill(made)
    await first.says("batch.done", 30)
    await second.says("batch.done", 30)
    first.signal(signal.SIGKILL)
    await stack.drained()
    await assert_true_to(stack, made)
    verified = await stack.cli("store", "verify", env=stack.env)
    assert verified.exit_code == 0, verified.stdout
