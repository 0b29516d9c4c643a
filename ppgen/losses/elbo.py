"""The negative ELBO and its two parts, as terms of a loss.

Every term is an average over data, in nats per datum where it is a log density. With N the full size of the plate
"data" (1 for programs without it),

    ELBO()             -1/N E_q[log p(x, z) - log q(z | x)]       the NEGATIVE evidence lower bound, a loss
    Reconstruction()   -1/N E_q[log p(x | z)]                     the distortion
    Rate()              1/N E_q[log q(z | x) - log p(z)]          the KL divergence inside the ELBO
    match(a, b, D)      D(a, b)                                   a metric between two views (`ppgen.losses.match`)

so that ELBO() = Reconstruction() + Rate(), and ``Reconstruction() + beta * Rate()`` is the loss of a beta-VAE.
"""

import copy
import math

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
from ppgen.utils.user_warnings import warn_user

__all__ = ["ELBO", "Rate", "Reconstruction"]


class ELBO(Term):
    """The NEGATIVE evidence lower bound, -1/N E_q[log p(x, z) - log q(z | x)], in nats per datum: a loss to minimize.

    Its value is minus the bound, as the loss of Pyro's `Trace_ELBO` is, divided by N.

    Args:
        elbo: the Pyro ELBO that estimates it: `Trace_ELBO` (default), `TraceMeanField_ELBO` (KL in closed form),
            `TraceEnum_ELBO` (discrete latents summed out) or `RenyiELBO` (alpha = 0: the importance weighted bound of
            Burda et al. 2016, https://arxiv.org/abs/1509.00519; any alpha: Li & Turner 2016,
            https://arxiv.org/abs/1602.02311). The Renyi bound is computed per datum, without a subsample's scale N / B,
            if every site is in the plate "data".
        path_derivative: whether the gradient of log q is that of the traces alone, without the score (see
            `ppgen.losses.path_derivative`). It has the same mean, and is exactly zero where q is the posterior. It runs
            the guide twice a step, which updates the statistics of batch norm twice. It needs `Trace_ELBO`: with the
            others the gradient would be biased (Tucker et al. 2019, https://arxiv.org/abs/1810.04152) or undefined.

    Raises:
        TypeError: for another loss, which has no differentiable value, or no path derivative.
        LookupError: if the guide misses or adds a latent, or leaves one to an enumeration that the ELBO does not do.

    Example:
        >>> import pyro
        >>> import pyro.distributions as dist
        >>> import torch
        >>> import ppgen
        >>> def model():
        ...     z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...     pyro.sample("x", dist.Normal(z, 1.0), obs=torch.tensor(1.0))
        >>> def posterior():
        ...     pyro.sample("z", dist.Normal(0.5, 0.5**0.5))
        >>> round(ppgen.ELBO().loss(model, posterior), 3)  # -log p(x), since the bound is tight
        1.516
    """

    def __init__(self, *, elbo: PyroELBO | None = None, path_derivative: bool = False) -> None:
        super().__init__()
        elbo = Trace_ELBO() if elbo is None else elbo
        known = isinstance(elbo, RenyiELBO) or hasattr(elbo, "differentiable_loss")
        if not isinstance(elbo, PyroELBO) or isinstance(elbo, Objective | TraceTailAdaptive_ELBO) or not known:
            raise TypeError(
                f"ELBO: {type(elbo).__name__} is not a Pyro ELBO with a differentiable value to add to other terms; "
                "use Trace_ELBO, TraceMeanField_ELBO, TraceEnum_ELBO or RenyiELBO"
            )
        if path_derivative and type(elbo) is not Trace_ELBO:
            raise TypeError(f"ELBO: path_derivative needs Trace_ELBO, got {type(elbo).__name__}")
        self.elbo, self.path_derivative = copy.copy(elbo), path_derivative
        if isinstance(elbo, Trace_ELBO | RenyiELBO):
            self.elbo._get_trace = Traces  # which check each particle

    def value(self, traces: Traces) -> Tensor:
        """The negative ELBO on one run of the programs, or on the particles of `elbo`."""
        if not isinstance(self.elbo, Trace_ELBO | RenyiELBO):
            return self._by_enumeration(traces)
        if self.elbo.num_particles == 1:
            particles = [traces]
        else:
            particles = list(self.elbo._get_traces(traces.model, traces.guide, traces.args, traces.kwargs))
        pairs = [particle.with_log_probs for particle in particles]
        if self.path_derivative and torch.is_grad_enabled():
            return self._by_path(particles)
        if isinstance(self.elbo, RenyiELBO):
            return self._renyi(pairs)
        if isinstance(self.elbo, TraceMeanField_ELBO) and not all(_same_order(*pair) for pair in pairs):
            warn_user(
                "ELBO(TraceMeanField_ELBO): model and guide sample their latents in different orders, where the KL "
                "in closed form may be wrong; use ELBO()"
            )
        elbo = copy.copy(self.elbo)
        elbo._get_traces = lambda *_: pairs
        loss = elbo.differentiable_loss(traces.model, traces.guide, *traces.args, **traces.kwargs)
        return loss / data_plate_size(pairs[0][0].nodes.values())

    def _by_path(self, particles: list[Traces]) -> Tensor:
        """The value with the path derivative as its gradient."""
        loss = torch.zeros(())
        for particle in particles:
            model_trace, _ = particle.with_log_probs
            log_p = sum(site["log_prob_sum"] for site in sample_sites(model_trace).values())
            loss = loss + log_density_by_path(particle) - log_p
        return loss / self.elbo.num_particles / particles[0].num_data

    def _by_enumeration(self, traces: Traces) -> Tensor:
        """The value of an ELBO that runs the programs itself, since it enumerates."""
        args = (traces.model, traces.guide, *traces.args)
        with DataPlateSize() as plate:
            if torch.is_grad_enabled():
                loss = self.elbo.differentiable_loss(*args, **traces.kwargs)
            else:  # differentiable_loss may need gradients
                loss = torch.tensor(self.elbo.loss(*args, **traces.kwargs), dtype=torch.float64)
        return loss / plate.size

    def _renyi(self, pairs: list[tuple[Trace, Trace]]) -> Tensor:
        """Minus the Renyi bound of the particles."""
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
    """The reconstruction error -1/N E_q[log p(x | z)], in nats per datum.

    Args:
        site: an observed site; if left out, all observed sites together, and the factors of the model.

    Raises:
        LookupError: if the model does not observe the site, or the guide leaves a latent to enumeration.
        ValueError: if a latent of the guide has no `rsample`, so that no gradient would reach its parameters.

    Example:
        >>> import torch
        >>> import ppgen
        >>> vae = ppgen.models.VAE((3,), latent_dim=2, hidden=(8,))
        >>> loss = ppgen.Reconstruction() + 4 * ppgen.Rate()
        >>> list(loss.breakdown(vae.model, vae.guide, torch.randn(20, 3)))
        ['Reconstruction', 'Rate']
    """

    def __init__(self, site: str | None = None) -> None:
        super().__init__()
        self.site = site

    @property
    def name(self) -> str:
        """The key of the term in a breakdown, with the site."""
        return f"Reconstruction({self.site})" if self.site else "Reconstruction"

    def value(self, traces: Traces) -> Tensor:
        """The reconstruction error on one run of the programs."""
        model_trace, guide_trace = traces.model_trace, traces.guide_trace
        names = [k for k, s in sample_sites(model_trace).items() if is_observed(s)]
        if self.site is not None and self.site not in names:
            raise LookupError(f"{self.name}: the model does not observe this site; {did_you_mean(self.site, names)}")
        if not names:
            raise LookupError(f"{self.name}: the model observes no site; give one of its sites obs=")
        _check_reparameterized(model_trace, guide_trace, self.name)
        if self.site is not None:
            names = [self.site]
        else:  # factors are part of the likelihood
            names = [k for k, s in sample_sites(model_trace).items() if s["is_observed"]]
        return -sum((_log_prob_sum(model_trace, k) for k in names), torch.zeros(())) / traces.num_data


class Rate(Term):
    """The rate 1/N E_q[log q(z | x) - log p(z)], in nats per datum: the mean of KL(q(z | x), p(z)).

    The KL is computed in closed form where PyTorch has it and model and guide sample their latents in the same order,
    otherwise from the draw. The name is that of Alemi et al. 2018, https://arxiv.org/abs/1711.00464.

    Raises:
        LookupError: if the guide leaves a latent to enumeration.
        ValueError: if a latent of the guide has no `rsample`, so that no gradient would reach its parameters.

    Example:
        >>> import pyro
        >>> import pyro.distributions as dist
        >>> import ppgen
        >>> def model():
        ...     pyro.sample("z", dist.Normal(0.0, 1.0))
        >>> def guide():
        ...     pyro.sample("z", dist.Normal(1.0, 1.0))
        >>> ppgen.Rate().loss(model, guide)
        0.5
    """

    def value(self, traces: Traces) -> Tensor:
        """The rate on one run of the programs."""
        model_trace, guide_trace = traces.model_trace, traces.guide_trace
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
        return total / traces.num_data


def _log_prob_sum(trace: Trace, name: str) -> Tensor:
    trace.compute_log_prob(lambda site, _: site == name)
    return trace.nodes[name]["log_prob_sum"]


def _same_order(model_trace: Trace, guide_trace: Trace) -> bool:
    """Whether both condition each latent on the same ones, so that the KL of each latent is a term of the whole KL."""
    latent = latent_sites(model_trace)
    return list(latent) == [name for name in latent_sites(guide_trace) if name in latent]


def _closed_form(site: Site, prior: Site) -> Tensor | None:
    """KL(q, p) of one latent, summed over its plates; None where PyTorch has no closed form.

    Model and guide may scale or mask a latent differently; then the rate is no KL divergence.
    """
    if any(not _equal(site[kind], prior[kind]) for kind in ("scale", "mask")):
        return None
    base = site["fn"]
    while hasattr(base, "base_dist"):
        base = base.base_dist
    if isinstance(base, Delta):  # of an autoguide, whose log_density is a Jacobian, which Pyro's KL ignores
        return None
    try:
        kl = torch.as_tensor(kl_divergence(site["fn"], prior["fn"]))
    except NotImplementedError:
        return None
    return scale_and_mask(kl, scale=site["scale"], mask=site["mask"]).sum()


def _equal(a: object, b: object) -> bool:
    """Whether two scales or masks are one; the values of tensors are not read, so that steps can be compiled."""
    return a is b or (not isinstance(a, Tensor) and not isinstance(b, Tensor) and a == b)


def _check_reparameterized(model_trace: Trace, guide_trace: Trace, term: str) -> None:
    check_no_enumeration(model_trace, guide_trace)
    for name, site in latent_sites(guide_trace).items():
        if blocks_gradient(site):
            raise ValueError(
                f"{term}: the guide's site {name!r} has no rsample, so no gradient would reach its parameters; "
                "use ELBO(), whose gradient has a score term, or ELBO(elbo=TraceEnum_ELBO()), which sums them out"
            )
