"""A soak's claims hold for figures that are steady, and for none that creep."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest

from tests.chaos.checker import Verdict
from tests.soak.judge import Claim, Disturbance, Measured, claims, slopes, table
from tests.soak.plan import Plan
from tests.soak.samples import Sample

PLAN = Plan(minutes=60, warm_up=10)
DELAYS = [(n / 2, 0.02 + 0.001 * (n % 10)) for n in range(7_200)]
FAULT = Disturbance(name="broker frozen", begin=1_500, over=1_515, end=1_530)


def sample(at: float, **more: float) -> Sample:
    usual = Sample(
        at=at,
        rss=100 + at % 7 / 10,
        pss=90,
        private=80,
        fds=12,
        threads=3,
        cpu=at / 5,
        lag=40,
        events=at * 2_000,
    )
    return replace(usual, **more)  # type: ignore[arg-type]  # floats for some whole numbers


SAMPLES = [sample(at) for at in range(0, 3_600, 10)]


def judged(
    samples: Sequence[Sample] = SAMPLES,
    delays: Sequence[tuple[float, float]] = DELAYS,
    verdict: Verdict | None = None,
    problems: Sequence[str] = (),
) -> list[str]:
    """Name the claims that do not hold."""
    found = claims(measured(samples, delays), verdict or Verdict(), problems)
    return [claim.name for claim in found if not claim.good]


def measured(
    samples: Sequence[Sample] = SAMPLES, delays: Sequence[tuple[float, float]] = DELAYS
) -> Measured:
    return Measured(plan=PLAN, samples=samples, delays=delays, disturbances=[FAULT])


def changed(change: Callable[[Sample], Sample]) -> list[Sample]:
    return [change(one) for one in SAMPLES]


def test_a_worker_that_stays_as_it_was_passes() -> None:
    assert judged() == []


def test_two_megabytes_an_hour_are_a_creep_and_half_a_one_is_none() -> None:
    assert judged(changed(lambda one: replace(one, rss=one.rss + one.at / 1_800))) == ["memory"]
    assert judged(changed(lambda one: replace(one, rss=one.rss + one.at / 7_200))) == []


def test_memory_that_grows_during_the_warm_up_or_a_fault_alone_is_no_creep() -> None:
    warming = changed(lambda one: replace(one, rss=one.rss - max(0, 600 - one.at) / 20))
    assert judged(warming) == []
    during = changed(lambda one: replace(one, rss=300 if 1_500 <= one.at <= 1_530 else one.rss))
    assert judged(during) == []


@pytest.mark.parametrize("kept", ["fds", "threads"])
def test_one_descriptor_or_thread_more_at_the_end_is_too_many(kept: str) -> None:
    names = {"fds": "file descriptors", "threads": "threads"}
    more = [sample(s.at, **{kept: getattr(s, kept) + (s.at > 3_000)}) for s in SAMPLES]
    assert judged(more) == [names[kept]]
    one_spike = [sample(s.at, **{kept: getattr(s, kept) + (s.at == 3_000)}) for s in SAMPLES]
    assert judged(one_spike) == [names[kept]]


def test_delays_that_double_are_not_stable_unless_a_fault_explains_them() -> None:
    assert judged(delays=[(due, took * (1 + (due > 2_000))) for due, took in DELAYS]) == ["delay"]
    during = [(due, took * (100 if 1_500 <= due <= 1_530 else 1)) for due, took in DELAYS]
    assert judged(delays=during) == []


def test_findings_and_problems_spoil_the_verdict() -> None:
    assert judged(verdict=Verdict(lost=["a field"])) == ["nothing lost"]
    assert judged(problems=["it ended with 1"]) == ["nothing went wrong"]


def test_a_run_that_was_not_checked_is_no_pass() -> None:
    found = claims(measured(), None, [])
    assert [claim.name for claim in found if not claim.good] == ["nothing lost"]


def test_too_little_to_judge_by_is_no_pass() -> None:
    assert judged(SAMPLES[:62], DELAYS[:1_200]) == [
        "memory",
        "file descriptors",
        "threads",
        "delay",
    ]


def test_slopes_are_those_of_the_line_and_theil_sen_does_not_heed_an_outlier() -> None:
    line = [(float(x), 2.0 * x) for x in range(20)]
    assert list(slopes(line)) == pytest.approx([2, 2])
    least, median = slopes([*line, (20.0, 1_000.0)])
    assert least > 10
    assert median == pytest.approx(2)


def test_the_table_has_a_line_for_each_five_minutes_with_what_was_done_to_the_worker() -> None:
    heading, *lines = table(measured())
    assert len(lines) == 12
    assert "broker frozen" in lines[5]
    assert "RSS" in heading


def test_a_claim_says_what_it_rests_on() -> None:
    memory: Claim = claims(measured(), Verdict(), [])[0]
    assert "by least squares" in memory.text
    assert "quiet samples" in memory.text
