"""Whether a fit's posterior can be trusted: a verdict, the figures behind it, and what to try next.

    good                 the guide's draws can be taken as they are
    usable with weights  they serve once they are resampled by importance weights
    not to be trusted    neither

The figures, and the bounds beyond which they tell against the fit:

    pareto_k    of importance weights, at most min(1 - 1 / log10 S, .7), and .5 to be good; weights that are all but
                equal have no tail (see `ppgen.posterior.importance.psis_reliable`), unless draws of a wider law find one
    unseen      where weights are all but equal and k-hat is larger, the share of the posterior's mass that draws of the
                guide do not find and draws of a wider law do, at most .01; and moments by the latter may differ by as
                much as below (see `ppgen.diagnostics.tails`)
    bad_rows    where weights are per datum, the share of data whose weights cannot be relied on, at most .05
    effective   the share of effective draws, Kish's, which is told and not judged
    r_hat       across restarts whose evidence is not negligible beside the best one's, at most 1.05
    elsewhere   the share of the posterior's mass around a mode where the guide's weighed draws have less than a quarter
                of it, at most .05: found by climbing from other starts, and weighed by importance sampling there
    shift       the largest difference of a weighted mean from the guide's own, in standard deviations, at most .1
    log_ratio   the largest |log ratio| of such standard deviations, at most .1; both but for Monte Carlo error, and at
                most .5 for weights to mend
    falling     nats by which the loss still fell over the last fifth of the run, beyond its noise; told, not judged

A verdict is of what was looked at: one restart, of a program with too many latents to climb, cannot be called good.
"""

import math
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from ppgen.diagnostics.arviz import to_arviz
from ppgen.diagnostics.reading import attribute, on_the_line
from ppgen.diagnostics.tails import look_beyond
from ppgen.posterior.importance import (
    EQUAL,
    NEGLIGIBLE,
    PLAIN,
    importance_summary,
    khat_threshold,
    most_moved,
    psis_reliable,
)
from ppgen.posterior.log_density import UnconstrainedLogDensity
from ppgen.posterior.newton import find_modes
from ppgen.training.result import Fitted
from ppgen.utils.arviz_versions import group, rhat

__all__ = ["BAD", "GOOD", "UNKNOWN", "WEIGHTED", "Verdict", "diagnose"]

GOOD, WEIGHTED, BAD = "good", "usable with weights", "not to be trusted"
UNKNOWN = "without a density to judge by"
AGREE, AWAY, ROWS = 1.05, 0.05, 0.05
UNSEEN = 0.01
CLOSE, FAR = 0.1, 0.5
RICHER = 'a richer guide: guide="auto", AutoMultivariateNormal, or AutoFlow'
CLIMBABLE = 300  # latents
FEW, MANY = 1000, 4000  # draws
NEAR = (0.3, 1.0)  # k-hat of few draws that more of them may bring to the other side of a bound
COVERED = 4.0  # a mode is where the guide is if that has a quarter of the mass that the mode has


@dataclass(frozen=True)
class Verdict:
    """What `diagnose` found; printed, it is a small table.

    Attributes:
        level: one of the module's three, or that there is no density.
        figures: by name; those that could not be had are left out.
        against: what tells against the fit, in words, by the name of its figure.
        advice: what to try next.
    """

    level: str
    figures: dict[str, float]
    against: dict[str, str] = field(default_factory=dict)
    advice: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [f"posterior: {self.level}"]
        width = max(map(len, self.figures), default=0)
        for name, value in self.figures.items():
            lines.append(f"  {name:<{width}}  {value:>9.3g}  {self.against.get(name, '')}".rstrip())
        lines += [f"  {text}" for name, text in self.against.items() if name not in self.figures]
        return "\n".join(lines + [f"  try: {text}" for text in self.advice])


def diagnose(
    fit: Fitted, *data: Tensor, draws: int | None = None, starts: int = 4, idata: Any = None, seed: int = 0
) -> Verdict:
    """Judges a fit's posterior on data by the figures of this module.

    Args:
        data: what the programs take, as of `to_arviz`.
        draws: samples of the guide a chain. If left out, 1000; if latents are global and these leave open on which side
            of its bound k-hat or a moment is, 4000 new ones.
        starts: from how many points other modes are looked for; 0 for none.
        idata: what `to_arviz` gave of these data, to be judged in place of new draws.
        seed: of draws and starts; the caller's random state is left as it was.

    Raises:
        ValueError: if there are `idata`, and other modes are to be looked for without data. ValueError, LookupError: as
            `to_arviz`.
    """
    known: tuple | None = data
    if idata is None:
        idata = enough(fit, *data, draws=draws, predictive=False, seed=seed)
    elif fit.example and not data:
        if starts:
            raise ValueError(
                "diagnose: looking for other modes takes the data that the draws are of: give them, or starts=0"
            )
        known = None
    posterior, stats = group(idata, "posterior"), group(idata, "sample_stats")
    if stats is None or posterior is None or not posterior.data_vars:
        why = attribute(idata, "density") or "the programs have no latents"
        text = f"there is no posterior to judge ({why}); compare draws with data by a two-sample test"
        return Verdict(UNKNOWN, {}, {"density": text})
    vi: Any = group(idata, "vi_stats")
    judged = _Judged(fit, known, vi, posterior, stats, seed)
    judged.weights()
    judged.restarts()
    if not judged.local:
        judged.moments()
        looked = judged.elsewhere(starts) if starts else False
        if not looked and len(fit.chains) == fit.metadata.get("starts", 1) == 1:
            judged.doubt("looked", "one restart, and other modes were not looked for", "restarts=4")
    judged.course()
    return judged.verdict()


def enough(fit: Fitted, *data: Tensor, draws: int | None = None, **options: Any) -> Any:
    """What `to_arviz` gives, with as many draws as `diagnose` takes."""
    asked = partial(to_arviz, fit, *data, resampled=None, chunk=250, **options)
    idata = asked(draws=FEW if draws is None else draws)
    if draws is None and _near_a_bound(fit.best, idata):
        return asked(draws=MANY)
    return idata


def _near_a_bound(chain: int, idata: Any) -> bool:
    """Whether few draws leave open on which side of its bound k-hat, whose error is about .16, or a moment is."""
    vi, stats, posterior = (group(idata, name) for name in ("vi_stats", "sample_stats", "posterior"))
    if vi is None or stats is None or posterior is None or "pareto_k" not in vi or vi["pareto_k"].ndim > 1:
        return False
    pareto_k, effective = (float(vi[name].values[chain]) for name in ("pareto_k", "effective"))
    if NEAR[0] < pareto_k < NEAR[1] and effective < EQUAL * FEW:
        return True
    moments = _moments(posterior, stats["log_weight_smoothed"].values[chain], chain)
    return any(abs(value - CLOSE) < _slack(name, effective) for name, value in moments.items())


def _moments(posterior: xr.Dataset, log_weights: np.ndarray, chain: int) -> dict[str, float]:
    """`shift` and `log_ratio` of a chain's latents; empty where weights are no numbers."""
    if not np.isfinite(np.exp(log_weights)).all():
        return {}
    drawn = (posterior[name].values[chain].astype(float) for name in posterior.data_vars)
    # discrete ones are drawn from their own posterior, and summed out of the weights
    return most_moved(((z, z) for z in drawn if (z != z.round()).any()), log_weights)


def _slack(moment: str, effective: float) -> float:
    """Twice the standard error of a `shift` or a `log_ratio` by so many effective draws, of a normal law."""
    return 2 / math.sqrt(effective if moment == "shift" else 2 * effective)


def of_like_evidence(vi: xr.Dataset) -> np.ndarray:
    """The restarts whose evidence is not negligible beside the best one's, by number."""
    evidence = vi["log_marginal"].values.reshape(vi.sizes["chain"], -1).sum(-1)
    return np.flatnonzero(evidence > np.nanmax(evidence, initial=-np.inf) - NEGLIGIBLE)


class _Judged:
    """A verdict under way, of the best chain and of what the others say."""

    def __init__(
        self, fit: Fitted, data: tuple | None, vi: xr.Dataset, posterior: xr.Dataset, stats: xr.Dataset, seed: int
    ):
        self.fit, self.data, self.vi, self.posterior, self.seed = fit, data, vi, posterior, seed
        self.draws, self.chain = posterior.sizes["draw"], fit.best
        self.local = vi["pareto_k"].ndim > 1  # a number a datum, whatever its plate is called by now
        self.smoothed = stats["log_weight_smoothed"].values[self.chain]
        self.figures: dict[str, float] = {}
        self.against: dict[str, str] = {}
        self.advice: dict[str, None] = {}
        self.level = GOOD
        self.richer = "" if "auto" in fit.metadata else RICHER  # which it was already

    def doubt(self, figure: str, why: str, advice: str = "", *, level: str = WEIGHTED) -> None:
        self.against[figure] = why
        if advice:
            self.advice[advice] = None
        if level == BAD or self.level == GOOD:
            self.level = level

    def weights(self) -> None:
        pareto_k, effective = (self.vi[name].values[self.chain] for name in ("pareto_k", "effective"))
        serves, bound = psis_reliable(pareto_k, effective, self.draws), khat_threshold(self.draws)
        plain = psis_reliable(pareto_k, effective, self.draws, most=PLAIN)
        if self.local:
            self.figures |= {"pareto_k": float(np.median(pareto_k)), "bad_rows": float((~serves).mean())}
            if self.figures["bad_rows"] > ROWS:
                why = f"above {ROWS}: k-hat of these data is above {bound:.2f}"
                self.doubt("bad_rows", why, self.richer, level=BAD)
            elif (share := (~plain).mean()) > ROWS:
                self.doubt("pareto_k", f"above {PLAIN} for {share:.0%} of data")
        else:
            self.figures["pareto_k"] = float(pareto_k)
            lost = pareto_k > PLAIN and plain and self.tail_counts()  # all but equal weights of draws that miss a tail
            if lost or not serves:
                why = f"above {PLAIN if lost else bound:.2f}: the guide misses mass of the posterior"
                self.doubt("pareto_k", why, self.richer, level=BAD)
                self.advice[
                    "another form of the model where one latent scales others: pyro.infer.reparam.LocScaleReparam"
                ] = None
            elif not plain:
                self.doubt("pareto_k", f"above {PLAIN}: the guide's draws have to be weighed")
        self.figures["effective"] = float(np.mean(effective) / self.draws)

    def tail_counts(self) -> bool:
        """Whether draws of a wider law find what all but equal weights do not show; False where there are none."""
        with self.fit.eval_mode(self.chain):
            if self.target is None:
                return False
            u = on_the_line(self.target, self.posterior, self.chain)
            found = look_beyond(self.target, self.fit.guide, u, torch.Generator().manual_seed(self.seed))
        if found is None:
            return False
        self.figures["unseen"] = found.unseen
        return found.unseen > UNSEEN or any(v > CLOSE + _slack(k, found.effective) for k, v in found.moments.items())

    @cached_property
    def target(self) -> UnconstrainedLogDensity | None:
        """The program's density on the real line, if it can be had and has the latents that were drawn."""
        if self.data is None:
            return None
        try:
            found = UnconstrainedLogDensity(self.fit.model, self.data)
        except (ValueError, RuntimeError, FloatingPointError, NotImplementedError):
            return None
        return found if found.dim <= CLIMBABLE and set(found.shapes) <= set(self.posterior.data_vars) else None

    def restarts(self) -> None:
        self.figures["restarts"] = float(len(self.fit.chains))
        kept = of_like_evidence(self.vi)
        if len(kept) < 2:
            return
        found = rhat(self.posterior.isel(chain=kept))
        values = np.concatenate([np.ravel(found[name].values) for name in found.data_vars])
        self.figures["r_hat"] = float(np.nanmax(values, initial=1.0))
        if self.figures["r_hat"] > AGREE:
            self.doubt(
                "r_hat",
                f"above {AGREE}: restarts of like evidence ended at different places",
                "a model whose modes are told apart (ordered components, say), or AnnealedELBO to cover them all",
                level=BAD,
            )

    def moments(self) -> None:
        moments = _moments(self.posterior, self.smoothed, self.chain)
        self.figures |= moments
        for name, value in moments.items():
            slack = _slack(name, self.figures["effective"] * self.draws)
            if value > FAR + slack:
                why = f"above {FAR} (and {slack:.2f} of noise): weights move the guide's draws too far to mend them"
                self.doubt(name, why, self.richer, level=BAD)
            elif value > CLOSE + slack:
                self.doubt(name, f"above {CLOSE} (and {slack:.2f} of noise): weights move the guide's draws")

    def elsewhere(self, starts: int) -> bool:
        """Looks for modes where the guide is not; whether that could be done."""
        with self.fit.eval_mode(self.chain):
            if (target := self.target) is None:
                return False  # the verdict then says that they were not looked for
            try:
                generator = torch.Generator().manual_seed(self.seed)
                found = find_modes(target, target.starts(starts, generator), generator)
            except (ValueError, RuntimeError, FloatingPointError, NotImplementedError):
                return False
            u = on_the_line(target, self.posterior, self.chain)
            noise = torch.randn(starts, self.draws, target.dim, generator=generator, dtype=torch.float64)
            log_p = target.log_prob(found.rsample(noise).flatten(0, 1)).reshape(starts, self.draws)
        here = float(self.vi["log_marginal"].values[self.chain])
        if not (np.isfinite(self.smoothed).any() and np.isfinite(here)):
            return False  # there is nothing that a mode could be laid beside
        # the posterior's mass within reach of each summit: by draws from there, and by the guide's own, weighed
        reach = math.sqrt(target.dim) + 2
        inside = noise.norm(dim=-1) < reach
        there = importance_summary(
            torch.where(inside, log_p - found.log_prob(noise), -torch.inf).mT.numpy()
        ).log_marginal
        own = (found.whitened(u).norm(dim=-1) < reach).double().numpy() @ np.exp(self.smoothed)
        share = 1 / (1 + np.exp(np.clip(here - there, -50, 50)))
        shares = np.where(np.isfinite(there) & (own < share / COVERED), share, 0.0)
        self.figures["elsewhere"] = float(shares.max(initial=0.0))
        if self.figures["elsewhere"] > AWAY:
            where = target.constrain(found.center[int(shares.argmax())])
            numbers = {k: v.numpy().reshape(-1) if v.dim() else v.numpy() for k, v in where.items()}  # on one line
            at = ", ".join(f"{k} = {np.array2string(v, precision=3, threshold=4)}" for k, v in numbers.items())
            self.doubt(
                "elsewhere",
                f"above {AWAY}: a mode where the guide is not, at {at[:160]}",
                "more restarts, which find other modes; then a model whose modes are told apart",
                level=BAD,
            )
        return True

    def course(self) -> None:
        losses = self.fit.chains[self.chain].history["loss"]
        fifth = len(losses) // 5
        if fifth < 5:
            return
        before, last = losses[-2 * fifth : -fifth], losses[-fifth:]
        if not np.isfinite(losses[-2 * fifth :]).all():
            return
        noise = 2 * math.sqrt((before.var() + last.var()) / fifth)
        size = self.fit.num_data
        self.figures["falling"] = max(0.0, float(before.mean() - last.mean() - noise)) * size
        if self.figures["falling"] > 0.5 and self.level != GOOD:
            self.against["falling"] = "nats, over the last fifth of the run: it was not at its end"
            if "auto" not in self.fit.metadata:  # which takes as many as it wants
                self.advice["more steps"] = None

    def verdict(self) -> Verdict:
        return Verdict(self.level, self.figures, self.against, tuple(self.advice))
