"""Missing observations by ``obs_mask=``: latents whose other entries have no effect, and no prior in Pyro."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO
from support import untrained_fit

import ppgen
from ppgen.diagnostics import loo
from ppgen.posterior.log_density import UnconstrainedLogDensity
from ppgen.tracing.particles import log_weights

Y = torch.tensor([0.3, 99.0, 0.8, 2.0, 99.0], dtype=torch.double)
OK = torch.tensor([True, False, True, True, False])
PRECISION = 3 + 1 / 4
SEEN = Y[OK]
ZERO = torch.zeros((), dtype=torch.double)
EVIDENCE = dist.MultivariateNormal(torch.zeros(3, dtype=torch.double), torch.eye(3, dtype=torch.double) + 4)


def model(y, ok):
    mean = pyro.sample("mean", dist.Normal(ZERO, 2.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mean, 1.0), obs=y, obs_mask=ok)


def guide(y, ok):
    """The posterior; the missing values, and the entries of those that are not, are drawn from their prior."""
    mean = pyro.sample("mean", dist.Normal(y[OK].sum() / PRECISION, PRECISION**-0.5))
    with pyro.plate("data", len(y)):
        pyro.sample("y_unobserved", dist.Normal(mean, 1.0))


def test_weights_under_the_exact_posterior_are_the_evidence_of_what_is_seen():
    exact = EVIDENCE.log_prob(SEEN)
    torch.testing.assert_close(log_weights(model, guide, (Y, OK), particles=3), exact.expand(3, 1))
    assert ppgen.ELBO().loss(model, guide, Y, OK) * len(Y) == pytest.approx(-float(exact))


def test_a_guide_that_masks_these_entries_too_has_the_same_weights():
    def masked(y, ok):
        mean = pyro.sample("mean", dist.Normal(y[OK].sum() / PRECISION, PRECISION**-0.5))
        with pyro.plate("data", len(y)), pyro.poutine.mask(mask=~ok):
            pyro.sample("y_unobserved", dist.Normal(mean, 1.0))

    torch.testing.assert_close(log_weights(model, masked, (Y, OK), particles=3), EVIDENCE.log_prob(SEEN).expand(3, 1))


def test_the_density_of_all_latents_is_proper():
    target = UnconstrainedLogDensity(model, (Y, OK))
    u = torch.tensor([[0.5, 1.0, -0.2, 0.3, 0.7, 0.1]], dtype=torch.double)
    parts = [dist.Normal(ZERO, 2.0).log_prob(u[0, 0]), dist.Normal(u[0, 0], 1.0).log_prob(u[0, 1:]).sum()]
    torch.testing.assert_close(target.log_prob(u)[0], sum(parts) + dist.Normal(u[0, 0], 1.0).log_prob(SEEN).sum())


def test_the_posterior_is_found_and_data_are_left_out_one_at_a_time():
    fit = ppgen.fit(model, "auto", (Y, OK), restarts=1, progress=False)
    idata = fit.to_arviz(Y, OK, draws=1000)
    mean = idata["posterior"]["mean"]
    assert float(mean.mean()) == pytest.approx(float(SEEN.sum()) / PRECISION, abs=0.1)
    assert float(mean.std()) == pytest.approx(PRECISION**-0.5, rel=0.15)
    assert float(idata["posterior"]["y"][0, :, 0].std()) < 1e-12  # which is observed
    assert loo(idata).n_data_points == 3


def test_a_verdict_counts_the_prior_of_all_entries():
    fit = untrained_fit(model, guide, Y, OK)
    verdict = fit.diagnose(Y, OK, draws=200)
    assert verdict.statistics["ess_ratio"] == pytest.approx(1)
    assert "log_ratio" not in verdict.reasons


def test_the_loss_does_not_fall_as_a_guide_widens_where_nothing_is_missing():
    """Under Pyro's loss its scale there grows with each step, and the loss falls without bound."""

    def wide(y, ok):
        mean = pyro.sample("mean", dist.Normal(y[OK].sum() / PRECISION, PRECISION**-0.5))
        with pyro.plate("data", len(y)):
            pyro.sample("y_unobserved", dist.Normal(mean, torch.where(ok, 100.0, 1.0)))

    assert Trace_ELBO().loss(model, wide, Y, OK) < Trace_ELBO().loss(model, guide, Y, OK) - 5
    assert ppgen.ELBO().loss(model, wide, Y, OK) > ppgen.ELBO().loss(model, guide, Y, OK) + 5
