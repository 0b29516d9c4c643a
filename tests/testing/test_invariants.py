"""The invariants that users can test against hold for our own members, and planted mistakes are found.

Models are checked in `tests/models/test_registry.py`.
"""

from dataclasses import dataclass

import pyro
import pyro.distributions as dist
import pytest
import torch
from flow_cases import CASES, make, perturb
from metrics.registry import ROWS, Row
from torch import nn

from ppgen.flows import FLOWS, glow
from ppgen.metrics import Metric
from ppgen.models import COVARIANCES, LIKELIHOODS
from ppgen.models.likelihood import make_likelihood
from ppgen.testing import check_flow, check_likelihood, check_metric, check_model


def options_of(row: Row) -> dict:
    """What `check_metric` is told of a row of the registry."""
    zero = "unbiased" if row.unbiased else "exact" if row.zero else None
    gradient = None if row.flat else "finite" if row.adaptive else "exact"
    return {"zero": zero, "gradient": gradient, "detects_shift": row.location}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: repr(row.metric))
def test_metrics_keep_the_invariants(row):
    check_metric(row.metric, **options_of(row))


@dataclass(kw_only=True, eq=False, repr=False)
class FirstRows(Metric):
    """The distance of the first rows: it depends on the order of rows."""

    def estimate(self, x, y, p, q):
        return (x[0] - y[0]).square().sum()


@dataclass(kw_only=True, eq=False, repr=False)
class Detached(Metric):
    """The distance of means, whose gradient is half of what it should be."""

    def estimate(self, x, y, p, q):
        mean = p @ x
        return ((mean + mean.detach()) / 2 - q @ y).square().sum()


@pytest.mark.parametrize(("metric", "reason"), [(FirstRows(), "order of rows"), (Detached(), "finite differences")])
def test_a_wrong_metric_is_found(metric, reason):
    with pytest.raises(AssertionError, match=reason):
        check_metric(metric, detects_shift=False)


@pytest.mark.parametrize("name", FLOWS)
def test_flows_keep_the_invariants(name):
    tolerance = 10 * CASES[name].tolerance
    check_flow(make(name, 2, context_dim=2), tolerance=tolerance, integrate=tolerance < 1e-6 and name != "residual")


def test_a_flow_of_images_keeps_the_invariants():
    check_flow(perturb(glow((1, 4, 4), layers=1, hidden=(4,))), integrate=False)


def test_a_wrong_flow_is_found():
    flow = make("realnvp", 2)
    right = type(flow.maps).forward

    class Doubled(torch.distributions.AffineTransform):
        def log_abs_det_jacobian(self, x, y):
            return super().log_abs_det_jacobian(x, y) + 0.1

    class Wrong(type(flow.maps)):
        def forward(self, c=None):
            return torch.distributions.ComposeTransform([right(self, c), Doubled(0.0, 1.0, event_dim=1)])

    flow.maps.__class__ = Wrong
    with pytest.raises(AssertionError, match="log determinant"):
        check_flow(flow)


HEADS = {"bernoulli": {}, "categorical": {"levels": 4}} | {f"gaussian {c}": {"covariance": c} for c in COVARIANCES}


@pytest.mark.parametrize("name", HEADS)
def test_likelihoods_keep_the_invariants(name):
    check_likelihood(make_likelihood((2, 2), likelihood=name.split()[0], **{"levels": None, **HEADS[name]}))


def test_every_likelihood_is_tested():
    assert {name.split()[0] for name in HEADS} == set(LIKELIHOODS)


class Shifted(nn.Module):
    """A Gaussian head whose mean is said to be another."""

    size, event_shape = 1, (3,)

    def forward(self, raw):
        class Wrong(dist.Normal):
            mean = property(lambda self: self.loc + 1.0)

        return Wrong(raw.squeeze(-2), 1.0).to_event(1)

    def observed(self, x, dtype):
        return x

    def check(self, x):
        pass


def test_a_wrong_likelihood_is_found():
    with pytest.raises(AssertionError, match="mean is not that of draws"):
        check_likelihood(Shifted())


class Missing(nn.Module):
    """Its guide forgets a latent."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(self.weight * z[:, None], 1.0).to_event(1), obs=x)

    def guide(self, x):
        pyro.sample("w", dist.Normal(0.0, 1.0))


class Unused(Missing):
    """One of its parameters does not enter the loss."""

    def __init__(self):
        super().__init__()
        self.other = nn.Parameter(torch.ones(()))

    def guide(self, x):
        pyro.module("pair", self)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.weight, 1.0))


@pytest.mark.parametrize(("pair", "reason"), [(Missing, "'z'"), (Unused, "no gradient reaches other")])
def test_a_wrong_model_is_found(pair, reason):
    with pytest.raises((AssertionError, LookupError), match=reason):
        check_model(pair(), torch.randn(12, 3))
