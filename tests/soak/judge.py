"""The claims of a soak, and the table that shows what they rest on. Pure: figures in, words out."""

import statistics
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TypeVar

from tests.chaos.checker import Verdict
from tests.soak.plan import Plan
from tests.soak.samples import Sample

SLOPE = 1.0  # MB an hour, at most
RISE = 1.5  # times the p99 of the first third, at most
FEWEST = 3  # quiet samples, or quiet periods, that a figure may rest on
FEWEST_FOR_SLOPE = 30  # quiet samples: five minutes
HOUR = 3_600

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Disturbance:
    """A fault, from its begin until the worker had caught up."""

    name: str
    begin: float  # seconds since the begin of the soak
    over: float  # when the fault itself was over
    end: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Period:
    """The delays of the probes that were due in it, in seconds."""

    begin: float
    quiet: bool
    p50: float
    p99: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    name: str
    good: bool
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    plan: Plan
    samples: Sequence[Sample]
    delays: Sequence[tuple[float, float]]
    disturbances: Sequence[Disturbance]

    def quiet(self, begin: float, end: float) -> bool:
        """Whether no fault and no catching up took place between these seconds."""
        return all(one.end < begin or one.begin > end for one in self.disturbances)

    @property
    def settled(self) -> list[Sample]:
        """The samples that count: after the warm-up, at quiet moments."""
        return [s for s in self.samples if s.at >= self.plan.settled and self.quiet(s.at, s.at)]

    def periods(self) -> Iterator[Period]:
        length = self.plan.period
        for number in range(int(self.plan.seconds // length)):
            begin = number * length
            took = [delay for due, delay in self.delays if begin <= due < begin + length]
            if len(took) > FEWEST:
                p50, p99 = percentiles(took)
                quiet = self.quiet(begin, begin + length)
                yield Period(begin=begin, quiet=quiet, p50=p50, p99=p99)


def percentiles(values: Collection[float]) -> tuple[float, float]:
    cuts = statistics.quantiles(values, n=100, method="inclusive")
    return cuts[49], cuts[98]


def slopes(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Give least squares, and Theil-Sen: the median of the slopes between any two points."""
    least = statistics.linear_regression(*zip(*points, strict=True)).slope
    every = [(y2 - y1) / (x2 - x1) for (x1, y1), (x2, y2) in combinations(points, 2)]
    return least, statistics.median(every)


# --- claims ------------------------------------------------------------------------------------


def claims(measured: Measured, verdict: Verdict | None, problems: Sequence[str]) -> list[Claim]:
    return [
        memory(measured),
        constant(measured, "file descriptors", lambda sample: sample.fds),
        constant(measured, "threads", lambda sample: sample.threads),
        delay(measured),
        loss(verdict),
        Claim(name="nothing went wrong", good=not problems, text="; ".join(problems) or "as meant"),
    ]


def memory(measured: Measured) -> Claim:
    """Both slopes have to be small: one is moved by a late step, the other by a steady creep."""
    name, points = "memory", [(s.at / HOUR, s.rss) for s in measured.settled]
    if len(points) < FEWEST_FOR_SLOPE:
        return _too_few(name, "samples")
    least, median = slopes(points)
    sizes = [size for _, size in points]
    return Claim(
        name=name,
        good=max(least, median) < SLOPE,
        text=f"RSS {least:+.2f} MB/h by least squares, {median:+.2f} by Theil-Sen, below {SLOPE}"
        f" wanted; {min(sizes):.1f} to {max(sizes):.1f} MB in {len(points)} quiet samples",
    )


def constant(measured: Measured, name: str, of: Callable[[Sample], int]) -> Claim:
    """No more in the last third than in the first; a connection may be missing after a fault."""
    first, last = ([of(s) for s in third] for third in _thirds(measured, measured.settled, _at))
    if min(len(first), len(last)) < FEWEST:
        return _too_few(name, "samples in the first or the last third")
    usual = statistics.mode(first), statistics.mode(last)
    most = max(first), max(last)
    return Claim(
        name=name,
        good=most[1] <= most[0],
        text=f"at most {most[0]} in the first third and {most[1]} in the last,"
        f" most often {usual[0]} and {usual[1]}",
    )


def delay(measured: Measured) -> Claim:
    quiet = [p for p in measured.periods() if p.quiet and p.begin >= measured.plan.settled]
    first, last = (
        [p.p99 for p in third] for third in _thirds(measured, quiet, lambda period: period.begin)
    )
    if min(len(first), len(last)) < FEWEST:
        return _too_few("delay", "quiet periods in the first or the last third")
    before, after = 1000 * statistics.median(first), 1000 * statistics.median(last)
    return Claim(
        name="delay",
        good=after <= RISE * before,
        text=f"median p99 of quiet periods {before:.0f} ms in the first third, {after:.0f} ms in"
        f" the last, at most {RISE} times as much wanted; {len(quiet)} quiet periods",
    )


def _thirds(
    measured: Measured, values: Sequence[T], at: Callable[[T], float]
) -> tuple[list[T], list[T]]:
    begin, end = measured.plan.settled, measured.plan.seconds
    third = (end - begin) / 3
    return (
        [value for value in values if at(value) < begin + third],
        [value for value in values if at(value) >= end - third],
    )


def _at(sample: Sample) -> float:
    return sample.at


def _too_few(name: str, what: str) -> Claim:
    return Claim(name=name, good=False, text=f"too few {what} to tell: let it run longer")


def loss(verdict: Verdict | None) -> Claim:
    name = "nothing lost"
    if verdict is None:
        return Claim(name=name, good=False, text="it did not come to a check")
    counts = ", ".join(
        f"{count} {kind.replace('_', ' ')}" for kind, count in verdict.counts.items()
    )
    text = f"{verdict.events:,} records, {verdict.letters:,} letters: {counts}"
    return Claim(name=name, good=verdict.clean, text=text)


# --- what is shown -----------------------------------------------------------------------------


def table(measured: Measured) -> Iterator[str]:
    """Give a line a window: what was handled, what the worker took, delays of quiet periods."""
    plan, periods = measured.plan, list(measured.periods())
    yield (
        f"{'minutes':>13} {'events':>9} {'RSS MB':>7} {'private':>7} {'fds':>4} {'threads':>7}"
        f" {'CPU %':>6} {'p50 ms':>7} {'p99 ms':>7}  quiet  faults"
    )
    for number in range(round(plan.seconds / plan.window)):
        begin, end = number * plan.window, (number + 1) * plan.window
        samples = [s for s in measured.samples if begin <= s.at < end]
        quiet = [p for p in periods if p.quiet and begin <= p.begin < end]
        if samples:
            faults = [one.name for one in measured.disturbances if begin <= one.begin < end]
            yield (
                f"{begin / 60:6.1f}-{end / 60:6.1f} {_resources(samples)} {_delays(quiet)}"
                f"  {len(quiet):>5}  {', '.join(faults)}"
            )


def _resources(samples: Sequence[Sample]) -> str:
    first, last = samples[0], samples[-1]
    counted = [s.events for s in samples if s.events is not None]
    events = counted[-1] - counted[0] if counted else 0
    cpu = 100 * (last.cpu - first.cpu) / (last.at - first.at) if last.at > first.at else 0.0
    rss, private, fds, threads = (
        statistics.median(getattr(s, name) for s in samples)
        for name in ("rss", "private", "fds", "threads")
    )
    return f"{events:9,.0f} {rss:7.1f} {private:7.1f} {fds:4.0f} {threads:7.0f} {cpu:6.1f}"


def _delays(quiet: Sequence[Period]) -> str:
    if not quiet:
        return f"{'-':>7} {'-':>7}"
    p50, p99 = (
        1000 * statistics.median(getattr(p, name) for p in quiet) for name in ("p50", "p99")
    )
    return f"{p50:7.0f} {p99:7.0f}"
