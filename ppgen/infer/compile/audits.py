"""When a compiled step is compared with an eager one again.

A guard cannot see everything that a program depends on, such as the clock or a file. Compiled steps are therefore
audited: at steps 10, 100 and 1000 after compiling, and then as often as costs at most 1 % of the time.
"""

import math
import time

__all__ = ["Audits"]

FIRST, FACTOR, LAST = 10, 10, 1000
AT_LEAST = 4000  # steps between two later audits
SHARE = 0.01  # of the time


class Audits:
    """The audits of one compiled function.

    Attributes:
        steps: its steps so far.
        verified: the number of its last step that agreed with an eager one; 0 is the step at which it was compiled.
        next: the number of the next step to audit.
    """

    def __init__(self) -> None:
        self.steps = self.verified = 0
        self.next = FIRST
        self._passed_at = time.perf_counter()

    def due(self) -> bool:
        """Counts a step, and says whether to audit it."""
        self.steps += 1
        return self.steps == self.next

    @property
    def before_next(self) -> int:
        """The number of steps before the next that is audited."""
        return self.next - self.steps - 1

    def passed(self, seconds: float) -> None:
        """Plans the next audit.

        Args:
            seconds: the time that this one took.
        """
        now = time.perf_counter()
        per_step = max(now - seconds - self._passed_at, 1e-9) / (self.steps - self.verified)
        if self.steps < LAST:
            self.next = FACTOR * self.steps
        else:
            self.next = self.steps + max(AT_LEAST, math.ceil(seconds / SHARE / per_step))
        self.verified, self._passed_at = self.steps, now
