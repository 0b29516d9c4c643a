"""`match`: the term D(a, b), a metric between two views."""

import torch
from torch import Tensor

from ppgen.losses.objective import Term
from ppgen.losses.views import Rows, View
from ppgen.metrics import CriticMetric, Metric, Sample
from ppgen.tracing.traces import Traces

__all__ = ["Match", "match"]


class Match(Term):
    """D(a, b), a metric between two views; see `match`."""

    def __init__(self, a: View, b: View, metric: Metric):
        super().__init__()
        self.a, self.b, self.metric = a, b, metric

    @property
    def name(self) -> str:
        where = self.a.name if self.a.name == self.b.name else f"{self.a.name}; {self.b.name}"
        return f"{self.metric.name}({where})"

    def value(self, draws: Traces) -> Tensor:
        x, y = self._rows(draws)
        return self.metric(x.values, y.values, x.weights, y.weights)

    @property
    def critic(self) -> CriticMetric | None:
        return self.metric if isinstance(self.metric, CriticMetric) else None

    @property
    def aligns(self) -> bool:
        return self.a.sites == self.b.sites and self.a.selection != self.b.selection

    def critic_loss(self, draws: Traces) -> Tensor:
        """The critic's loss on a draw; its gradient reaches the critic's weights alone."""
        assert isinstance(self.metric, CriticMetric)
        with torch.no_grad():
            x, y = self._rows(draws)
        with torch.enable_grad():
            return self.metric.critic_loss(x.values, y.values, x.weights, y.weights)

    def critic_sample(self, draws: Traces) -> Sample:
        """A sample of the kind that the critic judges."""
        return self._rows(draws)[0].values

    def _rows(self, draws: Traces) -> tuple[Rows, Rows]:
        # a view of observations alone is read last, off a trace that the other has already made
        first, second = (self.b, self.a) if self.a.of_data else (self.a, self.b)
        rows = {first: first(draws)}
        rows[second] = second(draws)
        return rows[self.a], rows[self.b]

    def __str__(self) -> str:
        return f"{self.metric.name}({self.a}, {self.b})"


def match(a: View, b: View, metric: Metric) -> Match:
    """The term D(a, b): a metric between two views, each an average over its rows.

    ``match(v.posterior("z"), v.prior("z"), m.MMD())`` pulls the aggregate posterior, not each q(z | x), to the prior.

    Raises:
        TypeError: if a or b is not a view, or the metric not a metric.
    """
    for what, got, expected in (("a", a, View), ("b", b, View), ("metric", metric, Metric)):
        if not isinstance(got, expected):
            raise TypeError(f"match: {what} is a {expected.__name__}, got {got!r}")
    return Match(a, b, metric)
