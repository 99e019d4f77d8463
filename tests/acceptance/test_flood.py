"""A wrong or empty store behind a full topic does not flood the dead-letter topic."""

from tests.acceptance import generator
from tests.acceptance.conftest import Stack
from tests.eventually import eventually


async def test_an_empty_registry_holds_and_registering_the_connectors_releases_it(
    stack: Stack,
) -> None:
    made = generator.topic(5_000, 500, seed=6, unknown=0, malformed=0)
    await stack.kafka.produce(stack.topics.source, made.records)
    worker = stack.worker()
    await worker.says("flood breaker", 30)
    await worker.says("LAST_SYNC_FLOOD_SHARE=1", 5)
    assert await stack.letters() == {}
    assert not any((await stack.committed()).values())
    await stack.register(made.registered)
    await stack.drained()
    await stack.assert_true_to(made)
    assert worker.exit_code is None


async def test_one_deleted_connector_with_a_chatty_service_trips_nothing(stack: Stack) -> None:
    made = generator.topic(2_000, 40, seed=7, unknown=0.6, malformed=0)
    one = [r for r in made.records if r.key == b"unknown-1" or (r.key or b"").startswith(b"conn")]
    made.records[:] = one
    made.failing.clear()
    for record in one:
        if record.key == b"unknown-1":
            made.failing["connector_not_found", 404, record.value] += 1
    await stack.fill(made)
    await stack.drain()
    assert made.failing
    await stack.assert_true_to(made)


async def test_a_share_of_1_lets_the_letters_be_written(stack: Stack) -> None:
    made = generator.topic(1_000, 100, seed=8, unknown=0, malformed=0)
    await stack.kafka.produce(stack.topics.source, made.records)
    await stack.drain(LAST_SYNC_FLOOD_SHARE="1")
    letters = await stack.letters()
    assert len(letters) == len(made.records)
    assert {reason for reason, _, _ in letters.values()} == {"connector_not_found"}


async def test_a_drain_does_not_end_while_it_holds(stack: Stack) -> None:
    made = generator.topic(500, 100, seed=15, unknown=0, malformed=0)
    await stack.kafka.produce(stack.topics.source, made.records)
    worker = stack.worker("--drain")
    await eventually(lambda: worker.stderr.count("batch.held") >= 5, 30)
    assert worker.exit_code is None
    await stack.register(made.registered)
    assert await worker.ended(20) == 0
    await stack.assert_true_to(made)
