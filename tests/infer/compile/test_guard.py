"""The guard: what changes between steps is noticed, and the steps stay those of eager mode."""

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from compiled_runs import SMALL, assert_same, compiled_shapes, run
from programs import Encoder, Row, adam, frozen_in_training, no_program
from pyro.nn import PyroModule
from torch import Tensor, nn

import ppgen


class Changing(PyroModule):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(2, 3), nn.Dropout(0.5))
        self.fixed = nn.Linear(2, 2)
        self.fixed.requires_grad_(False)
        self.bare = nn.Linear(3, 1)

    def forward(self, x: Tensor) -> None:
        shift = pyro.param("shift", torch.zeros(3)) + self.bare.weight.sum()
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
            pyro.sample("x", dist.Normal(self.layers(self.fixed(z)) + shift, 1.0).to_event(1), obs=x)


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
    "unfreeze": lambda svi: svi.model.fixed.requires_grad_(True),
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
def test_change_between_steps_is_noticed(builds, change):
    def between(svi: Any, t: int) -> None:
        if t == 8:
            CHANGES[change](svi)

    row = Row(changing, ramped, adam)
    compiled, eager = (run(row, compile, steps=20, between=between) for compile in (True, False))
    assert compiled_shapes(compiled.svi) == 1
    assert compiled.svi.compiled_step.policy.compiled <= 2
    assert_same(compiled, eager, 1e-4)
    unchanged = run(row, False, steps=20)
    assert not torch.allclose(unchanged.losses, eager.losses)


@frozen_in_training
def test_new_parameter_with_its_own_optimizer_arguments_joins(builds):
    def between(svi: Any, t: int) -> None:
        if t == 8:
            CHANGES["parameter"](svi)

    row = Row(changing, ramped, lambda: pyro.optim.Adam(lambda name: {"lr": 0.001 * len(name)}))
    compiled, eager = (run(row, compile, steps=20, between=between) for compile in (True, False))
    assert compiled_shapes(compiled.svi) == 1
    assert_same(compiled, eager, 1e-4)


def test_learning_rate_set_after_a_parameter_group_joined_is_followed(builds):
    def loss(model: Any, guide: Any, more: bool) -> Tensor:
        near = (pyro.param("w", torch.tensor([3.0, 4.0])) - 1.0).square().sum()
        return near + pyro.param("v", torch.tensor(2.0)).square() if more else near

    def losses(compile: bool) -> Tensor:
        pyro.clear_param_store()
        optim = pyro.optim.Adam(lambda name: {"lr": 0.01})
        svi = ppgen.SVI(no_program, no_program, optim, loss, compile=compile)
        values = []
        for t in range(16):
            values.append(svi.step(t == 8))  # an eager step, of other arguments, in which the group of v joins
            if t == 8:
                set_in_optimizer(svi, lr=0.5)
        return torch.tensor(values)

    torch.testing.assert_close(losses(True), losses(False), rtol=1e-5, atol=1e-5)
    assert len(builds) > 0


@frozen_in_training
def test_state_that_comes_back_is_not_compiled_again(builds):
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
    assert (compiled_shapes(compiled.svi), len(builds)) == (1, 1)
    assert_same(compiled, eager, 1e-5)
