"""The posterior draws that all checks read, with the quantities that several of them share."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from ppgen.diagnostics.mode_search import ModeSearch, search_modes
from ppgen.diagnostics.proposals import NO_DENSITY, Proposal, guide_proposal, prior_proposal, student_t_proposal
from ppgen.diagnostics.reading import unconstrained_draws
from ppgen.diagnostics.tails import TailCheck, check_tails
from ppgen.posterior.importance import NEGLIGIBLE_NATS, largest_moment_shifts, psis_reliable
from ppgen.posterior.log_density import UnconstrainedLogDensity
from ppgen.tracing.loss_scales import without_loss_scales
from ppgen.tracing.traces import Traces
from ppgen.training.result import Fitted
from ppgen.utils.arviz_versions import group
from ppgen.utils.budget import Budget

__all__ = ["PosteriorDraws", "comparable_chains", "on_one_line"]

MAX_DIM = 300  # latents up to which the unconstrained density is used
MAX_PRIOR_DRAWS, MAX_SINGLE_DRAWS = 1000, 250  # of the prior; by programs that run once for each draw


@dataclass(frozen=True)
class PosteriorDraws:
    """The draws of a fit's guide, their importance weights, and the program that they are draws for.

    Attributes:
        fit: the fit.
        data: the data of the draws; None if they are not known.
        posterior: the group "posterior".
        sample_stats: the group "sample_stats".
        vi_stats: the group "vi_stats".
        starts: the number of points from which other modes are searched for.
        seed: the seed of all random numbers.
        budget: the time of the search for modes; no limit if left out.
    """

    fit: Fitted
    data: tuple[Tensor, ...] | None
    posterior: xr.Dataset
    sample_stats: xr.Dataset
    vi_stats: xr.Dataset
    starts: int = 0
    seed: int = 0
    budget: Budget | None = None

    @classmethod
    def read(
        cls,
        fit: Fitted,
        data: tuple[Tensor, ...] | None,
        idata: Any,
        *,
        starts: int = 0,
        seed: int = 0,
        budget: Budget | None = None,
    ) -> "PosteriorDraws | None":
        """Reads the draws from the result of `to_arviz`; None if there are no latents or no importance weights."""
        posterior, stats, vi = (group(idata, name) for name in ("posterior", "sample_stats", "vi_stats"))
        if posterior is None or not posterior.data_vars or stats is None or vi is None:
            return None
        return cls(fit, data, posterior, stats, vi, starts, seed, budget)

    @property
    def chain(self) -> int:
        """The chain that is judged: the best one."""
        return self.fit.best

    @property
    def size(self) -> int:
        """The number of draws in each chain."""
        return self.posterior.sizes["draw"]

    @property
    def per_datum(self) -> bool:
        """Whether each datum has latents, and so importance weights, of its own."""
        return "pareto_k" in self.vi_stats and self.vi_stats["pareto_k"].ndim > 1

    @property
    def sampled(self) -> bool:
        """Whether these are draws of the posterior by a sampler, which have no weights; all chains are judged."""
        return self.fit.stored_draws > 0

    @property
    def pareto_k(self) -> np.ndarray:
        """k-hat: a scalar, or one value for each datum."""
        return self.vi_stats["pareto_k"].values[self.chain]

    @property
    def ess(self) -> np.ndarray:
        """Kish's effective sample size: a scalar, or one value for each datum."""
        return self.vi_stats["ess"].values[self.chain]

    @property
    def log_weights(self) -> np.ndarray:
        """Smoothed and normalized log weights (draw, ...) of the judged draws."""
        if self.sampled:
            count = self.size * self.posterior.sizes["chain"]
            return np.full(count, -np.log(count))
        return self.sample_stats["log_weight_smoothed"].values[self.chain]

    def reliable(self, max_khat: float | None = None) -> np.ndarray:
        """Whether the importance weights can be relied on, see `ppgen.posterior.importance.psis_reliable`."""
        return psis_reliable(self.pareto_k, self.ess, self.size, max_khat=max_khat)

    @cached_property
    def moment_shifts(self) -> dict[str, float]:
        """`shift` and `log_ratio` of the latents under the weights; empty if a weight is not finite."""
        if not np.isfinite(np.exp(self.log_weights)).all():
            return {}
        latents = [self.posterior[name].values[self.chain].astype(float) for name in self.posterior.data_vars]
        whole = [bool((z == z.round()).all()) for z in latents]
        shifts = largest_moment_shifts(((z, z) for z, w in zip(latents, whole, strict=True) if not w), self.log_weights)
        # the mean alone of whole numbers: the standard deviation of a value that is rare is noise
        of_whole = largest_moment_shifts(((z, z) for z, w in zip(latents, whole, strict=True) if w), self.log_weights)
        return shifts | {"shift": max(shifts["shift"], of_whole["shift"])}

    @cached_property
    def target(self) -> UnconstrainedLogDensity | None:
        """The program's unconstrained log density; None if it is not available or has other latents than the draws.

        The programs must hold the weights of the judged chain when this is first read.
        """
        if self.data is None:
            return None
        try:
            traces = without_loss_scales(Traces(self.fit.model, self.fit.guide, self.data, use_all_rows=True))
            target = UnconstrainedLogDensity(traces.model, self.data)
        except NO_DENSITY:
            return None
        return target if target.dim <= MAX_DIM and set(target.shapes) <= set(self.posterior.data_vars) else None

    @cached_property
    def tails(self) -> TailCheck | None:
        """What draws from wider distributions find beyond the guide's; None if that cannot be computed."""
        if self.per_datum:
            return None
        with self.fit.eval_mode(self.chain):
            if self.target is None:
                return None
            u = self._unconstrained(self.target)
            wider = [part for part in (student_t_proposal(u, self._generator()), self.prior) if part is not None]
            if not wider:
                return None
            own = None if self.sampled else guide_proposal(self.target, self.fit.guide, u)
            log_p = None  # at the guide's draws
            if own is not None:
                log_p = torch.as_tensor(self.sample_stats["log_weight"].values[self.chain]) + own.log_prob(u).detach()
            evidence, error = (
                float(self.vi_stats[name].values[self.chain]) for name in ("log_marginal", "log_marginal_error")
            )
            return check_tails(self.target, u, evidence, error, wider if own is None else [own, *wider], log_p)

    @cached_property
    def prior(self) -> Proposal | None:
        """Draws of the prior, with its density; None if it has none.

        The programs must hold the weights of the judged chain when this is first read.
        """
        if self.target is None:
            return None
        most = MAX_PRIOR_DRAWS if self.target.vectorized else MAX_SINGLE_DRAWS
        return prior_proposal(self.target, min(self.size, most), self._generator())

    @cached_property
    def mode_search(self) -> ModeSearch | None:
        """The search for modes that the guide misses; None if there is none, or it failed."""
        if self.per_datum or not self.starts:
            return None
        with self.fit.eval_mode(self.chain):
            if self.target is None:
                return None
            u, log_evidence = self._unconstrained(self.target), float(self.vi_stats["log_marginal"].values[self.chain])
            costly = "plate" in self.fit.metadata.get("rows", {})  # latents of groups are integrated out
            options: dict[str, Any] = {
                "starts": 1 if costly else self.starts,
                "generator": self._generator(),
                "prior": self.prior,
                "budget": self.budget,
            }
            return search_modes(self.target, u, self.log_weights, log_evidence, **options)

    def _unconstrained(self, target: UnconstrainedLogDensity) -> Tensor:
        chains = range(self.posterior.sizes["chain"]) if self.sampled else [self.chain]
        return torch.cat([unconstrained_draws(target, self.posterior, chain) for chain in chains])

    def _generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(self.seed)


def comparable_chains(vi_stats: xr.Dataset) -> np.ndarray:
    """The chains whose evidence is not negligible beside that of the best one."""
    evidence = vi_stats["log_marginal"].values.reshape(vi_stats.sizes["chain"], -1).sum(-1)
    return np.flatnonzero(evidence > np.nanmax(evidence, initial=-np.inf) - NEGLIGIBLE_NATS)


def on_one_line(latents: dict[str, Tensor]) -> str:
    """The values of latents for a message, of limited length."""
    flat = {k: v.numpy().reshape(-1) if v.dim() else v.numpy() for k, v in latents.items()}
    return ", ".join(f"{k} = {np.array2string(v, precision=3, threshold=4)}" for k, v in flat.items())[:160]
