"""Invariants against which users can test their own metrics, flows, likelihoods and models.

Each function raises an AssertionError that names the invariant that fails, so it works under pytest and without it::

    def test_my_metric():
        ppgen.testing.check_metric(MyMetric())
"""

from ppgen.testing.flows import check_flow
from ppgen.testing.likelihoods import check_likelihood
from ppgen.testing.metrics import check_metric
from ppgen.testing.models import check_model

__all__ = ["check_flow", "check_likelihood", "check_metric", "check_model"]
