"""Metrics that compare distributions: two samples in, one number out. It imports torch and `ppgen.nets` alone.

Each line below exports one name. A line that exports a metric is also its row in `METRICS`, from which
`ppgen.evaluation.summary` and the tests derive their lists.
"""

import inspect

from ppgen.metrics.adversarial_losses import alpha_divergence as alpha_divergence
from ppgen.metrics.constraints import Constraint as Constraint
from ppgen.metrics.constraints import GradientPenalty as GradientPenalty
from ppgen.metrics.constraints import SpectralNorm as SpectralNorm
from ppgen.metrics.constraints import WeightClipping as WeightClipping
from ppgen.metrics.constraints import ZeroCenteredGradientPenalty as ZeroCenteredGradientPenalty
from ppgen.metrics.critic import CriticMetric as CriticMetric
from ppgen.metrics.critic import FDivergence as FDivergence
from ppgen.metrics.critic import Hinge as Hinge
from ppgen.metrics.critic import JensenShannon as JensenShannon
from ppgen.metrics.critic import LeastSquares as LeastSquares
from ppgen.metrics.critic import Relativistic as Relativistic
from ppgen.metrics.critic import WassersteinDual as WassersteinDual
from ppgen.metrics.kernel import MMD as MMD
from ppgen.metrics.kernel import EnergyDistance as EnergyDistance
from ppgen.metrics.kolmogorov import CramerVonMises as CramerVonMises
from ppgen.metrics.kolmogorov import KolmogorovSmirnov as KolmogorovSmirnov
from ppgen.metrics.metric import Metric as Metric
from ppgen.metrics.metric import Sample as Sample
from ppgen.metrics.metric import rows as rows
from ppgen.metrics.moments import CORAL as CORAL
from ppgen.metrics.moments import Frechet as Frechet
from ppgen.metrics.transport import MaxSlicedWasserstein as MaxSlicedWasserstein
from ppgen.metrics.transport import Sinkhorn as Sinkhorn
from ppgen.metrics.transport import SlicedWasserstein as SlicedWasserstein
from ppgen.metrics.transport import Wasserstein as Wasserstein

METRICS: dict[str, type[Metric]] = {
    name: kind
    for name, kind in globals().items()
    if isinstance(kind, type) and issubclass(kind, Metric) and not inspect.isabstract(kind)
}
"""All metrics by name."""

__all__ = [name for name, value in globals().items() if not (name.startswith("_") or inspect.ismodule(value))]
