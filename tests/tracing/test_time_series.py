"""Pyro's hidden Markov models as likelihoods: any of them, with a duration and without."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import eye, ones, tensor, zeros

from ppgen.tracing.particles import particle_traces
from ppgen.tracing.programs import get_trace, validation
from ppgen.tracing.sites import sample_sites

T = 5


def gaussian(s, duration):
    noise = dist.Normal(zeros(1), 1.0).to_event(1)
    return dist.GaussianHMM(
        dist.Normal(0 * s, s).expand([1]).to_event(1), 0.5 * eye(1), noise, eye(1), noise, duration=duration
    )


def independent(s, duration):
    noise = dist.Normal(zeros(2, 1, 1), 1.0).to_event(1)
    start = dist.Normal(0 * s, s).expand([2, 1]).to_event(1)
    return dist.IndependentHMM(
        dist.GaussianHMM(start, ones(2, 1, 1, 1), noise, ones(2, 1, 1, 1), noise, duration=duration)
    )


def linear(s, duration, trans=None):
    noise = dist.Normal(zeros(1), 1.0).to_event(1)
    trans = trans or dist.StudentT(4.0, zeros(1), s).to_event(1)
    return dist.LinearHMM(noise, 0.5 * eye(1), trans, eye(1), noise, duration=duration)


MODELS = {
    "discrete": (
        lambda s, d: dist.DiscreteHMM(zeros(2), eye(2), dist.Normal(s * tensor([-1.0, 1.0]), 1.0), duration=d),
        (),
    ),
    "gaussian": (gaussian, (1,)),
    "independent": (independent, (2,)),
    "log-normal": (lambda s, d: dist.TransformedDistribution(gaussian(s, d), dist.transforms.ExpTransform()), (1,)),
    "linear": (linear, (1,)),
}


def programs(name, duration, y):
    """A model with one scale, observed by the series; and its guide."""

    def model():
        s = pyro.sample("s", dist.LogNormal(0.0, 0.2))
        pyro.sample("y", MODELS[name][0](s, duration), obs=y)

    def guide():
        pyro.sample("s", dist.LogNormal(0.0, 0.3))
        if name == "linear":
            pyro.sample("y_trans_gamma", dist.Gamma(2.0, 2.0).expand([T, 1]).to_event(2))

    return model, guide


@pytest.mark.parametrize("name", MODELS)
def test_a_homogeneous_model_has_the_duration_of_what_it_observes(name):
    """Densities are those of the model with that duration, and predictions are as long as the data."""
    y = torch.rand(T, *MODELS[name][1]) + 0.5
    model, guide = programs(name, None, y)
    (traces,) = particle_traces(model, guide, (), particles=3)
    with validation(False):
        model_trace, guide_trace = traces.with_log_probs
        for kind in (traces.posterior_predictive, traces.generated):
            assert sample_sites(kind)["y"]["value"].shape == (3, *y.shape)
        for k in range(3):
            values = {name: site["value"].reshape(3, -1)[k] for name, site in sample_sites(guide_trace).items()}
            values = {n: v.reshape(()) if n == "s" else v.reshape(T, 1) for n, v in values.items()}
            alone = get_trace(poutine.condition(programs(name, T, y)[0], data=values))
            alone.compute_log_prob()
            density = alone.nodes["y"]["log_prob"]
            torch.testing.assert_close(model_trace.nodes["y"]["log_prob"].reshape(3)[k], density, rtol=1e-4, atol=1e-4)


def test_linear_models_are_gaussian_given_scales():
    """x_t = x_(t-1) / 2 + StudentT(4, 0, 2) noise is normal noise of variance 4 / gamma_t, gamma_t ~ Gamma(2, 2)."""
    y, gamma = torch.randn(T, 1), torch.rand(T, 1) + 0.5

    def model():
        pyro.sample("y", linear(tensor(2.0), None), obs=y)

    trace = get_trace(poutine.condition(model, data={"y_trans_gamma": gamma}))
    noise = dist.Normal(zeros(1), 1.0).to_event(1)
    scaled = dist.Normal(0.0, 2.0 * gamma.rsqrt()).to_event(1)
    expected = dist.GaussianHMM(noise, 0.5 * eye(1), scaled, eye(1), noise, duration=T).log_prob(y)
    torch.testing.assert_close(trace.log_prob_sum() - dist.Gamma(2.0, 2.0).log_prob(gamma).sum(), expected)


def test_noise_without_a_gaussian_form_is_refused_by_name():
    def model():
        trans = dist.Laplace(zeros(1), 1.0).to_event(1)
        pyro.sample("y", linear(tensor(1.0), None, trans), obs=torch.randn(T, 1))

    with pytest.raises(NotImplementedError, match=r"site 'y': a LinearHMM has a density .* its trans is Laplace"):
        get_trace(model)
