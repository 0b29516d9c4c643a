"""``guide="auto"``: a posterior found from the model alone.

    1. starts that lie wide apart, one a chain
    2. from each up to a mode, and the curvature on the way (`climb`)
    3. the Gaussian of most evidence there, of full rank (`gaussian`)
    4. a flow after it (`bend`), if importance weights do not trust the Gaussian

each in double precision and on the real line. What comes out is a `Fit` with a guide of Pyro's own or an `AutoFlow`, so
that all that can be asked of a fit can be asked of it.
"""

import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from pyro import poutine
from pyro.infer import TraceEnum_ELBO, config_enumerate
from pyro.infer.autoguide import AutoMultivariateNormal
from torch import Tensor

from ppgen.diagnostics.importance import Importance, trusted, weigh_up
from ppgen.draws import Program
from ppgen.flows import FLOWS
from ppgen.infer import AutoFlow
from ppgen.infer.parameters import State, snapshot, tell_apart
from ppgen.posterior import Bend, Gaussians, InDouble, Summit, Unconstrained, climb, climb_evidence, in_double
from ppgen.result import Chain, Fit
from ppgen.terms import Evidence

__all__ = ["find"]

LOST = 100.0  # nats below the best start: such a mode has no mass, if it is one
SPREAD = 5.0  # standard deviations
HIDDEN = (32, 32)  # widths of a flow's networks
JUDGED = 4000  # draws by which a guide is judged
ROUND, ROUNDS = 300, 4  # steps of a flow between two judgements, and how many of these


def find(
    model: Program,
    data: tuple[Tensor, ...] = (),
    *,
    restarts: int = 4,
    seed: int = 0,
    progress: Callable[[str], None] = lambda _: None,
) -> Fit:
    """The posterior of a program's global latents on data, as a `Fit`, one chain a start.

    Raises:
        ValueError: for a program without continuous latents or with parameters; for a posterior that is none, since
            along some direction nothing bounds it; for discrete latents that cannot be summed out.
        FloatingPointError: if log p is nowhere finite; the message names the sites.

    Ctrl-C ends the stage that it comes in, with what was learned; before there is a Gaussian, it is raised.
    """
    began = time.perf_counter()
    progress("starts")
    target, generator = Unconstrained(model, data), torch.Generator().manual_seed(seed)
    found = _Found(target, seed, began)
    starts = target.starts(restarts, generator)
    progress("climbing to modes")
    summit = _summits(target, starts, generator)
    progress("Gaussian")
    gaussians = climb_evidence(target, summit.center, summit.root, generator)
    fit, weights = found.gaussian(gaussians, generator)
    if not _serve(weights):
        try:
            fit = found.flow(gaussians, fit.best, weights, progress) or fit
        except KeyboardInterrupt:
            warnings.warn(
                "stopped while a flow was fitted: this is the Gaussian, which weights do not trust", stacklevel=3
            )
    return fit


def _summits(target: Unconstrained, starts: Tensor, generator: torch.Generator) -> Summit:
    """Where starts lead; those that lead nowhere are begun again, wide around the best in its own scales."""
    found = climb(target, starts, generator)
    best = found.evidence.argmax()
    lost = found.evidence < found.evidence[best] - LOST
    if lost.any():
        noise = torch.randn(int(lost.sum()), target.dim, generator=generator, dtype=starts.dtype)
        again = climb(target, found.center[best] + SPREAD * noise @ found.root[best].mT, generator)
        for part in ("center", "root", "evidence"):
            getattr(found, part)[lost] = getattr(again, part)
    return found


class _Found:
    """Turns what was found into a `Fit`."""

    def __init__(self, target: Unconstrained, seed: int, began: float):
        self.target, self.seed, self.began = target, seed, began
        self.model = self.latent = InDouble(target.model)
        self.loss = Evidence(path_derivative=True)
        if target.discrete:  # the guide leaves them to enumeration
            self.model = config_enumerate(self.model)
            self.latent = poutine.block(self.model, hide=target.discrete)
            self.loss = Evidence(elbo=TraceEnum_ELBO())

    def gaussian(self, q: Gaussians, generator: torch.Generator) -> tuple[Fit, Importance]:
        """The fit of Gaussians, and the importance weights of the best."""
        count, dim = q.center.shape
        noise = torch.randn(count, JUDGED, dim, generator=generator, dtype=q.center.dtype)
        log_p = self.target.log_prob(q.rsample(noise).reshape(-1, dim)).reshape(count, JUDGED)
        log_weights = (log_p - q.log_prob(noise)).numpy()
        guide = AutoMultivariateNormal(self.latent)
        weights = []
        tell_apart(self.model, guide)
        with torch.random.fork_rng(), in_double():
            guide(*self.target.args)
            for center, root in zip(q.center, q.root, strict=True):
                _place(guide, center, root)
                weights.append(self._weights(guide))
        steps = q.evidence.shape[1]
        why = [
            f"converged after {steps} steps" if done else f"had not come to rest after {steps} steps"
            for done in q.converged.tolist()
        ]
        fit = self._fit(guide, weights, q.evidence.numpy(), why, "Gaussian of full rank")
        return fit, weigh_up(log_weights[fit.best][:, None])

    def flow(self, q: Gaussians, best: int, before: Importance, progress: Callable[[str], None]) -> Fit | None:
        """The fit of a flow after the best Gaussian; None where its weights are no better than those `before`."""
        center, root, dim = q.center[best], q.root[best], self.target.dim
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            with in_double():
                flow = FLOWS["realnvp" if dim > 1 else "nsf_autoregressive"](dim, hidden=HIDDEN)
            bend = Bend(self.target, flow, center, root, ROUND * ROUNDS)
            khat, kept = float(before.pareto_k[0]), list[Tensor]()
            for number in range(ROUNDS):
                progress(f"a flow, round {number + 1} of at most {ROUNDS}; k-hat is {khat:.2f}")
                bend.run(ROUND)
                u, log_q = bend.rsample(JUDGED)
                weights = weigh_up((self.target.log_prob(u) - log_q)[:, None].numpy())
                if weights.pareto_k[0] < khat:
                    khat, kept = float(weights.pareto_k[0]), [weight.clone() for weight in bend.average]
                if kept and _serve(weights):
                    break
            if not kept:
                return None
            bend.hold(kept)
            guide = AutoFlow(self.latent, flow=flow)
            tell_apart(self.model, guide)
            with in_double():
                guide(*self.target.args)
        _place(guide, center, root)
        why = f"k-hat of {khat:.2f} after {len(bend.evidence)} steps of a flow"
        return self._fit(guide, [self._weights(guide)], np.array([bend.evidence]), [why], "flow after a Gaussian")

    def _weights(self, guide: Any) -> dict[str, Tensor]:
        return snapshot(State.of(self.model, guide, self.target.args).tensors)

    def _fit(self, guide: Any, weights: list, evidence: np.ndarray, why: Sequence[str], what: str) -> Fit:
        seconds = time.perf_counter() - self.began
        nothing = {"step": np.zeros(0), "loss": np.zeros(0)}
        chains = [
            Chain(part, {"loss": -values / self.target.num_data}, nothing, reason, len(values), seconds)
            for part, values, reason in zip(weights, evidence, why, strict=True)
        ]
        fit = Fit(self.model, guide, self.loss, chains, self.target.args, {"auto": what})
        fit.use(fit.best)
        return fit


def _serve(weights: Importance) -> bool:
    return bool(trusted(weights.pareto_k, weights.effective, JUDGED)[0])


def _place(guide: Any, center: Tensor, root: Tensor) -> None:
    """Sets an affine guide, u = loc + diag(scale) C y, to center and root."""
    scale = root.diagonal()
    with torch.no_grad():
        guide.loc.copy_(center)
    guide.scale, guide.scale_tril = scale, root / scale[:, None]
