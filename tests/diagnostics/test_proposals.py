"""The distributions that search a posterior have the densities and draws that they claim."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal

from ppgen.diagnostics.proposals import guide_proposal, prior_proposal, student_t_proposal
from ppgen.posterior.log_density import UnconstrainedLogDensity


def program(y):
    rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
    with pyro.plate("data", len(y)):
        b = pyro.sample("b", dist.Normal(0.0, 2.0))
        pyro.sample("y", dist.Normal(b * rate, 1.0), obs=y)


Y = torch.tensor([1.0, -2.0, 0.5])


@pytest.fixture
def target() -> UnconstrainedLogDensity:
    return UnconstrainedLogDensity(program, (Y,))


def test_the_prior_is_that_of_the_latents_without_the_observations(target):
    prior = prior_proposal(target, 1000, torch.Generator().manual_seed(0))
    assert prior is not None
    z = target.constrain(prior.u)
    assert torch.allclose(target.unconstrain(z), prior.u)
    expected = dist.Gamma(2.0, 1.0).log_prob(z["rate"]) + z["rate"].log()  # the Jacobian of exp
    expected = expected + dist.Normal(0.0, 2.0).log_prob(z["b"]).sum(-1)
    assert torch.allclose(prior.log_prob(prior.u), expected)
    assert float(z["rate"].mean()) == pytest.approx(2.0, abs=4 * math.sqrt(2 / 1000))
    assert float(z["b"].std()) == pytest.approx(2.0, rel=4 / math.sqrt(2 * 3000))


def test_many_draws_of_the_prior_are_made_in_one_run_and_evaluate_no_likelihood():
    """Neither a plate of the observations alone nor a likelihood that is NaN makes it slow or warns."""
    runs = []

    def model(y):
        runs.append(1)
        scale = pyro.sample("scale", dist.Cauchy(0.0, 1.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(0.0, scale.sqrt(), validate_args=False), obs=y)

    target = UnconstrainedLogDensity(model, (Y,))
    runs.clear()
    prior = prior_proposal(target, 500, torch.Generator().manual_seed(0))
    assert prior is not None
    assert prior.u.shape == (500, 1)
    assert len(runs) < 50


def test_an_improper_prior_is_no_proposal():
    def improper(y):
        b = pyro.sample("b", dist.ImproperUniform(dist.constraints.real, (), ()))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(b, 1.0), obs=y)

    assert prior_proposal(UnconstrainedLogDensity(improper, (Y,)), 50, torch.Generator()) is None


@pytest.mark.parametrize("kind", [AutoNormal, AutoMultivariateNormal])
def test_the_density_of_an_autoguide_is_that_of_its_unconstrained_draws(target, kind):
    pyro.set_rng_seed(0)
    guide = kind(program)
    trace = poutine.trace(guide).get_trace(Y)
    u = target.unconstrain({name: trace.nodes[name]["value"].detach()[None] for name in target.shapes})
    auxiliary = [site for site in trace.nodes.values() if site.get("infer", {}).get("is_auxiliary")]
    proposal = guide_proposal(target, guide, u)
    assert proposal is not None
    with torch.no_grad():
        expected = sum(float(site["fn"].log_prob(site["value"]).sum()) for site in auxiliary)
        assert float(proposal.log_prob(u)) == pytest.approx(expected, rel=1e-4)


def test_a_guide_of_the_user_has_no_density_elsewhere(target):
    assert guide_proposal(target, lambda y: None, torch.zeros(5, 4)) is None


def test_student_t_has_the_mean_and_the_covariance_of_the_draws():
    generator = torch.Generator().manual_seed(0)
    u = torch.randn(4000, 2, generator=generator, dtype=torch.float64) * torch.tensor([1.0, 3.0]) + 5
    proposal = student_t_proposal(u, generator)
    assert proposal is not None
    median = proposal.u.median(0).values
    spread = (proposal.u - median).abs().median(0).values / 0.765  # the upper quartile of t with 3 degrees of freedom
    assert torch.allclose(median, torch.tensor([5.0, 5.0]).double(), atol=0.2)
    assert torch.allclose(spread, torch.tensor([1.0, 3.0]).double(), rtol=0.08)
    assert student_t_proposal(u[:, :1].repeat(1, 2), generator) is None


def test_the_prior_of_a_hidden_chain_sums_out_its_states():
    def chain(y):
        locs = pyro.sample("locs", dist.Normal(torch.zeros(2), 3.0).to_event(1))
        stay = pyro.sample("stay", dist.Beta(2.0, 1.0))
        state = torch.tensor(0)
        for t in pyro.markov(range(len(y))):
            probs = torch.where(state == 0, stay, 1 - stay)
            state = pyro.sample(f"state_{t}", dist.Bernoulli(1 - probs), infer={"enumerate": "parallel"}).long()
            pyro.sample(f"y_{t}", dist.Normal(locs[state], 1.0), obs=y[t])

    target = UnconstrainedLogDensity(chain, (Y,))
    prior = prior_proposal(target, 200, torch.Generator().manual_seed(0))
    assert prior is not None
    z = target.constrain(prior.u)
    expected = dist.Normal(0.0, 3.0).log_prob(z["locs"]).sum(-1) + dist.Beta(2.0, 1.0).log_prob(z["stay"])
    expected = expected + (z["stay"] * (1 - z["stay"])).log()  # the Jacobian of the sigmoid
    assert torch.allclose(prior.log_prob(prior.u), expected)
    assert float(z["stay"].mean()) == pytest.approx(2 / 3, abs=5 * math.sqrt(1 / 18 / 200))
