"""Bounds on the evidence of a fitted program, by annealing from a widened Gaussian fit of its guide."""

from typing import Any

import numpy as np
import torch

from ppgen.diagnostics.arviz import to_arviz
from ppgen.diagnostics.chain_groups import draws_at_a_time
from ppgen.diagnostics.reading import unconstrained_draws
from ppgen.posterior.annealed_sampling import EvidenceBounds, ais_bounds
from ppgen.posterior.importance import resample
from ppgen.posterior.log_density import UnconstrainedLogDensity
from ppgen.tracing.loss_scales import without_loss_scales
from ppgen.tracing.traces import Traces
from ppgen.training.result import Fitted
from ppgen.utils.arviz_versions import group

__all__ = ["bidirectional_ais"]

WIDENING = 2.0  # of the guide's standard deviations, so that paths start beyond what the guide may miss
MIN_GUIDE_DRAWS, CHUNK = 500, 250  # draws of the guide, and at most so many at a time


def bidirectional_ais(
    fit: Fitted, *data: Any, draws: int = 64, temperatures: int = 100, seed: int = 0
) -> EvidenceBounds:
    """Bounds log p(x) of a program with global latents from both sides (see `ppgen.posterior.annealed_sampling`).

    The base is a Gaussian with the mean and twice the standard deviations of the guide's draws in unconstrained space.
    The upper bound starts at draws that are resampled by their importance weights. It is valid as far as these are
    draws of the posterior; see `ppgen.diagnostics.diagnose`. The lower bound is valid, on average, for any guide.

    Args:
        fit: the fit.
        *data: the arguments of the programs, as for `ppgen.diagnostics.to_arviz`.
        draws: the number of paths in each direction.
        temperatures: the number of intermediate distributions; more of them tighten the bounds.
        seed: of all random numbers; the caller's random state does not change.

    Returns:
        The bounds, in nats.

    Raises:
        ValueError: for programs without continuous latents or a density, or with latents for each row.
    """
    data = fit.tensors(data)
    size = fit.stored_draws or max(10 * draws, MIN_GUIDE_DRAWS)
    chunk = draws_at_a_time(data, CHUNK)
    idata = to_arviz(fit, *data, draws=size, predictive=False, resampled=None, chunk=chunk, likelihood=False, seed=seed)
    posterior, stats = group(idata, "posterior"), group(idata, "sample_stats")
    if posterior is None or stats is None or stats["lp"].ndim > 2:
        raise ValueError("bidirectional_ais: expected a program with a density and only global latents")
    with fit.eval_mode(fit.best):
        traces = without_loss_scales(Traces(fit.model, fit.guide, data, use_all_rows=True))
        target = UnconstrainedLogDensity(traces.model, data)
        u = unconstrained_draws(target, posterior, fit.best)
        root = WIDENING * torch.linalg.cholesky(u.T.cov().reshape(target.dim, target.dim))
        log_weights = np.zeros(size) if fit.stored_draws else stats["log_weight_smoothed"].values[fit.best]
        rows = resample(log_weights, size=draws, seed=seed)
        return ais_bounds(target, u.mean(0), root, posterior=u[rows], draws=draws, temperatures=temperatures, seed=seed)
