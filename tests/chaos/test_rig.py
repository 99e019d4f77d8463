"""What a run knows of the records that the brokers keep."""

from tests.chaos.events import Mix, Publisher
from tests.chaos.history import Sent
from tests.chaos.rig import Result, Rig, running
from tests.chaos.scenarios import run_all
from tests.kafka import Record

MIX = Mix(connectors=10, poison=0, unknown=0)


async def test_a_record_that_was_kept_and_not_acknowledged_counts_as_sent(rig: Rig) -> None:
    async with running(rig, "kept", rig.store("sqlite", "kept"), MIX) as run:
        (item,) = Publisher(MIX, 0, 1).items(1)
        await run.kafka.produce(run.topics.source, [Record(value=item.value, partition=2)] * 2)
        run.unsure.append(item)
        assert await run.read_back() == []
        assert [(one.origin[1:], one.event) for one in run.history.sent()] == [
            ((2, 0), item.event),
            ((2, 1), item.event),
        ]


async def test_a_scenario_that_fails_tells_how_its_workers_ended(rig: Rig) -> None:
    async def failing() -> Result:
        async with running(rig, "ended", rig.store("sqlite", "ended"), MIX) as run:
            await run.worker(LAST_SYNC_BATCH_SIZE="none").ended()
            raise AssertionError("the probe is silent")

    (result,) = await run_all([("ended", failing)], lambda _: None)
    (problem,) = result.problems
    assert problem.startswith("AssertionError: the probe is silent\na worker ended with 3: ")
    assert "LAST_SYNC_BATCH_SIZE" in problem


async def test_an_acknowledged_record_that_the_brokers_have_lost_is_named(rig: Rig) -> None:
    async with running(rig, "lost", rig.store("sqlite", "lost"), MIX) as run:
        origin = (run.topics.source, 3, 7)
        run.history.add([Sent(origin=origin, event=None, reason="invalid_json", digest="d")])
        assert await run.read_back() == [f"gone: {origin}"]
