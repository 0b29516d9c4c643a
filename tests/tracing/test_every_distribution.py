"""Laws over all of Pyro's distributions, in a program that does not broadcast: many draws at once, each as alone."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro_distributions import CASES, OTHERS, known
from scipy.stats import ks_2samp

from ppgen.tracing import particles
from ppgen.tracing.particles import particle_traces
from ppgen.tracing.programs import validation
from ppgen.tracing.sites import latent_sites, sample_sites


def positive(u):
    """A positive number that depends on the whole of u, as `u.sum(-1)` for one draw, so that draws do not broadcast."""
    return (1.5 + u.sum()).clamp(min=0.5)


def traces(name, draws, monkeypatch):
    """Traces of a program that observes a draw of the distribution, of which no part may run draw by draw."""

    def refused(*args):
        raise AssertionError("one run for each draw")

    def model(y):
        u = pyro.sample("u", dist.Normal(torch.zeros(2), 0.2).to_event(1))
        pyro.sample("y", CASES[name](positive(u)), obs=y)

    def guide(y):
        pyro.sample("u", dist.Normal(torch.zeros(2), 0.2).to_event(1))

    monkeypatch.setattr(particles._VmappedTraces, "_loop", refused)
    y = CASES[name](torch.tensor(1.5)).sample()
    (found,) = particle_traces(model, guide, (y,), particles=draws)
    return found, y


def test_the_table_has_all_of_them():
    assert set(CASES) | set(OTHERS) == known()
    assert not set(CASES) & set(OTHERS)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", CASES)
def test_densities_and_draws_of_many_runs_at_once(name, monkeypatch):
    found, y = traces(name, 3, monkeypatch)
    with validation(False):
        model_trace, guide_trace = found.with_log_probs
        u = latent_sites(guide_trace)["u"]["value"].reshape(3, 2)
        expected = torch.stack([CASES[name](positive(row)).log_prob(y) for row in u])
        actual = sample_sites(model_trace)["y"]["log_prob"]
        torch.testing.assert_close(actual.expand(3), expected, rtol=1e-3, atol=1e-3)
        for kind in (found.posterior_predictive, found.generated):
            drawn = sample_sites(kind)["y"]["value"]
            assert drawn.shape == (3, *y.shape)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", CASES)
def test_draws_have_the_distribution_of_runs_alone(name, monkeypatch):
    """A Kolmogorov-Smirnov test of a linear function of 300 draws at level 1e-4, so that all of them have .008."""
    found, y = traces(name, 300, monkeypatch)
    weights = torch.linspace(1, 2, max(1, y.numel()))

    def summary(drawn):
        return (drawn.reshape(300, -1).float() * weights).sum(-1).numpy()

    with validation(False):
        u = latent_sites(found.guide_trace)["u"]["value"].reshape(300, 2)
        alone = torch.stack([CASES[name](positive(row))() for row in u])
        together = sample_sites(found.posterior_predictive)["y"]["value"]
    assert ks_2samp(summary(alone), summary(together)).pvalue > 1e-4
    assert name == "Delta" or len(together.unique(dim=0)) > 1
