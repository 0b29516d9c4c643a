"""The sections of a report on what a posterior predicts, and on a calibration of the inference that found it."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import xarray as xr

from ppgen.diagnostics import Calibration, Ranks, Verdict, khat_threshold, loo, loo_pit, predictive_check, resample
from ppgen.diagnostics.reading import DRAWN
from ppgen.diagnostics.verdict import WEIGHTED
from ppgen.report import figures
from ppgen.report.page import Figure, Section, Table
from ppgen.training.result import Fitted
from ppgen.utils.arviz_versions import by_datum, group

__all__ = ["calibration", "predictions"]

REPLICATES = 200  # data sets drawn anew that are laid beside data
LEFT_OUT = 1000  # data that are left out one by one, at most
LEAST = 10  # data from which on leaving one out says something
COLUMNS = 6  # of an observed site that are shown apart; of more, all numbers are taken together


def predictions(fit: Fitted, idata: Any, verdict: Verdict | None = None) -> Section | None:
    """What the posterior predicts beside data, and leave-one-out; None where latents are those of rows."""
    stats, predictive = group(idata, "sample_stats"), group(idata, "posterior_predictive")
    if stats is None or stats["log_weight"].ndim > 2:
        return None
    chain = fit.best
    weighted = verdict is not None and verdict.level == WEIGHTED
    items: list[Any] = []
    if predictive is not None and predictive.data_vars:
        items += _replicates(idata, stats, chain, weighted)
    items += _left_out(idata, chain)
    if not items:
        return None
    about = "resampled by the importance weights" if weighted else "as the guide draws them"
    text = (
        f"Data sets drawn anew by the model, at latents {about}. Data that look like none of them are data that the "
        "model does not describe, however well its posterior was found."
    )
    if predictive is None:
        text = "There are too many data to draw them anew for each draw of the latents: they are left out one by one."
    return Section("Predictions", text, items)


def _replicates(idata: Any, stats: xr.Dataset, chain: int, weighted: bool) -> Iterator[Figure | Table]:
    observed, predictive = group(idata, "observed_data"), group(idata, "posterior_predictive")
    assert observed is not None
    assert predictive is not None
    draws = stats.sizes["draw"]
    rows = np.linspace(0, draws - 1, min(draws, REPLICATES)).round().astype(int)
    if weighted:
        rows = resample(stats["log_weight_smoothed"].values[chain], size=len(rows))
    sites: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    checks: list[tuple] = []
    for key, seen in observed.data_vars.items():
        name = str(key)
        if name not in predictive or not np.isfinite(seen.values).all() or seen.dtype.kind not in "fiub":
            continue
        drawn = predictive[name].transpose("chain", "draw", *seen.dims).values[chain][rows]
        sites |= dict(_columns(name, drawn.reshape(len(rows), *seen.shape), seen))
        table = predictive_check(idata, var_name=name, weighted=weighted, chain=chain)
        checks += [(name, *row) for row in table.itertuples(name=None)]
    if not sites:
        return
    caption = f"Data, and the histograms of {len(rows)} data sets drawn anew."
    yield Figure(figures.replicates(sites), caption, f"Histograms. {caption}")
    yield Table(
        ("site", "statistic", "of data", "of replicates", "sd", "p-value"),
        checks,
        "Statistics of all numbers of a site. The p-value is of both tails; by the posterior, which has seen the data, "
        "it gathers around 1.",
    )


def _columns(name: str, drawn: np.ndarray, seen: xr.DataArray) -> Iterator[tuple[str, tuple[np.ndarray, np.ndarray]]]:
    """Replicates (S, n) and data (n,) of each column of rows, or of all numbers."""
    count, width = len(drawn), seen.shape[-1] if seen.ndim > 1 else 1
    if 1 < width <= COLUMNS:
        for column in range(width):
            part = seen.values[..., column].reshape(-1)
            yield f"{name}[{column}]", (drawn[..., column].reshape(count, -1), part)
    else:
        yield name, (drawn.reshape(count, -1), seen.values.reshape(-1))


def _left_out(idata: Any, chain: int) -> Iterator[Figure | Table]:
    """Leave-one-out of each site with a likelihood a datum."""
    likelihood = group(idata, "log_likelihood")
    if likelihood is None:
        return
    rows, pictures, good = [], [], khat_threshold(likelihood.sizes["draw"])
    for key, values in likelihood.data_vars.items():
        name, size = str(key), values.size // (values.sizes["chain"] * values.sizes["draw"])
        if size < LEAST or not np.isfinite(values.values[chain]).all():
            continue
        some = _some(idata, values)
        pointwise, khat = by_datum(loo(some, var_name=name, chain=chain))
        left, bad = len(pointwise), int((~(khat <= good)).sum())
        rows.append((name, f"{left} of {size}", (float(pointwise.sum()), float(pointwise.std() * left**0.5)), bad))
        replicates = group(some, "posterior_predictive")
        alike = replicates is not None and name in replicates and replicates[name].dims == values.dims
        if not alike or bad > left / 2:
            continue
        pit = loo_pit(some, var_name=name, chain=chain).values.reshape(-1)
        ranks = Ranks(np.minimum((100 * pit).astype(int), 99)[:, None], 99, (name,))
        caption = (
            f"LOO-PIT: P(y' <= y) of each of {left} data of {name!r} given all others, uniform where the model is "
            "right. Rising and then falling below zero, the predictions are too narrow; the other way round, too wide. "
            "The band and p take the values for independent of one another."
        )
        picture = figures.uniformity(ranks, what="P(y' <= y | all other data)")
        pictures.append(Figure(picture, caption, f"Line chart. {caption}"))
    yield from pictures
    if rows:
        header = ("site", "data", "elpd by leave-one-out (nats)", f"data of k-hat above {good:.2f}")
        yield Table(header, rows, "Expected log density of a datum left out, summed; of these data its k-hat judges.")


def _some(idata: Any, likelihood: xr.DataArray) -> Mapping[str, xr.Dataset]:
    """The groups that leave-one-out takes, with so many data that it is quick."""
    names = ("log_likelihood", "posterior_predictive", "observed_data", "sample_stats")
    groups = {name: found for name in names if (found := group(idata, name)) is not None}
    plates = [dim for dim in likelihood.dims if dim not in DRAWN]
    longest = max(plates, key=lambda dim: likelihood.sizes[dim])
    size = likelihood.sizes[longest]
    kept = max(1, LEFT_OUT * size * likelihood.sizes["chain"] * likelihood.sizes["draw"] // likelihood.size)
    if kept >= size:
        return groups
    rows = np.linspace(0, size - 1, kept).round().astype(int)
    return {name: found.isel({longest: rows}, missing_dims="ignore") for name, found in groups.items()}


def calibration(found: Calibration) -> Section:
    """Simulation-based calibration: whether true values rank among draws as one more draw would."""
    count, draws = len(found.ranks.ranks), found.ranks.draws
    caption = f"Ranks of true values among {draws} draws, over {count} simulations."
    items: list[Any] = [
        Figure(figures.uniformity(found.ranks, what="rank, as a share"), caption, f"Line charts. {caption}")
    ]
    rows = [
        (name, float(p), float(q))
        for part in (found.ranks, found.distances)
        for name, p, q in zip(part.names, part.p_values, part.symmetry, strict=True)
    ]
    items.append(Table(("number", "p that ranks are uniform", "p that they are symmetric"), rows))
    verdict = f"All together, p = {found.p_value:.3f}. "
    text = (
        "Latents and data were drawn from the model, and inference run on the data: if it is right, true values rank "
        "among its draws as one more draw would. This is of inference on average over the prior."
    )
    return Section("Calibration", verdict + text, items)
