"""The state of one optimizer over all parameters, in the form in which Pyro's optimizers hold it.

``pyro.optim.Adam(...)`` keeps a torch optimizer, or a torch scheduler, for each parameter in `optim_objs`. Its
`get_state`, `set_state`, `save` and `load` work through those. A view stands there in the place of each.
"""

from collections.abc import Mapping
from typing import Any

import torch
from pyro.optim import PyroOptim
from pyro.optim.optim import _get_state_dict, _load_state_dict
from torch import Tensor
from torch.optim import Optimizer

from ppgen.infer.pyro_optimizers import from_pyro_state, to_pyro_state

__all__ = ["ParameterView", "ScheduleView", "show_in_pyro_optimizer"]


class ParameterView:
    """One parameter of an optimizer, as an optimizer of its own.

    Args:
        optimizer: the optimizer.
        leaf: the parameter.
    """

    def __init__(self, optimizer: Optimizer, leaf: Tensor) -> None:
        self._optimizer, self._leaf = optimizer, leaf

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The group of the parameter, which others may share."""
        return [g for g in self._optimizer.param_groups if any(p is self._leaf for p in g["params"])]

    def state_dict(self) -> dict[str, Any]:
        """The state as the parameter's own optimizer would have it."""
        (group,) = self.param_groups
        state, options = to_pyro_state(self._optimizer, self._optimizer.state.get(self._leaf, {}), group)
        return {"state": {0: state} if state else {}, "param_groups": [options | {"params": [0]}]}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Restores a state that `state_dict`, or the parameter's own optimizer in stock Pyro, returned.

        Args:
            saved: the state.
        """
        (group,) = self.param_groups
        state, options = from_pyro_state(self._optimizer, saved["state"].get(0, {}), saved["param_groups"][0])
        group.update({key: value for key, value in options.items() if key != "params"})
        if state:
            self._optimizer.state[self._leaf] = {key: self._placed(key, value) for key, value in state.items()}

    def _placed(self, key: str, value: Any) -> Any:
        """A tensor as the parameter is; the count of steps stays where it was, as in torch."""
        if not isinstance(value, Tensor):
            return value
        if key == "step":
            return value.clone()
        if value.shape != self._leaf.shape:
            return value.to(self._leaf.device, copy=True)
        return torch.empty_like(self._leaf, requires_grad=False).copy_(value)


class ScheduleView:
    """The scheduler of all parameters, as that of one of them.

    Args:
        scheduler: the scheduler.
        optimizer: the view of the parameter's optimizer.
        first: whether this is the first parameter, whose view advances the scheduler.
    """

    def __init__(self, scheduler: Any, optimizer: ParameterView, *, first: bool) -> None:
        self.scheduler, self.optimizer, self._first = scheduler, optimizer, first

    def step(self, *args: Any, **kwargs: Any) -> None:
        """Advances the scheduler, once for all parameters.

        Args:
            *args: as the scheduler takes them.
            **kwargs: as the scheduler takes them.
        """
        if self._first:
            self.scheduler.step(*args, **kwargs)

    def state_dict(self) -> dict[str, Any]:
        """The scheduler's state."""
        return self.scheduler.state_dict()

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Restores the scheduler's state.

        Args:
            saved: what `state_dict` returned.
        """
        self.scheduler.load_state_dict(saved)


def show_in_pyro_optimizer(
    optim: PyroOptim, optimizer: Optimizer, leaves: Mapping[str, Tensor], scheduler: Any = None
) -> None:
    """Puts views into a Pyro optimizer, and restores what it had for these parameters: loaded, or from another SVI.

    Args:
        optim: the Pyro optimizer.
        optimizer: the optimizer of all parameters.
        leaves: the parameters that are new in it, by name.
        scheduler: its scheduler, if it has one.
    """
    for name, leaf in leaves.items():
        view: Any = ParameterView(optimizer, leaf)
        if scheduler is not None:
            first = not any(getattr(held, "scheduler", None) is scheduler for held in optim.optim_objs.values())
            view = ScheduleView(scheduler, view, first=first)
        saved = optim._state_waiting_to_be_consumed.pop(name, None)
        if saved is None and leaf in optim.optim_objs:
            saved = _get_state_dict(optim.optim_objs[leaf])
        if saved is not None:
            _load_state_dict(view, saved)
        optim.optim_objs[leaf] = view
