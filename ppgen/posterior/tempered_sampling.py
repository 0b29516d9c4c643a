"""Sequential Monte Carlo from a base b to a posterior p, with moves by Hamiltonian Monte Carlo.

    log f_t(y) = beta_t log p(y) + (1 - beta_t) log b(y),    0 = beta_0 < ... < beta_T = 1

Several populations of points start at y ~ b. At each temperature a population is resampled by the weights
(p / b)^(beta_t - beta_{t-1}), and its points are moved (Del Moral et al. 2006,
https://doi.org/10.1111/j.1467-9868.2006.00553.x). The mean weights of all temperatures multiply to an estimate of the
evidence p(x) in each population. The next beta is the largest at which the weights of each population keep half of
their effective sample size. Length and number of leapfrog steps, and the covariance for which the dynamics are round,
follow the points (Buchholz et al. 2021, https://doi.org/10.1214/20-BA1222).

Populations share these settings and nothing else, so that they are chains to R-hat: it sees masses of modes that differ
between them. Resampling keeps the order of points, so that relatives are neighbors, and the effective sample size of
ArviZ sees them as such. At beta = 1 moves go on until both are good, and until the points have forgotten where they
came from: chains that share a base may agree long before they are at the posterior. Where the guide has a flow, every
other move there is one in the coordinates of the program: where the flow was not trained, it can map a part of the
posterior so far out that no move in its own coordinates comes there. The final points give a second estimate of the
evidence, by bridge sampling with those of the base, which tells of mass that was lost on the way.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import brentq
from scipy.special import expit
from torch import Tensor

from ppgen.posterior.annealed_sampling import log_mean_exp
from ppgen.posterior.hamiltonian import BridgePoints, move
from ppgen.posterior.importance import resample
from ppgen.posterior.preconditioning import Preconditioned
from ppgen.posterior.student_mixture import StudentMixture, WithPrior
from ppgen.utils.arviz_versions import mixing
from ppgen.utils.budget import Budget

__all__ = ["ENOUGH_ESS", "MAX_MEMORY", "MAX_RHAT", "TemperedSample", "bridge_evidence", "sample_tempered"]

MAX_RHAT, ENOUGH_ESS = 1.01, 400.0  # of draws that can be relied on (Vehtari et al. 2021)
MARGIN = 0.7  # of both, to which moves go on: functions of the latents mix less well than these
MOST_ESS = 0.6  # share of all draws, which moves do not wait for more than
KEPT_ESS = 0.5  # share of the effective sample size that one change of temperature keeps
MAX_CORRELATION, MOST_MOVES = 0.3, 12  # of log p / b before and after the moves at a temperature; of these
LEAST_MOVES, LEAST_PAIRS, MAX_MOVES = 16, 24, 256  # at beta = 1; the second are moves with and without a flow
MAX_MEMORY = 0.3  # largest correlation of a coordinate of the points before and after these moves
FIRST_STEP = 0.5  # times dim^(-1/4)
ACCEPTANCE, ADAPTATION = 0.8, 0.5  # the mean to which the step is adapted, and the rate at which its logarithm is
SMALLEST_STEP = 0.1  # of a move; half of the points have more than 0.56, some go where the scale is small
TRAJECTORY = 1.5  # length of a trajectory at the largest step, where standard deviations are 1
LEAST_STEPS, MOST_STEPS = 3, 32  # of a trajectory
MAX_FULL_DIM = 200  # up to which the dynamics have a full covariance
TRIMMED = 0.02  # share of the points at either end of a coordinate that do not widen the dynamics
PRIOR_POINTS = 5  # of diagonal covariance, beside those of the sample


@dataclass(frozen=True)
class TemperedSample:
    """Draws of a posterior.

    Attributes:
        u: the draws, (chains, draws, dim), on the real line of the program.
        log_evidence: the estimates of log p(x) by each chain, in nats, (chains,).
        log_marginal: the logarithm of their mean; the estimate by bridge sampling where moves without the flow found
            mass that the weights have not seen; NaN if the sampler did not arrive.
        error: its standard error: the largest of that between chains, that of the weights within them, and the distance
            from the estimate by bridge sampling, less twice the error of that.
        beta: the inverse temperature that was reached; draws are of the posterior if it is 1.
        temperatures: how many there were.
        moves: the number of moves at beta = 1.
        memory: the largest rank correlation of the points before and after these moves: of a coordinate on the real
            line, or log p, around its mean in each mode of the base, or of the absolute value of that. NaN if the
            sampler did not come so far.
        accepted: the mean acceptance probability of the last move.
        stop_reason: why the moves ended.
        interrupted: whether Ctrl-C ended them.
    """

    u: Tensor
    log_evidence: Tensor
    log_marginal: float
    error: float
    beta: float
    temperatures: int
    moves: int
    memory: float
    accepted: float
    stop_reason: str
    interrupted: bool = False


def sample_tempered(
    density: Preconditioned,
    base: StudentMixture | WithPrior,
    *,
    chains: int,
    draws: int,
    generator: torch.Generator,
    budget: Budget | None = None,
) -> TemperedSample:
    """Draws from a posterior.

    Args:
        density: log p(y).
        base: b(y).
        chains: the number of populations, at least two.
        draws: the number of points of each.
        generator: source of all random numbers.
        budget: the time, after which the sample is what was reached; Ctrl-C ends it in the same way.

    Raises:
        FloatingPointError: if log p is not finite at any point of a population.
    """
    budget = budget or Budget()
    populations = _Populations(density, base, chains, draws, generator)
    reason, interrupted = "", False
    try:
        for progress, reason in populations.run():
            budget.show(progress)
            if reason:
                break
            if not budget.left:
                reason = f"the budget of {budget.seconds:g} s was over at {progress}"
                break
    except KeyboardInterrupt:
        reason, interrupted = f"interrupted at beta = {populations.beta:.3g}", True
    return populations.result(reason, interrupted)


class _Populations:
    """Points at one temperature, of all populations one after another."""

    def __init__(
        self,
        density: Preconditioned,
        base: StudentMixture | WithPrior,
        chains: int,
        draws: int,
        generator: torch.Generator,
    ) -> None:
        self.density, self.base, self.generator = density, base, generator
        self.shape, self.beta, self.temperatures, self.moves, self.accepted = (chains, draws), 0.0, 0, 0, 1.0
        self.log_evidence = torch.zeros(chains, dtype=torch.float64)
        self.variance = torch.zeros(chains, dtype=torch.float64)  # of log evidence, by the weights
        self.arrived, self.memory, self.step = False, math.nan, FIRST_STEP * density.dim**-0.25
        self.plain, self.by_flow = density.without_flow(), density.flow is not None
        self.plain_step = self.step
        self.rng = np.random.default_rng(int(torch.randint(2**31, (), generator=generator)))
        self.points = self._evaluate(base.sample(chains * draws, generator))
        if not self.points.log_p.reshape(self.shape).isfinite().any(1).all():
            raise FloatingPointError(
                f"refine: the program has no density at any of {draws} points around the guide: its support may be "
                "smaller than that of its latents"
            )
        self.ratio_of_base = self._log_ratio()

    def run(self) -> Iterator[tuple[str, str]]:
        """Lowers the temperature, then moves the points; yields a text of progress, and the reason why it is done."""
        while self.beta < 1:
            self._lower_temperature()
            root, before = self._root(self.points.y), self._log_ratio()
            for _ in range(MOST_MOVES):
                self._move(root)
                yield f"beta = {self.beta:.3g}", ""
                if _correlation(before, self._log_ratio()) <= MAX_CORRELATION:
                    break
        least = LEAST_PAIRS if self.by_flow else LEAST_MOVES
        following, last, first, self.arrived = least // 2, None, self._around_parts(), True
        root = self._root(self.points.y)
        while True:
            if self.by_flow:  # points that only the other moves reach are far out in its coordinates: they set no scale
                self._move(root, adapt=False)
                self._move_without_flow()
            else:
                self._move(self._root(self.points.y))
            self.moves += 1
            text = f"beta = 1, move {self.moves}"
            if self.moves >= following:
                now, following = self._stacked(), max(least, 3 * following // 2)
                worst_rhat, least_ess = mixing(now)
                if last is not None:  # whether the points still drift
                    worst_rhat = max(worst_rhat, mixing(np.concatenate([last, now]))[0])
                self.memory = _memory(first, self._around_parts())
                text += f", R-hat {worst_rhat:.3f}, ESS {least_ess:.0f}, memory {self.memory:.2f}"
                enough = last is not None and least_ess >= min(ENOUGH_ESS / MARGIN, MOST_ESS * len(self.points.y))
                enough, last = enough and self.memory <= MARGIN * MAX_MEMORY, now
                if enough and worst_rhat <= 1 + MARGIN * (MAX_RHAT - 1):
                    yield text, f"{text} after {self.temperatures} temperatures"
                elif self.moves >= MAX_MOVES:
                    yield text, f"{text}: no more than {MAX_MOVES} moves"
            yield text, ""

    def result(self, reason: str, interrupted: bool) -> TemperedSample:
        """The sample as it is."""
        arrived = 0.0 if self.beta == 1.0 else math.nan
        log_marginal, between = log_mean_exp(self.log_evidence + arrived)
        within = math.sqrt(float(self.variance.mean()) / len(self.variance))
        bridge, of_bridge = log_marginal, 0.0
        if self.beta == 1.0:
            ratio = self.points.log_p - self.base.log_prob_and_grad(self.points.y)[0]
            bridge, of_bridge = bridge_evidence(self.ratio_of_base, ratio.reshape(self.shape))
        lost = abs(bridge - log_marginal) - 2 * of_bridge
        if lost > 0 and self.by_flow:  # weights have not seen what points have reached without the flow
            log_marginal, between = bridge, max(between, of_bridge)
        return TemperedSample(
            u=self.density.points(self.points.y).reshape(*self.shape, -1),
            log_evidence=self.log_evidence + arrived,
            log_marginal=log_marginal,
            error=max(between, within, lost),
            beta=self.beta,
            temperatures=self.temperatures,
            moves=self.moves,
            memory=self.memory,
            accepted=self.accepted,
            stop_reason=reason,
            interrupted=interrupted,
        )

    def _stacked(self) -> np.ndarray:
        """Coordinates and log p of the points, on the real line of the program: (chains, draws, dim + 1)."""
        u = self.density.points(self.points.y)
        return torch.cat([u, self.points.log_p[:, None]], 1).reshape(*self.shape, -1).numpy()

    def _evaluate(self, y: Tensor) -> BridgePoints:
        log_p, gradient_p = self.density.log_prob_and_grad(y)
        if self.arrived:  # the base does not count any more
            return BridgePoints(y, log_p, torch.zeros_like(log_p), gradient_p, torch.zeros_like(gradient_p))
        log_b, gradient_b = self.base.log_prob_and_grad(y)
        return BridgePoints(y, log_p, log_b, gradient_p, gradient_b)

    def _lower_temperature(self) -> None:
        """Weights and resamples each population."""
        log_ratio = self._log_ratio()
        low, high = 0.0, 1 - self.beta
        if _ess(high * log_ratio).min() < KEPT_ESS * self.shape[1]:
            for _ in range(50):
                middle = 0.5 * (low + high)
                enough = _ess(middle * log_ratio).min() >= KEPT_ESS * self.shape[1]
                low, high = (middle, high) if enough else (low, middle)
        beta, change = (1.0, high) if high == 1 - self.beta else (self.beta + low, low)
        log_weights = change * log_ratio
        self.log_evidence += log_weights.logsumexp(1) - math.log(self.shape[1])
        self.variance += 1 / _ess(log_weights) - 1 / self.shape[1]
        chosen = [resample(row.numpy(), seed=self.rng) + i * self.shape[1] for i, row in enumerate(log_weights)]
        self.points, self.beta = self.points.select(torch.as_tensor(np.concatenate(chosen))), beta
        self.temperatures += 1

    def _log_ratio(self) -> Tensor:
        """The values of log p / b, on which weights depend: (chains, draws)."""
        return (self.points.log_p - self.points.log_b).reshape(self.shape)

    def _root(self, y: Tensor) -> Tensor:
        """A square root of the covariance of the points y around the means of the parts of the base where they are.

        Without their tails: a scale that one far point has set is another one once it has moved, and its moves would
        not leave f invariant.
        """
        y = self._centered(y)
        low, high = torch.quantile(y, torch.tensor([TRIMMED, 1 - TRIMMED], dtype=y.dtype), 0)
        y = y.clamp(low, high)
        variance = y.square().mean(0).clamp(min=1e-30)
        if self.density.dim <= MAX_FULL_DIM:
            covariance = (y.mT @ y + PRIOR_POINTS * variance.diag()) / (len(y) + PRIOR_POINTS)
            root, failed = torch.linalg.cholesky_ex(covariance)
            if not failed:
                return root
        return variance.sqrt().diag()

    def _centered(self, x: Tensor) -> Tensor:
        """Numbers (n, k) of each point, around their means in the part of the base where the point is."""
        part = self.base.part_of(self.points.y)
        members = torch.nn.functional.one_hot(part, len(self.base.weights)).to(x)
        return x - ((members.mT @ x) / members.sum(0)[:, None].clamp(min=1))[part]

    def _around_parts(self) -> Tensor:
        """Coordinates and log p of the points around their means in each part: (n, dim + 1)."""
        return self._centered(torch.as_tensor(self._stacked()).flatten(0, 1))

    def _move(self, root: Tensor, *, adapt: bool = True) -> None:
        self.points, self.accepted, step = self._moved(self.points, self._evaluate, self.step, root)
        self.step = step if adapt else self.step

    def _move_without_flow(self) -> None:
        """Moves the points in the coordinates of the program, at beta = 1.

        Points that have no coordinates in the flow, to rounding, stay where they were.
        """
        u = self.density.points(self.points.y)
        moved, _, self.plain_step = self._moved(
            self._evaluate_plain(u), self._evaluate_plain, self.plain_step, self._root(u)
        )
        found = self._evaluate(self.density.inverse(moved.y))
        same = self.density.is_at(found.y, moved.y) & found.log_p.isfinite()
        self.points = self.points.replaced(same, found)

    def _evaluate_plain(self, u: Tensor) -> BridgePoints:
        log_p, gradient = self.plain.log_prob_and_grad(u)
        return BridgePoints(u, log_p, torch.zeros_like(log_p), gradient, torch.zeros_like(gradient))

    def _moved(
        self, points: BridgePoints, evaluate: Callable[[Tensor], BridgePoints], step: float, root: Tensor
    ) -> tuple[BridgePoints, float, float]:
        """The points after a move, the share of moves that were accepted, and the step that follows from it."""
        uniform = torch.rand(len(points.y), 1, generator=self.generator, dtype=torch.float64)
        points, accepted = move(
            points,
            self.beta,
            evaluate,
            step=step * SMALLEST_STEP ** uniform.square(),
            leapfrog_steps=min(MOST_STEPS, max(LEAST_STEPS, round(TRAJECTORY / step))),
            generator=self.generator,
            root=root,
        )
        share = float(accepted.mean())
        return points, share, step * math.exp(ADAPTATION * (share - ACCEPTANCE))


def bridge_evidence(ratio_of_base: Tensor, ratio: Tensor) -> tuple[float, float]:
    """The log evidence from draws of the base b and of the posterior p / p(x), by bridge sampling, and its error.

    With as many of both, in each chain, log p(x) is the c at which, for sigma(t) = 1 / (1 + exp(-t)),

        sum over draws of b of sigma(log p / b - c) = sum over draws of p of sigma(c - log p / b)

    Meng & Wong 1996, https://www.jstor.org/stable/24306045; it is Bennett's acceptance ratio.

    Args:
        ratio_of_base: the values of log p / b at draws of b, (chains, draws).
        ratio: the same at draws of p.

    Returns:
        the mean over chains, in nats; its standard error, from the differences between them.
    """

    def of_chain(base: np.ndarray, posterior: np.ndarray) -> float:
        base = base[np.isfinite(base)]  # others count as zero
        ends = base.max(), posterior.min()  # below both the first sum is larger, above both the second
        return brentq(lambda c: expit(base - c).sum() - expit(c - posterior).sum(), min(ends) - 50, max(ends) + 50)

    found = [of_chain(*pair) for pair in zip(ratio_of_base.numpy(), ratio.numpy(), strict=True)]
    return float(np.mean(found)), float(np.std(found, ddof=1) / math.sqrt(len(found)))


def _memory(first: Tensor, now: Tensor) -> float:
    """The largest rank correlation of a coordinate of points (n, dim) then and now, or of its absolute values."""
    pairs = [(first, now), (first.abs(), now.abs())]
    return max(_correlation(x[:, i], y[:, i]) for x, y in pairs for i in range(first.shape[1]))


def _correlation(x: Tensor, y: Tensor) -> float:
    """The correlation of the ranks of x and y."""
    ranks = torch.stack([part.flatten().argsort().argsort().double() for part in (x, y)])
    return float(torch.corrcoef(ranks)[0, 1])


def _ess(log_weights: Tensor) -> Tensor:
    """Kish's effective sample size of the weights of each row: (rows,)."""
    weights = (log_weights - log_weights.max(1, keepdim=True).values).exp()
    return weights.sum(1).square() / weights.square().sum(1)
