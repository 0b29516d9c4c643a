"""One torch optimizer over all parameters, made from a Pyro optimizer or from a function that makes a torch one."""

import math
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

from ppgen.infer.checkpoint_file import with_prefix
from ppgen.infer.learning_rates import LearningRates
from ppgen.infer.optimizer_views import show_in_pyro_optimizer
from ppgen.infer.parameters import unique_name
from ppgen.infer.pyro_optimizers import traceable_equivalent

__all__ = ["OptimizerFactory", "ParameterOptimizer"]

OptimizerFactory = Callable[[Iterable[Any]], Optimizer]


class ParameterOptimizer:
    """The parameters that one loss updates, with their optimizer, gradient clipping and learning-rate scheduler.

    Args:
        optim: a Pyro optimizer (``pyro.optim.Adam({"lr": 1e-3})``, with its per-parameter arguments, clipping and
            schedulers), or a function parameters -> torch optimizer (``torch.optim.Adam`` itself, a
            `functools.partial` of it, or any other).
        clip_norm: bound on the Euclidean norm of all gradients together.
        lr_scheduler: optimizer -> torch learning-rate scheduler, advanced every step.

    Attributes:
        parameters: the leaf tensors by name, frozen ones left out unless they were frozen later.
        torch_optimizer: the optimizer of all of them; None before the first parameter.
        scheduler: the learning-rate scheduler, if there is one.
        last_gradients: (parameter, gradient) pairs of the last recorded step.
        recording: whether steps are recorded at present.
        rate_factor: what the learning rates are multiplied by, whatever the scheduler sets; see `scale_rates`.

    Raises:
        TypeError: if `optim` is something else, such as an optimizer that is already built.
        ValueError: if `clip_norm` is not positive.
    """

    def __init__(
        self,
        optim: PyroOptim | OptimizerFactory,
        *,
        clip_norm: float | None = None,
        lr_scheduler: Callable | None = None,
    ) -> None:
        if isinstance(optim, Optimizer):
            raise TypeError(
                f"optim is an optimizer already built ({type(optim).__name__}), but parameters may not exist yet: pass "
                "a function that builds one, such as functools.partial(torch.optim.Adam, lr=1e-3)"
            )
        if not isinstance(optim, PyroOptim) and not callable(optim):
            raise TypeError(
                f"optim must be a Pyro optimizer or a function parameters -> torch optimizer, got {optim!r}"
            )
        if clip_norm is not None and not clip_norm > 0:
            raise ValueError(f"clip_norm must be a positive bound on the norm of the gradients, got {clip_norm}")
        self.optim, self.clip_norm, self.lr_scheduler = optim, clip_norm, lr_scheduler
        self.torch_optimizer: Optimizer | None = None
        self.scheduler: Any = None
        self._pyro_scheduler: Any = None
        self.parameters: dict[str, Tensor] = {}
        self.last_gradients: list[tuple[Tensor, Tensor | None]] = []
        self._learning_rates: LearningRates | None = None
        self.recording, self.rate_factor = False, 1.0
        self._scheduler_steps = 0

    def add_parameters(self, parameters: dict[str, Tensor]) -> None:
        """Adds the trainable leaf tensors that are new; programs may create or unfreeze parameters at any step.

        Args:
            parameters: leaf tensors by name; frozen and known ones are ignored.
        """
        known = {id(leaf) for leaf in self.parameters.values()}
        new = {k: leaf for k, leaf in parameters.items() if leaf.requires_grad and id(leaf) not in known}
        if not new:
            return
        for name, leaf in new.items():
            self.parameters[unique_name(name, self.parameters)] = leaf
        optimizer = self._build(new)
        if self.torch_optimizer is not None:  # the new parameters join it and follow its schedule
            self.torch_optimizer.state.update(optimizer.state)
            if self._per_parameter:
                self.torch_optimizer.param_groups.extend(optimizer.param_groups)
            else:
                self.torch_optimizer.param_groups[0]["params"].extend(new.values())
        else:
            self.torch_optimizer = optimizer
            if isinstance(self.optim, PyroLRScheduler):  # its user advances it
                self._pyro_scheduler = self.optim.pt_scheduler_constructor(optimizer, **self.optim.kwargs)
            if self.lr_scheduler is not None:
                self.scheduler = self.lr_scheduler(optimizer)
        if isinstance(self.optim, PyroOptim):
            show_in_pyro_optimizer(self.optim, self.torch_optimizer, new, self._pyro_scheduler)

    def gradients(self, loss: Tensor) -> list[Tensor | None]:
        """The gradients of a scalar loss in the order of `parameters`; None for unused and for frozen parameters."""
        trainable = [leaf for leaf in self.parameters.values() if leaf.requires_grad]
        if not loss.requires_grad or not trainable:
            return [None] * len(self.parameters)
        found = dict(zip(map(id, trainable), torch.autograd.grad(loss, trainable, allow_unused=True), strict=True))
        return [found.get(id(leaf)) for leaf in self.parameters.values()]

    def update(self, gradients: list[Tensor | None]) -> None:
        """Takes one step of the optimizer, if some parameter has a gradient.

        Args:
            gradients: in the order of `parameters`.
        """
        if self.torch_optimizer is None or all(gradient is None for gradient in gradients):
            return
        leaves = list(self.parameters.values())
        gradients = [_match_layout(gradient, leaf) for gradient, leaf in zip(gradients, leaves, strict=True)]
        for leaf, gradient in zip(leaves, gradients, strict=True):
            leaf.grad = gradient
        if self.clip_norm is not None:
            clip_grad_norm_(leaves, self.clip_norm)
        self._clip_each()
        with self._scaled_rates():
            self.torch_optimizer.step()
        for leaf in leaves:
            leaf.grad = None
        if self.recording:
            self.last_gradients = list(zip(leaves, gradients, strict=True))

    def step_scheduler(self) -> None:
        """Advances the learning-rate scheduler by one step, if there is one."""
        if self.scheduler is not None:
            self.scheduler.step()
            self._scheduler_steps += 1

    @property
    def learning_rates(self) -> LearningRates:
        """The learning rates as a recorded step reads them; a new object for new parameter groups and optimizers."""
        assert self.torch_optimizer is not None
        rates, optimizer = self._learning_rates, self.torch_optimizer
        if rates is None or rates.optimizer is not optimizer or rates.num_groups != len(optimizer.param_groups):
            self._learning_rates = rates = LearningRates(optimizer)
        rates.factor = self.rate_factor
        return rates

    def scale_rates(self, factor: float) -> None:
        """Multiplies the learning rates of all steps to come; a scheduler goes on as before, and does not undo it.

        Args:
            factor: the factor, on top of earlier ones.
        """
        self.rate_factor *= factor
        for group in self.torch_optimizer.param_groups if self.torch_optimizer is not None else ():
            if "lr" not in group and "eta" in group:  # Pyro's AdagradRMSProp, which no scheduler knows
                group["eta"] = group["eta"] * factor

    @contextmanager
    def _scaled_rates(self) -> Iterator[None]:
        """Scales the rates of an eager step; those of a recorded one are tensors, which are scaled already."""
        if self.rate_factor == 1 or self.recording:
            yield
            return
        assert self.torch_optimizer is not None
        groups = [group for group in self.torch_optimizer.param_groups if "lr" in group]
        rates = [group["lr"] for group in groups]
        try:
            for group, rate in zip(groups, rates, strict=True):
                group["lr"] = rate * self.rate_factor
            yield
        finally:
            for group, rate in zip(groups, rates, strict=True):
                group["lr"] = rate

    @contextmanager
    def recordable(self) -> Iterator[None]:
        """Lets the steps inside ``with`` be recorded; `last_gradients` then holds their gradients."""
        self.recording = True
        try:
            with self.learning_rates.recordable():
                yield
        finally:
            self.recording = False

    def state_tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yields the tensors of the optimizer's state, such as moments of gradients, each with its name."""
        for state in self.torch_optimizer.state.values() if self.torch_optimizer is not None else ():
            yield from ((kind, tensor) for kind, tensor in state.items() if isinstance(tensor, Tensor))

    def tensors(self) -> Iterator[Tensor]:
        """Yields the parameters and the tensors of the optimizer's state."""
        yield from self.parameters.values()
        yield from (tensor for _, tensor in self.state_tensors())

    def get_state(self, names: Mapping[int, str]) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The parameters' names and the optimizer's state, for a checkpoint; `set_state` restores them.

        Args:
            names: of the parameters by id, by which another process finds them.

        Returns:
            Tensors by name, and metadata as JSON holds it.

        Raises:
            ValueError: if a parameter is not among `names`.
            TypeError: if the optimizer's state has other values than tensors, numbers and strings.
        """
        if late := [name for name, leaf in self.parameters.items() if id(leaf) not in names]:
            raise ValueError(
                f"checkpoint: the programs did not create the parameters {', '.join(late)} on the first batch, so that "
                "a run cannot be resumed with them; create all parameters on every batch, or give no checkpoint"
            )
        tensors: dict[str, Tensor] = {}
        numbers: dict[str, Any] = {}
        groups = [] if self.torch_optimizer is None else self.torch_optimizer.param_groups
        for i, leaf in enumerate(self.parameters.values()):
            assert self.torch_optimizer is not None
            for kind, value in self.torch_optimizer.state.get(leaf, {}).items():
                if isinstance(value, Tensor):
                    tensors[f"{i}/{kind}"] = value.detach().clone()
                else:
                    numbers[f"{i}/{kind}"] = self._json_value(kind, value)
        options = [{k: self._json_value(k, v) for k, v in group.items() if k != "params"} for group in groups]
        return tensors, {
            "parameters": {name: names[id(leaf)] for name, leaf in self.parameters.items()},
            "optimizer": self._description,
            "groups": options,
            "numbers": numbers,
            "on_cpu": [key for key, tensor in tensors.items() if tensor.device.type == "cpu"],
            "scheduler_steps": self._scheduler_steps,
            "rate_factor": self.rate_factor,
        }

    def set_state(self, leaves: Mapping[str, Tensor], tensors: dict[str, Tensor], metadata: dict[str, Any]) -> None:
        """Restores a state that `get_state` returned, before the first step.

        Args:
            leaves: the parameters by the names that `get_state` was given.
            tensors: the tensors that it returned.
            metadata: the metadata that it returned.

        Raises:
            ValueError: if the optimizer differs from the stored one.
        """
        self.rate_factor = metadata.get("rate_factor") or 1.0  # which earlier files lack
        parameters = {name: leaves[stored] for name, stored in metadata["parameters"].items()}
        frozen = [leaf for leaf in parameters.values() if not leaf.requires_grad]  # after they were added
        for leaf in frozen:
            leaf.requires_grad_(True)
        self.add_parameters(parameters)
        for leaf in frozen:
            leaf.requires_grad_(False)
        if self._description != metadata["optimizer"]:
            raise ValueError(f"checkpoint: its optimizer is {metadata['optimizer']}, this run's is {self._description}")
        if self.torch_optimizer is None:
            return
        _check_groups(self.torch_optimizer.param_groups, metadata["groups"])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's, about a scheduler that steps before its optimizer
            for _ in range(metadata["scheduler_steps"]):  # JSON cannot hold a scheduler, but its steps determine it
                self.step_scheduler()
        for group, options in zip(self.torch_optimizer.param_groups, metadata["groups"], strict=True):
            for key, value in options.items():
                if isinstance(group.get(key), Tensor):
                    group[key].fill_(value)
                else:
                    group[key] = tuple(value) if isinstance(value, list) else value
        for i, leaf in enumerate(parameters.values()):
            kinds, on_cpu = with_prefix(tensors, str(i)), metadata["on_cpu"]
            state: dict[str, Any] = {k: _like(leaf, v, f"{i}/{k}" in on_cpu) for k, v in kinds.items()}
            self.torch_optimizer.state[leaf] = state | with_prefix(metadata["numbers"], str(i))

    @property
    def _description(self) -> str:
        """The optimizer's class, options and number of parameters."""
        if self.torch_optimizer is None:
            return "none"
        options = ", ".join(f"{key}={value}" for key, value in self.torch_optimizer.defaults.items())
        sizes = ", ".join(str(len(group["params"])) for group in self.torch_optimizer.param_groups)
        return f"{type(self.torch_optimizer).__name__}({options}) of {sizes} parameters"

    def _json_value(self, key: str, value: Any) -> Any:
        """A number, a string or a tuple of them, as JSON holds it."""
        if isinstance(value, Tensor) and value.dim() == 0:
            return value.item()
        parts = value if isinstance(value, tuple) else (value,)
        if not all(part is None or isinstance(part, bool | int | float | str) for part in parts):
            raise TypeError(
                f"checkpoint: {type(self.torch_optimizer).__name__} holds {key!r}, a {type(value).__name__}, which a "
                "checkpoint cannot store; give another optim, or no checkpoint"
            )
        return value

    @property
    def _per_parameter(self) -> bool:
        """Whether a user's function gives each parameter its own arguments."""
        return callable(getattr(self.optim, "pt_optim_args", None))

    def _build(self, leaves: dict[str, Tensor]) -> Optimizer:
        values, optim = list(leaves.values()), self.optim
        make = traceable_equivalent(optim.pt_optim_constructor) if isinstance(optim, PyroOptim) else optim
        if not isinstance(optim, PyroOptim):
            optimizer = make(values)
        elif self._per_parameter:
            whole = optim.pt_optim_args_argc == 1
            arguments = [_arguments_of(optim.pt_optim_args, name, whole=whole) for name in leaves]
            groups = [{"params": [leaf], **given} for leaf, given in zip(values, arguments, strict=True)]
            optimizer = make(groups)
        else:
            optimizer = make(values, **optim.pt_optim_args)
        if not isinstance(optimizer, Optimizer):
            raise TypeError(f"optim must return a torch optimizer for a list of parameters, it returned {optimizer!r}")
        return optimizer

    def _clip_each(self) -> None:
        """Clips the gradient of each parameter, as the arguments of a Pyro optimizer ask for."""
        arguments = getattr(self.optim, "pt_clip_args", None)
        if not arguments:
            return
        for name, leaf in self.parameters.items():
            bounds = _arguments_of(arguments, name, whole=False) if callable(arguments) else arguments
            if leaf.grad is not None and "clip_norm" in bounds:
                clip_grad_norm_(leaf, bounds["clip_norm"])
            if leaf.grad is not None and "clip_value" in bounds:
                clip_grad_value_(leaf, bounds["clip_value"])


def _check_groups(groups: list[dict[str, Any]], stored: list[dict[str, Any]]) -> None:
    """Raises a ValueError if stored options of an optimizer are not those that it has, each a value of its kind."""
    if len(groups) != len(stored):
        raise ValueError(f"checkpoint: its optimizer has {len(stored)} groups of parameters, this run's {len(groups)}")
    for group, options in zip(groups, stored, strict=True):
        if different := sorted(options.keys() ^ (group.keys() - {"params"})):
            raise ValueError(f"checkpoint: its optimizer or this run's has no option {different[0]!r}")
        for key, value in options.items():
            if not _same_kind(group[key], value, bounded="lr" not in key):
                raise ValueError(f"checkpoint: its optimizer has {key}={value!r}, this run's {key}={group[key]!r}")


def _same_kind(current: Any, stored: Any, *, bounded: bool) -> bool:
    """Whether a stored option can take the place of the current one: a number that of a number, else the same.

    Numbers are finite and not negative; `bounded` ones, such as decay rates, stay below one if they are now.
    """
    if isinstance(current, tuple):
        return (
            isinstance(stored, list)
            and len(stored) == len(current)
            and all(_same_kind(a, b, bounded=bounded) for a, b in zip(current, stored, strict=True))
        )
    if isinstance(current, Tensor | float | int) and not isinstance(current, bool):
        number = isinstance(stored, float | int) and not isinstance(stored, bool) and math.isfinite(stored)
        return number and stored >= 0 and (stored < 1 or float(current) >= 1 or not bounded)
    return type(stored) is type(current) and stored == current


def _match_layout(gradient: Tensor | None, leaf: Tensor) -> Tensor | None:
    """A gradient in the memory layout of its parameter, which torch's fused optimizers assume."""
    if gradient is None or gradient.layout != torch.strided or gradient.stride() == leaf.stride():
        return gradient
    if gradient.is_contiguous() and leaf.is_contiguous():
        return gradient
    return torch.empty_like(leaf, requires_grad=False).copy_(gradient)


def _like(leaf: Tensor, tensor: Tensor, on_cpu: bool) -> Tensor:
    """A stored tensor on its former device; in the memory layout of its parameter if the shapes are equal."""
    device = torch.device("cpu") if on_cpu else leaf.device
    if tensor.shape != leaf.shape:
        return tensor.to(device)
    return torch.empty_like(leaf, dtype=tensor.dtype, device=device, requires_grad=False).copy_(tensor)


def _arguments_of(function: Callable[..., dict[str, Any]], name: str, *, whole: bool) -> dict[str, Any]:
    """A user's arguments for one parameter: by its whole name, or by module and name, as Pyro's optimizers allow."""
    name = re.sub(r"#\d+$", "", name)
    if whole:
        return function(normalize_param_name(name))
    return function(module_from_param_with_module_name(name), user_param_name(name))
