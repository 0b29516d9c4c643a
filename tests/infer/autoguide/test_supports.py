"""Autoguides of programs in which the support of a latent depends on other latents."""

import pyro
import pyro.distributions as dist
import pytest
import torch

from ppgen.infer.autoguide import AutoFlow, AutoMixture
from ppgen.infer.autoguide.supports import AutoGaussian
from ppgen.tracing.particles import log_weights, particle_traces


def within(y=None):
    """b lies below a; c is a share of its own."""
    a = pyro.sample("a", dist.Gamma(5.0, 2.0))
    pyro.sample("b", dist.Uniform(0.0, a))
    pyro.sample("c", dist.Beta(2.0, 2.0))


GUIDES = {"AutoGaussian": AutoGaussian, "AutoMixture": AutoMixture, "AutoFlow": AutoFlow}


@pytest.mark.parametrize("name", GUIDES)
@pytest.mark.parametrize("scale", [0.1, 1.0])
def test_draws_lie_in_the_supports_and_weights_have_the_evidence_as_their_mean(name, scale):
    """log p(x) = 0 without data. At four standard errors of the mean weight (level 6e-5)."""
    pyro.clear_param_store()
    torch.manual_seed(0)
    guide = GUIDES[name](within, init_scale=scale)
    guide()
    assert guide.dependent_supports == ["b"]
    (traces,) = particle_traces(within, guide, (), particles=50)
    a, b = (traces.guide_trace.nodes[site]["value"] for site in "ab")
    assert ((b > 0) & (b < a)).all()
    if scale < 1:  # far too narrow for the mean of the weights to be found
        return
    weights = log_weights(within, guide, (), particles=20_000).exp()
    assert abs(float(weights.mean()) - 1) < 4 * float(weights.std()) / 20_000**0.5


def test_the_model_does_not_run_in_a_guide_whose_supports_are_constant():
    runs = []

    def model():
        runs.append(0)
        pyro.sample("a", dist.Gamma(5.0, 2.0))

    pyro.clear_param_store()
    guide = AutoGaussian(model)
    guide()
    before = len(runs)
    guide()
    assert guide.dependent_supports == []
    assert len(runs) == before


def test_the_median_and_quantiles_follow_the_supports():
    pyro.clear_param_store()
    guide = AutoGaussian(within)
    guide()
    with torch.no_grad():
        guide.loc.copy_(torch.tensor([1.0, 0.5, 0.0]))
    median = guide.median()
    torch.testing.assert_close(median["a"], torch.tensor(1.0).exp())
    torch.testing.assert_close(median["b"], median["a"] * torch.tensor(0.5).sigmoid())


def test_an_amortized_guide_refuses_them():
    def model(x):
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", dist.Gamma(5.0, 2.0))
            b = pyro.sample("b", dist.Uniform(0.0, a))
            pyro.sample("x", dist.Normal(b, 1.0), obs=x)

    with pytest.raises(ValueError, match="support of 'b' depends on other latents"):
        AutoFlow(model, amortized="x")(torch.randn(5))
