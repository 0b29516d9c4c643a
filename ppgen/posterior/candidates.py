"""The fits that ``guide="auto"`` chooses from: a Gaussian per chain, a mixture of Gaussians, a flow.

Each is a `Fitted` with one of Pyro's or ppgen's autoguides, so that it can be used as any other fit.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from pyro.infer.autoguide import init_to_value
from torch import Tensor

from ppgen.infer.parameters import ProgramState, snapshot
from ppgen.posterior.flow_vi import fit_flow, flow_name
from ppgen.posterior.gaussian_vi import FittedGaussians
from ppgen.posterior.gaussians import GaussianBatch
from ppgen.posterior.guides import build_guide, describe_guide, initialized, loss_of, programs_of
from ppgen.posterior.importance import (
    MAX_SHIFT,
    Importance,
    importance_summary,
    largest_moment_shifts,
    psis_reliable,
)
from ppgen.posterior.log_density import UnconstrainedLogDensity
from ppgen.training.result import Chain, Fitted
from ppgen.utils.budget import Budget

__all__ = ["Candidate", "CandidateBuilder"]

DRAWS, LEAST_DRAWS = 4000, 100  # for the importance weights of each candidate; if time is short
WEIGHING_SHARE = 0.3  # of the time that is left


@dataclass(frozen=True)
class Candidate:
    """A fit, and the importance weights of draws of its best chain.

    Attributes:
        fit: the fit.
        weights: a summary of the importance weights.
        elbo: the ELBO of the guide restricted to where the program has a density, in nats; -inf if no draw has one. A
            few draws beyond an edge of the support would make the plain ELBO -inf; importance weights ignore them.
        moved: by how much the weights move a mean, in standard deviations, or the logarithm of a standard deviation,
            on the real line; the largest of all latents.
        u: the draws on the real line, (k, dim).
    """

    fit: Fitted
    weights: Importance
    elbo: float
    moved: float
    u: Tensor

    @classmethod
    def from_draws(cls, fit: Fitted, u: Tensor, log_weights: np.ndarray) -> "Candidate":
        """A candidate from draws (k, dim) on the real line, with log importance weights (k, 1), in nats."""
        finite = log_weights[np.isfinite(log_weights)]
        elbo = finite.mean() + math.log(finite.size / log_weights.size) if finite.size else -math.inf
        weights = importance_summary(log_weights)
        moved = largest_moment_shifts([(u.numpy(), u.numpy())], weights.log_smoothed[:, 0])
        return cls(fit, weights, float(elbo), max(moved.values()), u)

    @property
    def is_good(self) -> bool:
        """Whether its draws are good enough to be used without weights, and other draws would say so too.

        So no moment may be off by more than `MAX_SHIFT` less twice the standard error of a mean of draws.
        """
        most = MAX_SHIFT - 2 / math.sqrt(len(self.u))
        return bool(self.weights.surely_good_without_weights[0]) and self.moved <= most

    @property
    def is_usable(self) -> bool:
        """Whether weighted averages of its draws can be relied on."""
        return bool(psis_reliable(self.weights.pareto_k, self.weights.ess, len(self.u))[0])


class CandidateBuilder:
    """Turns distributions on the real line into fits of a program.

    Args:
        whole: log p of the program, on all of its data.
        starts: the starting points of the chains, (n, dim).
        seed: of the random numbers of a flow's fit.
        began: when the search began, by `time.perf_counter`.

    Attributes:
        target: log p, or an estimate from some of the rows, by which candidates are weighed.
        draws: the number of draws for the weights of each candidate.
    """

    def __init__(self, whole: UnconstrainedLogDensity, starts: Tensor, seed: int, began: float) -> None:
        self.whole = self.target = whole
        self.seed, self.began, self.num_starts, self.draws = seed, began, len(starts), DRAWS
        self.init_loc_fn = init_to_value(values=whole.constrain(starts[0]))  # an improper prior has no draws
        self.model, self.continuous_model = programs_of(whole.model, whole.discrete)

    def gaussian(self, q: FittedGaussians, generator: torch.Generator, budget: Budget) -> tuple[Candidate, np.ndarray]:
        """Gaussians, one per chain.

        Args:
            q: the Gaussians, n of them.
            generator: source of the draws.
            budget: the time, which may allow fewer draws.

        Returns:
            the candidate; estimates of log p(x) by the importance weights of each chain, (n,), in nats.
        """
        noise = torch.randn(len(q.center), self.draws, self.target.dim, generator=generator, dtype=q.center.dtype)
        u = q.rsample(noise)
        log_p = self._log_prob(u, budget)
        u, noise = u[:, : log_p.shape[1]], noise[:, : log_p.shape[1]]
        log_weights = (log_p - q.log_prob(noise)).mT.numpy()
        guide = build_guide(self.continuous_model, self.init_loc_fn, "gaussian")
        tensors = []
        with initialized(self.model, guide, self.whole.args):
            for center, root in zip(q.center, q.root, strict=True):
                _set_gaussian(guide, center, root)
                tensors.append(self._tensors(guide))
        reasons = [q.stop_reason(chain) for chain in range(len(q.center))]
        fit = self._fit(guide, tensors, q.elbo.numpy(), reasons, "Gaussian of full rank", "gaussian")
        candidate = Candidate.from_draws(fit, u[fit.best], log_weights[:, [fit.best]])
        return candidate, importance_summary(log_weights).log_marginal

    def mixture(
        self,
        q: FittedGaussians,
        chains: Sequence[int],
        log_marginal: np.ndarray,
        generator: torch.Generator,
        budget: Budget,
    ) -> Candidate:
        """A mixture of the Gaussians of some chains, weighted by their evidence.

        Args:
            q: the Gaussians.
            chains: which of them, k numbers.
            log_marginal: the log evidence of each mode, (k,), in nats.
            generator: source of the draws.
            budget: the time, which may allow fewer draws.
        """
        components = GaussianBatch(q.center[chains], q.root[chains])
        logits = torch.as_tensor(log_marginal)
        guide = build_guide(self.continuous_model, self.init_loc_fn, "mixture", components=len(chains))
        with initialized(self.model, guide, self.whole.args):
            _set_gaussian(guide, components.center, components.root)
            with torch.no_grad():
                guide.logits.copy_(logits)
            distribution, tensors = guide.get_posterior(), self._tensors(guide)
        noise = torch.randn(len(chains), self.draws, self.target.dim, generator=generator, dtype=q.center.dtype)
        component = torch.multinomial(logits.softmax(0), self.draws, replacement=True, generator=generator)
        u = components.rsample(noise)[component, torch.arange(self.draws)]
        log_p = self._log_prob(u[None], budget)[0]
        u = u[: len(log_p)]
        log_weights = (log_p - distribution.log_prob(u).detach())[:, None].numpy()
        elbo = q.elbo[chains].logsumexp(0, keepdim=True).numpy()  # if the modes are disjoint; an upper bound otherwise
        reason = f"{len(chains)} modes, each a Gaussian: {q.stop_reason(chains[0])}"
        fit = self._fit(guide, [tensors], elbo, [reason], "mixture of Gaussians", "mixture", components=len(chains))
        return Candidate.from_draws(fit, u, log_weights)

    def flow(self, center: Tensor, root: Tensor, budget: Budget) -> Candidate:
        """A flow on top of a Gaussian N(center, root root').

        Args:
            center: (dim,).
            root: (dim, dim).
            budget: the time.
        """
        flow, u, log_weights, weights = fit_flow(
            self.target, center, root, draws=self.draws, seed=self.seed, budget=budget
        )
        guide = build_guide(self.continuous_model, self.init_loc_fn, "flow", flow=flow.flow)
        with initialized(self.model, guide, self.whole.args):
            _set_gaussian(guide, center, root)
        reason = f"k-hat of {weights.pareto_k[0]:.2f} after {len(flow.elbo)} steps of a flow"
        if flow.skipped:
            reason += f", {flow.skipped} of them skipped because their gradients were not finite"
        tensors, elbo = [self._tensors(guide)], np.array([flow.elbo])
        name = flow_name(self.target.dim)
        fit = self._fit(guide, tensors, elbo, [reason], "flow after a Gaussian", "flow", flow=name)
        return Candidate.from_draws(fit, u, log_weights)

    def _log_prob(self, u: Tensor, budget: Budget) -> Tensor:
        """The values of log p at draws (n, k, dim), or at the first of them if the time is short: (n, draws)."""

        def of_first(draws: int) -> Tensor:
            return self.target.log_prob(u[:, :draws].flatten(0, 1)).reshape(len(u), draws)

        return budget.part(WEIGHING_SHARE).at_size(of_first, u.shape[1], least=LEAST_DRAWS)

    def _tensors(self, guide: Any) -> dict[str, Tensor]:
        """The present parameters and buffers of the guide."""
        return snapshot(ProgramState.from_programs(self.model, guide, self.whole.args).tensors)

    def _fit(
        self,
        guide: Any,
        tensors: list[dict[str, Tensor]],
        elbo: np.ndarray,
        reasons: Sequence[str],
        description: str,
        kind: str,
        **options: Any,
    ) -> Fitted:
        """A fit with one chain for each set of tensors, whose history is the ELBO (chains, steps).

        Its guide is described by a text, and by its kind and options, from which a file is loaded.
        """
        seconds = time.perf_counter() - self.began
        validation = {"step": np.zeros(0), "loss": np.zeros(0)}
        chains = [
            Chain(part, {"loss": -values / self.whole.num_data}, validation, reason, len(values), seconds)
            for part, values, reason in zip(tensors, elbo, reasons, strict=True)
        ]
        described = describe_guide(guide, self.whole.args, self.whole.discrete, kind, **options)
        metadata = {"auto": description, "starts": self.num_starts, "guide": described}
        return Fitted(self.model, guide, loss_of(kind, self.whole.discrete), chains, self.whole.args, metadata)


def _set_gaussian(guide: Any, center: Tensor, root: Tensor) -> None:
    """Sets an affine guide u = loc + diag(scale) C y, or a batch of them, to a center and a triangular root."""
    scale = root.diagonal(dim1=-2, dim2=-1)
    with torch.no_grad():
        guide.loc.copy_(center)
    guide.scale, guide.scale_tril = scale, root / scale[..., None]
