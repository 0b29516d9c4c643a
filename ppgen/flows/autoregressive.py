"""Autoregressive flows: y_i = f(x_i | x_<i), by masked networks.

One direction takes one evaluation of each network, the other takes `dim`. MAF scores data in one (Papamakarios et al.
2017, https://arxiv.org/abs/1705.07057); IAF samples in one (Kingma et al. 2016, https://arxiv.org/abs/1606.04934).
"""

from typing import Any

from torch import nn

from ppgen.flows.composition import AFFINE, SPLINE, Univariate, Widths, check_layers, compose, order
from ppgen.flows.flow import Base, Flow
from ppgen.flows.zuko import flows

__all__ = ["iaf", "maf", "nsf_autoregressive"]


def maf(dim: int, *, layers: int = 4, hidden: Widths = (64, 64), context_dim: int = 0, base: Base = None) -> Flow:
    """Masked autoregressive flow (Papamakarios et al. 2017, https://arxiv.org/abs/1705.07057).

    Scoring takes one evaluation of each network, sampling takes `dim`.

    Args:
        dim: The width of events.
        layers: The number of autoregressive maps.
        hidden: The hidden widths of the networks.
        context_dim: The width of the context, 0 for none.
        base: The distribution of z; None for N(0, I).

    Raises:
        ValueError: If `layers` is below 1.

    Example:
        >>> import torch
        >>> from ppgen import flows
        >>> flow = flows.maf(2, layers=2, hidden=(8,), context_dim=3)
        >>> p = flow(torch.randn(5, 3))  # p(x | context), for five contexts
        >>> x = p.sample()
        >>> x.shape, p.log_prob(x).shape
        (torch.Size([5, 2]), torch.Size([5]))
    """
    return _autoregressive(dim, AFFINE, layers, hidden, context_dim, base)


def iaf(dim: int, *, layers: int = 4, hidden: Widths = (64, 64), context_dim: int = 0, base: Base = None) -> Flow:
    """Inverse autoregressive flow (Kingma et al. 2016, https://arxiv.org/abs/1606.04934).

    Sampling, with the density of the sample, takes one evaluation of each network; scoring data takes `dim`.

    Args:
        dim: The width of events.
        layers: The number of autoregressive maps.
        hidden: The hidden widths of the networks.
        context_dim: The width of the context, 0 for none.
        base: The distribution of z; None for N(0, I).

    Raises:
        ValueError: If `layers` is below 1.
    """
    return _autoregressive(dim, AFFINE, layers, hidden, context_dim, base, inverse=True)


def nsf_autoregressive(
    dim: int, *, layers: int = 4, hidden: Widths = (64, 64), context_dim: int = 0, base: Base = None
) -> Flow:
    """Autoregressive neural spline flow (Durkan et al. 2019, https://arxiv.org/abs/1906.04032).

    Scoring takes one evaluation of each network, sampling takes `dim`.

    Args:
        dim: The width of events.
        layers: The number of autoregressive maps.
        hidden: The hidden widths of the networks.
        context_dim: The width of the context, 0 for none.
        base: The distribution of z; None for N(0, I).

    Raises:
        ValueError: If `layers` is below 1.
    """
    return _autoregressive(dim, SPLINE, layers, hidden, context_dim, base)


def _autoregressive(
    dim: int,
    univariate: Univariate,
    layers: int,
    hidden: Widths,
    context_dim: int,
    base: Base,
    *,
    inverse: bool = False,
) -> Flow:
    check_layers(layers)
    options = {"univariate": univariate.make, "shapes": univariate.shapes}
    options |= {"hidden_features": list(hidden), "activation": nn.SiLU}
    maps: list[Any] = [
        flows.MaskedAutoregressiveTransform(dim, context_dim, order=order(dim, layer), **options)
        for layer in range(layers)
    ]
    if inverse:
        maps = [part.inv for part in maps]
    return compose(maps, dim, context_dim=context_dim, base=base)
