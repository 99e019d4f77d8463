"""Metrics: names and labels as Prometheus wants them, bounded, and there from the beginning."""

import random
import shutil
import subprocess
import time
from types import SimpleNamespace
from typing import Any

import prometheus_client
import pytest
from aiokafka import TopicPartition
from prometheus_client.openmetrics import exposition, parser

from schemas.reasons import REASONS, Invalid
from schemas.updates import Update
from tests.probes import Samples, of, parsed
from worker import metrics as module
from worker import pipeline
from worker.batch import Batch
from worker.lag import Lag
from worker.merge import APPLIED, CONNECTOR_NOT_FOUND, DUPLICATE, SUPERSEDED, Outcome
from worker.metrics import BatchHistogram, Metrics
from worker.pipeline import Verdict


@pytest.fixture
def metrics() -> Metrics:
    return Metrics("1.2.3")


def samples(metrics: Metrics) -> Samples:
    return parsed(prometheus_client.generate_latest(metrics.registry).decode())


def record(offset: int, *, at: float, partition: int = 0) -> Any:
    return SimpleNamespace(partition=partition, offset=offset, timestamp=round(at * 1000))


def finished(*verdicts: Verdict, age: float = 1.0) -> Batch:
    """A batch with these verdicts, of events that happened `age` seconds ago."""
    now = time.time()
    event = Update("c", {}, at=1, rank=1, event_id="e", occurred_at=round(1e6 * (now - age)))
    records = [record(n, at=now) for n in range(len(verdicts))]
    batch = Batch.of({TopicPartition("t", 0): records})
    batch.reads = [v if isinstance(v, Invalid) else event for v in verdicts]
    batch.verdicts = list(verdicts)
    batch.failures = pipeline.failures(verdicts)
    return batch


def count(metrics: Metrics, batch: Batch) -> None:
    metrics.batch_done(batch, pipeline.counts(batch.verdicts), mismatched=0, reused=0)


def invalid(reason: str) -> Invalid:
    return Invalid(reason=reason, path="", message="")


EVERY = [APPLIED, DUPLICATE, SUPERSEDED, CONNECTOR_NOT_FOUND, Outcome("rejected", "why")]
OF_OUTCOMES = {"connector_not_found", "rejected", "too_large"}


def test_every_outcome_is_counted_with_its_reason(metrics: Metrics) -> None:
    count(metrics, finished(*EVERY, APPLIED, invalid("invalid_time"), invalid("invalid_time")))
    found = samples(metrics)
    for outcome, reason, n in (
        ("applied", "", 2),
        ("duplicate", "", 1),
        ("superseded", "", 1),
        ("connector_not_found", "connector_not_found", 1),
        ("rejected", "rejected", 1),
        ("invalid", "invalid_time", 2),
    ):
        assert of(found, "events_total", outcome=outcome, reason=reason) == n


def test_all_that_can_happen_makes_no_series_that_was_not_there_before(metrics: Metrics) -> None:
    """So a rate sees the first one, and labels are bounded."""
    metrics.lag({0: 0}, None)
    before = samples(metrics).keys()
    count(metrics, finished(*EVERY, *(invalid(r) for r in REASONS.keys() - OF_OUTCOMES)))
    metrics.letters_written(list(REASONS))
    for cause in module.CAUSES:
        metrics.hold_began(cause)
    for result in module.COMMIT_RESULTS:
        metrics.committed(result)
    assert samples(metrics).keys() == before


def test_no_series_begins_with_a_value_except_the_version_and_the_start(metrics: Metrics) -> None:
    found = {key: value for key, value in samples(metrics).items() if key[0].startswith("last_")}
    begun = {name for (name, _), value in found.items() if value}
    assert begun == {"last_sync_build_info", "last_sync_last_progress_timestamp_seconds"}
    assert of(found, "build_info", version="1.2.3") == 1


def test_the_delay_is_that_of_applied_events_alone(metrics: Metrics) -> None:
    count(metrics, finished(APPLIED, APPLIED, SUPERSEDED, DUPLICATE, age=40.0))
    found = samples(metrics)
    assert of(found, "event_delay_seconds_count") == 2
    assert of(found, "event_delay_seconds_bucket", le="30.0") == 0
    assert of(found, "event_delay_seconds_bucket", le="60.0") == 2
    assert of(found, "event_delay_seconds_sum") == pytest.approx(80, abs=1)


def test_a_publisher_s_clock_that_is_ahead_makes_no_negative_delay(metrics: Metrics) -> None:
    count(metrics, finished(APPLIED, age=-200.0))
    assert of(samples(metrics), "event_delay_seconds_sum") == 0


def test_each_delay_of_a_batch_is_counted_in_its_bucket(metrics: Metrics) -> None:
    batch = finished(*[APPLIED] * 5)
    ages = (200.0, -200.0, 0.3, 4_000.0, 0.01)
    batch.reads = [read for age in ages for read in finished(APPLIED, age=age).reads]
    count(metrics, batch)
    found = samples(metrics)
    assert of(found, "event_delay_seconds_sum") == pytest.approx(4_200, abs=5)
    buckets = {
        le: of(found, "event_delay_seconds_bucket", le=le) for le in ("0.25", "1.0", "300.0")
    }
    assert buckets == {"0.25": 2, "1.0": 3, "300.0": 4}


def test_a_histogram_of_batches_is_that_of_single_values() -> None:
    chance, bounds = random.Random(5), [0.1, 1, 60]  # noqa: S311 - not a secret
    values = [0.1, 60, 1e9, *(chance.uniform(0, 100) for _ in range(500))]
    registry = Metrics("").registry
    theirs = prometheus_client.Histogram("one_seconds", "x", buckets=bounds, registry=registry)
    ours = BatchHistogram("two_seconds", "x", bounds)
    registry.register(ours)
    for value in values:
        theirs.observe(value)
    for some in (values[:300], values[300:]):
        ours.observe(sorted(round(1e6 * value) for value in some))
    text = prometheus_client.generate_latest(registry).decode()
    expected = {key: value for key, value in parsed(text).items() if key[0].startswith("one")}
    assert len(expected) == len(bounds) + 3  # and the last bucket, count and sum
    for (name, labels), value in expected.items():
        assert parsed(text)[name.replace("one", "two"), labels] == pytest.approx(value)


@pytest.mark.parametrize("openmetrics", [False, True])
def test_the_output_is_what_prometheus_reads(metrics: Metrics, openmetrics: bool) -> None:  # noqa: FBT001
    metrics.lag({0: 5, 11: 0}, 1.0)
    count(metrics, finished(*EVERY))
    if openmetrics:
        text = exposition.generate_latest(metrics.registry).decode()  # type: ignore[no-untyped-call]
        assert list(parser.text_string_to_metric_families(text))  # type: ignore[no-untyped-call]
        return
    text = prometheus_client.generate_latest(metrics.registry).decode()
    if promtool := shutil.which("promtool"):
        done = subprocess.run(
            [promtool, "check", "metrics"], input=text, capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert parsed(text)


# --- lag -----------------------------------------------------------------------------------------

ONE, TWO = TopicPartition("t", 1), TopicPartition("t", 2)


def lag_of(metrics: Metrics) -> dict[str, float]:
    return {
        dict(labels)["partition"]: value
        for (name, labels), value in samples(metrics).items()
        if name == "last_sync_consumer_lag_records"
    }


def age(metrics: Metrics) -> float:
    return of(samples(metrics), "oldest_unprocessed_event_age_seconds")


def test_lag_is_known_while_the_first_batch_is_held(metrics: Metrics) -> None:
    lag, now = Lag(metrics), time.time()
    lag.begun(Batch.of({ONE: [record(10, at=now - 50), record(11, at=now)]}))
    lag.seen({ONE: 112, TWO: 7}, {ONE: 12, TWO: 7})
    assert lag_of(metrics) == {"1": 102, "2": 0}
    assert lag.records == 102
    assert age(metrics) == pytest.approx(50, abs=1)


def test_records_that_came_after_the_last_look_at_the_end_wait_too(metrics: Metrics) -> None:
    lag, now = Lag(metrics), time.time()
    lag.seen({ONE: 10}, {ONE: 10})
    lag.begun(Batch.of({ONE: [record(10, at=now - 50), record(11, at=now)]}))
    assert lag_of(metrics) == {"1": 2}
    assert age(metrics) == pytest.approx(50, abs=1)


def test_the_age_grows_by_itself_and_falls_to_0_when_nothing_waits(
    metrics: Metrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    lag, now = Lag(metrics), time.time()
    batch = Batch.of({ONE: [record(0, at=now - 10)]})
    lag.begun(batch)
    clock = SimpleNamespace(time=lambda: now + 90)
    monkeypatch.setattr(module, "time", clock)
    assert age(metrics) == pytest.approx(100, abs=1)
    lag.moved(batch.offsets)
    lag.finished(batch, {ONE: 1})
    assert (lag_of(metrics), age(metrics)) == ({"1": 0}, 0)


def test_what_follows_a_batch_is_as_old_as_its_last_record_at_most(metrics: Metrics) -> None:
    lag, now = Lag(metrics), time.time()
    batch = Batch.of({ONE: [record(0, at=now - 500), record(1, at=now - 30)]})
    lag.begun(batch)
    lag.moved(batch.offsets)
    lag.finished(batch, {ONE: 9})
    assert lag_of(metrics) == {"1": 7}
    assert age(metrics) == pytest.approx(30, abs=1)


def test_records_that_never_arrive_wait_since_they_were_seen(
    metrics: Metrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    lag = Lag(metrics)
    lag.seen({ONE: 5}, {ONE: 3})
    now = time.time()
    monkeypatch.setattr(module, "time", SimpleNamespace(time=lambda: now + 60))
    assert age(metrics) == pytest.approx(60, abs=1)


def test_partitions_that_are_another_s_have_no_lag_here(metrics: Metrics) -> None:
    lag, now = Lag(metrics), time.time()
    batch = Batch.of({ONE: [record(0, at=now - 500)]})
    lag.begun(batch)
    lag.seen({ONE: 5, TWO: 5}, {ONE: 1, TWO: 1})
    lag.forget()
    assert (lag_of(metrics), age(metrics)) == ({}, 0)
    lag.finished(batch, {})  # its commit was dropped
    assert age(metrics) == 0
