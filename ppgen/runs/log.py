"""A run's losses on disk while it trains: one line of JSON a step."""

import json
from pathlib import Path
from typing import Any

from ppgen.utils.files import write_whole
from ppgen.training.loop import TrainingStep

__all__ = ["Record"]

AT_ONCE = 100  # steps read back from the device together


class Record:
    """A callback that writes a line a step, a hundred steps at a time.

    Args:
        path: of the file.
        after: (chain, step) from which a run goes on; what the file holds of later ones is cut off. None of a new run.
    """

    def __init__(self, path: Path, *, after: tuple[int, int] | None = None):
        self.path, self.after = path, after
        self._waiting: list[tuple[int, int, int, dict, dict]] = []

    def __call__(self, moment: TrainingStep) -> None:
        if self.after is not None:
            self._cut(self.after)
            self.after = None
        self._waiting.append((moment.chain, moment.step, moment.epoch, moment.values, moment.adversarial_metrics))
        if len(self._waiting) >= AT_ONCE:
            self.flush()

    def flush(self) -> None:
        """Writes the lines of the steps seen so far."""
        lines = []
        for chain, step, epoch, values, adversarial_metrics in self._waiting:
            terms = {name: float(value) for name, value in values.items()}
            line: dict[str, Any] = {"chain": chain, "step": step, "epoch": epoch, "loss": sum(terms.values()), **terms}
            if adversarial_metrics:
                line["adversarial_metrics"] = {name: float(value) for name, value in adversarial_metrics.items()}
            lines.append(json.dumps(line) + "\n")
        with self.path.open("a") as file:
            file.write("".join(lines))
        self._waiting.clear()

    def _cut(self, after: tuple[int, int]) -> None:
        """Leaves the lines up to a step; the last of a process that was killed may be half a line."""
        kept = []
        for line in self.path.read_text().splitlines(keepends=True) if self.path.exists() else ():
            if not line.endswith("\n"):
                break
            about = json.loads(line)
            if (about["chain"], about["step"]) <= after:
                kept.append(line)
        write_whole(self.path, "".join(kept))
