"""The metrics and constraints that the invariants are tested on: a new one needs one row here.

`test_metric.py` and `test_critic.py` iterate over these rows, and compare them with `ppgen.metrics.METRICS`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from ppgen.metrics import (
    CORAL,
    MMD,
    Constraint,
    CramerVonMises,
    CriticMetric,
    EnergyDistance,
    FDivergence,
    Frechet,
    GradientPenalty,
    Hinge,
    JensenShannon,
    KolmogorovSmirnov,
    LeastSquares,
    MaxSlicedWasserstein,
    Metric,
    Relativistic,
    Sinkhorn,
    SlicedWasserstein,
    SpectralNorm,
    Wasserstein,
    WassersteinDual,
    WeightClipping,
    ZeroCenteredGradientPenalty,
    alpha_divergence,
)
from ppgen.metrics.adversarial_losses import DIVERGENCES


def rational(u: Tensor) -> Tensor:
    """A kernel that the package does not have."""
    return (1 + u).rsqrt()


@dataclass(frozen=True)
class Row:
    """A metric without a critic, and which invariants hold for it.

    Attributes:
        metric: The metric.
        unbiased: Its mean does not depend on the batch size.
        zero: If biased, it is zero for equal samples.
        adaptive: Its gradient treats something that it fits to the samples, a scale or a direction, as a constant.
        searched: It finds that something by a search, in which rounding decides between nearly equal values.
        twice: It has correct second derivatives.
        flat: It is piecewise constant in the rows and refuses to give a gradient in them.
        traceable: It reads no value back into Python.
        location: It depends on the location.
        bounded: It has a largest value, and an outlier whose square overflows counts like any other.
    """

    metric: Metric
    unbiased: bool = False
    zero: bool = True
    adaptive: bool = False
    searched: bool = False
    twice: bool = True
    flat: bool = False
    traceable: bool = True
    location: bool = True
    bounded: bool = False


ROWS = [
    Row(SlicedWasserstein()),
    Row(SlicedWasserstein(p=1, projections=20)),
    Row(SlicedWasserstein(p=3, projections=20, root=True)),
    Row(MaxSlicedWasserstein(steps=10), adaptive=True, searched=True),
    Row(MaxSlicedWasserstein(p=1, starts=4, steps=5, root=True), adaptive=True, searched=True),
    Row(Sinkhorn(steps=5), adaptive=True, twice=False),
    Row(Sinkhorn(p=1, epsilon=0.2, steps=5, debias=False), adaptive=True, twice=False, zero=False),
    Row(Sinkhorn(epsilon=20.0, unit=1.0, steps=12), twice=False),
    Row(Wasserstein(), twice=False, traceable=False),
    Row(Wasserstein(p=1, root=True), twice=False, traceable=False),
    Row(Frechet(), twice=False),
    Row(CORAL(), location=False),
    Row(KolmogorovSmirnov(), flat=True, bounded=True),
    Row(KolmogorovSmirnov(projections=20, over="max", temperature=0.1), bounded=True),
    Row(CramerVonMises(over="max"), flat=True, bounded=True),
    Row(CramerVonMises(temperature=0.3), bounded=True),
    Row(MMD(), unbiased=True, adaptive=True),
    Row(MMD(kernel="imq", unbiased=False), adaptive=True),
    Row(MMD(kernel="imq", bandwidth=1.5), unbiased=True),
    Row(MMD(bandwidth=1.5, unbiased=False)),
    Row(MMD(kernel=rational, bandwidth=1.0, scales=(1.0,)), unbiased=True),
    Row(EnergyDistance(), unbiased=True),
    Row(EnergyDistance(exponent=0.5, unbiased=False)),
]


@dataclass(frozen=True)
class CriticRow:
    """A metric with a critic.

    Attributes:
        make: From a critic and options to the metric.
        neutral: The constant score of a critic for which the metric is zero.
    """

    make: Callable[..., CriticMetric]
    neutral: float = 0.0


CRITIC_ROWS = {
    **{name: CriticRow(partial(FDivergence, divergence=name)) for name in DIVERGENCES if name != "kl"},
    "kl": CriticRow(partial(FDivergence, divergence="kl"), neutral=1.0),
    "alpha": CriticRow(partial(FDivergence, divergence=alpha_divergence(0.7))),
    "gan": CriticRow(JensenShannon),
    "least squares": CriticRow(LeastSquares, neutral=0.5),
    "hinge": CriticRow(Hinge),
    "wasserstein": CriticRow(
        lambda critic, **options: WassersteinDual(critic, **{"penalty": ZeroCenteredGradientPenalty(), **options})
    ),
    "relativistic": CriticRow(Relativistic),
}

CONSTRAINTS: dict[str, Constraint | None] = {
    "none": None,
    "gradient penalty": GradientPenalty(3.0),
    "one-sided": GradientPenalty(3.0, one_sided=True),
    "at data": GradientPenalty(at="data"),
    "at generated": GradientPenalty(at="generated"),
    "at both": GradientPenalty(at="both"),
    "R1": ZeroCenteredGradientPenalty(2.0),
    "R2": ZeroCenteredGradientPenalty(at="generated"),
    "R1 and R2": ZeroCenteredGradientPenalty(at="both"),
    "spectral norm": SpectralNorm(),
    "clipping": WeightClipping(0.3),
}
PAIRED = [CONSTRAINTS["gradient penalty"], CONSTRAINTS["one-sided"]]
"""Constraints that depend on which row of one sample is paired with which row of the other."""
