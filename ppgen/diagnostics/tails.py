"""Does a guide with almost equal importance weights miss mass in the tails of the posterior?

k-hat is the shape of the weights' tail, whatever its size. A Gaussian guide has a large k-hat if the posterior falls
exponentially, even if there is almost no mass in the tails. Almost equal weights do not show that there is none,
because draws from the guide do not get there: a component with a hundredth of the mass, ten times as wide, changes no
weight and doubles the variance. Therefore as many draws come from a wider distribution t, Student's t in unconstrained
space with 3 degrees of freedom, the guide's mean, and the guide's covariance as scale. All draws are weighted as draws
from the mixture of q and t (multiple importance sampling, Veach & Guibas 1995, https://doi.org/10.1145/218380.218498;
Owen & Zhou 2000, https://doi.org/10.1080/01621459.2000.10473909):

    w_k = p(x, u_k) / ((q(u_k) + t(u_k)) / 2)        which is bounded if p falls no slower than t

With these weights

    missed_mass        1 - Z_q / Z     share of the posterior's mass that the guide's own draws do not find
    shift, log_ratio                   distance of the posterior's moments from those of the guide's unweighted draws
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from pyro.distributions import MultivariateStudentT
from pyro.infer.autoguide import AutoContinuous
from torch import Tensor
from torch.distributions import biject_to

from ppgen.posterior.importance import importance_summary, largest_moment_shifts
from ppgen.posterior.log_density import UnconstrainedLogDensity
from ppgen.tracing.sites import Program

__all__ = ["TailCheck", "check_tails"]

DEGREES_OF_FREEDOM = 3


@dataclass(frozen=True)
class TailCheck:
    """What draws from the guide and from the wider distribution show together.

    Attributes:
        ess: Kish's effective sample size of all draws.
        missed_mass: the share of the posterior's mass that the guide's draws do not find.
        moment_shifts: the largest `shift` and `log_ratio` of the latents.
    """

    ess: float
    missed_mass: float
    moment_shifts: dict[str, float]


def check_tails(
    target: UnconstrainedLogDensity, guide: Program, u: Tensor, generator: torch.Generator
) -> TailCheck | None:
    """Compares a guide's draws with draws from a wider distribution.

    Args:
        target: the program's unconstrained log density on the data.
        guide: the guide: one of Pyro's autoguides of all latents together, which has been run on the data.
        u: draws (S, dim) of the guide in unconstrained space.
        generator: the source of random numbers.

    Returns:
        The comparison; None if the guide's density is not available at other points.
    """
    covariance = torch.atleast_2d(u.mT.cov())
    root, failed = torch.linalg.cholesky_ex(covariance)
    if not isinstance(guide, AutoContinuous) or failed or not u.isfinite().all() or not _has_points(guide, target, u):
        return None
    noise = torch.randn(len(u), u.shape[1] + DEGREES_OF_FREEDOM, generator=generator, dtype=u.dtype)
    scale = (noise[:, -DEGREES_OF_FREEDOM:].square().mean(1)).rsqrt()
    points = torch.cat([u, u.mean(0) + scale[:, None] * noise[:, :-DEGREES_OF_FREEDOM] @ root.mT])
    with torch.no_grad():
        student_t = MultivariateStudentT(torch.tensor(float(DEGREES_OF_FREEDOM)).to(u), u.mean(0), root)
        log_t = student_t.log_prob(points)
        dtype = next(iter(guide.parameters())).dtype
        log_q = guide.get_posterior(*target.args).log_prob(points.to(dtype)).to(u)
        log_p = target.log_prob(points)
        latents = target.constrain(points)
    summary = importance_summary((log_p - torch.logaddexp(log_q, log_t) + math.log(2))[:, None].numpy())
    log_guide_mass = importance_summary((log_p - log_q)[: len(u), None].numpy()).log_marginal
    log_weights = summary.log_smoothed[:, 0]
    positive = np.exp(log_weights) > 0  # a point of weight zero may be so far out that a latent is not finite there
    if not positive.any():
        return None
    pairs = ((z[: len(u)], z[positive]) for z in (value.numpy() for value in latents.values()))
    return TailCheck(
        ess=float(summary.ess[0]),
        missed_mass=1 - math.exp(min(0.0, float(log_guide_mass[0] - summary.log_marginal[0]))),
        moment_shifts=largest_moment_shifts(pairs, log_weights[positive]),
    )


def _has_points(guide: AutoContinuous, target: UnconstrainedLogDensity, u: Tensor) -> bool:
    """Whether the guide's points u are those of the target, which maps a latent to the support that it has there.

    Pyro's autoguides map it to the support of their first run.
    """
    dtype = next(iter(guide.parameters())).dtype
    latents = target.constrain(u[0])
    with torch.no_grad():
        pairs = [(s, biject_to(s["fn"].support)(part)) for s, part in guide._unpack_latent(u[0].to(dtype))]
    return all(torch.allclose(value.to(u), latents[site["name"]], rtol=1e-3, atol=1e-6) for site, value in pairs)
