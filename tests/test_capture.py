"""The compiled step: it is the eager one, whatever the program, and where it cannot be, the step stays eager."""

from collections.abc import Callable
from typing import Any, NamedTuple

import pyro
import pytest
import torch
from programs import PROGRAMS, Row
from torch import Tensor

import ppgen
from ppgen.infer.parameters import State

STEPS = 50


class Run(NamedTuple):
    svi: ppgen.SVI
    losses: Tensor
    tensors: dict[str, Tensor]
    noise: Tensor


def run(row: Row, compile: bool, *, steps: int = STEPS, between: Callable = lambda svi, t: None) -> Run:
    """A run from the row's own start: every loss, all parameters, buffers and step counts, and the random state."""
    pyro.clear_param_store()
    pyro.set_rng_seed(1)
    model, guide, args = row.build()
    svi = ppgen.SVI(model, guide, row.optim(), row.loss(), compile=compile, **row.options)
    losses = []
    for t in range(steps):
        between(svi, t)
        losses.append(svi.step(*args))
    noise = torch.get_rng_state()
    tensors = State.of(model, guide, args).tensors | svi.player.leaves
    counts = [float(tensor) for kind, tensor in svi.player.moments() if kind == "step"]
    tensors["optimiser's count"] = torch.tensor(counts)
    return Run(svi, torch.tensor(losses, dtype=torch.float64), tensors, noise)


def assert_same(compiled: Run, eager: Run, rtol: float) -> None:
    torch.testing.assert_close(compiled.losses, eager.losses, rtol=rtol, atol=rtol)
    assert compiled.tensors.keys() == eager.tensors.keys()
    for name, tensor in eager.tensors.items():
        torch.testing.assert_close(compiled.tensors[name], tensor, rtol=rtol, atol=rtol, msg=lambda m, n=name: f"{n}: {m}")
    assert torch.equal(compiled.noise, eager.noise)


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_compiled_trajectory_is_the_eager_one(name):
    row = PROGRAMS[name]
    compiled = run(row, True)
    assert compiled.svi.stepper.said.startswith("compiled at step 3")
    eager = run(row, False)
    assert len(set(eager.losses.tolist())) > STEPS / 2
    assert_same(compiled, eager, row.rtol)
