"""Autoregressive flows y_i = f(x_i | x_<i) with flexible monotone f, by zuko. They sample by bisection.

Unlike the other flows, they do not start as the identity.
"""

from collections.abc import Callable
from typing import Any

from ppgen.flows.composition import Widths, check_layers
from ppgen.flows.flow import Base, Flow
from ppgen.flows.zuko import flows

__all__ = ["bernstein", "naf", "sum_of_squares"]


def naf(
    dim: int, *, layers: int = 2, hidden: Widths = (64, 64), context_dim: int = 0, base: Base = None, signal: int = 16
) -> Flow:
    """Neural autoregressive flow: f is a monotone network (Huang et al. 2018, https://arxiv.org/abs/1804.00779).

    Args:
        dim: The width of events.
        layers: The number of autoregressive maps.
        hidden: The hidden widths of the networks.
        context_dim: The width of the context, 0 for none.
        base: The distribution of z; None for N(0, I).
        signal: The number of features of x_<i on which the monotone network depends.

    Raises:
        ValueError: If `layers` is below 1.
    """
    return _zuko_flow(flows.NAF, dim, layers, hidden, context_dim, base, signal=signal)


def sum_of_squares(
    dim: int, *, layers: int = 2, hidden: Widths = (64, 64), context_dim: int = 0, base: Base = None
) -> Flow:
    """Sum-of-squares polynomial flow: f is the integral of a sum of squared polynomials.

    From Jaini et al. 2019 (https://arxiv.org/abs/1905.02325).

    Args:
        dim: The width of events.
        layers: The number of autoregressive maps.
        hidden: The hidden widths of the networks.
        context_dim: The width of the context, 0 for none.
        base: The distribution of z; None for N(0, I).

    Raises:
        ValueError: If `layers` is below 1.
    """
    return _zuko_flow(flows.SOSPF, dim, layers, hidden, context_dim, base)


def bernstein(dim: int, *, layers: int = 2, hidden: Widths = (64, 64), context_dim: int = 0, base: Base = None) -> Flow:
    """Bernstein polynomial flow: f is a monotone Bernstein polynomial.

    From Sick et al. 2021 (https://arxiv.org/abs/2004.00464) and Arpogaus et al. 2023 (https://arxiv.org/abs/2204.13939).

    Args:
        dim: The width of events.
        layers: The number of autoregressive maps.
        hidden: The hidden widths of the networks.
        context_dim: The width of the context, 0 for none.
        base: The distribution of z; None for N(0, I).

    Raises:
        ValueError: If `layers` is below 1.
    """
    return _zuko_flow(flows.BPF, dim, layers, hidden, context_dim, base)


def _zuko_flow(
    make: Callable[..., Any], dim: int, layers: int, hidden: Widths, context_dim: int, base: Base, **options: Any
) -> Flow:
    check_layers(layers)
    zuko_flow = make(dim, context_dim, transforms=layers, hidden_features=list(hidden), **options)
    return Flow(zuko_flow.transform, (dim,), context_dim=context_dim, base=base)
