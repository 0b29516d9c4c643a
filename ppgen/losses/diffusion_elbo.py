"""The evidence of a chain by one random step of it, and its reweightings.

A chain of T steps (`ppgen.models.Diffusion`) has the negative evidence

    -log p(x) <= KL(q(z_T | x), p(z_T)) + sum_i E KL(q(z_{i-1} | z_i, x), p(z_{i-1} | z_i)) - E log p(x | z_0).

One step i for each datum, drawn at random and weighed by T, estimates the sum without bias (Sohl-Dickstein et al. 2015;
Ho et al. 2020). Reweighted losses leave the ends out and weigh the error of the denoiser at each noise level,

    1/2 E w(log SNR) |v - E[v | z]|^2,

which is no bound unless w falls as the evidence's does, but draws better samples.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ppgen.diffusion import TIMES, NoiseLevel, variance_exploding
from ppgen.losses.objective import Term
from ppgen.tracing.traces import Traces

__all__ = ["WEIGHTINGS", "DiffusionELBO"]


class Weighting(NamedTuple):
    """w, of log SNR and the data's deviation d, on the squared error of E[v | z]; and the law of levels."""

    weight: Callable[[Tensor, float], Tensor]
    lognormal: bool = False


# "simple": Ho et al. 2020, equation 14, the squared error of the noise; "min_snr": Hang et al. 2023, gamma = 5; "edm":
# Karras et al. 2022, table 1; "velocity": Liu et al. 2023, the squared error of e - v
WEIGHTINGS: dict[str, Weighting] = {
    "simple": Weighting(lambda log_snr, d: log_snr.exp()),
    "min_snr": Weighting(lambda log_snr, d: log_snr.exp().clamp(max=5.0)),
    "edm": Weighting(lambda log_snr, d: log_snr.exp() + d**-2, lognormal=True),
    "velocity": Weighting(lambda log_snr, d: (1 + (log_snr / 2).exp()).square()),
}


class DiffusionELBO(Term):
    """The negative evidence of a chain by one random step for each datum, in nats per datum, or a reweighted loss.

    Args:
        weighting: a row of `WEIGHTINGS`; None for the evidence itself.
        times: a row of `ppgen.diffusion.TIMES`: how the uniform numbers that choose the steps are drawn.
        lognormal: mean and deviation of the normal law of log (noise / (signal d)), for the weighting "edm".

    Raises:
        ValueError: for an unknown row.
        TypeError: when it is used, if the model is not the method of a chain.
    """

    def __init__(
        self,
        weighting: str | None = None,
        *,
        times: str = "stratified",
        lognormal: tuple[float, float] = (-1.2, 1.2),
    ):
        super().__init__()
        for option, name, table in (("weighting", weighting, WEIGHTINGS), ("times", times, TIMES)):
            if name is not None and name not in table:
                raise ValueError(f"DiffusionELBO: {option} is one of {', '.join(map(repr, table))}, got {name!r}")
        self.weighting, self.times, self.lognormal = weighting, times, lognormal

    @property
    def name(self) -> str:
        return "DiffusionELBO" if self.weighting is None else f"StepwiseError({self.weighting})"

    def value(self, draws: Traces) -> Tensor:
        chain: Any = getattr(draws.model, "__self__", None)
        if not all(hasattr(chain, method) for method in ("ends", "rate", "error")):
            raise TypeError(
                "DiffusionELBO: the model is to be a chain's, such as ppgen.models.Diffusion(...).model, "
                f"got {draws.model!r}; ELBO() serves every other program"
            )
        x = draws.args[0]
        zeros = torch.zeros(len(x), dtype=next(chain.parameters()).dtype, device=x.device)
        u = TIMES[self.times](zeros)
        if self.weighting is None:
            return (chain.ends(x) + chain.rate(u, *draws.args, **draws.kwargs)).mean()
        row = WEIGHTINGS[self.weighting]
        level = self._lognormal(u, chain.sigma_data) if row.lognormal else chain.schedule(u)
        error = chain.error(level, *draws.args, **draws.kwargs)
        return (0.5 * row.weight(level.log_snr, chain.sigma_data) * error).mean()

    def _lognormal(self, u: Tensor, sigma_data: float) -> NoiseLevel:
        mean, std = self.lognormal
        normal = math.sqrt(2) * torch.erfinv((2 * u - 1).clamp(-1 + 1e-6, 1 - 1e-6))
        return variance_exploding(sigma_data * (mean + std * normal).exp())

    def __str__(self) -> str:
        return self.name
