"""Traces of the real worker: one span a batch, and a collector's trouble is not the worker's."""

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tests.acceptance import generator
from tests.acceptance.conftest import PATIENT, Stack, event, record
from tests.collector import Collector, attributes, collecting
from tests.eventually import eventually
from tests.kafka import Record

TRACE = "0af7651916cd43dd8448eb211c80319c"
SOON = {"OTEL_BSP_SCHEDULE_DELAY": "100"}  # ms


@pytest.fixture
def collector() -> Iterator[Collector]:
    with collecting() as found:
        yield found


def traced(record: Record, number: int) -> Record:
    header = ("traceparent", f"00-{TRACE}-{number:016x}-01".encode())
    return Record(key=record.key, value=record.value, partition=0, headers=[header])


async def test_a_batch_is_one_span_linked_to_its_producers(
    stack: Stack, collector: Collector
) -> None:
    made = generator.topic(40, 10, seed=41, duplicates=0, unknown=0.1, malformed=0.1)
    await stack.register(made.registered)
    records = [traced(record, number // 2 + 1) for number, record in enumerate(made.records)]
    await stack.kafka.produce(stack.topics.source, records)
    attributed = {"OTEL_RESOURCE_ATTRIBUTES": "deployment.environment=test"}
    await stack.drain(**collector.env, **attributed, **PATIENT)
    spans = [span for span in collector.spans if attributes(span)]
    assert {span.name for span in spans} == {f"process {stack.topics.source}"}
    assert {span.kind for span in spans} == {Span.SPAN_KIND_CONSUMER}
    links = [link for span in spans for link in span.links]
    assert {link.trace_id.hex() for link in links} == {TRACE}
    assert {int.from_bytes(link.span_id) for link in links} == set(range(1, 21))
    found = attributes(spans[0])
    assert found["messaging.system"] == "kafka"
    assert found["messaging.operation.type"] == "process"
    assert found["messaging.destination.name"] == stack.topics.source
    assert found["messaging.consumer.group.name"] == stack.topics.group
    counted = [attributes(span) for span in spans]
    assert sum(each["messaging.batch.message_count"] for each in counted) == 40
    letters = sum(made.failing.values())
    failed = ("last_sync.invalid", "last_sync.connector_not_found")
    assert sum(each[name] for each in counted for name in failed) == letters
    assert found["last_sync.store_seconds"] > 0
    assert collector.paths[0] == "/v1/traces"
    assert collector.resources[0]["service.name"] == "last-sync-worker"
    assert collector.resources[0]["deployment.environment"] == "test"
    headers = [dict(record.headers) for record in await stack.kafka.read_all(stack.topics.dlq)]
    assert len(headers) == letters
    assert all((each["traceparent"] or b"").startswith(b"00-" + TRACE.encode()) for each in headers)


async def test_the_service_may_have_a_name_of_its_own(stack: Stack, collector: Collector) -> None:
    await stack.kafka.produce(stack.topics.source, [Record(value=b"{}")])
    await stack.drain(**collector.env, OTEL_SERVICE_NAME="stats-worker")
    assert collector.resources[0]["service.name"] == "stats-worker"


@pytest.mark.parametrize("env", [{}, {"OTEL_SDK_DISABLED": "true", "OTEL_TRACES_EXPORTER": "otlp"}])
async def test_off_costs_no_import(stack: Stack, env: dict[str, str]) -> None:
    done = await stack.cli(
        "run", "--drain", env={**stack.env, **env, "PYTHONPROFILEIMPORTTIME": "1"}
    )
    assert done.exit_code == 0
    assert "worker.consumer" in done.stderr
    assert "opentelemetry" not in done.stderr


async def test_a_missing_extra_is_one_line_with_the_command(stack: Stack, tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    (gone / "opentelemetry.py").write_text(
        "raise ModuleNotFoundError('no such module', name='opentelemetry')"
    )
    env = {**stack.env, "OTEL_TRACES_EXPORTER": "otlp", "PYTHONPATH": str(gone)}
    done = await stack.cli("run", env=env)
    assert done.exit_code == 3
    (line,) = done.stderr.splitlines()
    assert "pip install 'last-sync-worker[otel]'" in line


@pytest.mark.parametrize(
    ("name", "value"),
    [("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"), ("OTEL_SPAN_LINK_COUNT_LIMIT", "-3")],
)
async def test_a_variable_that_cannot_work_is_exit_3_with_one_line(
    stack: Stack, collector: Collector, name: str, value: str
) -> None:
    done = await stack.cli("run", env={**stack.env, **collector.env, name: value})
    assert done.exit_code == 3
    (line,) = done.stderr.splitlines()
    assert value in line


@pytest.mark.parametrize("trouble", ["silent", "refuses", "gone"])
async def test_a_collector_in_trouble_neither_stops_nor_delays_the_worker(
    stack: Stack, collector: Collector, trouble: str
) -> None:
    made = generator.topic(3_000, 100, seed=42)
    await stack.fill(made)
    if trouble == "silent":
        collector.answering.clear()
    collector.status = 503
    env = {**collector.env, **SOON, "OTEL_BSP_MAX_QUEUE_SIZE": "2"}
    env["OTEL_BSP_MAX_EXPORT_BATCH_SIZE"] = "1"
    if trouble == "gone":
        env["OTEL_EXPORTER_OTLP_ENDPOINT"] = "http://127.0.0.1:9"
    worker = stack.worker(LAST_SYNC_BATCH_SIZE="20", **env)
    await stack.drained()
    if trouble != "gone":
        await eventually(collector.asked.is_set)
    await stack.assert_true_to(made)
    worker.signal(signal.SIGTERM)
    asked = time.monotonic()
    assert await worker.ended() == 0
    assert time.monotonic() - asked < 5
    assert "batch.held" not in worker.stderr


async def test_a_redirect_of_the_collector_is_not_followed(
    stack: Stack, collector: Collector
) -> None:
    await stack.register(["known"])
    await stack.kafka.produce(stack.topics.source, [record(event("known", 1), "known")])
    with collecting() as other:
        collector.status, collector.location = 307, other.env["OTEL_EXPORTER_OTLP_ENDPOINT"]
        await stack.drain(**collector.env, OTEL_EXPORTER_OTLP_HEADERS="api-key=s3cret")
        assert collector.paths
        assert not other.asked.is_set()
