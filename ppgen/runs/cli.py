"""The command line: ``ppgen train METHOD SOURCE``, then ``ppgen sample RUN``, ``report RUN``, ``compare RUN RUN ...``.

``ppgen resume RUN`` resumes an interrupted run; ``ppgen diagnose RUN`` decides whether its posterior can be trusted.

Options come from signatures: ``--model.latent_dim`` is an argument of the model's class, ``--loss.beta`` of the recipe,
``--data.size`` of `ppgen.data.load`, ``--fit.epochs`` of `ppgen.fit`.
"""

import os
import sys
import warnings

from ppgen.runs.commands import COMMANDS
from ppgen.runs.parser import make_parser

__all__ = ["main"]

ERRORS = (OSError, ValueError, LookupError, TypeError, FloatingPointError)


def main(arguments: list[str] | None = None) -> int:
    """Runs one command.

    Args:
        arguments: The command line without the name of the program; ``sys.argv`` if left out.

    Returns:
        The exit status: 0, or 1 with the reason on standard error. If the environment variable ``PPGEN_TRACEBACK`` is
        set, an error is raised in place of status 1.

    Raises:
        SystemExit: With status 2 for arguments that do not parse, and with status 0 after ``--help``.
    """
    words = sys.argv[1:] if arguments is None else arguments
    with warnings.catch_warnings():  # which restores showwarning
        warnings.showwarning = lambda message, *_, **__: print(f"ppgen: {message}", file=sys.stderr)
        try:
            parsed = make_parser(words).parse_args(words)
            COMMANDS[parsed.command](parsed[parsed.command])
        except ERRORS as error:
            if os.environ.get("PPGEN_TRACEBACK"):
                raise
            print(f"ppgen: {error}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
