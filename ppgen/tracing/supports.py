"""Observations and the supports of their distributions: which are outside, in words."""

from typing import Any

import numpy as np
import torch
from pyro.distributions import ExpandedDistribution, MaskedDistribution
from pyro.poutine import Trace
from torch import Tensor
from torch.distributions import Independent, constraints

from ppgen.tracing.masks import observed_numbers
from ppgen.tracing.sites import Site, is_observed, observation, sample_sites
from ppgen.utils.torch_private import distributions_validate

__all__ = ["check_observed_supports"]

# the words for a constraint with these bounds
BOUNDED = {
    "IntegerInterval": "integers from {lower_bound} to {upper_bound}",
    "IntegerGreaterThan": "integers of at least {lower_bound}",
    "IntegerLessThan": "integers of at most {upper_bound}",
    "GreaterThan": "numbers above {lower_bound}",
    "GreaterThanEq": "numbers of at least {lower_bound}",
    "LessThan": "numbers below {upper_bound}",
    "Interval": "numbers from {lower_bound} to {upper_bound}",
    "HalfOpenInterval": "numbers of at least {lower_bound} and below {upper_bound}",
    "Boolean": "0 or 1",
    "Multinomial": "vectors of counts whose sum is at most {upper_bound}",
    "OneHot": "vectors of zeros with a single 1",
    "Simplex": "vectors of numbers of at least 0 whose sum is 1",
}


def check_observed_supports(trace: Trace, args: tuple[Tensor, ...], whole: tuple[Tensor, ...]) -> None:
    """Checks that observations lie in the supports of their distributions, of those that validate their arguments.

    Supports whose bounds are tensors are left out, since they may depend on latents, unless the bounds are an argument.

    Args:
        trace: a run of a program.
        args: its arguments, a batch.
        whole: the data that the batch is from; where a site observes an argument, all rows of it are checked.

    Raises:
        ValueError: naming the site, the support, and the first observation that lies outside.
    """
    for name, site in sample_sites(trace).items():
        if not is_observed(site) or not isinstance(site["value"], Tensor):
            continue
        base = _base(site["fn"])
        _check_shape(name, site, base)
        words, of_rows = _in_words(base, args)
        if words is None or not distributions_validate(base):
            continue
        value, label, counts = _data_of(site, args, args if of_rows else whole)
        outside = ~site["fn"].support.check(value)
        outside &= ~_over_event(value.isnan(), outside.dim(), any_of=True)
        if counts is not None:
            outside &= _over_event(counts.expand(value.shape), outside.dim(), any_of=False)
        if not outside.any():
            continue
        index = tuple(outside.nonzero()[0].tolist())
        row = f", in row {index[0]}" if index else ""
        raise ValueError(
            f"site {name!r}: {type(base).__name__} takes {words}, and {int(outside.sum())} of {outside.numel()} "
            f"observations{label} are others: the first is {_short(value[index])}{row}{_hint(base, value)}"
        )


def _check_shape(name: str, site: Site, base: Any) -> None:
    """Checks that an observation can have a density."""
    value, shape = observation(site), site["fn"].shape()
    try:
        torch.broadcast_shapes(value.shape, shape)
    except RuntimeError:
        one_hot = getattr(base, "_num_events", None) == value.shape[-1] and base.event_dim == 0
        hint = "; give labels, y.argmax(-1), or observe OneHotCategorical" if one_hot else ""
        raise ValueError(
            f"site {name!r}: {type(base).__name__} has observations of shape {tuple(shape)}, got {tuple(value.shape)}"
            f"{hint}"
        ) from None


def _data_of(site: Site, args: tuple[Tensor, ...], whole: tuple[Tensor, ...]) -> tuple[Tensor, str, Tensor | None]:
    """The observations of a site, those of all rows if it observes an argument; their name; which of them count."""
    value = observation(site)
    masked = site["mask"] is not None or isinstance(site["fn"], MaskedDistribution)
    for i, (part, rows) in enumerate(zip(args, whole, strict=True)):
        if value.data_ptr() == part.data_ptr() and value.shape == part.shape and value.stride() == part.stride():
            label = f", data[{i}]," if len(args) > 1 else ""
            return (value, label, observed_numbers(site)) if masked else (rows, label, None)
    return value, "", observed_numbers(site) if masked else None


def _base(fn: Any) -> Any:
    """A distribution without event dimensions, masks and expansions around it."""
    while isinstance(fn, Independent | MaskedDistribution | ExpandedDistribution):
        fn = fn.base_dist
    return fn


def _in_words(fn: Any, args: tuple[Tensor, ...]) -> tuple[str | None, bool]:
    """The support of a distribution, None if it has no bounds or such as may depend on latents; whether rows have own.

    Bounds of rows that equal an argument do not depend on latents.
    """
    try:
        support = fn.support
    except NotImplementedError:
        return None, False
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    words = BOUNDED.get(type(support).__name__.lstrip("_"))
    bounds = {k: v for k in ("lower_bound", "upper_bound") if (v := getattr(support, k, None)) is not None}
    own = {k: _argument(v, args) for k, v in bounds.items() if isinstance(v, Tensor) and v.numel() > 1}
    if words is None or None in own.values():
        return None, False
    bounds |= own
    if any(isinstance(bound, Tensor) and bound.is_floating_point() for bound in bounds.values()):
        return None, False
    return words.format(**{k: v.item() if isinstance(v, Tensor) else v for k, v in bounds.items()}), bool(own)


def _argument(bound: Tensor, args: tuple[Tensor, ...]) -> str | None:
    """The name of the argument that has the values of a bound."""
    for i, part in enumerate(args):
        if part.numel() == bound.numel() and torch.equal(part.reshape(bound.shape).to(bound), bound):
            return f"data[{i}]"
    return None


def _over_event(flags: Tensor, dim: int, *, any_of: bool) -> Tensor:
    """Flags of numbers as flags of observations: whether any, or all, numbers of an event have them."""
    if flags.dim() == dim:
        return flags
    flags = flags.flatten(dim)
    return flags.any(-1) if any_of else flags.all(-1)


def _short(value: Tensor) -> str:
    with np.printoptions(threshold=6, edgeitems=3, precision=4):
        return str(value.numpy(force=True))


def _hint(fn: Any, value: Tensor) -> str:
    """What to do about labels that count from one."""
    categories = getattr(fn, "_num_events", None)
    if categories is not None and value.min() == 1 and value.max() == categories:
        return "; labels count from 0: give y - 1"
    return ""
