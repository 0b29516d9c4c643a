"""One torch optimizer over all parameters, from what a user of Pyro or of torch hands in."""

import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from pyro.optim import PyroOptim
from pyro.optim.lr_scheduler import PyroLRScheduler
from pyro.params.param_store import module_from_param_with_module_name, normalize_param_name, user_param_name
from torch import Tensor
from torch.nn.utils import clip_grad_norm_, clip_grad_value_
from torch.optim import Optimizer

from ppgen.infer.checkpoint_file import under
from ppgen.infer.learning_rates import Rates
from ppgen.infer.parameters import unused
from ppgen.infer.pyro_optimizers import traceable_equivalent

OptimizerFactory = Callable[[Iterable[Any]], Optimizer]


class ParameterOptimizer:
    """The parameters that one loss moves, their optimizer, clipping and learning-rate schedule.

    Args:
        optim: a Pyro optimizer (``pyro.optim.Adam({"lr": 1e-3})``, its per-parameter arguments, clipping and
            schedulers included), or a torch factory: parameters -> optimizer (``torch.optim.Adam`` itself, a
            `functools.partial` of it, a function).
        clip: bound on the norm of all gradients together.
        schedule: optimizer -> torch learning-rate schedule, advanced every step.

    Raises:
        TypeError: for anything else, an optimizer already built among them.
    """

    def __init__(
        self,
        optim: PyroOptim | OptimizerFactory,
        *,
        clip_norm: float | None = None,
        lr_scheduler: Callable | None = None,
    ):
        if isinstance(optim, Optimizer):
            raise TypeError(
                f"optim is an optimizer already built ({type(optim).__name__}); parameters may not exist yet: pass "
                "what builds one, such as functools.partial(torch.optim.Adam, lr=1e-3)"
            )
        if not isinstance(optim, PyroOptim) and not callable(optim):
            raise TypeError(f"optim is a Pyro optimizer or a function parameters -> torch optimizer, got {optim!r}")
        if clip_norm is not None and not clip_norm > 0:
            raise ValueError(f"clip_norm is a positive bound on the gradients' norm, got {clip_norm}")
        self.optim, self.clip_norm, self.lr_scheduler = optim, clip_norm, lr_scheduler
        self.optimizer: Optimizer | None = None
        self.scheduler: Any = None
        self.leaves: dict[str, Tensor] = {}
        self.last: list[tuple[Tensor, Tensor | None]] = []
        self._rates: Rates | None = None
        self._watched = False
        self._advances = 0

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
        if self.lr_scheduler is not None:
            self.scheduler = self.lr_scheduler(optimizer)

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
        if self.clip_norm is not None:
            clip_grad_norm_(leaves, self.clip_norm)
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
            self._advances += 1

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
        """What the optimizer gathers of gradients, by kind."""
        for state in self.optimizer.state.values() if self.optimizer is not None else ():
            yield from ((kind, tensor) for kind, tensor in state.items() if isinstance(tensor, Tensor))

    def stored(self, names: Mapping[int, str]) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Leaves met and what the optimizer holds, as tensors and facts for a file; `go_on` takes them.

        Args:
            names: of leaves by their id, under which another process finds them.

        Raises:
            ValueError: if a leaf has no name. TypeError: if the optimizer holds what is no tensor, number or word.
        """
        if late := [name for name, leaf in self.leaves.items() if id(leaf) not in names]:
            raise ValueError(
                f"checkpoint: the programs did not show the parameters {', '.join(late)} on the first batch, so that a "
                "run cannot go on with them; let the programs make all parameters on every batch, or give no checkpoint"
            )
        tensors: dict[str, Tensor] = {}
        numbers: dict[str, Any] = {}
        groups = [] if self.optimizer is None else self.optimizer.param_groups
        for i, leaf in enumerate(self.leaves.values()):
            assert self.optimizer is not None
            for kind, value in self.optimizer.state.get(leaf, {}).items():
                if isinstance(value, Tensor):
                    tensors[f"{i}/{kind}"] = value.detach().clone()
                else:
                    numbers[f"{i}/{kind}"] = self._plain(kind, value)
        options = [{k: self._plain(k, v) for k, v in group.items() if k != "params"} for group in groups]
        return tensors, {
            "leaves": {name: names[id(leaf)] for name, leaf in self.leaves.items()},
            "optimizer": self._described,
            "groups": options,
            "numbers": numbers,
            "on the CPU": [key for key, tensor in tensors.items() if tensor.device.type == "cpu"],
            "advances": self._advances,
        }

    def go_on(self, leaves: Mapping[str, Tensor], tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        """Takes back what `stored` gave, before the first step.

        Args:
            leaves: by the names that `stored` was given.

        Raises:
            ValueError: if the optimizer is another one.
        """
        met = {name: leaves[known] for name, known in facts["leaves"].items()}
        frozen = [leaf for leaf in met.values() if not leaf.requires_grad]  # since they were met
        for leaf in frozen:
            leaf.requires_grad_(True)
        self.meet(met)
        for leaf in frozen:
            leaf.requires_grad_(False)
        if self._described != facts["optimizer"]:
            raise ValueError(f"checkpoint: its optimizer is {facts['optimizer']}, this run's is {self._described}")
        if self.optimizer is None:
            return
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's, of a schedule that moves before its optimizer
            for _ in range(facts["advances"]):  # schedules hold more than JSON does, and follow from the steps alone
                self.advance()
        for group, options in zip(self.optimizer.param_groups, facts["groups"], strict=True):
            for key, value in options.items():
                if isinstance(group.get(key), Tensor):
                    group[key].fill_(value)
                else:
                    group[key] = tuple(value) if isinstance(value, list) else value
        for i, leaf in enumerate(met.values()):
            kinds, on_cpu = under(tensors, str(i)), facts["on the CPU"]
            gathered: dict[str, Any] = {k: _like(leaf, v, f"{i}/{k}" in on_cpu) for k, v in kinds.items()}
            self.optimizer.state[leaf] = gathered | under(facts["numbers"], str(i))

    @property
    def _described(self) -> str:
        if self.optimizer is None:
            return "none"
        options = ", ".join(f"{key}={value}" for key, value in self.optimizer.defaults.items())
        sizes = ", ".join(str(len(group["params"])) for group in self.optimizer.param_groups)
        return f"{type(self.optimizer).__name__}({options}) of {sizes} parameters"

    def _plain(self, key: str, value: Any) -> Any:
        """A number or word, or a tuple of them, as JSON holds it."""
        if isinstance(value, Tensor) and value.dim() == 0:
            return value.item()
        parts = value if isinstance(value, tuple) else (value,)
        if not all(part is None or isinstance(part, bool | int | float | str) for part in parts):
            raise TypeError(
                f"checkpoint: {type(self.optimizer).__name__} holds {key!r}, a {type(value).__name__}, which a "
                "checkpoint does not take; give another optim, or no checkpoint"
            )
        return value

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
            raise TypeError(f"optim is to make a torch optimizer of a list of parameters, it made {optimizer!r}")
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
    """A gradient in the memory layout of its leaf, which torch's fused optimizers take for granted."""
    if gradient is None or gradient.layout != torch.strided or gradient.stride() == leaf.stride():
        return gradient
    if gradient.is_contiguous() and leaf.is_contiguous():
        return gradient
    return torch.empty_like(leaf, requires_grad=False).copy_(gradient)


def _like(leaf: Tensor, tensor: Tensor, on_cpu: bool) -> Tensor:
    """A stored tensor where it was, and in the memory layout of its leaf if it has the leaf's shape."""
    device = torch.device("cpu") if on_cpu else leaf.device
    if tensor.shape != leaf.shape:
        return tensor.to(device)
    return torch.empty_like(leaf, dtype=tensor.dtype, device=device, requires_grad=False).copy_(tensor)


def _ask(arguments: Callable[..., dict[str, Any]], name: str, *, whole: bool) -> dict[str, Any]:
    """A user's arguments for one parameter, asked for in one of Pyro's ways: by whole name, or by module and name."""
    name = re.sub(r"#\d+$", "", name)
    if whole:
        return arguments(normalize_param_name(name))
    return arguments(module_from_param_with_module_name(name), user_param_name(name))
