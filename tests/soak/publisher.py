"""The process that publishes, at a steady rate whatever the brokers do.

    python -m tests.soak.publisher '{"bootstrap": …}'

A line of JSON a few times a minute says how far it is; it ends when all is acknowledged. The
topic itself is the history of the run: a header says of a record that is no event why.
"""

import asyncio
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count, islice

from aiokafka import AIOKafkaProducer

from tests.chaos.events import Item, Publisher
from tests.soak.plan import PROBE_EVERY, Plan, Schedule, probe

CLOCKS = 3  # publishers that disagree about the time
TICK = 0.005  # seconds
REPORT = 5.0  # seconds
REASON = "soak.reason"  # the header
PATIENCE_MS = 180_000  # longer than any fault: nothing is given up


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    bootstrap: str
    topic: str
    begin: float
    events: int
    rate: int
    connectors: int


@dataclass(slots=True, kw_only=True)
class Progress:
    sent: int = 0
    acknowledged: int = 0
    failed: int = 0
    late: list[float] = field(default_factory=list)  # seconds from due to acknowledged, of probes

    def done(self, sent: "asyncio.Future[object]") -> None:
        if sent.cancelled() or sent.exception():
            self.failed += 1
        else:
            self.acknowledged += 1

    def report(self, now: float) -> str:
        late, self.late = sorted(self.late), []
        figures = {"at": now, "sent": self.sent, "acknowledged": self.acknowledged}
        worst = late[-1] if late else None
        return json.dumps({**figures, "failed": self.failed, "slowest_acknowledgement": worst})


def items(connectors: int) -> Iterator[Item]:
    """Give events of publishers in turn, and a probe in place of every hundredth."""
    mix = Plan(connectors=connectors).mix
    others = [Publisher(mix, number, seed=1).items(sys.maxsize) for number in range(CLOCKS)]
    for number in count():
        if number % PROBE_EVERY == 0:
            event = probe(number // PROBE_EVERY)
            key = event["connector_id"].encode()
            yield Item(key=key, value=json.dumps(event).encode(), event=event)
        else:
            yield next(others[number % CLOCKS])


async def publish(job: Job) -> None:
    # Idempotent: a record that is sent again after a fault is in the topic once.
    producer = AIOKafkaProducer(
        bootstrap_servers=job.bootstrap,
        enable_idempotence=True,
        linger_ms=2,
        max_batch_size=262_144,
        request_timeout_ms=PATIENCE_MS,
    )
    await producer.start()
    schedule, progress = Schedule(begin=job.begin, rate=job.rate), Progress()
    reporting = asyncio.create_task(_report(schedule, progress))
    try:
        for number, item in enumerate(islice(items(job.connectors), job.events)):
            if (wait := schedule.due(number) - schedule.now) > 0:
                await asyncio.sleep(max(wait, TICK))
            await _send(producer, job.topic, item, number, schedule, progress)
        await producer.flush()
    finally:
        reporting.cancel()
        await producer.stop()
    print(progress.report(schedule.now), flush=True)


async def _send(
    producer: AIOKafkaProducer,
    topic: str,
    item: Item,
    number: int,
    schedule: Schedule,
    progress: Progress,
) -> None:
    headers = [(REASON, item.reason.encode())] if item.reason else []
    sent = await producer.send(topic, item.value, key=item.key, headers=headers)
    progress.sent += 1
    sent.add_done_callback(progress.done)
    if number % PROBE_EVERY == 0:
        due = schedule.due(number)
        sent.add_done_callback(lambda _: progress.late.append(schedule.now - due))


async def _report(schedule: Schedule, progress: Progress) -> None:
    while True:
        await asyncio.sleep(REPORT)
        print(progress.report(schedule.now), flush=True)


if __name__ == "__main__":
    asyncio.run(publish(Job(**json.loads(sys.argv[1]))))
