"""`InterruptHandler`: Ctrl-C, SIGTERM and SIGHUP let the current training step finish.

`raise_signals` makes exceptions of the latter two, which otherwise end a process without a word.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["InterruptHandler", "SignalInterrupt", "raise_signals"]

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


class SignalInterrupt(KeyboardInterrupt):
    """SIGTERM or SIGHUP, raised where Ctrl-C would be.

    Args:
        number: the signal.

    Attributes:
        number: the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number = number


@contextmanager
def raise_signals() -> Iterator[None]:
    """Inside ``with``, SIGTERM and SIGHUP raise `SignalInterrupt`, unless they are ignored or have a handler."""

    def stop(number: int, _: FrameType | None) -> None:
        raise SignalInterrupt(number)

    main = threading.current_thread() is threading.main_thread()
    defaults = [number for number in ENDING if main and signal.getsignal(number) is signal.SIG_DFL]
    for number in defaults:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number in defaults:
            signal.signal(number, signal.SIG_DFL)
