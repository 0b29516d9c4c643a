"""Likelihood heads: gradients, closed forms, and scales."""

import math

import pyro
import pytest
import torch
import torch.nn.functional as F
from autoencoders import LIKELIHOODS, build

import ppgen.models
from ppgen.models import COVARIANCES, VAE, likelihood, mean


def make_head(row):
    options = {"likelihood": "gaussian", "scale": 0.8, "floor": 0.05, "levels": None, **LIKELIHOODS[row]}
    return likelihood.make_likelihood((2, 3), **options).double()


every_likelihood = pytest.mark.parametrize("row", LIKELIHOODS)


@every_likelihood
def test_gradients_with_respect_to_the_output_and_parameters(row):
    head = make_head(row)
    raw = torch.randn(2, head.size, 2, 3, dtype=torch.float64, requires_grad=True)
    x = head(raw).sample()
    parameters = list(head.parameters())
    assert len(parameters) == (row == "scalar")
    assert torch.autograd.gradcheck(lambda raw, *_: head(raw).log_prob(x), (raw, *parameters))


@pytest.mark.parametrize(("row", "network"), [*((row, "dense") for row in LIKELIHOODS), ("diagonal", "convolutional")])
def test_gradients_with_respect_to_the_code(row, network):
    model = build(VAE, row, network, hidden=(4,)).double()
    z = torch.randn(2, 2, dtype=torch.float64, requires_grad=True)
    x = model.sample(2)
    assert torch.autograd.gradcheck(lambda z: model.decoder(z).log_prob(x), (z,))


def dense_covariance(head, raw):
    """A Gaussian head's covariance of the flattened event, from the formulas of its docstring."""
    if head.covariance == "fixed":
        return 0.8**2 * torch.eye(6, dtype=raw.dtype).expand(len(raw), 6, 6)
    shift = math.log(math.expm1(0.8 - 0.05))
    rows = raw.flatten(2)
    if head.covariance == "scalar":
        rows = head.raw_scale.detach().expand(len(raw), 2, 6)
    if head.covariance == "full":
        square = rows[:, 1:].transpose(1, 2)
        tril = torch.zeros_like(square)
        for i in range(6):
            tril[:, i, :i] = square[:, i, :i] / math.sqrt(6)
            tril[:, i, i] = 0.05 + F.softplus(square[:, i, i] + shift)
        return tril @ tril.transpose(1, 2)
    covariance = torch.diag_embed((0.05 + F.softplus(rows[:, 1] + shift)) ** 2)
    if head.covariance == "low_rank":
        covariance = covariance + torch.einsum("nri,nrj->nij", rows[:, 2:], rows[:, 2:]) / 2
    return covariance


@every_likelihood
def test_heads_have_the_closed_form(row):
    head = make_head(row)
    for parameter in head.parameters():
        parameter.data.fill_(0.3)
    raw = torch.randn(5, head.size, 2, 3, dtype=torch.float64)
    distribution = head(raw)
    x = distribution.sample()
    assert distribution.batch_shape == (5,)
    assert distribution.event_shape == x.shape[1:] == (2, 3)
    if row == "bernoulli":
        probs = raw[:, 0].sigmoid()
        expected, log_prob = probs, torch.where(x == 1, probs, 1 - probs).log()
    elif row == "categorical":
        probs = raw.softmax(1)
        expected = probs[:, 1] + 2 * probs[:, 2]
        log_prob = probs.gather(1, x[:, None])[:, 0].log()
    else:
        expected = raw[:, 0]
        closed = torch.distributions.MultivariateNormal(expected.flatten(1), dense_covariance(head, raw))
        log_prob = closed.log_prob(x.flatten(1)).reshape(5, 1, 1)
    torch.testing.assert_close(mean(distribution), expected)
    torch.testing.assert_close(distribution.log_prob(x), log_prob.sum((1, 2)))


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_scales_are_initialized_as_given_and_bounded_by_the_floor(covariance):
    """At the mean the density is (2 pi)^(-D/2) s^(-D), with s = scale at h = 0 and s = floor at h = -inf."""
    head = make_head(covariance)
    raw, at_mean = torch.zeros(1, head.size, 2, 3).double(), torch.zeros(1, 2, 3).double()

    def scale():
        return math.exp(-head(raw).log_prob(at_mean).item() / 6) / math.sqrt(2 * math.pi)

    assert scale() == pytest.approx(0.8)
    for parameter in head.parameters():
        parameter.data.fill_(-1e4)
    if covariance == "full":  # only the diagonal of L
        raw[:, 1:] = -1e4 * torch.eye(6).reshape(1, 6, 2, 3)
    elif covariance != "fixed":
        raw[:, 1:2] = -1e4
    assert scale() == pytest.approx(0.8 if covariance == "fixed" else 0.05)


def test_the_mean_of_a_transformed_distribution_is_refused():
    skewed = pyro.distributions.TransformedDistribution(
        pyro.distributions.Normal(0.0, 1.0), torch.distributions.ExpTransform()
    )
    with pytest.raises(ValueError, match="only reshapes its base, got ExpTransform"):
        mean(skewed)


def test_the_encoder_reads_levels_evenly_spaced():
    head = likelihood.Categorical((1,), levels=5)
    assert head.features(torch.arange(5), torch.float64).tolist() == [-1, -0.5, 0, 0.5, 1]


def test_every_likelihood_and_covariance_is_tested():
    assert {options.get("likelihood", "gaussian") for options in LIKELIHOODS.values()} == set(ppgen.models.LIKELIHOODS)
    assert {options["covariance"] for options in LIKELIHOODS.values() if "covariance" in options} == set(COVARIANCES)


def test_every_likelihood_names_the_form_of_its_data():
    forms = {name: head.form for name, head in ppgen.models.LIKELIHOODS.items()}
    assert forms == {"bernoulli": "binary", "categorical": "integer", "gaussian": "continuous"}
