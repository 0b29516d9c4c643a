"""What the compiled step needs of an optimizer: its parameters, state and learning rates."""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import Any, Protocol

from torch import Tensor
from torch.optim import Optimizer

__all__ = ["RecordableOptimizer"]


class RecordableLearningRates(Protocol):
    """Learning rates as tensors that a recorded step reads, see `ppgen.infer.learning_rates.LearningRates`."""

    def save_state(self) -> Callable[[], None]:
        """Keeps the optimizer's state; the result restores it."""

    def python_numbers(self) -> dict[Any, Any]:
        """All numbers that the optimizer does not keep in tensors."""

    def refresh(self) -> None:
        """Copies the current learning rates to the tensors."""

    def settings(self) -> Iterable[tuple[dict[str, Any], str, Any]]:
        """The optimizer's options, as (group, key, value)."""


class RecordableOptimizer(Protocol):
    """An optimizer whose steps can be recorded, see `ppgen.infer.optimizers.ParameterOptimizer`."""

    optim: Any
    parameters: dict[str, Tensor]
    last_gradients: list[tuple[Tensor, Tensor | None]]
    torch_optimizer: Optimizer | None

    @property
    def learning_rates(self) -> RecordableLearningRates:
        """The learning rates, as a recorded step reads them."""

    def state_tensors(self) -> Iterable[tuple[str, Tensor]]:
        """The tensors of the optimizer's state, by kind."""

    def recordable(self) -> AbstractContextManager[None]:
        """Lets the steps inside ``with`` be recorded."""
