"""A budget of seconds, under a clock that only work moves."""

import math

import pytest

from ppgen.utils.budget import MAX_NUMBERS, Budget, rows_at_a_time


class Clock:
    """A clock that work advances."""

    def __init__(self):
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def work(self, seconds: float) -> None:
        self.now += seconds


def sizes(budget: Budget, clock: Clock, total: int, cost: float = 1.0, fixed: float = 0.0, **options) -> list[int]:
    """The sizes of the batches if a batch costs so much, and so much for each row; rows come once and in order."""
    found, done = [], 0
    for rows in budget.batches(total, **options):
        assert rows.start == done
        done = rows.stop
        found.append(rows.stop - rows.start)
        clock.work(fixed + cost * found[-1])
    return found


def test_batches_cover_all_rows_and_never_exceed_the_largest_size():
    found = sizes(Budget(), Clock(), 1000, largest=64)
    assert sum(found) == 1000
    assert found[:4] == [2, 8, 32, 64]
    assert max(found) == 64


@pytest.mark.parametrize("seconds", [7, 20, 100, 333, 999.5])
def test_batches_end_with_the_time_and_use_it(seconds):
    clock = Clock()
    budget = Budget(seconds, clock=clock)
    done = sum(sizes(budget, clock, 1000, largest=64))
    assert seconds - 2 < done <= seconds
    assert budget.cut


def test_a_fixed_cost_of_batches_exceeds_the_time_by_one_batch_at_most():
    clock = Clock()
    sizes(Budget(50, clock=clock), clock, 10_000, cost=0.1, fixed=3.0, largest=64)
    assert 40 < clock.now - 100 < 50 + 3.2


def test_time_that_suffices_changes_nothing():
    clock = Clock()
    budget = Budget(2000, clock=clock)
    assert sizes(budget, clock, 1000, largest=64) == sizes(Budget(), Clock(), 1000, largest=64)
    assert not budget.cut


def test_without_time_only_the_least_is_done():
    clock = Clock()
    assert sizes(Budget(0, clock=clock), clock, 10, largest=4) == []
    assert sizes(Budget(0, clock=clock), clock, 10, largest=4, least=5) == [4, 1]
    assert sizes(Budget(0, clock=clock), clock, 99, largest=64, least=5) == [5]
    assert sum(sizes(Budget(0, clock=clock), clock, 3, largest=4, least=5)) == 3


def test_a_first_batch_that_is_expected_to_take_too_long_is_left_out():
    clock = Clock()
    assert sizes(Budget(3, clock=clock), clock, 10, largest=4, expected=4) == []
    assert sizes(Budget(3, clock=clock), clock, 10, largest=4, expected=4, least=1) == [2]
    assert sizes(Budget(3, clock=clock), clock, 10, cost=0.1, largest=4, expected=2) == [2, 4, 4]
    assert sum(sizes(Budget(), clock, 10, largest=4, expected=1e9)) == 10


def test_parts_are_of_what_is_left_and_report_to_the_whole():
    clock, shown = Clock(), []
    whole = Budget(100, clock=clock, show=shown.append)
    first = whole.part(0.5, "rows")
    assert first.left == 50
    assert sum(sizes(first, clock, 1000, largest=64)) <= 50
    assert whole.cut
    assert shown[0] == "rows"
    assert "rows: 2 of 1000" in shown
    clock.work(10)
    assert whole.part(0.5).left == whole.left / 2
    clock.work(1000)
    assert whole.left == whole.part(0.5).left == 0
    assert whole.part(0.5, least=0.2).left == 20


@pytest.mark.parametrize("power", [1, 2])
def test_a_task_runs_on_as_many_rows_as_the_time_allows(power):
    clock, runs = Clock(), []

    def task(n: int) -> int:
        runs.append(n)
        clock.work(n**power / 100 + (5 if len(runs) == 1 else 0))  # the first run imports
        return n

    budget = Budget(25, clock=clock)
    assert budget.at_size(task, 10_000, least=10, power=power) == runs[-1]
    assert 0.9 * 20 < runs[-1] ** power / 100 + 2 * 10**power / 100 <= 20
    assert budget.cut
    runs.clear()
    assert Budget().at_size(task, 10_000, least=10) == 10_000
    assert runs == [10_000]
    assert Budget(0, clock=clock).at_size(task, 10_000, least=10) == 10
    assert Budget(1, clock=clock).at_size(task, 5, least=10) == 5


def test_rows_at_a_time_keep_memory_flat():
    assert rows_at_a_time(784) * 784 <= MAX_NUMBERS
    assert rows_at_a_time(10**9) == 1
    assert rows_at_a_time(0) == MAX_NUMBERS


@pytest.mark.parametrize("seconds", [-1, math.nan])
def test_seconds_are_not_negative(seconds):
    with pytest.raises(ValueError, match="seconds: expected a number of at least 0"):
        Budget(seconds)
