"""An open transaction is told of once in a while, and only one that stays."""

from types import SimpleNamespace

import pytest
from aiokafka import TopicPartition
from structlog.testing import capture_logs

from worker import transactions
from worker.transactions import OpenTransactions

TP = TopicPartition("t", 3)


class Watch:
    """Looks at a partition, at a time of the test's own."""

    def __init__(self) -> None:
        self.now = 1_000.0
        self._transactions = OpenTransactions(patience=60)

    def told(self, at: float, stable: int, end: int) -> list[tuple[int, int, int]]:
        self.now = 1_000.0 + at
        with capture_logs() as lines:
            self._transactions.seen({TP: stable}, {TP: end})
        return [(line["offset"], line["kept_back"], line["seconds"]) for line in lines]


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Watch:
    watch = Watch()
    monkeypatch.setattr(transactions, "time", SimpleNamespace(monotonic=lambda: watch.now))
    return watch


def test_a_transaction_that_stays_is_told_of_after_the_time_and_again_after_as_much(
    watch: Watch,
) -> None:
    times = [0, 30, 61, 100, 121, 122]
    told = [watch.told(at, 7, 10 + at) for at in times]
    assert told == [[], [], [(7, 64, 61)], [], [], [(7, 125, 122)]]


def test_transactions_that_follow_each_other_are_not_told_of(watch: Watch) -> None:
    assert [watch.told(at, 7 + at, 100) for at in range(0, 93, 31)] == [[]] * 3
    assert watch.told(93, 200, 200) == []


def test_the_next_transaction_has_its_time_again(watch: Watch) -> None:
    assert watch.told(0, 7, 10) == []
    assert watch.told(61, 7, 10) == [(7, 3, 61)]
    assert watch.told(70, 10, 10) == []
    assert watch.told(80, 7, 10) == []  # as in a topic that was made anew
    assert watch.told(130, 7, 10) == []


def test_the_line_has_the_command_that_ends_it(watch: Watch) -> None:
    watch.told(0, 7, 10)
    watch.now += 61
    with capture_logs() as lines:
        watch._transactions.seen({TP: 7}, {TP: 10})
    (line,) = lines
    assert line["event"] == "transaction.open"
    assert line["log_level"] == "warning"
    assert "abort --topic t --partition 3 --start-offset 7;" in line["waiting_for"]
