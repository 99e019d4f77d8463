"""The disk under some letters is full: the worker holds until the brokers have room again."""

import asyncio
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.brokers import Broker, BrokerFactory, DockerBroker
from tests.chaos.broker_faults import AFTER, MIX, PARTITIONS, PATIENCE, SLOW
from tests.chaos.nursery import Member
from tests.chaos.rig import Result, Rig, Run, running
from tests.chaos.shutdowns import answers
from tests.probes import Probes

NAME = "letters-disk-full"
SIZE = "24m"
RECORDS = 3_000  # with batches of BATCH, more than the worker can do before the disk is full
BATCH = 50
BLOCK = bytes(4_096)
FILLER = "filler"
HELD = 10.0  # seconds
NO_SPACE = "No space left on device"


async def full(rig: Rig, brokers: BrokerFactory) -> Result:
    """Give the broker two small disks, of which one fills up."""
    with TemporaryDirectory(prefix="last-sync-disks-") as folder, ExitStack() as stack:
        try:
            disks = [stack.enter_context(_mounted(Path(folder, name))) for name in ("one", "two")]
        except (OSError, subprocess.CalledProcessError) as error:
            return Result(name=NAME, not_run=f"it has to mount small disks: {error}")
        properties = {
            "log.dirs": ",".join(map(str, disks)),
            "metadata.log.dir": f"{folder}/metadata",
        }
        broker = stack.enter_context(brokers(properties=properties))
        if isinstance(broker, DockerBroker):
            return Result(name=NAME, not_run="the broker's disks are a container's")
        await asyncio.to_thread(broker.start)
        async with running(
            rig,
            NAME,
            rig.store("sqlite", NAME),
            MIX,
            partitions=PARTITIONS,
            bootstrap=broker.bootstrap,
        ) as run:
            return await _full(run, broker, disks)


@contextmanager
def _mounted(folder: Path) -> Iterator[Path]:
    folder.mkdir()
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", folder],
        check=True,
        capture_output=True,
    )
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


async def _full(run: Run, broker: Broker, disks: Sequence[Path]) -> Result:
    disk, probes = await _disk_to_fill(run, disks), Probes()
    await run.publish(RECORDS)
    worker = run.worker("--slow", SLOW, LAST_SYNC_BATCH_SIZE=str(BATCH), **probes.env)
    await worker.says("dead_letter.written", PATIENCE)
    await asyncio.to_thread(_fill, disk)
    await probes.becomes("/readyz", 503, "dead_letter_topic", PATIENCE)
    handled = await run.handled()
    await asyncio.sleep(HELD)
    assert NO_SPACE in broker.log()
    assert await run.handled() == handled < RECORDS, "something was committed"
    (disk / FILLER).unlink()
    await asyncio.to_thread(broker.restart)
    await answers(run.handled)
    await run.publish(AFTER, seed=2)
    await run.drained(PATIENCE)
    problems = await _ended(worker, probes) + await run.read_back()
    facts = f"a disk was full, held at {handled} of {RECORDS} records, unready, until it had room"
    return Result(name=NAME, verdict=await run.verdict(), facts=facts, problems=problems)


async def _disk_to_fill(run: Run, disks: Sequence[Path]) -> Path:
    """One without the group's offsets, with letters of records that lie on the other one.

    The broker puts partitions on the disks in turn: one more in between changes their turn.
    """
    await run.handled()  # makes the topic of the groups' offsets
    (disk,) = [disk for disk in disks if not (disk / "__consumer_offsets-0").exists()]
    for number in range(PARTITIONS):
        there = [(disk / f"{run.topics.dlq}-{n}").exists() for n in range(PARTITIONS)]
        origin = [(disk / f"{run.topics.source}-{n}").exists() for n in range(PARTITIONS)]
        if any(a and not b for a, b in zip(there, origin, strict=True)):
            return disk
        await run.kafka.delete_topic(run.topics.dlq)
        await run.kafka.create_topic(f"{run.topics.dlq}.{number}")
        made = run.rig.nursery.spawn("topics", "create", environ=run.environ)
        assert await made.ended(30) == 0, made.tail
    raise AssertionError("letters and their origins always lie on the same disk")


def _fill(disk: Path) -> None:
    with (disk / FILLER).open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(BLOCK)


async def _ended(worker: Member, probes: Probes) -> list[str]:
    await probes.becomes("/readyz", 200, timeout=PATIENCE)
    worker.signal(signal.SIGTERM)
    code = await worker.ended()
    return [f"exit code {code}: {worker.tail}"] if code else []
