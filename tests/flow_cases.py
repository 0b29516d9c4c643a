"""One row per flow of vectors, and helpers that build flows with perturbed parameters."""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ppgen.flows import FLOWS, Flow, FlowDistribution

ROWS = 4


class Case(NamedTuple):
    """How the tests of `tests/flows` build and check a flow of `ppgen.flows.FLOWS`."""

    options: dict[str, Any] = {"hidden": (8, 8)}  # noqa: RUF012  of a small flow
    min_dim: int = 1
    dims: tuple[int, ...] = (1, 2, 3, 4, 5, 6)  # fewer for expensive flows
    tolerance: float = 1e-9  # of an inverse; bisection and adaptive solvers stop early
    starts_as_identity: bool = True
    triangular: bool = False  # whether one layer is autoregressive from data to base, in ascending order
    finite_difference: tuple[float, float] | None = None  # step and tolerance, if one direction finds roots
    roots_score_data: bool = False  # whether roots are found from data to base
    grid: int = 480  # steps per side of the grid on which the density is integrated, even
    one_layer: dict[str, Any] = {"layers": 1}  # noqa: RUF012  options that make the flow cheap to integrate


MONOTONE = Case(
    dims=(1, 3),
    tolerance=3e-5,
    starts_as_identity=False,
    triangular=True,
    finite_difference=(1e-2, 2e-2),  # a wide step, because bisection is accurate to 3e-5
    one_layer={"layers": 2},
)
LOW_RANK = Case({"layers": 4}, finite_difference=(1e-6, 1e-7), roots_score_data=True, one_layer={"layers": 2})

CASES: dict[str, Case] = {
    "nice": Case(min_dim=2, one_layer={"layers": 2}),
    "realnvp": Case(min_dim=2, one_layer={"layers": 2}),
    "nsf": Case(min_dim=2, one_layer={"layers": 2}),
    "maf": Case(triangular=True, one_layer={"layers": 2}),
    "iaf": Case(one_layer={"layers": 2}),
    "iaf_tails": Case(one_layer={"layers": 2}),
    "nsf_autoregressive": Case(triangular=True, one_layer={"layers": 2}),
    "naf": MONOTONE._replace(grid=360, one_layer={"layers": 1}),
    "sum_of_squares": MONOTONE,
    "bernstein": MONOTONE,
    "planar": LOW_RANK,
    "radial": LOW_RANK,
    "sylvester": LOW_RANK._replace(options={"layers": 3}),
    "lu_linear": Case({}, one_layer={}),
    "residual": Case({"hidden": (8, 8), "layers": 3}, finite_difference=(1e-6, 1e-7), one_layer={"layers": 2}),
    "continuous": Case(dims=(1, 3), tolerance=1e-5, grid=120, one_layer={}),
}


def perturb(module: nn.Module, scale: float = 0.1) -> Any:
    """Moves the parameters away from their initial values; returns the module."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(scale * torch.randn_like(parameter))
    return module


def make(name: str, dim: int, context_dim: int = 0, **options: Any) -> Flow:
    """A small flow with perturbed parameters."""
    return perturb(FLOWS[name](dim, context_dim=context_dim, **CASES[name].options | options))


def distribution(flow: Flow, rows: int = ROWS) -> FlowDistribution:
    """The flow's distribution of `rows` rows, at random contexts if it has any."""
    return flow(torch.randn(rows, flow.context_dim)) if flow.context_dim else flow().expand((rows,))


def jacobian(flow: Flow, distribution: FlowDistribution, x: Tensor) -> Tensor:
    """dT^-1(x) / dx of every row, by autograd: (rows, numel, numel)."""
    contexts = [None] * len(x) if distribution.context is None else distribution.context
    size = x[0].numel()
    return torch.stack(
        [
            torch.autograd.functional.jacobian(flow(context).inverse, row).reshape(size, size)
            for context, row in zip(contexts, x, strict=True)
        ]
    )
