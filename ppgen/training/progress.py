"""`ProgressReport`: the progress bar of a chain, with compile decisions and training warnings, each reported once."""

import sys
from contextlib import suppress
from types import TracebackType

from tqdm import tqdm

from ppgen.training.monitor import TrainingMonitor
from ppgen.training.training_failures import CriticProperties, training_warnings

__all__ = ["ProgressReport"]


class ProgressReport:
    """A progress bar on a terminal; silent elsewhere. A terminal that has gone, as after SIGHUP, does not end a run.

    Args:
        label: the name of the chain.
        total: the number of steps of the chain.
        initial: the number of steps taken already.
        show: whether to show the bar on a terminal.
        critics: the properties of the loss's critics, which training warnings depend on.
    """

    def __init__(self, label: str, *, total: int, initial: int, show: bool, critics: CriticProperties) -> None:
        self.label, self.critics = label, critics
        self._bar = tqdm(total=total, initial=initial, desc=label, unit="step", disable=None if show else True)
        self._reported: set[str] = set()
        self._compile_status = ""

    def __enter__(self) -> "ProgressReport":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with suppress(OSError):
            self._bar.close()

    def advance(self, compile_status: str) -> None:
        """Counts one step, and reports the compile status if it has changed.

        Args:
            compile_status: the decision about compiling so far; see `ppgen.SVI.compile_status`.
        """
        if compile_status != self._compile_status:
            self._compile_status = compile_status
            self._write(compile_status)
        with suppress(OSError):
            self._bar.update()

    def summarize(self, monitor: TrainingMonitor, *, last: int, finished: bool) -> None:
        """Shows the mean losses, and the training warnings in capitals.

        Args:
            monitor: the chain's monitor.
            last: the number of steps to average.
            finished: whether the chain has taken its last step.
        """
        found = training_warnings(monitor.adversarial_metrics, self.critics, finished=finished)
        for warning in found:
            if warning.name not in self._reported:
                self._write(f"at step {monitor.steps}, {warning}")
                self._reported.add(warning.name)
        names = dict.fromkeys(warning.name.upper() for warning in found)
        self._bar.set_postfix_str(", ".join([monitor.summary(last), *names]), refresh=False)

    def _write(self, text: str) -> None:
        if not self._bar.disable:
            with suppress(OSError):
                self._bar.write(f"{self.label}: {text}", file=sys.stderr)
