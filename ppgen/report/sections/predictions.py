"""The section on the posterior's predictions: replicated data beside the data."""

from collections.abc import Iterator

import numpy as np
import xarray as xr

from ppgen.diagnostics import predictive_check, resample
from ppgen.diagnostics.verdict import WEIGHTED
from ppgen.report import figures
from ppgen.report.context import FitContext
from ppgen.report.page import Figure, Section, Table

__all__ = ["predictions"]

MAX_REPLICATES = 200  # replicated data sets in a histogram
TOO_MANY = "There are too many data to replicate them for each draw of the latents."
MAX_COLUMNS = 6  # of an observed site that have a panel each; of more columns, all numbers have one together


def predictions(context: FitContext) -> Section | None:
    """Data beside replicated data; None where each datum has its own latents, or nothing is observed."""
    stats, predictive = context.group("sample_stats"), context.group("posterior_predictive")
    observed = context.group("observed_data")
    if stats is None or stats["lp"].ndim > 2 or observed is None:
        return None
    if predictive is None:
        return None if context.group("log_likelihood") is None else Section("Posterior predictions", TOO_MANY)
    chain, draws = context.fit.best, stats.sizes["draw"]
    weighted = context.verdict is not None and context.verdict.level == WEIGHTED
    rows = np.linspace(0, draws - 1, min(draws, MAX_REPLICATES)).round().astype(int)
    if weighted:
        rows = resample(stats["log_weight_smoothed"].values[chain], size=len(rows))
    sites: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    checks: list[tuple] = []
    for key, seen in observed.data_vars.items():
        name = str(key)
        if name not in predictive or not np.isfinite(seen.values).all() or seen.dtype.kind not in "fiub":
            continue
        drawn = predictive[name].transpose("chain", "draw", *seen.dims).values[chain][rows]
        sites |= dict(_panels(name, drawn.reshape(len(rows), *seen.shape), seen))
        table = predictive_check(context.idata, var_name=name, weighted=weighted, chain=chain)
        checks += [(name, *row) for row in table.itertuples(name=None)]
    if not sites:
        return None
    latents = "as the sampler drew them" if context.fit.stored_draws else "as the guide draws them"
    latents = "resampled by their importance weights" if weighted else latents
    text = (
        f"The model replicates the data, with latents {latents}. If the data look like none of the replicated data "
        "sets, the model does not describe them, however accurate its posterior is."
    )
    caption = f"Histograms of the data and of {len(rows)} replicated data sets."
    header = ("site", "statistic", "data", "replicates: mean", "replicates: sd", "p-value")
    remark = (
        "Statistics of all numbers of a site. The p-values are two-sided. The posterior has seen the data, so that "
        "p-values are close to 1 more often than uniform ones."
    )
    figure = Figure(figures.predictive_histograms(sites), caption, f"Histograms. {caption}")
    return Section("Posterior predictions", text, [figure, Table(header, checks, remark)])


def _panels(name: str, drawn: np.ndarray, seen: xr.DataArray) -> Iterator[tuple[str, tuple[np.ndarray, np.ndarray]]]:
    """Replicates (S, n) and data (n,) of each column, or of all numbers of a site."""
    count, width = len(drawn), seen.shape[-1] if seen.ndim > 1 else 1
    if 1 < width <= MAX_COLUMNS:
        for column in range(width):
            part = seen.values[..., column].reshape(-1)
            yield f"{name}[{column}]", (drawn[..., column].reshape(count, -1), part)
    else:
        yield name, (drawn.reshape(count, -1), seen.values.reshape(-1))
