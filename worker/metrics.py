"""What Prometheus is told: counted once a batch, labels bounded, no connector ids."""

import time
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from itertools import accumulate, pairwise
from typing import Literal

import prometheus_client as prometheus
from prometheus_client.core import GaugeMetricFamily, HistogramMetricFamily, Metric

from schemas.reasons import REASONS
from schemas.updates import Update
from worker import pipeline
from worker.batch import STEPS, Batch

Cause = Literal["store", "dead_letter_topic", "commit", "flood", "broker"]
CommitResult = Literal["done", "dropped", "failed"]

CAUSES: tuple[Cause, ...] = ("store", "dead_letter_topic", "commit", "flood", "broker")
COMMIT_RESULTS: tuple[CommitResult, ...] = ("done", "dropped", "failed")
WITHOUT_LETTER = ("applied", "duplicate", "superseded")
OF_THE_STORE = ("connector_not_found", "rejected")
OF_THE_LETTER = ("too_large",)
RECORDS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 22_000)
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
MINUTE, HOUR, DAY = 60, 3_600, 86_400
DELAYS = (
    *(0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
    *(MINUTE, 5 * MINUTE, 15 * MINUTE, HOUR, 6 * HOUR, DAY, 3 * DAY, 7 * DAY),
)


class BatchHistogram:
    """A histogram that takes a batch of times: one at a time costs a microsecond each."""

    def __init__(self, name: str, text: str, bounds: Collection[float]) -> None:
        self._name, self._text = name, text
        self._bounds = [*bounds, float("inf")]
        self._found: tuple[Counter[int], float] = Counter(), 0.0

    def observe(self, values: list[int]) -> None:
        """Count times in microseconds, which are given in their order."""
        counts, total = self._found
        ends = [bisect_right(values, 1e6 * bound) for bound in self._bounds]
        more = Counter({at: n - m for at, (m, n) in enumerate(pairwise([0, *ends]))})
        # At once, for the thread that reads it.
        self._found = counts + more, total + sum(values) / 1e6

    def collect(self) -> Iterator[Metric]:
        counts, total = self._found
        sums = accumulate(counts[at] for at in range(len(self._bounds)))
        buckets = [(_bound(le), n) for le, n in zip(self._bounds, sums, strict=True)]
        family = HistogramMetricFamily(self._name, self._text)
        family.add_metric([], buckets, total)
        yield family


class LagGauge:
    """The lag by partition, which is written out when it is asked for: it changes all the time."""

    def __init__(self, name: str, text: str) -> None:
        self._name, self._text = name, text
        self.records: Mapping[int, int] = {}

    def collect(self) -> Iterator[Metric]:
        family = GaugeMetricFamily(self._name, self._text, labels=["partition"])
        for partition, behind in self.records.items():
            family.add_metric([str(partition)], behind)
        yield family


def _delays(batch: Batch, now: int) -> list[int]:
    """Microseconds from `occurred_at` until now of what was applied, in their order."""
    kinds = pipeline.distinct(batch.verdicts)
    applied = {id(verdict) for verdict, _ in kinds if pipeline.name(verdict) == "applied"}
    reads = batch.reads
    if len(applied) < len(kinds):
        pairs = zip(reads, batch.verdicts, strict=True)
        reads = [read for read, verdict in pairs if id(verdict) in applied]
    delays = sorted([now - read.occurred_at for read in reads if isinstance(read, Update)])
    ahead = bisect_left(delays, 0)  # of our clock
    return [0] * ahead + delays[ahead:]


def _bound(bound: float) -> str:
    return "+Inf" if bound == float("inf") else str(float(bound))


class Metrics:
    """All of them, in a registry of their own; known labels begin at zero.

    The event loop changes them, and the thread of the health server reads them.
    """

    def __init__(self, version: str) -> None:
        # a series more for each, which nobody reads
        prometheus.disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = registry = prometheus.CollectorRegistry()
        prometheus.ProcessCollector(registry=registry)
        self._count_events(registry)
        self._time_batches(registry)
        self._watch_the_group(registry)
        self._watch_holds(registry)
        build = prometheus.Gauge(
            "last_sync_build_info",
            "Always 1; the version is a label.",
            ["version"],
            registry=registry,
        )
        build.labels(version).set(1)

    def _count_events(self, registry: prometheus.CollectorRegistry) -> None:
        self._events = prometheus.Counter(
            "last_sync_events_total",
            "Events by what became of them, and why; the reason is empty where nothing failed.",
            ["outcome", "reason"],
            registry=registry,
        )
        self._letters = prometheus.Counter(
            "last_sync_dead_letters_written_total",
            "Dead letters that the brokers have acknowledged.",
            ["reason"],
            registry=registry,
        )
        self._mismatches = prometheus.Counter(
            "last_sync_key_mismatches_total",
            "Events whose record key is not their connector id.",
            registry=registry,
        )
        self._reused = prometheus.Counter(
            "last_sync_reused_event_ids_total",
            "Events with the id of another event of their connector, and other content.",
            registry=registry,
        )
        self._without_letter = {name: self._events.labels(name, "") for name in WITHOUT_LETTER}
        for reason in REASONS:
            self._letters.labels(reason)
            if reason not in OF_THE_LETTER:
                self._events.labels(reason if reason in OF_THE_STORE else "invalid", reason)

    def _time_batches(self, registry: prometheus.CollectorRegistry) -> None:
        self._records = prometheus.Histogram(
            "last_sync_batch_records", "Records in a batch.", registry=registry, buckets=RECORDS
        )
        steps = prometheus.Histogram(
            "last_sync_step_seconds",
            "Time of a batch in each step that it took: all attempts, without the waits between.",
            ["step"],
            registry=registry,
            buckets=SECONDS,
        )
        self._delays = BatchHistogram(
            "last_sync_event_delay_seconds",
            "Time from an event's occurred_at to its being applied.",
            DELAYS,
        )
        registry.register(self._delays)
        self._steps = {step: steps.labels(step) for step in STEPS}

    def _watch_the_group(self, registry: prometheus.CollectorRegistry) -> None:
        self._lag = LagGauge(
            "last_sync_consumer_lag_records",
            "Offsets from what is done to the partition's end, what an open transaction keeps back "
            "included, while it is assigned here.",
        )
        registry.register(self._lag)
        self._oldest: float | None = None
        age = prometheus.Gauge(
            "last_sync_oldest_unprocessed_event_age_seconds",
            "Age, when scraped, of the oldest known record that is not done; 0 when none waits.",
            registry=registry,
        )
        age.set_function(self._age)
        self._rebalances = prometheus.Counter(
            "last_sync_rebalances_total",
            "Assignments of partitions to this worker, the first one too.",
            registry=registry,
        )
        self._assigned = prometheus.Gauge(
            "last_sync_assigned_partitions",
            "Partitions that are assigned to this worker.",
            registry=registry,
        )
        commits = prometheus.Counter(
            "last_sync_commits_total",
            "Commits of offsets; one is dropped when the partitions have become another's.",
            ["result"],
            registry=registry,
        )
        self._progress = prometheus.Gauge(
            "last_sync_last_progress_timestamp_seconds",
            "Unix time of the last commit, or of the last look that found nothing waiting.",
            registry=registry,
        )
        self._progress.set_to_current_time()
        self._commits = {result: commits.labels(result) for result in COMMIT_RESULTS}

    def _watch_holds(self, registry: prometheus.CollectorRegistry) -> None:
        self._holds = prometheus.Counter(
            "last_sync_holds_total",
            "Times that the worker began to hold, by cause.",
            ["cause"],
            registry=registry,
        )
        self._holding = prometheus.Gauge(
            "last_sync_holding", "1 while the worker holds, by cause.", ["cause"], registry=registry
        )
        self._retries = prometheus.Counter(
            "last_sync_store_retries_total",
            "Attempts at the store that failed and were made again.",
            registry=registry,
        )
        for cause in CAUSES:
            self._holds.labels(cause)
            self._holding.labels(cause)

    # --- what happened -----------------------------------------------------------------------

    def batch_done(
        self, batch: Batch, outcomes: Mapping[str, int], *, mismatched: int, reused: int
    ) -> None:
        """Count a batch that is committed; `outcomes` are those of `pipeline.counts`."""
        for outcome, counter in self._without_letter.items():
            counter.inc(outcomes[outcome])
        if sum(map(outcomes.__getitem__, WITHOUT_LETTER)) < len(batch.records):
            failed = [batch.verdicts[i] for i in batch.failures]
            for key, n in Counter((pipeline.name(v), pipeline.reason(v)) for v in failed).items():
                self._events.labels(*key).inc(n)
        self._mismatches.inc(mismatched)
        self._reused.inc(reused)
        self._records.observe(len(batch.records))
        for step, seconds in batch.seconds.items():
            if seconds:
                self._steps[step].observe(seconds)
        self._delays.observe(_delays(batch, time.time_ns() // 1000))

    def letters_written(self, reasons: Iterable[str]) -> None:
        for reason, n in Counter(reasons).items():
            self._letters.labels(reason).inc(n)

    def committed(self, result: CommitResult) -> None:
        self._commits[result].inc()

    def progressed(self) -> None:
        self._progress.set_to_current_time()

    def assigned(self, partitions: int) -> None:
        self._rebalances.inc()
        self._assigned.set(partitions)

    def revoked(self) -> None:
        self._assigned.set(0)

    def lag(self, records: Mapping[int, int], oldest: float | None) -> None:
        """Set the lag by partition, of those that are named alone; `oldest` is Unix time."""
        self._lag.records, self._oldest = records, oldest

    def store_retried(self) -> None:
        self._retries.inc()

    def hold_began(self, cause: Cause) -> None:
        self._holds.labels(cause).inc()
        self._holding.labels(cause).set(1)

    def hold_ended(self, cause: Cause) -> None:
        self._holding.labels(cause).set(0)

    def _age(self) -> float:
        oldest = self._oldest
        return 0.0 if oldest is None else max(0.0, time.time() - oldest)
