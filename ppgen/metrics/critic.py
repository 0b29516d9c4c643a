"""Metrics with a trained critic: a network learns to distinguish two samples, and its objective is their distance.

``metric(x, y)`` is the critic's objective V (see `ppgen.metrics.adversarial_losses`), an estimate of a divergence
D(P, Q). It is a lower bound up to sampling error and memorized rows, and only as tight as the critic is good. Its
gradient is that of the generator's loss, saturating or not, with the critic's weights fixed. `critic_loss` is the
critic's side: -V plus the constraint's penalty, with the samples detached. `ppgen.infer` decides when each
side takes a step.

The critic is the metric's own network, with its own optimizer. It is called with one tensor per site, rows first and
events in their original shape, and returns one score per row.
"""

import math
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ppgen.metrics.adversarial_losses import (
    DIVERGENCES,
    HINGE,
    LEAST_SQUARES,
    WASSERSTEIN,
    AdversarialLoss,
    Divergence,
)
from ppgen.metrics.checks import check_integer
from ppgen.metrics.constraints import Constraint, GradientPenalty, ZeroCenteredGradientPenalty
from ppgen.metrics.metric import Metric, Sample, SiteValues, check_weights, site_values
from ppgen.nets import Critic

__all__ = ["CriticMetric", "FDivergence", "Hinge", "JensenShannon", "LeastSquares", "Relativistic", "WassersteinDual"]

CriticBuilder = Callable[..., nn.Module]


@dataclass(kw_only=True, eq=False, repr=False)
class CriticMetric(Metric):
    """The base class of all metrics with a critic.

    Args:
        critic: A module, called as ``critic(x)``, or ``critic(x, z)`` for several sites, that returns (n,) or (n, 1).
            Or a function of the sites' event shapes that returns such a module, called with the first samples. None
            builds a `ppgen.nets.Critic`.
        hidden: The hidden widths of the default critic.
        frequencies: The number of frequencies of the default critic.
        lr: The learning rate of the critic's own Adam. A rate other than that of the generator gives two time scales
            (Heusel et al. 2017, https://arxiv.org/abs/1706.08500).
        betas: The momentum parameters of this Adam. The default momentum is low, because adversarial training rotates
            around its equilibrium and momentum amplifies the rotation (Radford et al. 2016,
            https://arxiv.org/abs/1511.06434; Gidel et al. 2019, https://arxiv.org/abs/1807.04740).
        optim: Replaces Adam: a function from parameters to a torch optimizer, or a Pyro optimizer.
        steps: The number of critic steps before each step of the programs, all on the same batch of data, with new
            draws from the programs.
        packing: The number of rows that the critic scores together, joined along the first axis of their events. A
            distribution that drops modes is then easier to distinguish from the data (PacGAN, Lin et al. 2018,
            https://arxiv.org/abs/1712.04086). V is then that of the distribution of packs.
        smoothing: The share of the rows of P that the critic's loss treats as rows of Q (one-sided label smoothing,
            Salimans et al. 2016, https://arxiv.org/abs/1606.03498, section 3.4).
        noise: The standard deviation of Gaussian noise added to both samples, in the units of the samples. It gives
            distributions on thin sets a common support (Arjovsky & Bottou 2017, https://arxiv.org/abs/1701.04862).
        penalty: A constraint of `ppgen.metrics.constraints`, or None.
        saturating: Whether the programs minimize V itself (see `ppgen.metrics.adversarial_losses`).

    Raises:
        TypeError: If the critic, the penalty or the divergence has the wrong type.
        ValueError: If options are out of range; on a call, if the sites of the samples differ, there are fewer rows
            than one pack, or the critic does not return one number per row.
    """

    critic: nn.Module | CriticBuilder | None = field(default=None, kw_only=False)
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
            raise ValueError(f"{given} is an option of the default critic; give either it or a critic")
        if not callable(self.critic):
            raise TypeError(f"critic: expected a module, or a function of event shapes, got {self.critic!r}")
        check_integer("steps", self.steps)
        check_integer("packing", self.packing)
        if not 0 <= self.smoothing < 0.5:
            raise ValueError(f"smoothing: expected a share of at least 0 and below 0.5, got {self.smoothing}")
        if not self.noise >= 0:
            raise ValueError(f"noise: expected a standard deviation of at least 0, got {self.noise}")
        if self.penalty is not None and not isinstance(self.penalty, Constraint):
            raise TypeError(f"penalty: expected a constraint such as GradientPenalty(10.0), got {self.penalty!r}")
        self.network: nn.Module | None = None

    @property
    def optimizer(self) -> Any:
        """The critic's optimizer: `optim`, or Adam."""
        first, second = map(float, self.betas)  # Adam refuses the integer 0
        return self.optim if self.optim is not None else partial(torch.optim.Adam, lr=self.lr, betas=(first, second))

    @property
    def upper_bound(self) -> float | None:
        """The largest value of the divergence, or None if it is unbounded."""
        return None

    def __call__(self, x: Sample, y: Sample, wx: Tensor | None = None, wy: Tensor | None = None) -> Tensor:
        """V, a scalar, with the gradient of the generator's loss in the samples."""
        x, y, p, q, comparable = self._prepare(x, y, wx, wy)
        network = self._build(x)
        with _frozen(network):
            vx, vy = self._scores(x), self._scores(y)
            value = self.critic_objective(vx, vy, p, q)
            if not self.saturating and torch.is_grad_enabled():
                loss = self.generator_loss(vx, vy, p, q)
                value = value.detach() + (loss - loss.detach())
        return torch.where(comparable, value, 0.0)

    def critic_loss(self, x: Sample, y: Sample, wx: Tensor | None = None, wy: Tensor | None = None) -> Tensor:
        """-V plus the penalty, a scalar with gradients in the critic's weights alone.

        Args:
            x: A sample of P.
            y: A sample of Q.
            wx: Weights of x, or None.
            wy: Weights of y, or None.
        """
        x, y, p, q, comparable = self._prepare(x, y, wx, wy)
        x, y = tuple(site.detach() for site in x), tuple(site.detach() for site in y)
        self._build(x)
        loss = -self.critic_objective(self._scores(x), self._scores(y), p, q, smoothing=self.smoothing)
        if self.penalty is not None:
            penalty = self.penalty.penalty(self._scores, x, y, p, q)
            loss = loss if penalty is None else loss + penalty
        return torch.where(comparable, loss, 0.0)

    def after_step(self) -> None:
        """Applies the constraint; to be called after each step of the critic."""
        if self.penalty is not None and self.network is not None:
            self.penalty.after_step(self.network)

    def build(self, x: Sample) -> nn.Module:
        """The critic's network, which is built for samples like this one if it does not exist yet.

        Args:
            x: A sample.
        """
        return self._build(_packed(site_values(x, name="x"), self.packing, self.name))

    @abstractmethod
    def critic_objective(self, vx: Tensor, vy: Tensor, p: Tensor, q: Tensor, *, smoothing: float = 0.0) -> Tensor:
        """V, a scalar.

        Args:
            vx: Scores (n,) of rows of P.
            vy: Scores (m,) of rows of Q.
            p: Weights of vx.
            q: Weights of vy.
            smoothing: The share of rows of P that count as rows of Q.
        """

    @abstractmethod
    def generator_loss(self, vx: Tensor, vy: Tensor, p: Tensor, q: Tensor) -> Tensor:
        """The loss of a non-saturating generator, a scalar.

        Args:
            vx: Scores (n,) of rows of P.
            vy: Scores (m,) of rows of Q.
            p: Weights of vx.
            q: Weights of vy.
        """

    def estimate(self, x: Tensor, y: Tensor, p: Tensor, q: Tensor) -> Tensor:
        """Not used: a critic gets events in their original shape, not flattened rows."""
        raise NotImplementedError("a metric with a critic is called with samples in their original shape")

    def _build(self, x: SiteValues) -> nn.Module:
        if self.network is None:
            assert self.critic is not None
            made = self.critic if isinstance(self.critic, nn.Module) else self.critic(*[s.shape[1:] for s in x])
            if not isinstance(made, nn.Module):
                raise TypeError(f"{self.name}: expected the critic function to return a module, got {made!r}")
            self.network = made.to(x[0].device)
            if made is not self.critic:
                self.network.to(x[0].dtype)
            if self.penalty is not None:
                self.penalty.prepare(self.network)
        return self.network

    def _scores(self, x: SiteValues) -> Tensor:
        assert self.network is not None
        scores = self.network(*x)
        n = len(x[0])
        if not isinstance(scores, Tensor) or scores.shape not in ((n,), (n, 1)):
            got = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
            packs = f" (of {self.packing} packed rows each)" if self.packing > 1 else ""
            raise ValueError(
                f"{self.name}: expected the critic to return one number per row{packs}, shape ({n},), got {got}"
            )
        return scores.reshape(n)

    def _prepare(
        self, x: Sample, y: Sample, wx: Tensor | None, wy: Tensor | None
    ) -> tuple[SiteValues, SiteValues, Tensor, Tensor, Tensor]:
        """Packed samples in their original shape, normalized weights, and whether both samples have any weight."""
        xs, ys = site_values(x, name="x"), site_values(y, name="y")
        if [s.shape[1:] for s in xs] != [s.shape[1:] for s in ys]:
            raise ValueError(
                f"{self.name}: x and y must have the same sites, got events of shape "
                f"{[tuple(s.shape[1:]) for s in xs]} and {[tuple(s.shape[1:]) for s in ys]}; name the same number of "
                "sites on both sides, in the same order"
            )
        if xs[0].dtype != ys[0].dtype:
            raise ValueError(f"{self.name}: x and y must have the same dtype, got {xs[0].dtype} and {ys[0].dtype}")
        xs, p = _zero_weightless(xs, wx, "wx")
        ys, q = _zero_weightless(ys, wy, "wy")
        if self.noise:
            xs, ys = (tuple(s + self.noise * torch.randn_like(s) for s in sites) for sites in (xs, ys))
        if self.packing > 1:
            xs, ys = _packed(xs, self.packing, self.name), _packed(ys, self.packing, self.name)
            p, q = _packed_weights(p, self.packing), _packed_weights(q, self.packing)
        return xs, ys, _normalized(p), _normalized(q), (p.sum() > 0) & (q.sum() > 0)


@dataclass(kw_only=True, eq=False, repr=False)
class _TwoTermMetric(CriticMetric):
    """V = E_P a(v(x)) + E_Q b(v(y)), with a and b from an `AdversarialLoss`."""

    @property
    @abstractmethod
    def adversarial_loss(self) -> AdversarialLoss:
        """The functions a and b."""

    @property
    def upper_bound(self) -> float | None:
        return self.adversarial_loss.upper_bound

    def critic_objective(self, vx: Tensor, vy: Tensor, p: Tensor, q: Tensor, *, smoothing: float = 0.0) -> Tensor:
        loss = self.adversarial_loss
        real = loss.real(vx)
        if smoothing:
            real = (1 - smoothing) * real + smoothing * loss.fake(vx)
        return p @ real + q @ loss.fake(vy)

    def generator_loss(self, vx: Tensor, vy: Tensor, p: Tensor, q: Tensor) -> Tensor:
        loss = self.adversarial_loss
        if loss.generator is not None:
            return p @ loss.generator(vx) - q @ loss.generator(vy)
        return -(p @ loss.fake(vx) + q @ loss.real(vy))


@dataclass(kw_only=True, eq=False, repr=False)
class FDivergence(_TwoTermMetric):
    """The f-divergence D_f(P, Q), estimated by a critic; in nats if f is a logarithm.

    f-GAN, Nowozin et al. 2016, https://arxiv.org/abs/1606.00709.

    Args:
        divergence: The name of a row of `ppgen.metrics.adversarial_losses.DIVERGENCES` (``"kl"``, ``"reverse_kl"``,
            ``"jensen_shannon"``, ``"squared_hellinger"``, ``"pearson"``, ``"total_variation"``), or a `Divergence` such
            as ``alpha_divergence(0.5)``.

    Raises:
        TypeError: If the divergence is neither a name nor a `Divergence`.
        ValueError: If the name is unknown.
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
        """The name of the divergence."""
        return str(self.divergence)

    @property
    def adversarial_loss(self) -> AdversarialLoss:
        """That of the divergence."""
        divergence = DIVERGENCES[self.divergence] if isinstance(self.divergence, str) else self.divergence
        return divergence.adversarial_loss


@dataclass(kw_only=True, eq=False, repr=False)
class JensenShannon(_TwoTermMetric):
    """The Jensen-Shannon divergence, in nats, at most log 2: the loss of the GAN.

    sigmoid(v) is the critic's probability that a row is from P. Goodfellow et al. 2014,
    https://arxiv.org/abs/1406.2661.
    """

    title = "Jensen-Shannon, by a critic (nats)"

    @classmethod
    def for_summary(cls) -> Self:
        """With a small critic and a weak R1 penalty."""
        return cls(hidden=(64, 64), lr=1e-3, penalty=ZeroCenteredGradientPenalty(0.1))

    @property
    def adversarial_loss(self) -> AdversarialLoss:
        """The row "jensen_shannon" of `DIVERGENCES`."""
        return DIVERGENCES["jensen_shannon"].adversarial_loss


@dataclass(kw_only=True, eq=False, repr=False)
class LeastSquares(_TwoTermMetric):
    """Half the integral of (p - q)^2 / (p + q), at most 1: the loss of the least-squares GAN.

    The critic regresses on the labels 1 and 0. Mao et al. 2017, https://arxiv.org/abs/1611.04076.
    """

    @property
    def adversarial_loss(self) -> AdversarialLoss:
        """`LEAST_SQUARES`."""
        return LEAST_SQUARES


@dataclass(kw_only=True, eq=False, repr=False)
class Hinge(_TwoTermMetric):
    """Total variation, at most 1, from the hinge loss (Lim & Ye 2017, https://arxiv.org/abs/1705.02894)."""

    @property
    def adversarial_loss(self) -> AdversarialLoss:
        """`HINGE`."""
        return HINGE


@dataclass(kw_only=True, eq=False, repr=False)
class WassersteinDual(_TwoTermMetric):
    """W_1(P, Q) = sup over 1-Lipschitz v of E v(x) - E v(y), in the units of the samples: the loss of the WGAN.

    It is W_1 only if ``penalty`` bounds the norm of the critic's gradient by 1. GradientPenalty(w) allows norms up to
    about 1 + W_1 / 2w, and the value is too large by that factor (Gulrajani et al. 2017,
    https://arxiv.org/abs/1704.00028). With SpectralNorm the value is a lower bound; with WeightClipping or
    ZeroCenteredGradientPenalty it is correct up to an unknown factor. Arjovsky et al. 2017,
    https://arxiv.org/abs/1701.07875.

    Raises:
        ValueError: If there is no penalty, since the value is then unbounded.

    Example:
        >>> import torch
        >>> import ppgen
        >>> from ppgen import metrics, views
        >>> distance = metrics.WassersteinDual(hidden=(8,), penalty=metrics.GradientPenalty(10.0), steps=2)
        >>> loss = ppgen.match(views.data("x"), views.generated("x"), distance)
        >>> gan, x = ppgen.models.Generator((2,), latent_dim=2, hidden=(8,)), torch.randn(20, 2)
        >>> fit = ppgen.fit(gan.model, gan.guide, x, loss=loss, steps=2, compile=False, progress=False)
        >>> list(fit.breakdown(x))
        ['WassersteinDual(x)']
    """

    title = "Wasserstein-1, by a critic"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.penalty is None:
            raise ValueError(
                "penalty: W_1 needs a Lipschitz critic; give GradientPenalty(10.0), SpectralNorm() or WeightClipping()"
            )

    @classmethod
    def for_summary(cls) -> Self:
        """With a small critic and the gradient penalty of the paper."""
        return cls(hidden=(64, 64), lr=1e-3, penalty=GradientPenalty(10.0))

    @property
    def adversarial_loss(self) -> AdversarialLoss:
        """`WASSERSTEIN`."""
        return WASSERSTEIN


@dataclass(kw_only=True, eq=False, repr=False)
class Relativistic(CriticMetric):
    """Relativistic pairing, sup_v E log 2 sigmoid(v(x) - v(y)), at most log 2.

    The critic has to rank rows of P above rows of Q, over all pairs, and therefore cannot ignore a mode that Q lacks.
    Jolicoeur-Martineau 2019 (https://arxiv.org/abs/1807.00734) and 2020 (https://arxiv.org/abs/1901.02474). With
    ``ZeroCenteredGradientPenalty(at="both")`` it is the loss of R3GAN (Huang et al. 2024,
    https://arxiv.org/abs/2501.05441, equation 2).
    """

    @property
    def upper_bound(self) -> float | None:
        """The largest value, log 2."""
        return math.log(2)

    def critic_objective(self, vx: Tensor, vy: Tensor, p: Tensor, q: Tensor, *, smoothing: float = 0.0) -> Tensor:
        """The weighted mean over all pairs."""
        difference = vx[:, None] - vy
        terms = F.logsigmoid(difference)
        if smoothing:
            terms = (1 - smoothing) * terms + smoothing * F.logsigmoid(-difference)
        return p @ terms @ q + math.log(2)

    def generator_loss(self, vx: Tensor, vy: Tensor, p: Tensor, q: Tensor) -> Tensor:
        """The critic's objective with P and Q exchanged."""
        return -(p @ F.logsigmoid(vy - vx[:, None]) @ q)


@contextmanager
def _frozen(network: nn.Module) -> Iterator[None]:
    """Freezes the weights of a network; if gradients are disabled, the network is in eval mode too."""
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


def _zero_weightless(sites: SiteValues, weights: Tensor | None, name: str) -> tuple[SiteValues, Tensor]:
    """Sites in which rows of weight zero are set to zero, and one weight per row."""
    if weights is None:
        return sites, sites[0].new_ones(len(sites[0]))
    weights = check_weights(weights, sites[0], name)
    present = weights > 0
    zeroed = tuple(torch.where(present.reshape(-1, *[1] * (site.dim() - 1)), site, 0.0) for site in sites)
    return zeroed, weights


def _normalized(weights: Tensor) -> Tensor:
    total = weights.sum()
    return weights / torch.where(total > 0, total, 1.0)


def _packed(sites: SiteValues, packing: int, name: str) -> SiteValues:
    """Joins every ``packing`` rows along the first axis of their events; remaining rows are dropped."""
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
