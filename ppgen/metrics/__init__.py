"""Two samples in, a number out: the metrics that compare laws. Imports torch alone."""

from ppgen.metrics.kernel import MMD, Energy
from ppgen.metrics.metric import Metric, Sample, rows

__all__ = ["MMD", "Energy", "Metric", "Sample", "rows"]
