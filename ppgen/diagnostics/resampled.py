"""Resampling of the guide's draws by their importance weights."""

import numpy as np

from ppgen.diagnostics.chain_groups import Groups
from ppgen.diagnostics.naming import Variable
from ppgen.posterior.importance import psis_reliable, resample
from ppgen.tracing.sites import DATA

__all__ = ["add_resampled"]


def add_resampled(groups: Groups, draws: int, *, replace: bool, seed: int) -> list[int]:
    """Adds the group "posterior_resampled" of the chains whose weights are reliable.

    Args:
        groups: the groups of all chains.
        draws: the number of draws in each chain.
        replace: whether to take as many draws with replacement, or a tenth of them without.
        seed: the seed of the resampling.

    Returns:
        The chains in the group, which is not added if there is none.
    """
    dims, log_weights = groups["sample_stats"]["log_weight_smoothed"]
    reliable = psis_reliable(groups["vi_stats"]["pareto_k"][1], groups["vi_stats"]["ess"][1], draws)
    local = DATA in dims
    kept = [int(number) for number in np.flatnonzero(reliable.any(-1) if local else reliable)]
    if not kept:
        return []
    reliable = reliable[kept] if local else reliable[kept][:, None]  # (chain, 1 or data)
    log_weights = log_weights[kept] if local else log_weights[kept][..., None]
    rng = np.random.default_rng(seed)
    indices = np.zeros((len(kept), draws if replace else max(1, draws // 10), reliable.shape[1]), dtype=int)
    for chain, row in np.argwhere(reliable):
        indices[chain, :, row] = resample(log_weights[chain, :, row], size=indices.shape[1], replace=replace, seed=rng)
    group: dict[str, Variable] = {}
    for name, (own, value) in groups["posterior"].items():
        if not local:
            group[name] = own, np.stack([z[i] for z, i in zip(value[kept], indices[..., 0], strict=True)])
        elif DATA in own:  # other variables belong to no datum and have no weight
            taken = _take_rows(np.moveaxis(value[kept], own.index(DATA), 2), indices, reliable)
            group[name] = own, np.moveaxis(taken, 2, own.index(DATA))
    groups["posterior_resampled"] = group
    return kept


def _take_rows(value: np.ndarray, indices: np.ndarray, reliable: np.ndarray) -> np.ndarray:
    """Draws (chain, S, data, ...) at indices (chain, T, data); NaN where the weights are not reliable (chain, data)."""
    taken = np.take_along_axis(value, indices.reshape(*indices.shape, *(1,) * (value.ndim - 3)), axis=1)
    if not reliable.all():
        taken = taken.astype(np.result_type(taken.dtype, np.float32))
        taken[np.broadcast_to(~reliable[:, None], taken.shape[:3])] = np.nan
    return taken
