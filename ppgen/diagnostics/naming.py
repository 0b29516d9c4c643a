"""Names of dimensions: those that follow from a program, and those that a user gives instead.

The values of a site have the dimensions "chain" and "draw", then its plates by name, then those of its event, `z_dim`
(or `z_dim_0`, `z_dim_1`, ...). ``dims={"z": ["factor"]}`` renames either all dimensions of a variable after "chain" and
"draw", as in `az.from_dict`, or only those of its event. A plate that is renamed in one variable is renamed in all.
``coords={"factor": ["a", "b"]}`` gives the values along a dimension.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr
from pyro.poutine.messenger import Messenger
from torch import Tensor

from ppgen.tracing.sites import DATA, PARTICLES, Site, did_you_mean, is_deterministic, observation

__all__ = ["EventNames", "Variable", "dataset", "new_names", "observed", "variable"]

Variable = tuple[tuple[str, ...], np.ndarray]
Groups = Mapping[str, Mapping[str, Variable]]
LEADING = ("chain", "draw")
TWO_SAMPLE = "two_sample"


def variable(name: str, site: Site, value: Tensor | None = None, *, event: bool = True) -> Variable:
    """The values of a site with the names of their dimensions: "draw", the plates, then those of the event.

    Args:
        name: the name of the site.
        site: the site.
        value: other values of the same shape; those of the site if None.
        event: whether the values have the event dimensions of the site.
    """
    value = site["value"] if value is None else value
    frames = {f.dim: f for f in site["cond_indep_stack"] if f.vectorized}
    depth = -min(frames, default=0)
    rank = site["fn"].event_dim if event else 0
    if is_deterministic(site) and rank == value.dim():  # without event_dim, all are event dimensions
        rank = value.dim() - depth
    if value.dim() - rank < depth:  # one value for all rows of a plate
        value = value.reshape((1,) * (depth + rank - value.dim()) + tuple(value.shape))
    batch = value.dim() - rank
    value = value.expand([frames[d].size if d in frames else 1 for d in range(-batch, 0)] + list(value.shape[batch:]))
    value = value.squeeze(tuple(d + batch for d in range(-batch, 0) if d not in frames))
    dims = ["draw" if frames[d].name == PARTICLES else frames[d].name for d in sorted(frames)]
    dims = [f"{d}_plate" if d == name else d for d in dims] + _event_dims(name, rank)
    if "draw" not in dims:
        dims, value = ["draw", *dims], value.unsqueeze(0)
    return tuple(dims), value.numpy(force=True)


def observed(name: str, site: Site) -> Variable:
    """The observations of a site, without the dimension "draw"."""
    value = observation(site)
    shape = torch.broadcast_shapes(value.shape, site["fn"].shape())  # data may have more dimensions of size 1
    dims, values = variable(name, site, value.expand(shape))
    return dims[1:], values[0]


class EventNames(Messenger):
    """A handler that reads names of event dimensions as ArviZ does: ``pyro.sample(..., infer={"event_dims": [...]})``.

    Attributes:
        found: the names by site.
    """

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, Sequence[str]] = {}

    def _pyro_sample(self, msg: Site) -> None:
        if names := msg["infer"].get("event_dims"):
            self.found[msg["name"]] = names


def new_names(
    groups: Groups, dims: Mapping[str, Sequence[str]] | None, coords: Mapping[str, Sequence[Any]] | None
) -> dict[str, str]:
    """The user's names of dimensions, by the names that they replace, after checking them against the variables.

    Args:
        groups: the groups, whose variables have the original names.
        dims: the user's names by variable.
        coords: the user's values by dimension.

    Raises:
        ValueError: for an unknown variable or dimension; for a wrong number of names or values; for a name that is
            given twice, or to dimensions of different length.
    """
    known = _largest(groups)
    names: dict[str, str] = {}
    for name, given in (dims or {}).items():
        if name not in known:
            raise ValueError(f"dims: no variable {name!r}; {did_you_mean(name, known)}")
        own = [d for d in known[name][0] if d not in LEADING]
        event = [d for d in own if d in _event_dims(name, 1) or d.startswith(f"{name}_dim_")]
        given = [given] if isinstance(given, str) else list(given)
        if len(given) not in (len(own), len(event)):
            raise ValueError(
                f"dims: expected {_counted(own)} for the variable {name!r}"
                f"{f', or {len(event)} for its event alone' if len(event) != len(own) else ''}; got {given}"
            )
        if len(set(given)) < len(given) or set(given) & {*LEADING, "step", *known}:
            raise ValueError(
                f"dims: expected {len(given)} different names for {name!r}, other than "
                f"those of chains, draws and variables, got {given}"
            )
        for old, new in zip(own if len(given) == len(own) else event, given, strict=True):
            if names.setdefault(old, new) != new:
                raise ValueError(
                    f"dims: the plate {old!r} is named both {names[old]!r} and, in {name!r}, {new!r}; use one name"
                )
    sizes: dict[str, tuple[int, str]] = {}
    for name, (old_dims, value) in known.items():
        renamed = [names.get(d, d) for d in old_dims]
        if len(set(renamed)) < len(renamed):
            raise ValueError(f"dims: two dimensions of {name!r} have one name, {renamed}")
        for dim, size in zip(renamed, value.shape, strict=True):
            other = sizes.setdefault(dim, (size, name))
            if other[0] != size:
                raise ValueError(
                    f"dims: {dim!r} has length {size} in the variable {name!r} and {other[0]} in {other[1]!r}; "
                    "dimensions of one name have one length"
                )
    for dim, values in (coords or {}).items():
        if dim not in sizes or dim in LEADING:
            raise ValueError(f"coords: no dimension {dim!r}; {did_you_mean(dim, set(sizes) - set(LEADING))}")
        size, name = sizes[dim]
        if len(values) != size:
            raise ValueError(
                f"coords: expected {size} values for {dim!r}, a dimension of the variable {name!r}, got {len(values)}"
            )
    return names


def dataset(
    variables: Mapping[str, Variable],
    names: Mapping[str, str],
    coords: Mapping[str, Sequence[Any]] | None,
    positions: Mapping[str, tuple[str, np.ndarray]],
) -> xr.Dataset:
    """Variables as a dataset.

    Args:
        variables: the variables.
        names: the user's names by the original ones.
        coords: the values along dimensions; chains, draws, steps and the plate "data" are numbered by default.
        positions: further coordinates by name: a dimension, and values along it.
    """
    renamed = {k: (tuple(names.get(d, d) for d in dims), value) for k, (dims, value) in variables.items()}
    sizes = {d: n for dims, value in renamed.values() for d, n in zip(dims, value.shape, strict=True)}
    values: dict[str, np.ndarray] = {
        d: np.arange(sizes[d]) for d in (*LEADING, "step", names.get(DATA, DATA)) if d in sizes
    }
    values |= {TWO_SAMPLE: np.array(["statistic", "p_value"])} if TWO_SAMPLE in sizes else {}
    values |= {d: np.asarray(v) for d, v in (coords or {}).items() if d in sizes}
    return xr.Dataset(renamed, coords={**values, **{k: v for k, v in positions.items() if v[0] in sizes}})


def _event_dims(name: str, rank: int) -> list[str]:
    return [f"{name}_dim"] if rank == 1 else [f"{name}_dim_{i}" for i in range(rank)]


def _largest(groups: Groups) -> dict[str, Variable]:
    """The variable of each site, from the group where it has most dimensions."""
    known: dict[str, Variable] = {}
    for name, found in _sites(groups):
        if name not in known or len(found[0]) > len(known[name][0]):
            known[name] = found
    return known


def _sites(groups: Groups) -> Iterator[tuple[str, Variable]]:
    for group in ("posterior", "observed_data", "posterior_predictive", "log_likelihood"):
        yield from groups.get(group, {}).items()


def _counted(dims: Sequence[str]) -> str:
    listed = f" ({', '.join(dims)})" if dims else ""
    return f"{len(dims)} name{'' if len(dims) == 1 else 's'}{listed}"
