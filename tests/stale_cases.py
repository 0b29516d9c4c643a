"""Runs in which something changes after the step was compiled, which tests compare with eager runs."""

from collections.abc import Callable
from typing import Any, NamedTuple

import pyro
import torch
from compiled_runs import Run, run
from programs import Row, no_program, torch_optim
from torch import Tensor

STEPS, CHANGE_AT = 14, 8
Change = Callable[[Any], Any]


class Case(NamedTuple):
    """A loss, a change of what it depends on, and an optimizer."""

    loss: Callable[..., Tensor]
    change: Change
    optim: Callable[[], Any] = torch_optim(torch.optim.Adam, lr=0.05)


def target(factor: Any = 1.0) -> Tensor:
    w = pyro.param("w", torch.tensor([1.0, 2.0, -1.0]))
    return (w - 0.1 * torch.randn(3)).square().sum() * factor


def run_case(build: Callable[[], Case], compile: bool, *, changed: bool = True) -> Run:
    case = build()

    def between(svi: Any, t: int) -> None:
        if t == CHANGE_AT and changed:
            case.change(svi)

    try:
        row = Row(lambda: (no_program, no_program, ()), lambda: case.loss, case.optim)
        return run(row, compile, steps=STEPS, between=between)
    finally:
        torch.set_default_dtype(torch.float32)
