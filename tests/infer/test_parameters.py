"""The state of programs, found by running them: parameters, buffers, modules; saved, restored, restarted."""

import functools
from collections.abc import Callable

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import config_enumerate
from pyro.infer.autoguide import AutoDelta, AutoGuideList, AutoMultivariateNormal, AutoNormal
from pyro.nn import PyroModule, PyroParam
from support import gaussian_pair
from torch import Tensor, nn

from ppgen.infer.parameters import (
    CollectParameters,
    EvalMode,
    ProgramState,
    owning_module,
    restore,
    setup_programs,
    snapshot,
)

frozen_in_training = pytest.mark.filterwarnings("ignore:.*was not registered in the param store")


class Model(PyroModule):
    """z ~ N(0, I), x ~ N(net(z) scale, 1), with batch norm, dropout and a buffer that no layer holds."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 3))
        self.scale = PyroParam(torch.tensor(0.5), constraint=dist.constraints.positive)
        self.offset = nn.Parameter(torch.zeros(3))
        self.register_buffer("shift", torch.ones(3))

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
            loc = self.net(z) * self.scale + self.offset + self.shift
            pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=x)

    def method(self, x: Tensor) -> None:
        self(x)


def norm(model: Model) -> nn.BatchNorm1d:
    layer = model.net[1]
    assert isinstance(layer, nn.BatchNorm1d)
    return layer


def moments(model: Model) -> Tensor:
    mean = norm(model).running_mean
    assert mean is not None
    return mean


def guide(x: Tensor) -> None:
    loc = pyro.param("loc", lambda: torch.randn(2))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))


def x() -> Tensor:
    return torch.randn(6, 3)


LEAVES = {
    *(f"net$$${i}.{name}" for i in (0, 1, 3) for name in ("weight", "bias")),
    *("scale", "offset", "loc"),
}


def bits(tensors: dict[str, Tensor]) -> dict[str, bytes]:
    return {name: tensor.detach().numpy().tobytes() for name, tensor in tensors.items()}


# The module of a program


WRAPPERS: dict[str, Callable] = {
    "itself": lambda f: f,
    "scale": lambda f: poutine.scale(f, scale=0.5),
    "condition": lambda f: poutine.condition(f, data={}),
    "block": poutine.block,
    "replay": lambda f: poutine.replay(f, trace=poutine.Trace()),
    "trace": poutine.trace,
    "plate": lambda f: pyro.plate("outer", 3)(f),
    "enumerate": config_enumerate,
    "partial": lambda f: functools.partial(f, 1, 2, y=3),
    "nested": lambda f: poutine.block(pyro.plate("outer", 3)(functools.partial(poutine.scale(f, scale=2.0)))),
}


@pytest.mark.parametrize("wrap", WRAPPERS)
def test_owning_module_is_found_beneath_handlers(wrap):
    model = Model()
    assert owning_module(WRAPPERS[wrap](model)) is model
    assert owning_module(WRAPPERS[wrap](model.method)) is model
    assert owning_module(WRAPPERS[wrap](guide)) is None


# The state of programs


def test_parameters_are_collected_by_name_including_frozen_ones():
    first, second = nn.Linear(1, 1), nn.Linear(1, 1, bias=False)
    with CollectParameters() as used:
        pyro.module("net", first)
        pyro.module("net", second)
        scale = pyro.param("scale", torch.tensor(2.0), constraint=dist.constraints.positive)
        pyro.param("scale").unconstrained().requires_grad_(False)
    assert set(used.parameters) == {"net$$$weight", "net$$$bias", "net$$$weight#2", "scale"}
    assert used.parameters["net$$$weight"] is first.weight
    assert used.parameters["net$$$weight#2"] is second.weight
    assert used.parameters["scale"] is scale.unconstrained()


def test_state_has_every_parameter_and_buffer():
    model = Model()
    state = ProgramState.from_programs(model, guide, (x(),))
    assert set(state.parameters) == LEAVES
    held = {id(t) for t in state.tensors.values()}
    assert {id(t) for t in (*model.parameters(), *model.buffers())} < held
    assert held - {id(t) for t in (*model.parameters(), *model.buffers())} == {id(state.parameters["loc"])}


def test_finding_the_state_has_no_side_effects():
    model = Model()
    model.net[2].eval()
    before, modes = bits(model.state_dict()), {m: m.training for m in model.modules()}
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    ProgramState.from_programs(model, guide, (x(),))
    torch.manual_seed(3)
    ProgramState.from_programs(model, guide, (torch.zeros(6, 3),))
    assert torch.equal(torch.rand(1), expected)
    assert bits(model.state_dict()) == before
    assert {m: m.training for m in model.modules()} == modes
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


@frozen_in_training
def test_names_do_not_depend_on_which_parameters_are_frozen():
    def names(freeze: Callable[[str], bool]) -> tuple[set[str], set[str]]:
        pyro.clear_param_store()
        model = Model()
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(not freeze(name))
        state = ProgramState.from_programs(model, guide, (x(),))
        assert [p.requires_grad for _, p in model.named_parameters()] == [
            not freeze(n) for n, _ in model.named_parameters()
        ]
        return set(state.parameters), set(state.buffers)

    assert names(lambda name: False) == names(lambda name: name.startswith("net.0")) == names(lambda name: True)


def test_frozen_network_stays_frozen_after_an_error():
    model = Model().requires_grad_(False)

    def failing(x: Tensor) -> None:
        guide(x)
        if model.offset.requires_grad:
            raise RuntimeError("in the second run")

    with pytest.warns(UserWarning, match="not registered"), pytest.raises(RuntimeError, match="second run"):
        ProgramState.from_programs(model, failing, (x(),))
    assert not any(p.requires_grad for p in model.parameters())


class Attending(nn.Module):
    """Uses weights of layers that it never calls, and a buffer of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(2, 1, batch_first=True)
        self.norm = nn.BatchNorm1d(2)
        self.register_buffer("mask", torch.ones(2))

    def model(self, x: Tensor) -> None:
        pyro.module("all", self)
        value = self.attention(x[None], x[None], x[None])[0][0] * self.mask + self.norm.running_mean
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
            pyro.sample("x", dist.Normal(value + z, 1.0).to_event(1), obs=x)


def test_state_includes_modules_that_are_never_called():
    whole = Attending()
    state = ProgramState.from_programs(whole.model, guide, (torch.randn(5, 2),))
    held = {id(t) for t in state.tensors.values()}
    assert {id(t) for t in (*whole.parameters(), *whole.buffers())} < held


def schools(y: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.LogNormal(0.0, 1.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mu, tau), obs=y)


def list_of_guides(model: Callable) -> AutoGuideList:
    made = AutoGuideList(model)
    made.append(AutoNormal(poutine.block(model, hide=["tau"])))
    made.append(AutoDelta(poutine.block(model, expose=["tau"])))
    made.append(lambda y: None)
    return made


AUTOGUIDES: dict[str, Callable] = {
    "normal": lambda: AutoNormal(schools),
    "multivariate": lambda: AutoMultivariateNormal(schools),
    "list": lambda: list_of_guides(schools),
}


@pytest.mark.parametrize("hidden", [False, True], ids=["itself", "in a function"])
@pytest.mark.parametrize("kind", AUTOGUIDES)
def test_state_of_an_autoguide_is_the_same_before_and_after_its_setup(kind, hidden):
    auto = AUTOGUIDES[kind]()
    program = (lambda y: auto(y)) if hidden else auto
    lazy, ready = (ProgramState.from_programs(schools, program, (torch.randn(4),)) for _ in range(2))
    assert {k: id(v) for k, v in lazy.tensors.items()} == {k: id(v) for k, v in ready.tensors.items()}
    assert set(map(id, lazy.parameters.values())) == set(map(id, auto.parameters()))
    assert not any("#" in name for name in lazy.parameters)


def test_setup_removes_entries_of_other_modules_from_the_store():
    first, second = Model(), Model()
    with torch.no_grad():
        first(x())
    assert "scale" in pyro.get_param_store()
    setup_programs(second, guide, (x(),))
    assert not {"scale", "offset"} & set(pyro.get_param_store().keys())
    own = [id(p) for p in second.parameters()]
    with torch.no_grad():
        second(x())
    assert [id(p) for p in second.parameters()] == own
    assert id(second.scale_unconstrained) != id(first.scale_unconstrained)


def test_setup_keeps_entries_of_functions_and_of_the_module_itself():
    model = Model()
    with torch.no_grad():
        model(x())
        guide(x())
    held = {name: id(leaf) for name, leaf in pyro.get_param_store().named_parameters()}
    setup_programs(model, guide, (x(),))
    assert {name: id(leaf) for name, leaf in pyro.get_param_store().named_parameters()} == held


def test_shared_tensor_is_removed_under_both_names():
    class Tied(PyroModule):
        def __init__(self, name: str, weight: nn.Parameter) -> None:
            super().__init__()
            self.name = name
            setattr(self, name, weight)

        def forward(self) -> Tensor:
            return getattr(self, self.name)

    for _ in range(2):
        weight = nn.Parameter(torch.ones(1))
        programs = Tied("w", weight), Tied("v", weight)
        setup_programs(*programs, ())
        assert not pyro.get_param_store().keys()
        for program in programs:
            program()


# Eval mode


def test_eval_mode_applies_to_every_module_and_is_undone():
    net = nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.9), nn.BatchNorm1d(3))
    net[0].eval()
    modes = [m.training for m in net.modules()]
    before = bits(net.state_dict())
    with EvalMode() as run:
        value = torch.randn(4, 3)
        assert torch.equal(net(value), net(value))
    assert run.modules == [net, *net]
    assert [m.training for m in net.modules()] == modes
    assert bits(net.state_dict()) == before
    assert not torch.equal(net(value), net(value))


def test_eval_mode_nests_and_is_undone_after_an_error():
    net = nn.Dropout(0.5)
    with pytest.raises(ZeroDivisionError), EvalMode(), EvalMode():
        raise ZeroDivisionError(net(torch.ones(1)))
    assert net.training


# Restore and restart


def test_restore_writes_in_place():
    state = ProgramState.from_programs(Model(), guide, (x(),))
    saved, ids = snapshot(state.tensors), {k: id(t) for k, t in state.tensors.items()}
    expected = bits(saved)
    with torch.no_grad():
        for tensor in state.tensors.values():
            tensor.add_(1)
    restore(state.tensors, saved)
    assert bits(state.tensors) == expected
    assert {k: id(t) for k, t in state.tensors.items()} == ids


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        pytest.param({"a": torch.zeros(2)}, LookupError, r"not stored \['b'\]", id="missing"),
        pytest.param(
            {"a": torch.zeros(2), "b": torch.zeros(3), "c": torch.zeros(1)},
            LookupError,
            r"not in the programs \['c'\]",
            id="extra",
        ),
        pytest.param(
            {"a": torch.zeros(2), "b": torch.zeros(4)}, ValueError, r"b: expected shape \(3,\).*\(4,\)", id="shape"
        ),
    ],
)
def test_restore_of_other_values_is_an_error_and_writes_nothing(values, error, message):
    tensors = {"a": torch.ones(2), "b": torch.ones(3)}
    with pytest.raises(error, match=message):
        restore(tensors, values)
    assert all(torch.equal(t, torch.ones_like(t)) for t in tensors.values())


def test_restart_resamples_layers_and_moves_other_parameters_by_at_most_two():
    model = Model()
    state = ProgramState.from_programs(model, guide, (x(),))
    start, ids = snapshot(state.tensors), {k: id(t) for k, t in state.tensors.items()}
    moments(model).fill_(5.0)
    state.restart(start)
    assert {k: id(t) for k, t in state.tensors.items()} == ids
    moves = {name: state.parameters[name].detach() - start[name] for name in state.parameters}
    for name in ("scale", "offset", "loc"):
        assert 0 < moves[name].abs().max() <= 2
    for layer in (0, 3):  # torch's own start: U(-1 / sqrt(fan in), 1 / sqrt(fan in))
        weight = state.parameters[f"net$$${layer}.weight"]
        assert moves[f"net$$${layer}.weight"].abs().max() > 0
        assert weight.abs().max() <= weight.shape[1] ** -0.5
    assert torch.equal(norm(model).weight, torch.ones(4))
    assert torch.equal(moments(model), torch.zeros(4))
    assert torch.equal(model.shift, torch.ones(3))


def test_restart_resamples_attention_as_torch_does():
    whole = Attending()
    state = ProgramState.from_programs(whole.model, guide, (torch.randn(5, 2),))
    start = snapshot(state.tensors)
    state.restart(start)
    weight = whole.attention.in_proj_weight
    assert not torch.equal(weight, start["all$$$attention.in_proj_weight"])
    assert weight.abs().max() <= (6 / (6 + 2)) ** 0.5  # Glorot's uniform, of a (6, 2) matrix


@frozen_in_training
def test_restart_keeps_frozen_and_unused_parameters():
    model, first = Model(), nn.Linear(2, 4)
    model.net[0], model.aside = first, nn.Linear(2, 2)
    first.weight.requires_grad_(False)
    norm(model).requires_grad_(False)
    model.scale_unconstrained.requires_grad_(False)
    moments(model).fill_(5.0)
    state = ProgramState.from_programs(model, guide, (x(),))
    fixed = {
        "weight of a layer": first.weight,
        **dict(norm(model).named_parameters()),
        **dict(norm(model).named_buffers()),
        "scale": model.scale_unconstrained,
        **{f"aside {k}": p for k, p in model.aside.named_parameters()},
    }
    before = bits(fixed)
    bias = first.bias.detach().clone()
    state.restart(snapshot(state.tensors))
    assert bits(fixed) == before
    assert not torch.equal(first.bias, bias)


def test_functions_have_a_state_too():
    pair = gaussian_pair()
    state = ProgramState.from_programs(pair.model, pair.guide, pair.args)
    assert set(state.parameters) == {f"{n}$$${k}" for n in ("encoder", "decoder") for k in ("weight", "bias")}
