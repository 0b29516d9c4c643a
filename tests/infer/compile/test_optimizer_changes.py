"""What is changed in an optimizer, or for all of them, applies to compiled steps too."""

import copy
import functools
from collections.abc import Callable
from typing import Any

import pyro
import pytest
import torch
from programs import no_program
from pyro.distributions import constraints
from pyro.ops.tensor_utils import safe_cholesky
from torch import Tensor, nn

import ppgen
from ppgen.infer.optimizers import ParameterOptimizer

CHANGE_AT, STEPS = 6, 10
SGD = functools.partial(torch.optim.SGD, lr=0.01)


class Scaled(torch.optim.Optimizer):
    """Gradient descent with a factor that is an attribute, and not an option."""

    def __init__(self, parameters: Any, lr: float) -> None:
        super().__init__(parameters, {"lr": lr})
        self.factor = 1.0

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.sub_(parameter.grad * group["lr"] * self.factor)


def double_gradients(optimizer: Any, *args: Any) -> None:
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad.mul_(2.0)


def raise_output(module: nn.Module, inputs: Any, output: Any) -> Any:
    return output + 1.0 if isinstance(module, nn.Linear) else output


def optimizer_of(svi: Any) -> Any:
    return svi.optimizer.torch_optimizer


def other_torch_optimizer(svi: Any) -> None:
    svi.optimizer.torch_optimizer = torch.optim.SGD(list(svi.optimizer.parameters.values()), lr=0.03)


CASES: dict[str, tuple[Callable, Callable[[Any], Any]]] = {
    "attribute": (lambda: functools.partial(Scaled, lr=0.01), lambda svi: setattr(optimizer_of(svi), "factor", 5.0)),
    "hook": (lambda: SGD, lambda svi: optimizer_of(svi).register_step_pre_hook(double_gradients)),
    "method": (lambda: SGD, lambda svi: setattr(optimizer_of(svi), "step", lambda: None)),
    "torch_optimizer": (lambda: SGD, other_torch_optimizer),
    "optimizer": (lambda: SGD, lambda svi: setattr(svi, "optimizer", ParameterOptimizer(SGD, clip_norm=0.1))),
    "clip_args": (
        lambda: pyro.optim.SGD({"lr": 0.01}, clip_args={"clip_norm": 10.0}),
        lambda svi: svi.optim.pt_clip_args.update(clip_norm=0.01),
    ),
    "constraint": (
        lambda: SGD,
        lambda svi: pyro.get_param_store()._constraints.update(w=constraints.greater_than(1.0)),
    ),
    "setting": (lambda: SGD, lambda svi: pyro.settings.set(cholesky_relative_jitter=1e6)),
    "hook_of_all_modules": (lambda: SGD, lambda svi: nn.modules.module.register_module_forward_hook(raise_output)),
}


def run(name: str, compile: bool, *, changed: bool = True) -> list[float]:
    make, change = CASES[name]
    pyro.clear_param_store()
    pyro.set_rng_seed(1)
    net = nn.Linear(3, 1)

    def loss(model: Any, guide: Any) -> Tensor:
        w = pyro.param("w", torch.tensor([1.0, 2.0, 3.0]), constraint=constraints.positive)
        return safe_cholesky(w.diag()).square().sum() + pyro.module("net", net)(w).square().sum()

    svi = ppgen.SVI(no_program, no_program, make(), loss, compile=compile)
    values, handle = [], None
    jitter = pyro.settings.get("cholesky_relative_jitter")
    try:
        for t in range(STEPS):
            if t == CHANGE_AT and changed:
                handle = change(svi)
            values.append(svi.step())
    finally:
        pyro.settings.set(cholesky_relative_jitter=jitter)
        if hasattr(handle, "remove"):
            handle.remove()
    return values


@pytest.mark.parametrize("name", CASES)
def test_change_is_noticed(builds, name):
    compiled, eager = run(name, True), run(name, False)
    assert len(builds) > 0
    assert compiled == pytest.approx(eager, rel=1e-4)
    assert run(name, False, changed=False) != pytest.approx(eager, rel=1e-3)


class Doubling(torch.overrides.TorchFunctionMode):
    """Doubles squares."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        value = func(*args, **(kwargs or {}))
        return self.factor * value if func is Tensor.square else value


def test_another_function_mode_around_a_step_is_noticed(builds):
    def losses(compile: bool) -> list[float]:
        pyro.clear_param_store()
        loss = lambda model, guide: pyro.param("w", torch.ones(3)).square().sum()  # noqa: E731
        svi = ppgen.SVI(no_program, no_program, SGD, loss, compile=compile)
        one, other, values = Doubling(1.0), Doubling(2.0), []
        for t in range(STEPS):
            with one if t < CHANGE_AT else other:
                values.append(svi.step())
        return values

    assert losses(True) == pytest.approx(losses(False), rel=1e-5)
    assert len(builds) > 0


def test_device_given_around_each_step_needs_one_compilation(builds):
    svi = ppgen.SVI(no_program, no_program, SGD, lambda *_: pyro.param("w", torch.ones(3)).square().sum(), compile=True)
    for _ in range(STEPS):
        with torch.device("cpu"):
            svi.step()
    assert len(builds) == 1


def test_copy_of_a_compiled_svi_goes_on_by_itself(builds):
    net, x = nn.Linear(3, 1), torch.randn(4, 3)

    class Loss:
        def __init__(self) -> None:
            self.net = net

        def __call__(self, model: Any, guide: Any) -> Tensor:
            return pyro.module("net", self.net)(x).square().sum()

    svi = ppgen.SVI(no_program, no_program, SGD, Loss(), compile=True)
    for _ in range(4):
        svi.step()
    before = net.weight.detach().clone()
    other = copy.deepcopy(svi)
    expected = svi.evaluate_loss()
    values = [other.step() for _ in range(5)]
    assert values[0] == pytest.approx(expected, rel=1e-5)
    assert values[-1] < values[0]
    assert torch.equal(net.weight, before)


class Equal:
    """Equals all objects of its class."""

    def __init__(self, factor: float) -> None:
        self.factor = factor

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Equal)

    def __hash__(self) -> int:
        return 1


class Tripled(Tensor):
    """Its squares are three times as large."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        value = super().__torch_function__(func, types, args, kwargs or {})
        return 3.0 * value if func is Tensor.square else value


ARGUMENTS: dict[str, Callable[[bool], tuple]] = {
    "objects that call each other equal": lambda changed: (torch.ones(3), Equal(3.0 if changed else 1.0)),
    "a subclass of Tensor": lambda changed: (torch.ones(3).as_subclass(Tripled if changed else Tensor), Equal(1.0)),
}


@pytest.mark.parametrize("kind", ARGUMENTS)
def test_other_argument_has_a_function_of_its_own(builds, kind):
    def loss(model: Any, guide: Any, x: Tensor, options: Equal) -> Tensor:
        return (pyro.param("w", torch.ones(3)) * x).square().sum() * options.factor

    def losses(compile: bool) -> list[float]:
        pyro.clear_param_store()
        svi = ppgen.SVI(no_program, no_program, SGD, loss, compile=compile)
        given = [ARGUMENTS[kind](changed) for changed in (False, True)]
        return [svi.step(*given[t >= CHANGE_AT]) for t in range(STEPS)]

    assert losses(True) == pytest.approx(losses(False), rel=1e-5)
    assert len(builds) > 0


def test_compiled_step_keeps_no_copies_of_parameters(builds):
    svi = ppgen.SVI(no_program, no_program, SGD, lambda *_: pyro.param("w", torch.ones(3)).square().sum(), compile=True)
    for _ in range(5):
        svi.step()
    (shape,) = svi.compiled_step.policy.shapes.values()
    assert shape.compiled is not None
    assert shape.recording.overwritten == []
