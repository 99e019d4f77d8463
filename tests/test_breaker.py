from worker.breaker import Breaker


def batch(bad: int, good: int, start: int = 0) -> list[tuple[str, bool]]:
    return [(f"c{start + n}", n < bad) for n in range(bad + good)]


def breaker(window: int = 1000, minimum: int = 20, share: float = 0.5) -> Breaker:
    return Breaker(window=window, minimum=minimum, share=share)


def test_more_bad_connectors_than_the_share_trip_it() -> None:
    assert breaker().trips(batch(bad=11, good=9)) == (11, 20)


def test_exactly_the_share_does_not_trip_it() -> None:
    assert breaker().trips(batch(bad=10, good=10)) is None


def test_fewer_distinct_connectors_than_the_minimum_never_trip_it() -> None:
    assert breaker().trips(batch(bad=19, good=0)) is None


def test_a_chatty_deleted_connector_counts_once() -> None:
    assert breaker().trips([("deleted", True)] * 500 + batch(bad=0, good=19)) is None


def test_a_connector_is_judged_by_its_newest_event() -> None:
    recovered = batch(bad=20, good=0) + batch(bad=0, good=20)
    assert breaker().trips([*recovered, ("other", True)]) is None
    relapsed = batch(bad=0, good=20) + batch(bad=20, good=0)
    assert breaker().trips(relapsed) == (20, 20)


def test_a_batch_without_a_bad_event_passes_whatever_came_before() -> None:
    watching = breaker()
    watching.passed(batch(bad=100, good=0))
    assert watching.trips(batch(bad=0, good=1, start=500)) is None


def test_events_older_than_the_window_are_forgotten() -> None:
    watching = breaker(window=40)
    watching.passed(batch(bad=20, good=0))
    assert watching.trips(batch(bad=1, good=39, start=100)) is None


def test_earlier_batches_count_with_this_one() -> None:
    watching = breaker()
    watching.passed(batch(bad=10, good=0))
    assert watching.trips(batch(bad=10, good=0, start=100)) == (20, 20)


def test_a_held_batch_is_not_remembered_until_it_has_passed() -> None:
    watching = breaker()
    assert watching.trips(batch(bad=20, good=0)) == (20, 20)
    assert watching.trips([("other", True)]) is None


def test_a_share_of_one_releases_it() -> None:
    assert breaker(share=1).trips(batch(bad=1000, good=0)) is None


def test_a_batch_larger_than_the_window_is_looked_at_in_parts() -> None:
    flood_at_the_start = batch(bad=20, good=0) + batch(bad=0, good=40, start=100)
    assert breaker(window=20).trips(flood_at_the_start) == (20, 20)
    sparse = [pair for n in range(100) for pair in batch(bad=1, good=19, start=100 * n)]
    assert breaker(window=20).trips(sparse) is None


def test_of_a_batch_larger_than_the_window_its_end_is_remembered() -> None:
    watching = breaker(window=40)
    watching.passed(batch(bad=40, good=0) + batch(bad=0, good=30, start=100))
    assert watching.trips(batch(bad=10, good=0, start=200)) is None
