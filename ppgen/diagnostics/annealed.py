"""The evidence of a fit's program from both sides, by annealing from a law made of its guide."""

from typing import TYPE_CHECKING, Any

import torch

from ppgen.diagnostics.importance import resample
from ppgen.diagnostics.reading import on_the_line
from ppgen.diagnostics.versions import group
from ppgen.posterior import Sandwich, Unconstrained, sandwich

if TYPE_CHECKING:
    from ppgen.result import Fit

__all__ = ["annealed_evidence"]

WIDER = 2.0  # the base's deviations beside the guide's, so that paths begin beyond what the guide may miss


def annealed_evidence(fit: "Fit", *data: Any, draws: int = 64, temperatures: int = 100, seed: int = 0) -> Sandwich:
    """Bounds on log p(x) of a program with global latents (see `ppgen.posterior.annealed`).

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
    idata = fit.to_arviz(*data, draws=max(10 * draws, 500), predictive=False, resampled=None, chunk=250, seed=seed)
    posterior, stats = group(idata, "posterior"), group(idata, "sample_stats")
    if posterior is None or stats is None or stats["log_weight_smoothed"].ndim > 2:
        raise ValueError("annealed_evidence: expected a program with a density and global latents alone")
    with fit.evaluating(fit.best):
        target = Unconstrained(fit.model, data)
        u = on_the_line(target, posterior, fit.best)
        root = WIDER * torch.linalg.cholesky(u.T.cov().reshape(target.dim, target.dim))
        rows = resample(stats["log_weight_smoothed"].values[fit.best], size=draws, seed=seed)
        return sandwich(target, u.mean(0), root, posterior=u[rows], draws=draws, temperatures=temperatures, seed=seed)
