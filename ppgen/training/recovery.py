"""`Recovery`: what a chain does about steps that are not finite.

A single bad step is skipped (`ppgen.infer.finite_steps`). After `IN_A_ROW` of them the chain goes back to weights that
were good for a while, averages and the optimizers' states included, and its learning rates are multiplied by
`RATE_FACTOR`. After `RETURNS` such returns it ends, with those weights.

Weights are kept every `KEEP_EVERY` steps or less often. The last ones may be those whose loss is not finite, so that
they take the place of the ones before when a step from them was taken. A checkpoint holds what is kept besides its own
weights: a run that continues goes back to where it would have without.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ppgen.infer.optimizers import ParameterOptimizer

__all__ = ["IN_A_ROW", "RATE_FACTOR", "RETURNS", "Recovery"]

KEEP_EVERY = 50  # steps, of which each takes about as long as copying parameters and the optimizer's state
IN_A_ROW = 5  # bad steps after which a chain goes back
RETURNS = 3  # after which it ends
RATE_FACTOR = 0.5


@dataclass
class _Kept:
    """The tensors of a chain after a step, by name."""

    step: int = 0
    tensors: dict[str, Tensor] = field(default_factory=dict)


class Recovery:
    """The bad steps of one chain, and the weights to which it goes back.

    Args:
        weights: the tensors of the programs, and those of their moving averages, by name.
        optimizers: returns the optimizers.

    Attributes:
        skipped: the number of steps that were skipped.
        in_a_row: how many of these were the last ones.
        returns: how often the chain went back.
    """

    def __init__(self, weights: dict[str, Tensor], optimizers: Callable[[], Sequence[ParameterOptimizer]]) -> None:
        self._weights, self._optimizers = weights, optimizers
        self.skipped = self.in_a_row = self.returns = 0
        self._good, self._next = _Kept(), _Kept()
        self._waits = False  # whether no step from the next ones was taken yet
        self._copy(self._good, 0)

    @property
    def step(self) -> int:
        """The step to whose weights the chain goes back."""
        return self._good.step

    @property
    def due(self) -> bool:
        """Whether it is time to go back, or to end."""
        return self.in_a_row >= IN_A_ROW

    @property
    def exhausted(self) -> bool:
        """Whether the chain ends when it goes back again."""
        return self.returns >= RETURNS

    def count(self, *, taken: bool) -> None:
        """Counts a step.

        Args:
            taken: whether it was taken.
        """
        self.skipped += not taken
        self.in_a_row = 0 if taken else self.in_a_row + 1
        if taken and self._waits:
            self._good, self._next, self._waits = self._next, self._good, False

    def keep(self, step: int) -> None:
        """Keeps the tensors of the chain if it is time to, the last step was taken, and weights are finite.

        Args:
            step: the number of the last step.
        """
        due = step == 1 or step >= self._good.step + KEEP_EVERY
        if not due or self._waits or self.in_a_row or self.bad_parameters():
            return
        self._copy(self._next, step)
        self._waits = True
        if step == 1:  # there are none with the optimizers' states
            self._copy(self._good, step)

    def go_back(self) -> None:
        """Puts the kept values into the programs, averages and optimizers, which then learn at smaller rates."""
        with torch.no_grad():
            for name, tensor in self._tensors().items():
                if name in self._good.tensors:
                    tensor.copy_(self._good.tensors[name])
        self._waits = False
        for i, optimizer in enumerate(self._optimizers()):
            self._forget_later_states(i, optimizer)
            optimizer.scale_rates(RATE_FACTOR)
        self.in_a_row, self.returns = 0, self.returns + 1

    def _forget_later_states(self, number: int, optimizer: ParameterOptimizer) -> None:
        """Removes the states of parameters that had none when weights were kept, as those of layers that grew later."""
        kept = {name.rpartition("/")[0] for name in self._good.tensors}
        for j, leaf in enumerate(optimizer.parameters.values()):
            if optimizer.torch_optimizer is not None and f"{number}/{j}" not in kept:
                optimizer.torch_optimizer.state.pop(leaf, None)

    def replaced(self, step: int) -> None:
        """Keeps the weights that took the place of those after a step, if those were kept.

        Args:
            step: the number of the step.
        """
        if self._waits:
            self._copy(self._next, self._next.step)
        if self._good.step == step:
            self._copy(self._good, step)

    def bad_parameters(self) -> list[str]:
        """The names of the trained parameters that are not finite, as after an update that overflows."""
        trained = {name: tensor for name, tensor in self._weights.items() if tensor.requires_grad}
        return [name for name, tensor in trained.items() if not tensor.isfinite().all()]

    def to_tensors(self, step: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The state as tensors and JSON metadata, for a checkpoint.

        Args:
            step: the step of the checkpoint.
        """
        about = {"skipped": self.skipped, "in_a_row": self.in_a_row, "returns": self.returns, "step": self.step}
        about["next"] = (
            self._next.step if self._waits else 0
        )  # whose weights are the current ones: none was taken since
        return ({} if self.step == step else dict(self._good.tensors)), about

    def restore(self, tensors: dict[str, Tensor], metadata: dict[str, Any], step: int) -> None:
        """Continues from a checkpoint, whose weights and optimizers' states are in place.

        Args:
            tensors: as `to_tensors` returned them.
            metadata: as `to_tensors` returned it; empty for files of earlier versions.
            step: the step of the checkpoint.
        """
        self.skipped, self.returns = metadata.get("skipped", 0), metadata.get("returns", 0)
        self.in_a_row, waits_since = metadata.get("in_a_row", 0), metadata.get("next", 0)
        self._good.step = metadata.get("step", step)
        self._copy(self._good, self._good.step)
        if tensors:
            like = self._good.tensors
            self._good.tensors = {name: like[name].copy_(value) for name, value in tensors.items()}
        self._waits = bool(waits_since)
        if self._waits:
            self._copy(self._next, waits_since)

    def _tensors(self) -> dict[str, Tensor]:
        """All tensors to which a chain goes back, by name."""
        tensors = {f"weights/{name}": tensor for name, tensor in self._weights.items()}
        for i, optimizer in enumerate(self._optimizers()):
            for j, leaf in enumerate(optimizer.parameters.values()):
                state = optimizer.torch_optimizer.state.get(leaf, {}) if optimizer.torch_optimizer is not None else {}
                tensors |= {f"{i}/{j}/{kind}": part for kind, part in state.items() if isinstance(part, Tensor)}
        return tensors

    def _copy(self, kept: _Kept, step: int) -> None:
        """Copies the current values, into memory that is there where it fits."""
        old, kept.step, kept.tensors = kept.tensors, step, {}
        for name, tensor in self._tensors().items():
            held = old.get(name)
            fits = held is not None and held.shape == tensor.shape and held.dtype == tensor.dtype
            kept.tensors[name] = held.copy_(tensor.detach()) if held is not None and fits else tensor.detach().clone()
