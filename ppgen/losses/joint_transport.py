"""`JointTransport`: the cost of moving rows of one domain, with their labels, to predictions in another."""

from typing import cast

import torch
from torch import Tensor
from torch.distributions import Categorical

from ppgen.losses.objective import Term
from ppgen.losses.views import data, posterior
from ppgen.metrics.metric import squared_distances
from ppgen.metrics.transport import exact_plan
from ppgen.tracing.traces import Traces

__all__ = ["JointTransport"]


class JointTransport(Term):
    """Joint distribution optimal transport between a source with labels and a target (DeepJDOT).

        min_pi sum_ij pi_ij (features |h_i - h_j|^2 - log p(y_i | h_j))

    with rows i of the source, which have labels y_i, rows j of the target, and plans pi of which both marginals are
    uniform. A row of the target is paired with rows of the source that are near in their features and whose label it
    predicts, so that classes are matched to classes. The plan is exact (POT, on the CPU) and passes no gradient, which
    features of both domains and the target's predictions do. Steps with it are not compiled. The value is zero only
    for features that agree and predictions that are sure. Reference: Damodaran et al. 2018, equation 6,
    https://arxiv.org/abs/1803.10081, with their lambda_t as one and their alpha as `features`.

    Args:
        h: the site of the features.
        y: the site of the labels, Categorical, masked where they are unknown.
        d: the site of the domain.
        source: the value of d in the source.
        target: the value of d in the target.
        features: the weight of the squared distance of features.

    Raises:
        ValueError: for a negative weight.
    """

    def __init__(
        self,
        *,
        h: str = "h",
        y: str = "y",
        d: str = "d",
        source: float = 0,
        target: float = 1,
        features: float = 0.1,
    ) -> None:
        super().__init__()
        if features < 0:
            raise ValueError(f"features: expected a weight of at least 0, got {features}")
        self.y, self.features = y, features
        self.source, self.target = (posterior(h).given(**{d: domain}) for domain in (source, target))

    @property
    def name(self) -> str:
        """The sites, such as "JointTransport(h, y)"."""
        return f"JointTransport({self.source.name}, {self.y})"

    def value(self, traces: Traces) -> Tensor:
        """The cost of the plan on one run of the programs; zero for a batch that lacks one of the domains.

        Raises:
            ValueError: if the labels are not Categorical.
        """
        source, target, labels = self.source(traces), self.target(traces), data(self.y)(traces)
        h, y, p, q = (cast(Tensor, part) for part in (source.values, labels.values, source.weights, target.weights))
        p = p if labels.weights is None else p * labels.weights
        log_prob = self._log_probabilities(traces)
        cost = self.features * squared_distances(h, h) - log_prob.index_select(-1, y).T  # [i, j]: y_i predicted for j
        with torch.no_grad():
            plan = exact_plan(cost, p, q, name=self.name)[0] if p.any() and q.any() else torch.zeros_like(cost)
        return (plan * cost).sum()

    def _log_probabilities(self, traces: Traces) -> Tensor:
        """The log density log p(y | h) of each row and class, (n, K)."""
        fn = traces.find("data", self.y)["fn"]
        while hasattr(fn, "base_dist"):
            fn = fn.base_dist
        if not isinstance(fn, Categorical) or len(fn.batch_shape) != 1:
            raise ValueError(
                f"JointTransport: site {self.y!r} must be Categorical with one label a row of the plate, got "
                f"{type(fn).__name__} of batch shape {tuple(fn.batch_shape)}"
            )
        return fn.logits  # which torch normalizes

    def __str__(self) -> str:
        return f"JointTransport({self.source} & data({self.y}), {self.target})"
