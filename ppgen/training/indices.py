"""Integers in data that programs use as indices: those out of range, and negative ones, which count from the end."""

from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ppgen.utils.user_warnings import warn_user

__all__ = ["NegativeIndices", "out_of_range"]


class NegativeIndices(TorchFunctionMode):
    """A context that warns of data which are negative indices (``group[i]``), once.

    Args:
        batch: the arguments of a program.
        whole: the data that they are from.
    """

    def __init__(self, batch: tuple[Tensor, ...], whole: tuple[Tensor, ...]) -> None:
        super().__init__()
        pairs = enumerate(zip(batch, whole, strict=True))
        self.parts = {i: (part, rows) for i, (part, rows) in pairs if _is_integer(rows) and (rows < 0).any()}
        self.found: set[int] = set()

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        """Looks at the indices of a tensor."""
        if func is Tensor.__getitem__ and self.parts:
            keys = args[1] if isinstance(args[1], tuple) else (args[1],)
            for key in keys:
                if isinstance(key, Tensor) and _is_integer(key):
                    self.found |= {i for i, (part, _) in self.parts.items() if _is_data(key, part)}
        return func(*args, **(kwargs or {}))

    def warn(self) -> None:
        """Warns of the negative indices that were seen."""
        for i in sorted(self.found):
            rows = self.parts[i][1]
            warn_user(
                f"data[{i}]: {int((rows < 0).sum())} of {rows.numel()} indices are negative, and count from the end: "
                "-1 is the last. The codes of pandas' categories are -1 where a category is missing: leave out those "
                "rows, or give them a category of their own"
            )


def out_of_range(error: IndexError, data: tuple[Tensor, ...]) -> IndexError | None:
    """An error that names the integers in data by which an index may be out of range; None if there are none.

    Args:
        error: the error of a program.
        data: its arguments.
    """
    ranges = [
        f"data[{i}] has integers from {int(part.min())} to {int(part.max())}"
        for i, part in enumerate(data)
        if _is_integer(part) and part.numel()
    ]
    if not ranges or not any(words in str(error) for words in ("out of bounds", "out of range")):
        return None
    return IndexError(
        f"the programs do not run on the data: {str(error).splitlines()[0]}. {'; '.join(ranges)}. Indices count from "
        "0: subtract 1 from those that count from 1 (in R and Stan), or make what they index, such as a plate, as long "
        "as the largest index plus 1"
    )


def _is_integer(part: Tensor) -> bool:
    return not part.is_floating_point() and not part.is_complex() and part.dtype != torch.bool


def _is_data(key: Tensor, part: Tensor) -> bool:
    """Whether an index is a part of the data, or converted from it."""
    return key.shape == part.shape and (key.data_ptr() == part.data_ptr() or torch.equal(key, part.to(key.dtype)))
