"""The sections of a report on a posterior: a verdict and what it rests on, checks of the predictions, calibration.

All of it comes from draws that are there already, as `Fit.to_arviz` gives them. What they cannot show is left out: a
posterior without a density has no weights, a single restart nothing to compare it with, latents of rows no
leave-one-out. Of many latents the figures show those few that weights move most, or restarts differ most about.
"""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from ppgen.diagnostics import Calibration, Ranks, Verdict, khat_threshold, loo, loo_pit, predictive_check, resample
from ppgen.diagnostics.reading import DRAWN
from ppgen.diagnostics.verdict import (
    AGREE,
    AWAY,
    BAD,
    CLOSE,
    GOOD,
    NEGLIGIBLE,
    PLAIN,
    ROWS,
    UNKNOWN,
    WEIGHTED,
    of_like_evidence,
)
from ppgen.diagnostics.versions import by_datum, group, rhat
from ppgen.report import figures
from ppgen.report.figures.posterior import entries
from ppgen.report.page import Figure, Section, Table

if TYPE_CHECKING:
    from ppgen.result import Fit

__all__ = ["calibration", "log_evidence", "posterior", "predictions"]

LIMIT = 6  # entries of the latents drawn
SCANNED = 5000  # entries that are compared across restarts, at most
REPLICATES = 200  # data sets drawn anew that are laid beside data
LEFT_OUT = 1000  # data that are left out one by one, at most
LEAST = 10  # data from which on leaving one out says something
COLUMNS = 6  # of an observed site that are shown apart; of more, all numbers are taken together
NORMAL95 = 1.96

WORDS = {
    GOOD: "The posterior is good: the guide's draws can be taken as they are.",
    WEIGHTED: "The posterior is usable with weights: the guide's draws serve once they are resampled.",
    BAD: "The posterior is not to be trusted: neither the guide's draws nor their weights stand in for it.",
    UNKNOWN: "No verdict:",
}
MEANINGS = {
    "pareto_k": f"k-hat, the tail of the importance weights: good up to {PLAIN}",
    "bad_rows": f"share of data whose weights cannot be relied on: up to {ROWS}",
    "effective": "share of effective draws",
    "restarts": "fits from starts of their own",
    "r_hat": f"R-hat across restarts of like evidence: up to {AGREE}",
    "elsewhere": f"share of the mass at a mode where the guide is not: up to {AWAY}",
    "shift": f"how far weights move a mean, in deviations: up to {CLOSE}",
    "log_ratio": f"log ratio of deviations with weights and without: up to {CLOSE}",
    "falling": "nats by which the loss still fell at the end",
}


def posterior(fit: "Fit", idata: Any, verdict: Verdict | None = None, *, of: str = "the data") -> Section | None:
    """A verdict, the latents, importance weights, the evidence by step, restarts; None without draws to show.

    Args:
        idata: what `Fit.to_arviz` gave.
        verdict: of these draws, as `ppgen.diagnostics.diagnose` gives it.
        of: which data they are of.
    """
    found = None if idata is None else group(idata, "posterior")
    drawn = found is not None and len(found.data_vars) > 0
    if not drawn and (idata is None or verdict is None):
        return None
    items: list[Any] = [] if verdict is None else list(_verdict(verdict))
    stats, vi = group(idata, "sample_stats"), group(idata, "vi_stats")
    chain = fit.best
    if drawn and found is not None:
        caption = (
            "The posterior as the guide draws it, for the first row of the data that it was asked about. One chain is "
            "shown with its mean and 94% interval, several by a density each."
        )
        items.append(Figure(figures.posterior(idata), caption, f"Density plots. {caption}"))
    if vi is not None and "pareto_k" in vi:
        if vi["pareto_k"].ndim > 1:
            caption = (
                "Pareto k-hat, a number a datum: how heavy the tail of the importance weights p(x, z) / q(z | x) is. "
                "Up to 0.7, weighted draws of the guide stand in for the posterior; above, the guide misses too much "
                "of it."
            )
            khat = vi["pareto_k"].isel(chain=chain)
            items.append(Figure(figures.khat(khat.values), caption, f"Histogram. {caption}"))
        elif stats is not None and found is not None:
            items += _weights(found, stats, float(vi["pareto_k"].values[chain]), chain)
    if vi is not None:
        items += _evidence(fit, vi, of)
        if found is not None and drawn:
            items += _restarts(found, vi)
    items += _two_sample(idata)
    return Section("Posterior", _words(verdict), items)


def log_evidence(vi: xr.Dataset | None, chain: int) -> tuple[float, float] | None:
    """log p(x) of all data by a chain's importance weights, and its standard error, in nats; None without weights."""
    if vi is None or "log_marginal" not in vi or "log_marginal_error" not in vi:
        return None
    value, error = (vi[name].isel(chain=chain).values for name in ("log_marginal", "log_marginal_error"))
    total = float(value.sum()), float(np.sqrt(np.square(error).sum()))
    return total if np.isfinite(total).all() else None


def _words(verdict: Verdict | None) -> str:
    if verdict is None:
        return ""
    said = [" ".join([WORDS[verdict.level], *(why for name, why in verdict.against.items() if name == "density")])]
    if verdict.advice:
        said.append(f"To try: {'; '.join(verdict.advice)}.")
    return "\n\n".join(said)


def _verdict(verdict: Verdict) -> Iterator[Table]:
    rows: list[tuple] = [
        (name, int(value) if name == "restarts" else value, MEANINGS.get(name, ""), verdict.against.get(name, ""))
        for name, value in verdict.figures.items()
    ]
    told = {name: why for name, why in verdict.against.items() if name not in verdict.figures and name != "density"}
    rows += [(name, None, "", why) for name, why in told.items()]
    if rows:
        yield Table(("figure", "value", "what it is", "what tells against the fit"), rows)


def _weights(found: xr.Dataset, stats: xr.Dataset, pareto_k: float, chain: int) -> Iterator[Figure]:
    """Weights of the whole data set: their tail, and where they lie."""
    raw, smoothed = (stats[name].values[chain] for name in ("log_weight", "log_weight_smoothed"))
    weights = np.exp(smoothed)
    if not np.isfinite(weights).all():
        return
    caption = (
        f"The weights p(x, z) / q(z) of {len(weights)} draws of the guide, chain {chain}. Steeper than the dashed line "
        "on the left, their mean is carried by draws that are yet to come; on the right, the dashed line is of equal "
        "weights."
    )
    picture = figures.weight_tail(raw, smoothed, pareto_k)
    yield Figure(picture, caption, f"Two line charts. {caption}")
    of_chain = {name: z[chain].astype(float) for name, z in entries(found, every=True).items()}
    # discrete ones are drawn from their own posterior, and summed out of the weights
    of_chain = {name: z for name, z in of_chain.items() if np.ptp(z) > 0 and (z != z.round()).any()}
    if not of_chain:
        return
    z = np.stack(list(of_chain.values()))
    at, mean, spread = z @ weights, z.mean(1), z.std(1)
    ratio = np.sqrt(np.square(z - at[:, None]) @ weights) / spread
    with np.errstate(divide="ignore"):
        score = np.maximum(np.abs(at - mean) / spread, np.abs(np.log(ratio)))
    most = np.array(list(of_chain))[np.argsort(-score, kind="stable")[:LIMIT]]
    caption = (
        "Draws of the guide as they are beside weighted ones: the weight on each twentieth of the draws, in order of "
        "an entry. One throughout: the guide's marginal law is the posterior's. High at both ends: the guide is too "
        "narrow; a slope: it lies beside. Inside the band is noise."
    )
    picture = figures.moved({str(name): of_chain[name] for name in most}, weights, of=len(of_chain))
    yield Figure(picture, caption, f"Histograms. {caption}")


def _evidence(fit: "Fit", vi: xr.Dataset, of: str) -> Iterator[Figure]:
    """The bound by step, and the level that it has to reach."""
    chain = fit.best
    if "log_marginal" not in vi or "elbo_trace" not in vi or not np.isfinite(vi["elbo_trace"].values[chain]).any():
        return
    size, level = fit.num_data, None
    if (found := log_evidence(vi, chain)) is not None:
        rows = vi["log_marginal"].size // vi.sizes["chain"] if vi["log_marginal"].ndim > 1 else size
        value, reach = found[0] / rows, NORMAL95 * found[1] / rows
        level = value, value - reach, value + reach
    unit = "nats per datum" if size > 1 else "nats"
    caption = "The evidence bound by step."
    if level is not None:
        caption += (
            f" Dashed, the log evidence of {of} by importance weights, with its 95% interval, to be relied on as far "
            "as k-hat allows. What lies between is KL(q, p), what the guide lacks."
        )
    picture = figures.evidence_trace(vi["elbo_trace"].values, level, best=chain, unit=unit)
    yield Figure(picture, caption, f"Line chart. {caption}")


def _restarts(found: xr.Dataset, vi: xr.Dataset) -> Iterator[Figure | Table]:
    """What restarts differ most about, and the evidence of each."""
    chains = found.sizes["chain"]
    if chains < 2:
        return
    weighed = "log_marginal" in vi
    counted = of_like_evidence(vi).tolist() if weighed else list(range(chains))
    size = sum(v.size for v in found.data_vars.values()) // (found.sizes["draw"] * chains)
    every = entries(found, every=size <= SCANNED)
    z = np.stack([value.astype(float) for value in every.values()])
    with np.errstate(divide="ignore", invalid="ignore"):  # what does not vary within a restart
        compared = z[:, counted] if len(counted) > 1 else z
        apart = compared.mean(-1).std(-1) / np.sqrt(compared.var(-1).mean(-1))
    order = np.argsort(-np.nan_to_num(apart, nan=-1.0, posinf=np.inf), kind="stable")[:LIMIT]
    names = [list(every)[i] for i in order]
    r_hat = {}
    if len(counted) > 1:
        ranked = rhat(xr.Dataset({str(i): (DRAWN, z[k][counted]) for i, k in enumerate(order)}))
        r_hat = {name: float(ranked[str(i)]) for i, name in enumerate(names)}
    caption = (
        "Restarts: medians, central 50% and 94% of each one's draws. R-hat is of those whose evidence is within "
        f"{NEGLIGIBLE:.0f} nats of the best one's; others are pale."
    )
    picture = figures.restarts({name: every[name] for name in names}, r_hat=r_hat, counted=counted, of=len(every))
    yield Figure(picture, caption, f"Intervals. {caption}")
    if not weighed:
        return
    rows = []
    for chain in range(chains):
        khat, effective = (vi[name].values[chain] for name in ("pareto_k", "effective"))
        share = float(np.mean(effective) / found.sizes["draw"])
        in_r_hat = "yes" if chain in counted else "no"
        rows.append((chain, log_evidence(vi, chain), float(np.median(khat)), share, in_r_hat))
    header = ("restart", "log evidence (nats)", "k-hat", "effective share", "in R-hat")
    yield Table(header, rows, "Of weights per datum, k-hat is the median." if vi["pareto_k"].ndim > 1 else "")


def _two_sample(idata: Any) -> Iterator[Table]:
    """Data beside the model's own draws, where there is no density to judge by."""
    found = group(idata, "two_sample")
    if found is not None and found.data_vars:
        rows = [(str(name), *map(float, test.values[0])) for name, test in found.data_vars.items()]
        yield Table(("site", "statistic", "p-value"), rows, "MMD tests of observed rows against draws of the model.")


def predictions(fit: "Fit", idata: Any, verdict: Verdict | None = None) -> Section | None:
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
