"""Adversarial losses: the objective that a critic maximizes, and the loss that a generator minimizes.

A critic v assigns a score to each row. For distributions P (rows x) and Q (rows y) its objective is

    V(v) = E_P a(v(x)) + E_Q b(v(y)),

a lower bound of a divergence D(P, Q) that is tight at the optimal critic. If ``P = Q``, every critic architecture can
reach ``V = 0``. For the f-divergence ``D_f(P, Q) = E_Q f(p / q)``, with f convex and ``f(1) = 0``,

    a(v) = g(v),   b(v) = -f*(g(v)),   f*(t) = sup_u (u t - f(u)),

where the activation g maps the real line into the domain of the conjugate f* (f-GAN, Nowozin, Cseke & Tomioka 2016,
https://arxiv.org/abs/1606.00709, equation 6).

A generator that minimizes V itself is called saturating: where the critic is confident, b is flat. The non-saturating
generator exchanges P and Q in the critic's objective and minimizes ``-(E_P b(v(x)) + E_Q a(v(y)))``. Its gradient has
the same direction, and does not vanish where the critic is confident (Goodfellow et al. 2014,
https://arxiv.org/abs/1406.2661, section 3; Nowozin et al., section 3.2).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["DIVERGENCES", "HINGE", "LEAST_SQUARES", "WASSERSTEIN", "AdversarialLoss", "Divergence", "alpha_divergence"]

Elementwise = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class AdversarialLoss:
    """The functions of the critic's objective ``V(v) = E_P a(v(x)) + E_Q b(v(y))``.

    Attributes:
        real: The function a, of scores of rows of P.
        fake: The function b, of scores of rows of Q.
        upper_bound: The largest value of D, or None if D is unbounded.
        generator: A function c if the non-saturating generator does not exchange P and Q: it then minimizes
            ``E_P c(v(x)) - E_Q c(v(y))``.
    """

    real: Elementwise
    fake: Elementwise
    upper_bound: float | None = None
    generator: Elementwise | None = None


@dataclass(frozen=True, repr=False)
class Divergence:
    """An f-divergence, with the functions that its variational bound needs.

    Attributes:
        f: The convex function f.
        activation: The activation g.
        conjugate: The conjugate f*.
        composed: ``f*(g(v))`` in a numerically stable form.
        upper_bound: The largest value of D, or None if D is unbounded.
        name: The name in reports, for divergences that are not in `DIVERGENCES`.
    """

    f: Elementwise
    activation: Elementwise
    conjugate: Elementwise
    composed: Elementwise
    upper_bound: float | None = None
    name: str = "Divergence"

    def __repr__(self) -> str:
        return self.name

    @property
    def adversarial_loss(self) -> AdversarialLoss:
        """The objective with a = g and b = -f*(g)."""
        return AdversarialLoss(self.activation, lambda v: -self.composed(v), self.upper_bound)


def alpha_divergence(alpha: float) -> Divergence:
    """Amari's alpha divergence, f(u) = (u^alpha - alpha u + alpha - 1) / (alpha (alpha - 1)).

    alpha = 2 is half of Pearson's divergence, alpha = 1/2 is twice the squared Hellinger distance. As alpha goes to 1,
    it becomes KL(P, Q), and as alpha goes to 0, KL(Q, P). ``exp(v)`` is the critic's estimate of p / q. Cichocki &
    Amari 2010, https://doi.org/10.3390/e12061532, equation 16.

    Args:
        alpha: A finite number other than 0 and 1.

    Raises:
        ValueError: If alpha is 0 or 1, which have their own rows in `DIVERGENCES`, or is not finite.
    """
    if not math.isfinite(alpha) or alpha in (0, 1):
        raise ValueError(f"alpha: expected a number other than 0 ('reverse_kl') and 1 ('kl'), got {alpha}")
    a = alpha
    return Divergence(
        f=lambda u: (u**a - a * u + a - 1) / (a * (a - 1)),
        activation=lambda v: torch.expm1((a - 1) * v) / (a - 1),
        conjugate=lambda t: ((1 + (a - 1) * t) ** (a / (a - 1)) - 1) / a,
        composed=lambda v: torch.expm1(a * v) / a,
        upper_bound=1 / (a * (1 - a)) if 0 < a < 1 else None,
        name=f"alpha_divergence({alpha:g})",
    )


DIVERGENCES: dict[str, Divergence] = {
    # E_P log(p / q)
    "kl": Divergence(
        f=lambda u: u * u.log(),
        activation=lambda v: v,
        conjugate=lambda t: torch.exp(t - 1),
        composed=lambda v: torch.exp(v - 1),
    ),
    # E_Q log(q / p)
    "reverse_kl": Divergence(
        f=lambda u: -u.log(),
        activation=lambda v: -torch.exp(-v),
        conjugate=lambda t: -1 - torch.log(-t),
        composed=lambda v: v - 1,
    ),
    # KL(P, M) / 2 + KL(Q, M) / 2 with M = (P + Q) / 2; sigmoid(v) is the critic's probability that a row is from P
    "jensen_shannon": Divergence(
        f=lambda u: (u * u.log() - (1 + u) * ((1 + u) / 2).log()) / 2,
        activation=lambda v: (F.logsigmoid(v) + math.log(2)) / 2,
        conjugate=lambda t: -torch.log(2 - torch.exp(2 * t)) / 2,
        composed=lambda v: -(F.logsigmoid(-v) + math.log(2)) / 2,
        upper_bound=math.log(2),
    ),
    # integral of (sqrt(p) - sqrt(q))^2
    "squared_hellinger": Divergence(
        f=lambda u: (u.sqrt() - 1) ** 2,
        activation=lambda v: -torch.expm1(-v),
        conjugate=lambda t: t / (1 - t),
        composed=torch.expm1,
        upper_bound=2.0,
    ),
    # integral of (p - q)^2 / q
    "pearson": Divergence(
        f=lambda u: (u - 1) ** 2,
        activation=lambda v: v,
        conjugate=lambda t: t**2 / 4 + t,
        composed=lambda v: v**2 / 4 + v,
    ),
    # half the integral of |p - q|
    "total_variation": Divergence(
        f=lambda u: (u - 1).abs() / 2,
        activation=lambda v: torch.tanh(v) / 2,
        conjugate=lambda t: t,
        composed=lambda v: torch.tanh(v) / 2,
        upper_bound=1.0,
    ),
}

# D is half the integral of (p - q)^2 / (p + q) (Vincze-Le Cam), from squared errors of the labels 1 and 0; the
# generator minimizes the squared error of the label 1 (Mao et al. 2017, https://arxiv.org/abs/1611.04076, equation 9)
LEAST_SQUARES = AdversarialLoss(lambda v: 0.5 - 2 * (v - 1) ** 2, lambda v: 0.5 - 2 * v**2, upper_bound=1.0)

# D is the total variation; the generator minimizes -E v(y), which does not saturate (Lim & Ye 2017,
# https://arxiv.org/abs/1705.02894; Miyato et al. 2018, https://arxiv.org/abs/1802.05957, equation 17)
HINGE = AdversarialLoss(
    lambda v: v.clamp(max=1) / 2, lambda v: (-v).clamp(max=1) / 2, upper_bound=1.0, generator=lambda v: v / 2
)

# D is sup E v(x) - E v(y); over 1-Lipschitz v it is W_1 (Kantorovich-Rubinstein duality)
WASSERSTEIN = AdversarialLoss(lambda v: v, lambda v: -v)
