"""One torch optimiser over all parameters, from what a user of Pyro or of torch hands in."""

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from pyro.optim import PyroOptim
from pyro.optim.lr_scheduler import PyroLRScheduler
from pyro.params.param_store import module_from_param_with_module_name, normalize_param_name, user_param_name
from torch import Tensor
from torch.nn.utils import clip_grad_norm_, clip_grad_value_
from torch.optim import Optimizer

from ppgen.infer.parameters import unused
from ppgen.infer.pyro_optimizers import traceable_equivalent
from ppgen.infer.rates import Rates

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
            raise TypeError(f"optim is a Pyro optimiser or a function parameters -> torch optimiser, got {optim!r}")
        if clip is not None and not clip > 0:
            raise ValueError(f"clip is a positive bound on the gradients' norm, got {clip}")
        self.optim, self.clip, self.schedule = optim, clip, schedule
        self.optimizer: Optimizer | None = None
        self.scheduler: Any = None
        self.leaves: dict[str, Tensor] = {}
        self.last: list[tuple[Tensor, Tensor | None]] = []
        self._rates: Rates | None = None
        self._watched = False

    def meet(self, leaves: dict[str, Tensor]) -> None:
        """Takes in trainable leaves not seen before (programs may make or thaw parameters at any step)."""
        known = {id(leaf) for leaf in self.leaves.values()}
        new = {k: leaf for k, leaf in leaves.items() if leaf.requires_grad and id(leaf) not in known}
        if not new:
            return
        for name, leaf in new.items():
            self.leaves[unused(name, self.leaves)] = leaf
        optimizer = self._build(new)
        if self.optimizer is not None:  # the later ones join it, and follow its schedule
            self.optimizer.state.update(optimizer.state)
            if self._each:
                self.optimizer.param_groups.extend(optimizer.param_groups)
            else:
                self.optimizer.param_groups[0]["params"].extend(new.values())
            return
        self.optimizer = optimizer
        if isinstance(self.optim, PyroLRScheduler):
            scheduler = self.optim.pt_scheduler_constructor(optimizer, **self.optim.kwargs)
            self.optim.optim_objs = {next(iter(new.values())): scheduler}  # so that optim.step() advances it
        if self.schedule is not None:
            self.scheduler = self.schedule(optimizer)

    def gradients(self, loss: Tensor) -> list[Tensor | None]:
        """d loss / d leaf in the order of `leaves`, None where the loss does not use a leaf or the leaf is frozen."""
        leaves = [leaf for leaf in self.leaves.values() if leaf.requires_grad]
        if not loss.requires_grad or not leaves:
            return [None] * len(self.leaves)
        found = dict(zip(map(id, leaves), torch.autograd.grad(loss, leaves, allow_unused=True), strict=True))
        return [found.get(id(leaf)) for leaf in self.leaves.values()]

    def update(self, gradients: list[Tensor | None]) -> None:
        """One step along the gradients, given in the order of `leaves`.

        Raises:
            ValueError: if there is none.
        """
        if self.optimizer is None or all(gradient is None for gradient in gradients):
            raise ValueError(
                "the loss depends on no trainable parameter: register networks with pyro.module, or parameters with "
                "pyro.param, and leave requires_grad set on what is to train"
            )
        leaves = list(self.leaves.values())
        gradients = [_laid_out(gradient, leaf) for gradient, leaf in zip(gradients, leaves, strict=True)]
        for leaf, gradient in zip(leaves, gradients, strict=True):
            leaf.grad = gradient
        if self.clip is not None:
            clip_grad_norm_(leaves, self.clip)
        self._clip_each()
        self.optimizer.step()
        for leaf in leaves:
            leaf.grad = None
        if self._watched:
            self.last = list(zip(leaves, gradients, strict=True))

    def advance(self) -> None:
        """One step of the learning-rate schedule."""
        if self.scheduler is not None:
            self.scheduler.step()

    @property
    def rates(self) -> Rates:
        """The learning rates as a recorded step reads them; made anew when parameters have joined."""
        assert self.optimizer is not None
        if self._rates is None or self._rates.count != len(self.optimizer.param_groups):
            self._rates = Rates(self.optimizer)
        return self._rates

    @contextmanager
    def recordable(self) -> Iterator[None]:
        """Lets steps be recorded; `last` then keeps a step's leaves and gradients."""
        self._watched = True
        try:
            with self.rates.recordable():
                yield
        finally:
            self._watched = False

    def moments(self) -> Iterator[tuple[str, Tensor]]:
        """What the optimiser gathers of gradients, by kind."""
        for state in self.optimizer.state.values() if self.optimizer is not None else ():
            yield from ((kind, tensor) for kind, tensor in state.items() if isinstance(tensor, Tensor))

    @property
    def _each(self) -> bool:
        """Whether every parameter has arguments of its own, by a user's function."""
        return callable(getattr(self.optim, "pt_optim_args", None))

    def _build(self, leaves: dict[str, Tensor]) -> Optimizer:
        values, optim = list(leaves.values()), self.optim
        make = traceable_equivalent(optim.pt_optim_constructor) if isinstance(optim, PyroOptim) else optim
        if not isinstance(optim, PyroOptim):
            optimizer = make(values)
        elif self._each:
            whole = optim.pt_optim_args_argc == 1
            arguments = [_ask(optim.pt_optim_args, name, whole=whole) for name in leaves]
            groups = [{"params": [leaf], **given} for leaf, given in zip(values, arguments, strict=True)]
            optimizer = make(groups)
        else:
            optimizer = make(values, **optim.pt_optim_args)
        if not isinstance(optimizer, Optimizer):
            raise TypeError(f"optim is to make a torch optimiser of a list of parameters, it made {optimizer!r}")
        return optimizer

    def _clip_each(self) -> None:
        arguments = getattr(self.optim, "pt_clip_args", None)
        if not arguments:
            return
        for name, leaf in self.leaves.items():
            bounds = _ask(arguments, name, whole=False) if callable(arguments) else arguments
            if leaf.grad is not None and "clip_norm" in bounds:
                clip_grad_norm_(leaf, bounds["clip_norm"])
            if leaf.grad is not None and "clip_value" in bounds:
                clip_grad_value_(leaf, bounds["clip_value"])


def _laid_out(gradient: Tensor | None, leaf: Tensor) -> Tensor | None:
    """A gradient in the memory layout of its leaf, which torch's fused optimisers take for granted."""
    if gradient is None or gradient.layout != torch.strided or gradient.stride() == leaf.stride():
        return gradient
    if gradient.is_contiguous() and leaf.is_contiguous():
        return gradient
    return torch.empty_like(leaf, requires_grad=False).copy_(gradient)


def _ask(arguments: Callable[..., dict[str, Any]], name: str, *, whole: bool) -> dict[str, Any]:
    """A user's arguments for one parameter, asked for in one of Pyro's ways: by whole name, or by module and name."""
    name = re.sub(r"#\d+$", "", name)
    if whole:
        return arguments(normalize_param_name(name))
    return arguments(module_from_param_with_module_name(name), user_param_name(name))
