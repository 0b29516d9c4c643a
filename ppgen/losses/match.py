"""`match`: the term D(a, b), a metric between two views."""

import math
from dataclasses import replace

import torch
from torch import Tensor

from ppgen.losses.objective import Objective, Term
from ppgen.losses.views import Rows, View
from ppgen.metrics import CriticMetric, EnergyDistance, Metric, Sample
from ppgen.tracing.traces import Traces

__all__ = ["Match", "match", "without_critics"]

JUDGED_DRAWS = 256  # of the programs, at least, which held-out rows are compared with


class Match(Term):
    """D(a, b), a metric between two views; see `match`.

    Args:
        a: the first view.
        b: the second view.
        metric: the metric D.
    """

    def __init__(self, a: View, b: View, metric: Metric) -> None:
        super().__init__()
        self.a, self.b, self.metric = a, b, metric

    @property
    def name(self) -> str:
        """The metric's name and the sites, such as "MMD(z)"."""
        sites = self.a.name if self.a.name == self.b.name else f"{self.a.name}; {self.b.name}"
        return f"{self.metric.name}({sites})"

    def value(self, traces: Traces) -> Tensor:
        """D(a, b) on one run of the programs."""
        x, y = self._rows(traces)
        return self.metric(x.values, y.values, x.weights, y.weights)

    @property
    def critic(self) -> CriticMetric | None:
        """The metric, if it has a critic."""
        return self.metric if isinstance(self.metric, CriticMetric) else None

    @property
    def is_alignment(self) -> bool:
        """Whether both views are of the same sites, in two selections of rows."""
        return self.a.sites == self.b.sites and self.a.selection != self.b.selection

    def critic_loss(self, traces: Traces) -> Tensor:
        """The loss of the critic, whose gradient reaches the critic's weights alone.

        Args:
            traces: one run of the programs.
        """
        assert isinstance(self.metric, CriticMetric)
        with torch.no_grad():
            x, y = self._rows(traces)
        with torch.enable_grad():
            return self.metric.critic_loss(x.values, y.values, x.weights, y.weights)

    def critic_sample(self, traces: Traces) -> Sample:
        """An input of the critic, whose shapes a new critic is built for.

        Args:
            traces: one run of the programs.
        """
        return self._rows(traces)[0].values

    def _rows(self, traces: Traces) -> tuple[Rows, Rows]:
        # a view of observations alone is read last, since the other view may have run the model already
        first, second = (self.b, self.a) if self.a.of_data else (self.a, self.b)
        rows = {first: first(traces)}
        rows[second] = second(traces)
        return rows[self.a], rows[self.b]

    def __str__(self) -> str:
        return f"{self.metric.name}({self.a}, {self.b})"


def match(a: View, b: View, metric: Metric) -> Match:
    """The term D(a, b): a metric between two views, which are samples with one row per datum.

    For example, ``match(v.posterior("z"), v.prior("z"), m.MMD())`` matches the aggregate posterior (and not each
    q(z | x)) to the prior.

    Args:
        a: the first view, see `ppgen.views`.
        b: the second view.
        metric: the metric D, see `ppgen.metrics`.

    Raises:
        TypeError: if a or b is not a view, or the metric is not a metric.

    Example:
        >>> import torch
        >>> import ppgen
        >>> from ppgen import metrics, views
        >>> loss = ppgen.ELBO() + 10 * ppgen.match(views.posterior("z"), views.prior("z"), metrics.MMD())
        >>> vae = ppgen.models.VAE((3,), latent_dim=2, hidden=(8,))
        >>> list(loss.breakdown(vae.model, vae.guide, torch.randn(20, 3)))
        ['ELBO', 'MMD(z)']
    """
    for name, value, expected in (("a", a, View), ("b", b, View), ("metric", metric, Metric)):
        if not isinstance(value, expected):
            raise TypeError(f"match: {name} must be a {expected.__name__}, got {value!r}")
    return Match(a, b, metric)


class _Judged(Match):
    """The energy distance of two views, of which one without data has more draws than there are data."""

    def __init__(self, a: View, b: View) -> None:
        super().__init__(a, b, EnergyDistance())

    def _rows(self, traces: Traces) -> tuple[Rows, Rows]:
        found = dict(zip((self.a, self.b), super()._rows(traces), strict=True))
        for view in (self.a, self.b):
            if view.of_model:
                runs = math.ceil(JUDGED_DRAWS / len(traces.find(*view.sites[0])["value"])) - 1
                found[view] = _joined([found[view], *(view(traces.replace()) for _ in range(runs))])
        return found[self.a], found[self.b]


def _joined(parts: list[Rows]) -> Rows:
    """The rows of several runs."""
    values, weights = zip(*parts, strict=True)
    columns = zip(*(value if isinstance(value, tuple) else (value,) for value in values), strict=True)
    return Rows(
        tuple(map(torch.cat, columns)),
        None if weights[0] is None else torch.cat(weights),
    )


def without_critics(loss: Objective) -> Objective:
    """The objective whose matches are by the energy distance in the place of critics, which have no say in its value.

    It tells how far held-out data and samples are apart, where a critic's loss tells which of two networks is ahead.
    What the model generates is drawn several times for few data, so that the noise is that of the data. Its schedules
    follow those of the loss.

    Args:
        loss: an objective, each of whose critics is that of a `match`.
    """
    terms = []
    for weighted in loss.terms:
        term = weighted.term
        judged = isinstance(term, Match) and term.critic is not None
        terms.append(replace(weighted, term=_Judged(term.a, term.b)) if judged else weighted)
    judge = Objective(tuple(terms))
    judge.step, judge.total = loss.step, loss.total
    return judge
