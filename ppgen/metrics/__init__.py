"""Two samples in, a number out: the metrics that compare laws. Imports torch alone."""

from ppgen.metrics.constraints import Clip, Constraint, GradientPenalty, SpectralNorm, ZeroCentred
from ppgen.metrics.critic import (
    CriticMetric,
    FDivergence,
    Hinge,
    JensenShannon,
    LeastSquares,
    Relativistic,
    Wasserstein1,
)
from ppgen.metrics.games import alpha_divergence
from ppgen.metrics.kernel import MMD, Energy
from ppgen.metrics.kolmogorov import CramerVonMises, Kolmogorov
from ppgen.metrics.metric import Metric, Sample, rows
from ppgen.metrics.moments import CORAL, Frechet
from ppgen.metrics.transport import MaxSlicedWasserstein, Sinkhorn, SlicedWasserstein, Wasserstein

__all__ = [
    "CORAL",
    "MMD",
    "Clip",
    "Constraint",
    "CramerVonMises",
    "CriticMetric",
    "Energy",
    "FDivergence",
    "Frechet",
    "GradientPenalty",
    "Hinge",
    "JensenShannon",
    "Kolmogorov",
    "LeastSquares",
    "MaxSlicedWasserstein",
    "Metric",
    "Relativistic",
    "Sample",
    "Sinkhorn",
    "SlicedWasserstein",
    "SpectralNorm",
    "Wasserstein",
    "Wasserstein1",
    "ZeroCentred",
    "alpha_divergence",
    "rows",
]
