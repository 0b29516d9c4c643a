"""What holds a critic back: penalties on its slope, and bounds on its weights.

With v the critic and grad v its gradient in a row (over all of a row's sites together),

    GradientPenalty(w)   w E (|grad v(u)| - 1)^2, u between rows of P and of Q     Gulrajani et al. 2017, equation 3
    ZeroCenteredGradientPenalty(w)       w / 2 E |grad v(u)|^2, u of P (R1) or of Q (R2)           Mescheder et al. 2018, equation 9
    SpectralNorm()       every layer's matrix over its largest singular value      Miyato et al. 2018, equation 8
    Clip(c)              every weight in [-c, c] after each step                   Arjovsky et al. 2017, algorithm 1
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import spectral_norm

__all__ = ["Constraint", "GradientPenalty", "SpectralNorm", "WeightClipping", "ZeroCenteredGradientPenalty"]

Sites = tuple[Tensor, ...]
Scores = Callable[[Sites], Tensor]
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
LAYERS = (nn.Linear, nn.Bilinear, *CONVOLUTIONS)


class Constraint:
    """One or more of: a change to the network, a penalty in each of its steps, a mend after each."""

    def prepare(self, critic: nn.Module) -> None:
        """Once, before the critic's first step."""

    def penalty(self, scores: Scores, x: Sites, y: Sites, p: Tensor, q: Tensor) -> Tensor | None:
        """What is added to the critic's loss, at rows x and y of weights p and q; None for nothing."""
        return None

    def after(self, critic: nn.Module) -> None:
        """After each of the critic's steps."""


@dataclass(frozen=True)
class GradientPenalty(Constraint):
    """weight E (|grad v(u)| - 1)^2, or with ``one_sided`` weight E max(0, |grad v(u)| - 1)^2 (Petzka et al. 2018).

    `at`: where u lies: on the line between a row of x and one of y ("interpolates"), at rows of P ("data"), of Q
    ("generated"), or at "both". Lines join the rows in their order, as many as the smaller sample has.

    It is soft: a Wasserstein critic between laws at a distance D gains from a slope above one, up to about
    1 + D / (2 weight), and its value is too large by that factor. Where D is not small against the weight, raise it or
    rescale the data.

    Raises ``ValueError`` for a weight that is not positive and for another place.
    """

    weight: float = 10.0
    one_sided: bool = False
    at: Literal["interpolates", "data", "generated", "both"] = "interpolates"

    def __post_init__(self) -> None:
        _check(self.weight, self.at, ("interpolates", *PLACES))

    def penalty(self, scores: Scores, x: Sites, y: Sites, p: Tensor, q: Tensor) -> Tensor:
        def excess(squared: Tensor) -> Tensor:
            # the root has no slope at zero, where zero stands for it
            flat = squared == 0
            norm = torch.where(flat, 0.0, torch.where(flat, 1.0, squared).sqrt())
            return ((norm - 1).clamp(min=0) if self.one_sided else norm - 1) ** 2

        places = [_between(x, y, p, q)] if self.at == "interpolates" else _places(self.at, x, y, p, q)
        return self.weight * sum((w @ excess(_slopes(scores, u)) for u, w in places), p.new_zeros(()))


@dataclass(frozen=True)
class ZeroCenteredGradientPenalty(Constraint):
    """weight / 2 E |grad v(u)|^2 at rows of P ("data": R1), of Q ("generated": R2), or at each of them ("both").

    It makes a game converge near its equilibrium where the plain one circles (Mescheder et al. 2018, theorem 4.1).

    Raises ``ValueError`` for a weight that is not positive and for another place.
    """

    weight: float = 1.0
    at: Literal["data", "generated", "both"] = "data"

    def __post_init__(self) -> None:
        _check(self.weight, self.at, PLACES)

    def penalty(self, scores: Scores, x: Sites, y: Sites, p: Tensor, q: Tensor) -> Tensor:
        parts = [w @ _slopes(scores, u) for u, w in _places(self.at, x, y, p, q)]
        return self.weight / 2 * sum(parts, p.new_zeros(()))


@dataclass(frozen=True)
class SpectralNorm(Constraint):
    """Divides the matrix of every linear and convolutional layer by an estimate of its largest singular value.

    With activations of slope at most one, a critic of linear layers is then 1-Lipschitz, up to that estimate. (Of a
    convolution it is the matrix of its kernel that is bounded, not the whole map.)
    """

    def prepare(self, critic: nn.Module) -> None:
        for module in list(critic.modules()):
            if isinstance(module, LAYERS) and not parametrize.is_parametrized(module, "weight"):
                spectral_norm(module)


@dataclass(frozen=True)
class WeightClipping(Constraint):
    """Keeps every weight in [-bound, bound], which bounds the slope, by how much nobody says.

    Raises ``ValueError`` for a bound that is not positive.
    """

    bound: float = 0.01

    def __post_init__(self) -> None:
        _check(self.bound, "data", PLACES)

    def prepare(self, critic: nn.Module) -> None:
        self.after(critic)

    def after(self, critic: nn.Module) -> None:
        with torch.no_grad():
            for parameter in critic.parameters():
                parameter.clamp_(-self.bound, self.bound)


PLACES = ("data", "generated", "both")


def _check(number: float, at: str, places: tuple[str, ...]) -> None:
    if not number > 0:
        raise ValueError(f"expected a positive weight or bound, got {number}")
    if at not in places:
        raise ValueError(f"at: expected one of {', '.join(map(repr, places))}, got {at!r}")


def _places(at: str, x: Sites, y: Sites, p: Tensor, q: Tensor) -> list[tuple[Sites, Tensor]]:
    return [place for name, place in (("data", (x, p)), ("generated", (y, q))) if at in (name, "both")]


def _between(x: Sites, y: Sites, p: Tensor, q: Tensor) -> tuple[Sites, Tensor]:
    n = min(len(p), len(q))
    weight = p[:n] * q[:n]
    total = weight.sum()
    t = torch.rand(n, dtype=p.dtype, device=p.device)
    sites = []
    for a, b in zip(x, y, strict=True):
        share = t.reshape(-1, *[1] * (a.dim() - 1))
        sites.append(share * a[:n] + (1 - share) * b[:n])
    return tuple(sites), weight / torch.where(total > 0, total, 1.0)


def _slopes(scores: Scores, u: Sites) -> Tensor:
    """|grad v(u)|^2 of each row, over its sites together."""
    u = tuple(site.detach().requires_grad_() for site in u)
    slopes = torch.autograd.grad(scores(u).sum(), u, create_graph=True, materialize_grads=True)
    return sum((slope.square().reshape(len(slope), -1).sum(1) for slope in slopes), u[0].new_zeros(len(u[0])))
