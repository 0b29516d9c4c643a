"""What the compiled step asks of an optimizer: its parameters, state and learning rates."""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import Any, Protocol

from torch import Tensor
from torch.optim import Optimizer

__all__ = ["RecordableOptimizer"]


class LearningRates(Protocol):
    """Learning rates as tensors that a recorded step reads, see `ppgen.infer.learning_rates.Rates`."""

    def keep(self) -> Callable[[], None]: ...
    def numbers(self) -> dict[Any, Any]: ...
    def refresh(self) -> None: ...
    def settings(self) -> Iterable[tuple[dict[str, Any], str, Any]]: ...


class RecordableOptimizer(Protocol):
    """The parameters that one loss moves, and their optimizer, see `ppgen.infer.optimizers.ParameterOptimizer`."""

    leaves: dict[str, Tensor]
    last: list[tuple[Tensor, Tensor | None]]
    optimizer: Optimizer | None

    @property
    def rates(self) -> LearningRates: ...
    def moments(self) -> Iterable[tuple[str, Tensor]]: ...
    def recordable(self) -> AbstractContextManager[None]: ...
