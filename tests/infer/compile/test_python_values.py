"""What strangers' programs read in other ways than by an attribute: a change is noticed, or the step refused."""

import collections
import contextvars
import functools
import operator
import os
import subprocess
import sys
import sysconfig
import types
import warnings
import weakref
from collections.abc import Callable
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
from pyro.infer import Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from pyro.nn import PyroModule, PyroSample
from stale_cases import CHANGE_AT, STEPS, Case, run_case, target
from torch import Tensor, nn

from ppgen.infer.compile.python_values import is_user_file


class Thing:
    """An object without attributes, as a user may fill it."""


def reading(read: Callable[[], Any], change: Callable[[], Any]) -> Case:
    """A loss in proportion to what `read` returns, until something happens."""
    return Case(lambda model, guide: target(read()), lambda svi: change())


def cached_function() -> Case:
    options = {"factor": 1.0}

    @functools.lru_cache
    def factor() -> float:
        return options["factor"]

    return reading(lambda: factor(), lambda: (options.update(factor=3.0), factor.cache_clear()))


def dispatched_function() -> Case:
    @functools.singledispatch
    def factor(x: Any) -> float:
        return 1.0

    return reading(lambda: factor(0), lambda: factor.register(int, lambda x: 3.0))


def metaclass() -> Case:
    class Meta(type):
        factor = 1.0

    class Config(metaclass=Meta):
        pass

    return reading(lambda: Config.factor, lambda: setattr(Meta, "factor", 3.0))


def class_of_an_object() -> Case:
    class One:
        def factor(self) -> float:
            return 1.0

    class Three(One):
        def factor(self) -> float:
            return 3.0

    thing = One()
    return reading(lambda: thing.factor(), lambda: setattr(thing, "__class__", Three))


def weak_reference() -> Case:
    thing = Thing()
    thing.factor = 1.0
    reference, keep = weakref.ref(thing), [thing]
    return reading(lambda: reference().factor, lambda: setattr(keep[0], "factor", 3.0))


def weak_dict() -> Case:
    key, factors = Thing(), weakref.WeakKeyDictionary()
    factors[key] = 1.0
    return reading(lambda: factors[key], lambda: factors.__setitem__(key, 3.0))


def user_dict() -> Case:
    options = collections.UserDict(factor=1.0)
    return reading(lambda: options["factor"], lambda: options.update(factor=3.0))


def chain_map() -> Case:
    options = collections.ChainMap({}, {"factor": 1.0})
    return reading(lambda: options["factor"], lambda: options.maps[1].update(factor=3.0))


def mapping_proxy() -> Case:
    options = {"factor": 1.0}
    proxy = types.MappingProxyType(options)
    return reading(lambda: proxy["factor"], lambda: options.update(factor=3.0))


def memory_view() -> Case:
    data = bytearray(b"\1\2")
    view = memoryview(data)
    return reading(lambda: float(view[0]), lambda: data.__setitem__(0, 3))


def environment_variable() -> Case:
    os.environ["PPGEN_TEST_FACTOR"] = "1.0"
    read = lambda: float(os.environ["PPGEN_TEST_FACTOR"])  # noqa: E731
    return reading(read, lambda: os.environ.update(PPGEN_TEST_FACTOR="3.0"))


def attribute_added() -> Case:
    thing = Thing()
    return reading(lambda: getattr(thing, "factor", 1.0), lambda: setattr(thing, "factor", 3.0))


def attribute_of_the_class_added() -> Case:
    class Config:
        pass

    config = Config()
    return reading(lambda: 3.0 if hasattr(config, "more") else 1.0, lambda: setattr(Config, "more", 3.0))


def attribute_of_a_function_added() -> Case:
    def factor() -> float:
        return getattr(factor, "value", 1.0)

    return reading(factor, lambda: setattr(factor, "value", 3.0))


def global_added() -> Case:
    globals().pop("ADDED", None)

    def factor() -> float:
        try:
            return ADDED  # type: ignore[name-defined]
        except NameError:
            return 1.0

    return reading(factor, lambda: globals().update(ADDED=3.0))


def builtin_hidden() -> Case:
    globals().pop("abs", None)
    return reading(lambda: abs(-1.0), lambda: globals().update(abs=lambda x: 3.0))


def attribute_getter() -> Case:
    things = [Thing(), Thing()]
    for thing in things:
        thing.factor = 1.0
    read = lambda: sum(map(operator.attrgetter("factor"), things))  # noqa: E731
    return reading(read, lambda: setattr(things[1], "factor", 5.0))


def order_of_a_dict() -> Case:
    factors = {"a": 1.0, "b": 3.0}
    return reading(lambda: next(iter(factors.values())), lambda: factors.update(a=factors.pop("a")))


def attribute_of_a_tensor() -> Case:
    x = torch.ones(())
    x.factor = 1.0  # type: ignore[attr-defined]
    return reading(lambda: x * x.factor, lambda: setattr(x, "factor", 3.0))


def long_list() -> Case:
    factors = [1.0] * 1000
    return reading(lambda: factors[500], lambda: factors.__setitem__(500, 3.0))


def integer_becomes_float() -> Case:
    size = [2]
    return reading(lambda: torch.full((), size[0]) // 4 + torch.full((), size[0]) / 4, lambda: size.__setitem__(0, 3.0))


def private_attribute_with_getattr() -> Case:
    """A lookup that fails with a KeyError, as that of many configurations."""

    class Config:
        def __init__(self) -> None:
            self.__dict__["_values"] = {"factor": 1.0}

        def __getattr__(self, name: str) -> Any:
            return self.__dict__["_values"][name]

    config = Config()
    return reading(lambda: config.factor, lambda: config._values.update(factor=3.0))


def layer(build: Callable[[], nn.Module], change: Callable[[Any], Any], shape: tuple = (8, 2)) -> Case:
    torch.manual_seed(3)
    net, x = build(), torch.randn(shape)
    return Case(lambda model, guide: pyro.module("net", net)(x).square().sum() + target(), lambda svi: change(net))


class Buffered(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


def buffer_replaced() -> Case:
    build = lambda: nn.Sequential(nn.Linear(2, 3), Buffered())  # noqa: E731
    return layer(build, lambda net: setattr(net[1], "scale", torch.tensor(3.0)))


def padding() -> Case:
    return layer(lambda: nn.Conv1d(2, 2, 3, padding=1), lambda net: setattr(net, "padding", (0,)), (3, 2, 9))


def builtin_activation() -> Case:
    build = lambda: nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, activation=torch.relu)  # noqa: E731
    case = layer(build, lambda net: setattr(net, "activation", torch.tanh), (3, 5, 4))
    return case._replace(optim=torch_optim(torch.optim.SGD, lr=0.01))  # the gradient of the keys' bias is rounding


def base_distribution() -> Case:
    prior = dist.Normal(torch.zeros(3), 1.0).to_event(1)
    return Case(
        lambda model, guide: target() - prior.log_prob(pyro.param("w")),
        lambda svi: setattr(prior, "base_dist", dist.Normal(torch.full((3,), 5.0), 1.0)),
    )


def guide_of_z(*args: Any) -> None:
    pyro.sample("z", dist.Normal(pyro.param("w", torch.tensor(0.0)), 1.0))


def elbo(model: Callable, guide: Callable, change: Callable[[], Any]) -> Case:
    return Case(lambda *programs: Trace_ELBO().differentiable_loss(model, guide), lambda svi: change())


def data_of_condition() -> Case:
    data = {"x": torch.tensor(2.0)}

    def model() -> None:
        pyro.sample("x", dist.Normal(pyro.sample("z", dist.Normal(0.0, 1.0)), 1.0))

    return elbo(pyro.condition(model, data=data), guide_of_z, lambda: data.update(x=torch.tensor(9.0)))


def prior_of_a_pyro_module() -> Case:
    class Model(PyroModule):
        def __init__(self) -> None:
            super().__init__()
            self.w = PyroSample(dist.Normal(0.0, 1.0))

        def forward(self) -> None:
            pyro.sample("x", dist.Normal(self.w, 1.0), obs=torch.tensor(2.0))

    model = Model()
    return elbo(model, AutoNormal(model), lambda: setattr(model, "w", PyroSample(dist.Normal(5.0, 0.1))))


CASES: dict[str, Callable[[], Case]] = {
    case.__name__: case
    for case in (
        *(cached_function, dispatched_function, metaclass, class_of_an_object, weak_reference, weak_dict, user_dict),
        *(chain_map, mapping_proxy, memory_view, environment_variable, attribute_added, attribute_of_the_class_added),
        *(attribute_of_a_function_added, global_added, builtin_hidden, attribute_getter, order_of_a_dict),
        *(attribute_of_a_tensor, long_list, integer_becomes_float, private_attribute_with_getattr, buffer_replaced),
        *(padding, builtin_activation, base_distribution, data_of_condition, prior_of_a_pyro_module),
    )
}


@pytest.mark.parametrize("name", CASES)
def test_change_of_what_a_step_reads_is_noticed(builds, monkeypatch, name):
    monkeypatch.setenv("PPGEN_TEST_FACTOR", "1.0")
    try:
        compiled, eager = (run_case(CASES[name], compile) for compile in (True, False))
        unchanged = run_case(CASES[name], False, changed=False)
    finally:
        globals().pop("abs", None)
    assert len(builds) > 0
    assert_same(compiled, eager, 1e-4)
    assert not torch.allclose(unchanged.losses, eager.losses, rtol=1e-3)


# An equal object in the place of another one may change later.


@dataclass
class Options:
    factor: float = 1.0


def equal_tensor() -> tuple[dict, Callable, Callable]:
    return {"factor": torch.tensor(1.0)}, lambda value: value, lambda value: value.fill_(3.0)


def equal_dict() -> tuple[dict, Callable, Callable]:
    return {"factor": {"inner": 1.0}}, lambda value: value["inner"], lambda value: value.update(inner=3.0)


def equal_dataclass() -> tuple[dict, Callable, Callable]:
    return {"factor": Options()}, lambda value: value.factor, lambda value: setattr(value, "factor", 3.0)


@pytest.mark.parametrize("build", [equal_tensor, equal_dict, equal_dataclass])
def test_equal_object_that_changes_later_is_noticed(builds, build):
    def losses(compile: bool) -> Any:
        holder, read, change = build()
        equal = build()[0]

        def between(svi: Any, t: int) -> None:
            if t == CHANGE_AT:
                holder.update(equal)
            elif t == CHANGE_AT + 1:
                change(holder["factor"])

        row = row_of(lambda: lambda model, guide: target(read(holder["factor"])))
        return run(row, compile, steps=CHANGE_AT + 3, between=between)

    assert_same(losses(True), losses(False), 1e-4)
    assert len(builds) > 0


# Refused


def evaluated() -> Callable:
    return lambda model, guide: target(eval("1.0"))


def from_globals() -> Callable:
    return lambda model, guide: target(len(globals()["__name__"]))


def from_a_file() -> Callable:
    def loss(model: Any, guide: Any) -> Tensor:
        with open(__file__) as file:
            return target(len(file.readline()))

    return loss


def context_variable() -> Callable:
    factor = contextvars.ContextVar("factor", default=1.0)
    return lambda model, guide: target(factor.get())


def hidden_attribute() -> Callable:
    thing, get = Thing(), operator.attrgetter("factor")
    thing.factor = 1.0
    return lambda model, guide: target(get(thing))


def very_long_list() -> Callable:
    factors = [1.0] * 5000
    return lambda model, guide: target(factors[500])


def own_generator() -> Callable:
    generator = torch.Generator().manual_seed(1)
    return lambda model, guide: target(torch.randn((), generator=generator).square())


def script() -> Callable:
    with warnings.catch_warnings(action="ignore"):
        net = torch.jit.script(nn.Sequential(nn.Linear(2, 3), nn.Dropout(0.5)))
    return lambda model, guide: pyro.module("net", net)(torch.ones(4, 2)).square().sum() + target()


def old_weight_norm() -> Callable:
    with warnings.catch_warnings(action="ignore"):
        net = nn.utils.weight_norm(nn.Linear(2, 3))
    return lambda model, guide: pyro.module("net", net)(torch.ones(4, 2)).square().sum() + target()


REFUSED: dict[Callable[[], Callable], str] = {
    evaluated: "<lambda> calls eval(), which may read anything",
    from_globals: "<lambda> calls globals(), which may read anything",
    from_a_file: "loss calls open(), which may read anything",
    context_variable: "it reads the context variable factor",
    hidden_attribute: "it uses get, an operator.attrgetter",
    very_long_list: "a list of 5000 entries, too many to compare before each step",
    own_generator: "it draws from a torch.Generator of its own",
    script: "it runs a TorchScript module",
    old_weight_norm: "it uses Linear.weight, which changes from step to step",
}


@pytest.mark.parametrize("build", REFUSED)
def test_what_cannot_be_watched_stays_eager(builds, build):
    assert_refused(row_of(build), REFUSED[build], builds, steps=STEPS)


def test_long_tuple_of_numbers_is_compiled(builds):
    factors = tuple(np.linspace(0.0, 1.0, 5000).tolist())
    row = row_of(lambda: lambda model, guide: target(factors[500]))
    compiled, messages = run_with_warnings(row, steps=STEPS)
    assert (compiled_shapes(compiled.svi), messages) == (1, [])


# Whose code it is


def test_installed_packages_are_the_user_s_and_names_that_begin_like_a_library_too():
    site_packages = Path(torch.__path__[0]).parent
    assert not is_user_file(torch.__file__)
    assert not is_user_file(functools.__file__)
    assert is_user_file(str(site_packages / "torchvision" / "ops.py"))
    assert is_user_file(str(site_packages / "pyroapi.py"))
    assert is_user_file(f"{sysconfig.get_path('stdlib')}/site-packages/users_package/model.py")
    assert is_user_file("<ipython-input-3>")


NOTEBOOK = """
import functools, torch, pyro, ppgen
from ppgen.infer.compile.building import Build
from support import known_as

Build.known = known_as()

class Config:
    factor = 1.0

config = Config()

def loss(model, guide):
    return (pyro.param("w", torch.ones(3)) - 5.0).square().sum() * config.factor

def losses(compile):
    pyro.clear_param_store()
    Config.factor, values = 1.0, []
    svi = ppgen.SVI(print, print, functools.partial(torch.optim.SGD, lr=0.01), loss, compile=compile)
    for t in range(10):
        if t == 8:
            Config.factor = 3.0
        values.append(svi.step())
    assert compile is False or svi.compiled_step.policy.compiled
    return values

compiled, eager = losses(True), losses(False)
assert max(abs(a - b) for a, b in zip(compiled, eager)) < 1e-3, (compiled, eager)
"""


@pytest.mark.slow
def test_classes_of_a_program_without_a_file_are_watched():
    """As in a notebook, whose ``__main__`` has no file."""
    root = Path(__file__).parents[3]
    paths = os.pathsep.join([str(root), str(root / "tests")])
    subprocess.run([sys.executable, "-c", NOTEBOOK], check=True, env=os.environ | {"PYTHONPATH": paths}, timeout=120)
