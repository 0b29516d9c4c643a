"""The groups of all chains as one container of ArviZ."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from ppgen.diagnostics.chain_groups import Groups
from ppgen.diagnostics.masked import Observed, leave_out_masked
from ppgen.diagnostics.naming import dataset, new_names
from ppgen.diagnostics.resampled import add_resampled
from ppgen.posterior.importance import khat_threshold
from ppgen.utils.arviz_versions import build_container

__all__ = ["container"]


def container(
    chains: list[Groups],
    observed: Mapping[str, Observed],
    attributes: Mapping[str, Any],
    *,
    dims: Mapping[str, Sequence[str]] | None = None,
    coords: Mapping[str, Sequence[Any]] | None = None,
    known: Mapping[str, Sequence[Any]] | None = None,
    resampled: str | None = None,
    draws: int = 0,
    seed: int = 0,
    more: Groups | None = None,
    pooled: bool = False,
) -> Any:
    """The groups of all chains as an `InferenceData` (ArviZ 0.2x) or a `DataTree` (1.x).

    Args:
        chains: the groups of each chain.
        observed: what is observed, by variable.
        attributes: what all groups have as attributes.
        dims: the user's names of dimensions, see `ppgen.diagnostics.naming`.
        coords: the user's values along dimensions.
        known: values along dimensions that follow from the data, where there are dimensions of this name and length.
        resampled: whether to add the group "posterior_resampled", and how, see `ppgen.diagnostics.resampled`.
        draws: the number of draws in each chain.
        seed: the seed of the resampling.
        more: variables that are not of a single chain.
        pooled: whether the draws of a single chain have the dimension "sample" in the place of "chain" and "draw".
    """
    groups, attributes = _stack(chains), dict(attributes)
    kept: list[int] = []
    if resampled and "sample_stats" in groups and "posterior" in groups:
        kept = add_resampled(groups, draws, replace=resampled == "with", seed=seed)
        if left_out := [number for number in range(len(chains)) if number not in kept]:
            attributes["resampled"] = (
                f"k-hat is above {khat_threshold(draws):.2f}, so that weights cannot correct the guide, in the chains "
                f"{left_out}, which are left out"
            )
    for group, variables in (more or {}).items():
        groups.setdefault(group, {}).update(variables)
    names = new_names(groups, dims, coords)
    coords = {**_applicable(known or {}, groups, names), **(coords or {})}
    positions = leave_out_masked(groups, observed, names, coords)
    datasets = {group: dataset(variables, names, coords, positions) for group, variables in groups.items() if variables}
    if "posterior_resampled" in datasets:
        datasets["posterior_resampled"] = datasets["posterior_resampled"].assign_coords(chain=kept)
    for group, each in datasets.items():
        datasets[group] = (_without_chains(each) if pooled else each).assign_attrs(attributes)
    return build_container(datasets)


def _applicable(
    known: Mapping[str, Sequence[Any]], groups: Groups, names: Mapping[str, str]
) -> dict[str, Sequence[Any]]:
    """The values along dimensions that some variable has, and that the user did not rename."""
    variables = [variable for found in groups.values() for variable in found.values()]
    sizes = {dim: size for dims, value in variables for dim, size in zip(dims, value.shape, strict=True)}
    return {d: values for d, values in known.items() if sizes.get(d) == len(values) and names.get(d, d) == d}


def _stack(chains: list[Groups]) -> Groups:
    """The groups of all chains with a leading dimension "chain"; variables that some chain lacks are left out."""
    groups: Groups = {}
    for group, variables in chains[0].items():
        if group == "observed_data":  # the same for all chains
            groups[group] = variables
            continue
        groups[group] = {
            name: (("chain", *dims), np.stack([chain[group][name][1] for chain in chains]))
            for name, (dims, _) in variables.items()
            if all(name in chain.get(group, {}) for chain in chains)
        }
    return groups


def _without_chains(found: xr.Dataset) -> xr.Dataset:
    """A dataset of one chain whose draws have the dimension "sample"."""
    found = found.isel(chain=0, drop=True) if "chain" in found.dims else found
    return found.rename(draw="sample") if "draw" in found.dims else found
