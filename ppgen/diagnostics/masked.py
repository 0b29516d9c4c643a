"""Observations that a program masks are no data, so they are left out of the groups that hold data.

Each entry of a log likelihood counts as one datum in ArviZ: a zero is a datum that is predicted perfectly, and NaN
makes the whole result NaN. Entries of a site x that are masked are therefore left out of "observed_data", of their
predictive draws and of "log_likelihood" alike:

    x: data, x_dim               all rows are observed
    x: x_observed, x_dim         some rows are masked; the coordinate x_data has the numbers of the others
    x: x_observed, x_dim         with coordinates x_plate and x_other, if the mask differs along two plates

A number that is masked within an event of which others are observed is NaN in "observed_data".
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ppgen.diagnostics.naming import Variable, variable
from ppgen.tracing.masks import observed_numbers
from ppgen.tracing.sites import Site

__all__ = ["Observed", "any_observed", "either_observed", "leave_out_masked", "observed_entries"]

GROUPS = ("observed_data", "posterior_predictive", "prior_predictive", "log_likelihood")


@dataclass(frozen=True)
class Observed:
    """Which numbers of a variable are observed, in any of the draws.

    Attributes:
        plates: the names of the plates' dimensions.
        numbers: booleans (*plates, *event).
    """

    plates: tuple[str, ...]
    numbers: np.ndarray

    @property
    def entries(self) -> np.ndarray:
        """Whether any number of an event is observed, (*plates)."""
        return np.asarray(self.numbers.any(tuple(range(len(self.plates), self.numbers.ndim))))


def observed_entries(name: str, site: Site) -> Observed:
    """Which numbers of an observed site count.

    Args:
        name: the name of the site.
        site: the site.
    """
    dims, numbers = variable(name, site, observed_numbers(site))
    return Observed(dims[1 : len(dims) - site["fn"].event_dim], np.asarray(numbers.any(0)))


def either_observed(a: Mapping[str, Observed], b: Mapping[str, Observed]) -> dict[str, Observed]:
    """What is observed in the draws of `a` or in those of `b`, since a mask may depend on latents."""
    return {**a, **{k: Observed(v.plates, v.numbers | a[k].numbers) if k in a else v for k, v in b.items()}}


def any_observed(sites: Iterable[Observed], plates: Sequence[str]) -> Observed:
    """Where along some plates any of several sites is observed.

    Args:
        sites: the sites, which lie in these plates and perhaps in others.
        plates: the names of the plates' dimensions.
    """
    found = []
    for seen in sites:
        others = tuple(axis for axis, plate in enumerate(seen.plates) if plate not in plates)
        found.append(seen.entries.any(others))
    return Observed(tuple(plates), np.logical_or.reduce(found))


def leave_out_masked(
    groups: dict[str, dict[str, Variable]],
    observed: Mapping[str, Observed],
    names: Mapping[str, str],
    coords: Mapping[str, Sequence[Any]] | None,
) -> dict[str, tuple[str, np.ndarray]]:
    """Leaves what is masked out of the groups that hold data.

    Args:
        groups: the groups, which are changed.
        observed: what is observed, by variable.
        names: the user's names of dimensions by the original ones.
        coords: the user's values along dimensions, by the user's names.

    Returns:
        The new coordinates by name: a dimension, and values along it.
    """
    positions: dict[str, tuple[str, np.ndarray]] = {}
    for name, seen in observed.items():
        if seen.numbers.all():
            continue
        plates, index = _positions(seen)
        for plate, rows in zip(plates, index, strict=True):
            label = names.get(plate, plate)
            values = np.asarray(coords[label])[rows] if coords and label in coords else rows
            positions[f"{name}_{label}"] = f"{name}_observed", values
        for group in (groups[g] for g in GROUPS if name in groups.get(g, {})):
            dims = group[name][0]
            if not seen.numbers.any():
                del group[name]
            elif set(seen.plates) <= set(dims):
                group[name] = _taken(f"{name}_observed", group[name], plates, index)
            else:  # a likelihood of rows that share a latent which is summed out
                shared = [plate for plate in seen.plates if plate in dims]
                group[name] = _taken("_".join([name, *shared]), group[name], *_positions(any_observed([seen], shared)))
        if name in (data := groups.get("observed_data", {})):
            dims, value = data[name]
            event = tuple(f"_event_{i}" for i in range(seen.numbers.ndim - len(seen.plates)))
            numbers = _taken(name, ((*seen.plates, *event), seen.numbers), plates, index)[1]
            data[name] = dims, value if numbers.all() else np.where(numbers, value, np.nan)
    return positions


def _positions(seen: Observed) -> tuple[list[str], tuple[np.ndarray, ...]]:
    """The plates along which it varies what is observed, and the positions that are, along each."""
    entries = seen.entries
    varying = [axis for axis in range(entries.ndim) if (entries != entries.take([0], axis)).any()]
    reduced = np.asarray(entries.any(tuple(set(range(entries.ndim)) - set(varying))))
    return [seen.plates[axis] for axis in varying], np.nonzero(reduced) if varying else ()


def _taken(dim: str, found: Variable, plates: Sequence[str], index: Iterable[np.ndarray]) -> Variable:
    """A variable at positions along some plates, which become one dimension."""
    dims, value = found
    if not plates:
        return found
    axes = [dims.index(plate) for plate in plates]
    first = min(axes)
    value = np.moveaxis(value, axes, range(first, first + len(axes)))[(slice(None),) * first + tuple(index)]
    rest = [dim for dim in dims if dim not in plates]
    return (*rest[:first], dim, *rest[first:]), value
