"""The invariants of `ppgen.testing` hold for the members of this package, and planted mistakes are found.

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
from ppgen.metrics import MMD, Metric
from ppgen.models import COVARIANCES, LIKELIHOODS
from ppgen.models.likelihood import make_likelihood
from ppgen.testing import check_flow, check_likelihood, check_metric, check_model


def options_of(row: Row) -> dict:
    """The options of `check_metric` for a row of the registry."""
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
class HalfGradient(Metric):
    """The squared distance of the means, times a factor, with half of the correct gradient."""

    factor: float = 1.0

    def estimate(self, x, y, p, q):
        mean = p @ x
        return self.factor * ((mean + mean.detach()) / 2 - q @ y).square().sum()


@dataclass(kw_only=True, eq=False, repr=False)
class Detached(Metric):
    """The squared distance of the means, without a gradient."""

    def estimate(self, x, y, p, q):
        return (p @ x - q @ y).square().sum().detach()


@dataclass(kw_only=True, eq=False, repr=False)
class UnweightedMean(Metric):
    """The squared distance of the means, without the weights of the second sample."""

    def estimate(self, x, y, p, q):
        return (p @ x - y.mean(0)).square().sum()


@pytest.mark.parametrize(
    ("metric", "reason"),
    [
        (FirstRows(), "order of rows"),
        (HalfGradient(), "finite differences"),
        (HalfGradient(factor=1e-3), "finite differences"),
        (Detached(), "no gradient"),
        (UnweightedMean(), "a row of weight zero"),
    ],
)
def test_a_wrong_metric_is_found(metric, reason):
    with pytest.raises(AssertionError, match=reason):
        check_metric(metric, detects_shift=False)


@pytest.mark.parametrize("name", FLOWS)
def test_flows_keep_the_invariants(name):
    tolerance = 10 * CASES[name].tolerance
    check_flow(make(name, 2, context_dim=2), tolerance=tolerance, integrate=tolerance < 1e-6 and name != "residual")


def test_a_flow_of_images_keeps_the_invariants():
    check_flow(perturb(glow((1, 4, 4), layers=1, hidden=(4,))), integrate=False)


def test_a_flow_with_frozen_parameters_keeps_the_invariants():
    flow = make("maf", 2)
    next(flow.parameters()).requires_grad_(False)
    check_flow(flow, integrate=False)


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
    """A Gaussian head whose `mean` is wrong."""

    size, event_shape = 1, (3,)

    def forward(self, raw):
        class Wrong(dist.Normal):
            mean = property(lambda self: self.loc + 1.0)

        return Wrong(raw.squeeze(-2), 1.0).to_event(1)

    def observed(self, x, dtype):
        return x

    def check(self, x):
        pass


class Refusing(Shifted):
    """A head that refuses its own draws."""

    def check(self, x):
        raise ValueError("expected other values")


@pytest.mark.parametrize(("head", "reason"), [(Shifted, "average of draws"), (Refusing, "expected other values")])
def test_a_wrong_likelihood_is_found(head, reason):
    with pytest.raises(AssertionError, match=reason):
        check_likelihood(head())


class Missing(nn.Module):
    """Its guide does not draw the latent z."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(self.weight * z[:, None], 1.0).to_event(1), obs=x)

    def guide(self, x):
        pyro.sample("w", dist.Normal(0.0, 1.0))


class Pair(Missing):
    """A model and its guide, without a mistake."""

    def guide(self, x):
        pyro.module("pair", self)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.weight, 1.0))


class Unused(Pair):
    """A parameter does not affect the loss."""

    def __init__(self):
        super().__init__()
        self.other = nn.Parameter(torch.ones(()))


class Additional(Pair):
    """The guide draws a site that the model does not have."""

    def guide(self, x):
        super().guide(x)
        pyro.sample("w", dist.Normal(0.0, 1.0))


class WrongPlate(Pair):
    """The plate "data" has one row, whatever the number of rows of the data."""

    def model(self, x):
        with pyro.plate("data", 1):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0))
            pyro.sample("x", dist.Normal(self.weight * z[:, None], 1.0).to_event(1), obs=x[:1])

    def guide(self, x):
        super().guide(x[:1])


class Unsaved(Pair):
    """A trained parameter is missing from `state_dict`."""

    def model(self, x):
        super().model(x + pyro.param("shift", torch.zeros(())))


class NotFinite(Pair):
    """The loss is not finite."""

    def model(self, x):
        super().model(torch.full_like(x, torch.inf))


class Refused(Pair):
    """The method `check` refuses draws of the method `sample`."""

    def check(self, x):
        if (x == 0).all():
            raise ValueError("expected values other than zero")

    def sample(self, n):
        return torch.zeros(n, 3)


@pytest.mark.parametrize(
    ("pair", "reason"),
    [
        (Missing, "the guide does not fit the model: .*'z'"),
        (Unused, "no gradient reaches the parameter other"),
        (Additional, "the guide does not fit the model: .*'w'"),
        (WrongPlate, "the plate 'data' around '.' in the model has 1 rows, the data have 12"),
        (Unsaved, "a copy with the same state_dict"),
        (NotFinite, "the loss is nan"),
        (Refused, "refuses draws: expected values other than zero"),
    ],
)
def test_a_wrong_model_is_found(pair, reason):
    with pyro.validation_enabled(False), pytest.raises(AssertionError, match=reason):
        check_model(pair(), torch.randn(12, 3))


def test_global_random_numbers_and_parameters_are_kept():
    pyro.param("own", torch.ones(()))
    flow, state = make("lu_linear", 2), torch.get_rng_state()
    check_metric(MMD(bandwidth=1.0), zero="unbiased")
    check_flow(flow, integrate=False)
    check_likelihood(make_likelihood((2,), likelihood="bernoulli", levels=None))
    check_model(Pair(), torch.arange(36.0).reshape(12, 3))
    assert torch.equal(torch.get_rng_state(), state)
    assert set(pyro.get_param_store()) == {"own"}
