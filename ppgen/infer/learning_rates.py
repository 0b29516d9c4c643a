"""An optimizer made ready to be recorded: its learning rates in tensors, so that a schedule moves a compiled step."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

__all__ = ["Rates"]

FLAGS = {"capturable": True, "foreach": True, "fused": None, "differentiable": False}
FUSED = {"capturable": False, "foreach": False, "fused": True, "differentiable": False}
FUSIBLE = {(torch.float32, "cpu"), (torch.float64, "cpu")}  # on a GPU inductor itself makes one kernel of all
MANY = 8  # parameters of a group from which on one kernel for all of them beats code for each


class Rates:
    """The learning rates of an optimizer, which a recorded step reads from tensors.

    Outside of `recordable` the optimizer is as its user made it, and schedules set its rates as ever.

    Args:
        optimizer: a torch optimizer that has taken a step.
    """

    def __init__(self, optimizer: Optimizer):
        self.optimizer = optimizer
        self.count = len(optimizer.param_groups)
        self.groups = [group for group in optimizer.param_groups if "lr" in group]
        self.tensors = [
            torch.tensor(float(group["lr"]), dtype=torch.float64, device=group["params"][0].device)
            for group in self.groups
        ]
        self._known = [float(group["lr"]) for group in self.groups]

    @contextmanager
    def recordable(self) -> Iterator[None]:
        """Puts tensors in place of the rates, and lets torch's optimizers count steps in tensors."""
        self.refresh()
        for parameter, state in self.optimizer.state.items():
            if isinstance(step := state.get("step"), Tensor):
                # beta ** step in float32 is off by 1e-5 while steps are few
                state["step"] = step.to(parameter.device, torch.float64)
        kept = [dict(group) for group in self.optimizer.param_groups]
        try:
            for group in self.optimizer.param_groups:
                flags = FUSED if _fusible(group) else FLAGS
                group.update({flag: value for flag, value in flags.items() if flag in group})
            for group, tensor in zip(self.groups, self.tensors, strict=True):
                group["lr"] = tensor
            yield
        finally:
            for group, old in zip(self.optimizer.param_groups, kept, strict=False):  # others may have joined
                group.update({key: old[key] for key in ("lr", *FLAGS) if key in old})

    def refresh(self) -> None:
        """Brings the tensors to the rates as they are now."""
        for i, group in enumerate(self.groups):
            if group["lr"] != self._known[i]:
                self._known[i] = float(group["lr"])
                self.tensors[i].fill_(self._known[i])

    def settings(self) -> list[tuple[dict, str, Any]]:
        """What the optimizer was told, (group, key, value), rates left out: a recorded step keeps these numbers."""
        groups = self.optimizer.param_groups
        return [(g, k, v) for g in groups for k, v in g.items() if k not in ("params", "lr")]

    def keep(self) -> Callable[[], None]:
        """Takes note of the optimizer's state, tensors by reference; calling the result goes back to it."""
        kept = {parameter: dict(state) for parameter, state in self.optimizer.state.items()}

        def back() -> None:
            self.optimizer.state.clear()
            self.optimizer.state.update(kept)

        return back

    def numbers(self) -> dict[Any, Any]:
        """All that the optimizer holds in Python numbers; if a step changes them, it cannot be recorded."""
        held = [*self.optimizer.param_groups, *self.optimizer.state.values()]
        return {
            (id(d), k): v for d in held for k, v in d.items() if k not in ("params", "lr") and not isinstance(v, Tensor)
        }


def _fusible(group: dict[str, Any]) -> bool:
    """Whether torch's fused kernel takes a group, and pays."""
    kinds = {(parameter.dtype, parameter.device.type) for parameter in group["params"]}
    return "fused" in group and len(group["params"]) > MANY and len(kinds) == 1 and kinds <= FUSIBLE
