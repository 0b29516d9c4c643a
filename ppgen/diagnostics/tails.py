"""Whether a guide whose weights are all but equal leaves out anything that counts.

k-hat is the shape of the weights' tail, whatever its size: a Gaussian guide of a density that falls exponentially has a
large one, though next to nothing lies out there. That nothing does, equal weights cannot say: draws of the guide do not
get there, and a hundredth of the mass in a law ten times as wide changes none of them, though it doubles the variance.
As many are made of a wider law t, Student's on the real line with 3 degrees of freedom, the guide's mean and its
covariance as scale, and both are weighed as draws of their mixture (Veach & Guibas 1995; Owen & Zhou 2000):

    w_k = p(x, u_k) / ((q(u_k) + t(u_k)) / 2)        which stay small where p falls no slower than t

By these weights

    unseen      1 - Z_q / Z        the share of the posterior's mass that the guide's own draws do not find
    shift, log_ratio               how far the posterior's moments are from those of the guide's draws, without weights
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from pyro.distributions import MultivariateStudentT
from pyro.infer.autoguide import AutoContinuous
from torch import Tensor

from ppgen.posterior.importance import importance_summary, most_moved
from ppgen.posterior.log_density import UnconstrainedLogDensity
from ppgen.tracing.sites import Program

__all__ = ["Tails", "look_beyond"]

FREEDOM = 3


@dataclass(frozen=True)
class Tails:
    """What the draws of guide and wider law together say, as the module has it.

    Attributes:
        effective: how many of all draws are, Kish's number.
        unseen: a share.
        moments: the largest `shift` and `log_ratio` of all latents.
    """

    effective: float
    unseen: float
    moments: dict[str, float]


def look_beyond(target: UnconstrainedLogDensity, guide: Program, u: Tensor, generator: torch.Generator) -> Tails | None:
    """The tails of a guide from draws u (S, dim) of it; None for one whose density elsewhere is not to be had.

    Args:
        target: the program's density on the data.
        guide: one of Pyro's autoguides of all latents together, which has met its data.
    """
    covariance = torch.atleast_2d(u.mT.cov())
    root, failed = torch.linalg.cholesky_ex(covariance)
    if not isinstance(guide, AutoContinuous) or failed or not u.isfinite().all():
        return None
    noise = torch.randn(len(u), u.shape[1] + FREEDOM, generator=generator, dtype=u.dtype)
    scale = (noise[:, -FREEDOM:].square().mean(1)).rsqrt()
    points = torch.cat([u, u.mean(0) + scale[:, None] * noise[:, :-FREEDOM] @ root.mT])
    with torch.no_grad():
        wide = MultivariateStudentT(torch.tensor(float(FREEDOM)).to(u), u.mean(0), root).log_prob(points)
        own = next(iter(guide.parameters())).dtype
        log_q = guide.get_posterior(*target.args).log_prob(points.to(own)).to(u)
        log_p = target.log_prob(points)
        values = target.constrain(points)
    found = importance_summary((log_p - torch.logaddexp(log_q, wide) + math.log(2))[:, None].numpy())
    own_mass = importance_summary((log_p - log_q)[: len(u), None].numpy()).log_marginal
    weights = found.log_smoothed[:, 0]
    reached = np.exp(weights) > 0  # without a weight, a point far out may be no number off the line
    if not reached.any():
        return None
    pairs = ((z[: len(u)], z[reached]) for z in (value.numpy() for value in values.values()))
    return Tails(
        effective=float(found.effective[0]),
        unseen=1 - math.exp(min(0.0, float(own_mass[0] - found.log_marginal[0]))),
        moments=most_moved(pairs, weights[reached]),
    )
