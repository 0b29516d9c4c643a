"""The section that compares the evidence lower bound during training with the log evidence."""

import numpy as np
import xarray as xr

from ppgen.report import figures
from ppgen.report.context import FitContext
from ppgen.report.page import Figure, Section

__all__ = ["evidence_bound", "log_evidence"]

NORMAL95 = 1.96


def log_evidence(vi_stats: xr.Dataset | None, chain: int) -> tuple[float, float] | None:
    """Log p(x) of all data by a chain's importance weights, in nats, and its standard error; None without weights.

    Args:
        vi_stats: the group "vi_stats".
        chain: the chain.
    """
    if vi_stats is None or "log_marginal" not in vi_stats or "log_marginal_error" not in vi_stats:
        return None
    value, error = (vi_stats[name].isel(chain=chain).values for name in ("log_marginal", "log_marginal_error"))
    total = float(value.sum()), float(np.sqrt(np.square(error).sum()))
    return total if np.isfinite(total).all() else None


def evidence_bound(context: FitContext) -> Section | None:
    """The evidence lower bound by step, with the log evidence if it is that of the training data; None without both."""
    fit, vi = context.fit, context.group("vi_stats")
    chain = fit.best
    if vi is None or "log_marginal" not in vi or "elbo_trace" not in vi:
        return None
    if not np.isfinite(vi["elbo_trace"].values[chain]).any():
        return None
    size, level = fit.num_data, None
    if (evidence := log_evidence(vi, chain)) is not None and size in (1, _number_of_rows(context)):
        value, half_width = evidence[0] / size, NORMAL95 * evidence[1] / size
        level = value, value - half_width, value + half_width
    unit = "nats per datum" if size > 1 else "nats"
    caption = "The evidence lower bound by step."
    if level is not None:
        caption += (
            " The dashed line is the log evidence by importance weights, with its 95% interval; it is reliable if "
            "k-hat is small. The gap between them is KL(q, p), the error of the guide."
        )
    picture = figures.elbo_trace(vi["elbo_trace"].values, level, best=chain, unit=unit)
    return Section("Evidence lower bound", "", [Figure(picture, caption, f"Line chart. {caption}")])


def _number_of_rows(context: FitContext) -> int:
    """The number of data that the draws belong to."""
    observed = context.group("observed_data")
    sizes = () if observed is None else (value.shape[0] for value in observed.data_vars.values() if value.ndim)
    return max(sizes, default=1)
