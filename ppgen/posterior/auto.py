"""``guide="auto"``: a posterior found from the model alone.

    1. starts that lie wide apart, one a chain
    2. from each up to a mode, and the curvature on the way (`find_modes`)
    3. the Gaussian of most evidence there, of full rank (`gaussian`)
    4. a mixture of these, if starts led to several modes
    5. a flow after the best of them (`bend`), if importance weights do not call it good yet

each in double precision and on the real line; of what was tried, the one of most evidence is taken. It is a `Fit` with
a guide of Pyro's own, an `AutoMixture` or an `AutoFlow`, so that all that can be asked of a fit can be asked of it.
"""

import math
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from pyro import poutine
from pyro.infer import TraceEnum_ELBO, config_enumerate
from pyro.infer.autoguide import AutoMultivariateNormal, init_to_value
from torch import Tensor

from ppgen.flows import FLOWS
from ppgen.infer import AutoFlow, AutoMixture
from ppgen.infer.parameters import ProgramState, separate_names, snapshot
from ppgen.losses.elbo import ELBO
from ppgen.posterior.flow_vi import FlowVI
from ppgen.posterior.gaussian_vi import FittedGaussians, fit_gaussians
from ppgen.posterior.gaussians import GaussianBatch
from ppgen.posterior.importance import KHAT_GOOD, NEGLIGIBLE_NATS, Importance, importance_summary, psis_reliable
from ppgen.posterior.log_density import UnconstrainedLogDensity
from ppgen.posterior.newton import LocalGaussians, find_modes
from ppgen.tracing.double_precision import DoublePrecision, double_precision
from ppgen.tracing.sites import Program
from ppgen.training.result import Chain, Fitted

__all__ = ["find"]

MOST = 3000  # latents, in minutes and within some gigabytes
LOST = 100.0  # nats below the best start: such a mode has no mass, if it is one
SPREAD = 5.0  # standard deviations
HIDDEN = (32, 32)  # widths of a flow's networks; it goes in the order of the program, parents first
ERROR = 0.1  # standard deviations of an entry by which two fits of one mode may differ
JUDGED = 4000  # draws by which a guide is judged
ROUND, ROUNDS = 300, 4  # steps of a flow between two judgments, and how many of these


def find(
    model: Program,
    data: tuple[Tensor, ...] = (),
    *,
    restarts: int = 4,
    seed: int = 0,
    progress: Callable[[str], None] = lambda _: None,
) -> Fitted:
    """The posterior of a program's global latents on data, as a `Fit`, one chain a start.

    Raises:
        ValueError: for a program without continuous latents, with too many or with parameters; for a posterior that is
            none, since along some direction nothing bounds it; for discrete latents that cannot be summed out.
        FloatingPointError: if log p is nowhere finite; the message names the sites.

    Ctrl-C ends the fit of Gaussians with what was learned, and leaves a flow under way for what there was before it;
    until there is a Gaussian, it is raised.
    """
    began = time.perf_counter()
    progress("starts")
    target, generator = UnconstrainedLogDensity(model, data), torch.Generator().manual_seed(seed)
    if target.dim > MOST:
        raise ValueError(
            f'guide="auto" takes the curvature of all latents together, which is for at most {MOST}; the program has '
            f"{target.dim} numbers. Give a guide (AutoLowRankMultivariateNormal(model) or AutoNormal(model), say); if "
            "most are a number a datum, one that is amortized over data"
        )
    starts = target.initial_points(restarts, generator)
    found = _Found(target, starts, seed, began)
    summit = _summits(target, starts, generator, progress)
    gaussians = fit_gaussians(target, summit.center, summit.root, generator, progress=progress)
    best, alone = found.gaussian(gaussians, generator)
    start = best.fit.best
    if len(modes := _modes(gaussians, alone.log_marginal)) > 1:
        progress("mixture of modes")
        mixed = found.mixture(gaussians, modes, alone.log_marginal[modes], generator)
        best = max(best, mixed, key=lambda tried: tried.bound)
    if not _serves(best.weights):
        try:
            best = max(best, found.flow(gaussians, start, progress), key=lambda tried: tried.bound)
        except KeyboardInterrupt:
            what = best.fit.metadata["auto"]
            warnings.warn(f"stopped while a flow was fitted: this is a {what}, to be weighed", stacklevel=3)
    best.fit.select_chain(best.fit.best)
    return best.fit


def _summits(
    target: UnconstrainedLogDensity, starts: Tensor, generator: torch.Generator, progress: Callable[[str], None]
) -> LocalGaussians:
    """Where starts lead; those that lead nowhere are begun again, wide around the best in its own scales."""
    found = find_modes(target, starts, generator, progress=progress)
    best = found.evidence.argmax()
    lost = found.evidence < found.evidence[best] - LOST
    if lost.any():
        noise = torch.randn(int(lost.sum()), target.dim, generator=generator, dtype=starts.dtype)
        again = find_modes(
            target, found.center[best] + SPREAD * noise @ found.root[best].mT, generator, progress=progress
        )
        higher = again.evidence > found.evidence[lost]
        rows = lost.nonzero()[:, 0][higher]
        for part in ("center", "root", "evidence"):
            getattr(found, part)[rows] = getattr(again, part)[higher]
    return found


class _Found:
    """Turns what was found into a `Fit`."""

    def __init__(self, target: UnconstrainedLogDensity, starts: Tensor, seed: int, began: float):
        self.target, self.seed, self.began, self.starts = target, seed, began, len(starts)
        self.start = init_to_value(values=target.constrain(starts[0]))  # a prior may have no draws
        self.model = self.latent = DoublePrecision(target.model)
        self.loss = ELBO(path_derivative=True)
        if target.discrete:  # the guide leaves them to enumeration
            self.model = config_enumerate(self.model)
            self.latent = poutine.block(self.model, hide=target.discrete)
            self.loss = ELBO(elbo=TraceEnum_ELBO())

    def gaussian(self, q: FittedGaussians, generator: torch.Generator) -> tuple["_Candidate", Importance]:
        """The fit of Gaussians, a chain each, and the importance weights of all of them."""
        noise = torch.randn(len(q.center), JUDGED, self.target.dim, generator=generator, dtype=q.center.dtype)
        log_p = self.target.log_prob(q.rsample(noise).flatten(0, 1)).reshape(noise.shape[:2])
        log_weights = (log_p - q.log_prob(noise)).mT.numpy()
        guide = AutoMultivariateNormal(self.latent, init_loc_fn=self.start)
        weights = []
        with self._set_up(guide):
            for center, root in zip(q.center, q.root, strict=True):
                _place(guide, center, root)
                weights.append(self._weights(guide))
        steps = q.evidence.shape[1]
        why = [
            f"converged after {steps} steps" if done else f"had not come to rest after {steps} steps"
            for done in q.converged.tolist()
        ]
        fit = self._fit(guide, weights, q.evidence.numpy(), why, "Gaussian of full rank")
        return _Candidate.of(fit, log_weights[:, [fit.best]]), importance_summary(log_weights)

    def mixture(
        self, q: FittedGaussians, modes: Sequence[int], log_marginal: np.ndarray, generator: torch.Generator
    ) -> "_Candidate":
        """The fit of a mixture of those Gaussians, weighed by what evidence each has found."""
        logits = torch.as_tensor(log_marginal)
        guide = AutoMixture(self.latent, components=len(modes), init_loc_fn=self.start)
        with self._set_up(guide):
            _place(guide, q.center[modes], q.root[modes])
            with torch.no_grad():
                guide.logits.copy_(logits)
            distribution, weights = guide.get_posterior(), self._weights(guide)
        parts = GaussianBatch(q.center[modes], q.root[modes])
        noise = torch.randn(len(modes), JUDGED, self.target.dim, generator=generator, dtype=q.center.dtype)
        which = torch.multinomial(logits.softmax(0), JUDGED, replacement=True, generator=generator)
        u = parts.rsample(noise)[which, torch.arange(JUDGED)]
        log_weights = (self.target.log_prob(u) - distribution.log_prob(u).detach())[:, None].numpy()
        # of modes that lie apart; of others, at most
        evidence = q.evidence[modes].logsumexp(0, keepdim=True).numpy()
        why = f"{len(modes)} modes, each a Gaussian after {q.evidence.shape[1]} steps"
        loss = self.loss if self.target.discrete else ELBO()  # its draws have no path
        fit = self._fit(guide, [weights], evidence, [why], "mixture of Gaussians", loss)
        return _Candidate.of(fit, log_weights)

    def flow(self, q: FittedGaussians, best: int, progress: Callable[[str], None]) -> "_Candidate":
        """The fit of a flow after the best Gaussian."""
        center, root, dim = q.center[best], q.root[best], self.target.dim
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            with double_precision():
                flow = FLOWS["iaf" if dim > 1 else "nsf_autoregressive"](dim, hidden=HIDDEN)
            bend, now, served = FlowVI(self.target, flow, center, root, ROUND * ROUNDS), "", False
            for number in range(ROUNDS):
                progress(f"a flow, round {number + 1} of at most {ROUNDS}{now}")
                bend.run(ROUND)
                u, log_q = bend.rsample(JUDGED)
                log_weights = (self.target.log_prob(u) - log_q)[:, None].numpy()
                weights = importance_summary(log_weights)
                now = f"; k-hat is {weights.pareto_k[0]:.2f}"
                before, served = served, _serves(weights)
                if before and served:  # once may be chance
                    break
            bend.hold(bend.average)
        guide = AutoFlow(self.latent, flow=flow, init_loc_fn=self.start)
        with self._set_up(guide):
            _place(guide, center, root)
        why = f"k-hat of {weights.pareto_k[0]:.2f} after {len(bend.evidence)} steps of a flow"
        if bend.passed:
            why += f", {bend.passed} of them passed over, their gradients not being finite"
        fit = self._fit(guide, [self._weights(guide)], np.array([bend.evidence]), [why], "flow after a Gaussian")
        return _Candidate.of(fit, log_weights)

    @contextmanager
    def _set_up(self, guide: Any) -> Iterator[None]:
        """An autoguide that has met its model, in double precision; the caller's random state is kept."""
        separate_names(self.model, guide)
        with torch.random.fork_rng(), double_precision():
            guide(*self.target.args)
            yield

    def _weights(self, guide: Any) -> dict[str, Tensor]:
        return snapshot(ProgramState.from_programs(self.model, guide, self.target.args).tensors)

    def _fit(
        self, guide: Any, weights: list, evidence: np.ndarray, why: Sequence[str], what: str, loss: Any = None
    ) -> Fitted:
        seconds = time.perf_counter() - self.began
        nothing = {"step": np.zeros(0), "loss": np.zeros(0)}
        chains = [
            Chain(part, {"loss": -values / self.target.num_data}, nothing, reason, len(values), seconds)
            for part, values, reason in zip(weights, evidence, why, strict=True)
        ]
        metadata = {"auto": what, "starts": self.starts}
        return Fitted(self.model, guide, self.loss if loss is None else loss, chains, self.target.args, metadata)


@dataclass(frozen=True)
class _Candidate:
    """A fit, and the importance weights of draws of its best chain.

    `bound` is that of the evidence by the guide's law where the program has a density, -inf if it has none: beyond an
    edge of the support a few draws would make it -inf, and weights leave them out.
    """

    fit: Fitted
    weights: Importance
    bound: float

    @classmethod
    def of(cls, fit: Fitted, log_weights: np.ndarray) -> "_Candidate":
        """Of log weights (draws, 1)."""
        kept = log_weights[np.isfinite(log_weights)]
        bound = kept.mean() + math.log(kept.size / log_weights.size) if kept.size else -math.inf
        return cls(fit, importance_summary(log_weights), float(bound))


def _serves(weights: Importance) -> bool:
    """Whether draws may be taken without weights."""
    return bool(psis_reliable(weights.pareto_k, weights.ess, JUDGED, max_khat=KHAT_GOOD)[0])


def _modes(q: FittedGaussians, log_marginal: np.ndarray) -> list[int]:
    """Chains that ended at places of their own, those of most evidence first; those of next to no mass are left out."""
    kept: list[int] = []
    log_marginal = np.where(np.isfinite(log_marginal), log_marginal, -np.inf)
    away = q.whitened(q.center).norm(dim=-1)  # of a column's center, in a row's units
    for chain in map(int, np.argsort(-log_marginal)):
        if not log_marginal[chain] >= log_marginal.max() - NEGLIGIBLE_NATS:
            break
        if all(float(away[other, chain]) > 1 + ERROR * math.sqrt(len(q.center[0])) for other in kept):
            kept.append(chain)
    return kept


def _place(guide: Any, center: Tensor, root: Tensor) -> None:
    """Sets an affine guide, u = loc + diag(scale) C y, or several side by side, to center and root."""
    scale = root.diagonal(dim1=-2, dim2=-1)
    with torch.no_grad():
        guide.loc.copy_(center)
    guide.scale, guide.scale_tril = scale, root / scale[..., None]
