"""Games between a critic and a generator: what the critic raises, and what the generator lowers.

A critic v gives each row a number. For laws P (rows x) and Q (rows y) its payoff is

    V(v) = E_P a(v(x)) + E_Q b(v(y)),

a lower bound of a divergence D(P, Q) that is tight at the best critic; ``V = 0`` is within every critic's reach where
``P = Q``. The f-divergence ``D_f(P, Q) = E_Q f(p / q)``, f convex with ``f(1) = 0``, has the payoff

    a(v) = g(v),   b(v) = -f*(g(v)),   f*(t) = sup_u (u t - f(u))   (Nowozin, Cseke & Tomioka 2016, f-GAN, equation 6)

where the activation g maps the real line into the domain of f*. A generator that lowers V itself is called saturating:
where the critic is sure, b is flat. The non-saturating one takes the critic's part with P and Q exchanged and lowers
``-(E_P b(v(x)) + E_Q a(v(y)))``, of the same direction and with a slope where the critic is sure (Goodfellow et al.
2014, section 3; Nowozin et al., section 3.2).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["DIVERGENCES", "HINGE", "LEAST_SQUARES", "WASSERSTEIN", "Divergence", "Game", "alpha_divergence"]

Map = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Game:
    """`real` and `fake` are a and b; `upper_bound` is the largest value of D, None where it has none.

    `pull`, where the non-saturating generator does not take the critic's part: it then lowers
    ``E_P pull(v(x)) - E_Q pull(v(y))``.
    """

    real: Map
    fake: Map
    upper_bound: float | None = None
    pull: Map | None = None


@dataclass(frozen=True, repr=False)
class Divergence:
    """A row of `DIVERGENCES`: f as above, its conjugate f*, the activation g, and ``f*(g(v))`` in a stable form.

    `name` is for those that are no row of the table.
    """

    f: Map
    activation: Map
    conjugate: Map
    composed: Map
    upper_bound: float | None = None
    name: str = "Divergence"

    def __repr__(self) -> str:
        return self.name

    @property
    def game(self) -> Game:
        return Game(self.activation, lambda v: -self.composed(v), self.upper_bound)


def alpha_divergence(alpha: float) -> Divergence:
    """Amari's divergence, f(u) = (u^alpha - alpha u + alpha - 1) / (alpha (alpha - 1)).

    alpha = 2 is half of Pearson's, 1/2 twice the squared Hellinger; toward 1 it becomes KL(P, Q), toward 0 KL(Q, P)
    (Cichocki & Amari 2010, equation 16). Here ``exp(v)`` is the critic's estimate of p / q.

    Raises ``ValueError`` for 0 and 1, which are rows of their own.
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
    # half of KL(P, M) + half of KL(Q, M), M = (P + Q) / 2; sigmoid(v) is the critic's guess that a row is of P
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

# D = half the integral of (p - q)^2 / (p + q) (Vincze, Le Cam), by squared errors from the labels 1 and 0:
# Mao et al. 2017, equation 9, where the generator lowers the squared error from 1
LEAST_SQUARES = Game(lambda v: 0.5 - 2 * (v - 1) ** 2, lambda v: 0.5 - 2 * v**2, upper_bound=1.0)

# D = total variation; the generator lowers -E v(y), which does not saturate (Lim & Ye 2017; Miyato et al. 2018, eq. 17)
HINGE = Game(lambda v: v.clamp(max=1) / 2, lambda v: (-v).clamp(max=1) / 2, upper_bound=1.0, pull=lambda v: v / 2)

# D = sup E v(x) - E v(y); over 1-Lipschitz v it is W_1 (Kantorovich and Rubinstein)
WASSERSTEIN = Game(lambda v: v, lambda v: -v)
