"""The section on importance weights: how heavy their tail is, and where the guide differs from the posterior."""

from collections.abc import Iterator

import numpy as np
import xarray as xr

from ppgen.posterior.importance import KHAT_USABLE, moment_shifts
from ppgen.report import figures
from ppgen.report.context import FitContext
from ppgen.report.figures.posterior import components
from ppgen.report.page import Figure, Section

__all__ = ["importance_weights"]

MAX_PANELS = 6
TEXT = (
    "Each draw z of the guide q has the importance weight p(x, z) / q(z). The weights are equal if the guide is the "
    "posterior, and a few draws carry most of the weight if the guide misses part of it."
)


def importance_weights(context: FitContext) -> Section | None:
    """k-hat of each datum, or the weights of the whole data set; None without weights."""
    vi, stats, posterior = (context.group(name) for name in ("vi_stats", "sample_stats", "posterior"))
    if vi is None or "pareto_k" not in vi:
        return None
    pareto_k = vi["pareto_k"].isel(chain=context.fit.best)
    items: list[Figure] = []
    if pareto_k.ndim:
        items.append(_khat_by_datum(pareto_k.values))
    elif stats is not None and posterior is not None:
        items += _weights_of_draws(posterior, stats, float(pareto_k), context.fit.best)
    return Section("Importance weights", TEXT, items) if items else None


def _khat_by_datum(values: np.ndarray) -> Figure:
    caption = (
        "Pareto k-hat of each datum, the tail shape of its importance weights p(x, z) / q(z | x). Up to "
        f"{KHAT_USABLE} weighted draws of the guide represent the posterior. Above, the guide misses too much of it."
    )
    return Figure(figures.khat(values), caption, f"Histogram. {caption}")


def _weights_of_draws(posterior: xr.Dataset, stats: xr.Dataset, pareto_k: float, chain: int) -> Iterator[Figure]:
    """The tail of the weights of the whole data set, and the weights by the rank of each component."""
    log_weights, smoothed = (stats[name].values[chain] for name in ("log_weight", "log_weight_smoothed"))
    weights = np.exp(smoothed)
    if not np.isfinite(weights).all():
        return
    caption = (
        f"The weights p(x, z) / q(z) of {len(weights)} draws of the guide in chain {chain}. Where the line on the left "
        "is steeper than the dashed line, the mean of the weights depends on rare draws that are not among these. The "
        "dashed line on the right is that of equal weights."
    )
    picture = figures.weight_tail(log_weights, smoothed, pareto_k)
    yield Figure(picture, caption, f"Two line charts. {caption}")
    draws = {name: z[chain].astype(float) for name, z in components(posterior, all_data=True).items()}
    # discrete latents are drawn from their exact conditional posterior: the weights do not depend on them
    draws = {name: z for name, z in draws.items() if np.ptp(z) > 0 and (z != z.round()).any()}
    if not draws:
        return
    shift, log_ratio = moment_shifts(np.stack(list(draws.values()), 1), smoothed)
    largest = np.maximum(np.abs(shift), np.abs(log_ratio))
    shown = np.array(list(draws))[np.argsort(-largest, kind="stable")[:MAX_PANELS]]
    caption = (
        "The weight on each twentieth of the draws, ordered by one component of the latents. It is one everywhere if "
        "the guide's marginal distribution is the posterior's. It is high at both ends if the guide is too narrow, "
        "and increases or decreases if the guide is shifted. Deviations inside the band are noise."
    )
    picture = figures.weights_by_rank({str(name): draws[name] for name in shown}, weights, total=len(draws))
    yield Figure(picture, caption, f"Histograms. {caption}")
