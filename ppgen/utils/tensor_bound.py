"""`TensorBound`: a bound on the memory of the tensors that are made, as by a model that a stored file describes."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode

__all__ = ["TensorBound"]

LEAST = 4096  # bytes that a tensor counts at least, with the objects of Python around it


class TensorBound(TorchFunctionMode):
    """Inside ``with``, tensors that are made may have so many bytes in sum; those that are deleted count as well.

    Args:
        most: the number of bytes.
        what: what takes them, for the error.

    Raises:
        ValueError: for a tensor that exceeds the bound, before it is filled.

    Example:
        >>> import torch
        >>> from ppgen.utils.tensor_bound import TensorBound
        >>> with TensorBound(100_000, "the model"):
        ...     torch.nn.Linear(1000, 10**6)
        Traceback (most recent call last):
        ValueError: the model takes more than 100,000 bytes
    """

    def __init__(self, most: int, what: str) -> None:
        super().__init__()
        self.most, self.what, self._taken = most, what, 0

    def __torch_function__(
        self, function: Callable, types: Iterable[type], args: tuple = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Calls a function of torch and counts the tensor that it returns, unless it is one of its arguments."""
        given = kwargs or {}
        result = function(*args, **given)
        if isinstance(result, Tensor) and not any(result is part for part in (*args, *given.values())):
            self._taken += max(LEAST, result.numel() * result.element_size())
            if self._taken > self.most:
                raise ValueError(f"{self.what} takes more than {self.most:,} bytes")
        return result
