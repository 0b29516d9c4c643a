"""One torch optimiser over all parameters, from what a user of Pyro or of torch hands in."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from pyro.optim import PyroOptim
from pyro.optim.lr_scheduler import PyroLRScheduler
from pyro.params.param_store import normalize_param_name
from torch import Tensor
from torch.nn.utils import clip_grad_norm_, clip_grad_value_
from torch.optim import Optimizer

OptimizerFactory = Callable[[Iterable[Any]], Optimizer]


class Player:
    """The parameters that one loss moves, their optimiser, clipping and learning-rate schedule.

    Args:
        optim: a Pyro optimiser (``pyro.optim.Adam({"lr": 1e-3})``, its per-parameter arguments, clipping and
            schedulers included), or a torch factory: parameters -> optimiser (``torch.optim.Adam`` itself, a
            `functools.partial` of it, a function).
        clip: bound on the norm of all gradients together.
        schedule: optimiser -> torch learning-rate schedule, advanced every step.

    Raises:
        TypeError: for anything else, an optimiser already built among them.
    """

    def __init__(
        self,
        optim: PyroOptim | OptimizerFactory,
        *,
        clip: float | None = None,
        schedule: Callable | None = None,
    ):
        if isinstance(optim, Optimizer):
            raise TypeError(
                f"optim is an optimiser already built ({type(optim).__name__}); parameters may not exist yet: pass "
                "what builds one, such as functools.partial(torch.optim.Adam, lr=1e-3)"
            )
        if not isinstance(optim, PyroOptim) and not callable(optim):
            raise TypeError(
                f"optim is a Pyro optimiser or a function parameters -> torch optimiser, got {optim!r}"
            )
        self.optim, self.clip, self.schedule = optim, clip, schedule
        self.optimizer: Optimizer | None = None
        self.scheduler: Any = None
        self.leaves: dict[str, Tensor] = {}

    def meet(self, leaves: dict[str, Tensor]) -> None:
        """Takes in leaves not seen before (programs may make parameters at any step)."""
        known = {id(leaf) for leaf in self.leaves.values()}
        new = {name: leaf for name, leaf in leaves.items() if id(leaf) not in known}
        if not new:
            return
        self.leaves |= new
        groups = [{"params": [leaf], **self._arguments(name)} for name, leaf in new.items()]
        if self.optimizer is not None:
            for group in groups:
                self.optimizer.add_param_group(group)
        elif isinstance(self.optim, PyroOptim):
            if not callable(self.optim.pt_optim_args):
                groups = [{"params": list(new.values()), **self.optim.pt_optim_args}]
            self.optimizer = self.optim.pt_optim_constructor(groups)
            if isinstance(self.optim, PyroLRScheduler):
                scheduler = self.optim.pt_scheduler_constructor(self.optimizer, **self.optim.kwargs)
                self.optim.optim_objs = {
                    next(iter(new.values())): scheduler
                }  # so that optim.step() advances it
        else:
            self.optimizer = self.optim(list(new.values()))
        if self.scheduler is None and self.schedule is not None:
            self.scheduler = self.schedule(self.optimizer)

    def update(self, gradients: list[Tensor | None]) -> None:
        """One step along the gradients, given in the order of `leaves`."""
        assert self.optimizer is not None
        leaves = list(self.leaves.values())
        for leaf, gradient in zip(leaves, gradients, strict=True):
            leaf.grad = gradient
        if self.clip is not None:
            clip_grad_norm_(leaves, self.clip)
        self._clip_each()
        self.optimizer.step()
        for leaf in leaves:
            leaf.grad = None
        if self.scheduler is not None:
            self.scheduler.step()

    def gradients(self, loss: Tensor) -> list[Tensor | None]:
        """d loss / d leaf, None where the loss does not use a leaf."""
        if not loss.requires_grad:
            raise ValueError(
                "the loss depends on no parameter: register networks with pyro.module, or parameters with pyro.param"
            )
        return list(torch.autograd.grad(loss, list(self.leaves.values()), allow_unused=True))

    def _arguments(self, name: str) -> dict[str, Any]:
        if not isinstance(self.optim, PyroOptim):
            return {}
        arguments = self.optim.pt_optim_args
        return arguments(normalize_param_name(name)) if callable(arguments) else arguments

    def _clip_each(self) -> None:
        arguments = getattr(self.optim, "pt_clip_args", None)
        if not arguments:
            return
        for name, leaf in self.leaves.items():
            bounds = arguments(*name.split("$$$", 1)) if callable(arguments) else arguments
            if leaf.grad is not None and "clip_norm" in bounds:
                clip_grad_norm_(leaf, bounds["clip_norm"])
            if leaf.grad is not None and "clip_value" in bounds:
                clip_grad_value_(leaf, bounds["clip_value"])
