"""`InterruptHandler`: Ctrl-C, SIGTERM and SIGHUP let the current training step finish."""

import signal
import threading
from types import FrameType

__all__ = ["InterruptHandler"]

ENDING = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))  # Windows has no HUP


class InterruptHandler:
    """Inside ``with``, the first signal that ends a process sets `requested`; a second one acts at once, as outside.

    Outside the main thread nothing changes. Another handler of Ctrl-C stays, and a signal that is ignored, such as
    SIGHUP under nohup, stays ignored.

    Args:
        saves: whether the run is saved when it is interrupted. If not, SIGTERM and SIGHUP act as outside.

    Attributes:
        requested: whether the run is to end after the current step.
        signal: the signal that asked for it, if one did.
    """

    def __init__(self, *, saves: bool) -> None:
        self.saves, self.requested = saves, False
        self.signal: int | None = None
        self._previous: dict[int, object] = {}

    @property
    def reason(self) -> str:
        """Why the run was interrupted, in words."""
        if self.signal is None or self.signal == signal.SIGINT:
            return "interrupted"
        return f"interrupted by {signal.Signals(self.signal).name}"

    def act(self) -> None:
        """Lets the signal act as it would have without this handler; Ctrl-C has been dealt with by the run's end."""
        if self.signal is not None and self.signal != signal.SIGINT:
            signal.raise_signal(self.signal)

    def __enter__(self) -> "InterruptHandler":
        if threading.current_thread() is not threading.main_thread():
            return self
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            self._install(signal.SIGINT)
        for number in ENDING if self.saves else ():
            if signal.getsignal(number) not in (signal.SIG_IGN, None):
                self._install(number)
        return self

    def __exit__(self, *exc: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._previous = {}

    def _install(self, number: int) -> None:
        self._previous[number] = signal.signal(number, self._handle)

    def _handle(self, number: int, _: FrameType | None) -> None:
        if not self.requested:
            self.requested, self.signal = True, number
            return
        self.__exit__()
        signal.raise_signal(number)
