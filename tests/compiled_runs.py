"""Runs of a compiled and of an eager SVI from one start, which tests compare."""

import functools
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import pyro
import torch
from programs import Row, adam, networks, no_program, plain, regression, torch_optim
from torch import Tensor

import ppgen
from ppgen import recipes
from ppgen.infer.compile.step import Compile
from ppgen.infer.parameters import ProgramState

STEPS = 50


class Run(NamedTuple):
    """A run of SVI: its losses, the tensors at the end, and the random state at the end."""

    svi: Any
    losses: Tensor
    tensors: dict[str, Tensor]
    random_state: Tensor


def run(row: Row, compile: Compile, *, steps: int = STEPS, between: Callable | None = None) -> Run:
    """Runs a row from its own start; `between` is called before each step with the SVI and the number of the step."""
    pyro.clear_param_store()
    pyro.set_rng_seed(1)
    model, guide, args = row.build()
    svi = ppgen.SVI(model, guide, row.optim(), row.loss(), compile=compile, **row.options)
    losses = []
    for t in range(steps):
        if between:
            between(svi, t)
        losses.append(svi.step(*args))
    random_state = torch.get_rng_state()
    tensors = ProgramState.from_programs(model, guide, args).tensors | svi.optimizer.parameters
    counts = [float(tensor) for kind, tensor in svi.optimizer.state_tensors() if kind == "step"]
    tensors["steps of the optimizer"] = torch.tensor(counts)
    return Run(svi, torch.tensor(losses, dtype=torch.float64), tensors, random_state)


def assert_same(compiled: Run, eager: Run, rtol: float) -> None:
    torch.testing.assert_close(compiled.losses, eager.losses, rtol=rtol, atol=rtol)
    assert compiled.tensors.keys() == eager.tensors.keys()
    for name, tensor in eager.tensors.items():
        why = functools.partial("{}: {}".format, name)
        torch.testing.assert_close(compiled.tensors[name], tensor, rtol=rtol, atol=rtol, msg=why)
    assert torch.equal(compiled.random_state, eager.random_state)


def compiled_shapes(svi: ppgen.SVI) -> int:
    return svi.compiled_step.compiled_shapes


SMALL = Row(networks, recipes.vae, adam)
PLAIN = Row(plain, lambda: regression, torch_optim(torch.optim.SGD, lr=0.01))


def run_with_warnings(row: Row, **options: Any) -> tuple[Run, list[str]]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        compiled = run(row, True, **options)
    return compiled, [str(warning.message) for warning in caught]


def row_of(loss: Callable) -> Row:
    return Row(lambda: (no_program, no_program, ()), loss, torch_optim(torch.optim.Adam, lr=0.05))


def assert_refused(row: Row, reason: str, builds: list, *, steps: int) -> None:
    """Asserts that a row runs eagerly, as without compiling, with one warning that has the reason."""
    compiled, messages = run_with_warnings(row, steps=steps)
    assert_same(compiled, run(row, False, steps=steps), 1e-5)
    assert (compiled_shapes(compiled.svi), len(builds)) == (0, 0)
    (message,) = messages
    assert message.startswith("the step is not compiled, and runs eagerly: ")
    assert reason in message
