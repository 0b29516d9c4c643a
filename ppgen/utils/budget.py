"""A budget of seconds for work that can be done on more or fewer rows."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from tqdm import tqdm

__all__ = ["MAX_NUMBERS", "Budget", "rows_at_a_time", "seconds_after_training", "shown_budget"]

MAX_NUMBERS = 2**18  # of data or of the output of a network, that are computed at a time

GROWTH = 4  # of a batch over the one before
SHARE_OF_TRAINING, LEAST_SECONDS = 0.2, 10.0  # that evaluation and report may take

T = TypeVar("T")


class Budget:
    """Seconds that may be spent, and the clock that tells how many are left.

    Args:
        seconds: How many, from now on.
        clock: The clock, in seconds.
        show: A function that is told what is being done.
        parent: The budget of which this one is a part.

    Attributes:
        seconds: How many there were at the beginning.
        cut: Whether some work was not done on all rows for lack of time.

    Raises:
        ValueError: For a negative number of seconds.

    Example:
        >>> from ppgen.utils.budget import Budget
        >>> [(rows.start, rows.stop) for rows in Budget().batches(11, largest=4)]
        [(0, 2), (2, 6), (6, 10), (10, 11)]
    """

    def __init__(
        self,
        seconds: float = math.inf,
        *,
        clock: Callable[[], float] = time.monotonic,
        show: Callable[[str], object] | None = None,
        parent: "Budget | None" = None,
    ) -> None:
        if not seconds >= 0:
            raise ValueError(f"seconds: expected a number of at least 0, got {seconds}")
        self.seconds, self.clock, self.parent, self.cut, self.stage = seconds, clock, parent, False, ""
        self._show = show
        self._end = clock() + seconds

    @property
    def left(self) -> float:
        """The seconds that are left, at least 0."""
        return max(0.0, self._end - self.clock())

    def part(self, share: float, stage: str = "", *, least: float = 0.0) -> "Budget":
        """A budget of a share of the seconds that are left.

        Args:
            share: The share.
            stage: What it is for, which is shown.
            least: The share of all seconds that it has in any case, whatever other parts took.
        """
        part = Budget(max(share * self.left, least * self.seconds), clock=self.clock, show=self._show, parent=self)
        part.stage = stage or self.stage
        part.show()
        return part

    def show(self, progress: str = "") -> None:
        """Shows what is being done, and how far."""
        if self._show is not None:
            self._show(": ".join(filter(None, (self.stage, progress))))

    def batches(
        self, total: int, *, largest: int, smallest: int = 2, least: int = 0, expected: float = 0.0
    ) -> Iterator[slice]:
        """Batches of rows, until all are done or the time is over.

        A batch takes as long as the caller uses it before asking for the next. Sizes grow fourfold from `smallest` to
        `largest`, so that they depend on the clock only where the time is short: a batch that would take too long is
        made smaller, or left out.

        Args:
            total: The number of rows.
            largest: The size of the largest batch, which bounds the memory.
            smallest: The size of the first batch, which is done if any time is left.
            least: The number of rows that are done in any case, all in the first batch if it can have so many.
            expected: The seconds that even the smallest batch takes; if there are fewer, only `least` rows are done.

        Yields:
            The rows of each batch.
        """
        smallest, done = max(1, min(smallest, largest)), 0
        size = min(max(smallest, least), largest)
        while done < total and (self.left > (0 if done else expected) or done < least):
            size = min(size, total - done)
            self.show(f"{done} of {total}")
            start = self.clock()
            yield slice(done, done + size)
            seconds = self.clock() - start
            done += size
            affordable = self.left * size / seconds if seconds > 0 else math.inf
            following = min(GROWTH * size, largest, affordable)
            if following < smallest:
                if done >= least:
                    break
                following = min(largest, least - done)
            size = int(following)
        if done < total:
            self._mark()

    def at_size(self, task: Callable[[int], T], most: int, *, least: int, power: float = 1.0) -> T:
        """The result of a task on as many rows as the time is expected to allow.

        The expectation is that of `least` rows, times (n / least)^power. These are run twice, since the first run of a
        function also imports and allocates what it needs.

        Args:
            task: The function of the number of rows.
            most: The largest number of rows.
            least: The smallest.
            power: How the time grows with the number of rows.
        """
        self.show()
        if most <= least or math.isinf(self.left):
            return task(most)
        result, count = task(least), least
        if self.left > 0:
            start = self.clock()
            result = task(least)
            seconds = self.clock() - start
            count = most if seconds <= 0 else min(most, int(least * (self.left / seconds) ** (1 / power)))
        if count < most:
            self._mark()
        return task(count) if count > least else result

    def allows(self, seconds: float) -> bool:
        """Whether so many seconds are left for some work, which otherwise counts as cut.

        Args:
            seconds: How many it is expected to take.
        """
        if seconds > self.left:
            self._mark()
        return seconds <= self.left

    def _mark(self) -> None:
        """Notes, here and in the budgets of which this one is a part, that work was cut."""
        budget: Budget | None = self
        while budget is not None:
            budget.cut, budget = True, budget.parent


def seconds_after_training(training: float) -> float:
    """The seconds that evaluation and report take by default: a fifth of those of training, and at least 10.

    Args:
        training: The seconds of training.
    """
    return max(LEAST_SECONDS, SHARE_OF_TRAINING * training)


def rows_at_a_time(numbers: int) -> int:
    """How many rows of so many numbers each are computed at a time: at least one."""
    return max(1, MAX_NUMBERS // max(1, numbers))


@contextmanager
def shown_budget(seconds: float, title: str, *, progress: bool = True) -> Iterator[Budget]:
    """A budget whose use is shown in one line, on a terminal.

    Args:
        seconds: How many.
        title: What it is for.
        progress: Whether to show it.
    """
    limit = "" if math.isinf(seconds) else f" of at most {seconds:.0f} s"
    bar = tqdm(total=0, bar_format="{desc} [{elapsed}" + limit + "]", disable=None if progress else True, leave=False)
    with bar:
        yield Budget(seconds, show=lambda text: bar.set_description_str(f"{title}: {text}" if text else title))
