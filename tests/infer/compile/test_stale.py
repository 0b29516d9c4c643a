"""Whatever changes between steps, a compiled run is the eager one; or the step is refused, with a warning.

Each case builds a loss and a change, which happens before step `CHANGE_AT`, after the step was compiled.
"""

import enum
import functools
import itertools
import random
import types
import warnings
from array import array
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from compiled_runs import assert_refused, assert_same, compiled_shapes, row_of, run, run_with_warnings
from programs import torch_optim
from pyro import poutine
from pyro.infer import Trace_ELBO
from stale_cases import CHANGE_AT, STEPS, Case, run_case, target
from torch import Tensor, nn

import ppgen
from ppgen.infer.compile import audits
from ppgen.infer.compile.policy import MAX_CHANGES

FACTOR = 1.0


class Scaled(nn.Module):
    """Holds a factor in several ways."""

    shared = 1.0
    __slots__ = ("slot",)

    def __init__(self) -> None:
        super().__init__()
        self.factor, self.flag, self.mode, self.options = 1.0, False, "sum", {"factor": [1.0, 1.0]}
        self.slot = 1.0
        self.tensor = torch.tensor(1.0)
        self.function: Callable = abs

    def helper(self) -> float:
        return 1.0

    def forward(self, kind: str) -> Tensor:
        factor = {
            "factor": lambda: self.factor,
            "flag": lambda: 2.0 if self.flag else 1.0,
            "mode": lambda: 1.0 if self.mode == "sum" else 0.3,
            "options": lambda: self.options["factor"][1],
            "slot": lambda: self.slot,
            "shared": lambda: self.shared,
            "tensor": lambda: self.tensor,
            "function": lambda: self.function(-1.0),
            "helper": lambda: self.helper(),
            "getattr": lambda: getattr(self, "fac" + "tor"),
        }[kind]
        return target(factor())


def attribute(kind: str, change: Callable[[Scaled], Any]) -> Callable[[], Case]:
    def build() -> Case:
        module = Scaled()
        return Case(lambda model, guide: module(kind), lambda svi: change(module))

    return build


def closure_float() -> Case:
    factor = 1.0

    def change(svi: Any) -> None:
        nonlocal factor
        factor = 3.0

    return Case(lambda model, guide: target(factor), change)


def global_float() -> Case:
    def change(svi: Any) -> None:
        global FACTOR
        FACTOR = 3.0

    change(None)  # runs start with the same value, whatever happened before
    globals()["FACTOR"] = 1.0
    return Case(lambda model, guide: target(FACTOR), change)


def closure_tensor() -> Case:
    factor = torch.tensor(1.0)

    def change(svi: Any) -> None:
        nonlocal factor
        factor = torch.tensor(3.0)

    return Case(lambda model, guide: target(factor), change)


def closure_list() -> Case:
    factors = [1.0, 2.0]
    return Case(lambda model, guide: target(sum(factors)), lambda svi: factors.append(3.0))


def closure_array() -> Case:
    factors = array("d", [1.0])
    return Case(lambda model, guide: target(factors[0]), lambda svi: factors.append(0.0) or factors.__setitem__(0, 3.0))


def list_of_tensors() -> Case:
    factors = [torch.tensor(1.0), torch.tensor(2.0)]
    return Case(lambda model, guide: target(factors[1]), lambda svi: factors.__setitem__(1, torch.tensor(5.0)))


def numpy_scalar() -> Case:
    factors = np.ones(3)
    return Case(lambda model, guide: target(float(factors[1])), lambda svi: factors.fill(3.0))


def numpy_shared() -> Case:
    factors = np.ones(3, dtype="float32")
    shared = torch.from_numpy(factors)
    return Case(lambda model, guide: target(shared.sum()), lambda svi: factors.fill(3.0))


def namespace() -> Case:
    options = types.SimpleNamespace(inner=types.SimpleNamespace(factor=1.0))
    return Case(lambda model, guide: target(options.inner.factor), lambda svi: setattr(options.inner, "factor", 3.0))


@dataclass
class Options:
    factor: float = 1.0


def dataclass_replaced() -> Case:
    holder = [Options()]
    return Case(lambda model, guide: target(holder[0].factor), lambda svi: holder.__setitem__(0, Options(3.0)))


def class_attribute() -> Case:
    class Config:
        factor = 1.0

    return Case(lambda model, guide: target(Config.factor), lambda svi: setattr(Config, "factor", 3.0))


def python_module() -> Case:
    module = types.ModuleType("user_config")
    module.__file__, module.factor = "/home/user/user_config.py", 1.0  # type: ignore[attr-defined]
    return Case(lambda model, guide: target(module.factor), lambda svi: setattr(module, "factor", 3.0))


def enum_member() -> Case:
    class Mode(enum.Enum):
        ONE = 1.0
        THREE = 3.0

    holder = {"mode": Mode.ONE}
    return Case(lambda model, guide: target(holder["mode"].value), lambda svi: holder.update(mode=Mode.THREE))


def partial_keyword() -> Case:
    def loss(model: Any, guide: Any, *, factor: float) -> Tensor:
        return target(factor)

    given = functools.partial(loss, factor=1.0)
    return Case(given, lambda svi: given.keywords.update(factor=3.0))


def default_argument() -> Case:
    def loss(model: Any, guide: Any, factor: float = 1.0) -> Tensor:
        return target(factor)

    return Case(loss, lambda svi: setattr(loss, "__defaults__", (3.0,)))


def function_attribute() -> Case:
    def loss(model: Any, guide: Any) -> Tensor:
        return target(loss.factor)  # type: ignore[attr-defined]

    loss.factor = 1.0  # type: ignore[attr-defined]
    return Case(loss, lambda svi: setattr(loss, "factor", 3.0))


def helper_replaced() -> Case:
    helpers = {"helper": lambda: 1.0}

    def change(svi: Any) -> None:
        helpers["helper"] = lambda: 3.0

    return Case(lambda model, guide: target(helpers["helper"]()), change)


def code_replaced() -> Case:
    """As reloading of modules in notebooks does."""

    def helper() -> float:
        return 1.0

    def other() -> float:
        return 3.0

    return Case(lambda model, guide: target(helper()), lambda svi: setattr(helper, "__code__", other.__code__))


def decorated() -> Case:
    options = {"factor": 1.0}

    def scaled(function: Callable) -> Callable:
        @functools.wraps(function)
        def wrapped(*args: Any) -> Tensor:
            return function(*args) * options["factor"]

        return wrapped

    @scaled
    def loss(model: Any, guide: Any) -> Tensor:
        return target()

    return Case(loss, lambda svi: options.update(factor=3.0))


def network(*layers: nn.Module) -> tuple[nn.Sequential, Callable[..., Tensor]]:
    torch.manual_seed(3)
    layers = (nn.Linear(2, 3), *layers)
    net, x = nn.Sequential(*layers), torch.randn(8, 2)

    def loss(model: Any, guide: Any) -> Tensor:
        return pyro.module("net", net)(x).square().sum() + target()

    return net, loss


def dropout() -> Case:
    net, loss = network(nn.Dropout(0.1))
    return Case(loss, lambda svi: setattr(net[1], "p", 0.9))


def momentum() -> Case:
    net, _ = network(nn.BatchNorm1d(3))
    x = torch.randn(8, 2)

    def loss(model: Any, guide: Any) -> Tensor:
        pyro.module("net", net)(x)
        return target() + net[1].running_mean.square().sum()

    return Case(loss, lambda svi: setattr(net[1], "momentum", 0.9))


def activation() -> Case:
    net, loss = network(nn.LeakyReLU(0.1))
    return Case(loss, lambda svi: setattr(net[1], "negative_slope", 0.9))


def hook() -> Case:
    net, loss = network(nn.Tanh())
    return Case(loss, lambda svi: net[0].register_forward_hook(lambda module, args, out: 2.0 * out))


def forward_replaced() -> Case:
    net, loss = network(nn.Tanh())
    return Case(loss, lambda svi: setattr(net[1], "forward", torch.relu))


def forward_of_class_replaced() -> Case:
    class Own(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x

    _, loss = network(Own())
    return Case(loss, lambda svi: setattr(Own, "forward", lambda self, x: x.tanh()))


def layer_replaced() -> Case:
    net, loss = network(nn.Tanh())
    return Case(loss, lambda svi: net.__setitem__(1, nn.ReLU()))


def parameter_of_one_element_replaced_by_an_equal_one() -> Case:
    torch.manual_seed(3)
    net, x = nn.Linear(1, 1), torch.randn(8, 1)

    def change(svi: Any) -> None:
        net.weight = nn.Parameter(net.weight.detach().clone())

    return Case(lambda model, guide: pyro.module("net", net)(x).square().sum() + target(), change)


def hook_of_parameter() -> Case:
    net, loss = network(nn.Tanh())
    return Case(loss, lambda svi: net[0].weight.register_hook(lambda gradient: 3.0 * gradient))


def parameter_of(svi: Any) -> Tensor:
    return svi.optimizer.parameters["w"]


def parameter_of_another_size() -> Case:
    def loss(model: Any, guide: Any) -> Tensor:
        return pyro.param("w", torch.ones(300)).square().sum() + 0.01 * torch.randn(())

    def change(svi: Any) -> None:
        parameter_of(svi).data = torch.ones(2)
        svi.optimizer.torch_optimizer.state.clear()

    return Case(loss, change)


def parameter_of_another_stride() -> Case:
    def loss(model: Any, guide: Any) -> Tensor:
        w = pyro.param("w", torch.arange(300.0).reshape(3, 100))
        return (w * torch.arange(300.0).reshape(3, 100)).sum() + 0.01 * torch.randn(())

    def change(svi: Any) -> None:
        parameter_of(svi).data = torch.arange(300.0).reshape(100, 3).t()
        svi.optimizer.torch_optimizer.state.clear()

    return Case(loss, change)


def two_parameters_share_memory() -> Case:
    def loss(model: Any, guide: Any) -> Tensor:
        w, v = pyro.param("w", torch.ones(3)), pyro.param("v", 2.0 * torch.ones(3))
        return (w.square() + (v - 5.0).square()).sum() + 0.01 * torch.randn(())

    def change(svi: Any) -> None:
        parameter_of(svi).data = svi.optimizer.parameters["v"].data

    return Case(loss, change)


def state_loaded() -> Case:
    def change(svi: Any) -> None:
        optimizer = svi.optimizer.torch_optimizer
        state = optimizer.state_dict()
        for entry in state["state"].values():
            entry["exp_avg"] = entry["exp_avg"] + 10.0
        optimizer.load_state_dict(state)

    return Case(lambda model, guide: target(), change)


def state_cleared() -> Case:
    return Case(lambda model, guide: target(), lambda svi: svi.optimizer.torch_optimizer.state.clear())


def state_replaced() -> Case:
    def change(svi: Any) -> None:
        (state,) = svi.optimizer.torch_optimizer.state.values()
        state["exp_avg"] = torch.full_like(state["exp_avg"], 10.0)

    return Case(lambda model, guide: target(), change)


def scale_of_a_handler() -> Case:
    def model() -> None:
        pyro.sample("z", dist.Normal(3.0, 1.0))

    def guide() -> None:
        pyro.sample("z", dist.Normal(pyro.param("w", torch.tensor(0.0)), 1.0))

    scaled = poutine.scale(model, scale=1.0)
    handler = scaled.args[0] if hasattr(scaled, "args") else scaled.__closure__[0].cell_contents

    def loss(model: Any, unused: Any) -> Tensor:
        return Trace_ELBO().differentiable_loss(scaled, guide)

    return Case(loss, lambda svi: setattr(handler, "scale", 0.1))


def distribution_changed() -> Case:
    prior = dist.Normal(torch.zeros(3), torch.ones(3))

    def loss(model: Any, guide: Any) -> Tensor:
        return -prior.log_prob(pyro.param("w", torch.ones(3))).sum() + 0.01 * torch.randn(())

    return Case(loss, lambda svi: setattr(prior, "loc", torch.full((3,), 5.0)))


def default_type() -> Case:
    def loss(model: Any, guide: Any) -> Tensor:
        return target(torch.ones(1).element_size() / 4.0)

    return Case(loss, lambda svi: torch.set_default_dtype(torch.float64))


CASES: dict[str, Callable[[], Case]] = {
    "attribute": attribute("factor", lambda module: setattr(module, "factor", 3.0)),
    "flag": attribute("flag", lambda module: setattr(module, "flag", True)),
    "string": attribute("mode", lambda module: setattr(module, "mode", "mean")),
    "nested_options": attribute("options", lambda module: module.options["factor"].__setitem__(1, 3.0)),
    "slot": attribute("slot", lambda module: setattr(module, "slot", 3.0)),
    "class_attribute_shadowed": attribute("shared", lambda module: setattr(module, "shared", 3.0)),
    "tensor_attribute": attribute("tensor", lambda module: setattr(module, "tensor", torch.tensor(3.0))),
    "function_as_attribute": attribute("function", lambda module: setattr(module, "function", lambda x: 3.0)),
    "method_replaced": attribute("helper", lambda module: setattr(module, "helper", lambda: 3.0)),
    "getattr": attribute("getattr", lambda module: setattr(module, "factor", 3.0)),
    **{
        case.__name__: case
        for case in (
            *(closure_float, global_float, closure_tensor, closure_list, closure_array, list_of_tensors, numpy_scalar),
            *(numpy_shared, namespace, dataclass_replaced, class_attribute, python_module, enum_member),
            *(partial_keyword, default_argument, function_attribute, helper_replaced, code_replaced, decorated),
            *(dropout, momentum, activation, hook, forward_replaced, forward_of_class_replaced, layer_replaced),
            *(hook_of_parameter, parameter_of_another_size, parameter_of_another_stride),
            *(state_loaded, state_cleared, state_replaced, scale_of_a_handler, distribution_changed),
            default_type,
        )
    },
}


@pytest.mark.parametrize("name", CASES)
def test_change_of_what_a_step_reads_is_noticed(builds, name):
    compiled, eager = (run_case(CASES[name], compile) for compile in (True, False))
    assert len(builds) > 0
    assert_same(compiled, eager, 1e-4)
    unchanged = run_case(CASES[name], False, changed=False)
    assert not torch.allclose(unchanged.losses, eager.losses, rtol=1e-3)


def test_parameter_replaced_by_an_equal_one_is_noticed(builds):
    build = parameter_of_one_element_replaced_by_an_equal_one
    compiled, eager = (run_case(build, compile) for compile in (True, False))
    assert_same(compiled, eager, 1e-4)


# What no guard can see is refused when it is recorded.


def rarely_random() -> Callable:
    def loss(model: Any, guide: Any) -> Tensor:
        return target(5.0) if random.random() < 0.2 else target()

    return loss


def rarely_random_by_numpy() -> Callable:
    def loss(model: Any, guide: Any) -> Tensor:
        return target(5.0) if np.random.rand() < 0.2 else target()  # noqa: NPY002

    return loss


def rarely_random_by_a_generator() -> Callable:
    rng = np.random.default_rng(0)

    def loss(model: Any, guide: Any) -> Tensor:
        return target(5.0) if rng.random() < 0.2 else target()

    return loss


def counted() -> Callable:
    class Counts(nn.Module):
        calls = 0

        def forward(self) -> Tensor:
            self.calls += 1
            return target(5.0 if self.calls > 9 else 1.0)

    module = Counts()
    return lambda model, guide: module()


def counted_in_the_closure() -> Callable:
    calls = 0

    def loss(model: Any, guide: Any) -> Tensor:
        nonlocal calls
        calls += 1
        return target(5.0 if calls > 9 else 1.0)

    return loss


def iterated() -> Callable:
    factors = itertools.chain([1.0] * 9, itertools.repeat(5.0))
    return lambda model, guide: target(next(factors))


def by_numpy_values() -> Callable:
    return lambda model, guide: target(5.0 if pyro.param("w", torch.ones(3)).detach().numpy()[2] > -0.7 else 1.0)


def by_list() -> Callable:
    return lambda model, guide: target(5.0 if pyro.param("w", torch.ones(3)).tolist()[2] > -0.7 else 1.0)


def by_asarray() -> Callable:
    return lambda model, guide: target(5.0 if np.asarray(pyro.param("w", torch.ones(3)).detach())[2] > -0.7 else 1.0)


def tensor_of_numpy() -> Callable:
    factors, calls = np.ones(3), torch.zeros(())

    def loss(model: Any, guide: Any) -> Tensor:
        calls.add_(1.0)
        return target(torch.tensor(factors).sum())

    return loss


def large_array() -> Callable:
    factors = np.ones(1000)
    return lambda model, guide: target(float(factors[0]))


def stored_result() -> Callable:
    class Stores(nn.Module):
        def forward(self) -> Tensor:
            self.last = target()
            return self.last

    module = Stores()
    return lambda model, guide: module()


REFUSED: dict[Callable[[], Callable], str] = {
    rarely_random: "random numbers that are not torch's (random.random)",
    rarely_random_by_numpy: "random numbers that are not torch's (numpy.random.ran",
    rarely_random_by_a_generator: "random numbers that are not torch's (rng)",
    counted: "it uses Counts.calls, which changes from step to step",
    counted_in_the_closure: "it uses calls, in the closure of loss, which changes from step to step",
    iterated: "it reads from the iterator factors",
    by_numpy_values: "Python reads a tensor's values (numpy)",
    by_list: "Python reads a tensor's values (tolist)",
    by_asarray: "Python reads a tensor's values (__array__)",
    tensor_of_numpy: "it makes a tensor from a NumPy array",
    large_array: "it reads the NumPy array factors",
    stored_result: "it uses Stores.last, which changes from step to step",
}


@pytest.mark.parametrize("build", REFUSED)
def test_what_cannot_be_watched_stays_eager(builds, build):
    assert_refused(row_of(build), REFUSED[build], builds, steps=STEPS)


# Around the step


def gaussian_programs() -> tuple:
    def model() -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=torch.tensor(2.0))

    def guide() -> None:
        pyro.sample("z", dist.Normal(pyro.param("w", torch.tensor(0.0)), 1.0))

    return model, guide, ()


AROUND: dict[str, Callable[[], AbstractContextManager]] = {
    "scale": lambda: poutine.scale(scale=0.1),
    "condition": lambda: poutine.condition(data={"x": torch.tensor(0.5)}),
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
}


@pytest.mark.parametrize("name", AROUND)
def test_context_around_a_step_applies_to_it(builds, name):
    def losses(compile: bool) -> list[float]:
        pyro.clear_param_store()
        pyro.set_rng_seed(1)
        model, guide, _ = gaussian_programs()
        net, x = nn.Linear(4, 1), torch.randn(3, 4)

        def loss(model: Any, guide: Any) -> Tensor:
            return Trace_ELBO().differentiable_loss(model, guide) + pyro.module("net", net)(x).square().sum()

        svi = ppgen.SVI(model, guide, torch_optim(torch.optim.SGD, lr=0.01)(), loss, compile=compile)
        values = [svi.step() for _ in range(CHANGE_AT)]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that the step is not compiled there
            for _ in range(3):
                with AROUND[name]():
                    values.append(svi.step())
        return [*values, svi.step()]

    compiled, eager = losses(True), losses(False)
    assert len(builds) > 0
    assert compiled == pytest.approx(eager, rel=1e-3)


def test_step_without_gradients_changes_nothing_as_in_eager_mode(builds):
    svi = ppgen.SVI(*gaussian_programs()[:2], torch_optim(torch.optim.SGD, lr=0.01)(), Trace_ELBO(), compile=True)
    for _ in range(5):
        svi.step()
    assert compiled_shapes(svi) == 1
    weight = pyro.param("w").detach().clone()
    with torch.no_grad(), pytest.warns(UserWarning, match="no trainable parameter"):
        svi.step()
    assert torch.equal(pyro.param("w"), weight)


def test_value_that_changes_again_and_again_leaves_the_step_eager(builds):
    options = {"factor": 1.0}
    row = row_of(lambda: lambda model, guide: target(options["factor"]))

    def between(svi: Any, t: int) -> None:
        options["factor"] = 1.0 + t // 5

    compiled, messages = run_with_warnings(row, steps=60, between=between)
    options["factor"] = 1.0
    assert_same(compiled, run(row, False, steps=60, between=between), 1e-4)
    assert len(builds) == MAX_CHANGES
    (message,) = messages
    assert f"has changed {MAX_CHANGES} times" in message
    assert "options" in message


# Audits


def file_contents(path: Path) -> Case:
    """Not seen by the guard, but by the audit of the tenth compiled step."""
    path.write_text("1.0")
    return Case(lambda model, guide: target(float(path.read_text())), lambda svi: path.write_text("3.0"))


def test_audit_finds_what_no_guard_sees(builds, tmp_path):
    with pytest.warns(UserWarning, match="differs from what was compiled") as caught:
        compiled = run_case(lambda: file_contents(tmp_path / "factor"), True)
    (message,) = [str(warning.message) for warning in caught]
    assert "step 13 differs" in message
    assert "up to 10 steps before it may have been wrong (step 3 was checked last)" in message
    assert "stale_cases.py" in message
    assert compiled_shapes(compiled.svi) == 0
    assert "eager" in compiled.svi.compile_status


def doubled(graph: Callable, tensors: list[Tensor]) -> list[Tensor]:
    value, *others = graph(tensors)
    return [2.0 * value, *others]


def test_audit_finds_a_compiled_function_that_is_wrong(builds):
    row = row_of(lambda: lambda model, guide: target())

    def between(svi: Any, t: int) -> None:
        for shape in svi.compiled_step.policy.shapes.values():
            if t == CHANGE_AT and shape.compiled is not None:
                shape.compiled.graph = functools.partial(doubled, shape.compiled.graph)

    compiled, messages = run_with_warnings(row, steps=STEPS, between=between)
    assert ["the compiled step differs from the eager one" in message for message in messages] == [True]
    assert compiled_shapes(compiled.svi) == 0


def test_audits_take_at_most_a_hundredth_of_the_time(monkeypatch):
    now = 0.0
    monkeypatch.setattr(audits.time, "perf_counter", lambda: now)
    plan, audited = audits.Audits(), []
    for step in range(1, 200_000):
        now += 20e-6
        if plan.due():
            audited.append(step)
            now += 5e-3
            plan.passed(5e-3)
    assert audited[:3] == [10, 100, 1000]
    assert len(audited) > 5
    assert 5e-3 * (len(audited) - 3) <= 0.01 * now  # the first three belong to the time of compiling
