"""The command line: ``ppgen train METHOD SOURCE``, then ``ppgen sample RUN``, ``report RUN``, ``compare RUN RUN ...``.

``ppgen resume RUN`` resumes an interrupted run; ``ppgen diagnose RUN`` decides whether its posterior can be trusted;
``ppgen data FILE`` shows what the columns of a table are.

Options come from signatures: ``--model.latent_dim`` is an argument of the model's class, ``--loss.beta`` of the recipe,
``--data.size`` of `ppgen.data.load`, ``--fit.epochs`` of `ppgen.fit`.
"""

import os
import signal
import sys
import warnings
from contextlib import suppress

from jsonargparse import ArgumentError

from ppgen.runs.commands import COMMANDS
from ppgen.runs.parser import make_parser
from ppgen.training.interrupt import raise_signals

__all__ = ["main"]

# what is wrong with what the user gave: words, files, the machine
ERRORS = (ArgumentError, ArithmeticError, ImportError, LookupError, MemoryError, OSError, TypeError, ValueError)
USER_ERROR = 2


def main(arguments: list[str] | None = None) -> int:
    """Runs one command.

    Args:
        arguments: The command line without the name of the program; ``sys.argv`` if left out.

    Returns:
        The exit status: 0; 2 with the reason in one line on standard error; 3 for a training in which a chain failed;
        or 130, 143 or 129 if Ctrl-C, SIGTERM or SIGHUP ended the command. If the environment variable
        ``PPGEN_TRACEBACK`` is set, an error is raised in place of status 2.

    Raises:
        SystemExit: With status 0 after ``--help``.
    """
    words = sys.argv[1:] if arguments is None else arguments
    with warnings.catch_warnings(), raise_signals():  # the former restores showwarning
        warnings.showwarning = lambda message, *_, **__: print(f"ppgen: {_one_line(message)}", file=sys.stderr)
        try:
            parsed = make_parser(words).parse_args(words)
            return COMMANDS[parsed.command](parsed[parsed.command]) or 0
        except (*ERRORS, RuntimeError) as error:
            if os.environ.get("PPGEN_TRACEBACK") or not _is_of_user(error):
                raise
            print(f"ppgen: {_one_line(error)}", file=sys.stderr)
            return USER_ERROR
        except KeyboardInterrupt as stop:
            with suppress(OSError):  # the terminal may have gone
                print(f"ppgen: {_one_line(str(stop) or 'interrupted')}", file=sys.stderr)
            return 128 + getattr(stop, "number", signal.SIGINT)


def _is_of_user(error: Exception) -> bool:
    """Whether an error is about what the user gave, and not a fault of ppgen."""
    if isinstance(error, ERRORS):
        return True
    from ppgen.training.memory import is_out_of_memory  # late: it imports torch

    return is_out_of_memory(error)


def _one_line(error: BaseException | str) -> str:
    """The message of an error in one line, in which nothing can move the cursor of a terminal."""
    text = str(error) or type(error).__name__
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in " ".join(text.split()))


if __name__ == "__main__":
    sys.exit(main())
