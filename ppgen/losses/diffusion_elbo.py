"""The ELBO of a diffusion model, estimated by one random step per datum, and its reweightings.

A chain of T steps (`ppgen.models.Diffusion`) has the negative ELBO

    -log p(x) <= KL(q(z_T | x), p(z_T)) + sum_i E KL(q(z_{i-1} | z_i, x), p(z_{i-1} | z_i)) - E log p(x | z_0).

One random step i per datum, weighted by T, estimates the sum without bias (Sohl-Dickstein et al. 2015,
https://arxiv.org/abs/1503.03585; Ho et al. 2020, https://arxiv.org/abs/2006.11239). Reweighted losses leave out the
first and the last term, and weight the squared error of the denoiser at each noise level,

    1/2 E w(log SNR) |v - E[v | z]|^2.

They are bounds only for some w, but give better samples (Kingma & Gao 2023, https://arxiv.org/abs/2303.00848).
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
    """The weight w of the squared error of E[v | z], and the distribution of noise levels.

    Args:
        weight: w as a function of log SNR and the standard deviation d of the data.
        lognormal: whether noise levels are log-normal; otherwise they come from the model's schedule.
    """

    weight: Callable[[Tensor, float], Tensor]
    lognormal: bool = False


# "simple": Ho et al. 2020, equation 14, the squared error of the noise, https://arxiv.org/abs/2006.11239
# "min_snr": Hang et al. 2023 with gamma = 5, https://arxiv.org/abs/2303.09556
# "edm": Karras et al. 2022, table 1, https://arxiv.org/abs/2206.00364
# "velocity": Liu et al. 2023, the squared error of e - v, https://arxiv.org/abs/2209.03003
WEIGHTINGS: dict[str, Weighting] = {
    "simple": Weighting(lambda log_snr, d: log_snr.exp()),
    "min_snr": Weighting(lambda log_snr, d: log_snr.exp().clamp(max=5.0)),
    "edm": Weighting(lambda log_snr, d: log_snr.exp() + d**-2, lognormal=True),
    "velocity": Weighting(lambda log_snr, d: (1 + (log_snr / 2).exp()).square()),
}


class DiffusionELBO(Term):
    """The NEGATIVE ELBO of a diffusion model by one random step per datum, in nats per datum, or a reweighted loss.

    Args:
        weighting: a key of `WEIGHTINGS`; None for the negative ELBO itself.
        times: a key of `ppgen.diffusion.TIMES`: how the uniform numbers that choose the steps are drawn.
        lognormal: mean and standard deviation of log (noise / (signal d)), for the weighting "edm".

    Raises:
        ValueError: for an unknown weighting or an unknown way of drawing times.
        TypeError: when it is used, if the model is not the method of a diffusion model.
    """

    def __init__(
        self,
        weighting: str | None = None,
        *,
        times: str = "stratified",
        lognormal: tuple[float, float] = (-1.2, 1.2),
    ) -> None:
        super().__init__()
        for option, name, table in (("weighting", weighting, WEIGHTINGS), ("times", times, TIMES)):
            if name is not None and name not in table:
                raise ValueError(f"DiffusionELBO: {option} must be one of {', '.join(map(repr, table))}, got {name!r}")
        self.weighting, self.times, self.lognormal = weighting, times, lognormal

    @property
    def name(self) -> str:
        """The key of the term in a breakdown."""
        return "DiffusionELBO" if self.weighting is None else f"DiffusionLoss({self.weighting})"

    def value(self, traces: Traces) -> Tensor:
        """The loss at random noise levels, one per datum."""
        diffusion: Any = getattr(traces.model, "__self__", None)
        if not all(hasattr(diffusion, method) for method in ("ends", "rate", "error")):
            raise TypeError(
                "DiffusionELBO: the model must be that of a diffusion, such as ppgen.models.Diffusion(...).model, "
                f"got {traces.model!r}; use ELBO() for other programs"
            )
        x = traces.args[0]
        zeros = torch.zeros(len(x), dtype=next(diffusion.parameters()).dtype, device=x.device)
        u = TIMES[self.times](zeros)
        if self.weighting is None:
            return (diffusion.ends(x) + diffusion.rate(u, *traces.args, **traces.kwargs)).mean()
        row = WEIGHTINGS[self.weighting]
        level = self._lognormal(u, diffusion.sigma_data) if row.lognormal else diffusion.schedule(u)
        error = diffusion.error(level, *traces.args, **traces.kwargs)
        return (0.5 * row.weight(level.log_snr, diffusion.sigma_data) * error).mean()

    def _lognormal(self, u: Tensor, sigma_data: float) -> NoiseLevel:
        mean, std = self.lognormal
        normal = math.sqrt(2) * torch.erfinv((2 * u - 1).clamp(-1 + 1e-6, 1 - 1e-6))
        return variance_exploding(sigma_data * (mean + std * normal).exp())

    def __str__(self) -> str:
        return self.name
