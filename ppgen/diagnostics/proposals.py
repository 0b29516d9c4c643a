"""Distributions to search the posterior with, in unconstrained space: the guide, a wider one, and the prior."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from pyro import poutine
from pyro.distributions import MultivariateStudentT, Normal
from pyro.infer.autoguide import AutoContinuous, AutoNormal
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import biject_to

from ppgen.posterior.log_density import UnconstrainedLogDensity, latents_only
from ppgen.tracing.double_precision import DoublePrecision, ProgramInContext
from ppgen.tracing.particles import particle_traces
from ppgen.tracing.sites import Program, Site, latent_sites

__all__ = ["NO_DENSITY", "Proposal", "guide_proposal", "has_points", "prior_proposal", "student_t_proposal"]

DEGREES_OF_FREEDOM = 3
CHUNK = 250  # draws of the prior that are made at a time
NO_DENSITY = ValueError, RuntimeError, FloatingPointError, NotImplementedError  # of programs that have none, or no mode


@dataclass(frozen=True)
class Proposal:
    """A distribution in unconstrained space.

    Attributes:
        u: draws, (n, dim).
        log_prob: the function from points (m, dim) to its log density (m,), in nats.
        density: the same with gradients, if it is that of a program.
    """

    u: Tensor
    log_prob: Callable[[Tensor], Tensor]
    density: UnconstrainedLogDensity | None = None


def guide_proposal(target: UnconstrainedLogDensity, guide: Program, u: Tensor) -> Proposal | None:
    """The guide, if its density is available at points other than its own draws, as that of Pyro's autoguides is.

    Args:
        target: the program's unconstrained log density.
        guide: the guide, which has been run on the data.
        u: draws of the guide, (n, dim).
    """
    if isinstance(guide, AutoContinuous | AutoNormal) and not has_points(guide, target, u):
        return None
    if isinstance(guide, AutoContinuous):
        distribution = guide.get_posterior(*target.args)
    elif isinstance(guide, AutoNormal):
        loc, scale = (
            torch.cat([getattr(part, name).flatten() for name in target.shapes]) for part in (guide.locs, guide.scales)
        )
        distribution = Normal(loc, scale).to_event(1)
    else:
        return None
    dtype = next(iter(guide.parameters())).dtype
    return Proposal(u, lambda points: distribution.log_prob(points.to(dtype)).to(points))


def has_points(guide: AutoContinuous | AutoNormal, target: UnconstrainedLogDensity, u: Tensor) -> bool:
    """Whether the guide's points u are those of the target, which maps a latent to the support that it has there.

    Pyro's autoguides map it to the support of their first run.

    Args:
        guide: the guide, which has been run on the data.
        target: the program's unconstrained log density.
        u: draws of the guide, (n, dim).
    """
    point, latents = u[0].to(next(iter(guide.parameters())).dtype), target.constrain(u[0])
    if isinstance(guide, AutoContinuous):
        with torch.no_grad():
            values = {s["name"]: biject_to(s["fn"].support)(part) for s, part in guide._unpack_latent(point)}
    else:
        parts = point.split([shape.numel() for shape in target.shapes.values()])
        values = {
            name: biject_to(guide.prototype_trace.nodes[name]["fn"].support)(part.reshape(shape))
            for (name, shape), part in zip(target.shapes.items(), parts, strict=True)
        }
    return all(torch.allclose(value.to(u), latents[name], rtol=1e-3, atol=1e-6) for name, value in values.items())


def student_t_proposal(u: Tensor, generator: torch.Generator) -> Proposal | None:
    """Student's t with 3 degrees of freedom and the mean and covariance of draws; None if the covariance is singular.

    Args:
        u: the draws, (n, dim), of which as many are made.
        generator: the source of random numbers.
    """
    root, failed = torch.linalg.cholesky_ex(torch.atleast_2d(u.mT.cov()))
    if failed or not u.isfinite().all():
        return None
    noise = torch.randn(len(u), u.shape[1] + DEGREES_OF_FREEDOM, generator=generator, dtype=u.dtype)
    scale = (noise[:, -DEGREES_OF_FREEDOM:].square().mean(1)).rsqrt()
    degrees = torch.tensor(float(DEGREES_OF_FREEDOM)).to(u)
    return Proposal(
        u.mean(0) + scale[:, None] * noise[:, :-DEGREES_OF_FREEDOM] @ root.mT,
        MultivariateStudentT(degrees, u.mean(0), root).log_prob,
    )


def prior_proposal(target: UnconstrainedLogDensity, draws: int, generator: torch.Generator) -> Proposal | None:
    """The program's latents, without its observations and factors.

    Args:
        target: the program's unconstrained log density.
        draws: how many draws to make.
        generator: the source of random numbers.

    Returns:
        The proposal; None if the prior is improper or has no density.
    """
    model = _MaskObservations()(_LatentsOnly(DoublePrecision(target.model)))
    prior = poutine.block(model, hide_fn=_is_observed)
    try:
        density = UnconstrainedLogDensity(model, target.args)
        with torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(int(torch.randint(2**31, (), generator=generator)))
            parts = [
                latent_sites(traces.guide_trace)
                for start in range(0, draws, CHUNK)
                for traces in particle_traces(
                    model, prior, target.args, particles=min(CHUNK, draws - start), report=False
                )
            ]
        values = {
            name: torch.cat([part[name]["value"].reshape(-1, *shape) for part in parts])
            for name, shape in target.value_shapes.items()
        }
        u = target.unconstrain(values)
    except NO_DENSITY:
        return None
    return Proposal(u, density.log_prob, density)


class _LatentsOnly(ProgramInContext):
    """A program of which only the latents are asked for."""

    context = staticmethod(latents_only)


class _MaskObservations(Messenger):
    """Leaves out the likelihood but not its sites, whose plates and enumerated latents need them."""

    def _pyro_sample(self, msg: Site) -> None:
        if msg["is_observed"]:
            msg["mask"] = False


def _is_observed(site: Site) -> bool:
    return site["type"] == "sample" and site["is_observed"]
