"""The services of a soak, the worker behind its proxies, and the processes around it."""

import asyncio
import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tests.brokers import HOST, Broker, Listener, find_brokers, free_port, leash, release
from tests.chaos.nursery import ROOT
from tests.conftest import TEMPLATE, upgrade
from tests.eventually import eventually
from tests.kafka import Kafka, Topics
from tests.postgres import Databases, PostgresServer, find_postgres
from tests.probes import Probes
from tests.proxy import Proxy
from tests.soak.plan import PARTITIONS, Plan, Schedule
from tests.soak.publisher import Job
from worker.stores import open_store

PROXIED = "PROXIED"
FAREWELL = 60.0  # seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    broker: Broker
    server: PostgresServer | None
    store: str  # its URL, past any proxy
    port: int  # where the worker's proxy to the broker listens
    folder: Path


@contextmanager
def serving(plan: Plan, folder: Path, say: Callable[[str], None]) -> Iterator[Services]:
    """Start a broker, and a PostgreSQL that writes as it should, where it is the store."""
    port, store = free_port(), f"sqlite:///{folder}/store.db"
    with find_brokers(os.environ, say)(
        listeners=[Listener(name=PROXIED, advertised=port)]
    ) as broker:
        broker.start()
        if plan.store == "sqlite":
            yield Services(broker=broker, server=None, store=store, port=port, folder=folder)
            return
        with find_postgres(os.environ, say)(configuration={"fsync": "on"}) as server:
            server.start()
            databases = Databases(server.url)
            databases.make_template(TEMPLATE, upgrade)
            store = databases.create(TEMPLATE)
            yield Services(broker=broker, server=server, store=store, port=port, folder=folder)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ground:
    """Topics, registered connectors, and the way of the worker to them."""

    services: Services
    kafka: Kafka
    topics: Topics
    proxies: list[Proxy]
    probes: Probes
    environ: dict[str, str]


@asynccontextmanager
async def prepared(plan: Plan, services: Services) -> AsyncIterator[Ground]:
    kafka, topics, store = Kafka(services.broker.bootstrap), Topics.unique(), services.store
    await kafka.create(topics, partitions=PARTITIONS)
    async with open_store(store) as opened:
        await opened.add(plan.registered)
    async with Proxy(services.broker.address(PROXIED), port=services.port) as to_broker:
        proxies, reached = [to_broker], store
        if services.server is not None:
            to_store = Proxy(f"{HOST}:{services.server.port}")
            proxies.append(to_store)
            reached = store.replace(f":{urlsplit(store).port}/", f":{to_store.port}/")
        async with proxies[-1]:
            yield Ground(
                services=services,
                kafka=kafka,
                topics=topics,
                proxies=proxies,
                probes=Probes(),
                environ=_environ(to_broker.address, topics, reached),
            )


def _environ(bootstrap: str, topics: Topics, store: str) -> dict[str, str]:
    mine = {name: value for name, value in os.environ.items() if "LAST_SYNC" not in name}
    return {
        **mine,
        "LAST_SYNC_KAFKA_BOOTSTRAP_SERVERS": bootstrap,
        "LAST_SYNC_KAFKA_TOPIC": topics.source,
        "LAST_SYNC_KAFKA_DEAD_LETTER_TOPIC": topics.dlq,
        "LAST_SYNC_KAFKA_GROUP_ID": topics.group,
        "LAST_SYNC_STORE_URL": store,
    }


class Helper:
    """A Python module that runs beside, and ends with this process at the latest."""

    def __init__(self, module: str, *arguments: str, folder: Path) -> None:
        self.name = module.rpartition(".")[2]
        self._out, self._err = (folder / f"{self.name}.{end}" for end in ("out", "err"))
        with self._out.open("w") as out, self._err.open("w") as err:
            self._process = subprocess.Popen(
                [sys.executable, "-m", module, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                cwd=ROOT,
                start_new_session=True,  # Ctrl-C is for the soak, which then ends it
            )
        self._leash = leash('kill -9 "$1"', str(self._process.pid))

    @property
    def report(self) -> dict[str, Any]:
        """The last whole line that it has written, read as JSON."""
        lines = self._out.read_text().split("\n")[:-1]
        return dict(json.loads(lines[-1])) if lines else {}

    async def ended(self) -> None:
        """Wait for its end, and raise what it said if that was not a good one."""
        await eventually(lambda: self._process.poll() is not None, math.inf)
        if self._process.returncode:
            raise AssertionError(f"the {self.name} failed: {self._err.read_text()[-2000:]}")

    async def end(self) -> None:
        self._process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(FAREWELL):
            await self.ended()

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        release(self._leash)


@contextmanager
def helpers(plan: Plan, ground: Ground, schedule: Schedule) -> Iterator[tuple[Helper, Helper]]:
    """Start the publisher and the onlooker."""
    job = Job(
        bootstrap=ground.kafka.bootstrap,
        topic=ground.topics.source,
        begin=schedule.begin,
        events=round(plan.seconds * plan.rate),
        rate=plan.rate,
        connectors=plan.connectors,
    )
    folder, store = ground.services.folder, ground.services.store
    started: list[Helper] = []
    try:
        started.append(Helper("tests.soak.onlooker", store, str(folder), folder=folder))
        started.append(Helper("tests.soak.publisher", json.dumps(asdict(job)), folder=folder))
        publisher, onlooker = started[1], started[0]
        yield publisher, onlooker
    finally:
        for helper in started:
            helper.close()
