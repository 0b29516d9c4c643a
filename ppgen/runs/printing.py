"""What commands print about a run."""

from typing import Any

from ppgen.runs.folder import CHECKPOINT, REPORT

__all__ = ["PARTIAL", "exit_status", "format_number", "print_run"]

PARTIAL = 3  # the exit status of a run that lacks a part of what was asked for

NOT_COMPILED = "not compiled, because the run was too short to make up for the time of compiling"


def print_run(run: Any) -> None:
    """Prints how a run ended, its warnings and results, and where its report is.

    Args:
        run: A `ppgen.runs.run.Run`.
    """
    chain = run.fit.chains[run.fit.best]
    print(f"{chain.stop_reason} in {chain.seconds:.0f} s; {chain.compiled or NOT_COMPILED}")
    if (run.folder / CHECKPOINT).exists():
        print(f"resume it with: ppgen resume {run.folder}")
    for warning in run.training_warnings():
        print(warning)
    for name, number in run.numbers.items():
        print(f"{name}: {format_number(number)}")
    print(f"report: {(run.folder / REPORT).resolve()}")


def exit_status(run: Any) -> int:
    """The exit status of a training that no signal ended: 0 if it is complete, or else `PARTIAL`.

    Args:
        run: A `ppgen.runs.run.Run`.
    """
    return 0 if run.fit.complete else PARTIAL


def format_number(number: Any) -> str:
    """Formats a number, a text, or a pair of a number and its standard error."""
    if isinstance(number, tuple):
        return f"{number[0]:.4g} +- {number[1]:.2g}"
    return f"{number:.4g}" if isinstance(number, float) else str(number)
