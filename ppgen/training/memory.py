"""What to do about a step that does not fit into memory."""

import torch

__all__ = ["is_out_of_memory", "memory_advice"]


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that there is not enough memory, on a GPU or for torch on a CPU.

    Args:
        error: the error.
    """
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and ("not enough memory" in text or "out of memory" in text)


def memory_advice(step: int, rows: int | None, *, checkpoint: bool) -> str:
    """What to tell of a step that did not fit into memory.

    Args:
        step: the step.
        rows: the rows of its batch; None for programs without data.
        checkpoint: whether the steps before it are in a checkpoint.
    """
    saved = "; the steps before it are in the checkpoint" if checkpoint else ""
    advice = "give the loss fewer particles, or the programs smaller networks"
    if rows is not None and rows > 1:
        advice = f"half of it, batch_size={rows // 2}, needs about half of the memory that grows with rows"
        advice += " (this is not measured), and is another run" if checkpoint else " (this is not measured)"
    batch = "" if rows is None else f" with a batch of {rows} row{'s' * (rows != 1)}"
    return f"fit: step {step} needs more memory than there is{batch}; {advice}{saved}"
