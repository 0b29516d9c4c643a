"""Metrics that learn: a critic network is trained to tell two samples apart, and its payoff is their distance.

``metric(x, y)`` is the critic's payoff V (see `ppgen.metrics.adversarial_losses`): an estimate of a divergence D(P, Q), from below
but for sampling error and for what the critic has memorized, and no better than the critic is. Its gradient is that of
the generator's loss, saturating or not, while the critic's weights hold still. `critic_loss` is the other side: -V and
the constraint's penalty, with the samples held still. Who takes which step when is up to `ppgen.infer`.

The critic is a network of the metric's own, with its own optimizer. It is called with a tensor for each joined site,
rows first, events in their own shape, and returns a number a row.
"""

import math
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ppgen.metrics.adversarial_losses import DIVERGENCES, HINGE, LEAST_SQUARES, WASSERSTEIN, Divergence, Game
from ppgen.metrics.constraints import Constraint, Sites
from ppgen.metrics.metric import Metric, Sample, sites_of
from ppgen.nets import Critic

__all__ = ["CriticMetric", "FDivergence", "Hinge", "JensenShannon", "LeastSquares", "Relativistic", "WassersteinDual"]

Builder = Callable[..., nn.Module]


@dataclass(kw_only=True, eq=False, repr=False)
class CriticMetric(Metric):
    """What all metrics with a critic share.

    - ``critic``: a module, called as ``critic(x)``, or ``critic(x, z)`` for joined sites, which returns (n,) or (n, 1);
      or a function of the sites' event shapes that makes one, called on the first samples; None for a
      `ppgen.nets.Critic` with these ``hidden`` widths and ``frequencies``.
    - ``lr``, ``betas``: of the critic's own Adam. Its memory of gradients is short, since a game turns and momentum
      carries it around (Radford et al. 2016; Gidel et al. 2019). Another rate than the programs' makes two time scales
      (Heusel et al. 2017).
    - ``optim``: in its place, a function parameters -> torch optimizer, or a Pyro optimizer.
    - ``steps``: the critic's steps before each step of the programs, all on its batch, with new draws of the programs.
    - ``packing``: so many rows are judged together, joined along the first axis of their events; a sample of a law that
      drops modes is then told from the data more easily (PacGAN, Lin et al. 2018). V is then of the law of packs.
    - ``smoothing``: this share of the rows of P counts as of Q in the critic's loss (Salimans et al. 2016, 3.4).
    - ``noise``: standard deviation of Gaussian noise on both samples, which gives laws on thin sets a common support
      (Arjovsky & Bottou 2017, section 3); in the units of the samples.
    - ``penalty``: a constraint of `ppgen.metrics.constraints`, or None.
    - ``saturating``: whether the programs lower V itself (see `ppgen.metrics.adversarial_losses`).

    Raises ``ValueError`` for options out of range, for samples whose sites do not match, for fewer rows than the
    packing, and for a critic whose output is not one number a row.
    """

    critic: nn.Module | Builder | None = field(default=None, kw_only=False)
    hidden: Sequence[int] | None = None
    frequencies: int = 0
    lr: float = 2e-4
    betas: tuple[float, float] = (0.5, 0.99)
    optim: Any = None
    steps: int = 1
    packing: int = 1
    smoothing: float = 0.0
    noise: float = 0.0
    penalty: Constraint | None = None
    saturating: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.critic is None:
            self.critic = partial(Critic, hidden=self.hidden, frequencies=self.frequencies)
        elif self.hidden is not None or self.frequencies:
            given = f"hidden={self.hidden}" if self.hidden is not None else f"frequencies={self.frequencies}"
            raise ValueError(f"{given} is of the critic that is made where none is given; give one of the two")
        if not callable(self.critic):
            raise TypeError(f"critic: expected a module, or a function of event shapes that makes one: {self.critic!r}")
        for option in ("steps", "packing"):
            if not (isinstance(number := getattr(self, option), int) and number >= 1):
                raise ValueError(f"{option}: expected a whole number from 1 on, got {number!r}")
        if not 0 <= self.smoothing < 0.5:
            raise ValueError(f"smoothing: expected a share from 0 to below 0.5, got {self.smoothing}")
        if not self.noise >= 0:
            raise ValueError(f"noise: expected a standard deviation of at least 0, got {self.noise}")
        if self.penalty is not None and not isinstance(self.penalty, Constraint):
            raise TypeError(f"penalty: expected a constraint such as GradientPenalty(10.0), got {self.penalty!r}")
        self.network: nn.Module | None = None

    @property
    def optimizer(self) -> Any:
        """What moves the critic: `optim`, or Adam."""
        first, second = map(float, self.betas)  # Adam takes no 0
        return self.optim if self.optim is not None else partial(torch.optim.Adam, lr=self.lr, betas=(first, second))

    @property
    def upper_bound(self) -> float | None:
        """The largest value that the divergence can have, None where it has none."""
        return None

    def __call__(self, x: Sample, y: Sample, wx: Tensor | None = None, wy: Tensor | None = None) -> Tensor:
        x, y, p, q, some = self._rows(x, y, wx, wy)
        network = self._built(x)
        with _still(network):
            vx, vy = self._scores(x), self._scores(y)
            value = self.critic_objective(vx, vy, p, q)
            if not self.saturating and torch.is_grad_enabled():
                loss = self.generator_loss(vx, vy, p, q)
                value = value.detach() + (loss - loss.detach())
        return torch.where(some, value, 0.0)

    def critic_loss(self, x: Sample, y: Sample, wx: Tensor | None = None, wy: Tensor | None = None) -> Tensor:
        """-V and the penalty, a scalar with gradients in the critic's weights alone."""
        x, y, p, q, some = self._rows(x, y, wx, wy)
        x, y = tuple(site.detach() for site in x), tuple(site.detach() for site in y)
        self._built(x)
        loss = -self.critic_objective(self._scores(x), self._scores(y), p, q, smoothing=self.smoothing)
        if self.penalty is not None:
            penalty = self.penalty.penalty(self._scores, x, y, p, q)
            loss = loss if penalty is None else loss + penalty
        return torch.where(some, loss, 0.0)

    def after_step(self) -> None:
        """To be called after each step of the critic."""
        if self.penalty is not None and self.network is not None:
            self.penalty.after(self.network)

    def build(self, x: Sample) -> nn.Module:
        """The critic's network, made for such samples if it is not there yet."""
        return self._built(_packed(sites_of(x, name="x"), self.packing, self.name))

    @abstractmethod
    def critic_objective(self, vx: Tensor, vy: Tensor, p: Tensor, q: Tensor, *, smoothing: float = 0.0) -> Tensor:
        """V, of the critic's numbers at rows of weights p and q."""

    @abstractmethod
    def generator_loss(self, vx: Tensor, vy: Tensor, p: Tensor, q: Tensor) -> Tensor:
        """What a non-saturating generator lowers."""

    def estimate(self, x: Tensor, y: Tensor, p: Tensor, q: Tensor) -> Tensor:
        raise NotImplementedError("a critic takes samples in their own shape, not as flat rows")

    def _built(self, x: Sites) -> nn.Module:
        if self.network is None:
            assert self.critic is not None
            made = self.critic if isinstance(self.critic, nn.Module) else self.critic(*[s.shape[1:] for s in x])
            if not isinstance(made, nn.Module):
                raise TypeError(f"{self.name}: the critic's function made no module but {made!r}")
            self.network = made.to(x[0].device)
            if made is not self.critic:
                self.network.to(x[0].dtype)
            if self.penalty is not None:
                self.penalty.prepare(self.network)
        return self.network

    def _scores(self, x: Sites) -> Tensor:
        assert self.network is not None
        scores = self.network(*x)
        n = len(x[0])
        if not isinstance(scores, Tensor) or scores.shape not in ((n,), (n, 1)):
            got = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
            packs = f" (of {self.packing} packed rows each)" if self.packing > 1 else ""
            raise ValueError(f"{self.name}: expected of the critic one number a row{packs}, shape ({n},), got {got}")
        return scores.reshape(n)

    def _rows(
        self, x: Sample, y: Sample, wx: Tensor | None, wy: Tensor | None
    ) -> tuple[Sites, Sites, Tensor, Tensor, Tensor]:
        """Packed sites in their own shape, weights that sum to one, and whether both samples have any."""
        xs, ys = sites_of(x, name="x"), sites_of(y, name="y")
        if [s.shape[1:] for s in xs] != [s.shape[1:] for s in ys]:
            raise ValueError(
                f"{self.name}: x and y must have the same sites, got events of shape "
                f"{[tuple(s.shape[1:]) for s in xs]} and {[tuple(s.shape[1:]) for s in ys]}; name as many sites on "
                "both sides, in the same order"
            )
        if xs[0].dtype != ys[0].dtype:
            raise ValueError(f"{self.name}: x and y must have one dtype, got {xs[0].dtype} and {ys[0].dtype}")
        xs, p, some_x = _weighed(xs, wx, "wx")
        ys, q, some_y = _weighed(ys, wy, "wy")
        if self.noise:
            xs, ys = (tuple(s + self.noise * torch.randn_like(s) for s in sites) for sites in (xs, ys))
        if self.packing > 1:
            xs, ys = _packed(xs, self.packing, self.name), _packed(ys, self.packing, self.name)
            p, q = _packed_weights(p, self.packing), _packed_weights(q, self.packing)
        some = some_x & some_y & (p.sum() > 0) & (q.sum() > 0)
        return xs, ys, _normalized(p), _normalized(q), some


@dataclass(kw_only=True, eq=False, repr=False)
class _TwoSided(CriticMetric):
    """V = E_P a(v(x)) + E_Q b(v(y)), by a `Game`."""

    @property
    @abstractmethod
    def game(self) -> Game: ...

    @property
    def upper_bound(self) -> float | None:
        return self.game.upper_bound

    def critic_objective(self, vx: Tensor, vy: Tensor, p: Tensor, q: Tensor, *, smoothing: float = 0.0) -> Tensor:
        game = self.game
        real = game.real(vx)
        if smoothing:
            real = (1 - smoothing) * real + smoothing * game.fake(vx)
        return p @ real + q @ game.fake(vy)

    def generator_loss(self, vx: Tensor, vy: Tensor, p: Tensor, q: Tensor) -> Tensor:
        game = self.game
        if game.pull is not None:
            return p @ game.pull(vx) - q @ game.pull(vy)
        return -(p @ game.fake(vx) + q @ game.real(vy))


@dataclass(kw_only=True, eq=False, repr=False)
class FDivergence(_TwoSided):
    """D_f(P, Q) by a critic: ``divergence`` names a row of `ppgen.metrics.adversarial_losses.DIVERGENCES`, or is one.

    ``"kl"``, ``"reverse_kl"``, ``"jensen_shannon"``, ``"squared_hellinger"``, ``"pearson"``, ``"total_variation"``, or
    ``alpha_divergence(0.5)``. In nats where f is a logarithm.
    """

    divergence: str | Divergence = field(default="jensen_shannon", kw_only=False)

    def __post_init__(self) -> None:
        if not isinstance(self.divergence, str | Divergence):
            raise TypeError(f"divergence: expected a name or a Divergence, got {self.divergence!r}")
        if isinstance(self.divergence, str) and self.divergence not in DIVERGENCES:
            raise ValueError(f"divergence: expected one of {', '.join(DIVERGENCES)}, got {self.divergence!r}")
        super().__post_init__()

    @property
    def label(self) -> str:
        return str(self.divergence)

    @property
    def game(self) -> Game:
        return (DIVERGENCES[self.divergence] if isinstance(self.divergence, str) else self.divergence).game


@dataclass(kw_only=True, eq=False, repr=False)
class JensenShannon(_TwoSided):
    """The Jensen-Shannon divergence, in nats, at most log 2: the GAN (Goodfellow et al. 2014).

    sigmoid(v) is the critic's guess that a row is of P.
    """

    @property
    def game(self) -> Game:
        return DIVERGENCES["jensen_shannon"].game


@dataclass(kw_only=True, eq=False, repr=False)
class LeastSquares(_TwoSided):
    """Half the integral of (p - q)^2 / (p + q), at most 1, by least squares from labels 1 and 0 (Mao et al. 2017)."""

    @property
    def game(self) -> Game:
        return LEAST_SQUARES


@dataclass(kw_only=True, eq=False, repr=False)
class Hinge(_TwoSided):
    """Total variation, at most 1, by the hinge loss (Lim & Ye 2017)."""

    @property
    def game(self) -> Game:
        return HINGE


@dataclass(kw_only=True, eq=False, repr=False)
class WassersteinDual(_TwoSided):
    """W_1(P, Q) = sup over 1-Lipschitz v of E v(x) - E v(y) (Kantorovich and Rubinstein), in the units of the samples.

    It is only that if ``penalty`` holds the critic's slope at 1. GradientPenalty(w) lets it rise to about 1 + W_1 / 2w
    (Gulrajani et al. 2017), by which factor the value is then too large; under SpectralNorm it is a lower bound, under
    Clip or ZeroCenteredGradientPenalty right up to an unknown factor.

    Raises ``ValueError`` without a penalty, since the value then grows without end.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.penalty is None:
            raise ValueError(
                "penalty: W_1 needs a Lipschitz critic; give GradientPenalty(10.0), SpectralNorm() or Clip"
            )

    @property
    def game(self) -> Game:
        return WASSERSTEIN


@dataclass(kw_only=True, eq=False, repr=False)
class Relativistic(CriticMetric):
    """Relativistic pairing: sup_v E log 2 sigmoid(v(x) - v(y)), at most log 2 (Jolicoeur-Martineau 2019 and 2020).

    A critic has to rank rows of P above rows of Q, all pairs counted, and so cannot ignore a mode that Q lacks. With
    ``ZeroCenteredGradientPenalty(at="both")`` it is the loss of R3GAN (Huang et al. 2024, equation 2).
    """

    @property
    def upper_bound(self) -> float | None:
        return math.log(2)

    def critic_objective(self, vx: Tensor, vy: Tensor, p: Tensor, q: Tensor, *, smoothing: float = 0.0) -> Tensor:
        apart = vx[:, None] - vy
        won = F.logsigmoid(apart)
        if smoothing:
            won = (1 - smoothing) * won + smoothing * F.logsigmoid(-apart)
        return p @ won @ q + math.log(2)

    def generator_loss(self, vx: Tensor, vy: Tensor, p: Tensor, q: Tensor) -> Tensor:
        return -(p @ F.logsigmoid(vy - vx[:, None]) @ q)


@contextmanager
def _still(network: nn.Module) -> Iterator[None]:
    """The network with its weights held still; where nothing is differentiated, in eval mode too."""
    flags = [(parameter, parameter.requires_grad) for parameter in network.parameters()]
    modes = [(m, m.training) for m in network.modules()] if not torch.is_grad_enabled() else []
    try:
        for parameter, _ in flags:
            parameter.requires_grad_(False)
        for module, _ in modes:
            module.training = False
        yield
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
        for module, mode in modes:
            module.training = mode


def _weighed(sites: Sites, weights: Tensor | None, name: str) -> tuple[Sites, Tensor, Tensor]:
    """Sites whose rows of weight zero are zero, a weight a row, and whether any is positive."""
    n = len(sites[0])
    if weights is None:
        return sites, sites[0].new_ones(n), torch.ones((), dtype=torch.bool, device=sites[0].device)
    if weights.shape != (n,):
        raise ValueError(f"{name}: expected a weight a row, ({n},), got {tuple(weights.shape)}")
    present = weights > 0
    kept = tuple(torch.where(present.reshape(-1, *[1] * (site.dim() - 1)), site, 0.0) for site in sites)
    return kept, weights.to(sites[0]), present.any()


def _normalized(weights: Tensor) -> Tensor:
    total = weights.sum()
    return weights / torch.where(total > 0, total, 1.0)


def _packed(sites: Sites, packing: int, name: str) -> Sites:
    """Rows k together, joined along the first axis of their events; rows left over are left out."""
    n = len(sites[0])
    if n < packing:
        raise ValueError(f"{name}: packing={packing} needs at least as many rows of each sample, got {n}")
    if packing == 1:
        return sites
    packs = n // packing
    return tuple(s[: packs * packing].reshape(packs, -1, *s.shape[2:]) for s in sites)


def _packed_weights(weights: Tensor, packing: int) -> Tensor:
    packs = len(weights) // packing
    return weights[: packs * packing].reshape(packs, packing).prod(1)
