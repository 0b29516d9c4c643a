"""The first map of flows of tables: the Gaussian of the data, whatever their units."""

from functools import partial

import pytest
import torch

import ppgen
from ppgen import flows
from ppgen.flows.composition import whitened
from ppgen.flows.marginals import Gaussianization, Marginals
from ppgen.models import FlowModel

UNITS = torch.tensor([1.0, 1e-3, 300.0])


def rows(n: int = 40) -> torch.Tensor:
    torch.manual_seed(0)
    mix = torch.tensor([[1.0, 0.0, 0.0], [0.9, 0.3, 0.0], [0.2, -0.5, 1.0]])
    return (torch.randn(n, 3) @ mix.mT + 2.0).double()


def leave_one_out(z: torch.Tensor, weight: torch.Tensor) -> float:
    """The mean log density of each row under the shrunk covariance of the others, without the closed form."""
    total, eye = 0.0, torch.eye(z.shape[1], dtype=z.dtype)
    for k in range(len(z)):
        others = torch.cat([z[:k], z[k + 1 :]])
        covariance = (1 - weight) * others.mT @ others / len(others) + weight * eye
        total += float(torch.distributions.MultivariateNormal(0 * z[k], covariance).log_prob(z[k]))
    return total / len(z)


def test_it_starts_as_the_gaussian_whose_shrunk_covariance_predicts_each_row_best_from_the_others():
    x = rows(12) * UNITS
    flow = whitened(flows.nsf(3, hidden=(8,))).double()
    flow.initialize(x)
    scale = x.std(0, correction=0)
    z = (x - x.mean(0)) / scale
    weight = max(torch.logspace(-6, 0, 61, dtype=z.dtype), key=lambda weight: leave_one_out(z, weight))
    assert 1e-6 < weight < 1
    shrunk = (1 - weight) * z.mT @ z / len(z) + weight * torch.eye(3)
    exact = torch.distributions.MultivariateNormal(x.mean(0), scale[:, None] * shrunk * scale).log_prob(x)
    torch.testing.assert_close(flow().log_prob(x).detach(), exact)
    z, log_det = flow().inverse_and_log_det(x)
    torch.testing.assert_close(flow().transform(z), x)
    jacobian = torch.autograd.functional.jacobian(flow().inverse, x[0])
    torch.testing.assert_close(log_det[0], torch.linalg.slogdet(jacobian).logabsdet)


def test_nearly_collinear_columns_start_near_the_gaussian_that_drew_them():
    torch.manual_seed(0)
    mix = torch.tensor([[1.0, 0.0, 0.0], [1.0, 1e-2, 0.0], [1.0, 0.0, 5e-3]], dtype=torch.float64)
    x = torch.randn(400, 3, dtype=torch.float64) @ mix.mT
    flow = whitened(flows.nsf(3, hidden=(8,))).double()
    flow.initialize(x[:200])
    exact = torch.distributions.MultivariateNormal(x[0] * 0, mix @ mix.mT).log_prob(x[200:])
    assert exact.mean() - flow().log_prob(x[200:]).mean() < 0.15  # the 9 parameters cost 9 / 400


def test_few_rows_of_many_columns_and_constant_columns_give_a_finite_density():
    x = torch.cat([rows(4).repeat(1, 3), torch.ones(4, 1)], 1).double()
    x = torch.cat([x, x.new_full((4, 1), 0.1 + 0.2)], 1)  # whose mean is another number than itself
    for marginals in (False, True):
        flow = whitened(flows.maf(11, hidden=(8,)), marginals=marginals).double()
        flow.initialize(x)
        assert (flow().log_prob(x + 1e-2) > -1e4).all()


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
    first = model.flow.maps.transforms[0].whitening
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


def test_marginals_turn_a_sinh_arcsinh_distribution_into_a_gaussian_and_invert():
    torch.manual_seed(0)
    noise = torch.randn(2000, 2, dtype=torch.float64)
    m, s, e, d = torch.tensor([[0.3, -0.2], [0.5, 1.2], [0.6, -0.4], [0.5, 0.8]], dtype=torch.float64)
    x = m + s * ((noise.arcsinh() + e) / d).sinh()
    marginals = Marginals(2).double()
    marginals.initialize(x[:1000])
    flow = flows.Flow(marginals, (2,))
    # the true map has the greatest likelihood up to the noise of 4 parameters a column, 8 / 2000 nats
    exact = torch.distributions.Normal(0.0, 1.0).log_prob(noise) - s.log() + d.log()
    exact = (exact + ((noise.square() + 1).log() - (((x - m) / s).square() + 1).log()) / 2).sum(1)
    assert (exact - flow().log_prob(x))[1000:].mean().abs() < 0.02
    z, log_det = flow().inverse_and_log_det(x[:5])
    torch.testing.assert_close(flow().transform(z), x[:5])
    jacobian = torch.autograd.functional.jacobian(flow().inverse, x[0])
    torch.testing.assert_close(log_det[0], torch.linalg.slogdet(jacobian).logabsdet)


@pytest.mark.parametrize("column", [torch.zeros(50), torch.randn(50).mul(3).exp(), torch.rand(50).round()])
def test_marginals_of_constant_heavy_and_binary_columns_have_finite_densities_also_far_from_the_data(column):
    marginals = Marginals(1)
    marginals.initialize(column[:, None])
    flow = flows.Flow(marginals, (1,))
    far = torch.cat([column, torch.tensor([-1e4, 1e4])])[:, None]
    assert flow().log_prob(far).isfinite().all()
    assert marginals.constants[3] <= 1  # tails no lighter than those of a Gaussian


@pytest.mark.parametrize(("lengths", "first"), [(False, False), (True, True)])
def test_marginals_come_before_the_whitening_where_columns_are_linear_on_another_scale(lengths, first):
    """Sums of columns are linear; areas, which are squares of lengths, are so on a logarithmic scale."""
    torch.manual_seed(0)
    r, noise = torch.randn(300, dtype=torch.float64), torch.randn(300, dtype=torch.float64)
    x = torch.stack([r.exp(), (2 * r + 0.1 * noise).exp()] if lengths else [r, r + 0.1 * noise], 1) * UNITS[1:]
    gaussianization = Gaussianization(2).double()
    flow = flows.Flow(gaussianization, (2,))
    flow.initialize(x)
    identity = gaussianization.columns.constants == torch.tensor([0.0, 1.0, 0.0, 1.0])[:, None]
    assert identity.all() != first
    before = gaussianization.columns.constants.clone()
    gaussianization.initialize(x)  # again, from the same rows
    torch.testing.assert_close(gaussianization.columns.constants, before, rtol=0, atol=0)
    torch.testing.assert_close(flow().transform(flow().inverse(x)), x)
    log_det = flow().inverse_and_log_det(x[0])[1]
    jacobian = torch.autograd.functional.jacobian(flow().inverse, x[0])
    torch.testing.assert_close(log_det, torch.linalg.slogdet(jacobian).logabsdet)
