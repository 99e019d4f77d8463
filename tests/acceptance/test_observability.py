"""A real Prometheus that scrapes a real worker: the dashboard shows it, and the alerts speak."""

import asyncio
import json
import shutil
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.acceptance.conftest import Stack, event, record
from tests.brokers import free_port, leash, release
from tests.deploy.conftest import DEPLOY
from tests.eventually import eventually

BOARD = json.loads((DEPLOY / "grafana" / "dashboards" / "last-sync-worker.json").read_text())
EXPRESSIONS = [target["expr"] for panel in BOARD["panels"] for target in panel.get("targets", ())]
CHOSEN = {"$job": "last-sync-worker", "$instance": ".+", "$__rate_interval": "10s"}
FAST = {"scrape_interval": "1s", "evaluation_interval": "1s"}


class Prometheus:
    """Runs with the project's own configuration, but scrapes one worker here, each second."""

    def __init__(self, folder: Path, worker_port: int) -> None:
        self._port = free_port()
        configuration = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())
        configuration["global"] = FAST
        configuration["rule_files"] = [str(DEPLOY / "prometheus" / "alerts.yml")]
        (job,) = configuration["scrape_configs"]
        del job["dns_sd_configs"]
        job["static_configs"] = [{"targets": [f"127.0.0.1:{worker_port}"]}]
        (folder / "prometheus.yml").write_text(yaml.safe_dump(configuration))
        with (folder / "prometheus.log").open("wb") as log:
            self._process = subprocess.Popen(
                [
                    "prometheus",
                    f"--config.file={folder / 'prometheus.yml'}",
                    f"--storage.tsdb.path={folder / 'tsdb'}",
                    f"--web.listen-address=127.0.0.1:{self._port}",
                ],
                stdout=log,
                stderr=log,
            )
        self._leash = leash('kill -9 "$1"', str(self._process.pid))

    async def query(self, expression: str) -> list[Any]:
        answer = await self._get("query", query=expression)
        found: list[Any] = answer["result"]
        return found

    async def firing(self) -> set[str]:
        alerts = (await self._get("alerts"))["alerts"]
        return {one["labels"]["alertname"] for one in alerts if one["state"] == "firing"}

    async def answers(self) -> bool:
        try:
            return bool(await self.query("vector(1)"))
        except OSError:
            return False

    async def _get(self, path: str, **parameters: str) -> Any:
        query = urllib.parse.urlencode(parameters)
        url = f"http://127.0.0.1:{self._port}/api/v1/{path}?{query}"
        return json.loads(await asyncio.to_thread(read, url))["data"]

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        release(self._leash)


def read(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=10) as response:  # noqa: S310 - the test's own server
        body: bytes = response.read()
        return body


@pytest.fixture
def health_port() -> int:
    return free_port()


@pytest.fixture
def prometheus(tmp_path: Path, health_port: int) -> Iterator[Prometheus]:
    if shutil.which("prometheus") is None:
        pytest.fail("no prometheus: install Debian's package prometheus", pytrace=False)
    running = Prometheus(tmp_path, health_port)
    yield running
    running.close()


async def test_every_panel_shows_a_worker_that_works(
    stack: Stack, prometheus: Prometheus, health_port: int
) -> None:
    await eventually(prometheus.answers)
    await stack.register(["hr"])
    stack.worker(LAST_SYNC_HEALTH_PORT=str(health_port))
    await stack.kafka.produce(
        stack.topics.source, [record(event("hr", 1), "hr"), record(event("gone", 1), "gone")]
    )
    await stack.drained()

    async def empty() -> list[str]:
        filled = [await prometheus.query(written_out(expression)) for expression in EXPRESSIONS]
        return [one for one, found in zip(EXPRESSIONS, filled, strict=True) if not found]

    async def all_filled() -> bool:
        return not await empty()

    await eventually(all_filled, 30)
    letters = 'last_sync_dead_letters_written_total{reason="connector_not_found"}'
    ((_, value),) = [one["value"] for one in await prometheus.query(letters)]
    assert value == "1"


def written_out(expression: str) -> str:
    for name, value in CHOSEN.items():
        expression = expression.replace(name, value)
    return expression


async def test_a_flood_pages_at_once_and_one_letter_is_told_of(
    stack: Stack, prometheus: Prometheus, health_port: int
) -> None:
    await eventually(prometheus.answers)
    await stack.register(["hr"])
    stack.worker(LAST_SYNC_HEALTH_PORT=str(health_port))
    await eventually(lambda: prometheus.query('up{job="last-sync-worker"} == 1'))
    await stack.kafka.produce(stack.topics.source, [record(event("gone", 1), "gone")])
    await stack.drained()
    new_and_told = {"LastSyncDeadLetters", "LastSyncNewDeadLetterReason"}

    async def fires(wanted: set[str]) -> bool:
        return await prometheus.firing() == wanted

    await eventually(lambda: fires(new_and_told), 30)
    flood = [record(event(f"new-{n}", 1), f"new-{n}", n % 4) for n in range(40)]
    await stack.kafka.produce(stack.topics.source, flood)
    await eventually(lambda: fires({*new_and_told, "LastSyncFloodBreakerTripped"}), 30)
