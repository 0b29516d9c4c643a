"""The losses of a run on disk while it trains: one line of JSON for each step."""

import json
import math
import os
from pathlib import Path
from typing import Any

from ppgen.training.callbacks import TrainingStep
from ppgen.training.result import Chain
from ppgen.utils.files import write_atomically
from ppgen.utils.regular_files import read_bytes
from ppgen.utils.schema import NATURAL, check_entries
from ppgen.utils.user_warnings import warn_user_once

__all__ = ["MetricsLog"]

BUFFER = 100  # steps whose values are copied from the device together


class MetricsLog:
    """A callback of `ppgen.fit` that writes one line for each step, a hundred steps at a time.

    Args:
        path: The file.
        after: For a resumed run, the (chain, step) of its checkpoint: later lines of the file are removed. None for a
            new run.
    """

    def __init__(self, path: Path, *, after: tuple[int, int] | None = None) -> None:
        self.path, self.after = path, after
        self._buffer: list[tuple[int, int, int | None, dict, dict]] = []

    def __call__(self, step: TrainingStep) -> None:
        """Records a step."""
        if self.after is not None:
            self._truncate(self.after)
            self.after = None
        self._buffer.append((step.chain, step.number, step.epoch, step.values, step.adversarial_metrics))
        if len(self._buffer) % BUFFER == 0:
            self.flush()

    def add_chain(self, number: int, chain: Chain) -> None:
        """Writes the steps of a chain that another rank has trained, whose epochs are not known here.

        Args:
            number: The number of the chain.
            chain: The chain.
        """
        length, critics = len(chain.history["loss"]), chain.adversarial_metrics
        terms = {name: series for name, series in chain.history.items() if name != "loss"} or chain.history
        for i in range(length):
            values = {name: float(series[i]) for name, series in terms.items() if not math.isnan(series[i])}
            metrics = {name: float(series[i]) for name, series in critics.items() if len(series) == length}
            self._buffer.append((number, i + 1, None, values, metrics))
        self.flush()

    def flush(self) -> None:
        """Writes the lines of all recorded steps."""
        lines = []
        for chain, step, epoch, values, adversarial_metrics in self._buffer:
            terms = {name: float(value) for name, value in values.items()}
            line: dict[str, Any] = {"chain": chain, "step": step, "epoch": epoch, "loss": sum(terms.values()), **terms}
            if adversarial_metrics:
                line["adversarial_metrics"] = {name: float(value) for name, value in adversarial_metrics.items()}
            lines.append(json.dumps(line) + "\n")
        written = self.path.stat().st_size if self.path.exists() else 0
        try:
            with self.path.open("a") as file:
                file.write("".join(lines))
        except OSError as error:
            if self.path.exists():
                os.truncate(self.path, written)  # part of a line may have been written
            warn_user_once(f"{self.path}: could not be written ({error}); the lines are kept, and tried again later")
            return
        self._buffer.clear()

    def _truncate(self, last: tuple[int, int]) -> None:
        """Removes the lines after a step. A process that was killed may have left half a line at the end."""
        kept = []
        text = read_bytes(self.path).decode(errors="replace") if self.path.exists() else ""
        for number, line in enumerate(text.split("\n")[:-1], start=1):
            try:
                record = json.loads(line)
                check_entries(record, {"chain": NATURAL, "step": NATURAL})
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{self.path}, line {number}: expected a step of training: {error}") from error
            if (record["chain"], record["step"]) <= last:
                kept.append(f"{line}\n")
        write_atomically(self.path, "".join(kept))
