"""Weights of programs whose loss is scaled: those of the programs without the scale."""

from contextlib import nullcontext

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from support import untrained_fit

from ppgen.tracing.particles import log_weights

X = torch.tensor([[0.3, -1.2], [0.8, 2.0], [-0.4, 1.1]], dtype=torch.double)
EVIDENCE = dist.Normal(torch.zeros((), dtype=torch.double), 2**0.5).log_prob(X)  # of x = z + noise
TEMPERED = 0.3


def annealed(of_model, of_guide):
    """x = z + noise, whose guide is the exact posterior, with scales around the latent."""

    def model(x):
        with pyro.plate("data", len(x)):
            with poutine.scale(scale=of_model) if of_model else nullcontext():
                z = pyro.sample("z", dist.Normal(torch.zeros_like(x), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)), poutine.scale(scale=of_guide) if of_guide else nullcontext():
            pyro.sample("z", dist.Normal(x / 2, 0.5**0.5).to_event(1))

    return model, guide


@pytest.mark.parametrize("scale", [0.1, torch.tensor(0.1)])
def test_a_kl_term_that_is_annealed_in_model_and_guide_leaves_the_evidence(scale):
    weights = log_weights(*annealed(scale, scale), (X,), particles=4)
    torch.testing.assert_close(weights, EVIDENCE.sum(-1).expand(4, 3))


def test_a_scale_of_the_guide_alone_is_none_of_its_density():
    weights = log_weights(*annealed(None, 0.1), (X,), particles=4)
    torch.testing.assert_close(weights, EVIDENCE.sum(-1).expand(4, 3))


def test_a_scale_of_the_model_alone_tempers_its_prior():
    model, guide = annealed(TEMPERED, None)
    pyro.set_rng_seed(0)
    weights = log_weights(model, guide, (X,), particles=20_000)
    tempered = dist.Normal(torch.zeros_like(X), TEMPERED**-0.5)  # p(z)^s is this times a constant
    constant = TEMPERED * dist.Normal(0.0, 1.0).log_prob(torch.zeros(())) - tempered.log_prob(torch.zeros_like(X))
    exact = dist.Normal(torch.zeros_like(X), (1 + 1 / TEMPERED) ** 0.5).log_prob(X) + constant
    estimate = weights.logsumexp(0) - torch.tensor(20_000.0).log()
    torch.testing.assert_close(estimate, exact.sum(-1), rtol=0, atol=0.1)


def test_programs_divided_by_the_number_of_data_have_the_evidence_of_the_data():
    y = torch.tensor([0.4, 1.3, -0.2, 2.2], dtype=torch.double)

    def model(y):
        m = pyro.sample("m", dist.Normal(torch.zeros((), dtype=torch.double), 3.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(m, 1.0), obs=y)

    def guide(y):
        precision = len(y) + 1 / 9
        pyro.sample("m", dist.Normal(y.sum() / precision, precision**-0.5))

    programs = [poutine.scale(program, scale=1 / len(y)) for program in (model, guide)]
    covariance = torch.eye(4, dtype=torch.double) + 9
    exact = dist.MultivariateNormal(torch.zeros(4, dtype=torch.double), covariance).log_prob(y)
    torch.testing.assert_close(log_weights(*programs, (y,), particles=3), exact.expand(3, 1))
    fit = untrained_fit(*programs, y)
    idata = fit.to_arviz(y, draws=100)
    assert float(idata["vi_stats"]["log_marginal"][0]) == pytest.approx(float(exact))
    assert fit.diagnose(y, idata=idata).statistics["missed_tail_mass"] < 0.05


def test_a_verdict_on_bad_rows_does_not_excuse_their_k_hat():
    model, _ = annealed(None, None)

    def narrow(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2, 0.1).to_event(1))

    verdict = untrained_fit(model, narrow, X).diagnose(X, draws=200)
    assert verdict.statistics["bad_rows"] == 1
    assert verdict.statistics["pareto_k"] > 0.5
    assert "pareto_k" not in verdict.notes
