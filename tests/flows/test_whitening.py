"""The first map of flows of tables: the Gaussian of the data, whatever their units."""

from functools import partial

import pytest
import torch
from sklearn.covariance import LedoitWolf

import ppgen
from ppgen import flows
from ppgen.flows.composition import whitened
from ppgen.models import FlowModel

UNITS = torch.tensor([1.0, 1e-3, 300.0])


def rows(n: int = 40) -> torch.Tensor:
    torch.manual_seed(0)
    mix = torch.tensor([[1.0, 0.0, 0.0], [0.9, 0.3, 0.0], [0.2, -0.5, 1.0]])
    return (torch.randn(n, 3) @ mix.mT + 2.0).double()


def test_it_starts_as_the_gaussian_with_the_shrunk_covariance_of_ledoit_and_wolf():
    x = rows() * UNITS
    flow = whitened(flows.nsf(3, hidden=(8,))).double()
    flow.initialize(x)
    scale = x.std(0, correction=0)
    shrunk = LedoitWolf(assume_centered=True).fit(((x - x.mean(0)) / scale).numpy()).covariance_
    covariance = scale[:, None] * torch.as_tensor(shrunk) * scale
    exact = torch.distributions.MultivariateNormal(x.mean(0), covariance).log_prob(x)
    torch.testing.assert_close(flow().log_prob(x).detach(), exact)
    z, log_det = flow().inverse_and_log_det(x)
    torch.testing.assert_close(flow().transform(z), x)
    jacobian = torch.autograd.functional.jacobian(flow().inverse, x[0])
    torch.testing.assert_close(log_det[0], torch.linalg.slogdet(jacobian).logabsdet)


def test_few_rows_of_many_columns_and_constant_columns_give_a_finite_density():
    x = torch.cat([rows(4).repeat(1, 3), torch.ones(4, 1)], 1).double()
    flow = whitened(flows.maf(10, hidden=(8,))).double()
    flow.initialize(x)
    assert flow().log_prob(x).isfinite().all()


@pytest.mark.parametrize("flow", ["nsf", "maf"])
def test_a_fit_does_not_depend_on_the_units_of_the_columns(flow):
    densities = []
    for units in (torch.ones(3), UNITS):
        x = rows() * units
        torch.manual_seed(1)
        model = FlowModel((3,), flow=flow, whiten=True, layers=2, hidden=(8,)).double()
        optim = partial(torch.optim.SGD, lr=1e-2)
        ppgen.fit(model.model, model.guide, x, steps=5, optim=optim, compile=False, progress=False)
        densities.append(model.log_prob(x) + units.log().sum())
    torch.testing.assert_close(*densities)


def test_it_is_set_from_more_rows_than_a_batch_and_kept_when_the_training_goes_on():
    x = rows(400)
    model = FlowModel((3,), flow="nsf", layers=1, hidden=(4,)).double()
    options = {"steps": 1, "batch_size": 8, "compile": False, "progress": False}
    ppgen.fit(model.model, model.guide, x, **options)
    (first, *_) = model.flow.maps.transforms
    torch.testing.assert_close(first.mean, x.mean(0), rtol=0, atol=1e-5)
    ppgen.fit(model.model, model.guide, 2 * x, **options)
    torch.testing.assert_close(first.mean, x.mean(0), rtol=0, atol=1e-5)


def test_a_flow_of_levels_and_of_bounded_data_is_whitened_behind_its_logit():
    levels = torch.randint(0, 5, (60, 3))
    model = FlowModel((3,), levels=5, whiten=True, layers=1, hidden=(4,))
    model.initialize(levels)
    z, _ = model.pull_back(levels)
    assert z.mean(0).abs().max() < 0.2
    assert (z.std(0) - 1).abs().max() < 0.2
    assert not any(type(part).__name__ == "Whitening" for part in FlowModel((3,), flow="maf").modules())
