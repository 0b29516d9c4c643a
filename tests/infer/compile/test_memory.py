"""Tensors that come to share memory: a compiled step, which assumes that they do not, is not used."""

from collections.abc import Callable
from typing import Any

import pyro
import pytest
import torch
from compiled_runs import compiled_shapes
from programs import no_program, torch_optim
from torch import Tensor

import ppgen

CHANGE_AT = 6


def in_place(model: Any, guide: Any, x: Tensor, y: Tensor) -> Tensor:
    """A loss that overwrites an argument."""
    x.add_(1.0)
    return (pyro.param("w", torch.ones(3)) * y[:3]).square().sum()


def in_two_parameters(model: Any, guide: Any) -> Tensor:
    w, v = pyro.param("w", torch.ones(3)), pyro.param("v", 2.0 * torch.ones(3))
    return (w.square() + (v - 5.0).square()).sum()


def one_argument_twice(changed: bool) -> tuple:
    x = torch.ones(3)
    return (x, x) if changed else (x, x.clone())


def views_of_one_tensor(changed: bool) -> tuple:
    x = torch.ones(6)
    return (x[:3], x) if changed else (x[:3].clone(), x)


def a_parameter(changed: bool) -> tuple:
    return torch.ones(3), pyro.param("w").detach() if changed else torch.ones(3)


def parameters_tied(changed: bool) -> tuple:
    if changed:
        pyro.param("w").data = pyro.param("v").data
    return ()


@pytest.mark.parametrize("arguments", [one_argument_twice, views_of_one_tensor, a_parameter, parameters_tied])
def test_tensors_that_come_to_share_memory_are_noticed(builds, arguments):
    loss: Callable = in_two_parameters if arguments is parameters_tied else in_place

    def losses(compile: bool) -> tuple[list[float], Any]:
        pyro.clear_param_store()
        svi = ppgen.SVI(no_program, no_program, torch_optim(torch.optim.SGD, lr=0.01)(), loss, compile=compile)
        return [svi.step(*arguments(t >= CHANGE_AT)) for t in range(CHANGE_AT + 3)], svi

    with pytest.warns(UserWarning, match="two tensors share memory, and the step writes into it"):
        compiled, svi = losses(True)
    eager, _ = losses(False)
    assert compiled == pytest.approx(eager, rel=1e-5)
    assert (len(builds), compiled_shapes(svi)) == (1, 0)


def test_batches_at_other_addresses_need_no_second_compilation(builds):
    data = torch.randn(30, 3)

    def loss(model: Any, guide: Any, x: Tensor) -> Tensor:
        return (pyro.param("w", torch.ones(3)) * x).square().sum()

    svi = ppgen.SVI(no_program, no_program, torch_optim(torch.optim.SGD, lr=0.01)(), loss, compile=True)
    for t in range(15):
        svi.step(data[t : t + 4])
    assert (len(builds), compiled_shapes(svi)) == (1, 1)


def test_parameters_moved_to_memory_of_their_own_need_no_second_compilation(builds):
    def losses(compile: bool) -> list[float]:
        pyro.clear_param_store()
        optim = torch_optim(torch.optim.SGD, lr=0.01)()
        svi = ppgen.SVI(no_program, no_program, optim, in_two_parameters, compile=compile)
        values = []
        for t in range(9):
            if t == CHANGE_AT:
                pyro.param("w").data = torch.full((3,), 7.0)
            values.append(svi.step())
        return values

    assert losses(True) == pytest.approx(losses(False), rel=1e-5)
    assert len(builds) == 1
