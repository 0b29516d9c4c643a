"""The compiled step equals the eager one for every program; where it cannot, the step stays eager."""

import functools
import linecache
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from compiled_runs import PLAIN, SMALL, STEPS, assert_same, compiled_shapes, row_of, run, run_with_warnings
from programs import PROGRAMS, Row, networks, no_program, torch_optim
from pyro.infer import Trace_ELBO
from support import interpret, known_as
from torch import Tensor
from torch._inductor.exc import InvalidCxxCompiler

import ppgen
from ppgen import recipes
from ppgen.infer.compile.building import Build

NOT_COMPILED = {"mixture", "doubles_renyi", "auto_list", "iwae", "graph", "wake_sleep", "vae"}
"""Rows with the same operations as another one: only their recorded graphs are compared with eager mode."""
SLOW = {"wae", "normed", "autoencoder", "networks", "doubles", "constrained"} | {
    f"auto_{kind}" for kind in ("low_rank", "multivariate", "iaf")
}
"""Rows that inductor needs more than about ten seconds for, when they are not in its cache."""


def assert_compiled_is_eager(row: Row) -> None:
    compiled = run(row, True)
    assert compiled.svi.compiled_step.status.startswith("compiled at step 3,")
    assert compiled_shapes(compiled.svi) == 1
    eager = run(row, False)
    assert len(set(eager.losses.tolist())) > STEPS / 2
    assert_same(compiled, eager, row.rtol)


COMPILED = [pytest.param(k, marks=[pytest.mark.slow] if k in SLOW else []) for k in PROGRAMS if k not in NOT_COMPILED]


@pytest.mark.parametrize("name", COMPILED)
def test_compiled_trajectory_equals_eager_one(name):
    assert_compiled_is_eager(PROGRAMS[name])


@pytest.mark.parametrize("name", PROGRAMS)
def test_recorded_trajectory_equals_eager_one(builds, name):
    assert_compiled_is_eager(PROGRAMS[name])
    assert len(builds) == 1


def test_every_compiled_step_draws_new_random_numbers():
    still = run(PLAIN._replace(optim=torch_optim(torch.optim.SGD, lr=0.0)), True, steps=20)
    assert compiled_shapes(still.svi) == 1
    assert len(set(still.losses.tolist())) == 20


def pyro_schedule() -> pyro.optim.PyroOptim:
    return pyro.optim.ExponentialLR({"optimizer": torch.optim.SGD, "optim_args": {"lr": 0.01}, "gamma": 0.8})


@pytest.mark.parametrize("pyros", [False, True])
def test_learning_rate_schedule_applies_to_compiled_steps(builds, pyros):
    if pyros:
        row, between = PLAIN._replace(optim=pyro_schedule), lambda svi, t: svi.optim.step() if t else None
    else:
        decay = functools.partial(torch.optim.lr_scheduler.ExponentialLR, gamma=0.8)
        row, between = PLAIN._replace(options={"lr_scheduler": decay}), None
    compiled, eager = (run(row, compile, steps=20, between=between) for compile in (True, False))
    assert (compiled_shapes(compiled.svi), len(builds)) == (1, 1)
    assert_same(compiled, eager, 1e-5)
    without = run(PLAIN, True, steps=20)
    assert not torch.allclose(without.losses[5:], compiled.losses[5:], rtol=1e-2)
    assert compiled.svi.optimizer.torch_optimizer.param_groups[0]["lr"] == pytest.approx(
        0.01 * 0.8 ** (19 if pyros else 20)
    )


def test_annealed_weight_of_a_term_applies_to_compiled_steps(builds):
    """At fixed parameters, where the rate in closed form is a constant."""
    model, guide, args = networks()
    loss = recipes.vae(beta=ppgen.Ramp(1.0, start=0.5, steps=10))
    svi = ppgen.SVI(model, guide, functools.partial(torch.optim.SGD, lr=0.0), loss, compile=True)
    rates = torch.stack([svi.update(*args)["Rate"] for _ in range(15)])
    assert compiled_shapes(svi) == 1
    expected = torch.tensor([min(0.5 + 0.05 * t, 1.0) for t in range(15)])
    torch.testing.assert_close(rates / rates[-1], expected)
    assert int(loss.step) == 15


# Steps that depend on Python stay eager, with a warning.


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
    calls = []

    def loss(model: Callable, guide: Callable) -> Tensor:
        calls.append(1)
        return weight().pow(2).sum() / len(calls)

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


# The loss, and the statement that a warning names.
IN_PYTHON: dict[str, tuple[Callable[[], Callable], str]] = {
    "if": (by_sign, "if z > 0:"),
    "item": (by_item, "scale = weight().sum().item()"),
    "mask": (by_mask, "kept = noise[noise > 0]"),
    "nonzero": (by_nonzero, "kept = (torch.randn(5) > 0).nonzero()"),
    "counter": (by_counter, "return weight().pow(2).sum() / len(calls)"),
    "numpy": (by_numpy, "target = torch.tensor(np.random"),
    "numpy_shared": (by_numpy_shared, "target = torch.from_numpy(np.random"),
    "replaced_state": (by_replaced_state, "kept[0] = 0.9 * kept[0]"),
}


@pytest.mark.parametrize("kind", IN_PYTHON)
def test_step_that_depends_on_python_warns_once_and_stays_eager(builds, kind):
    loss, text = IN_PYTHON[kind]
    compiled, messages = run_with_warnings(row_of(loss), steps=20)
    eager = run(row_of(loss), False, steps=20)
    assert_same(
        compiled, eager, 1e-5
    )  # a recorded step counts the optimizer's steps in a tensor, and rounds differently
    assert len(messages) == 1
    assert messages[0].startswith("the step is not compiled, and runs eagerly")
    assert compiled.svi.compiled_step.status == messages[0]
    found = re.search(r", at test_step\.py:(\d+): (.*)$", messages[0])
    assert found, messages[0]
    assert linecache.getline(__file__, int(found[1])).strip() == found[2]
    assert found[2].startswith(text)


def test_warning_points_to_the_call_of_step(builds):
    with pytest.warns(UserWarning, match="the step is not compiled") as caught:
        run(row_of(by_sign), True)
    assert caught[0].filename == run.__code__.co_filename


def test_step_that_writes_into_memory_of_another_input_stays_eager(builds):
    def counting() -> Callable:
        counts = torch.zeros(4)
        first = counts[:2]  # a graph would take the two for separate inputs

        def loss(model: Any, guide: Any) -> Tensor:
            counts.add_(1.0)
            return (weight() * first).sum().square() / (1.0 + counts.sum())

        return loss

    compiled, messages = run_with_warnings(row_of(counting), steps=12)
    assert_same(compiled, run(row_of(counting), False, steps=12), 1e-5)
    assert ["two tensors share memory, and the step writes into it" in message for message in messages] == [True]


def test_optimizer_that_counts_in_python_stays_eager(builds):
    row = SMALL._replace(optim=lambda: pyro.optim.DCTAdam({"lr": 0.01}))
    compiled, messages = run_with_warnings(row, steps=12)
    assert_same(compiled, run(row, False, steps=12), 1e-5)
    assert len(messages) == 1
    assert messages[0].startswith("the step is not compiled, and runs eagerly")


def test_without_a_compiler_steps_stay_eager(monkeypatch, inductor):
    def fail(*args: Any, **kwargs: Any) -> None:
        raise InvalidCxxCompiler

    monkeypatch.setattr(inductor, "compile_fx_inner", fail)
    monkeypatch.setattr(Build, "known", lambda _: None)
    compiled, messages = run_with_warnings(SMALL, steps=12)
    assert_same(compiled, run(SMALL, False, steps=12), 1e-5)
    assert len(messages) == 1
    assert "InvalidCxxCompiler" in messages[0]


@pytest.mark.parametrize("fails_at", [1, 2, 3])
def test_errors_of_the_programs_are_raised_unchanged(builds, fails_at):
    calls = []

    def loss(model: Callable, guide: Callable) -> Tensor:
        calls.append(1)
        if len(calls) >= fails_at:
            raise ZeroDivisionError("mine")
        return weight().pow(2).sum()

    svi = ppgen.SVI(no_program, no_program, torch.optim.Adam, loss, compile=True)
    for _ in range(fails_at - 1):
        svi.step()
    with pytest.raises(ZeroDivisionError, match="mine"):
        svi.step()


# Side effects and return values.


def test_a_step_restores_all_global_settings(builds):
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
    run_with_warnings(row_of(by_sign), steps=6, between=between)


def test_second_run_of_a_program_uses_the_cache(builds):
    runs = [run(SMALL, True, steps=8) for _ in range(2)]
    assert len(builds) == 1
    assert [compiled_shapes(each.svi) for each in runs] == [1, 1]
    assert_same(runs[0], runs[1], 0.0)


def test_compiled_step_returns_a_float_and_terms_by_name(builds):
    model, guide, args = networks()
    svi = ppgen.SVI(model, guide, torch.optim.Adam, recipes.vae(), compile=True)
    assert all(type(svi.step(*args)) is float for _ in range(6))
    values = svi.update(*args)
    assert list(values) == ["Reconstruction", "Rate"]
    assert not any(value.requires_grad for value in values.values())
    kept = {name: float(value) for name, value in values.items()}
    svi.update(*args)
    assert {name: float(value) for name, value in values.items()} == kept


def product(model: Callable, guide: Callable) -> Tensor:
    near = pyro.param("w", torch.tensor([0.1], dtype=torch.float64))
    return (near + 0.3 * pyro.param("v", torch.tensor([0.5], dtype=torch.float64))).square().sum()


@pytest.mark.parametrize("optim", [torch.optim.SGD, torch.optim.Adam])
def test_the_update_of_a_parameter_does_not_read_another_one_after_its_update(optim):
    """Compiled by inductor, which computes a value where it is used."""
    row = Row(lambda: (no_program, no_program, ()), lambda: product, torch_optim(optim, lr=0.1))
    compiled, eager = (run(row, compile, steps=8) for compile in (True, False))
    assert compiled_shapes(compiled.svi) == 1
    assert_same(compiled, eager, 1e-6)


def drawn(p: Tensor) -> dict[str, dist.Distribution]:
    """Distributions whose random numbers depend on a tensor of numbers between 0 and 1."""
    pair = torch.stack([p, 1 - p], -1)
    return {
        "bernoulli": dist.Bernoulli(p),
        "binomial": dist.Binomial(4, p),
        "categorical": dist.Categorical(pair),
        "dirichlet": dist.Dirichlet(pair),
        "exponential": dist.Exponential(p),
        "gamma": dist.Gamma(p, 1.0),
        "inflated": dist.ZeroInflatedPoisson(p, gate=p),
        "normal": dist.Normal(p, p),
        "poisson": dist.Poisson(p),
        "relaxed": dist.RelaxedBernoulliStraightThrough(torch.full_like(p, 0.5), p),
    }


def test_draws_whose_distributions_are_learned_are_those_of_torch():
    """Compiled by inductor, which would draw some of them by other random numbers."""

    def model() -> None:
        with pyro.plate("data", 5):
            total = sum(
                (z if z.dim() == 1 else z[..., 0]).double()
                for z in (pyro.sample(k, q) for k, q in drawn(torch.full((5,), 0.3, dtype=torch.float64)).items())
            )
            pyro.factor("f", -0.1 * (total - 1) ** 2)

    def guide() -> None:
        p = pyro.param("p", torch.tensor(0.4, dtype=torch.float64))
        with pyro.plate("data", 5):
            for name, q in drawn(p.expand(5)).items():
                pyro.sample(name, q)

    row = Row(lambda: (model, guide, ()), Trace_ELBO, torch_optim(torch.optim.SGD, lr=1e-3))
    compiled, eager = (run(row, compile, steps=8) for compile in (True, False))
    assert compiled_shapes(compiled.svi) == 1
    assert_same(compiled, eager, 1e-6)


def test_a_compiled_step_that_leaves_another_random_state_is_not_used(monkeypatch):
    def compile_wastefully(build: Build) -> Callable:
        compiled = interpret(build)
        return lambda tensors: (compiled(tensors), torch.rand(1))[0]

    monkeypatch.setattr(Build, "known", known_as(compile_wastefully))
    compiled, messages = run_with_warnings(SMALL, steps=8)
    assert_same(compiled, run(SMALL, False, steps=8), 1e-5)
    assert "it draws other random numbers" in messages[0]


def test_a_double_loss_with_parts_in_single_precision_is_compiled():
    """Compiled by inductor, which rounds the single-precision part in its own way."""
    single = torch.linspace(0.1, 2.0, 7)

    def loss(model: Callable, guide: Callable) -> Tensor:
        w = pyro.param("w", torch.tensor(0.3, dtype=torch.float64))
        return (w - 1) ** 2 + (w.float() * single).sigmoid().log().exp().sin().sum().double() - 4.4

    row = Row(lambda: (no_program, no_program, ()), lambda: loss, torch_optim(torch.optim.SGD, lr=0.01))
    compiled, eager = (run(row, compile, steps=8) for compile in (True, False))
    assert compiled_shapes(compiled.svi) == 1
    assert_same(compiled, eager, 1e-5)
