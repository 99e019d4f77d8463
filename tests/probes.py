"""What tests ask of a worker's health server, as orchestrators and Prometheus do."""

import asyncio
from dataclasses import dataclass, field
from http.client import HTTPConnection
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from tests.brokers import HOST, free_port
from tests.eventually import eventually

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Probes:
    """The server at a port of the test's own."""

    port: int = field(default_factory=free_port)

    @property
    def env(self) -> dict[str, str]:
        return {"LAST_SYNC_HEALTH_PORT": str(self.port)}

    async def get(self, path: str, **headers: str) -> tuple[int, str]:
        """Status and body; 0 and the error where nobody answers."""
        return await asyncio.to_thread(self._get, path, headers)

    def _get(self, path: str, headers: dict[str, str]) -> tuple[int, str]:
        connection = HTTPConnection(HOST, self.port, timeout=4)
        try:
            connection.request("GET", path, headers=headers)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        except OSError as error:
            return 0, repr(error)
        finally:
            connection.close()

    async def becomes(self, path: str, status: int, words: str = "", timeout: float = 30) -> str:  # noqa: ASYNC109 - a test's patience
        """Return what the probe says, once it says this."""
        said: tuple[int, str] = (0, "")

        async def as_wanted() -> bool:
            nonlocal said
            said = await self.get(path)
            return said[0] == status and words in said[1]

        try:
            await eventually(as_wanted, timeout)
        except AssertionError:
            raise AssertionError(f"{path} is not {status} with {words!r}, but {said}") from None
        return said[1]

    async def samples(self) -> Samples:
        status, text = await self.get("/metrics")
        assert status == 200, text
        return parsed(text)

    async def value(self, name: str, **labels: str) -> float:
        return of(await self.samples(), name, **labels)


def parsed(text: str) -> Samples:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def of(samples: Samples, name: str, **labels: Any) -> float:
    return samples[f"last_sync_{name}", frozenset(labels.items())]
