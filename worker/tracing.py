"""One OpenTelemetry span a batch, linked to the spans of those who published its events.

Endpoint, sampling, resource and limits are those of the standard `OTEL_…` variables, which the SDK
reads itself. Needs the extra `otel`.
"""

import asyncio
import threading
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import (
    SERVICE_NAME,
    SERVICE_VERSION,
    OTELResourceDetector,
    Resource,
)
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Link, SpanKind, Tracer
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from worker import pipeline
from worker.batch import Batch
from worker.errors import MisconfiguredError
from worker.records import Headers

MAX_LINKS = 128  # OpenTelemetry's own default for a span
FLUSH_TIMEOUT = 1.0  # seconds at the end; a collector that is away must not delay the stop
SERVICE = "last-sync-worker"

_propagator = TraceContextTextMapPropagator()


class BatchTracer:
    """Called with a batch, gives the span to work on it in."""

    def __init__(self, tracer: Tracer, *, topic: str, group: str) -> None:
        self._tracer = tracer
        self._name = f"process {topic}"
        self._attributes = {
            "messaging.system": "kafka",
            "messaging.operation.type": "process",
            "messaging.operation.name": "process",
            "messaging.destination.name": topic,
            "messaging.consumer.group.name": group,
        }

    @contextmanager
    def __call__(self, batch: Batch) -> Iterator[None]:
        attributes = self._attributes | {"messaging.batch.message_count": len(batch.records)}
        with self._tracer.start_as_current_span(
            self._name,
            kind=SpanKind.CONSUMER,
            attributes=attributes,
            links=list(links(record.headers for record in batch.records)),
        ) as span:
            yield
            for outcome, count in pipeline.counts(batch.verdicts).items():
                span.set_attribute(f"last_sync.{outcome}", count)
            for step, seconds in batch.seconds.items():
                span.set_attribute(f"last_sync.{step}_seconds", seconds)


def links(every: Iterable[Headers]) -> Iterator[Link]:
    """Link each producer's span once, as far as the limit goes; what is malformed is left out."""
    seen: set[bytes] = set()
    for headers in every:
        given = {name: value for name, value in headers if name in _propagator.fields}
        parent = given.get("traceparent")
        if parent is None or parent in seen:
            continue
        if len(seen) == MAX_LINKS:
            return
        carrier = {n: v.decode("ascii", "replace") for n, v in given.items() if v is not None}
        context = trace.get_current_span(_propagator.extract(carrier)).get_span_context()
        if context.is_valid:
            seen.add(parent)
            yield Link(context)


@asynccontextmanager
async def opened(*, topic: str, group: str, version: str) -> AsyncIterator[BatchTracer]:
    """Export in a thread of the SDK, which drops spans when the collector does not keep up.

    Raises MisconfiguredError when an `OTEL_…` variable cannot be understood.
    """
    try:
        provider = TracerProvider(
            # what the variables say beats our names
            resource=Resource.create({SERVICE_NAME: SERVICE, SERVICE_VERSION: version}).merge(
                OTELResourceDetector().detect()
            ),
            shutdown_on_exit=False,  # it waits for the collector
        )
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    except ValueError as error:
        raise MisconfiguredError(f"an OTEL_… variable cannot be understood: {error}") from None
    try:
        yield BatchTracer(provider.get_tracer(SERVICE, version), topic=topic, group=group)
    finally:
        await _shut_down(provider)


async def _shut_down(provider: TracerProvider) -> None:
    loop, done = asyncio.get_running_loop(), asyncio.Event()

    def flush() -> None:
        provider.shutdown()
        with suppress(RuntimeError):  # the loop has ended meanwhile
            loop.call_soon_threadsafe(done.set)

    threading.Thread(target=flush, name="last-spans", daemon=True).start()
    with suppress(TimeoutError):
        async with asyncio.timeout(FLUSH_TIMEOUT):
            await done.wait()
