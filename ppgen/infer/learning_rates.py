"""Learning rates in tensors, so that a schedule changes the rates of a compiled step without another compilation."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

__all__ = ["LearningRates"]

CAPTURABLE_FLAGS = {"capturable": True, "foreach": True, "fused": None, "differentiable": False}
FUSED_FLAGS = {"capturable": False, "foreach": False, "fused": True, "differentiable": False}
FUSIBLE = {(torch.float32, "cpu"), (torch.float64, "cpu")}  # on a GPU, inductor fuses all updates itself
FUSE_FROM = 8  # a group with more parameters is faster with one kernel for all of them


class LearningRates:
    """The learning rates of an optimizer as tensors that a recorded step reads.

    Outside of `recordable` the optimizer is as its user made it, and schedules set its rates as usual.

    Args:
        optimizer: a torch optimizer that has taken a step.

    Attributes:
        factor: what the rates that the schedule sets are multiplied by.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer, self.factor = optimizer, 1.0
        self.num_groups = len(optimizer.param_groups)
        self.groups = [group for group in optimizer.param_groups if "lr" in group]
        self.tensors = [
            torch.tensor(float(group["lr"]), dtype=torch.float64, device=group["params"][0].device)
            for group in self.groups
        ]
        self._current = [float(group["lr"]) for group in self.groups]

    @contextmanager
    def recordable(self) -> Iterator[None]:
        """Replaces the rates with tensors, and lets torch's optimizers count steps in tensors."""
        self.refresh()
        for parameter, state in self.optimizer.state.items():
            if isinstance(step := state.get("step"), Tensor):
                # in float32, beta ** step has an error of 1e-5 in the first steps
                state["step"] = step.to(parameter.device, torch.float64)
        options = [dict(group) for group in self.optimizer.param_groups]
        try:
            for group in self.optimizer.param_groups:
                flags = FUSED_FLAGS if _fusible(group) else CAPTURABLE_FLAGS
                group.update({flag: value for flag, value in flags.items() if flag in group})
            for group, tensor in zip(self.groups, self.tensors, strict=True):
                group["lr"] = tensor
            yield
        finally:
            for group, old in zip(self.optimizer.param_groups, options, strict=False):  # others may have joined
                group.update({key: old[key] for key in ("lr", *CAPTURABLE_FLAGS) if key in old})

    def refresh(self) -> None:
        """Copies the current learning rates to the tensors."""
        for i, group in enumerate(self.groups):
            if (rate := group["lr"] * self.factor) != self._current[i]:
                self._current[i] = float(rate)
                self.tensors[i].fill_(self._current[i])

    def settings(self) -> list[tuple[dict, str, Any]]:
        """The optimizer's options besides the rates, as (group, key, value); they are constants of a recorded step."""
        groups = self.optimizer.param_groups
        return [(g, k, v) for g in groups for k, v in g.items() if k not in ("params", "lr")]

    def save_state(self) -> Callable[[], None]:
        """Keeps the optimizer's state, tensors by reference; the result restores it."""
        saved = {parameter: dict(state) for parameter, state in self.optimizer.state.items()}

        def restore_state() -> None:
            self.optimizer.state.clear()
            self.optimizer.state.update(saved)

        return restore_state

    def python_numbers(self) -> dict[Any, Any]:
        """All numbers that the optimizer does not keep in tensors; a step that changes them cannot be recorded."""
        dicts = [*self.optimizer.param_groups, *self.optimizer.state.values()]
        return {
            (id(d), k): v
            for d in dicts
            for k, v in d.items()
            if k not in ("params", "lr") and not isinstance(v, Tensor)
        }


def _fusible(group: dict[str, Any]) -> bool:
    """Whether torch's fused kernel supports a group and is faster."""
    kinds = {(parameter.dtype, parameter.device.type) for parameter in group["params"]}
    return "fused" in group and len(group["params"]) > FUSE_FROM and len(kinds) == 1 and kinds <= FUSIBLE
