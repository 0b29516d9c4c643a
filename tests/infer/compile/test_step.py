"""The compiled step: it is the eager one, whatever the program, and where it cannot be, the step stays eager."""

import functools
import linecache
import math
import random
import re
import warnings
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from programs import (
    PROGRAMS,
    Encoder,
    Row,
    adam,
    frozen_in_training,
    networks,
    no_program,
    plain,
    regression,
    torch_optim,
)
from pyro.nn import PyroModule
from support import interpret
from torch import Tensor, nn
from torch._inductor.exc import InvalidCxxCompiler

import ppgen
from ppgen import recipes
from ppgen.infer import learning_rates
from ppgen.infer.compile import compiled_function, policy
from ppgen.infer.compile.step import Compile
from ppgen.infer.parameters import ProgramState

STEPS = 50


class Run(NamedTuple):
    svi: Any
    losses: Tensor
    tensors: dict[str, Tensor]
    noise: Tensor


def run(row: Row, compile: Compile, *, steps: int = STEPS, between: Callable | None = None) -> Run:
    """A run from the row's own start: every loss, all parameters, buffers and step counts, and the random state."""
    pyro.clear_param_store()
    pyro.set_rng_seed(1)
    model, guide, args = row.build()
    svi = ppgen.SVI(model, guide, row.optim(), row.loss(), compile=compile, **row.options)
    losses = []
    for t in range(steps):
        if between:
            between(svi, t)
        losses.append(svi.step(*args))
    noise = torch.get_rng_state()
    tensors = ProgramState.from_programs(model, guide, args).tensors | svi.optimizer.parameters
    counts = [float(tensor) for kind, tensor in svi.optimizer.state_tensors() if kind == "step"]
    tensors["optimizer's count"] = torch.tensor(counts)
    return Run(svi, torch.tensor(losses, dtype=torch.float64), tensors, noise)


def assert_same(compiled: Run, eager: Run, rtol: float) -> None:
    torch.testing.assert_close(compiled.losses, eager.losses, rtol=rtol, atol=rtol)
    assert compiled.tensors.keys() == eager.tensors.keys()
    for name, tensor in eager.tensors.items():
        why = functools.partial("{}: {}".format, name)
        torch.testing.assert_close(compiled.tensors[name], tensor, rtol=rtol, atol=rtol, msg=why)
    assert torch.equal(compiled.noise, eager.noise)


def captures(svi: ppgen.SVI) -> int:
    return svi.compiled_step.compiled_shapes


SPARED = {"mixture", "doubles_renyi", "auto_list", "iwae", "graph", "wake_sleep", "vae"}
"""Rows of the same operations as another's: their recorded graphs are held against eager mode, inductor is spared."""
SLOW = {"wae", "normed", "autoencoder", "networks", "doubles", "constrained"} | {
    f"auto_{kind}" for kind in ("low_rank", "multivariate", "iaf")
}
"""Rows that inductor takes more than about ten seconds for, when it has not met them before."""


def assert_compiled_is_eager(row: Row) -> None:
    compiled = run(row, True)
    assert compiled.svi.compiled_step.status.startswith("compiled at step 3,")
    assert captures(compiled.svi) == 1
    eager = run(row, False)
    assert len(set(eager.losses.tolist())) > STEPS / 2
    assert_same(compiled, eager, row.rtol)


COMPILED = [pytest.param(k, marks=[pytest.mark.slow] if k in SLOW else []) for k in PROGRAMS if k not in SPARED]


@pytest.mark.parametrize("name", COMPILED)
def test_the_compiled_trajectory_is_the_eager_one(name):
    assert_compiled_is_eager(PROGRAMS[name])


SMALL = Row(networks, recipes.vae, adam)
PLAIN = Row(plain, lambda: regression, torch_optim(torch.optim.SGD, lr=0.01))


FUSED = {
    "adam": torch_optim(torch.optim.Adam, lr=0.01, weight_decay=0.1),
    "adamw": torch_optim(torch.optim.AdamW, lr=0.01, amsgrad=True),
    "sgd": torch_optim(torch.optim.SGD, lr=0.01, momentum=0.9),
    "adagrad": torch_optim(torch.optim.Adagrad, lr=0.1),
}


@pytest.mark.parametrize("optim", FUSED)
def test_many_parameters_are_moved_by_one_kernel_after_the_graph(builds, monkeypatch, optim):
    monkeypatch.setattr(learning_rates, "FUSE_FROM", 0)
    row = Row(
        networks,
        recipes.vae,
        FUSED[optim],
        {"lr_scheduler": PROGRAMS["networks"].options["lr_scheduler"], "clip_norm": 1.0},
    )
    compiled, eager = run(row, True), run(row, False)
    (shape,) = compiled.svi.compiled_step.policy.shapes.values()
    assert len(shape.compiled.fused_updates) == 1
    assert_same(compiled, eager, row.rtol)


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_recorded_trajectory_is_the_eager_one(builds, name):
    assert_compiled_is_eager(PROGRAMS[name])
    assert len(builds) == 1


def test_every_step_draws_noise_of_its_own():
    still = run(PLAIN._replace(optim=torch_optim(torch.optim.SGD, lr=0.0)), True, steps=20)
    assert captures(still.svi) == 1
    assert len(set(still.losses.tolist())) == 20


def pyro_schedule() -> pyro.optim.PyroOptim:
    return pyro.optim.ExponentialLR({"optimizer": torch.optim.SGD, "optim_args": {"lr": 0.01}, "gamma": 0.8})


@pytest.mark.parametrize("pyros", [False, True])
def test_a_schedule_moves_the_compiled_step(builds, pyros):
    if pyros:
        row, between = PLAIN._replace(optim=pyro_schedule), lambda svi, t: svi.optim.step() if t else None
    else:
        decay = functools.partial(torch.optim.lr_scheduler.ExponentialLR, gamma=0.8)
        row, between = PLAIN._replace(options={"lr_scheduler": decay}), None
    compiled, eager = (run(row, compile, steps=20, between=between) for compile in (True, False))
    assert (captures(compiled.svi), len(builds)) == (1, 1)
    assert_same(compiled, eager, 1e-5)
    without = run(PLAIN, True, steps=20)
    assert not torch.allclose(without.losses[5:], compiled.losses[5:], rtol=1e-2)
    assert compiled.svi.optimizer.torch_optimizer.param_groups[0]["lr"] == pytest.approx(
        0.01 * 0.8 ** (19 if pyros else 20)
    )


def test_an_annealed_weight_moves(builds):
    """At still parameters, where the rate in closed form is a constant."""
    model, guide, args = networks()
    loss = recipes.vae(beta=ppgen.Ramp(1.0, start=0.5, steps=10))
    svi = ppgen.SVI(model, guide, functools.partial(torch.optim.SGD, lr=0.0), loss, compile=True)
    rates = torch.stack([svi.update(*args)["Rate"] for _ in range(15)])
    assert captures(svi) == 1
    expected = torch.tensor([min(0.5 + 0.05 * t, 1.0) for t in range(15)])
    torch.testing.assert_close(rates / rates[-1], expected)
    assert int(loss.step) == 15


# Arguments: every shape has its own capture.


def pieces(compile: bool, args: Callable, *, loss: Callable, steps: int = 24) -> tuple[ppgen.SVI, Tensor]:
    """A run whose t-th step is called with args(t) = (args, kwargs): losses, then parameters."""
    pyro.clear_param_store()
    pyro.set_rng_seed(1)
    svi = ppgen.SVI(no_program, no_program, functools.partial(torch.optim.Adam, lr=0.05), loss, compile=compile)
    losses = []
    for t in range(steps):
        given, named = args(t)
        losses.append(svi.step(*given, **named))
    return svi, torch.cat(
        [torch.tensor(losses), *(leaf.detach().flatten() for leaf in svi.optimizer.parameters.values())]
    )


def assert_pieces(args: Callable, *, loss: Callable, steps: int = 24) -> ppgen.SVI:
    svi, compiled = pieces(True, args, loss=loss, steps=steps)
    torch.testing.assert_close(compiled, pieces(False, args, loss=loss, steps=steps)[1], rtol=1e-5, atol=1e-6)
    return svi


def fitted(model: Callable, guide: Callable, x: Tensor, y: Any = None, *, beta: Any = 1.0, kind: str = "l1") -> Tensor:
    w = pyro.param("w", torch.tensor([3.0, 4.0]))
    error = x @ w + torch.randn(len(x)) - (0.0 if y is None else torch.as_tensor(y).sum(-1))
    penalty = w.abs() if kind == "l1" else w.pow(2)
    return error.pow(2).mean() + (7.0 if beta is True else beta) * penalty.sum()


DATA = torch.randn(24, 6, 2, generator=torch.Generator().manual_seed(5))


def test_a_last_short_batch_has_its_own_capture(builds):
    svi = assert_pieces(lambda t: ((DATA[t][: 2 if t % 4 == 3 else 6],), {}), loss=fitted)
    assert (captures(svi), len(builds)) == (2, 2)


def test_captures_are_bounded_and_further_shapes_run_eagerly(builds, monkeypatch):
    monkeypatch.setattr(policy, "MAX_COMPILED", 2)
    svi = assert_pieces(lambda t: ((DATA[t][: 2 + t % 4],), {}), loss=fitted)
    assert (captures(svi), len(builds)) == (2, 2)


def test_arguments_by_name_and_of_other_kinds_have_captures_of_their_own(builds):
    def args(t: int) -> tuple:
        return (DATA[t],), {"beta": (0.5, 2.0)[t % 2], "kind": ("l1", "l2")[t // 2 % 2]}

    assert (captures(assert_pieces(args, loss=fitted)), len(builds)) == (4, 4)


def test_arguments_that_are_equal_but_of_two_types_are_told_apart(builds):
    assert_pieces(lambda t: ((DATA[t],), {"beta": 1 if t < 12 else True}), loss=fitted)


def test_an_array_is_an_argument_whose_values_may_change(builds):
    svi = assert_pieces(lambda t: ((DATA[t], DATA[-1 - t].numpy()), {}), loss=fitted)
    assert captures(svi) == 0


def test_one_tensor_may_be_two_arguments(builds):
    assert_pieces(lambda t: ((DATA[t], DATA[t] if t % 2 else DATA[0]), {}), loss=fitted)


def test_an_argument_may_be_what_a_closure_holds(builds):
    def loss(model: Callable, guide: Callable, x: Tensor) -> Tensor:
        return fitted(model, guide, x - DATA[0]) + held.mean()

    held = DATA[0]
    assert_pieces(lambda t: ((held if t < 12 else DATA[t],), {}), loss=loss)


def test_views_of_one_batch_are_arguments(builds):
    svi = assert_pieces(lambda t: ((DATA[t], DATA[t].flip(0)[:, :1].expand(-1, 2)), {}), loss=fitted)
    assert captures(svi) == 1


# What changes between steps is seen.


class Changing(PyroModule):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(2, 3), nn.Dropout(0.5))
        self.still = nn.Linear(2, 2)
        self.still.requires_grad_(False)
        self.bare = nn.Linear(3, 1)

    def forward(self, x: Tensor) -> None:
        shift = pyro.param("shift", torch.zeros(3)) + self.bare.weight.sum()
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
            pyro.sample("x", dist.Normal(self.layers(self.still(z)) + shift, 1.0).to_event(1), obs=x)


def changing() -> tuple:
    return Changing(), Encoder(), (torch.randn(6, 3),)


def ramped() -> ppgen.Objective:
    loss = ppgen.Reconstruction() + ppgen.Ramp(1.0) * ppgen.Rate()
    loss.total = 100
    return loss


def set_in_optimizer(svi: Any, **settings: Any) -> None:
    for group in svi.optimizer.torch_optimizer.param_groups:
        group.update(settings)


CHANGES: dict[str, Callable[[Any], Any]] = {
    "freeze": lambda svi: svi.model.layers.requires_grad_(False),
    "thaw": lambda svi: svi.model.still.requires_grad_(True),
    "mode": lambda svi: svi.model.eval(),
    "total": lambda svi: setattr(svi.objective, "total", 10),
    "rate": lambda svi: set_in_optimizer(svi, lr=0.1),
    "betas": lambda svi: set_in_optimizer(svi, betas=(0.5, 0.5)),
    "parameter": lambda svi: setattr(svi.model.layers[0], "weight", nn.Parameter(torch.ones(3, 2))),
    "parameter_of_a_layer_not_called": lambda svi: setattr(svi.model.bare, "weight", nn.Parameter(torch.ones(1, 3))),
    "layer": lambda svi: svi.model.layers.__setitem__(0, nn.Linear(2, 3)),
    "store": lambda svi: pyro.clear_param_store(),
    "values": lambda svi: [leaf.data.fill_(0.5) for leaf in svi.optimizer.parameters.values()],
}


@frozen_in_training
@pytest.mark.parametrize("change", CHANGES)
def test_what_changes_midway_is_seen(builds, change):
    def between(svi: Any, t: int) -> None:
        if t == 8:
            CHANGES[change](svi)

    row = Row(changing, ramped, adam)
    compiled, eager = (run(row, compile, steps=20, between=between) for compile in (True, False))
    assert captures(compiled.svi) == 1
    assert compiled.svi.compiled_step.policy.compiled <= 2
    assert_same(compiled, eager, 1e-4)
    unchanged = run(row, False, steps=20)
    assert not torch.allclose(unchanged.losses, eager.losses)


@frozen_in_training
def test_a_parameter_with_arguments_of_its_own_joins_midway(builds):
    def between(svi: Any, t: int) -> None:
        if t == 8:
            CHANGES["parameter"](svi)

    row = Row(changing, ramped, lambda: pyro.optim.Adam(lambda name: {"lr": 0.001 * len(name)}))
    compiled, eager = (run(row, compile, steps=20, between=between) for compile in (True, False))
    assert captures(compiled.svi) == 1
    assert_same(compiled, eager, 1e-4)


@frozen_in_training
def test_what_changes_back_is_not_compiled_again(builds):
    def between(svi: Any, t: int) -> None:
        svi.model.train(t // 6 % 2 == 0)

    row = Row(changing, ramped, adam)
    compiled, eager = (run(row, compile, steps=24, between=between) for compile in (True, False))
    assert_same(compiled, eager, 1e-4)
    assert len(builds) == 2


def test_evaluating_between_steps_changes_nothing(builds):
    def between(svi: Any, t: int) -> None:
        if t:
            svi.evaluate_loss(torch.ones(6, 3))

    compiled, eager = (run(SMALL, compile, steps=12, between=between) for compile in (True, False))
    assert (captures(compiled.svi), len(builds)) == (1, 1)
    assert_same(compiled, eager, 1e-5)


# What Python does in a step is done in every step, or there is a warning.


def weight() -> Tensor:
    return pyro.param("w", torch.tensor([1.0, 2.0]))


def by_sign() -> Callable:
    def loss(model: Callable, guide: Callable) -> Tensor:
        z = torch.randn(())
        if z > 0:
            return (weight() - z).pow(2).sum()
        return weight().abs().sum()

    return loss


def by_item() -> Callable:
    def loss(model: Callable, guide: Callable) -> Tensor:
        scale = weight().sum().item()
        return (weight() - scale).pow(2).sum()

    return loss


def by_mask() -> Callable:
    def loss(model: Callable, guide: Callable) -> Tensor:
        noise = torch.randn(5)
        kept = noise[noise > 0]
        return (weight()[0] - kept).pow(2).sum() + weight().pow(2).sum()

    return loss


def by_nonzero() -> Callable:
    def loss(model: Callable, guide: Callable) -> Tensor:
        kept = (torch.randn(5) > 0).nonzero()
        return weight().pow(2).sum() * len(kept)

    return loss


def by_counter() -> Callable:
    taken = []

    def loss(model: Callable, guide: Callable) -> Tensor:
        taken.append(1)
        return weight().pow(2).sum() / len(taken)

    return loss


def by_random() -> Callable:
    def loss(model: Callable, guide: Callable) -> Tensor:
        return weight().pow(2).sum() * random.random()

    return loss


def by_numpy() -> Callable:
    def loss(model: Callable, guide: Callable) -> Tensor:
        target = torch.tensor(np.random.standard_normal(2), dtype=torch.float32)  # noqa: NPY002
        return (weight() - target).pow(2).sum()

    return loss


def by_numpy_shared() -> Callable:
    def loss(model: Callable, guide: Callable) -> Tensor:
        target = torch.from_numpy(np.random.standard_normal(2).astype("float32"))  # noqa: NPY002
        return (weight() - target).pow(2).sum()

    return loss


def by_replaced_state() -> Callable:
    kept = [torch.zeros(2)]

    def loss(model: Callable, guide: Callable) -> Tensor:
        kept[0] = 0.9 * kept[0] + 0.1 * weight().detach()
        return (weight() - 0.5 * kept[0]).pow(2).sum()

    return loss


# The loss, the statement that a warning names, and whether it stops a recording at once.
IN_PYTHON: dict[str, tuple[Callable[[], Callable], str, bool]] = {
    "if": (by_sign, "if z > 0:", True),
    "item": (by_item, "scale = weight().sum().item()", True),
    "mask": (by_mask, "kept = noise[noise > 0]", True),
    "nonzero": (by_nonzero, "kept = (torch.randn(5) > 0).nonzero()", True),
    "counter": (by_counter, "return weight().pow(2).sum() / len(taken)", False),
    "random": (by_random, "return weight().pow(2).sum() * random.random()", False),
    "numpy": (by_numpy, "target = torch.tensor(np.random", False),
    "numpy_shared": (by_numpy_shared, "target = torch.from_numpy(np.random", False),
    "replaced_state": (by_replaced_state, "kept[0] = 0.9 * kept[0]", False),
}


def run_with_warnings(row: Row, **options: Any) -> tuple[Run, list[str]]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        compiled = run(row, True, **options)
    return compiled, [str(warning.message) for warning in caught]


def of_loss(loss: Callable) -> Row:
    return Row(lambda: (no_program, no_program, ()), loss, torch_optim(torch.optim.Adam, lr=0.05))


@pytest.mark.parametrize("kind", IN_PYTHON)
def test_python_in_a_step_warns_once_and_runs_in_every_step(builds, kind):
    loss, text, at_once = IN_PYTHON[kind]
    compiled, messages = run_with_warnings(of_loss(loss), steps=20)
    eager = run(of_loss(loss), False, steps=20)
    # a step that was recorded counts the optimizer's steps in a tensor, and rounds otherwise
    assert_same(compiled, eager, 0.0 if at_once else 1e-5)
    assert len(messages) == 1
    assert messages[0].startswith("the step is not compiled, and runs eagerly")
    assert compiled.svi.compiled_step.status == messages[0]
    found = re.search(r", at test_step\.py:(\d+): (.*)$", messages[0])
    assert found, messages[0]
    assert linecache.getline(__file__, int(found[1])).strip() == found[2]
    assert found[2].startswith(text)


def test_the_warning_points_at_the_call_of_step(builds):
    with pytest.warns(UserWarning, match="the step is not compiled") as caught:
        run(of_loss(by_sign), True)
    assert caught[0].filename == __file__


def test_an_optimizer_that_counts_in_python_runs_eagerly(builds):
    row = SMALL._replace(optim=lambda: pyro.optim.DCTAdam({"lr": 0.01}))
    compiled, messages = run_with_warnings(row, steps=12)
    assert_same(compiled, run(row, False, steps=12), 1e-5)
    assert len(messages) == 1
    assert messages[0].startswith("the step is not compiled, and runs eagerly")


def test_without_a_compiler_steps_run_eagerly(monkeypatch, inductor):
    def fail(*args: Any, **kwargs: Any) -> None:
        raise InvalidCxxCompiler

    monkeypatch.setattr(inductor, "compile_fx_inner", fail)
    monkeypatch.setattr(compiled_function, "_cache", OrderedDict())
    compiled, messages = run_with_warnings(SMALL, steps=12)
    assert_same(compiled, run(SMALL, False, steps=12), 1e-5)
    assert len(messages) == 1
    assert "InvalidCxxCompiler" in messages[0]


# A compiled step that is wrong is not taken.


def scaled_moves(of: Callable[[Tensor], bool], by: float, *, first: bool = False) -> Callable:
    """Scales what a step adds to the chosen inputs, or to the first of them."""

    def wrap(call: Callable) -> Callable:
        def wrong(tensors: list[Tensor]) -> list[Tensor]:
            before = [tensor.detach().clone() for tensor in tensors]
            outputs = call(tensors)
            with torch.no_grad():
                moved = [(t, b) for t, b in zip(tensors, before, strict=True) if of(t) and not torch.equal(t, b)]
                assert moved
                for tensor, old in moved[: 1 if first else None]:
                    tensor.copy_(old + by * (tensor - old))
            return outputs

        return wrong

    return wrap


def trained(tensor: Tensor) -> bool:
    return tensor.requires_grad


WRONG: dict[str, Callable[[Callable], Callable]] = {
    "all parameters": scaled_moves(trained, 1.3),
    "one parameter": scaled_moves(trained, 1.3, first=True),
    "one parameter, not moved": scaled_moves(trained, 0.0, first=True),
    "one parameter, backward": scaled_moves(trained, -1.0, first=True),
    "moments": scaled_moves(lambda t: not t.requires_grad and t.dim() > 0, 1.3),
    "counts": scaled_moves(lambda t: not t.requires_grad and t.dim() == 0, 2.0),
    "loss": lambda call: lambda tensors: [1.01 * output for output in call(tensors)],
    "nan": lambda call: lambda tensors: [math.nan * output for output in call(tensors)],
    "too few values": lambda call: lambda tensors: call(tensors)[:-1],
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_wrong_compile_is_caught_before_it_counts(monkeypatch, inductor, kind):
    def build(*args: Any) -> Callable:
        return WRONG[kind](interpret(*args))

    monkeypatch.setattr(inductor, "compile_graph", build)
    monkeypatch.setattr(compiled_function, "_cache", OrderedDict())
    compiled, messages = run_with_warnings(SMALL, steps=12)
    assert captures(compiled.svi) == 0
    assert len(messages) == 1
    assert messages[0].startswith("the step is not compiled, and runs eagerly")
    assert_same(compiled, run(SMALL, False, steps=12), 1e-5)


@pytest.mark.parametrize("fails_at", [1, 2, 3])
def test_an_error_of_the_programs_own_is_raised_as_it_is(builds, fails_at):
    taken = []

    def loss(model: Callable, guide: Callable) -> Tensor:
        taken.append(1)
        if len(taken) >= fails_at:
            raise ZeroDivisionError("mine")
        return weight().pow(2).sum()

    svi = ppgen.SVI(no_program, no_program, torch.optim.Adam, loss, compile=True)
    for _ in range(fails_at - 1):
        svi.step()
    with pytest.raises(ZeroDivisionError, match="mine"):
        svi.step()


# What a user sees of it.


def test_all_is_as_before_a_step(builds):
    validates = [torch.distributions.Distribution._validate_args, pyro.infer.util.is_validation_enabled()]

    def between(svi: Any, t: int) -> None:
        assert torch.is_grad_enabled()
        assert not torch.compiler.is_compiling()
        assert [torch.distributions.Distribution._validate_args, pyro.infer.util.is_validation_enabled()] == validates
        if t:
            (group,) = svi.optimizer.torch_optimizer.param_groups
            assert type(group["lr"]) is float
            assert (group["capturable"], group["foreach"]) == (False, None)
            assert all(leaf.grad is None for leaf in svi.optimizer.parameters.values())

    run(SMALL, True, steps=6, between=between)
    run_with_warnings(of_loss(by_sign), steps=6, between=between)


def test_a_second_run_of_a_program_compiles_nothing(builds):
    runs = [run(SMALL, True, steps=8) for _ in range(2)]
    assert len(builds) == 1
    assert [captures(each.svi) for each in runs] == [1, 1]
    assert_same(runs[0], runs[1], 0.0)


def test_auto_compiles_when_the_steps_to_come_pay_for_it(builds, monkeypatch):
    def compiled(steps: int | None) -> bool:
        row = SMALL._replace(options={"steps": steps})
        return captures(run(row, "auto", steps=6).svi) == 1

    assert not compiled(6)
    assert not compiled(None)
    assert compiled(10**9)
    monkeypatch.setattr(policy, "COMPILE_SECONDS", 0.0)
    monkeypatch.setattr(policy, "SECONDS_PER_OPERATION", 0.0)
    assert compiled(1000)
    assert compiled(None)
    assert not compiled(2)


def test_what_is_no_choice_of_compiling_is_an_error():
    def make(**options: Any) -> ppgen.SVI:
        return ppgen.SVI(no_program, no_program, torch.optim.Adam, by_sign(), **options)

    with pytest.raises(ValueError, match="compile must be True, False or \"auto\", got 'yes'"):
        make(compile="yes")
    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        make(steps=0)


def test_a_compiled_step_returns_a_float_and_its_terms_by_name(builds):
    model, guide, args = networks()
    svi = ppgen.SVI(model, guide, torch.optim.Adam, recipes.vae(), compile=True)
    assert all(type(svi.step(*args)) is float for _ in range(6))
    values = svi.update(*args)
    assert list(values) == ["Reconstruction", "Rate"]
    assert not any(value.requires_grad for value in values.values())
    kept = {name: float(value) for name, value in values.items()}
    svi.update(*args)
    assert {name: float(value) for name, value in values.items()} == kept


def test_a_compiled_loss_that_is_nan_warns(builds):
    svi, _ = pieces(True, lambda t: ((DATA[t],), {}), loss=fitted, steps=6)
    with pytest.warns(UserWarning, match="the loss is NaN"):
        assert math.isnan(svi.step(DATA[0] * math.nan))
