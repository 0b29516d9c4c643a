"""Recordable optimizers: the trajectories of Pyro's own, with state in tensors that are updated in place."""

import copy
import inspect
from collections.abc import Sequence
from typing import Any

import pyro
import pytest
import torch
from pyro.optim.adagrad_rmsprop import AdagradRMSProp as PyroAdagradRMSProp
from pyro.optim.clipped_adam import ClippedAdam as PyroClippedAdam
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx
from torch.optim import Optimizer

from ppgen.infer.pyro_optimizers import EQUIVALENTS, AdagradRMSProp, ClippedAdam, traceable_equivalent

STEPS = 30
SHAPES = ((), (3, 2), (2,))
# by Pyro's optimizer: the name of its learning rate, and arguments to test
EXAMPLES: dict[type, tuple[str, list[dict[str, Any]]]] = {
    PyroClippedAdam: (
        "lr",
        [
            {},
            {"lr": 0.05, "weight_decay": 0.3},
            {"lr": 0.05, "clip_norm": 0.4, "weight_decay": 0.3},
            {"lr": 0.1, "lrd": 0.93},
            {"lr": 0.05, "centered_variance": True},
            {"lr": 0.2, "betas": (0.7, 0.8), "eps": 0.1, "clip_norm": 0.8, "lrd": 0.97, "centered_variance": True},
        ],
    ),
    PyroAdagradRMSProp: ("eta", [{}, {"eta": 0.1, "t": 0.6}, {"eta": 0.3, "delta": 0.2, "t": 0.05}]),
}
RATE = {theirs: rate for theirs, (rate, _) in EXAMPLES.items()}
CASES = [(theirs, arguments) for theirs, (_, examples) in EXAMPLES.items() for arguments in examples]
each = pytest.mark.parametrize("theirs", EQUIVALENTS, ids=lambda theirs: theirs.__name__)
each_case = pytest.mark.parametrize(("theirs", "arguments"), CASES, ids=lambda x: getattr(x, "__name__", str(x)))
each_dtype = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)


def start(dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(shape, generator=generator, dtype=dtype, requires_grad=True) for shape in SHAPES]


def gradients(dtype: torch.dtype = torch.float64) -> list[list[Tensor | None]]:
    """One list a step; the last parameter has none at every third step, the first among them."""
    generator = torch.Generator().manual_seed(2)
    steps = [[torch.randn(shape, generator=generator, dtype=dtype) for shape in SHAPES] for _ in range(STEPS)]
    return [[*found[:-1], None if i % 3 == 0 else found[-1]] for i, found in enumerate(steps)]


def step(optimizer: Optimizer, parameters: list[Tensor], found: Sequence[Tensor | None]) -> None:
    for p, g in zip(parameters, found, strict=True):
        p.grad = None if g is None else g.clone()
    optimizer.step()


class Original:
    """Pyro's optimizer as Pyro runs it: one for each parameter, stepped when the parameter has a gradient."""

    def __init__(self, theirs: type, arguments: dict[str, Any], dtype: torch.dtype = torch.float64):
        self.parameters = start(dtype)
        self.optimizers = [theirs([p], **arguments) for p in self.parameters]
        self.counts = [0] * len(self.parameters)

    def step(self, found: Sequence[Tensor | None]) -> None:
        for i, g in enumerate(found):
            if g is not None:
                step(self.optimizers[i], [self.parameters[i]], [g])
                self.counts[i] += 1


def states(optimizer: Optimizer) -> list[Tensor]:
    return [value for p in optimizer.param_groups[0]["params"] for value in optimizer.state[p].values()]


def assert_same(parameters: list[Tensor], expected: list[Tensor], rtol: float = 1e-9) -> None:
    for p, q in zip(parameters, expected, strict=True):
        torch.testing.assert_close(p, q, rtol=rtol, atol=rtol * 1e-3)


def test_every_equivalent_has_test_arguments():
    assert set(EQUIVALENTS) == set(EXAMPLES)


@each
def test_arguments_and_defaults_equal_those_of_pyro(theirs):
    found, expected = (inspect.signature(c).parameters for c in (EQUIVALENTS[theirs], theirs))
    assert [(name, p.default) for name, p in found.items()] == [(name, p.default) for name, p in expected.items()]


@each_case
def test_trajectory_equals_that_of_pyro(theirs, arguments):
    parameters, original = start(), Original(theirs, arguments)
    optimizer = EQUIVALENTS[theirs](parameters, **arguments)
    for found in gradients():
        step(optimizer, parameters, found)
        original.step(found)
        assert_same(parameters, original.parameters)
    assert all((p - q).abs().min() > 1e-5 for p, q in zip(parameters, start(), strict=True))


@each_case
def test_float32_parameters_keep_float32_moments(theirs, arguments):
    parameters, original = start(torch.float32), Original(theirs, arguments, torch.float32)
    optimizer = EQUIVALENTS[theirs](parameters, **arguments)
    for found in gradients(torch.float32):
        step(optimizer, parameters, found)
        original.step(found)
    assert_same(parameters, original.parameters, rtol=1e-4)
    for p in parameters:
        assert {name: value.dtype for name, value in optimizer.state[p].items()} == {
            "step": torch.float64,
            **dict.fromkeys(optimizer.moments, torch.float32),
        }


@each_case
@pytest.mark.parametrize("rate", [0.25, torch.tensor(0.25), torch.tensor(0.25, dtype=torch.float64)], ids=repr)
def test_learning_rate_can_be_set_between_steps(theirs, arguments, rate):
    parameters, original = start(), Original(theirs, arguments)
    optimizer = EQUIVALENTS[theirs](parameters, **arguments)
    for i, found in enumerate(gradients()):
        if i == STEPS // 2:
            optimizer.param_groups[0][RATE[theirs]] = rate
            for each_optimizer, count in zip(original.optimizers, original.counts, strict=True):
                group = each_optimizer.param_groups[0]
                group[RATE[theirs]] = 0.25 * group.get("lrd", 1.0) ** count  # Pyro's is the decayed one
        step(optimizer, parameters, found)
        original.step(found)
    assert_same(parameters, original.parameters)


@pytest.mark.parametrize("lr", [0.09, torch.tensor(0.09, dtype=torch.float64)], ids=repr)
def test_torch_scheduler_can_replace_lrd(lr):
    parameters, others = start(), start()
    scheduled, decaying = ClippedAdam(parameters, lr=lr), ClippedAdam(others, lr=0.1, lrd=0.9)
    lr_scheduler = torch.optim.lr_scheduler.ExponentialLR(scheduled, gamma=0.9)
    for found in gradients():
        step(scheduled, parameters, found)
        lr_scheduler.step()
        step(decaying, others, found)
    assert_same(parameters[:2], others[:2])  # the last one makes fewer steps than the schedule


@each_case
def test_gradients_and_groups_are_only_read(theirs, arguments):
    parameters = start()
    optimizer = EQUIVALENTS[theirs](parameters, **arguments)
    before = dict(optimizer.param_groups[0])
    for found in gradients()[:5]:
        step(optimizer, parameters, found)
        for p, g in zip(parameters, found, strict=True):
            assert (p.grad is None) if g is None else torch.equal(torch.as_tensor(p.grad), g)
    assert optimizer.param_groups[0] == before


@each
def test_state_is_updated_in_place(theirs):
    parameters = start()
    optimizer = EQUIVALENTS[theirs](parameters)
    before = states(optimizer)
    addresses = [value.data_ptr() for value in before]
    for found in gradients():
        step(optimizer, parameters, found)
    assert list(map(id, states(optimizer))) == list(map(id, before))
    assert [value.data_ptr() for value in before] == addresses
    assert all(value.abs().min() > 0 for value in before)
    assert [optimizer.state[p]["step"].item() for p in parameters] == [STEPS, STEPS, STEPS * 2 // 3]


@each_case
@each_dtype
@pytest.mark.parametrize("eager", [0, 2])
def test_recorded_step_equals_the_steps_that_follow(theirs, arguments, dtype, eager):
    """One graph, called again and again, moves parameters and state as the optimizer does, its rate included."""
    parameters, twins = start(dtype), start(dtype)
    optimizer, twin = (EQUIVALENTS[theirs](ps, **arguments) for ps in (parameters, twins))
    found = [torch.zeros_like(p, requires_grad=False) for p in parameters]
    drawn = [[g if g is not None else torch.ones(2, dtype=dtype) for g in gs] for gs in gradients(dtype)[: eager + 6]]
    group, rate = optimizer.param_groups[0], torch.zeros((), dtype=torch.float64)
    for gs in drawn[:eager]:
        step(optimizer, parameters, gs)
        step(twin, twins, gs)

    def traced_step(*_: Tensor) -> list[Tensor]:
        for p, g in zip(parameters, found, strict=True):
            p.grad = g
        optimizer.step()
        return [p.detach() for p in parameters]

    inputs = [*parameters, *found, rate, *states(optimizer)]
    number, group[RATE[theirs]] = group[RATE[theirs]], rate
    graph = None
    for i, gs in enumerate(drawn[eager:]):
        twin.param_groups[0][RATE[theirs]] = number / (1 + i)
        step(twin, twins, gs)
        rate.fill_(number / (1 + i))
        for g, value in zip(found, gs, strict=True):
            g.copy_(value)
        if graph is None:
            graph = make_fx(traced_step)(*inputs)  # makes the step while it is traced
            assert not [node for node in graph.graph.nodes if node.op == "get_attr"]
        else:
            with torch.no_grad():
                assert_same(graph(*inputs), twins, rtol=1e-12)
        assert_same(parameters, twins, rtol=1e-12)
    assert_same(states(optimizer), states(twin), rtol=1e-12)
    assert graph is not None


@each
def test_training_resumes_from_a_saved_state(theirs):
    parameters, others = start(), start()
    optimizer, resumed = EQUIVALENTS[theirs](parameters), EQUIVALENTS[theirs](others)
    for i, found in enumerate(gradients()):
        if i == STEPS // 2:
            resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
            with torch.no_grad():
                for p, q in zip(parameters, others, strict=True):
                    q.copy_(p)
        step(optimizer, parameters, found)
        if i >= STEPS // 2:
            step(resumed, others, found)
    assert_same(others, parameters, rtol=1e-15)


@each
def test_state_is_on_the_device_of_the_parameter(theirs):
    elsewhere = [p.detach().to("meta").requires_grad_() for p in start()]
    optimizer = EQUIVALENTS[theirs](elsewhere)
    assert {value.device.type for value in states(optimizer)} == {"meta"}
    optimizer.load_state_dict(EQUIVALENTS[theirs](start()).state_dict())
    assert {value.device.type for value in states(optimizer)} == {"meta"}


@each
def test_closure_computes_the_gradients(theirs):
    parameters, others = start(), start()
    by_closure, plain = EQUIVALENTS[theirs](parameters), EQUIVALENTS[theirs](others)

    def closure() -> Tensor:
        by_closure.zero_grad()
        loss = torch.stack([(p**2).sum() for p in parameters]).sum()
        loss.backward()
        return loss.detach()

    assert by_closure.step(closure) == torch.stack([(p**2).sum() for p in others]).sum()
    step(plain, others, [2 * p.detach() for p in others])
    assert_same(parameters, others)


@each
def test_later_parameter_counts_its_own_steps(theirs):
    (first, later), (one, two) = start()[:2], start()[:2]
    growing, (alone, apart) = EQUIVALENTS[theirs]([first]), (EQUIVALENTS[theirs]([p]) for p in (one, two))
    for i, found in enumerate(gradients()[:9]):
        if i == 4:
            growing.add_param_group({"params": [later]})
        step(growing, [first, later], found[:2])
        step(alone, [one], found[:1])
        if i >= 4:
            step(apart, [two], found[1:2])
    assert_same([first, later], [one, two])


@each
def test_sparse_gradient_is_an_error(theirs):
    table = torch.nn.Embedding(5, 2, sparse=True)
    table(torch.tensor([1, 3])).sum().backward()
    optimizer = EQUIVALENTS[theirs](table.parameters())
    with pytest.raises(TypeError, match=rf"{EQUIVALENTS[theirs].__name__} .* \(5, 2\).*sparse=False"):
        optimizer.step()


def test_only_pyro_optimizers_with_an_equivalent_are_exchanged():
    assert traceable_equivalent(pyro.optim.ClippedAdam({"lr": 0.1}).pt_optim_constructor) is ClippedAdam
    assert traceable_equivalent(pyro.optim.AdagradRMSProp({}).pt_optim_constructor) is AdagradRMSProp

    class Derived(PyroClippedAdam):
        """Its updates may be others."""

    for constructor in (torch.optim.Adam, pyro.optim.Adam({}).pt_optim_constructor, Derived, ClippedAdam, start, [1]):
        assert traceable_equivalent(constructor) is constructor
