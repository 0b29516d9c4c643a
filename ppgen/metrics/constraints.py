"""Constraints on a critic: penalties on its gradient, and bounds on its weights.

With v the critic and grad v its gradient at a row (over all sites of the row together),

    GradientPenalty(w)               w E (|grad v(u)| - 1)^2, u between rows of P and of Q
    ZeroCenteredGradientPenalty(w)   w / 2 E |grad v(u)|^2, u from P (R1) or from Q (R2)
    SpectralNorm()                   the weight matrix of every layer divided by its largest singular value
    WeightClipping(c)                every weight clipped to [-c, c] after each step
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import spectral_norm

from ppgen.metrics.metric import SiteValues
from ppgen.utils.user_warnings import warn_user

__all__ = ["Constraint", "GradientPenalty", "SpectralNorm", "WeightClipping", "ZeroCenteredGradientPenalty"]

Scores = Callable[[SiteValues], Tensor]
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
LAYERS = (nn.Linear, nn.Bilinear, *CONVOLUTIONS)
SAMPLES = ("data", "generated", "both")


class Constraint:
    """A constraint on the critic. A subclass overrides one or more of these methods; by default each does nothing."""

    def prepare(self, critic: nn.Module) -> None:
        """Changes the network before its first step.

        Args:
            critic: The network.
        """

    def penalty(self, scores: Scores, x: SiteValues, y: SiteValues, p: Tensor, q: Tensor) -> Tensor | None:
        """The penalty that is added to the critic's loss, or None.

        Args:
            scores: The critic, a function from rows to one score per row.
            x: Rows of P.
            y: Rows of Q.
            p: Weights of x.
            q: Weights of y.
        """
        return None

    def after_step(self, critic: nn.Module) -> None:
        """Changes the network after each of its steps.

        Args:
            critic: The network.
        """


@dataclass(frozen=True)
class GradientPenalty(Constraint):
    """weight E (|grad v(u)| - 1)^2, or weight E max(0, |grad v(u)| - 1)^2 if one-sided.

    The constraint is soft: for distributions at a distance D, a Wasserstein critic gains from a gradient norm above
    one, up to about 1 + D / (2 weight), and its value is too large by that factor. If D is not small compared with the
    weight, increase the weight or rescale the data. Gulrajani et al. 2017 (https://arxiv.org/abs/1704.00028, equation
    3); one-sided: Petzka et al. 2018 (https://arxiv.org/abs/1709.08894).

    Args:
        weight: The weight of the penalty.
        one_sided: Whether only norms above one are penalized.
        at: Where u lies: on the line between a row of x and a row of y ("interpolates"), at rows of P ("data"), at
            rows of Q ("generated"), or at both samples ("both"). Lines join the rows in their order, as many as the
            smaller sample has.

    Raises:
        ValueError: If the weight is not positive, or `at` is unknown.
    """

    weight: float = 10.0
    one_sided: bool = False
    at: Literal["interpolates", "data", "generated", "both"] = "interpolates"

    def __post_init__(self) -> None:
        _check_positive(self.weight)
        _check_at(self.at, ("interpolates", *SAMPLES))

    def prepare(self, critic: nn.Module) -> None:
        """Warns of batch normalization, under which a row's gradient is not its own."""
        _warn_of_batch_norm(critic, type(self).__name__)

    def penalty(self, scores: Scores, x: SiteValues, y: SiteValues, p: Tensor, q: Tensor) -> Tensor:
        """The weighted mean of the squared excess of the gradient norm."""

        def squared_excess(squared_norm: Tensor) -> Tensor:
            # the square root has no derivative at zero; zero is used
            zero = squared_norm == 0
            norm = torch.where(zero, 0.0, torch.where(zero, 1.0, squared_norm).sqrt())
            return ((norm - 1).clamp(min=0) if self.one_sided else norm - 1) ** 2

        points = [_interpolates(x, y, p, q)] if self.at == "interpolates" else _rows_at(self.at, x, y, p, q)
        terms = (w @ squared_excess(_squared_gradient_norms(scores, u)) for u, w in points)
        return self.weight * sum(terms, p.new_zeros(()))


@dataclass(frozen=True)
class ZeroCenteredGradientPenalty(Constraint):
    """weight / 2 E |grad v(u)|^2 at rows of P (R1), of Q (R2), or of both.

    With it, adversarial training converges locally where unregularized training oscillates (Mescheder et al. 2018,
    https://arxiv.org/abs/1801.04406, equation 9 and theorem 4.1).

    Args:
        weight: The weight of the penalty.
        at: "data" (R1), "generated" (R2) or "both".

    Raises:
        ValueError: If the weight is not positive, or `at` is unknown.
    """

    weight: float = 1.0
    at: Literal["data", "generated", "both"] = "data"

    def __post_init__(self) -> None:
        _check_positive(self.weight)
        _check_at(self.at, SAMPLES)

    def prepare(self, critic: nn.Module) -> None:
        """Warns of batch normalization, under which a row's gradient is not its own."""
        _warn_of_batch_norm(critic, type(self).__name__)

    def penalty(self, scores: Scores, x: SiteValues, y: SiteValues, p: Tensor, q: Tensor) -> Tensor:
        """The weighted mean of the squared gradient norm."""
        terms = (w @ _squared_gradient_norms(scores, u) for u, w in _rows_at(self.at, x, y, p, q))
        return self.weight / 2 * sum(terms, p.new_zeros(()))


@dataclass(frozen=True)
class SpectralNorm(Constraint):
    """Divides the weight matrix of every linear and convolutional layer by an estimate of its largest singular value.

    With activations that are 1-Lipschitz, a critic of linear layers is then 1-Lipschitz, up to the error of that
    estimate. For a convolution the matrix of its kernel is bounded, not the norm of the whole map. Miyato et al. 2018,
    https://arxiv.org/abs/1802.05957, equation 8.
    """

    def prepare(self, critic: nn.Module) -> None:
        """Adds the parametrization to every layer that does not have it."""
        for module in list(critic.modules()):
            if isinstance(module, LAYERS) and not parametrize.is_parametrized(module, "weight"):
                spectral_norm(module)


@dataclass(frozen=True)
class WeightClipping(Constraint):
    """Clips every weight to [-bound, bound], which bounds the gradient by an unknown constant.

    Arjovsky et al. 2017, https://arxiv.org/abs/1701.07875, algorithm 1.

    Args:
        bound: The largest absolute value.

    Raises:
        ValueError: If the bound is not positive.
    """

    bound: float = 0.01

    def __post_init__(self) -> None:
        _check_positive(self.bound)

    def prepare(self, critic: nn.Module) -> None:
        """Clips the initial weights."""
        self.after_step(critic)

    def after_step(self, critic: nn.Module) -> None:
        """Clips the weights."""
        with torch.no_grad():
            for parameter in critic.parameters():
                parameter.clamp_(-self.bound, self.bound)


def _warn_of_batch_norm(critic: nn.Module, penalty: str) -> None:
    """Warns of layers whose output for a row depends on the other rows; the penalty is on each row's gradient alone."""
    names = [name or "itself" for name, part in critic.named_modules() if isinstance(part, BATCH_NORMS)]
    if names:
        warn_user(
            f"the critic {type(critic).__name__} has batch normalization ({', '.join(names[:3])}) under {penalty}: the "
            "score of a row then depends on the batch, and its gradient is not that of the row (Gulrajani et al. 2017, "
            'section 4); build it with norm=None, or "layer"'
        )


def _check_positive(number: float) -> None:
    if not number > 0:
        raise ValueError(f"expected a positive weight or bound, got {number}")


def _check_at(at: str, expected: tuple[str, ...]) -> None:
    if at not in expected:
        raise ValueError(f"at: expected one of {', '.join(map(repr, expected))}, got {at!r}")


def _rows_at(at: str, x: SiteValues, y: SiteValues, p: Tensor, q: Tensor) -> list[tuple[SiteValues, Tensor]]:
    return [part for name, part in (("data", (x, p)), ("generated", (y, q))) if at in (name, "both")]


def _interpolates(x: SiteValues, y: SiteValues, p: Tensor, q: Tensor) -> tuple[SiteValues, Tensor]:
    """Uniform points on the lines between rows of x and y, and the normalized products of the rows' weights."""
    n = min(len(p), len(q))
    weight = p[:n] * q[:n]
    total = weight.sum()
    t = torch.rand(n, dtype=p.dtype, device=p.device)
    sites = []
    for a, b in zip(x, y, strict=True):
        share = t.reshape(-1, *[1] * (a.dim() - 1))
        sites.append(share * a[:n] + (1 - share) * b[:n])
    return tuple(sites), weight / torch.where(total > 0, total, 1.0)


def _squared_gradient_norms(scores: Scores, u: SiteValues) -> Tensor:
    """|grad v(u)|^2 of each row, over all of its sites together."""
    u = tuple(site.detach().requires_grad_() for site in u)
    gradients = torch.autograd.grad(scores(u).sum(), u, create_graph=True, materialize_grads=True)
    return sum((g.square().reshape(len(g), -1).sum(1) for g in gradients), u[0].new_zeros(len(u[0])))
