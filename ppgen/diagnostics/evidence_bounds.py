"""The evidence of a fit's program from both sides, by annealing from a law made of its guide."""

from typing import Any

import torch

from ppgen.diagnostics.arviz import to_arviz
from ppgen.diagnostics.reading import unconstrained_draws
from ppgen.posterior.annealed_sampling import EvidenceBounds, ais_bounds
from ppgen.posterior.importance import resample
from ppgen.posterior.log_density import UnconstrainedLogDensity
from ppgen.training.result import Fitted
from ppgen.utils.arviz_versions import group

__all__ = ["bidirectional_ais"]

WIDER = 2.0  # the base's deviations beside the guide's, so that paths begin beyond what the guide may miss


def bidirectional_ais(
    fit: Fitted, *data: Any, draws: int = 64, temperatures: int = 100, seed: int = 0
) -> EvidenceBounds:
    """Bounds on log p(x) of a program with global latents (see `ppgen.posterior.annealed_sampling`).

    The base is a Gaussian with the mean and twice the deviations of the guide's draws on the real line. The bound from
    above starts at draws resampled by importance weights: it is one as far as these are draws of the posterior, which
    `Fit.diagnose` says. The bound from below holds for any guide, on average.

    Args:
        data: what the program takes, as of `Fit.to_arviz`.
        draws, temperatures: paths each way, and laws on the way. The gap shrinks as there are more.
        seed: of all random numbers; the caller's state is left as it was.

    Raises:
        ValueError: for programs without continuous latents, or with latents of rows that the guide draws by itself.
    """
    data = fit.tensors(data)
    idata = to_arviz(fit, *data, draws=max(10 * draws, 500), predictive=False, resampled=None, chunk=250, seed=seed)
    posterior, stats = group(idata, "posterior"), group(idata, "sample_stats")
    if posterior is None or stats is None or stats["log_weight_smoothed"].ndim > 2:
        raise ValueError("bidirectional_ais: expected a program with a density and global latents alone")
    with fit.eval_mode(fit.best):
        target = UnconstrainedLogDensity(fit.model, data)
        u = unconstrained_draws(target, posterior, fit.best)
        root = WIDER * torch.linalg.cholesky(u.T.cov().reshape(target.dim, target.dim))
        rows = resample(stats["log_weight_smoothed"].values[fit.best], size=draws, seed=seed)
        return ais_bounds(target, u.mean(0), root, posterior=u[rows], draws=draws, temperatures=temperatures, seed=seed)
