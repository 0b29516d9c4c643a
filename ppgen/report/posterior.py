"""The section of a report on a posterior: a verdict, and what it rests on.

All of it comes from draws that are there already, as `Fit.to_arviz` gives them. What they cannot show is left out: a
posterior without a density has no weights, a single restart nothing to compare it with. Of many latents the figures
show those few that weights move most, or that restarts differ most about.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import xarray as xr

from ppgen.diagnostics import Verdict
from ppgen.diagnostics.reading import SAMPLE_DIMS
from ppgen.diagnostics.verdict import AGREE, AWAY, BAD, CLOSE, GOOD, ROWS, UNKNOWN, UNSEEN, WEIGHTED, of_like_evidence
from ppgen.posterior.importance import KHAT_GOOD, KHAT_USABLE, NEGLIGIBLE_NATS, moved
from ppgen.report import figures
from ppgen.report.figures.posterior import entries
from ppgen.report.page import Figure, Section, Table
from ppgen.training.result import Fitted
from ppgen.utils.arviz_versions import group, rhat

__all__ = ["log_evidence", "posterior"]

LIMIT = 6  # entries of the latents drawn
SCANNED = 5000  # entries that are compared across restarts, at most
NORMAL95 = 1.96

WORDS = {
    GOOD: "The posterior is good: the guide's draws can be taken as they are.",
    WEIGHTED: "The posterior is usable with weights: the guide's draws serve once they are resampled.",
    BAD: "The posterior is not to be trusted: neither the guide's draws nor their weights stand in for it.",
    UNKNOWN: "No verdict:",
}
MEANINGS = {
    "pareto_k": f"k-hat, the tail of the importance weights: good up to {KHAT_GOOD}",
    "bad_rows": f"share of data whose weights cannot be relied on: up to {ROWS}",
    "unseen": f"share of the mass that a wider law finds and the guide does not: up to {UNSEEN}",
    "effective": "share of effective draws",
    "restarts": "fits from starts of their own",
    "r_hat": f"R-hat across restarts of like evidence: up to {AGREE}",
    "elsewhere": f"share of the mass at a mode where the guide is not: up to {AWAY}",
    "shift": f"how far weights move a mean, in deviations: up to {CLOSE}",
    "log_ratio": f"log ratio of deviations with weights and without: up to {CLOSE}",
    "falling": "nats by which the loss still fell at the end",
}


def posterior(fit: Fitted, idata: Any, verdict: Verdict | None = None) -> Section | None:
    """A verdict, the latents, importance weights, the evidence by step, restarts; None without draws to show.

    Args:
        idata: what `Fit.to_arviz` gave.
        verdict: of these draws, as `ppgen.diagnostics.diagnose` gives it.
    """
    found = None if idata is None else group(idata, "posterior")
    drawn = found is not None and len(found.data_vars) > 0
    if not drawn and (idata is None or verdict is None):
        return None
    items: list[Any] = [] if verdict is None else list(_verdict(verdict))
    stats, vi = group(idata, "sample_stats"), group(idata, "vi_stats")
    chain = fit.best
    if drawn and found is not None:
        rows = (
            ", for the first row of the data" if vi is not None and vi.get("pareto_k", xr.DataArray(0)).ndim > 1 else ""
        )
        caption = (
            f"The posterior as the guide draws it{rows}. One chain is shown with its mean and 94% interval, several by "
            "a density each."
        )
        items.append(Figure(figures.posterior(idata), caption, f"Density plots. {caption}"))
    if vi is not None and "pareto_k" in vi:
        if vi["pareto_k"].ndim > 1:
            caption = (
                "Pareto k-hat, a number a datum: how heavy the tail of the importance weights p(x, z) / q(z | x) is. "
                f"Up to {KHAT_USABLE}, weighted draws of the guide stand in for the posterior; above, the guide misses too "
                "much of it."
            )
            khat = vi["pareto_k"].isel(chain=chain)
            items.append(Figure(figures.khat(khat.values), caption, f"Histogram. {caption}"))
        elif stats is not None and found is not None:
            items += _weights(found, stats, float(vi["pareto_k"].values[chain]), chain)
    if vi is not None:
        items += _evidence(fit, idata, vi)
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
    shift, log_ratio = moved(np.stack(list(of_chain.values()), 1), smoothed)
    score = np.maximum(np.abs(shift), np.abs(log_ratio))
    most = np.array(list(of_chain))[np.argsort(-score, kind="stable")[:LIMIT]]
    caption = (
        "Draws of the guide as they are beside weighted ones: the weight on each twentieth of the draws, in order of "
        "an entry. One throughout: the guide's marginal law is the posterior's. High at both ends: the guide is too "
        "narrow; a slope: it lies beside. Inside the band is noise."
    )
    picture = figures.moved({str(name): of_chain[name] for name in most}, weights, of=len(of_chain))
    yield Figure(picture, caption, f"Histograms. {caption}")


def _evidence(fit: Fitted, idata: Any, vi: xr.Dataset) -> Iterator[Figure]:
    """The bound by step, and the level that it has to reach, if that is of the data that were trained on."""
    chain = fit.best
    if "log_marginal" not in vi or "elbo_trace" not in vi or not np.isfinite(vi["elbo_trace"].values[chain]).any():
        return
    size, level = fit.num_data, None
    if (found := log_evidence(vi, chain)) is not None and size in (1, _rows(idata)):
        value, reach = found[0] / size, NORMAL95 * found[1] / size
        level = value, value - reach, value + reach
    unit = "nats per datum" if size > 1 else "nats"
    caption = "The evidence bound by step."
    if level is not None:
        caption += (
            " Dashed, the log evidence by importance weights, with its 95% interval, to be relied on as far as k-hat "
            "allows. What lies between is KL(q, p), what the guide lacks."
        )
    picture = figures.evidence_trace(vi["elbo_trace"].values, level, best=chain, unit=unit)
    yield Figure(picture, caption, f"Line chart. {caption}")


def _rows(idata: Any) -> int:
    """How many rows the draws are of."""
    seen = group(idata, "observed_data")
    return (
        max((value.shape[0] for value in seen.data_vars.values() if value.ndim), default=1) if seen is not None else 1
    )


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
        ranked = rhat(xr.Dataset({str(i): (SAMPLE_DIMS, z[k][counted]) for i, k in enumerate(order)}))
        r_hat = {name: float(ranked[str(i)]) for i, name in enumerate(names)}
    caption = (
        "Restarts: medians, central 50% and 94% of each one's draws. R-hat is of those whose evidence is within "
        f"{NEGLIGIBLE_NATS:.0f} nats of the best one's; others are pale."
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
