"""`InterruptHandler`: Ctrl-C lets the current training step finish."""

import signal
import threading

__all__ = ["InterruptHandler"]


class InterruptHandler:
    """Inside ``with``, the first Ctrl-C sets `requested`; a second one raises KeyboardInterrupt as usual.

    Outside the main thread, or where another handler of Ctrl-C is installed, nothing changes.
    """

    requested = False

    def __enter__(self) -> "InterruptHandler":
        in_main_thread = threading.current_thread() is threading.main_thread()
        self._installed = in_main_thread and signal.getsignal(signal.SIGINT) is signal.default_int_handler
        if self._installed:
            signal.signal(signal.SIGINT, self._handle)
        return self

    def __exit__(self, *exc: object) -> None:
        if self._installed:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def _handle(self, *_: object) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
