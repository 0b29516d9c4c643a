"""Two samples in, a number out: the metrics that compare laws. Imports torch alone."""

from ppgen.metrics.adversarial_losses import alpha_divergence
from ppgen.metrics.constraints import (
    Constraint,
    GradientPenalty,
    SpectralNorm,
    WeightClipping,
    ZeroCenteredGradientPenalty,
)
from ppgen.metrics.critic import (
    CriticMetric,
    FDivergence,
    Hinge,
    JensenShannon,
    LeastSquares,
    Relativistic,
    WassersteinDual,
)
from ppgen.metrics.kernel import MMD, EnergyDistance
from ppgen.metrics.kolmogorov import CramerVonMises, KolmogorovSmirnov
from ppgen.metrics.metric import Metric, Sample, rows
from ppgen.metrics.moments import CORAL, Frechet
from ppgen.metrics.transport import MaxSlicedWasserstein, Sinkhorn, SlicedWasserstein, Wasserstein

__all__ = [
    "CORAL",
    "MMD",
    "Constraint",
    "CramerVonMises",
    "CriticMetric",
    "EnergyDistance",
    "FDivergence",
    "Frechet",
    "GradientPenalty",
    "Hinge",
    "JensenShannon",
    "KolmogorovSmirnov",
    "LeastSquares",
    "MaxSlicedWasserstein",
    "Metric",
    "Relativistic",
    "Sample",
    "Sinkhorn",
    "SlicedWasserstein",
    "SpectralNorm",
    "Wasserstein",
    "WassersteinDual",
    "WeightClipping",
    "ZeroCenteredGradientPenalty",
    "alpha_divergence",
    "rows",
]
