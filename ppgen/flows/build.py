"""Flows by name. Each is a function of the events' width `dim` that makes a `Flow`, and a row of `FLOWS`.

Univariate maps f, one of

    additive     x + b
    affine       e^s x + b
    spline       monotone rational quadratic on [-5, 5] of 8 bins, the identity outside   Durkan et al. 2019
    neural       a monotone network                                                       Huang et al. 2018
    polynomial   the integral of a sum of squares                                         Jaini et al. 2019
    Bernstein    a monotone Bernstein polynomial                                          Sick et al. 2021

are put together in one of two ways: couplings, y_a = x_a, y_b = f(x_b | x_a), cheap both ways; or autoregressions,
y_i = f(x_i | x_<i), cheap from data to base (`maf` and the like) or from base to data (`iaf`), `dim` times as dear the
other way. Beside them stand

    low rank     planar, radial and Sylvester maps, which bend space along few directions
    linear       one map L U x + b
    residual     x + g(x), g a contraction
    continuous   the solution of dx/dt = f(t, x)
    circular     splines on the circle, for angles; its events are no vectors of R^dim, so it is no row of `FLOWS`

Where no network of `naf`, `sum_of_squares` or `bernstein` is in the way a flow starts as the identity, its law as its
base. `hidden` are the widths of its networks: those of maps of low rank see the context alone.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeAlias

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor, nn
from torch.distributions import Transform

from ppgen.flows.circular import Circular
from ppgen.flows.continuous import Continuous
from ppgen.flows.flow import Base, Flow
from ppgen.flows.given import Given
from ppgen.flows.low_rank import LowRank, Planar, Radial, Sylvester
from ppgen.flows.maps import Coupling, Linear, Scale
from ppgen.flows.residual import Residual
from ppgen.flows.smooth import Smooth
from ppgen.flows.zuko import flows, gaussianization, lazy, networks, transforms
from ppgen.nets import lookup
from ppgen.utils.ode import FIXED, SOLVERS

__all__ = [
    "FLOWS",
    "bernstein",
    "circular",
    "continuous",
    "iaf",
    "lu_linear",
    "maf",
    "naf",
    "nice",
    "nsf",
    "nsf_autoregressive",
    "planar",
    "radial",
    "realnvp",
    "residual",
    "sum_of_squares",
    "sylvester",
]

BINS, BOUND = 8, 5.0  # of splines
AFFINE: dict[str, Any] = {"univariate": transforms.MonotonicAffineTransform, "shapes": ((), ())}
ADDITIVE: dict[str, Any] = {"univariate": transforms.AdditiveTransform, "shapes": ((),)}
SPLINE: dict[str, Any] = {
    "univariate": partial(transforms.MonotonicRQSTransform, bound=BOUND),
    "shapes": ((BINS,), (BINS,), (BINS - 1,)),
}

Widths: TypeAlias = Sequence[int]


def nice(dim: int, *, layers: int = 4, hidden: Widths = (64, 64), context_dim: int = 0, base: Base = None) -> Flow:
    """Additive couplings and a diagonal scale (Dinh et al. 2015). Width 2 at least: a coupling needs two halves."""
    return _couplings(dim, ADDITIVE, layers, hidden, context_dim, base, scale=True)


def realnvp(dim: int, *, layers: int = 4, hidden: Widths = (64, 64), context_dim: int = 0, base: Base = None) -> Flow:
    """Affine couplings (Dinh et al. 2017). Width 2 at least."""
    return _couplings(dim, AFFINE, layers, hidden, context_dim, base)


def nsf(dim: int, *, layers: int = 4, hidden: Widths = (64, 64), context_dim: int = 0, base: Base = None) -> Flow:
    """Couplings of splines (Durkan et al. 2019). Width 2 at least."""
    return _couplings(dim, SPLINE, layers, hidden, context_dim, base)


def maf(dim: int, *, layers: int = 4, hidden: Widths = (64, 64), context_dim: int = 0, base: Base = None) -> Flow:
    """Masked affine autoregressions (Papamakarios et al. 2017): scoring is one pass, a draw takes `dim`."""
    return _autoregressions(dim, AFFINE, layers, hidden, context_dim, base)


def iaf(dim: int, *, layers: int = 4, hidden: Widths = (64, 64), context_dim: int = 0, base: Base = None) -> Flow:
    """Inverse autoregressions (Kingma et al. 2016): a draw and its density are one pass, scoring data takes `dim`."""
    return _autoregressions(dim, AFFINE, layers, hidden, context_dim, base, inverse=True)


def nsf_autoregressive(
    dim: int, *, layers: int = 4, hidden: Widths = (64, 64), context_dim: int = 0, base: Base = None
) -> Flow:
    """Autoregressions of splines (Durkan et al. 2019)."""
    return _autoregressions(dim, SPLINE, layers, hidden, context_dim, base)


def naf(
    dim: int, *, layers: int = 2, hidden: Widths = (64, 64), context_dim: int = 0, base: Base = None, signal: int = 16
) -> Flow:
    """Neural autoregressions (Huang et al. 2018), monotone networks of `signal` inputs; drawn by bisection."""
    return _of_zuko(flows.NAF, dim, layers, hidden, context_dim, base, signal=signal)


def sum_of_squares(
    dim: int, *, layers: int = 2, hidden: Widths = (64, 64), context_dim: int = 0, base: Base = None
) -> Flow:
    """Autoregressions of sum-of-squares polynomials (Jaini et al. 2019); drawn by bisection."""
    return _of_zuko(flows.SOSPF, dim, layers, hidden, context_dim, base)


def bernstein(dim: int, *, layers: int = 2, hidden: Widths = (64, 64), context_dim: int = 0, base: Base = None) -> Flow:
    """Autoregressions of Bernstein polynomials (Sick et al. 2021; Arpogaus et al. 2023); drawn by bisection."""
    return _of_zuko(flows.BPF, dim, layers, hidden, context_dim, base)


def planar(dim: int, *, layers: int = 16, hidden: Widths = (64, 64), context_dim: int = 0, base: Base = None) -> Flow:
    """Planar maps z + u tanh(w . z + b) (Rezende & Mohamed 2015, equation 10); scoring data takes a root a map."""

    def start() -> dict[str, Tensor]:
        return {"u": torch.zeros(dim), "w": torch.randn(dim), "b": torch.zeros(1)}

    return _low_rank(Planar, start, dim, layers, hidden, context_dim, base)


def radial(dim: int, *, layers: int = 16, hidden: Widths = (64, 64), context_dim: int = 0, base: Base = None) -> Flow:
    """Radial maps, which pull space to a point or push it away (Rezende & Mohamed 2015, equation 14)."""

    def start() -> dict[str, Tensor]:
        return {"center": torch.randn(dim), "width": torch.zeros(1), "pull": torch.zeros(1)}

    return _low_rank(Radial, start, dim, layers, hidden, context_dim, base)


def sylvester(
    dim: int,
    *,
    layers: int = 8,
    rank: int | None = None,
    hidden: Widths = (64, 64),
    context_dim: int = 0,
    base: Base = None,
) -> Flow:
    """Sylvester maps z + Q R tanh(S Q' z + b) (van den Berg et al. 2018), planar ones of `rank` directions at once.

    Args:
        rank: 1 .. dim; left out, the lesser of dim and 16. Scoring data takes that many roots a map, one after another.
    """
    rank = min(dim, 16) if rank is None else rank
    if not 1 <= rank <= dim:
        raise ValueError(f"rank: expected 1 .. {dim}, as there are directions, got {rank}")

    def start() -> dict[str, Tensor]:
        square = torch.zeros(rank, rank)
        return {"reflections": torch.randn(rank, dim), "outer": square, "inner": square, "b": torch.zeros(rank)}

    return _low_rank(Sylvester, start, dim, layers, hidden, context_dim, base)


def lu_linear(dim: int, *, context_dim: int = 0, base: Base = None) -> Flow:
    """One linear map L U x + b, b linear in the context: log |det| = sum_i log |l_ii|. Its density is Gaussian."""
    return _made([Linear(dim, context_dim=context_dim)], dim, context_dim, base)


def residual(
    dim: int,
    *,
    layers: int = 8,
    hidden: Widths = (64, 64),
    context_dim: int = 0,
    base: Base = None,
    lipschitz: float = 0.97,
) -> Flow:
    """Residual maps x + g(x), |g(x) - g(y)| <= `lipschitz` |x - y| (Behrmann et al. 2019; Chen et al. 2019).

    Scoring is exact, at the price of the whole Jacobian; a draw takes steps of Newton's.
    """
    if not 0 < lipschitz < 1:
        raise ValueError(f"lipschitz: expected a number between 0 and 1, as g is to be a contraction, got {lipschitz}")
    _check(layers)
    networks = (Smooth(dim, hidden=hidden, extra=context_dim, lipschitz=lipschitz) for _ in range(layers))
    return _made([Residual(network) for network in networks], dim, context_dim, base)


def continuous(
    dim: int,
    *,
    hidden: Widths = (64, 64),
    context_dim: int = 0,
    base: Base = None,
    solver: str = "rk4",
    steps: int = 10,
    tolerance: float = 1e-5,
    adjoint: bool = False,
    exact: bool = True,
) -> Flow:
    """x carried to z along dx/dt = f(t, x) (Chen et al. 2018; Grathwohl et al. 2019).

    Args:
        solver: "euler", "midpoint" or "rk4", of fixed `steps`, which compile; or one of torchdiffeq's that choose
            theirs by `tolerance`: "dopri5", "dopri8", "bosh3", "fehlberg2", "adaptive_heun".
        adjoint: whether gradients are solved for backward, in constant memory; with a solver that chooses its steps.
        exact: whether the trace of df/dx is exact, or Hutchinson's estimate, which costs one direction in place of
            `dim` and makes the density a random number.
    """
    lookup(dict.fromkeys(SOLVERS), solver, option="solver")
    if steps < 1 or tolerance <= 0:
        raise ValueError(f"expected steps of at least 1 and a tolerance above 0, got {steps} and {tolerance}")
    if adjoint and solver in FIXED:
        raise ValueError(f"adjoint: {solver!r} takes fixed steps, through which gradients pass; take 'dopri5'")
    network = Smooth(dim, hidden=hidden, extra=1 + context_dim)
    made = Continuous(network, solver=solver, steps=steps, tolerance=tolerance, adjoint=adjoint, exact=exact)
    _silence(network.layers[-1])
    return Flow(made, (dim,), context_dim=context_dim, base=base)


def circular(dim: int, *, layers: int = 4, hidden: Widths = (64, 64), context_dim: int = 0, base: Base = None) -> Flow:
    """Autoregressions of circular splines, for `dim` angles in [-pi, pi) (Rezende et al. 2020); z is uniform."""
    _check(layers)
    orders = (torch.arange(dim), torch.arange(dim).flip(0))
    maps = [Circular(orders[layer % 2], hidden=hidden, context_dim=context_dim) for layer in range(layers)]

    def uniform(zero: Tensor) -> TorchDistribution:
        return dist.Uniform((zero - math.pi).expand(dim), zero + math.pi, validate_args=False).to_event(1)

    circle = constraints.interval(-math.pi, math.pi)
    return _made(maps, dim, context_dim, uniform if base is None else base, support=circle)


FLOWS: dict[str, Callable[..., Flow]] = {
    flow.__name__: flow
    for flow in (
        *(nice, realnvp, nsf, maf, iaf, nsf_autoregressive),
        *(naf, sum_of_squares, bernstein),
        *(planar, radial, sylvester, lu_linear, residual, continuous),
    )
}


def _couplings(
    dim: int,
    univariate: dict[str, Any],
    layers: int,
    hidden: Widths,
    context_dim: int,
    base: Base,
    *,
    scale: bool = False,
) -> Flow:
    if dim < 2:
        raise ValueError(f"a coupling needs two halves, and events of width {dim} have none; take maf or another flow")
    _check(layers)
    options = {**univariate, "hidden": hidden, "context_dim": context_dim}
    maps: list[nn.Module] = [Coupling(dim, constant=layer % 2, **options) for layer in range(layers)]
    maps += [Scale(dim)] if scale else []
    return _made(maps, dim, context_dim, base)


def _autoregressions(
    dim: int,
    univariate: dict[str, Any],
    layers: int,
    hidden: Widths,
    context_dim: int,
    base: Base,
    *,
    inverse: bool = False,
) -> Flow:
    _check(layers)
    options = {**univariate, "hidden_features": list(hidden), "activation": nn.SiLU}
    orders = (torch.arange(dim), torch.arange(dim).flip(0))
    maps: list[Any] = [
        flows.MaskedAutoregressiveTransform(dim, context_dim, order=orders[layer % 2], **options)
        for layer in range(layers)
    ]
    if inverse:
        maps = [made.inv for made in maps]
    return _made(maps, dim, context_dim, base)


def _low_rank(
    make: Callable[..., Transform],
    start: Callable[[], dict[str, Tensor]],
    dim: int,
    layers: int,
    hidden: Widths,
    context_dim: int,
    base: Base,
) -> Flow:
    _check(layers)
    given = (Given(start(), hidden=hidden, context_dim=context_dim) for _ in range(layers))
    return _made([LowRank(make, parameters) for parameters in given], dim, context_dim, base)


def _of_zuko(
    make: Callable[..., Any], dim: int, layers: int, hidden: Widths, context_dim: int, base: Base, **options: Any
) -> Flow:
    _check(layers)
    made = make(dim, context_dim, transforms=layers, hidden_features=list(hidden), **options)
    return Flow(made.transform, (dim,), context_dim=context_dim, base=base)


def _made(
    maps: Sequence[nn.Module],
    dim: int,
    context_dim: int,
    base: Base,
    support: constraints.Constraint = constraints.real,
) -> Flow:
    """The composition of maps, from x to z, each of them the identity to start with."""
    for part in (part for made in maps for part in made.modules()):
        if isinstance(part, networks.MLP | networks.MaskedMLP):
            _silence(part[-1])
        elif isinstance(part, Smooth):
            _silence(part.layers[-1])
        elif isinstance(part, gaussianization.ElementWiseTransform) and hasattr(part, "phi"):
            _silence(part.phi)
    return Flow(lazy.LazyComposedTransform(*maps), (dim,), context_dim=context_dim, base=base, support=support)


@torch.no_grad()
def _silence(part: nn.Module) -> None:
    for parameter in part.parameters():
        parameter.zero_()


def _check(layers: int) -> None:
    if layers < 1:
        raise ValueError(f"layers: expected at least 1, got {layers}")
