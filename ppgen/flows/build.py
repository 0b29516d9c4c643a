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
other way. Beside them stand a linear map and a flow in continuous time.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeAlias

import torch
from pyro.distributions import TorchDistribution
from torch import nn

from ppgen.flows.flow import Flow
from ppgen.flows.maps import Coupling, Scale
from ppgen.flows.zuko import flows, lazy, transforms

__all__ = [
    "FLOWS",
    "bernstein",
    "continuous",
    "iaf",
    "lu_linear",
    "maf",
    "naf",
    "nice",
    "nsf",
    "nsf_autoregressive",
    "realnvp",
    "sum_of_squares",
]

BINS, BOUND = 8, 5.0  # of splines
AFFINE: dict[str, Any] = {"univariate": transforms.MonotonicAffineTransform, "shapes": ((), ())}
ADDITIVE: dict[str, Any] = {"univariate": transforms.AdditiveTransform, "shapes": ((),)}
SPLINE: dict[str, Any] = {
    "univariate": partial(transforms.MonotonicRQSTransform, bound=BOUND),
    "shapes": ((BINS,), (BINS,), (BINS - 1,)),
}

Widths: TypeAlias = Sequence[int]
Base: TypeAlias = TorchDistribution | None


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
    made = flows.NAF(dim, context_dim, transforms=layers, signal=signal, hidden_features=list(hidden))
    return Flow(made.transform, (dim,), context_dim=context_dim, base=base)


def sum_of_squares(
    dim: int, *, layers: int = 2, hidden: Widths = (64, 64), context_dim: int = 0, base: Base = None
) -> Flow:
    """Autoregressions of sum-of-squares polynomials (Jaini et al. 2019); drawn by bisection."""
    made = flows.SOSPF(dim, context_dim, transforms=layers, hidden_features=list(hidden))
    return Flow(made.transform, (dim,), context_dim=context_dim, base=base)


def bernstein(dim: int, *, layers: int = 2, hidden: Widths = (64, 64), context_dim: int = 0, base: Base = None) -> Flow:
    """Autoregressions of Bernstein polynomials (Sick et al. 2021; Arpogaus et al. 2023); drawn by bisection."""
    made = flows.BPF(dim, context_dim, transforms=layers, hidden_features=list(hidden))
    return Flow(made.transform, (dim,), context_dim=context_dim, base=base)


def lu_linear(dim: int, *, context_dim: int = 0, base: Base = None) -> Flow:
    """One linear map, a product of triangular matrices L U: log |det| = sum_i log |l_ii|. Its density is Gaussian."""
    maps = lazy.UnconditionalTransform(transforms.LULinearTransform, torch.eye(dim))
    return Flow(maps, (dim,), context_dim=context_dim, base=base)


def continuous(
    dim: int, *, hidden: Widths = (64, 64), context_dim: int = 0, base: Base = None, exact: bool = True
) -> Flow:
    """x as z carried along dx/dt = f(t, x) (Chen et al. 2018; Grathwohl et al. 2019).

    Args:
        exact: whether the trace of df/dx is exact, `dim` products with its transpose, or Hutchinson's estimate, one.
    """
    made = flows.CNF(dim, context_dim, hidden_features=list(hidden), exact=exact)
    return Flow(made.transform, (dim,), context_dim=context_dim, base=base)


FLOWS: dict[str, Callable[..., Flow]] = {
    flow.__name__: flow
    for flow in (
        *(nice, realnvp, nsf, maf, iaf, nsf_autoregressive),
        *(naf, sum_of_squares, bernstein, lu_linear, continuous),
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
    return Flow(lazy.LazyComposedTransform(*maps), (dim,), context_dim=context_dim, base=base)


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
    return Flow(lazy.LazyComposedTransform(*maps), (dim,), context_dim=context_dim, base=base)


def _check(layers: int) -> None:
    if layers < 1:
        raise ValueError(f"layers: expected at least 1, got {layers}")
