"""Does a guide miss mass of the posterior that its own draws do not reach?

Importance weights describe the posterior only where the guide has drawn. A component with a hundredth of the mass, ten
times as wide, changes no weight and doubles the variance; a distant mode changes neither k-hat nor the moments.
Therefore as many draws come from each of two wider distributions:

    t        Student's t in unconstrained space, 3 degrees of freedom, with the mean and the covariance of the guide
    prior    the program's latents, without its observations

All draws are weighted as draws from the mixture of the guide q and these (multiple importance sampling, Veach & Guibas
1995, https://doi.org/10.1145/218380.218498; Owen & Zhou 2000, https://doi.org/10.1080/01621459.2000.10473909):

    w_k = p(x, u_k) / (q(u_k) + t(u_k) + prior(u_k))

which is bounded where one of them falls no faster than the posterior; the prior never does if the likelihood is
bounded. With these weights

    missed_mass        1 - Z_q / Z     share of the posterior's mass that the guide's own draws do not find
    shift, log_ratio                   distance of the posterior's moments from those of the guide's unweighted draws

In many dimensions neither of the two may have a draw where the posterior is; then they show nothing.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ppgen.diagnostics.proposals import Proposal
from ppgen.posterior.importance import importance_summary, largest_moment_shifts, moment_shifts
from ppgen.posterior.log_density import UnconstrainedLogDensity

__all__ = ["TailCheck", "check_tails"]


@dataclass(frozen=True)
class TailCheck:
    """What draws from several distributions show together.

    Attributes:
        ess: Kish's effective sample size of all draws.
        pareto_k: k-hat of their weights.
        missed_mass: the share of the posterior's mass that the guide's draws do not find.
        error: the standard error of that share.
        moment_shifts: the largest `shift` and `log_ratio` of the latents.
        certain_shifts: the largest of what is left of them after twice their standard errors. If a latent has no
            variance, these errors are large.
        location: the latents at the draw of largest weight, which lies where mass is missed if it is.
    """

    ess: float
    pareto_k: float
    missed_mass: float
    error: float
    moment_shifts: dict[str, float]
    certain_shifts: dict[str, float]
    location: dict[str, Tensor]


def check_tails(
    target: UnconstrainedLogDensity,
    u: Tensor,
    log_evidence: float,
    error: float,
    proposals: Sequence[Proposal],
    known: Tensor | None = None,
) -> TailCheck | None:
    """Compares a guide's draws with draws from several distributions.

    Args:
        target: the program's unconstrained log density on the data.
        u: draws (S, dim) of the guide in unconstrained space.
        log_evidence: the log evidence by the guide's importance weights, in nats.
        error: its standard error.
        proposals: the distributions, with the guide among them if its density is available.
        known: log p at the draws of the first of them, if it is known.

    Returns:
        The comparison; None if no draw has a density.
    """
    points = torch.cat([proposal.u for proposal in proposals])
    points = points[inside := points.isfinite().all(1)]  # a draw of the prior may be at a bound, to rounding
    sizes = [len(proposal.u) for proposal in proposals]
    log_p = points.new_zeros(0) if known is None else known[inside[: len(known)]]
    log_p = torch.cat([log_p, target.log_prob(points[len(log_p) :])])
    log_weights = torch.full((len(inside),), -torch.inf, dtype=torch.float64)
    log_weights[inside] = log_p - _log_mixture(proposals, points)
    if not log_weights.max().isfinite():
        return None
    summary = importance_summary(log_weights[:, None].numpy())
    log_total = float(summary.log_marginal[0])
    parts = (log_weights - log_total).exp().split(sizes)  # of each distribution: draws are stratified
    variance = sum(len(part) * float(part.var()) for part in parts) / len(log_weights) ** 2
    share = math.exp(min(0.0, log_evidence - log_total))
    smoothed = summary.log_smoothed[inside.numpy(), 0]
    positive = np.exp(smoothed) > 0  # a point of weight zero may be so far out that a latent is not finite there
    latents, own = target.constrain(points), target.constrain(u)
    pairs = [(own[name].numpy(), value.numpy()[positive]) for name, value in latents.items()]
    return TailCheck(
        ess=float(summary.ess[0]),
        pareto_k=float(summary.pareto_k[0]),
        missed_mass=1 - share,
        error=share * math.hypot(error, math.sqrt(variance)),
        moment_shifts=largest_moment_shifts(pairs, smoothed[positive]),
        certain_shifts=_certain_shifts(pairs, smoothed[positive]),
        location={name: value[int(smoothed.argmax())] for name, value in latents.items()},
    )


def _log_mixture(proposals: Sequence[Proposal], points: Tensor) -> Tensor:
    """The log density (m,) of the mixture of all distributions, by their numbers of draws, at points (m, dim)."""
    sizes = torch.tensor([len(proposal.u) for proposal in proposals], dtype=torch.float64)
    with torch.no_grad():
        log_prob = torch.stack([proposal.log_prob(points).double() for proposal in proposals], -1)
    return (log_prob.nan_to_num(nan=-torch.inf) + (sizes / sizes.sum()).log()).logsumexp(-1)


def _certain_shifts(pairs: Iterable[tuple[np.ndarray, np.ndarray]], log_weights: np.ndarray) -> dict[str, float]:
    """The largest absolute `shift` and `log_ratio` of several latents, each less twice its standard error.

    Args:
        pairs: for each latent, the guide's draws (S, ...) and the weighted draws (M, ...).
        log_weights: normalized, (M,).
    """
    largest = {"shift": 0.0, "log_ratio": 0.0}
    weights = np.exp(log_weights)
    for z, among in pairs:
        z, among = z.reshape(len(z), -1), among.reshape(len(among), -1)
        square = (among - weights @ among) ** 2
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            square = square / (weights @ square)
            errors = np.sqrt(weights**2 @ square), np.sqrt(weights**2 @ (square - 1) ** 2) / 2
        for name, value, error in zip(largest, moment_shifts(z, log_weights, among=among), errors, strict=True):
            largest[name] = max(largest[name], float(np.nanmax(np.abs(value) - 2 * error, initial=0.0)))
    return largest
