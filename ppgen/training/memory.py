"""What to do about a step that does not fit into memory."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["is_out_of_memory", "memory_advice", "memory_error"]

# what torch says on a GPU, on Windows, on Linux and macOS, and of sizes beyond 64 bits; and `memory_error`
WORDS = (
    *("out of memory", "not enough memory", "can't allocate memory"),
    *("storage size calculation overflowed", "more memory than there is"),
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that there is not enough memory, on a GPU or for torch on a CPU.

    Args:
        error: the error.
    """
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(words in text for words in WORDS)


def memory_error(error: Exception, what: str, rows: int | None, *, checkpoint: bool = False) -> Exception:
    """An error of the same kind that says what did not fit into memory, and what would.

    Args:
        error: the error.
        what: what was computed, such as "step 8".
        rows: the rows of its batch; None for programs without data.
        checkpoint: whether the steps before it are in a checkpoint.
    """
    advice = "give the loss fewer particles, or the programs smaller networks"
    if what.startswith("validation"):
        advice = "give fewer rows of validation data" if rows is not None and rows > 1 else advice
    elif rows is not None and rows > 1:
        advice = f"half of it, batch_size={rows // 2}, needs about half of the memory that grows with rows"
        advice += " (this is not measured), and is another run" if checkpoint else " (this is not measured)"
    batch = "" if rows is None else f" with a batch of {rows} row{'s' * (rows != 1)}"
    saved = "; the steps before it are in the checkpoint" if checkpoint else ""
    kind = next(kind for kind in (torch.OutOfMemoryError, MemoryError, RuntimeError) if isinstance(error, kind))
    return kind(f"fit: {what} needs more memory than there is{batch}; {advice}{saved}")


@contextmanager
def memory_advice(what: str, rows: int | None) -> Iterator[None]:
    """Inside ``with``, an error for lack of memory says what helps; arguments as for `memory_error`."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if is_out_of_memory(error):
            raise memory_error(error, what, rows) from error
        raise
