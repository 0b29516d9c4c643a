"""The invariants that users can test against hold for our own members, and planted mistakes are found."""

from dataclasses import dataclass

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import ppgen.metrics as m
from ppgen import recipes
from ppgen.flows import FLOWS, glow
from ppgen.metrics import Metric
from ppgen.models import COVARIANCES, LIKELIHOODS, VAE, Autoencoder, FlowModel
from ppgen.models.likelihood import make_likelihood
from ppgen.testing import check_flow, check_likelihood, check_metric, check_model

METRICS = {
    "CORAL": (m.CORAL(), {"detects_shift": False}),
    "CramerVonMises": (m.CramerVonMises(temperature=0.3), {}),
    "EnergyDistance": (m.EnergyDistance(), {"zero": "unbiased"}),
    "Frechet": (m.Frechet(), {}),
    "KolmogorovSmirnov": (m.KolmogorovSmirnov(), {"gradient": None}),
    "MMD": (m.MMD(kernel="imq", bandwidth=1.5), {"zero": "unbiased"}),
    "MaxSlicedWasserstein": (m.MaxSlicedWasserstein(steps=5), {"gradient": "finite"}),
    "Sinkhorn": (m.Sinkhorn(steps=5), {"gradient": "finite"}),
    "SlicedWasserstein": (m.SlicedWasserstein(), {}),
    "Wasserstein": (m.Wasserstein(), {}),
}


@pytest.mark.parametrize("name", METRICS)
def test_metrics_keep_the_invariants(name):
    metric, options = METRICS[name]
    check_metric(metric, **options)


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


def moved(flow):
    """A flow away from its start at the identity, where most mistakes are invisible."""
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return flow


TOLERANCES = {"naf": 3e-4, "sum_of_squares": 3e-4, "bernstein": 3e-4, "continuous": 1e-4}


@pytest.mark.parametrize("name", FLOWS)
def test_flows_keep_the_invariants(name):
    expensive = name in TOLERANCES or name == "residual"
    flow = moved(FLOWS[name](2, context_dim=2))
    check_flow(flow, tolerance=TOLERANCES.get(name, 1e-6), integrate=not expensive)


def test_a_flow_of_images_keeps_the_invariants():
    check_flow(moved(glow((1, 4, 4), layers=1, hidden=(4,))), integrate=False)


def test_a_wrong_flow_is_found():
    flow = moved(FLOWS["realnvp"](2))
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


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda: VAE((3,), latent_dim=2, hidden=(8,)), id="VAE"),
        pytest.param(lambda: Autoencoder((3,), latent_dim=2, hidden=(8,)), id="Autoencoder"),
        pytest.param(lambda: FlowModel((3,), flow="nsf", hidden=(8,)), id="FlowModel"),
    ],
)
def test_models_keep_the_invariants(make):
    model = make()
    check_model(model, torch.randn(12, 3), loss=recipes.ae() if type(model) is Autoencoder else None)


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
