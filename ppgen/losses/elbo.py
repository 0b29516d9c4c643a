"""The terms of a loss: where two laws are compared, and by what.

Every term is an average over data, in nats per datum where it is a log density. With N the full size of the plate
"data" (1 for programs without one),

    ELBO()         -1/N E_q[log p(x, z) - log q(z | x)]       the negative ELBO
    Reconstruction()   -1/N E_q[log p(x | z)]                     the distortion
    Rate()              1/N E_q[log q(z | x) - log p(z)]          the KL inside the ELBO
    match(a, b, D)      D(a, b)                                   between two views, by a metric

so that ELBO = Reconstruction + Rate, and ``Reconstruction() + beta * Rate()`` is the beta-VAE.
"""

import copy
import math
import warnings

import torch
from pyro.distributions import Delta
from pyro.distributions.util import scale_and_mask
from pyro.infer import ELBO as PyroELBO
from pyro.infer import RenyiELBO, Trace_ELBO, TraceMeanField_ELBO, TraceTailAdaptive_ELBO
from pyro.poutine import Trace
from torch import Tensor
from torch.distributions import kl_divergence

from ppgen.losses.objective import Objective, Term
from ppgen.losses.path_derivative import log_density_by_path
from ppgen.tracing.programs import DataPlateSize
from ppgen.tracing.sites import (
    Site,
    blocks_gradient,
    check_no_enumeration,
    data_plate_size,
    did_you_mean,
    importance_log_weights,
    is_local,
    is_observed,
    latent_sites,
    sample_sites,
)
from ppgen.tracing.traces import Traces

__all__ = ["ELBO", "Rate", "Reconstruction"]


class ELBO(Term):
    """The negative evidence lower bound, -1/N E_q[log p(x, z) - log q(z | x)], in nats per datum.

    Args:
        elbo: the Pyro ELBO that estimates it: `Trace_ELBO` (default), `TraceMeanField_ELBO` (KL in closed form),
            `TraceEnum_ELBO` (discrete latents summed out) or `RenyiELBO` (alpha = 0: the importance weighted bound
            of Burda et al. 2016; alpha in general: Li & Turner 2016). Times N it is that ELBO's own loss. The Renyi
            bound is taken per datum, without a subsample's scale N / B, if every site lies in the plate "data".
        path_derivative: whether log q moves with the guide's draws alone, and not with its parameters at a draw (see
            `ppgen.losses.path_derivative`): the same gradient on average, and exactly zero where q is the posterior. It runs the guide
            twice a step, which moves batch norm's moments twice. Of `Trace_ELBO` alone: the others' gradients would be
            wrong on average (Tucker et al. 2019 on importance weighted bounds), or have no draw.

    Raises:
        TypeError: for another loss, which has no differentiable value, or no path derivative.
        LookupError: if the guide misses or adds a latent, or leaves one to an enumeration that the ELBO does not do.
    """

    def __init__(self, *, elbo: PyroELBO | None = None, path_derivative: bool = False):
        super().__init__()
        elbo = Trace_ELBO() if elbo is None else elbo
        known = isinstance(elbo, RenyiELBO) or hasattr(elbo, "differentiable_loss")
        if not isinstance(elbo, PyroELBO) or isinstance(elbo, Objective | TraceTailAdaptive_ELBO) or not known:
            raise TypeError(
                f"ELBO: {type(elbo).__name__} is no Pyro ELBO with a differentiable value to add to other terms; "
                "take Trace_ELBO, TraceMeanField_ELBO, TraceEnum_ELBO or RenyiELBO"
            )
        if path_derivative and type(elbo) is not Trace_ELBO:
            raise TypeError(f"ELBO: path_derivative goes with Trace_ELBO, and not with {type(elbo).__name__}")
        self.elbo, self.path_derivative = copy.copy(elbo), path_derivative
        if isinstance(elbo, Trace_ELBO | RenyiELBO):
            self.elbo._get_trace = Traces  # each particle with its checks

    def value(self, draws: Traces) -> Tensor:
        if not isinstance(self.elbo, Trace_ELBO | RenyiELBO):
            return self._by_itself(draws)
        if self.elbo.num_particles == 1:
            particles = [draws]
        else:
            particles = list(self.elbo._get_traces(draws.model, draws.guide, draws.args, draws.kwargs))
        pairs = [particle.with_log_probs for particle in particles]
        if self.path_derivative and torch.is_grad_enabled():
            return self._by_path(particles)
        if isinstance(self.elbo, RenyiELBO):
            return self._renyi(pairs)
        if isinstance(self.elbo, TraceMeanField_ELBO) and not all(_same_order(*pair) for pair in pairs):
            warnings.warn(
                "ELBO(TraceMeanField_ELBO): model and guide draw their latents in different orders, where the KL "
                "in closed form may be wrong; take ELBO()",
                stacklevel=2,
            )
        elbo = copy.copy(self.elbo)
        elbo._get_traces = lambda *_: pairs
        loss = elbo.differentiable_loss(draws.model, draws.guide, *draws.args, **draws.kwargs)
        return loss / data_plate_size(pairs[0][0].nodes.values())

    def _by_path(self, particles: list[Traces]) -> Tensor:
        loss = torch.zeros(())
        for particle in particles:
            model_trace, _ = particle.with_log_probs
            log_p = sum(site["log_prob_sum"] for site in sample_sites(model_trace).values())
            loss = loss + log_density_by_path(particle) - log_p
        return loss / self.elbo.num_particles / particles[0].num_data

    def _by_itself(self, draws: Traces) -> Tensor:
        """An ELBO that runs the programs in a way of its own, enumerating."""
        args = (draws.model, draws.guide, *draws.args)
        with DataPlateSize() as plate:
            if torch.is_grad_enabled():
                loss = self.elbo.differentiable_loss(*args, **draws.kwargs)
            else:  # which that method may refuse
                loss = torch.tensor(self.elbo.loss(*args, **draws.kwargs), dtype=torch.float64)
        return loss / plate.size

    def _renyi(self, pairs: list[tuple[Trace, Trace]]) -> Tensor:
        for pair in pairs:
            _check_reparameterized(*pair, "RenyiELBO")
        log_weights = torch.cat([importance_log_weights(*pair) for pair in pairs])
        order = 1.0 - self.elbo.alpha
        bounds = ((order * log_weights).logsumexp(0) - math.log(len(log_weights))) / order
        return -bounds.mean() if is_local(*pairs[0]) else -bounds.sum() / data_plate_size(pairs[0][0].nodes.values())

    def __str__(self) -> str:
        if self.path_derivative:
            return f"{self.name}(path derivative)"
        return self.name if type(self.elbo) is Trace_ELBO else f"{self.name}({type(self.elbo).__name__})"


class Reconstruction(Term):
    """The reconstruction error -1/N E_q[log p(x | z)], in nats per datum: a mean over the guide's draws.

    Args:
        site: an observed site; all observed sites, and the model's factors, together if left out.

    Raises:
        LookupError: if the model observes no such site, or the guide leaves a latent to enumeration.
        ValueError: for a guide whose draws would hide a gradient.
    """

    def __init__(self, site: str | None = None):
        super().__init__()
        self.site = site

    @property
    def name(self) -> str:
        return f"Reconstruction({self.site})" if self.site else "Reconstruction"

    def value(self, draws: Traces) -> Tensor:
        model_trace, guide_trace = draws.model_trace, draws.guide_trace
        names = [k for k, s in sample_sites(model_trace).items() if is_observed(s)]
        if self.site is not None and self.site not in names:
            raise LookupError(f"{self.name}: the model observes no such site; {did_you_mean(self.site, names)}")
        if not names:
            raise LookupError(f"{self.name}: the model observes no site; give one obs=")
        _check_reparameterized(model_trace, guide_trace, self.name)
        if self.site is not None:
            names = [self.site]
        else:  # with the model's factors, which are part of its likelihood
            names = [k for k, s in sample_sites(model_trace).items() if s["is_observed"]]
        return -sum((_log_prob_sum(model_trace, k) for k in names), torch.zeros(())) / draws.num_data


class Rate(Term):
    """The rate 1/N E_q[log q(z | x) - log p(z)] = 1/N E KL(q(z | x), p(z)), in nats per datum (Alemi et al. 2018).

    In closed form where PyTorch knows the KL and model and guide draw their latents in the same order, otherwise
    from the draw itself.

    Raises:
        LookupError: if the guide leaves a latent to enumeration.
        ValueError: for a guide whose draws would hide a gradient.
    """

    def value(self, draws: Traces) -> Tensor:
        model_trace, guide_trace = draws.model_trace, draws.guide_trace
        _check_reparameterized(model_trace, guide_trace, self.name)
        latent, closed = latent_sites(model_trace), _same_order(model_trace, guide_trace)
        total = torch.zeros(())
        for name, site in sample_sites(guide_trace).items():
            kl = _closed_form(site, latent[name]) if closed and name in latent else None
            if kl is not None:
                total = total + kl
            else:
                total = total + _log_prob_sum(guide_trace, name)
                total = total - (_log_prob_sum(model_trace, name) if name in latent else 0.0)
        return total / draws.num_data


def _log_prob_sum(trace: Trace, name: str) -> Tensor:
    trace.compute_log_prob(lambda site, _: site == name)
    return trace.nodes[name]["log_prob_sum"]


def _same_order(model_trace: Trace, guide_trace: Trace) -> bool:
    """Whether what precedes a latent is the same in both, so that the KL of its two laws there is one of the whole."""
    latent = latent_sites(model_trace)
    return list(latent) == [name for name in latent_sites(guide_trace) if name in latent]


def _closed_form(site: Site, prior: Site) -> Tensor | None:
    """KL(q, p) of one latent, summed over its plates; None where PyTorch does not know it."""
    base = site["fn"]
    while hasattr(base, "base_dist"):
        base = base.base_dist
    if isinstance(base, Delta):  # of an autoguide: Pyro's KL leaves its log_density, a Jacobian, out
        return None
    try:
        kl = torch.as_tensor(kl_divergence(site["fn"], prior["fn"]))
    except NotImplementedError:
        return None
    return scale_and_mask(kl, scale=site["scale"], mask=site["mask"]).sum()


def _check_reparameterized(model_trace: Trace, guide_trace: Trace, term: str) -> None:
    check_no_enumeration(model_trace, guide_trace)
    for name, site in latent_sites(guide_trace).items():
        if blocks_gradient(site):
            raise ValueError(
                f"{term}: the guide's site {name!r} has no rsample, so no gradient would reach its parameters; "
                "take ELBO(), which scores such sites, or ELBO(elbo=TraceEnum_ELBO()), which sums them out"
            )
